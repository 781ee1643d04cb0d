"""What a recurrent policy remembers between the steps of its environments."""

from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.recurrent import hidden_size, next_hidden


class HiddenStates:
    """The hidden states of the cells in ``network``, step by step; of networks without cells it is empty and adds nothing.

    Args:
        network: with all the cells that act and judge: actor and critic.
        num_envs: environments side by side.
        device: of the states.
    """

    def __init__(self, network: nn.Module, num_envs: int, device: torch.device) -> None:
        self._network = network
        self._hidden = torch.zeros(num_envs, hidden_size(network), device=device)
        self._start = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._before: List[Tensor] = []
        self._after: List[Tensor] = []
        self._starts: List[Tensor] = []

    def is_empty(self) -> bool:
        """Whether there are no cells."""
        return self._hidden.size(-1) == 0

    def ask(self, network: nn.Module, x: Tensor) -> Tensor:
        """What ``network`` answers to ``x``, ``[N, ...]``, with the present states."""
        if self.is_empty():
            return network(x)
        every = torch.ones_like(self._start)
        return network((x.unsqueeze(0), self._hidden.unsqueeze(0), every.unsqueeze(0))).squeeze(0)

    def advance(self, x: Tensor, forget: Tensor) -> None:
        """Go on by the step at which ``x`` was seen; ``forget``, bool of ``[N]``, says for whom another episode follows."""
        if self.is_empty():
            return
        after = next_hidden(self._network, x, self._hidden)
        self._before.append(self._hidden)
        self._after.append(after)
        self._starts.append(self._start)
        self._hidden, self._start = after.masked_fill(forget.unsqueeze(-1), 0.0), forget

    def state_dict(self) -> Dict[str, Tensor]:
        """The states between two rollouts; empty without cells."""
        return {} if self.is_empty() else {"hidden": self._hidden, "start": self._start}

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Remember what another one remembered; nothing, where ``state`` is empty."""
        if self.is_empty():
            return
        device = self._hidden.device
        self._hidden = state["hidden"].to(device) if state else torch.zeros_like(self._hidden)
        self._start = state["start"].to(device) if state else torch.ones_like(self._start)

    def observations(self, x: Tensor, next_x: Tensor) -> Tuple[Any, Any]:
        """Observations and next observations of the steps since the last call, as the networks take them."""
        if self.is_empty():
            return x, next_x
        start = torch.stack(self._starts)
        observation = x, torch.stack(self._before), start
        next_observation = next_x, torch.stack(self._after), torch.ones_like(start)
        self._before, self._after, self._starts = [], [], []
        return observation, next_observation
