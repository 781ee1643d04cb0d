"""Computes the advantages of Stable-Baselines3's rollout buffers with the fused GAE kernel."""

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
    """Replaces ``RolloutBuffer.compute_returns_and_advantage`` with one kernel, for A2C, PPO, and every buffer that inherits the method.

    >>> with accelerate() as acceleration:
    ...     model.learn(100_000)
    >>> acceleration.calls, acceleration.fallbacks

    Advantages and returns equal those of Stable-Baselines3 within float32 rounding, with one exception: a NaN in one episode does not
    spread to the episode before it. Every nonzero number in ``episode_starts`` marks the start of an episode.

    If the dtypes or shapes of a buffer are not those of Stable-Baselines3, if gamma or lambda is not a number, or if the C++ kernels were
    not built, the original method computes the advantages, and the call counts in ``fallbacks``.

    Returns:
        :class:`~a2c_compiled.integrations.patching.Acceleration`, which counts from now on. Calls may be nested and repeated. The
        original method is restored when the ``with`` block of every call has ended, or by :func:`restore`.
    """
    return _replacement.begin()


def restore() -> None:
    """Ends every acceleration and restores the original method."""
    _replacement.end_all()


def _replaced(original: Compute) -> Compute:
    """Returns a method that calls the kernel if it supports the buffer, and ``original`` otherwise."""

    @wraps(original)
    def compute_returns_and_advantage(self: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> None:
        reason = _fallback_reason(self, last_values, dones)
        _replacement.count(reason)
        if reason is None:
            _compute(self, last_values, dones)
        else:
            original(self, last_values, dones)

    return compute_returns_and_advantage


def _fallback_reason(buffer: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> Optional[str]:
    """Returns the reason why the kernel cannot compute this buffer, or None if it can."""
    if not cpu_scan.is_available():
        return "the C++ kernels were not built"
    if not (isinstance(buffer.gamma, (float, int)) and isinstance(buffer.gae_lambda, (float, int))):
        return "gamma or gae_lambda is not a number"
    shape = (buffer.buffer_size, buffer.n_envs)
    if 0 in shape:
        return "the buffer is empty"
    for name in ("rewards", "values", "episode_starts", "advantages", "returns"):
        if not _is_plain(getattr(buffer, name), shape):
            return f"{name}: not a contiguous float32 array [buffer_size, n_envs]"
    if type(last_values) is not Tensor or last_values.dtype != torch.float32 or last_values.numel() != buffer.n_envs:
        return "last_values: not a float32 tensor with one value per environment"
    if not isinstance(dones, np.ndarray) or dones.dtype != np.bool_ or dones.shape != shape[1:]:
        return "dones: not a bool array [n_envs]"
    return None


def _is_plain(array: Any, shape: tuple[int, int]) -> bool:
    """Returns whether ``array`` is a contiguous, writable float32 array of ``shape``."""
    return type(array) is np.ndarray and array.dtype == np.float32 and array.shape == shape and array.flags.carray


def _compute(buffer: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> None:
    """Writes advantages and returns to ``buffer``."""
    next_values = np.empty_like(buffer.values)
    next_values[:-1], next_values[-1] = buffer.values[1:], last_values.cpu().numpy().reshape(-1)
    ends = np.empty(buffer.values.shape, np.bool_)
    np.not_equal(buffer.episode_starts[1:], 0.0, out=ends[:-1])
    ends[-1] = dones
    rewards, done = torch.from_numpy(buffer.rewards), torch.from_numpy(ends)
    # Calls the kernel directly: with 8 environments and 5 steps, checks and dispatch of the public function take as long as the kernel.
    cpu_scan.run(
        scan_forms.GAE,
        (operand("gamma", buffer.gamma, rewards), operand("lmbda", buffer.gae_lambda, rewards)),
        (torch.from_numpy(buffer.values), torch.from_numpy(next_values), rewards),
        (done, done),
        0,
        (torch.from_numpy(buffer.advantages), torch.from_numpy(buffer.returns)),
    )


_replacement = Replacement({(RolloutBuffer, "compute_returns_and_advantage"): _replaced})
