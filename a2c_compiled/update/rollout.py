"""What a policy has lived through, as tensors."""

from typing import Any, Dict, Mapping, NamedTuple, Optional

from torch import Tensor


class Rollout(NamedTuple):
    """Steps of ``N`` environments side by side, time first: ``[T, N]`` or ``[T, N, ...]``.

    Attributes:
        observation: what the policy saw, ``[T, N, ...]``.
        action: what it did, ``[T, N]`` or ``[T, N, *event]``.
        reward: what it got, ``[T, N]``.
        next_observation: what it saw next, as ``observation``; at an episode's end the real final observation, not the next episode's.
        done: bool, ``[T, N]``: the episode ended with this step, or was cut short.
        terminated: bool, ``[T, N]``: it ended.
        log_prob: log-probability of the action when it was taken, ``[T, N]``; V-trace and ``kl_approx`` need it.
        state_value: value of the observation when it was seen, ``[T, N]``; value clipping needs it.
        mask: bool, ``[T, N]``: which steps count; None for all.
        steps_to_next_obs: integers, ``[T, N]``: how many steps lie between observation and next observation; None for one.
        group: integers, ``[T, N]``: in which group a step is standardised; None for one group.

    Any layout serves that the loss's value estimator expects; this is the one that its default time_dim of -2 means.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    done: Tensor
    terminated: Tensor
    log_prob: Optional[Tensor] = None
    state_value: Optional[Tensor] = None
    mask: Optional[Tensor] = None
    steps_to_next_obs: Optional[Tensor] = None
    group: Optional[Tensor] = None


def as_loss_arguments(entries: Mapping[str, Any]) -> Dict[str, Any]:
    """Entries of a rollout by the names of ``A2CLoss.forward``, which calls their ``log_prob`` the sample's, to tell it from its own."""
    return {"sample_log_prob" if name == "log_prob" else name: entry for name, entry in entries.items()}
