"""A plain training loop around a loss, and the state after an update, for comparison.

A contender is one implementation that the benchmarks time, see :mod:`a2c_compiled.benchmarks.measure.harness`.
"""

from typing import Any, Callable, List

import torch
from torch import Tensor, nn

from a2c_compiled.benchmarks.measure.data import LEARNING_RATE, MAX_GRAD_NORM
from a2c_compiled.benchmarks.measure.harness import Contender, Result


def loop_contender(losses: Callable[[], List[Tensor]], parameters: List[Any]) -> Contender:
    """Creates a contender that runs one update: losses, backward, gradient clipping and torch's RMSprop.

    Args:
        losses: computes the losses, whose sum is minimised.
        parameters: the trained parameters.
    """
    optimizer = torch.optim.RMSprop(
        parameters, lr=LEARNING_RATE, alpha=0.99, eps=1e-5, foreach=True
    )  # foreach is faster on a CPU too

    def update() -> None:
        parts = losses()
        optimizer.zero_grad()
        sum(parts[1:], parts[0]).backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()

    return Contender(update, lambda _: optimizer_state(optimizer, parameters))


def gradients(losses: List[Tensor], parameters: List[Tensor]) -> List[Tensor]:
    """Returns the gradients of the sum of ``losses`` with respect to ``parameters``."""
    return list(torch.autograd.grad(sum(losses[1:], losses[0]), parameters))


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: List[Any]) -> Result:
    """Returns :func:`flat` of ``parameters`` and of their RMSprop averages in ``optimizer``."""
    return flat(parameters, [optimizer.state[parameter]["square_avg"] for parameter in parameters])


def flat(parameters: List[Tensor], square_avg: List[Tensor]) -> Result:
    """Returns two vectors: all parameters, and the square roots of RMSprop's averages of squared gradients.

    After one update with ``alpha=0.99``, such a root is a tenth of the absolute value of the clipped gradient.
    """
    roots = [average.sqrt() for average in square_avg]
    return [torch.cat([tensor.detach().flatten() for tensor in tensors]) for tensors in (parameters, roots)]
