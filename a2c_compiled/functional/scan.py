"""The primitive, and the return that is nothing but the primitive."""

from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, check_steps, coefficient, time_dimension
from a2c_compiled.ops import linear_scan


def reverse_scan(x: Tensor, decay: Tensor, dim: int) -> Tensor:
    r"""First-order linear recurrence in reverse time: :math:`y_t = x_t + a_t\, y_{t+1}`, with nothing after the last step.

    Differentiable to any order in both arguments. A decay of exactly zero cuts: not even NaN or infinity passes it.

    Args:
        x: any shape, any floating dtype. Half precision is accumulated in float32.
        decay: :math:`a`, of the dtype of ``x``, broadcastable to it.
        dim: the dimension of time.

    Returns:
        :math:`y`, of the shape and dtype of ``x``.

    Raises:
        ValueError: ``decay`` does not broadcast to ``x`` or is elsewhere, or ``dim`` is not a dimension of ``x``.
        TypeError: a dtype is not floating, or the two differ.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x)}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")
    if not isinstance(decay, Tensor):
        raise TypeError(f"decay: expected a tensor, got {type(decay)}")
    if decay.dtype != x.dtype:
        raise TypeError(f"decay: expected the dtype of x, {x.dtype}, got {decay.dtype}")
    if decay.device != x.device:
        raise ValueError(f"decay: expected the device of x, {x.device}, got {decay.device}")
    return linear_scan(x, coefficient("decay", decay, x).to(x.dtype).expand_as(x), time_dimension(x, dim), True)


def reward2go(reward: Tensor, done: Tensor, gamma: Coefficient, time_dim: int = -2) -> Tensor:
    r"""Discounted sum of the rewards to come in the same episode: :math:`G_t = r_t + \gamma (1 - d_t)\, G_{t+1}`.

    Args:
        reward: ``[*B, T, *F]`` with time at ``time_dim``, any floating dtype.
        done: bool, of the shape of ``reward``; true at the last step of each trajectory.
        gamma: discount; a number or a tensor that broadcasts to ``reward``.
        time_dim: the dimension of time.

    Returns:
        :math:`G`, of the shape and dtype of ``reward``.

    Raises:
        ValueError, TypeError: as every function here (see the module's text).
    """
    check_steps(reward, {"done": done}, {})
    decay = coefficient("gamma", gamma, reward).masked_fill(done, 0.0)
    return linear_scan(widen(reward), decay.expand_as(reward), time_dimension(reward, time_dim), True).to(reward.dtype)
