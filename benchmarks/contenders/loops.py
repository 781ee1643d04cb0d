"""The training loop that everyone writes around a loss, and what an update has left behind."""

from typing import Any, Callable, List

import torch
from torch import Tensor, nn

from a2c_compiled.benchmarks.measure.data import LEARNING_RATE, MAX_GRAD_NORM
from a2c_compiled.benchmarks.measure.harness import Answer, Contender


def loop_contender(losses: Callable[[], List[Tensor]], parameters: List[Any]) -> Contender:
    """Backward, clipping and torch's RMSprop around losses."""
    optimizer = torch.optim.RMSprop(parameters, lr=LEARNING_RATE, alpha=0.99, eps=1e-5, foreach=True)  # the faster on a CPU too

    def update() -> None:
        parts = losses()
        optimizer.zero_grad()
        sum(parts[1:], parts[0]).backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()

    return Contender(update, lambda _: optimizer_state(optimizer, parameters))


def gradients(losses: List[Tensor], parameters: List[Tensor]) -> List[Tensor]:
    """Of the sum of the losses."""
    return list(torch.autograd.grad(sum(losses[1:], losses[0]), parameters))


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: List[Any]) -> Answer:
    """What an update has made of ``parameters``."""
    return flat(parameters, [optimizer.state[parameter]["square_avg"] for parameter in parameters])


def flat(parameters: List[Tensor], square_avg: List[Tensor]) -> Answer:
    """Parameters, and the root of RMSprop's average, which after one update is a tenth of the size of the clipped gradient."""
    roots = [average.sqrt() for average in square_avg]
    return [torch.cat([tensor.detach().flatten() for tensor in tensors]) for tensors in (parameters, roots)]
