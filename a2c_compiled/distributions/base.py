"""The base class of all action distributions, and the checks and random numbers that its subclasses share."""

from typing import Iterable, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from a2c_compiled._exporting import is_exporting
from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled._kinds import check_tensor, described, integer
from a2c_compiled._torch_internals import assert_in_graph, dispatch_is_plain

NOISE_KINDS = ("gumbel", "logistic", "normal", "uniform")
"""The kinds of noise that :func:`draw` draws. The metadata of exported files contains these names; ``on_device/runtime.py`` draws these
kinds with numpy."""


class Distribution(CoefficientModule):
    """Base class of action distributions. Each method maps tensors to tensors; no distribution object is built for each call.

    Shapes and dtypes, for all methods and subclasses (``[*B]`` is the batch shape):

    * ``params``: ``[*B, num_params]``, floating dtype: the output of the actor network. Each class documents the last dimension.
    * action: ``[*B]`` for a single choice, ``[*B, dim]`` for a vector. Each class documents the dtype.
    * noise: ``[*B, K]``, float64 for float64 ``params``, otherwise float32. ``K``, the noise size, depends on the class.
    * log-probability and entropy: ``[*B]``, dtype of ``params``, summed over the dimensions of a vector action.

    The methods convert half-precision ``params`` to float32 for the computation.

    A sample is a deterministic function of ``params`` and noise: :meth:`noise` draws random numbers whose distribution does not depend on
    ``params``, and :meth:`sample_from` maps them to an action. Therefore a continuous sample can be differentiated in ``params``, and an
    exported policy, which takes the noise as an input, is reproducible.

    A subclass defines ``num_params``, ``has_entropy``, and the methods that raise NotImplementedError here. These methods inherit this
    contract.

    Attributes:
        num_params: size of the last dimension of ``params``.
        has_entropy: whether :meth:`entropy` has a closed form.

    Raises:
        ValueError: wrong shape of ``params``, action, or the ``noise`` of :meth:`entropy_estimate`; a constructor argument out of range.
        TypeError: wrong dtype of ``params`` or action, or an argument of the wrong type.
    """

    __constants__ = ["has_entropy"]  # TorchScript does not pass a Final annotation on to subclasses

    has_entropy: bool
    num_params: int
    noise_kind: Optional[str] = None
    """One of ``NOISE_KINDS``, or several kinds with their sizes, written by ``join_noise_kinds``; None where there is no noise."""

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-probability of ``action``; if the action is continuous, the log-density.

        Args:
            params: ``[*B, num_params]``, floating dtype.
            action: ``[*B]`` or ``[*B, dim]``; each class documents shape and dtype.

        Returns:
            ``[*B]``, dtype of ``params``: summed over the dimensions of a vector action.

        Raises:
            ValueError: the shape of ``params`` or ``action`` is wrong, or a discrete distribution lacks an action, for example the choice
                -1. Graphs that torch.compile makes for a CPU raise RuntimeError for such an action. On other devices, in exported
                graphs and in functorch transforms, its log-probability and the gradient are NaN.
            TypeError: the dtype of ``params`` or ``action`` is wrong.
        """
        raise NotImplementedError

    def entropy(self, params: Tensor) -> Tensor:
        """Computes the entropy in closed form.

        Args:
            params: ``[*B, num_params]``, floating dtype.

        Returns:
            ``[*B]``, dtype of ``params``: summed over the dimensions of a vector action.

        Raises:
            NotImplementedError: ``has_entropy`` is False. Use :meth:`entropy_estimate`.
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        raise NotImplementedError

    def mode(self, params: Tensor) -> Tensor:
        """Computes the greedy action: the mode, or the approximation of the mode that the class documents.

        Args:
            params: ``[*B, num_params]``, floating dtype.

        Returns:
            The action, ``[*B]`` or ``[*B, dim]``. A continuous action has the dtype of ``params``, a discrete action int64.

        Raises:
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        raise NotImplementedError

    def noise(self, params: Tensor) -> Tensor:
        """Draws the random numbers that :meth:`sample_from` maps to an action. Their values do not depend on ``params``.

        Args:
            params: ``[*B, num_params]``, floating dtype. The method reads only shape, dtype and device, not the values.

        Returns:
            ``[*B, K]``, float64 for float64 ``params``, otherwise float32. ``K`` depends on the class.

        Raises:
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        raise NotImplementedError

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Computes an action as a deterministic function of ``params`` and ``noise``.

        The result of a continuous distribution is differentiable in ``params``, except for :class:`~a2c_compiled.distributions.Beta`.

        Args:
            params: ``[*B, num_params]``, floating dtype.
            noise: ``[*B, K]``, a result of :meth:`noise`.

        Returns:
            The action, ``[*B]`` or ``[*B, dim]``. A continuous action has the dtype of ``params``, a discrete action int64.

        Raises:
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        raise NotImplementedError

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Samples an action that is differentiable in ``params``.

        Args:
            params: ``[*B, num_params]``, floating dtype.
            noise: ``[*B, K]``, a result of :meth:`noise`. None: this method draws the noise.

        Returns:
            The action, ``[*B, dim]``, dtype of ``params``.

        Raises:
            NotImplementedError: the distribution is discrete.
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        return self.sample_from(params, self.noise(params) if noise is None else noise)

    def sample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Samples an action without gradient.

        Args:
            params: ``[*B, num_params]``, floating dtype.
            noise: ``[*B, K]``, a result of :meth:`noise`. None: this method draws the noise.

        Returns:
            The action, ``[*B]`` or ``[*B, dim]``. A continuous action has the dtype of ``params``, a discrete action int64.

        Raises:
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        return self.sample_from(params, self.noise(params) if noise is None else noise).detach()

    def sample_and_log_prob(self, params: Tensor, noise: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Samples an action with :meth:`sample_from` and computes its log-probability. Neither is detached from ``params``.

        Use it for estimates such as an entropy. It may compute the log-probability from the sample before its last rounding. Record
        :meth:`log_prob` of the action instead if another computation will later score the same action.

        Arguments and errors: see :meth:`sample`.

        Returns:
            The action, ``[*B]`` or ``[*B, dim]``, with the gradient of :meth:`sample_from`, if any. Its log-probability, ``[*B]``, dtype
            of ``params``.
        """
        action = self.sample_from(params, self.noise(params) if noise is None else noise)
        return action, self.log_prob(params, action)

    def entropy_estimate(self, params: Tensor, num_samples: int, noise: Optional[Tensor] = None) -> Tensor:
        """Computes the entropy in closed form, or estimates it as the mean of ``-log_prob`` over ``num_samples`` samples.

        Args:
            params: ``[*B, num_params]``, floating dtype.
            num_samples: number of samples, at least 1. Not read if the entropy has a closed form.
            noise: ``[num_samples, *B, K]``, the noise of all samples. None: this method draws the noise. Not read if the entropy has a
                closed form.

        Returns:
            ``[*B]``, dtype of ``params``.

        Raises:
            ValueError: the shape of ``params`` is wrong; without a closed form, also if ``num_samples`` is less than 1 or the shape of
                ``noise`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        if self.has_entropy:
            return self.entropy(params)
        repeated = self.repeated(params, num_samples, noise)
        return -self.sample_and_log_prob(repeated, self.noise(repeated) if noise is None else noise)[1].mean(0)

    def head_entropies(self, params: Tensor, num_samples: int, noise: Optional[Tensor] = None) -> Tensor:
        """Returns the entropies of the action's independent parts, of which the action has several in a
        :class:`~a2c_compiled.distributions.Composite` alone.

        Arguments and errors: see :meth:`entropy_estimate`.

        Returns:
            ``[*B, heads]``, dtype of ``params``. The sum over the last dimension is :meth:`entropy_estimate`.
        """
        if noise is None:  # a user's distribution may override entropy_estimate without the argument noise
            return self.entropy_estimate(params, num_samples).unsqueeze(-1)
        return self.entropy_estimate(params, num_samples, noise).unsqueeze(-1)

    def repeated(self, params: Tensor, num_samples: int, noise: Optional[Tensor]) -> Tensor:
        """Expands ``params`` to one copy for each sample, without copying memory.

        Args:
            params: ``[*B, num_params]``, floating dtype.
            num_samples: number of samples, at least 1.
            noise: ``[num_samples, *B, K]``. The method only checks this shape, except ``K``. None: no check.

        Returns:
            ``[num_samples, *B, num_params]``, a view of ``params``.

        Raises:
            ValueError: ``num_samples`` is less than 1, or the shape of ``params`` or ``noise`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        if not torch.jit.is_scripting():
            num_samples = integer("num_samples", num_samples)
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least one sample, got {num_samples}")
        self.check_params(params)
        repeated = params.expand([num_samples] + list(params.shape))
        if noise is not None:
            check_tensor("noise", noise)
            if noise.shape[:-1] != repeated.shape[:-1]:
                raise ValueError(f"noise: expected shape {list(repeated.shape[:-1])} + [noise size], got {list(noise.shape)}")
        return repeated

    def action_of_ones(self, params: Tensor) -> Tensor:
        """Returns an action that is possible if all parameters are 1. The loss reads both in place of a step that its mask excludes.

        Args:
            params: ``[*B, num_params]``, floating dtype. The method reads only the last dimension, dtype and device, not the values.

        Returns:
            The mode for parameters of 1: ``[]`` or ``[dim]``, without the batch shape; dtype as in :meth:`mode`.

        Raises:
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        self.check_params(params)
        return self.mode(params.new_ones([self.num_params]))

    def action_bounds(self, params: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        """Returns the smallest and the largest action, with the rounding of the computation.

        Args:
            params: ``[*B, num_params]``, floating dtype. The method reads only dtype and device, not the values.

        Returns:
            The two actions, ``[dim]`` each, dtype of ``params``. None: the actions have no bounds, or their rounding is not known.

        Raises:
            ValueError: the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        self.check_params(params)
        return None

    def check_params(self, params: Tensor) -> None:
        """Checks that ``params`` is ``[*B, num_params]`` with a floating dtype; raises ValueError or TypeError if not."""
        check_tensor("params", params)
        if params.dim() == 0 or params.size(-1) != self.num_params:
            raise ValueError(f"params: expected shape [..., {self.num_params}], got {list(params.shape)}")
        if not params.is_floating_point():
            raise TypeError(f"params: expected a floating dtype, got {params.dtype}")


def draw(kind: str, like: Tensor) -> Tensor:
    """Draws standard random numbers of ``kind`` with the shape, dtype and device of ``like``.

    Raises:
        ValueError: ``kind`` is not one of :data:`NOISE_KINDS`.
    """
    if kind == "gumbel":
        return -torch.empty_like(like).exponential_().log()  # if e is exponential, -log(e) has the Gumbel distribution
    if kind == "logistic":
        # If e is exponential, u = exp(-e) is uniform. The logit of u is -log(exp(e) - 1) and has the logistic distribution.
        return -torch.empty_like(like).exponential_().expm1().log()
    if kind == "normal":
        return torch.randn_like(like)
    if kind == "uniform":
        return torch.rand_like(like)
    raise ValueError(f"kind: expected 'gumbel', 'logistic', 'normal' or 'uniform', got {kind}")


def join_noise_kinds(parts: Iterable[Tuple[str, int]]) -> str:
    """Joins ``(kind, size)`` pairs to a ``noise_kind`` such as ``"gumbel:4,normal:2"``. A ``kind`` that already contains sizes is kept."""
    return ",".join(kind if ":" in kind else f"{kind}:{size}" for kind, size in parts)


def check_action_shape(action: Tensor, params: Tensor, event: List[int]) -> None:
    """Raises ValueError unless ``action`` has the shape ``[*B, *event]``, where ``event`` is the shape of one action.

    Raises TypeError unless ``action`` and ``params`` are tensors.
    """
    check_tensor("params", params)
    check_tensor("action", action)
    expected = list(params.shape[:-1]) + event
    if list(action.shape) != expected:
        is_one_hot = len(event) == 0 and action.shape == params.shape
        remedy = " (for one-hot actions use a distribution such as OneHotCategorical)" if is_one_hot else ""
        raise ValueError(f"action: expected shape {expected}, got {list(action.shape)}{remedy}")


def check_integer(action: Tensor) -> None:
    """Raises TypeError unless ``action`` has an integer dtype."""
    if action.is_floating_point() or action.dtype == torch.bool:
        raise TypeError(f"action: expected an integer dtype, got {action.dtype}")


def require(is_valid: Tensor, action: Tensor, expected: str, log_prob: Tensor) -> Tensor:
    """Returns ``log_prob`` if the distribution has every action. An action that it lacks never gets a finite log-probability.

    On a CPU, in eager mode and TorchScript, such an action raises ValueError. In a graph that torch.compile makes for a CPU, it fails an
    assertion. Everywhere else, where reading the data would wait for a device or is impossible, its log-probability is NaN.

    Args:
        is_valid: any shape, bool: whether the distribution has the action.
        action: shape of ``is_valid``, or with one more dimension for a vector: the values of which the error names the first wrong one.
        expected: what the error says about valid actions.
        log_prob: shape of ``is_valid``, floating.
    """
    if _reads_data(is_valid):
        if not bool(is_valid.all()):
            wrong = action[~is_valid][0]
            entries: List[float] = wrong.double().flatten().tolist()
            got = f"{wrong.item()}" if wrong.dim() == 0 else f"{entries}"
            raise ValueError(f"action: expected {expected}, got {got}")
        return log_prob
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if torch.compiler.is_dynamo_compiling() and not is_exporting() and is_valid.device.type == "cpu":
            assert_in_graph(is_valid.all(), f"action: expected {expected}, got another value")
    return nan_unless(is_valid, log_prob)


def nan_unless(is_valid: Tensor, log_prob: Tensor) -> Tensor:
    """Returns ``log_prob``, with NaN where ``is_valid`` is False. Both have one shape."""
    # A product, not a selection: the gradient becomes NaN too, so that no training step uses it.
    return log_prob * torch.ones_like(log_prob).masked_fill(~is_valid, float("nan"))


def _reads_data(tensor: Tensor) -> bool:
    """Returns whether the host may read ``tensor``: in CPU memory, in TorchScript or in eager mode without transforms and tracers."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if torch.compiler.is_dynamo_compiling() or not dispatch_is_plain():
            return False
    return tensor.device.type == "cpu"


def check_real_action(action: Tensor, params: Tensor, dim: int) -> None:
    """Raises ValueError unless ``action`` is ``[*B, dim]``, and TypeError unless its dtype is floating."""
    check_action_shape(action, params, [dim])
    if not action.is_floating_point():
        raise TypeError(f"action: expected a floating dtype, got {action.dtype}")


def box(low: Union[float, Sequence[float]], high: Union[float, Sequence[float]], dim: int) -> Tuple[Tensor, Tensor]:
    """Converts both bounds of a box to float64 tensors, ``[dim]``.

    Raises ValueError unless each bound is a number or has ``dim`` entries, all entries are finite, and ``low < high`` everywhere.
    """
    lows, highs = _bound("low", low, dim), _bound("high", high, dim)
    if not bool((lows < highs).all()):
        raise ValueError(f"low: expected less than high, {high}, got {low}")
    return lows, highs


def _bound(name: str, value: Union[float, Sequence[float]], dim: int) -> Tensor:
    """Converts one bound to a float64 tensor, ``[dim]``. Error messages contain ``name``."""
    try:
        is_bool, bound = torch.as_tensor(value).dtype == torch.bool, torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):  # which torch raises depends on the kind
        is_bool = True
    if is_bool:
        raise TypeError(f"{name}: expected a number or a sequence of {dim} numbers, got {described(value)}")
    if bound.dim() > 1 or bound.numel() not in (1, dim):
        raise ValueError(f"{name}: expected a number or a sequence of {dim} numbers, got shape {list(bound.shape)}")
    if not bool(bound.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got {value}")
    return bound.expand(dim)
