"""The correct result of every estimator: plain loops over time in float64, one step at a time, differentiable by autograd.

Nothing here calls the library. Arguments have the library's names. Coefficients are numbers or tensors that broadcast to the data.
"""

import numbers

import torch


def linear_scan(x, decay, dim, reverse=True):
    """Computes the linear recurrence. ``decay[t]`` is the weight between the steps ``t`` and ``t + 1``, in both directions."""
    x, decay = (Rows(tensor.movedim(dim, 0)) for tensor in torch.broadcast_tensors(wide(x), wide(decay)))
    y = list(x)
    for t in list(in_order(len(x), reverse))[1:]:
        y[t] = x[t] + (decay[t] * y[t + 1] if reverse else decay[t - 1] * y[t - 1])
    return stack(y, x, dim)


def reverse_scan(x, decay, dim):
    return linear_scan(x, decay, dim, True)


def reward2go(reward, done, gamma, time_dim=-2, next_state_value=None, terminated=None):
    no_value = torch.zeros_like(reward) if next_state_value is None else next_state_value
    reward, gamma, done, next_value, terminated = steps(
        time_dim, reward, gamma, done, no_value, done if terminated is None else terminated
    )
    returns = [None] * len(reward)
    for t in in_order(len(reward), True):
        bootstrap = torch.where(terminated[t], 0.0, next_value[t])
        later = bootstrap if t + 1 == len(reward) else torch.where(done[t] | terminated[t], bootstrap, returns[t + 1])
        returns[t] = reward[t] + gamma[t] * later
    return stack(returns, reward, time_dim)


def eligibility_trace(gamma, lmbda, x, done, time_dim=-2):
    x, gamma, lmbda, done = steps(time_dim, x, gamma, lmbda, done)
    trace = list(x)
    for t in range(1, len(x)):
        trace[t] = x[t] + torch.where(done[t - 1], 0.0, gamma[t - 1] * lmbda[t - 1] * trace[t - 1])
    return stack(trace, x, time_dim)


def episodic_cumsum(x, done, time_dim=-2):
    return eligibility_trace(1.0, 1.0, x, done, time_dim)


def generalized_advantage_estimate(gamma, lmbda, state_value, next_state_value, reward, done, terminated=None, time_dim=-2):
    value, next_value, reward, gamma, lmbda, done, terminated = steps(
        time_dim, state_value, next_state_value, reward, gamma, lmbda, done, done if terminated is None else terminated
    )
    advantage = [None] * len(reward)
    for t in in_order(len(reward), True):
        advantage[t] = reward[t] + torch.where(terminated[t], 0.0, gamma[t] * next_value[t]) - value[t]
        if t + 1 < len(reward):
            advantage[t] = advantage[t] + torch.where(done[t], 0.0, gamma[t] * lmbda[t] * advantage[t + 1])
    value_target = [advantage[t] + value[t] for t in range(len(reward))]
    return stack(advantage, reward, time_dim), stack(value_target, reward, time_dim)


def td0_return_estimate(gamma, next_state_value, reward, terminated):
    return wide(reward) + torch.where(terminated, 0.0, wide(gamma) * wide(next_state_value))


def td0_advantage_estimate(gamma, state_value, next_state_value, reward, done, terminated=None):
    return td0_return_estimate(gamma, next_state_value, reward, done if terminated is None else terminated) - wide(state_value)


def td_lambda_return_estimate(
    gamma, lmbda, next_state_value, reward, done, terminated=None, rolling_gamma=None, time_dim=-2, open_end_bootstraps=True
):
    next_value, reward, gamma, lmbda, done, terminated = steps(
        time_dim, next_state_value, reward, gamma, lmbda, done, done if terminated is None else terminated
    )
    length = len(reward)
    bootstrap = [torch.where(terminated[t], 0.0, next_value[t]) for t in range(length)]
    if length and not open_end_bootstraps:
        bootstrap[-1] = torch.where(done[-1], bootstrap[-1], 0.0)

    def one_step(t, later, gamma, lmbda):
        if later is None:  # the last step bootstraps from its own next value
            later = bootstrap[t]
        later = torch.where(done[t], bootstrap[t], later)
        return reward[t] + gamma * ((1 - lmbda) * bootstrap[t] + lmbda * later)

    returns = [None] * length
    if rolling_gamma is None or rolling_gamma:
        for t in in_order(length, True):
            returns[t] = one_step(t, None if t + 1 == length else returns[t + 1], gamma[t], lmbda[t])
    else:
        for start in range(length):
            later = None
            for t in range(length - 1, start - 1, -1):
                later = one_step(t, later, gamma[start], lmbda[start])
            returns[start] = later
    return stack(returns, reward, time_dim)


def td_lambda_advantage_estimate(
    gamma, lmbda, state_value, next_state_value, reward, done, terminated=None, rolling_gamma=None, time_dim=-2
):
    returns = td_lambda_return_estimate(gamma, lmbda, next_state_value, reward, done, terminated, rolling_gamma, time_dim)
    return returns - wide(state_value)


def td1_return_estimate(gamma, next_state_value, reward, done, terminated=None, rolling_gamma=None, time_dim=-2):
    rolls = rolling_gamma is None or rolling_gamma
    return td_lambda_return_estimate(gamma, 1.0, next_state_value, reward, done, terminated, rolling_gamma, time_dim, rolls)


def td1_advantage_estimate(
    gamma, state_value, next_state_value, reward, done, terminated=None, rolling_gamma=None, time_dim=-2
):
    return td1_return_estimate(gamma, next_state_value, reward, done, terminated, rolling_gamma, time_dim) - wide(state_value)


def vtrace_advantage_estimate(
    gamma,
    log_pi,
    log_mu,
    state_value,
    next_state_value,
    reward,
    done,
    terminated=None,
    rho_thresh=1.0,
    c_thresh=1.0,
    time_dim=-2,
    pg_rho_thresh=None,
    lmbda=1.0,
):
    rho_thresh, c_thresh = (float("inf") if thresh is None else thresh for thresh in (rho_thresh, c_thresh))
    pg_rho_thresh = rho_thresh if pg_rho_thresh is None else pg_rho_thresh
    log_pi, log_mu, value, next_value, reward, gamma, rho_thresh, c_thresh, pg_rho_thresh, lmbda, done, terminated = steps(
        time_dim,
        log_pi,
        log_mu,
        state_value,
        next_state_value,
        reward,
        gamma,
        rho_thresh,
        c_thresh,
        pg_rho_thresh,
        lmbda,
        done,
        done if terminated is None else terminated,
    )
    length = len(reward)
    excess, value_target, advantage = [None] * length, [None] * length, [None] * length  # excess: v - V(s)
    for t in in_order(length, True):
        ratio = torch.exp(log_pi[t] - log_mu[t])
        # At the threshold itself (on-policy data), the gradient is the ratio's.
        rho = torch.where(ratio <= rho_thresh[t], ratio, rho_thresh[t])
        c = lmbda[t] * torch.where(ratio <= c_thresh[t], ratio, c_thresh[t])
        pg_rho = torch.where(ratio <= pg_rho_thresh[t], ratio, pg_rho_thresh[t])
        next_target = next_value[t]
        excess[t] = rho * (reward[t] + torch.where(terminated[t], 0.0, gamma[t] * next_value[t]) - value[t])
        if t + 1 < length:
            excess[t] = excess[t] + torch.where(done[t], 0.0, gamma[t] * c * excess[t + 1])
            mixed = lmbda[t] * value_target[t + 1] + (1 - lmbda[t]) * value[t + 1]
            next_target = torch.where(done[t], next_value[t], mixed)
        value_target[t] = value[t] + excess[t]
        advantage[t] = pg_rho * (reward[t] + torch.where(terminated[t], 0.0, gamma[t] * next_target) - value[t])
    return stack(advantage, reward, time_dim), stack(value_target, reward, time_dim)


def n_step_return_estimate(gamma, n, next_state_value, reward, done, terminated=None, time_dim=-2):
    next_value, reward, gamma, done, terminated = steps(
        time_dim, next_state_value, reward, gamma, done, done if terminated is None else terminated
    )
    bootstrap = [torch.where(terminated[t], 0.0, next_value[t]) for t in range(len(reward))]
    returns = []
    for start in range(len(reward)):
        last = min(start + n, len(reward)) - 1
        later = bootstrap[last]
        for t in range(last, start - 1, -1):
            later = reward[t] + gamma[t] * torch.where(done[t], bootstrap[t], later)
        returns.append(later)
    return stack(returns, reward, time_dim)


def upgo_return_estimate(gamma, state_value, next_state_value, reward, done, terminated=None, time_dim=-2):
    value, next_value, reward, gamma, done, terminated = steps(
        time_dim, state_value, next_state_value, reward, gamma, done, done if terminated is None else terminated
    )
    one_step = [reward[t] + torch.where(terminated[t], 0.0, gamma[t] * next_value[t]) for t in range(len(reward))]
    returns = list(one_step)
    for t in in_order(len(reward) - 1, True):
        goes_on = ~done[t] & (one_step[t + 1] >= value[t + 1])
        returns[t] = torch.where(goes_on, reward[t] + gamma[t] * returns[t + 1], one_step[t])
    return stack(returns, reward, time_dim)


def retrace_return_estimate(
    gamma, lmbda, log_pi, log_mu, action_value, next_state_value, reward, done, terminated=None, time_dim=-2
):
    log_pi, log_mu, value, next_value, reward, gamma, lmbda, done, terminated = steps(
        time_dim,
        log_pi,
        log_mu,
        action_value,
        next_state_value,
        reward,
        gamma,
        lmbda,
        done,
        done if terminated is None else terminated,
    )
    # At the last step of the data or of an episode, the return is the one-step return.
    delta = [reward[t] + torch.where(terminated[t], 0.0, gamma[t] * next_value[t]) - value[t] for t in range(len(reward))]
    returns = [value[t] + delta[t] for t in range(len(reward))]
    for t in in_order(len(reward) - 1, True):
        ratio = torch.exp(log_pi[t + 1] - log_mu[t + 1])
        c = lmbda[t + 1] * torch.where(ratio <= 1.0, ratio, 1.0)
        returns[t] = returns[t] + torch.where(done[t], 0.0, gamma[t] * c * (returns[t + 1] - value[t + 1]))
    return stack(returns, reward, time_dim)


def standardize(x, eps, mask=None, group=None, separate_dim=None):
    """Standardises each group and each index of ``separate_dim`` separately. Elements outside the mask become 0."""
    x = wide(x)
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    if group is None and separate_dim is None and mask.sum() == 1:
        return x.masked_fill(~mask, 0.0)
    result = x.masked_fill(torch.ones_like(mask), 0.0)
    for chosen in standardized_together(x, mask, group, separate_dim):
        centered = x[chosen] - x[chosen].mean()
        variance = (centered**2).sum() / max(len(centered) - 1, 1)
        result = result.index_put((chosen,), centered / variance.clamp_min(eps**2).sqrt())
    return result


def standardized_together(x, mask, group, separate_dim):
    """Returns flags like ``x`` for each set of elements that have a mean and a standard deviation in common."""
    group = torch.zeros(()).long() if group is None else group
    group = group.reshape(*group.shape, *[1] * (x.dim() - group.dim())).expand(x.shape)
    entry = torch.zeros_like(group)
    if separate_dim is not None:
        entry = entry.movedim(separate_dim, -1) + torch.arange(x.size(separate_dim))
        entry = entry.movedim(-1, separate_dim)
    numbers = sorted(set(zip(group[mask].tolist(), entry[mask].tolist(), strict=True)))
    return [mask & (group == number) & (entry == which) for number, which in numbers]


def wide(value):
    """Returns a number or a floating tensor as a float64 tensor, and flags unchanged."""
    if isinstance(value, numbers.Real):
        return torch.tensor(value, dtype=torch.float64)
    return value if value.dtype == torch.bool else value.double()


def in_order(length, reverse):
    return range(length - 1, -1, -1) if reverse else range(length)


class Rows(list):
    """The steps of a tensor whose first dimension is time. Backward through indices of the tensor itself would take O(T²) time."""

    def __init__(self, tensor):
        super().__init__(tensor.unbind(0))
        self.tensor = tensor


def steps(dim, *arguments):
    """Returns the steps of ``arguments``, in float64 and expanded to the shape of the data."""
    arguments = [wide(argument) for argument in arguments]
    # A flag has the shape of the data.
    shape = next(argument.shape for argument in reversed(arguments) if argument.dtype == torch.bool)
    arguments = [argument if argument.shape == shape else squeeze(argument).expand(shape) for argument in arguments]
    return [Rows(argument.movedim(dim, 0)) for argument in arguments]


def squeeze(argument):
    return argument.reshape(()) if argument.numel() == 1 else argument


def stack(rows, like, dim):
    return torch.stack(rows).movedim(0, dim) if rows else like.tensor.movedim(0, dim)
