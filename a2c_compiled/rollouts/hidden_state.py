"""Hidden states of recurrent networks during a rollout."""

from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.recurrent import hidden_size, next_hidden


class HiddenStates:
    """Tracks the hidden states of the recurrent cells in ``network`` over the steps of rollouts.

    Without recurrent cells there is nothing to track, and :meth:`ask` calls the network on ``x`` alone.

    Args:
        network: contains the cells of actor and critic.
        num_envs: ``N``, the number of environments.
        device: device of the hidden states.
    """

    def __init__(self, network: nn.Module, num_envs: int, device: torch.device) -> None:
        self._network = network
        self._hidden = torch.zeros(num_envs, hidden_size(network), device=device)
        self._start = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._before: List[Tensor] = []
        self._after: List[Tensor] = []
        self._starts: List[Tensor] = []

    def is_empty(self) -> bool:
        """Returns whether the network has no recurrent cells."""
        return self._hidden.size(-1) == 0

    def ask(self, network: nn.Module, x: Tensor) -> Tensor:
        """Calls ``network`` on the observation ``x``, ``[N, ...]``, with the current hidden states; returns its output, ``[N, ...]``."""
        if self.is_empty():
            return network(x)
        start = torch.ones_like(self._start)  # a rollout of one step begins from the given hidden states
        return network((x.unsqueeze(0), self._hidden.unsqueeze(0), start.unsqueeze(0))).squeeze(0)

    def advance(self, x: Tensor, forget: Tensor) -> None:
        """Computes the hidden states after a step.

        Args:
            x: ``[N, ...]``: the observation before the step.
            forget: ``[N]``, bool: the next step begins another episode, so its hidden state is zero.
        """
        if self.is_empty():
            return
        after = next_hidden(self._network, x, self._hidden)
        self._before.append(self._hidden)
        self._after.append(after)
        self._starts.append(self._start)
        self._hidden, self._start = after.masked_fill(forget.unsqueeze(-1), 0.0), forget

    def state_dict(self) -> Dict[str, Tensor]:
        """Returns ``hidden``, ``[N, H]``, floating point, and ``start``, ``[N]``, bool; an empty dict without recurrent cells."""
        return {} if self.is_empty() else {"hidden": self._hidden, "start": self._start}

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` returned; an empty ``state`` sets the hidden states to zero."""
        if self.is_empty():
            return
        device = self._hidden.device
        self._hidden = state["hidden"].to(device) if state else torch.zeros_like(self._hidden)
        self._start = state["start"].to(device) if state else torch.ones_like(self._start)

    def observations(self, x: Tensor, next_x: Tensor) -> Tuple[Any, Any]:
        """Combines observations with the hidden states recorded since the last call.

        Args:
            x: ``[T, N, ...]``: the observations of these ``T`` steps.
            next_x: ``[T, N, ...]``: the next observations.

        Returns:
            Two tuples ``(x, hidden, start)``, see :mod:`a2c_compiled.recurrent`: for the observations and for the next observations.
            Without recurrent cells, ``x`` and ``next_x``.
        """
        if self.is_empty():
            return x, next_x
        start = torch.stack(self._starts)
        observation = x, torch.stack(self._before), start
        next_observation = next_x, torch.stack(self._after), torch.ones_like(start)
        self._before, self._after, self._starts = [], [], []
        return observation, next_observation
