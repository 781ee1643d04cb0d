"""Upgoing returns (UPGO)."""

from typing import Optional

from torch import Tensor

from a2c_compiled._precision import widen
from a2c_compiled.functional.arguments import Coefficient
from a2c_compiled.functional.steps import in_callers_order, moved_coefficient, prepare_steps
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
    mask: Optional[Tensor] = None,
    skip_masked: bool = False,
) -> Tensor:
    r"""Computes upgoing returns (UPGO).

    .. math::
        \lambda_t &= 1 \text{ if } r_{t+1} + \gamma_{t+1} (1 - \text{terminated}_{t+1})\, V(s_{t+2}) \ge V(s_{t+1}), \text{ else } 0 \\
        G_t &= r_t + \gamma_t \big( (1 - \lambda_t)\, (1 - \text{terminated}_t)\, V(s_{t+1}) + \lambda_t\, G_{t+1} \big)

    :math:`\lambda_t` is 0 at every ``done`` and at the last step. From step t on, the return adds rewards as long as the one-step return
    of the next step is at least the value of the next step. Then it bootstraps.

    Returns:
        :math:`G`, with the shape and dtype of ``reward``.

    Arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.generalized_advantage_estimate`.

    Source: Vinyals et al., Grandmaster level in StarCraft II using multi-agent reinforcement learning, 2019, methods.
    """
    values = {"state_value": state_value, "next_state_value": next_state_value}
    steps = prepare_steps(reward, done, terminated, values, time_dim, cu_seqlens, mask, skip_masked)
    if mask is not None:
        gamma = moved_coefficient("gamma", gamma, steps)
    next_value, wide_reward = widen(steps.values["next_state_value"]), widen(steps.reward)
    one_step = td0_return_estimate(gamma, next_value.detach(), wide_reward.detach(), steps.bootstrap_cut).detach()
    # The condition at step t + 1 decides lambda[t], hence the roll by -1. TD(lambda) sets lambda to 0 at ends itself.
    at_least_value = (one_step >= widen(steps.values["state_value"])).to(wide_reward.dtype)
    lmbda = at_least_value.roll(-1, steps.dim)
    returns = td_lambda_return_estimate(
        gamma, lmbda, next_value, wide_reward, steps.trace_cut, steps.bootstrap_cut, None, steps.dim
    )
    return in_callers_order(returns.to(reward.dtype), steps)
