"""The mean and the deviation of numbers over time, for the norms of advantages and values."""

from typing import Optional

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import POSITIVE, CoefficientModule, Range
from a2c_compiled._kinds import flag
from a2c_compiled.functional.standardization import sum_over_processes

_SHARE = Range("a number above 0 and up to 1, or None", 0.0, 1.0, open_below=True)


class MovingMoments(CoefficientModule):
    r"""Running mean and variance of the numbers passed to :meth:`update`.

    A batch of :math:`n_b` numbers has mean :math:`m_b` and variance :math:`v_b`. It enters with the share :math:`s`:

    .. math::
        c &\leftarrow (1 - \text{rate})\, c + \text{rate}, \quad s = \text{rate} / c \\
        v &\leftarrow (1 - s)\, v + s\, v_b + s (1 - s) (m_b - m)^2, \quad m \leftarrow m + s\, (m_b - m)

    Without ``rate``, :math:`c \leftarrow c + n_b` and :math:`s = n_b / c`: all numbers so far have the same weight. The first batch has
    the share 1 in both cases. Mean, variance and sums are float64, also when the module changes dtype.

    Args:
        rate: weight of the latest batch, more than 0 and at most 1. None: all numbers so far have the same weight.
        min_scale: smallest result of :meth:`deviation` after the first update, positive.
        across_processes: whether an update counts the numbers of all processes of the default group of ``torch.distributed``. If True, all
            processes must call it. The option has no effect without an initialised process group and in TorchScript.

    Attributes:
        mean: ``[1]``, float64, initially 0.
        var: ``[1]``, float64, initially 1.
        count: ``[1]``, float64, initially 0: :math:`c`.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has a wrong type.

    Source: Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance, 1983.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, rate: Optional[float], min_scale: float, across_processes: bool) -> None:
        super().__init__()
        self.rate = None if rate is None else _SHARE.number("rate", rate)
        self.min_scale = POSITIVE.number("min_scale", min_scale)
        self.across_processes = flag("across_processes", across_processes)
        # Shape [1], not []: torch.compile treats a zero-dimensional float64 tensor as a number and may lose in-place writes.
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("var", torch.ones(1, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    def update(self, x: Tensor, mask: Optional[Tensor] = None) -> None:
        """Moves mean and variance towards those of ``x``.

        They stay unchanged if no number counts or if a number that counts is NaN or infinite.

        Args:
            x: any shape, floating.
            mask: shape of ``x``, bool: numbers that count. None: all numbers count.
        """
        with torch.no_grad():
            wide = x.detach().double()
            counted = torch.ones_like(wide, dtype=torch.bool) if mask is None else mask
            wide = wide.masked_fill(~counted, 0.0)
            count, total = self._total(torch.stack([counted.double().sum(), wide.sum()])).split(1)
            latest = total / count.clamp_min(1.0)
            squares = (wide - latest).masked_fill(~counted, 0.0).square().sum()
            latest_var = self._total(squares.reshape(1)) / count.clamp_min(1.0)
            gained, kept = count, self.count
            rate = self.rate
            if rate is not None:
                gained, kept = torch.full_like(count, rate), (1.0 - rate) * self.count
            share = gained / (kept + gained)
            difference = latest - self.mean
            var = (1.0 - share) * self.var + share * latest_var + share * (1.0 - share) * difference.square()
            usable = (count > 0) & var.isfinite()
            overwrite(self.var, torch.where(usable, var, self.var))
            overwrite(self.mean, torch.where(usable, self.mean + share * difference, self.mean))
            overwrite(self.count, torch.where(usable, kept + gained, self.count))

    def deviation(self) -> Tensor:
        """Returns the square root of the variance, but at least ``min_scale``: ``[1]``, float64. Before the first update: 1."""
        return self.var.sqrt().clamp_min(self.min_scale)

    def normalize(self, x: Tensor) -> Tensor:
        """Returns ``(x - mean) / deviation()``, with the shape and dtype of ``x``, which is floating."""
        # In float64: if the mean is large, its rounding error in float32 may exceed the deviation.
        return ((x.double() - self.mean) / self.deviation()).to(x.dtype)

    def _total(self, sums: Tensor) -> Tensor:
        """Returns the sums over all processes if ``across_processes``, else ``sums``."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
            if self.across_processes:
                return sum_over_processes(sums)
        return sums


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Writes ``value`` into ``tensor``, which has the same shape. Losses use this function for every tensor that they change in place.

    The backward of a compiled graph may compute an intermediate result a second time. From tensors that the forward has overwritten, it
    would compute another result, and so a wrong gradient, without an error. torch never computes ``cumsum`` a second time. Over a
    dimension of size 1, ``cumsum`` returns its input.
    """
    tensor.copy_(value.unsqueeze(0).cumsum(0).squeeze(0))
