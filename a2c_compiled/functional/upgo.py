"""Upgoing returns."""

from typing import Optional

from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient, check_steps, time_dimension
from a2c_compiled.functional.td import td0_return_estimate, td_lambda_return_estimate


def upgo_return_estimate(
    gamma: Coefficient,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor] = None,
    time_dim: int = -2,
    cu_seqlens: Optional[Tensor] = None,
) -> Tensor:
    r"""Upgoing return: follows what was done for as long as it went at least as well as expected, then bootstraps.

    The lambda return with :math:`\lambda_t = 1` where :math:`r_{t+1} + \gamma (1 - \text{terminated}_{t+1})\, V(s_{t+2}) \ge V(s_{t+1})`,
    and 0 elsewhere.

    Args:
        gamma: discount.
        state_value, next_state_value: :math:`V(s_t)` and :math:`V(s_{t+1})`.
        reward, done, terminated: of each step; flags are bool, and ``terminated`` None means that every ``done`` is one.
        time_dim: the dimension of time: -2 is that of ``[T, N]`` and ``[N, T, 1]``; ``[N, T]`` and ``[T]`` say -1.
        cu_seqlens: where sequences begin that lie end to end in time (see the module's text).

    Source: Vinyals et al., Grandmaster level in StarCraft II using multi-agent reinforcement learning, 2019, methods.
    """
    check_steps(reward, {"done": done}, {"state_value": state_value, "next_state_value": next_state_value}, terminated)
    dim = time_dimension(reward, time_dim)
    no_bootstrap = done if terminated is None else terminated
    next_value, reward_ = widen(next_state_value), widen(reward)
    one_step = td0_return_estimate(gamma, next_value.detach(), reward_.detach(), no_bootstrap).detach()
    went_well = (one_step >= widen(state_value)).to(reward_.dtype)
    returns = td_lambda_return_estimate(
        gamma, went_well.roll(-1, dim), next_value, reward_, done, terminated, None, time_dim, cu_seqlens
    )
    return returns.to(reward.dtype)
