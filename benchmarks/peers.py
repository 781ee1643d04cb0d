"""The libraries that users come from, called as their users would; each is left out where it is not installed."""

import importlib.util
from typing import Dict

from torch import Tensor

from benchmarks.harness import Contender


def gae_peers(
    gamma: float, lmbda: float, state_value: Tensor, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
) -> Dict[str, Contender]:
    """GAE by torchrl's loop and its vectorised form, on time-major data ``[T, N]``."""
    if importlib.util.find_spec("torchrl") is None:
        return {}
    from torchrl.objectives.value import functional as torchrl

    # Its vectorised form wants [N, T, 1]; the views are made outside the timing.
    steps = [tensor.t().contiguous().unsqueeze(-1) for tensor in (state_value, next_state_value, reward, done, terminated)]

    def time_major(result: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.squeeze(-1).t() for tensor in result)

    return {
        "torchrl, loop": lambda: time_major(torchrl.generalized_advantage_estimate(gamma, lmbda, *steps)),
        "torchrl, vectorised": lambda: time_major(torchrl.vec_generalized_advantage_estimate(gamma, lmbda, *steps)),
    }
