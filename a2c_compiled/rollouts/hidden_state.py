"""Hidden states of recurrent networks during a rollout."""

from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.recurrent import hidden_size, next_hidden


class HiddenStates:
    """Tracks the hidden states of the recurrent cells in ``network`` over the steps of rollouts.

    Without recurrent cells, the hidden states are empty, and :meth:`call` passes only ``x`` to the network.

    Args:
        network: module that contains the cells of actor and critic.
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

    def call(self, network: nn.Module, x: Tensor) -> Tensor:
        """Calls ``network`` on the observations ``x``, ``[N, ...]``, with the current hidden states. Returns the output, ``[N, ...]``."""
        if self.is_empty():
            return network(x)
        start = torch.ones_like(self._start)  # a rollout of one step begins from the given hidden states
        return network((x.unsqueeze(0), self._hidden.unsqueeze(0), start.unsqueeze(0))).squeeze(0)

    def advance(self, x: Tensor, is_last: Tensor) -> None:
        """Computes the hidden states after a step.

        Args:
            x: ``[N, ...]``: the observation before the step.
            is_last: ``[N]``, bool: True if the next step begins another episode. That step then has the hidden state 0.
        """
        if self.is_empty():
            return
        after = next_hidden(self._network, x, self._hidden)
        self._before.append(self._hidden)
        self._after.append(after)
        self._starts.append(self._start)
        self._hidden, self._start = after.masked_fill(is_last.unsqueeze(-1), 0.0), is_last

    def state_dict(self) -> Dict[str, Tensor]:
        """Returns the hidden states ``hidden``, ``[N, H]``, floating point, and ``start``, ``[N]``, bool: the next step begins an episode.

        Without recurrent cells, returns an empty dict.
        """
        return {} if self.is_empty() else {"hidden": self._hidden, "start": self._start}

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` returned. An empty ``state`` begins new episodes: the hidden states are 0."""
        if self.is_empty():
            return
        device = self._hidden.device
        self._hidden = state["hidden"].to(device) if state else torch.zeros_like(self._hidden)
        self._start = state["start"].to(device) if state else torch.ones_like(self._start)

    def observations(self, x: Tensor, next_x: Tensor) -> Tuple[Any, Any]:
        """Combines observations with the hidden states recorded since the last call.

        Args:
            x: ``[T, N, ...]``: the observations of the ``T`` steps since the last call.
            next_x: ``[T, N, ...]``: the next observations of the same steps.

        Returns:
            Two tuples ``(x, hidden, start)``, see :mod:`a2c_compiled.recurrent`: for ``x`` and for ``next_x``. Without recurrent
            cells, ``x`` and ``next_x`` themselves.
        """
        if self.is_empty():
            return x, next_x
        start = torch.stack(self._starts)
        observation = x, torch.stack(self._before), start
        next_observation = next_x, torch.stack(self._after), torch.ones_like(start)
        self._before, self._after, self._starts = [], [], []
        return observation, next_observation
