"""A distribution whose action is composed of several independent parts."""

from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._kinds import check_tensor
from a2c_compiled._precision import widen, working_dtype
from a2c_compiled.distributions.base import Distribution, join_noise_kinds
from a2c_compiled.distributions.torch_distribution import TorchDistribution


class Composite(Distribution):
    r"""An action of several independent parts. The distribution of a part is called a head.

    .. math:: \log p(a) = \sum_i \log p_i(a_i)

    * ``params``: ``[*B, num_params]``, floating dtype; the ``params`` of all heads, concatenated in the order of the heads.
    * action: ``[*B, k]``: the actions of all heads, concatenated; the ``[*B]`` action of a single choice takes one column. The dtype is
      int64 if all heads are discrete. Otherwise the action has the dtype of ``params``, or float32 for half-precision ``params``. float32
      represents integers up to :math:`2^{24}` exactly.
    * noise: ``[*B, K]``: the noise of all heads, concatenated.

    The entropy is the sum of the heads' entropies. The sum has a closed form if the entropy of every head has one;
    :meth:`entropy_estimate` samples only the other heads. :meth:`split_action` splits an action into the heads' actions;
    :meth:`join_actions` does the reverse.

    Args:
        *heads: distributions. :class:`TorchDistribution` is not allowed, because its samples are not a function of noise. If a head is a
            :class:`~a2c_compiled.distributions.Delta`, the log-probability is infinite, so the distribution can sample actions, but a
            policy loss is not finite.

    Raises:
        ValueError: there are no heads.
        TypeError: a head is not a :class:`Distribution`, or is a :class:`TorchDistribution`.

    Source: ``tensordict.nn.CompositeDistribution`` with aggregated probabilities, which TorchRL uses.
    """

    if TYPE_CHECKING:  # for mypy alone: TorchScript would read this annotation, and ``heads`` is an nn.ModuleList at run time
        heads: Sequence[Distribution]

    def __init__(self, *heads: Distribution) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads: expected at least one distribution, got none")
        for head in heads:
            if not isinstance(head, Distribution) or isinstance(head, TorchDistribution):
                raise TypeError(
                    f"heads: expected distributions of a2c_compiled other than TorchDistribution, got {type(head).__name__}"
                )
        self.heads = nn.ModuleList(heads)  # type: ignore[assignment]
        self.param_sizes = [head.num_params for head in heads]
        self.num_params = sum(self.param_sizes)
        self.has_entropy = all(head.has_entropy for head in heads)
        # Run each head on a batch of one, to read the sizes of its action and noise. The state of torch's random generator is restored.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            head_params = [torch.zeros(1, head.num_params, device=_device(head)) for head in heads]
            modes = [head.mode(params) for head, params in zip(heads, head_params, strict=True)]
            self.noise_sizes = [head.noise(params).size(-1) for head, params in zip(heads, head_params, strict=True)]
        self.is_single = [mode.dim() == 1 for mode in modes]
        self.is_continuous = [mode.is_floating_point() for mode in modes]
        self.action_sizes = [1 if mode.dim() == 1 else mode.size(-1) for mode in modes]
        sizes = zip(heads, self.noise_sizes, strict=True)
        self.noise_kind = join_noise_kinds((head.noise_kind, size) for head, size in sizes if head.noise_kind) or None

    def split_action(self, action: Tensor) -> List[Tensor]:
        """Splits an action into the actions of the heads.

        Args:
            action: ``[*B, k]``, floating dtype if any head is continuous, otherwise an integer dtype.

        Returns:
            The action of each head, ``[*B]`` or ``[*B, dim]``. The action of a discrete head is rounded and converted to int64;
            NaN and infinity become -1.

        Raises:
            ValueError: the last dimension is wrong.
            TypeError: the dtype is wrong.
        """
        check_tensor("action", action)
        if action.dim() == 0 or action.size(-1) != sum(self.action_sizes):
            raise ValueError(f"action: expected shape [..., {sum(self.action_sizes)}], got {list(action.shape)}")
        if action.is_floating_point() != any(self.is_continuous):
            expected = "a floating" if any(self.is_continuous) else "an integer"
            raise TypeError(f"action: expected {expected} dtype, got {action.dtype}")
        actions: List[Tensor] = []
        for i, part in enumerate(action.split(self.action_sizes, -1)):
            if not self.is_continuous[i]:
                # -1 is no choice of any head, whereas the integer that NaN becomes depends on the machine.
                part = (part.round().nan_to_num(-1.0, -1.0, -1.0) if part.is_floating_point() else part).long()
            actions.append(part.squeeze(-1) if self.is_single[i] else part)
        return actions

    def join_actions(self, actions: List[Tensor]) -> Tensor:
        """Concatenates the actions of the heads.

        Args:
            actions: one action for each head, ``[*B]`` or ``[*B, dim]``.

        Returns:
            ``[*B, k]``. The dtype is int64 if all ``actions`` have an integer dtype. Otherwise it is the dtype of the last floating
            action, or float32 if that dtype is half precision.

        Raises:
            ValueError: the number of actions differs from the number of heads.
            TypeError: an action is not a tensor.
        """
        if len(actions) != len(self.is_single):
            raise ValueError(f"actions: expected {len(self.is_single)} tensors, got {len(actions)}")
        dtype = torch.int64
        for action in actions:
            check_tensor("actions", action)
            if action.is_floating_point():
                dtype = working_dtype(action)
        columns: List[Tensor] = []
        for i, action in enumerate(actions):
            columns.append((action.unsqueeze(-1) if self.is_single[i] else action).to(dtype))
        return torch.cat(columns, -1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the sum of the heads' log-probabilities.

        ``action``: ``[*B, k]``. Result: ``[*B]``, dtype of ``params``.
        """
        parts, actions = self._split_params(params), self.split_action(action)
        log_prob = torch.zeros([], dtype=working_dtype(params), device=params.device)
        for i, head in enumerate(self.heads):
            log_prob = log_prob + head.log_prob(parts[i], actions[i])
        return log_prob.to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        """Computes the sum of the heads' entropies: ``[*B]``, dtype of ``params``."""
        parts = self._split_params(params)
        entropy = torch.zeros([], dtype=working_dtype(params), device=params.device)
        for i, head in enumerate(self.heads):
            entropy = entropy + head.entropy(parts[i])
        return entropy.to(params.dtype)

    def entropy_estimate(self, params: Tensor, num_samples: int, noise: Optional[Tensor] = None) -> Tensor:
        """Computes the sum of the heads' entropies. For a head without a closed form, it uses the mean of ``-log_prob`` over samples."""
        if self.has_entropy:
            return self.entropy(params)
        entropies = self._head_entropies(params, num_samples, noise)
        entropy = entropies[0]
        for head_entropy in entropies[1:]:
            entropy = entropy + head_entropy
        return entropy.to(params.dtype)

    def head_entropies(self, params: Tensor, num_samples: int, noise: Optional[Tensor] = None) -> Tensor:
        """Computes the entropy of each head: ``[*B, heads]``, dtype of ``params``. Arguments: see :meth:`entropy_estimate`."""
        return torch.stack(self._head_entropies(params, num_samples, noise), -1).to(params.dtype)

    def _head_entropies(self, params: Tensor, num_samples: int, noise: Optional[Tensor]) -> List[Tensor]:
        """Returns the entropy of each head: ``[*B]``, float64 for float64 ``params``, otherwise float32."""
        parts = self._split_params(params)
        repeated_parts, noises = parts, parts  # not read if every entropy has a closed form
        if not self.has_entropy:
            repeated = self.repeated(params, num_samples, noise)
            repeated_parts, noises = self._split_params(repeated), self._split_noise(repeated, noise)
        entropies: List[Tensor] = []
        for i, head in enumerate(self.heads):
            if head.has_entropy:
                entropies.append(head.entropy(parts[i]))
            else:
                entropies.append(-head.sample_and_log_prob(repeated_parts[i], noises[i])[1].mean(0))
        return entropies

    def mode(self, params: Tensor) -> Tensor:
        """Returns the modes of the heads, concatenated: ``[*B, k]``."""
        parts = self._split_params(params)
        return self.join_actions([head.mode(parts[i]) for i, head in enumerate(self.heads)])

    def noise(self, params: Tensor) -> Tensor:
        """Draws the noise of the heads, concatenated: ``[*B, K]``, float64 for float64 ``params``, otherwise float32."""
        parts = self._split_params(params)
        return torch.cat([head.noise(parts[i]) for i, head in enumerate(self.heads)], -1)

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Computes each head's action from the head's part of the noise, and concatenates the actions: ``[*B, k]``."""
        check_tensor("noise", noise)
        parts, noises = self._split_params(params), self._split_noise(params, noise)
        return self.join_actions([head.sample_from(parts[i], noises[i]) for i, head in enumerate(self.heads)])

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Samples differentiable actions of the heads and concatenates them: ``[*B, k]``.

        Raises NotImplementedError if a head is discrete.
        """
        parts = self._split_params(params)
        if noise is None:  # each head draws its own random numbers: Beta's rsample does not accept noise
            return self.join_actions([head.rsample(parts[i]) for i, head in enumerate(self.heads)])
        noises = self._split_noise(params, noise)
        return self.join_actions([head.rsample(parts[i], noises[i]) for i, head in enumerate(self.heads)])

    def sample_and_log_prob(self, params: Tensor, noise: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Samples each head's action and sums the heads' log-probabilities: ``[*B, k]`` and ``[*B]``."""
        parts, noises = self._split_params(params), self._split_noise(params, noise)
        actions: List[Tensor] = []
        total = torch.zeros([], dtype=working_dtype(params), device=params.device)
        for i, head in enumerate(self.heads):
            action, log_prob = head.sample_and_log_prob(parts[i], noises[i])
            actions.append(action)
            total = total + log_prob
        return self.join_actions(actions), total.to(params.dtype)

    def _split_params(self, params: Tensor) -> List[Tensor]:
        """Returns the ``params`` of each head, float64 for float64 ``params``, otherwise float32."""
        self.check_params(params)
        return widen(params).split(self.param_sizes, -1)

    def _split_noise(self, params: Tensor, noise: Optional[Tensor]) -> List[Tensor]:
        """Returns the noise of each head. None: draws the noise."""
        noise = self.noise(params) if noise is None else noise
        check_tensor("noise", noise)
        return noise.split(self.noise_sizes, -1)


def _device(head: Distribution) -> torch.device:
    """Returns the device of the first buffer of ``head``, or the CPU if ``head`` has no buffer."""
    return next((buffer.device for buffer in head.buffers()), torch.device("cpu"))
