"""Scales of advantages, estimated over time from the returns or from the advantages themselves."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import ANY, POSITIVE, UNIT, CoefficientModule
from a2c_compiled._kinds import check_optional_mask, check_tensor, described
from a2c_compiled._precision import widen
from a2c_compiled.losses.moving_moments import MovingMoments, overwrite


class AdvantageNorm(CoefficientModule):
    """Base class of scales for advantages: :class:`~a2c_compiled.A2CLoss` computes ``advantage / scale()``.

    A subclass overrides :meth:`update` and :meth:`scale`, and, if it does more than divide, :meth:`normalize`. It overrides :meth:`observe`
    if it does not follow the value targets.
    """

    def update(self, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Updates the scale with new value targets.

        Args:
            value_target: any shape, floating: the returns.
            mask: shape of ``value_target``, bool: entries that count. None: all entries count.
        """
        raise NotImplementedError

    def observe(self, advantage: Tensor, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Updates the scale with a rollout. The loss calls this method. Here, it calls ``update(value_target, mask)``.

        Args:
            advantage: any shape, floating.
            value_target: shape of ``advantage``, floating: the returns.
            mask: shape of ``advantage``, bool: entries that count. None: all entries count.
        """
        self.update(value_target, mask)

    def scale(self) -> Tensor:
        """Returns the divisor of the advantages, ``[]``, floating."""
        raise NotImplementedError

    def normalize(self, advantage: Tensor) -> Tensor:
        """Returns ``advantage / scale()``: shape of ``advantage``, which is floating; float32 for half precision, else the same dtype."""
        wide = widen(advantage)
        return wide / self.scale().to(wide.dtype)


class PercentileNorm(AdvantageNorm):
    r"""Divides advantages by the range of the returns: the difference of two quantiles, averaged over time.

    .. math::
        \bar q &\leftarrow (1 - \text{rate})\, \bar q + \text{rate} \cdot q(\text{value\_target}),
            \quad q \in \{q_\text{low}, q_\text{high}\} \\
        \text{scale} &= \max(\text{min\_scale},\ \bar q_\text{high} - \bar q_\text{low})

    Both averages start at 0. ``min_scale`` prevents the amplification of small, noisy returns. The averages stay in float64 when the
    module changes dtype.

    Args:
        quantiles: lower and upper quantile, two ascending numbers from 0 to 1.
        rate: weight of the latest quantiles in the averages, from 0 to 1.
        min_scale: smallest scale, positive.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument is not a number.

    Source: Hafner et al., Mastering Diverse Domains through World Models, 2023; TorchRL's ``PercentileValueNorm``.
    """

    low: Tensor
    high: Tensor

    def __init__(self, quantiles: Tuple[float, float] = (0.05, 0.95), rate: float = 0.01, min_scale: float = 1.0) -> None:
        super().__init__()
        if not isinstance(quantiles, (tuple, list)) or len(quantiles) != 2:
            raise TypeError(f"quantiles: expected two numbers, got {described(quantiles)}")
        low, high = ANY.number("quantiles", quantiles[0]), ANY.number("quantiles", quantiles[1])
        if not 0 <= low < high <= 1:
            raise ValueError(f"quantiles: expected two ascending numbers from 0 to 1, got {quantiles}")
        self.quantiles = (low, high)
        self.rate = UNIT.number("rate", rate)
        self.min_scale = POSITIVE.number("min_scale", min_scale)
        # Shape [1], not []: torch.compile treats a zero-dimensional float64 tensor as a number and may lose in-place writes.
        self.register_buffer("low", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("high", torch.zeros(1, dtype=torch.float64))

    def update(self, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Moves the averages towards the quantiles of ``value_target``.

        An average stays unchanged if no entry counts or if its quantile is NaN or infinite.

        Args:
            value_target: any shape, floating: the returns.
            mask: shape of ``value_target``, bool: entries that count. None: all entries count.

        Raises:
            TypeError: ``value_target`` is not a tensor, or ``mask`` is not a bool tensor.
        """
        check_tensor("value_target", value_target)
        check_optional_mask(mask)
        if value_target.numel() == 0:
            return
        with torch.no_grad():
            returns = widen(value_target.detach()).reshape(-1)
            counted = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask.reshape(-1)
            ordered = returns.masked_fill(~counted, float("inf")).sort()[0]
            count = counted.sum()
            for mean, quantile in ((self.low, self.quantiles[0]), (self.high, self.quantiles[1])):
                latest = _quantile(ordered, count, quantile)
                latest = torch.where((count > 0) & latest.isfinite(), latest, mean)
                overwrite(mean, mean.lerp(latest, self.rate))

    def scale(self) -> Tensor:
        """Returns the divisor of the advantages, ``[]``, float64."""
        return (self.high - self.low).clamp_min(self.min_scale).squeeze(0)


class RunningNorm(AdvantageNorm):
    r"""Normalises advantages by their running mean and standard deviation.

    .. math:: A' = (A - m) / \max(\text{min\_scale}, \sqrt v)

    :math:`m` and :math:`v` are the mean and the variance of the advantages so far, see
    :class:`~a2c_compiled.losses.moving_moments.MovingMoments`. Unlike the estimators' options to standardise, which use the advantages of
    one rollout, the scale changes slowly, and a rollout with a single step has one. Before the first update, advantages stay unchanged.

    Args:
        rate: weight of the latest rollout in mean and variance, more than 0 and at most 1. None: all advantages so far have the same
            weight.
        min_scale: smallest divisor, positive. It prevents the amplification of small, noisy advantages.
        across_processes: whether to count the advantages of all processes of the default group of ``torch.distributed``. If True, all
            processes must call :meth:`update`.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has a wrong type.

    Source: the statistics are those of TorchRL's ``PopArtValueNorm``, and without ``rate`` those of its ``RunningValueNorm``.
    """

    def __init__(self, rate: Optional[float] = 0.01, min_scale: float = 1e-4, across_processes: bool = False) -> None:
        super().__init__()
        self.moments = MovingMoments(rate, min_scale, across_processes)

    def update(self, advantage: Tensor, mask: Optional[Tensor] = None) -> None:
        """Moves mean and variance towards those of ``advantage``.

        They stay unchanged if no entry counts or if an entry that counts is NaN or infinite.

        Args:
            advantage: any shape, floating: the advantages, not the value targets.
            mask: shape of ``advantage``, bool: entries that count. None: all entries count.

        Raises:
            TypeError: ``advantage`` is not a tensor, or ``mask`` is not a bool tensor.
        """
        check_tensor("advantage", advantage)
        check_optional_mask(mask)
        self.moments.update(advantage, mask)

    def observe(self, advantage: Tensor, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Calls ``update(advantage, mask)``.

        Arguments, shapes and dtypes: see :meth:`a2c_compiled.losses.AdvantageNorm.observe`.
        Errors: see :meth:`update`.
        """
        check_tensor("value_target", value_target)
        self.update(advantage, mask)

    def scale(self) -> Tensor:
        """Returns the divisor of the advantages, ``[]``, float64."""
        return self.moments.deviation().squeeze(0)

    def normalize(self, advantage: Tensor) -> Tensor:
        """Returns the normalised advantage: shape of ``advantage``, which is floating; float32 for half precision, else the same dtype.

        Raises TypeError if ``advantage`` is not a tensor.
        """
        check_tensor("advantage", advantage)
        return self.moments.normalize(widen(advantage))


def _quantile(ordered: Tensor, count: Tensor, quantile: float) -> Tensor:
    """Returns the quantile of the first ``count`` entries of ``ordered``, with linear interpolation: ``[]``, float64.

    The code does not call ``torch.quantile``, which has no mask and limits the number of elements.
    """
    last = (count - 1).clamp_min(0).double()
    position = quantile * last
    below = position.floor()
    # gather, because indexing with a 0-d tensor would read device memory on the host.
    neighbours = ordered.gather(0, torch.stack([below, torch.minimum(below + 1, last)]).long()).double()
    return torch.lerp(neighbours[0], neighbours[1], position - below)
