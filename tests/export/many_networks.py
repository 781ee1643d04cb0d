"""Exports sixty networks of kinds that people use, as policy, loss and training step, in each format, and verifies every file.

Run ``python tests/export/many_networks.py`` for all of them, which takes about half an hour on two cores. ``--only``, ``--graphs`` and
``--formats`` choose some. Prints a line for each network: which files are equal to eager mode, and why others were refused. Fails if a
file differs from eager mode, or if fewer than fifty networks export completely. ``test_many_networks.py`` exports a few of them.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, export
from a2c_compiled.export.formats import FORMATS
from a2c_compiled.export.graphs.examples import Graph

CHOICES = 4
ENTITIES, FEATURES = 5, 6
GRAPHS = ("policy", "loss", "train_step")


class Network(NamedTuple):
    """A network to export.

    Attributes:
        make: returns a network with the given number of outputs.
        shape: shape of an observation.
        distribution: action distribution; the network has ``num_params`` outputs for it.
    """

    make: Callable[[int], nn.Module]
    shape: Tuple[int, ...] = (8,)
    distribution: distributions.Distribution = distributions.Categorical(CHOICES)


def mlp(*layers: nn.Module) -> Callable[[int], nn.Module]:
    """Returns a factory of networks: a linear layer of 8 to 16, ``layers``, and a linear layer of 16 to the outputs."""
    return lambda outputs: nn.Sequential(nn.Linear(8, 16), *layers, nn.Linear(16, outputs))


def convolutional(*layers: nn.Module) -> Callable[[int], nn.Module]:
    """Returns a factory of networks of images ``[2, 12, 12]``: ``layers``, and a linear layer from however many numbers they return."""

    def make(outputs: int) -> nn.Module:
        body = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            size = body.eval()(torch.zeros(2, 2, 12, 12)).shape[1]
        return nn.Sequential(body, nn.Linear(size, outputs))

    return make


class Observations(nn.Module):
    """Calls ``network`` with one leading dimension, and restores the leading dimensions of the observations in its output."""

    def __init__(self, network: nn.Module, event_dims: int) -> None:
        super().__init__()
        self.network, self.event_dims = network, event_dims

    def forward(self, x: Tensor) -> Tensor:
        leading = x.dim() - self.event_dims
        output = self.network(x.flatten(0, leading - 1))
        return output.view(x.shape[:leading] + output.shape[1:])


class Residual(nn.Module):
    """Adds the result of ``body`` to its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class OverEntities(nn.Module):
    """Attends over entities. The first feature of an entity tells whether it exists; a query over none gives 0."""

    def __init__(self, outputs: int, kind: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, outputs)
        self.kind = kind
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if kind == "module" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        exists = x[..., 0] > 0
        entities = self.embed(x)
        if self.kind == "module":
            return self.head(self.attention(entities, entities, entities, need_weights=False)[0].mean(-2))
        mask = exists.unsqueeze(-2)
        if self.kind == "products":
            scores = (entities @ entities.transpose(-1, -2)).masked_fill(~mask, -1e9)
            return self.head((scores.softmax(-1) @ entities).mean(-2))
        return self.head(F.scaled_dot_product_attention(entities, entities, entities, attn_mask=mask).mean(-2))


class Pooled(nn.Module):
    """Embeds each entity, and takes the mean and the largest of those that exist (DeepSets)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, 8), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        exists = (x[..., :1] > 0).to(x.dtype)
        entities = self.embed(x).relu() * exists
        mean = entities.sum(-2) / exists.sum(-2).clamp_min(1.0)
        return self.head(torch.cat([mean, entities.amax(-2)], -1))


class Parts(nn.Module):
    """Reads an observation of several parts, each with an encoder of its own."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.position, self.goal, self.head = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        position, goal = x.split([5, 3], -1)
        return self.head(torch.cat([self.position(position).tanh(), self.goal(goal).relu()], -1))


class LearnedStd(nn.Module):
    """The mean, and a standard deviation that is a parameter."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, outputs // 2))
        self.log_std = nn.Parameter(torch.zeros(outputs // 2))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


class Experts(nn.Module):
    """A mixture of networks, weighted by a gate."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Linear(8, outputs) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * weights.unsqueeze(-2)).sum(-1)


class Steps(nn.Module):
    """A recurrent layer of torch over the frames of one observation."""

    def __init__(self, outputs: int, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Dueling(nn.Module):
    """Two heads on one body, combined as in dueling networks."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body, self.value, self.advantage = nn.Linear(8, 16), nn.Linear(16, 1), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.body(x))
        advantage = self.advantage(hidden)
        return self.value(hidden) + advantage - advantage.mean(-1, keepdim=True)


def _networks() -> Iterator[Tuple[str, Network]]:
    activations = (
        *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.PReLU),
        *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.LogSigmoid),
    )
    for activation in activations:
        yield f"MLP {activation.__name__}", Network(mlp(activation()))
    yield "MLP GELU tanh", Network(mlp(nn.GELU("tanh")))
    yield "MLP GLU", Network(lambda n: nn.Sequential(nn.Linear(8, 32), nn.GLU(), nn.Linear(16, n)))
    for norm in (nn.LayerNorm(16), nn.RMSNorm(16), nn.BatchNorm1d(16).eval(), nn.GroupNorm(4, 16), nn.Dropout(0.1)):
        yield f"MLP {type(norm).__name__}", Network(mlp(norm, nn.ReLU()))
    yield "MLP weight norm", Network(lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(8, n)))
    yield "MLP spectral norm", Network(lambda n: nn.utils.parametrizations.spectral_norm(nn.Linear(8, n)))
    yield "MLP residual", Network(mlp(nn.ReLU(), Residual(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()))))
    image = (2, 12, 12)
    convolution = nn.Conv2d(2, 4, 3)
    bodies: Dict[str, Sequence[nn.Module]] = {
        "stride": (nn.Conv2d(2, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU()),
        "zero padding": (nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        "same padding": (nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU()),
        "reflection": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        "replication": (nn.ReplicationPad2d(1), convolution, nn.ReLU()),
        "constant padding": (nn.ZeroPad2d(2), convolution, nn.ReLU()),
        "circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        "max pooling": (convolution, nn.MaxPool2d(2), nn.ReLU()),
        "average pooling": (convolution, nn.AvgPool2d(2), nn.ReLU()),
        "adaptive average": (convolution, nn.AdaptiveAvgPool2d(1)),
        "adaptive max": (convolution, nn.AdaptiveMaxPool2d(1)),
        "batch norm": (convolution, nn.BatchNorm2d(4).eval(), nn.ReLU()),
        "instance norm": (convolution, nn.InstanceNorm2d(4), nn.ReLU()),
        "group norm": (convolution, nn.GroupNorm(4, 4), nn.ReLU()),
        "groups": (nn.Conv2d(2, 4, 3, groups=2), nn.ReLU()),
        "dilation": (nn.Conv2d(2, 4, 3, dilation=2), nn.ReLU()),
        "transposed": (nn.ConvTranspose2d(2, 4, 3), nn.ReLU()),
        "upsampling": (convolution, nn.Upsample(scale_factor=2), nn.ReLU()),
        "residual": (nn.Conv2d(2, 4, 3), Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))), nn.ReLU()),
    }
    for name, body in bodies.items():
        yield f"convolution {name}", Network(convolutional(*body), image)
    entities = (ENTITIES, FEATURES)
    for kind in ("masked", "products", "module"):
        yield f"attention {kind}", Network(lambda n, kind=kind: OverEntities(n, kind), entities)
    yield "deep sets", Network(Pooled, entities)
    for layer in (nn.GRU, nn.LSTM):
        yield f"{layer.__name__} over frames", Network(lambda n, k=layer: Steps(n, k(FEATURES, 8, batch_first=True)), entities)
    yield "parts of an observation", Network(Parts)
    yield "mixture of experts", Network(Experts)
    yield "dueling heads", Network(Dueling)
    yield "learned std", Network(LearnedStd, distribution=distributions.Normal(2))
    yield "squashed", Network(mlp(nn.Tanh()), distribution=distributions.TanhNormal(2))
    yield "one-hot", Network(mlp(nn.ReLU()), distribution=distributions.OneHotCategorical(CHOICES))
    yield "Bernoulli", Network(mlp(nn.ReLU()), distribution=distributions.Bernoulli(3))


NETWORKS = dict(_networks())


def graph_of(network: Network, name: str) -> Graph:
    """Returns a graph of a network: ``policy``, ``loss`` or ``train_step``."""
    torch.manual_seed(0)
    distribution = network.distribution
    critic = Observations(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(network.shape), 1)), len(network.shape))
    actor = Observations(network.make(distribution.num_params), len(network.shape))
    steps, envs = 6, 4
    observation, next_observation = torch.randn(2, steps, envs, *network.shape).unbind()
    with torch.no_grad():
        params = actor(observation)
        action = distribution.sample(params, distribution.noise(params))
    loss = A2CLoss(actor, critic, distribution)
    done = torch.rand(steps, envs) < 0.2
    rollout = Rollout(observation, action, torch.randn(steps, envs), next_observation, done, done)
    if name != "train_step":
        return export.graphs_of(loss, rollout)[name]
    step = export.TrainStepGraph(TrainStep(loss, compile=False), rollout)
    return Graph(step, step.example_inputs, step.dynamic_axes)


class Outcome(NamedTuple):
    """What became of the files of one network: names of the equal ones, and messages of those refused and of all others."""

    equal: List[str]
    wrong: List[str]
    refused: List[str]


def outcome(network: Network, folder: Path, graph_names: Sequence[str], formats: Sequence[str]) -> Outcome:
    """Exports the graphs of a network to ``folder`` and verifies each file."""
    result = Outcome([], [], [])
    for name in graph_names:
        for format in (FORMATS[format] for format in formats):
            if name == "train_step" and not format.has_gradients:
                continue
            file = f"{name}{format.ending}"
            try:
                graph = graph_of(network, name)
                report = export.verify(format.export(graph.module, graph.example_inputs, folder / file, graph.dynamic_axes))
            except export.ExportError as error:
                result.refused.append(f"{file}: {error}")
            except Exception as error:
                result.wrong.append(f"{file}: {type(error).__name__}: {error}")
            else:
                (result.equal if report.passed else result.wrong).append(file if report.passed else str(report))
    return result


def main() -> int:
    """Exports the networks that the command line chooses, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), help="names of networks")
    parser.add_argument("--graphs", nargs="+", default=GRAPHS, choices=GRAPHS)
    parser.add_argument("--formats", nargs="+", default=["onnx", "torchscript", "pt2"], choices=list(FORMATS))
    options = parser.parse_args()
    complete = failed = 0
    for name in options.only:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(NETWORKS[name], Path(folder), options.graphs, options.formats)
        complete += not (found.wrong or found.refused)
        failed += len(found.wrong)
        print(f"{name}: {len(found.equal)} equal, {time.perf_counter() - started:.0f} s", flush=True)
        for line in (*(f"WRONG {report}" for report in found.wrong), *(f"refused {text}" for text in found.refused)):
            print(f"  {line}", flush=True)
    print(
        f"{complete} of {len(options.only)} networks export completely; {failed} files differ from eager mode, or raise another error than"
        " ExportError"
    )
    return int(failed > 0 or complete < min(50, len(options.only)))


if __name__ == "__main__":
    sys.exit(main())
