"""Hand-written generalized advantage estimation (GAE): a loop compiled by numba, and scans compiled by torch.compile and by jax.

A contender is one implementation that the benchmarks time, see :mod:`a2c_compiled.benchmarks.measure.harness`.
"""

from functools import cache
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor

from a2c_compiled._torch_internals import associative_scan
from a2c_compiled.benchmarks.measure.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.measure.harness import Contender


def numba_gae(steps: Dict[str, Tensor], time_last: bool) -> Contender:
    """Creates a contender that runs the numba loop over numpy arrays.

    Args:
        steps: ``[T, N]`` each: ``state_value``, ``next_state_value`` and ``reward``, float32; ``done`` and ``terminated``, bool.
        time_last: True: the loop runs over ``[N, T]`` copies of the data, made before timing. False: over ``[T, N]``.
    """
    arrays = [tensor.numpy() for tensor in _in_layout(steps, time_last)]
    loop = numba_loops()[time_last]  # the second loop if time_last is True
    return Contender(lambda: loop(*arrays), lambda result: [torch.from_numpy(array) for array in result])


def numba_gae_of_tensors(steps: Dict[str, Tensor], time_last: bool) -> Contender:
    """Creates a contender as :func:`numba_gae` does, with tensors as inputs and outputs.

    The time of the contender includes the conversion from and to numpy.
    """
    tensors = _in_layout(steps, time_last)
    loop = numba_loops()[time_last]
    return Contender(lambda: [torch.from_numpy(array) for array in loop(*[tensor.numpy() for tensor in tensors])])


def _in_layout(steps: Dict[str, Tensor], time_last: bool) -> List[Tensor]:
    """Returns the inputs of GAE in the order of the loops' arguments, each ``[T, N]``, or a contiguous ``[N, T]`` if ``time_last``."""
    names = ("state_value", "next_state_value", "reward", "done", "terminated")
    return [steps[name].t().contiguous() if time_last else steps[name] for name in names]


@cache
def numba_loops() -> Tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the numba loops over ``[T, N]`` and over ``[N, T]`` arrays.

    Both compute ``advantage[t] = delta[t] + gamma * lmbda * (1 - done[t]) * advantage[t+1]`` and ``value_target = advantage + value``,
    with ``delta[t] = reward[t] + gamma * (1 - terminated[t]) * next_value[t] - value[t]``.
    """
    import numba
    import numpy as np

    @numba.njit
    def time_major(value: Any, next_value: Any, reward: Any, done: Any, terminated: Any) -> Any:
        advantage, value_target = np.empty_like(value), np.empty_like(value)
        running = np.zeros(value.shape[1], value.dtype)
        for t in range(value.shape[0] - 1, -1, -1):
            for n in range(value.shape[1]):
                delta = reward[t, n] - value[t, n] + (0.0 if terminated[t, n] else GAMMA * next_value[t, n])
                running[n] = delta + (0.0 if done[t, n] else GAMMA * LMBDA * running[n])
                advantage[t, n], value_target[t, n] = running[n], running[n] + value[t, n]
        return advantage, value_target

    @numba.njit
    def batch_major(value: Any, next_value: Any, reward: Any, done: Any, terminated: Any) -> Any:
        advantage, value_target = np.empty_like(value), np.empty_like(value)
        for n in range(value.shape[0]):
            running = 0.0
            for t in range(value.shape[1] - 1, -1, -1):
                delta = reward[n, t] - value[n, t] + (0.0 if terminated[n, t] else GAMMA * next_value[n, t])
                running = delta + (0.0 if done[n, t] else GAMMA * LMBDA * running)
                advantage[n, t], value_target[n, t] = running, running + value[n, t]
        return advantage, value_target

    return time_major, batch_major


def compiled_scan_gae(steps: Dict[str, Tensor]) -> Contender:
    """Creates a contender that computes GAE with torch's associative scan, compiled as one graph.

    Args:
        steps: as in :func:`numba_gae`.
    """
    names = ("state_value", "next_state_value", "reward", "done", "terminated")
    inputs = [steps[name] for name in names]
    gae = _compiled_gae()
    return Contender(lambda: gae(*inputs))


@cache
def _compiled_gae() -> Callable[..., Tuple[Tensor, Tensor]]:
    """Returns the compiled function from the inputs of :func:`compiled_scan_gae` to advantage and value target."""
    scan = associative_scan()
    assert scan is not None, "this version of torch has no associative scan"

    def combine(later: Tuple[Tensor, Tensor], earlier: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tensor]:
        # A pair covers consecutive steps: the advantage of the first step is sum + decay * (advantage after the last step).
        (later_decay, later_sum), (earlier_decay, earlier_sum) = later, earlier
        return later_decay * earlier_decay, earlier_sum + earlier_decay * later_sum

    def gae(value: Tensor, next_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor) -> Tuple[Tensor, Tensor]:
        delta = reward + GAMMA * next_value.masked_fill(terminated, 0.0) - value
        decay = torch.full_like(value, GAMMA * LMBDA).masked_fill(done, 0.0)
        mode = "pointwise" if value.is_cuda else "generic"  # torch has the faster mode "pointwise" only for GPUs
        advantage = scan(combine, (decay, delta), dim=0, reverse=True, combine_mode=mode)[1]
        return advantage, advantage + value

    return torch.compile(gae, fullgraph=True)


@cache
def jax_gae() -> Callable[..., Any]:
    """Returns the jax function, compiled, from the inputs of :func:`compiled_scan_gae` as arrays to advantage and value target."""
    import jax
    from jax import numpy as jnp

    def combine(later: Any, earlier: Any) -> Any:
        return later[0] * earlier[0], earlier[1] + earlier[0] * later[1]

    def gae(value: Any, next_value: Any, reward: Any, done: Any, terminated: Any) -> Any:
        delta = reward + GAMMA * jnp.where(terminated, 0.0, next_value) - value
        decay = jnp.where(done, 0.0, GAMMA * LMBDA).astype(value.dtype)
        advantage = jax.lax.associative_scan(combine, (decay, delta), reverse=True)[1]
        return advantage, advantage + value

    return jax.jit(gae)
