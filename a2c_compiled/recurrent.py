"""Networks with memory: cells run over the steps of a rollout, their hidden states reset where episodes begin.

An observation of such a network is a tuple ``(x, hidden, start)``, each with time and environments first:

* ``x``: what the environment showed, ``[T, N, ...]``;
* ``hidden``: the state that the policy had before the step, ``[T, N, H]``, as it acted;
* ``start``: bool, ``[T, N]``: begin from ``hidden`` here. Elsewhere, but for the first step, the state is what the step before left.

So one tensor says all: at the first step of an episode ``start`` is true and ``hidden`` zero. The next observation of a step has
``start`` true and the state that the step left, which makes it a step of its own. Losses and training steps take such tuples as they
are; with ``A2CLoss(shifted=True)`` the critic's cell runs ``T + 1`` times instead of ``2 T``.
"""

from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.ops import linear_scan

Remembered = Tuple[Tensor, Tensor, Tensor]
"""``x``, ``hidden`` and ``start``."""


class MinGRU(nn.Module):
    r"""A gated cell whose state is a linear recurrence, so that all steps are computed at once by the scan.

    .. math:: h_t = (1 - z_t)\, h_{t-1} + z_t\, \tilde h_t, \quad z_t = \sigma(W_z x_t + b_z), \quad \tilde h_t = W_h x_t + b_h

    Args:
        input_size, hidden_size: of :math:`x` and :math:`h`.

    Source: Feng et al., Were RNNs All We Needed?, 2024.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.gate_and_candidate = nn.Linear(input_size, 2 * hidden_size)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The state after one step: ``[N, input_size]`` and ``[N, hidden_size]`` to ``[N, hidden_size]``."""
        gate, candidate = self._gates(x)
        return torch.lerp(hidden, candidate, gate)

    def over_time(self, x: Tensor, hidden: Tensor, start: Tensor) -> Tensor:
        """The states after each of ``T`` steps, ``[T, N, hidden_size]``."""
        gate, candidate = self._gates(x)
        begins = start.unsqueeze(-1) | (torch.arange(x.size(0), device=x.device) == 0).reshape(-1, 1, 1)
        kept = 1.0 - gate
        source = gate * candidate + kept * hidden.masked_fill(~begins, 0.0)
        # The scan's decay of a step is the weight that its result has in the next one.
        decay = kept.masked_fill(begins, 0.0).roll(-1, 0)
        return linear_scan(source, decay.to(source.dtype), -3, reverse=False)

    def _gates(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        gate, candidate = self.gate_and_candidate(x).chunk(2, -1)
        return gate.sigmoid(), candidate


class Recurrent(nn.Module):
    """A cell over time, as the first layer of an actor or critic network: ``(x, hidden, start)`` to ``[T, N, cell.hidden_size]``.

    >>> trunk = Recurrent(nn.GRUCell(64, 128), encoder=nn.Sequential(nn.Linear(4, 64), nn.Tanh()))
    >>> actor, critic = nn.Sequential(trunk, nn.Linear(128, 2)), nn.Sequential(trunk, nn.Linear(128, 1))

    Gradients go back in time to where the state was given. A compiled graph has the steps one after the other (of :class:`MinGRU` all
    at once), so that long rollouts of other cells compile slowly.

    Args:
        cell: :class:`MinGRU`, or ``nn.GRUCell``, ``nn.RNNCell`` or ``nn.LSTMCell``, whose two states stand side by side.
        encoder: from ``x`` to what the cell takes; None where that is ``x``.
        offset: where this cell's state begins in ``hidden``, in networks with several.

    Raises:
        TypeError: the cell is none of these.
    """

    def __init__(self, cell: nn.Module, encoder: Optional[nn.Module] = None, offset: int = 0) -> None:
        super().__init__()
        if not isinstance(cell, (MinGRU, nn.RNNCellBase)):
            raise TypeError(f"cell: expected a MinGRU, GRUCell, RNNCell or LSTMCell, got {type(cell).__name__}")
        self.cell = cell
        self.encoder = nn.Identity() if encoder is None else encoder
        self.offset = offset
        self.state_size = cell.hidden_size * (2 if isinstance(cell, nn.LSTMCell) else 1)

    def forward(self, observation: Remembered) -> Tensor:
        """What the cell gives at each step."""
        x, hidden, start = _checked(observation)
        features, given = self.encoder(x), self._own(hidden)
        if features.size(0) == 0:
            return given.narrow(-1, 0, self.cell.hidden_size)
        if isinstance(self.cell, MinGRU):
            return self.cell.over_time(features, given, start)
        state = given[0]
        outputs: List[Tensor] = []
        for t in range(features.size(0)):
            if t > 0:
                state = torch.where(start[t].unsqueeze(-1), given[t], state)
            state = self._advanced(features[t], state)
            outputs.append(state.narrow(-1, 0, self.cell.hidden_size))
        return torch.stack(outputs)

    def step(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The state after one step, ``[N, state_size]``, from ``x`` of ``[N, ...]`` and the whole ``hidden``, ``[N, H]``."""
        return self._advanced(self.encoder(x), self._own(hidden))

    def _own(self, hidden: Tensor) -> Tensor:
        if hidden.size(-1) < self.offset + self.state_size:
            raise ValueError(
                f"hidden: expected at least {self.offset + self.state_size} numbers for each environment, got {hidden.size(-1)}"
            )
        return hidden.narrow(-1, self.offset, self.state_size)

    def _advanced(self, features: Tensor, state: Tensor) -> Tensor:
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(self.cell(features, tuple(state.chunk(2, -1))), -1)
        return self.cell(features, state)


def has_memory(network: nn.Module) -> bool:
    """Whether there is a cell in ``network``."""
    return len(_cells(network)) > 0


def hidden_size(network: nn.Module) -> int:
    """How many numbers the cells in ``network`` remember together; 0 where there are none.

    Raises:
        ValueError: the cells' offsets leave gaps or overlap.
    """
    size = 0
    for cell in _cells(network):
        if cell.offset != size:
            raise ValueError(
                f"offset: expected the states of the cells to stand side by side, got one at {cell.offset} after {size} numbers"
            )
        size += cell.state_size
    return size


def next_hidden(network: nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    """The state of all cells in ``network`` after one step, ``[N, H]``, from ``x`` of ``[N, ...]``."""
    return torch.cat([cell.step(x, hidden) for cell in _cells(network)], -1)


def _cells(network: nn.Module) -> List[Recurrent]:
    return sorted((module for module in network.modules() if isinstance(module, Recurrent)), key=lambda cell: cell.offset)


def _checked(observation: Remembered) -> Remembered:
    if not (isinstance(observation, tuple) and len(observation) == 3):
        raise TypeError(f"observation: expected a tuple of x, hidden and start, got {type(observation).__name__}")
    x, hidden, start = observation
    if start.dtype != torch.bool:
        raise TypeError(f"start: expected dtype torch.bool, got {start.dtype}")
    if start.dim() != 2 or x.shape[:2] != start.shape or hidden.shape[:2] != start.shape:
        raise ValueError(
            f"observation: expected x, hidden and start with the same steps and environments first,"
            f" got {list(x.shape)}, {list(hidden.shape)} and {list(start.shape)}"
        )
    return x, hidden, start
