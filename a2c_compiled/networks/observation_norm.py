"""Normalisation of observations by their running mean and variance."""

from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import NOT_NEGATIVE, POSITIVE, CoefficientModule
from a2c_compiled._kinds import check_observation, check_optional_mask, check_tensor, integer
from a2c_compiled._precision import widen
from a2c_compiled.environments.protocol import Observation


class RunningMoments(CoefficientModule):
    r"""Mean and variance of all values passed to :meth:`update`. Both stay in float64 when the module changes dtype.

    A batch of :math:`n_b` values has mean :math:`m_b` and sum of squared deviations :math:`S_b`. With :math:`\delta = m_b - m`:

    .. math:: m \leftarrow m + \delta \frac{n_b}{n + n_b}, \quad
        v \leftarrow \frac{1}{n + n_b} \left(n v + S_b + \delta^2 \frac{n\,n_b}{n + n_b}\right)

    Args:
        shape: shape of one value, with at least one dimension.

    Attributes:
        mean: ``[*shape]``, float64, initially 0.
        var: ``[*shape]``, float64, initially 1.
        count: ``[1]``, float64: number of values.

    Raises:
        ValueError: ``shape`` has no dimension.

    Source: Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance, 1983.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if len(shape) == 0:  # torch.compile treats a 0-d float64 tensor as a number and may lose writes to it
            raise ValueError("shape: expected at least one dimension, got none")
        self.register_buffer("mean", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(*shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, mask: Optional[Tensor] = None, process_group: Any = None) -> None:
        """Adds the values ``x`` to the statistics.

        Values with a NaN or an infinity are ignored, because one of them would make the mean NaN or infinite for ever.

        Args:
            x: ``[*B, *shape]``, any real dtype.
            mask: ``[*B]``, bool: False leaves a value out. None adds all values.
            process_group: process group of torch.distributed. Every rank adds the values of all ranks in the group. None selects the
                default group. Without an initialised group, only this process's values count.

        Raises:
            ValueError: the shape of ``x`` or ``mask`` is wrong.
        """
        check_tensor("x", x)
        check_optional_mask(mask)
        shape = self.mean.shape
        batch = x.shape[: x.dim() - len(shape)]
        if x.shape != batch + shape:
            raise ValueError(f"x: expected shape [..., {', '.join(map(str, shape))}], got {list(x.shape)}")
        if mask is not None and mask.shape != batch:
            raise ValueError(f"mask: expected shape {list(batch)}, got {list(mask.shape)}")
        rows = x.detach().double().unsqueeze(0).flatten(0, len(batch))
        counted = torch.ones(rows.size(0), dtype=torch.bool, device=x.device) if mask is None else mask.flatten()
        counted = counted & rows.isfinite().flatten(1).all(1)
        ignored = ~counted.reshape(-1, *[1] * len(shape))
        sums = torch.cat([counted.double().sum().reshape(1), rows.masked_fill(ignored, 0.0).sum(0).flatten()])
        count, total = _sum_over_ranks(sums, process_group).split([1, self.mean.numel()])
        mean = total.reshape(shape) / count.clamp_min(1.0)
        squares = _sum_over_ranks((rows - mean).masked_fill(ignored, 0.0).square().sum(0), process_group)
        difference, new_count = mean - self.mean, self.count + count
        share = count / new_count.clamp_min(1.0)
        squares = squares + self.var * self.count + difference.square() * self.count * share
        self.var.copy_(torch.where(new_count > 0, squares / new_count.clamp_min(1.0), self.var))
        self.mean.add_(difference * share)
        self.count.copy_(new_count)


class ObservationNorm(RunningMoments):
    r"""Normalises observations: :math:`\text{clip}((x - m) / \sqrt{v + \epsilon})`.

    It is a layer of the networks, so exported graphs contain it. :meth:`forward` does not change the statistics; :func:`update_norms` does.

    Args:
        shape: shape of one observation.
        clip: largest magnitude of the result.
        epsilon: number added to the variance.
        part: if observations are tuples, the index of the part that this layer normalises. None: observations are tensors.
    """

    def __init__(self, shape: Sequence[int], clip: float = 10.0, epsilon: float = 1e-8, part: Optional[int] = None) -> None:
        super().__init__(shape)
        self.clip = POSITIVE.number("clip", clip)
        self.epsilon = NOT_NEGATIVE.number("epsilon", epsilon)
        self.part = None if part is None else integer("part", part)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x``, which has shape ``[..., *shape]`` and a floating dtype. The result has the same shape and dtype.

        Raises:
            TypeError: ``x`` is not a tensor of a floating dtype.
        """
        check_tensor("x", x)
        if not x.is_floating_point():  # the result would be rounded to integers
            raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
        wide = widen(x)
        # Two subtractions: for large observations, the rounding error of a float32 mean can exceed the deviation.
        mean = self.mean.to(wide.dtype)
        rest = (self.mean - mean).to(wide.dtype)
        deviation = (self.var + self.epsilon).sqrt().to(wide.dtype)
        return ((wide - mean - rest) / deviation).clamp(-self.clip, self.clip).to(x.dtype)


def update_norms(
    network: nn.Module, observation: Observation, mask: Optional[Tensor] = None, process_group: Any = None
) -> None:
    """Adds an observation to the statistics of every :class:`ObservationNorm` in ``network``.

    A layer that occurs several times in ``network`` adds the observation once.

    Args:
        network: module that contains the layers.
        observation: ``[*B, ...]``, or a tuple of such tensors.
        mask: ``[*B]``, bool: False leaves an observation out. None adds all.
        process_group: see :meth:`RunningMoments.update`.

    Raises:
        ValueError: a shape is wrong.
    """
    check_observation("observation", observation)
    norms: List[ObservationNorm] = [module for module in network.modules() if isinstance(module, ObservationNorm)]
    for norm in norms:
        norm.update(observation if norm.part is None else observation[norm.part], mask, process_group)  # type: ignore[arg-type]


def _sum_over_ranks(values: Tensor, process_group: Any) -> Tensor:
    """Sums ``values`` over all ranks, in place. Without an initialised process group, returns ``values`` unchanged."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values, group=process_group)
    return values
