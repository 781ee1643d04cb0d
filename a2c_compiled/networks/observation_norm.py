"""Observations brought to one scale by statistics that run along with training."""

from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled._precision import widen
from a2c_compiled.environments.protocol import Observation


class RunningMoments(CoefficientModule):
    r"""Mean and variance of all that was seen, in float64, which they remain where the module is converted to another dtype.

    A batch of :math:`n_b` with mean :math:`m_b` and squares :math:`S_b` about it joins the :math:`n` before, with :math:`\delta = m_b - m`:

    .. math:: m \leftarrow m + \delta \frac{n_b}{n + n_b}, \quad
        v \leftarrow \frac{1}{n + n_b} \left(n v + S_b + \delta^2 \frac{n\,n_b}{n + n_b}\right)

    Args:
        shape: of what is seen, with at least one dimension.

    Raises:
        ValueError: ``shape`` has no dimension.

    Source: Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance, 1983.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if len(shape) == 0:  # torch.compile takes a float64 scalar for a number, and may lose what is written into it
            raise ValueError("shape: expected at least one dimension, got none")
        self.register_buffer("mean", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(*shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, mask: Optional[Tensor] = None, process_group: Any = None) -> None:
        """Take ``x`` into account, but for rows that are not finite: they would never be forgotten.

        Args:
            x: ``[*B, *shape]``.
            mask: bool, ``[*B]``: which of it counts; None for all.
            process_group: of torch.distributed, whose ranks all see what each does; None for all ranks, where there are any.

        Raises:
            ValueError: a shape does not fit.
        """
        shape = self.mean.shape
        batch = x.shape[: x.dim() - len(shape)]
        if x.shape != batch + shape:
            raise ValueError(f"x: expected shape [..., {', '.join(map(str, shape))}], got {list(x.shape)}")
        if mask is not None and mask.shape != batch:
            raise ValueError(f"mask: expected shape {list(batch)}, got {list(mask.shape)}")
        rows = x.detach().double().unsqueeze(0).flatten(0, len(batch))
        counted = torch.ones(rows.size(0), dtype=torch.bool, device=x.device) if mask is None else mask.flatten()
        counted = counted & rows.isfinite().flatten(1).all(1)
        left_out = ~counted.reshape(-1, *[1] * len(shape))
        sums = torch.cat([counted.double().sum().reshape(1), rows.masked_fill(left_out, 0.0).sum(0).flatten()])
        count, total = _over_ranks(sums, process_group).split([1, self.mean.numel()])
        mean = total.reshape(shape) / count.clamp_min(1.0)
        squares = _over_ranks((rows - mean).masked_fill(left_out, 0.0).square().sum(0), process_group)
        difference, together = mean - self.mean, self.count + count
        share = count / together.clamp_min(1.0)
        squares = squares + self.var * self.count + difference.square() * self.count * share
        self.var.copy_(torch.where(together > 0, squares / together.clamp_min(1.0), self.var))
        self.mean.add_(difference * share)
        self.count.copy_(together)


class ObservationNorm(RunningMoments):
    r"""Observations as multiples of their standard deviation from their mean: :math:`\text{clip}((x - m) / \sqrt{v + \epsilon})`.

    It stands in front of the networks, so that what is exported contains it. It does not learn by itself: :func:`update_norms`.

    Args:
        shape: of one observation.
        clip: largest magnitude of what comes out.
        epsilon: added to the variance.
        part: which part of an observation that is a tuple; None where it is a tensor.
    """

    def __init__(self, shape: Sequence[int], clip: float = 10.0, epsilon: float = 1e-8, part: Optional[int] = None) -> None:
        super().__init__(shape)
        self.clip = float(clip)
        self.epsilon = float(epsilon)
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """``x``, ``[..., *shape]``, normalised, in its own dtype."""
        wide = widen(x)
        deviation = (self.var + self.epsilon).sqrt().to(wide.dtype)
        return ((wide - self.mean.to(wide.dtype)) / deviation).clamp(-self.clip, self.clip).to(x.dtype)


def update_norms(
    network: nn.Module, observation: Observation, mask: Optional[Tensor] = None, process_group: Any = None
) -> None:
    """Show ``observation``, ``[*B, ...]``, to every :class:`ObservationNorm` in ``network``; those that are shared see it once."""
    norms: List[ObservationNorm] = [module for module in network.modules() if isinstance(module, ObservationNorm)]
    for norm in norms:
        norm.update(observation if norm.part is None else observation[norm.part], mask, process_group)  # type: ignore[arg-type]


def _over_ranks(values: Tensor, process_group: Any) -> Tensor:
    """Their sum over all ranks, in place."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values, group=process_group)
    return values
