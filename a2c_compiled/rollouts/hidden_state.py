"""Hidden states of recurrent networks during a rollout."""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.recurrent import initial_hidden, is_recurrent


class HiddenState(NamedTuple):
    """The hidden state of the recurrent layers before a step. Without such layers, callers have None in its place.

    Fields:
        hidden: ``[N, H]``, floating point: the states of all recurrent layers.
        start: ``[N]``, bool: whether the step begins an episode.
    """

    hidden: Tensor
    start: Tensor

    @classmethod
    def initial(cls, networks: Sequence[nn.Module], num_envs: int, device: torch.device) -> "Optional[HiddenState]":
        """Returns the state of ``num_envs`` environments that begin an episode. None if no network has a recurrent layer.

        The states of all ``networks`` are side by side.
        """
        every = nn.ModuleList(networks)
        if not is_recurrent(every):
            return None
        return cls(initial_hidden(every, num_envs).to(device), torch.ones(num_envs, dtype=torch.bool, device=device))


def advanced(
    state: Optional[HiddenState], hidden: Optional[Tensor], is_last: Tensor
) -> Tuple[Optional[HiddenState], Dict[str, Tensor]]:
    """Returns the hidden state before the next step, and the fields of this step that :func:`with_hidden_states` needs.

    Args:
        state: the hidden state before this step. None without recurrent networks: the result is then None and no fields.
        hidden: ``[N, H]``, floating point: the states of the recurrent layers after this step. None without recurrent networks.
        is_last: ``[N]``, bool: True if the next step begins another episode. That step then has the hidden state 0.
    """
    if state is None or hidden is None:
        return None, {}
    following = HiddenState(hidden.masked_fill(is_last.unsqueeze(-1), 0.0), is_last)
    return following, {**state._asdict(), "next_hidden": hidden}


def with_hidden_states(fields: Dict[str, Any]) -> Dict[str, Any]:
    """Combines the observations of a rollout with the hidden states, to tuples of ``x``, ``hidden`` and ``start``.

    Args:
        fields: fields of a :class:`~a2c_compiled.Rollout` by name, ``[T, N, ...]``. With recurrent networks, also ``hidden`` and
            ``next_hidden``, ``[T, N, H]``, and ``start``, ``[T, N]``, bool.

    Returns:
        The fields of the rollout. Without recurrent networks, ``fields`` itself.
    """
    if "hidden" not in fields:
        return fields
    fields = dict(fields)
    hidden, start, after = (fields.pop(name) for name in ("hidden", "start", "next_hidden"))
    fields["observation"] = fields["observation"], hidden, start
    fields["next_observation"] = fields["next_observation"], after, torch.ones_like(start)
    return fields
