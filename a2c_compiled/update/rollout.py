"""The data that a policy collects, as tensors."""

from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional

from torch import Tensor

from a2c_compiled._kinds import check_observation, check_tensors, described


class Rollout(NamedTuple):
    """``T`` steps of ``N`` environments. Every tensor begins with the dimensions ``[T, N]``.

    Attributes:
        observation: ``[T, N, ...]``, any dtype that the networks accept: the observation before the action, a tensor or a tuple of tensors.
        action: ``[T, N, *event]``, dtype of the distribution's actions. ``*event`` is the shape of one action and may be empty.
        reward: ``[T, N]``, floating point.
        next_observation: shape and dtype of ``observation``: the observation after the action. At the end of an episode, it is the last
            observation of that episode, not the first of the next episode. With size 1 along time, ``[1, N, ...]``, the observation after
            the last step alone; the next observation of each other step is the observation of the step after it.
        done: ``[T, N]``, bool: the episode terminated or was truncated at this step.
        terminated: ``[T, N]``, bool: the episode terminated at this step.
        log_prob: ``[T, N]``, floating point: log-probability of the action under the policy that took it. V-trace and ``kl_approx`` need
            this entry. None: not recorded.
        state_value: ``[T, N]``, floating point: the critic's value of ``observation`` when the rollout was collected. Value clipping needs
            this entry. None: not recorded.
        mask: ``[T, N]``, bool: False excludes the step, as if the rollout did not contain it: the trace of the value estimator ends
            before it. None: all steps count.
        steps_to_next_obs: ``[T, N]``, integer dtype: number of environment steps from ``observation`` to ``next_observation``. None: 1.
        group: ``[T, N]``, integer dtype: index of the group within which rewards or advantages are standardised. None: one group.

    This layout fits the default ``time_dim=-2`` of the value estimator. With another ``time_dim``, time is that dimension. Shapes with
    several agents: see :class:`~a2c_compiled.A2CLoss`.
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


_TENSORS = tuple(name for name in Rollout._fields if name not in ("observation", "next_observation"))
_NUM_REQUIRED = _TENSORS.index("log_prob")


def check_rollout(rollout: Rollout) -> None:
    """Raises TypeError unless ``rollout`` is a :class:`Rollout` whose entries are tensors. Observations may be tuples of tensors."""
    if not isinstance(rollout, Rollout):
        raise TypeError(f"rollout: expected a Rollout, got {described(rollout)}")
    check_observation("observation", rollout.observation)
    check_observation("next_observation", rollout.next_observation)
    check_tensors(_TENSORS, [getattr(rollout, name) for name in _TENSORS], _NUM_REQUIRED)


def mapped(function: Callable[[Tensor], Tensor], entry: Any) -> Any:
    """Applies ``function`` to a tensor, or to each tensor of a tuple. None stays None."""
    if isinstance(entry, tuple):
        return tuple(mapped(function, part) for part in entry)
    return None if entry is None else function(entry)


def as_loss_arguments(entries: Mapping[str, Any]) -> Dict[str, Any]:
    """Renames ``log_prob`` to ``sample_log_prob``, the name of this argument in :meth:`a2c_compiled.A2CLoss.forward`."""
    return {"sample_log_prob" if name == "log_prob" else name: entry for name, entry in entries.items()}
