"""What a policy's distribution offers to the loss, the rollout and the exporters."""

from typing import Iterable, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import CoefficientModule

NOISE_KINDS = ("gumbel", "logistic", "normal", "uniform")
"""Standard random numbers that :func:`draw` makes. Exported files name them, and ``on_device/runtime.py`` draws them without torch."""


class Distribution(CoefficientModule):
    """Action distributions as tensor mathematics: parameters in, tensors out, no distribution object in between.

    ``params`` is what the actor network returns, ``[*B, num_params]``. An action is ``[*B, *event]``, where ``event`` is nothing for
    a single choice and ``(dim,)`` for a vector. Log-probabilities and entropies are ``[*B]``: summed over the event. Half-precision
    parameters are computed in float32; results have the dtype of ``params``.

    A sample is a deterministic function of ``params`` and of noise that does not depend on them (:meth:`noise`,
    :meth:`sample_from`): what an exported policy needs to be reproducible, and what makes :meth:`rsample` differentiable.

    Subclasses define ``num_params``, ``has_entropy`` and the methods that raise NotImplementedError here.
    """

    __constants__ = ["has_entropy"]  # unlike a Final annotation, inherited by subclasses in TorchScript

    has_entropy: bool
    num_params: int
    noise_kind: Optional[str] = None
    """What :meth:`noise` draws: one of :data:`NOISE_KINDS`, or several of them :func:`side_by_side`; None where there is none."""

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability (density) of ``action``, ``[*B]``."""
        raise NotImplementedError

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy in closed form, ``[*B]``; only where ``has_entropy``."""
        raise NotImplementedError

    def mode(self, params: Tensor) -> Tensor:
        """The greedy action."""
        raise NotImplementedError

    def noise(self, params: Tensor) -> Tensor:
        """A draw of what :meth:`sample_from` turns into an action."""
        raise NotImplementedError

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """The action that ``params`` and ``noise`` make."""
        raise NotImplementedError

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """An action, differentiable in ``params``. ``noise`` None draws it, here and below."""
        return self.sample_from(params, self.noise(params) if noise is None else noise)

    def sample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """An action, without gradient."""
        return self.sample_from(params, self.noise(params) if noise is None else noise).detach()

    def sample_and_log_prob(self, params: Tensor, noise: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """The action that ``noise`` makes, and its log-probability, both differentiable in ``params``."""
        action = self.sample_from(params, self.noise(params) if noise is None else noise)
        return action, self.log_prob(params, action)

    def entropy_estimate(self, params: Tensor, num_samples: int, noise: Optional[Tensor] = None) -> Tensor:
        """The entropy, in closed form where there is one, else the mean of ``-log_prob`` over ``num_samples`` samples.

        ``noise`` is that of all samples, ``[num_samples, *B, ...]``. A closed form does not read it.
        """
        if self.has_entropy:
            return self.entropy(params)
        many = self.repeated(params, num_samples, noise)
        return -self.sample_and_log_prob(many, self.noise(many) if noise is None else noise)[1].mean(0)

    def repeated(self, params: Tensor, num_samples: int, noise: Optional[Tensor]) -> Tensor:
        """``params`` for each sample, ``[num_samples, *B, num_params]``. ValueError unless ``noise`` has as many rows."""
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least one sample, got {num_samples}")
        self.check_params(params)
        many = params.expand([num_samples] + list(params.shape))
        if noise is not None and noise.shape[:-1] != many.shape[:-1]:
            raise ValueError(f"noise: expected shape {list(many.shape[:-1])} and a row of noise, got {list(noise.shape)}")
        return many

    def check_params(self, params: Tensor) -> None:
        """Raise ValueError or TypeError unless ``params`` is floating, ``[*B, num_params]``."""
        if params.dim() == 0 or params.size(-1) != self.num_params:
            raise ValueError(f"params: expected shape [..., {self.num_params}], got {list(params.shape)}")
        if not params.is_floating_point():
            raise TypeError(f"params: expected a floating dtype, got {params.dtype}")


def draw(kind: str, like: Tensor) -> Tensor:
    """Standard random numbers of ``kind``, of shape, dtype and device of ``like``."""
    if kind == "gumbel":
        return -torch.empty_like(like).exponential_().log()
    if kind == "logistic":
        # The logit of a uniform number exp(-e), e exponential.
        return -torch.empty_like(like).exponential_().expm1().log()
    if kind == "normal":
        return torch.randn_like(like)
    if kind == "uniform":
        return torch.rand_like(like)
    raise ValueError(f"kind: expected 'gumbel', 'logistic', 'normal' or 'uniform', got {kind}")


def side_by_side(parts: Iterable[Tuple[str, int]]) -> str:
    """The ``noise_kind`` of several kinds with how many numbers of each, as in ``"gumbel:4,normal:2"``."""
    return ",".join(kind if ":" in kind else f"{kind}:{size}" for kind, size in parts)


def check_action_shape(action: Tensor, params: Tensor, event: List[int]) -> None:
    """Raise ValueError unless ``action`` is ``[*B, *event]`` where ``params`` is ``[*B, num_params]``."""
    expected = list(params.shape[:-1]) + event
    if list(action.shape) != expected:
        raise ValueError(f"action: expected shape {expected}, got {list(action.shape)}")


def check_integer(action: Tensor) -> None:
    """Raise TypeError unless ``action`` has an integer dtype."""
    if action.is_floating_point() or action.dtype == torch.bool:
        raise TypeError(f"action: expected an integer dtype, got {action.dtype}")


def check_real_action(action: Tensor, params: Tensor, dim: int) -> None:
    """Raise ValueError or TypeError unless ``action`` is floating, ``[*B, dim]``."""
    check_action_shape(action, params, [dim])
    if not action.is_floating_point():
        raise TypeError(f"action: expected a floating dtype, got {action.dtype}")


def box(low: Union[float, Sequence[float]], high: Union[float, Sequence[float]], dim: int) -> Tuple[Tensor, Tensor]:
    """Both bounds as float64 of shape ``[dim]``; ValueError unless they are the bounds of a box."""
    lows, highs = _bound("low", low, dim), _bound("high", high, dim)
    if not bool((lows < highs).all()):
        raise ValueError(f"low: expected less than high, {high}, got {low}")
    return lows, highs


def _bound(name: str, value: Union[float, Sequence[float]], dim: int) -> Tensor:
    bound = torch.as_tensor(value, dtype=torch.float64)
    if bound.dim() > 1 or bound.numel() not in (1, dim):
        raise ValueError(f"{name}: expected a number or {dim} of them, got shape {list(bound.shape)}")
    if not bool(bound.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got {value}")
    return bound.expand(dim)
