"""The advantages of Stable-Baselines3's rollout buffers, by the fused GAE kernel."""

from functools import wraps
from typing import Any, Callable, Optional

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from a2c_compiled.functional.arguments import operand
from a2c_compiled.integrations.patching import Acceleration, Replacement
from a2c_compiled.kernels import cpu_scan, scan_forms

Compute = Callable[[RolloutBuffer, Tensor, np.ndarray], None]


def accelerate() -> Acceleration:
    """Have ``RolloutBuffer.compute_returns_and_advantage`` run as one kernel: for A2C, PPO, and every buffer that inherits the method.

    >>> with accelerate() as acceleration:
    ...     model.learn(100_000)
    >>> acceleration.calls, acceleration.fallbacks

    Advantages and returns are those of Stable-Baselines3 to float32 rounding, except that NaN does not leak from one episode into the
    one before it. ``episode_starts`` are flags: any number but 0 is one. A buffer that the kernel cannot serve (one of other
    dtypes or shapes than Stable-Baselines3's) is left to the original method, and counted.

    Returns:
        :class:`~a2c_compiled.integrations.patching.Acceleration`, which counts from here on. Requests may be nested and repeated:
        the original method returns when the ``with`` block of each has ended, or with :func:`restore`.
    """
    return _replacement.begin()


def restore() -> None:
    """Put the original method back, whoever asked for another."""
    _replacement.end_all()


def _replaced(original: Compute) -> Compute:
    @wraps(original)
    def compute_returns_and_advantage(self: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> None:
        reason = _unfit(self, last_values, dones)
        _replacement.count(reason)
        if reason is None:
            _compute(self, last_values, dones)
        else:
            original(self, last_values, dones)

    return compute_returns_and_advantage


def _unfit(buffer: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> Optional[str]:
    """Why the kernel cannot serve, if so."""
    if not cpu_scan.is_available():
        return "the C++ kernels were not built"
    if not (isinstance(buffer.gamma, (float, int)) and isinstance(buffer.gae_lambda, (float, int))):
        return "gamma or gae_lambda is no number"
    shape = (buffer.buffer_size, buffer.n_envs)
    if 0 in shape:
        return "the buffer is empty"
    for name in ("rewards", "values", "episode_starts", "advantages", "returns"):
        if not _is_plain(getattr(buffer, name), shape):
            return f"{name}: not a contiguous float32 array [buffer_size, n_envs]"
    if type(last_values) is not Tensor or last_values.dtype != torch.float32 or last_values.numel() != buffer.n_envs:
        return "last_values: not a float32 tensor with one value for each environment"
    if not isinstance(dones, np.ndarray) or dones.dtype != np.bool_ or dones.shape != shape[1:]:
        return "dones: not a bool array [n_envs]"
    return None


def _is_plain(array: Any, shape: tuple[int, int]) -> bool:
    return type(array) is np.ndarray and array.dtype == np.float32 and array.shape == shape and array.flags.carray


def _compute(buffer: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> None:
    next_values = np.empty_like(buffer.values)
    next_values[:-1], next_values[-1] = buffer.values[1:], last_values.cpu().numpy().reshape(-1)
    ends = np.empty(buffer.values.shape, np.bool_)
    np.not_equal(buffer.episode_starts[1:], 0.0, out=ends[:-1])
    ends[-1] = dones
    rewards, done = torch.from_numpy(buffer.rewards), torch.from_numpy(ends)
    # The kernel itself: at 8 environments and 5 steps, the checks and the dispatch of the public function take as long as it does.
    cpu_scan.run(
        scan_forms.GAE,
        (operand("gamma", buffer.gamma, rewards), operand("lmbda", buffer.gae_lambda, rewards)),
        (torch.from_numpy(buffer.values), torch.from_numpy(next_values), rewards),
        (done, done),
        0,
        (torch.from_numpy(buffer.advantages), torch.from_numpy(buffer.returns)),
    )


_replacement = Replacement({(RolloutBuffer, "compute_returns_and_advantage"): _replaced})
