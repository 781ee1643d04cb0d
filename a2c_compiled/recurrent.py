"""Recurrent networks: cells that run over the steps of a rollout, with their hidden state reset where episodes begin.

An observation of such a network is a tuple ``(x, hidden, start)``:

* ``x``, ``[T, N, ...]``: the observations of the environments. ``T`` is time, ``N`` the number of environments.
* ``hidden``, ``[T, N, H]``: the hidden state that the policy had before each step. ``H`` is the sum of the state sizes of all recurrent
  layers.
* ``start``, ``[T, N]``, bool: True where the cell starts step ``t`` from ``hidden[t]``. Where it is False, the cell continues from the
  state that it computed at step ``t - 1``. Step 0 always starts from ``hidden[0]``.

At the first step of an episode, ``start`` is True and ``hidden`` is 0. In the tuple of next observations, ``start`` is True everywhere and
``hidden`` is the state after each step. The network therefore processes each next observation as a separate sequence of one step.

A network may contain any number of recurrent layers at any depth. Each layer takes its own input in place of ``x``:

>>> def forward(self, observation):
...     x, hidden, start = observation
...     return self.head(self.upper((self.lower((self.encoder(x), hidden, start)), hidden, start)))

:func:`run_step` runs networks on one step. Each recurrent layer then stores its new state, so any structure of recurrent layers gives the
correct state after the step.

Losses and training steps accept these tuples as observations. With ``shifted=True`` (see :class:`~a2c_compiled.losses.A2CLoss`), the
critic's cell runs ``T + shifted_budget`` times instead of ``2 * T``. A cell in a trunk that actor and critic share, see
:mod:`a2c_compiled.shared_trunk`, runs ``2 * T`` times for both.
"""

import threading
from functools import partial
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import check_mask, check_tensors, described, integer
from a2c_compiled.ops import linear_scan
from a2c_compiled.shared_trunk import run_layers, trunk_length

RecurrentObservation = Tuple[Tensor, Tensor, Tensor]
"""The observation of a recurrent network: ``x``, ``hidden`` and ``start``."""


class Step(NamedTuple):
    """The result of :func:`run_step`.

    Fields:
        outputs: the output of each network, ``[N, ...]``.
        hidden: ``[N, H]``, floating point: the state of all recurrent layers after the step.
    """

    outputs: List[Tensor]
    hidden: Tensor


class _ThisThread(threading.local):
    """The recurrent layers that ran in this thread's :func:`run_step`, with their states. None outside of :func:`run_step`."""

    def __init__(self) -> None:
        # Set here, which runs in each thread, and not in the class: torch.compile guards on attributes of the instance only.
        self.states: Optional[List[Tuple[Recurrent, Tensor]]] = None


_this_thread = _ThisThread()


class MinGRU(nn.Module):
    r"""A gated cell whose state follows a linear recurrence. One linear scan computes all steps.

    .. math:: h_t = (1 - z_t)\, h_{t-1} + z_t\, \tilde h_t, \quad z_t = \sigma(W_z x_t + b_z), \quad \tilde h_t = W_h x_t + b_h

    Args:
        input_size: width of :math:`x`.
        hidden_size: width of :math:`h`.

    Raises:
        TypeError, ValueError: a size is not an integer, or is less than 1.

    Source: Feng et al., Were RNNs All We Needed?, 2024.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.gate_and_candidate = nn.Linear(positive_int("input_size", input_size), 2 * self.hidden_size)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Computes the state after one step, ``[N, hidden_size]``.

        Args:
            x: ``[N, input_size]``, floating dtype.
            hidden: ``[N, hidden_size]``, same dtype: the state before the step.
        """
        check_tensors(("x", "hidden"), (x, hidden), 2)
        gate, candidate = self._gates(x)
        return torch.lerp(hidden, candidate, gate)

    def over_time(self, x: Tensor, hidden: Tensor, start: Tensor) -> Tensor:
        """Computes the states after each of ``T`` steps, ``[T, N, hidden_size]``.

        Args:
            x: ``[T, N, input_size]``, floating dtype.
            hidden: ``[T, N, hidden_size]``, same dtype: the state before each step, used at step 0 and where ``start`` is True.
            start: ``[T, N]``, bool: True where a step starts from ``hidden``. Step 0 always does.
        """
        check_tensors(("x", "hidden", "start"), (x, hidden, start), 3)
        gate, candidate = self._gates(x)
        starts = start.unsqueeze(-1) | (torch.arange(x.size(0), device=x.device) == 0).reshape(-1, 1, 1)
        kept = 1.0 - gate
        source = gate * candidate + kept * hidden.masked_fill(~starts, 0.0)
        # The scan computes y[t + 1] = x[t + 1] + decay[t] * y[t], so decay[t] belongs to step t + 1: 0 if that step starts from hidden.
        decay = kept.masked_fill(starts, 0.0).roll(-1, 0)
        return linear_scan(source, decay.to(source.dtype), -3, reverse=False)

    def _gates(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        gate, candidate = self.gate_and_candidate(x).chunk(2, -1)
        return gate.sigmoid(), candidate


class Recurrent(nn.Module):
    """Runs a cell over time: maps ``(x, hidden, start)`` to ``[T, N, cell.hidden_size]``. A layer of an actor or critic network.

    >>> trunk = Recurrent(nn.GRUCell(64, 128), encoder=nn.Sequential(nn.Linear(4, 64), nn.Tanh()))
    >>> actor, critic = nn.Sequential(trunk, nn.Linear(128, 2)), nn.Sequential(trunk, nn.Linear(128, 1))

    From each step, gradients flow back to the most recent step that started from ``hidden``. :class:`MinGRU` computes all steps in one
    scan. With other cells, a compiled graph contains every step, so that long rollouts compile slowly. If actor and critic contain the same
    layer, both must pass it the same input.

    Args:
        cell: :class:`MinGRU`, ``nn.GRUCell``, ``nn.RNNCell`` or ``nn.LSTMCell``. The state of an LSTM is its ``h`` and ``c``, concatenated.
        encoder: module that maps ``x`` to the cell's input. None: the input is ``x``.
        offset: index in the last dimension of ``hidden`` where this cell's state begins, for networks with several cells.

    Attributes:
        state_size: number of entries of this cell's state in ``hidden``.

    Raises:
        TypeError: ``cell`` is of another type, or ``offset`` is not an integer.
    """

    def __init__(self, cell: nn.Module, encoder: Optional[nn.Module] = None, offset: int = 0) -> None:
        super().__init__()
        if not isinstance(cell, (MinGRU, nn.RNNCellBase)):
            raise TypeError(f"cell: expected a MinGRU, GRUCell, RNNCell or LSTMCell, got {type(cell).__name__}")
        self.cell = cell
        self.encoder = nn.Identity() if encoder is None else encoder
        self._identity = object()  # identifies the layer: torch.export replaces it by copies that keep this object
        self.offset = integer("offset", offset)
        self.state_size = cell.hidden_size * (2 if isinstance(cell, nn.LSTMCell) else 1)

    def forward(self, observation: RecurrentObservation) -> Tensor:
        """Computes the cell's output at each step.

        Args:
            observation: ``x`` ``[T, N, ...]``; ``hidden`` ``[T, N, H]``, floating dtype; ``start`` ``[T, N]``, bool.

        Returns:
            ``[T, N, cell.hidden_size]``, floating dtype.

        Raises:
            TypeError: ``observation`` is not a tuple of length 3, an entry is not a tensor, or ``start`` is not bool.
            ValueError: ``start`` is not 2-D, the leading dimensions differ, or the last dimension of ``hidden`` is less than
                ``offset + state_size``.
        """
        x, hidden, start = _checked(observation)
        features, starting_states = self.encoder(x), self._own_state(hidden)
        if features.size(0) == 0:  # an empty result of the right shape
            return starting_states.narrow(-1, 0, self.cell.hidden_size)
        states = _this_thread.states
        if isinstance(self.cell, MinGRU) and states is None:
            return self.cell.over_time(features, starting_states, start)
        state = starting_states[0]
        outputs: List[Tensor] = []
        for t in range(features.size(0)):
            if t > 0:
                state = torch.where(start[t].unsqueeze(-1), starting_states[t], state)
            state = self._next_state(features[t], state)
            outputs.append(state.narrow(-1, 0, self.cell.hidden_size))
        if states is not None:
            states.append((self, state))
        return torch.stack(outputs)

    def step(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Computes this cell's state after one step, ``[N, state_size]``.

        Args:
            x: ``[N, ...]``.
            hidden: ``[N, H]``, floating dtype: the states of all recurrent layers before the step.

        Raises:
            ValueError: the last dimension of ``hidden`` is less than ``offset + state_size``.
        """
        check_tensors(("x", "hidden"), (x, hidden), 2)
        return self._next_state(self.encoder(x), self._own_state(hidden))

    def _own_state(self, hidden: Tensor) -> Tensor:
        if hidden.size(-1) < self.offset + self.state_size:
            raise ValueError(
                f"hidden: expected a last dimension of at least {self.offset + self.state_size}, got {hidden.size(-1)}"
            )
        return hidden.narrow(-1, self.offset, self.state_size)

    def _next_state(self, features: Tensor, state: Tensor) -> Tensor:
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(self.cell(features, tuple(state.chunk(2, -1))), -1)
        return self.cell(features, state)


def restart_after(observation: Any, cut: Tensor) -> Any:
    """Returns ``observation``, a :data:`RecurrentObservation`, with ``start`` True also at the steps after those where ``cut`` is True.

    ``cut``: ``[T, N]``, bool, True at the end of a sequence or at a step that a mask excludes. The step after a cut starts from the
    ``hidden`` of the rollout, so results after a cut do not depend on observations before it. Raises the errors of
    :meth:`Recurrent.forward`.
    """
    x, hidden, start = _checked(observation)
    return x, hidden, start | cut.reshape(start.shape).roll(1, 0)


def is_recurrent(network: nn.Module) -> bool:
    """Returns whether ``network`` contains a :class:`Recurrent` layer."""
    return len(_recurrent_layers(network)) > 0


def unrolls(network: nn.Module) -> bool:
    """Returns whether a recurrent layer has a cell other than :class:`MinGRU`. A graph of such a network contains every step."""
    return any(not isinstance(layer.cell, MinGRU) for layer in _recurrent_layers(network))


def hidden_size(network: nn.Module) -> int:
    """Returns ``H``, the sum of the state sizes of all recurrent layers in ``network``; 0 if there is none.

    Raises:
        ValueError: the states of the layers overlap or leave a gap.
    """
    size = 0
    for layer in _recurrent_layers(network):
        if layer.offset != size:
            raise ValueError(f"offset: expected {size}, the end of the previous layer's state, got {layer.offset}")
        size += layer.state_size
    return size


def initial_hidden(network: nn.Module, num_envs: int) -> Tensor:
    """Returns the state of all recurrent layers in ``network`` at the first step of an episode: zeros, ``[num_envs, H]``.

    Dtype and device are those of the first cell; without cells, the default dtype on the CPU.

    Raises:
        ValueError: the states of the layers overlap or leave a gap.
    """
    size = hidden_size(network)
    cells = [next(layer.cell.parameters()) for layer in _recurrent_layers(network)]
    return torch.zeros([num_envs, size], dtype=cells[0].dtype, device=cells[0].device) if cells else torch.zeros([num_envs, 0])


def run_step(networks: Sequence[nn.Module], x: Tensor, hidden: Tensor) -> Step:
    """Runs each network once on one step, from the same state. Returns the outputs, and the state of all recurrent layers after the step.

    The common trunk of two networks, see :mod:`a2c_compiled.shared_trunk`, runs once for both.

    Entries of ``hidden`` that belong to no recurrent layer of ``networks`` are returned unchanged. A layer that several networks contain
    gets the state that the first of these networks computes.

    Args:
        networks: modules that map a :data:`RecurrentObservation` to a tensor ``[T, N, ...]``.
        x: ``[N, ...]``: the environments' observations.
        hidden: ``[N, H]``, floating dtype: the state before the step.

    Returns:
        ``outputs``: ``[N, ...]`` for each network. ``hidden``: ``[N, H]``.

    Raises:
        ValueError: a network runs the same recurrent layer twice, or the states of two layers overlap.
    """
    observation = x.unsqueeze(0), hidden.unsqueeze(0), torch.ones([1, x.size(0)], dtype=torch.bool, device=x.device)
    outputs: List[Tensor] = []
    states: List[Tuple[Recurrent, Tensor]] = []
    for output, states_of_network in _call_all(networks, observation):
        outputs.append(output.squeeze(0))
        earlier = list(states)
        states += [(layer, state) for layer, state in states_of_network if not _is_among(layer, earlier)]
    parts: List[Tensor] = []
    end = 0
    for layer, state in sorted(states, key=lambda pair: pair[0].offset):
        if layer.offset < end:
            raise ValueError(f"offset: expected at least {end}, the end of the previous layer's state, got {layer.offset}")
        if layer.offset > end:
            parts.append(hidden[:, end : layer.offset])
        parts.append(state)
        end = layer.offset + layer.state_size
    if hidden.size(-1) > end:
        parts.append(hidden[:, end:])
    return Step(outputs, torch.cat(parts, -1) if parts else hidden)


def next_hidden(network: nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    """Computes the state of all recurrent layers in ``network`` after one step, ``[N, H]``, see :func:`run_step`.

    Args:
        network: module that maps a :data:`RecurrentObservation` to a tensor; or a loss, whose actor and critic run; or an
            ``nn.ModuleList``, whose modules run. Each runs once; a common trunk of two networks runs once for both.
        x: ``[N, ...]``: the environments' observations.
        hidden: ``[N, H]``, floating dtype: the state before the step.

    Raises:
        ValueError: a network runs the same recurrent layer twice, or the states of two layers overlap.
    """
    parts = dict(network.named_children())
    if {"actor_network", "critic_network"} <= set(parts):
        networks = [parts["actor_network"], parts["critic_network"]]
    else:
        networks = list(network) if isinstance(network, nn.ModuleList) else [network]
    return run_step(networks, x, hidden).hidden


_States = List[Tuple[Recurrent, Tensor]]
"""Recurrent layers that ran, with their states after the last step."""


def _is_among(layer: Recurrent, states: _States) -> bool:
    """Returns whether ``states`` has a state of ``layer``."""
    return any(layer._identity is other._identity for other, _ in states)


def _call_all(networks: Sequence[nn.Module], observation: RecurrentObservation) -> List[Tuple[Tensor, _States]]:
    """Returns the output of each network, and the layers that ran for it with their states. A common trunk of two networks runs once."""
    length = trunk_length(*networks) if len(networks) == 2 else 0
    if length == 0:
        return [_call(network, observation, []) for network in networks]
    features, states = _call(partial(run_layers, networks[0], stop=length), observation, [])
    return [_call(partial(run_layers, network, start=length), features, states) for network in networks]


def _call(network: Callable[[Any], Any], x: Any, earlier_states: _States) -> Tuple[Any, _States]:
    """Returns the output of ``network`` for ``x``, and ``earlier_states`` plus the states of the layers that this call ran."""
    states: _States = list(earlier_states)
    before = _this_thread.states
    _this_thread.states = states
    try:
        output = network(x)
    finally:
        _this_thread.states = before
    for i, (layer, _) in enumerate(states):
        if _is_among(layer, states[:i]):
            raise ValueError(
                f"network: expected one call of each Recurrent layer in a step, got two of the layer with offset {layer.offset}, which"
                " has one state: use a separate layer, with its own offset, for each call"
            )
    return output, states


def _recurrent_layers(network: nn.Module) -> List[Recurrent]:
    return sorted((module for module in network.modules() if isinstance(module, Recurrent)), key=lambda layer: layer.offset)


def _checked(observation: RecurrentObservation) -> RecurrentObservation:
    """Returns ``observation``, after a check of its length, the dtype of ``start`` and the leading dimensions."""
    if not (isinstance(observation, tuple) and len(observation) == 3):
        raise TypeError(
            f"observation: expected a tuple of x, hidden and start, got {described(observation)} (recurrent.run_step takes one step;"
            " export.RecurrentPolicy exports a recurrent policy)"
        )
    x, hidden, start = observation
    check_tensors(("x", "hidden"), (x, hidden), 2)
    check_mask("start", start)
    if start.dim() != 2 or x.shape[:2] != start.shape or hidden.shape[:2] != start.shape:
        raise ValueError(
            f"observation: expected x, hidden and start with the same leading dimensions [T, N],"
            f" got {list(x.shape)}, {list(hidden.shape)} and {list(start.shape)}"
        )
    return x, hidden, start
