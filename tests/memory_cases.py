"""Networks with several recurrent layers, and a plain loop over steps in float64 that is their oracle."""

import copy

import torch
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators
from a2c_compiled.recurrent import MinGRU, Recurrent, hidden_size

FEATURES, CHOICES = 4, 2


class Stacked(nn.Module):
    """Layers that run one after the other; each recurrent layer takes the output of the layer before it."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, observation):
        x, hidden, start = observation
        for layer in self.layers:
            x = layer((x, hidden, start)) if isinstance(layer, Recurrent) else layer(x)
        return x


def layers_of(kind, offset):
    """The layers below the head, and the width of their output. ``offset``: where the state of the first of them begins."""
    if kind == "two_cells":  # the lower cell's width is that of the observation: wrong inputs of the upper cell fit
        return [Recurrent(nn.GRUCell(4, 4), offset=offset), Recurrent(nn.GRUCell(4, 4), offset=offset + 4)], 4
    if kind == "behind_an_encoder":
        return [nn.Linear(4, 4), nn.Tanh(), Recurrent(nn.GRUCell(4, 5), offset=offset)], 5
    assert kind == "mixture"
    lower = Recurrent(nn.LSTMCell(6, 3), nn.Linear(4, 6), offset=offset + 9)  # the states are in another order than the layers
    return [
        *(nn.Linear(4, 4), lower, nn.LayerNorm(3)),
        *(Recurrent(MinGRU(3, 4), offset=offset + 5), nn.ReLU(), Recurrent(nn.RNNCell(4, 5), offset=offset), nn.Tanh()),
    ], 5


KINDS = {"two_cells": 8, "behind_an_encoder": 5, "mixture": 15}
"""Networks by name, and the width of their states."""


def make_actor_and_critic(kind, shared=False):
    """Actor and critic that share their recurrent layers, or have layers of their own."""
    torch.manual_seed(0)
    layers, width = layers_of(kind, 0)
    critics = layers if shared else layers_of(kind, KINDS[kind])[0]
    networks = nn.ModuleList([Stacked(*layers, nn.Linear(width, CHOICES)), Stacked(*critics, nn.Linear(width, 1))])
    with torch.no_grad():  # large weights, so that the actions depend on the observations and on the states
        for parameter in networks.parameters():
            parameter.mul_(2.0)
        x = 3 * torch.randn(50, 20, FEATURES)
        start = torch.zeros(50, 20, dtype=torch.bool)
        params = plain_run(networks, x, torch.zeros(20, hidden_size(networks)), start)[0][0]
        networks[0].layers[-1].bias -= params.flatten(0, 1).mean(0).float()
    return networks


def make_memory_loss(networks, **options):
    return A2CLoss(*networks, distributions.Categorical(CHOICES), estimators.GAE(0.9, 0.8), **options)


def plain_step(network, x, states):
    """The output for ``x``, ``[N, FEATURES]``. ``states`` holds each layer's state by its offset, and is updated."""
    for layer in network.layers:
        if not isinstance(layer, Recurrent):
            x = layer(x)
            continue
        cell, state, x = layer.cell, states[layer.offset], layer.encoder(x)
        if isinstance(cell, MinGRU):
            gate, candidate = cell.gate_and_candidate(x).split(cell.hidden_size, -1)
            state = (1 - gate.sigmoid()) * state + gate.sigmoid() * candidate
        elif isinstance(cell, nn.LSTMCell):
            state = torch.cat(cell(x, (state[:, : cell.hidden_size], state[:, cell.hidden_size :])), -1)
        else:
            state = cell(x, state)
        states[layer.offset], x = state, state[:, : cell.hidden_size]
    return x


def split(network, hidden):
    """The states of the layers by their offsets, from ``hidden``, ``[N, H]``."""
    layers = [layer for layer in network.layers if isinstance(layer, Recurrent)]
    return {layer.offset: hidden[:, layer.offset : layer.offset + layer.state_size] for layer in layers}


def plain_run(networks, x, hidden, start):
    """The outputs of each network and the states before and after each step, ``[T, N, ...]``, in float64.

    ``x``: ``[T, N, FEATURES]``. ``hidden``: ``[N, H]``, before the first step; 0 where ``start``, ``[T, N]``, is True at a later step.
    """
    networks = copy.deepcopy(networks).double()
    x, hidden = x.double(), hidden.double()
    outputs, before, after = [[] for _ in networks], [], []
    for t in range(len(x)):
        if t > 0:
            hidden = torch.where(start[t].unsqueeze(-1), 0.0, hidden)
        before.append(hidden)
        states = {}
        for network, results in zip(networks, outputs, strict=True):
            own = split(network, hidden)
            results.append(plain_step(network, x[t], own))
            states |= own
        hidden = torch.cat([states[offset] for offset in sorted(states)], -1)
        after.append(hidden)
    return [torch.stack(results) for results in outputs], torch.stack(before), torch.stack(after)
