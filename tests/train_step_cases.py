"""Training steps to export: networks, a table of cases, and classes that run an exported training step.

The cases of ``EXPORTED`` are exported to ONNX. The cases of ``TRACED`` are cheaper: only their gradients are written out as operations,
and torch runs that graph. This is the first step of an export, and the step in which networks, distributions and optimizers combine. The
translation to ONNX concerns single operations.
"""

from typing import Any, Dict, NamedTuple

import numpy as np
import onnxruntime
import torch
from loss_cases import DISTRIBUTIONS, FEATURES, allowed, assert_same, make_loss_steps
from torch import nn
from torch_step import OPTIMIZERS, TorchStep

from a2c_compiled import A2CLoss, distributions, estimators, export
from a2c_compiled.export.tracing import gradients
from a2c_compiled.export.tracing.call import Call
from a2c_compiled.update import Rollout, TrainStep

# Steps and environments of the examples. No test runs a graph at this size again.
EXAMPLE = (5, 6)
# Steps and environments of the updates, used in turn.
SIZES = ((3, 4), (1, 1), (1, 7), (9, 1), (2, 2), (16, 5))
# Learning rates by optimizer, and the factors that multiply them, each for ten updates.
RATES = {"sgd": 3e-2, "rmsprop": 7e-4, "adam": 1e-3, "adamw": 1e-3}
SCHEDULE = (1.0, 0.5, 1.5, 0.0, 0.7)

HIDDEN = 5
FLAT, IMAGE, ATARI = (FEATURES + HIDDEN,), (2, 9, 9), (4, 84, 84)


# Networks. All accept observations of the three shapes, except convolutions, which need images.


class Flat(nn.Module):
    """Flattens observations of any shape for a network of vectors."""

    def __init__(self, event, network):
        super().__init__()
        self.event, self.network = event, network

    def forward(self, observation):
        return self.network(observation.flatten(-self.event))


def mlp(shape, outputs):
    return Flat(len(shape), nn.Sequential(nn.Linear(int(np.prod(shape)), 8), nn.Tanh(), nn.Linear(8, outputs)))


def layer_norm(shape, outputs):
    body = nn.Sequential(nn.Linear(int(np.prod(shape)), 8), nn.LayerNorm(8), nn.SiLU())
    return Flat(len(shape), nn.Sequential(body, nn.Linear(8, outputs)))


def sparse(shape, outputs):
    """Units that are rarely active, so that some gradients are exactly 0."""
    first = nn.Linear(int(np.prod(shape)), 8)
    nn.init.constant_(first.bias, -1.0)
    return Flat(len(shape), nn.Sequential(first, nn.ReLU(), nn.Linear(8, outputs)))


class Pixels(nn.Module):
    """Divides pixels, whole numbers from 0 to 255, by 255 for another network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, observation):
        return self.network(observation / 255)


class Convolutional(nn.Module):
    """Two convolutions. At Atari's size they read every row and column; in smaller, padded images the strides leave some out."""

    def __init__(self, shape, outputs, activation=nn.Tanh):
        super().__init__()
        if shape == ATARI:
            layers = [nn.Conv2d(4, 4, 8, 4), nn.Conv2d(4, 4, 4, 2)]
        else:
            layers = [nn.Conv2d(shape[0], 4, 3, 2, padding=1), nn.Conv2d(4, 4, 2, 3, dilation=2)]
        self.convolutions = nn.Sequential(*(part for layer in layers for part in (layer, activation())))
        self.head = nn.Linear(4 * 9 * 9 if shape == ATARI else 4, outputs)

    def forward(self, observation):
        leading = observation.shape[:-3]
        features = self.convolutions(observation.flatten(0, -4))
        return self.head(features.flatten(1)).reshape(*leading, self.head.out_features)


class Layers(nn.Module):
    """Layers on images, and a head. The layers make a batch of features from ``[N, *shape]``."""

    def __init__(self, shape, outputs, layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            features = self.layers(torch.zeros(1, *shape)).numel()
        self.head = nn.Linear(features, outputs)

    def forward(self, observation):
        features = self.layers(observation.flatten(0, -4)).flatten(1)
        return self.head(features).reshape(*observation.shape[:-3], self.head.out_features)


class Recurrent(nn.Module):
    """A cell whose state is part of the observation."""

    def __init__(self, shape, outputs, cell=nn.GRUCell):
        super().__init__()
        self.event = len(shape)
        self.inputs = int(np.prod(shape)) - HIDDEN
        self.cell = cell(self.inputs, HIDDEN)
        self.head = nn.Linear(HIDDEN, outputs)

    def forward(self, observation):
        rows = observation.flatten(-self.event)
        leading = rows.shape[:-1]
        x, hidden = rows.flatten(0, -2).split([self.inputs, HIDDEN], -1)
        hidden = self.cell(x, (hidden, hidden.tanh()))[0] if isinstance(self.cell, nn.LSTMCell) else self.cell(x, hidden)
        return self.head(hidden).reshape(*leading, self.head.out_features)


class Masked(nn.Module):
    """Concatenates the logits and the mask of the choices that the observation allows."""

    def __init__(self, shape, logits):
        super().__init__()
        self.event, self.logits = len(shape), logits

    def forward(self, observation):
        features = observation.flatten(-self.event)[..., :FEATURES]
        return torch.cat([self.logits(observation), allowed(features).to(observation.dtype)], -1)


NETWORKS = {
    "linear": lambda shape, outputs: Flat(len(shape), nn.Linear(int(np.prod(shape)), outputs)),
    "mlp": mlp,
    "layer_norm": layer_norm,
    "sparse": sparse,
    "conv": Convolutional,
    "conv_relu": lambda shape, outputs: Convolutional(shape, outputs, nn.ReLU),
    "gru": Recurrent,
    "lstm": lambda shape, outputs: Recurrent(shape, outputs, nn.LSTMCell),
}
KINDS = {"conv_relu": "conv", "lstm": "recurrent", "gru": "recurrent"}
EVERY_ENTRY = ("log_prob", "state_value", "mask")


class Case(NamedTuple):
    """A training step to export, and the data that it trains on."""

    distribution: str
    actor: str
    critic: str
    """``shared``: a second head on the actor's trunk."""
    optimizer: str
    options: Dict[str, Any] = {}
    loss: Dict[str, Any] = {}
    entries: tuple = ()
    out_keys: tuple = ()
    frozen: str = ""
    """Parameters with this text in their name are not trained."""
    shape: tuple = FLAT
    layout: str = "TN"
    dtype: torch.dtype = torch.float32
    updates: int = 100
    updates_before: int = 0
    """Number of eager updates before the step is exported."""
    with_policy: bool = False
    """True: ``export_train_step`` exports the case, with the policy, the state and the runtime."""

    def __str__(self):
        marks = {
            "float64": self.dtype == torch.float64,
            "compiled": self.options.get("compile", False),
            "trained": self.updates_before > 0,
        }
        return "-".join([self.distribution, self.actor, self.critic, self.optimizer, *(mark for mark in marks if marks[mark])])

    @property
    def rule(self):
        return self.optimizer.partition("-")[0]

    @property
    def networks(self):
        """The kinds of the actor and the critic."""
        return {KINDS.get(name, name) for name in (self.actor, self.critic)}

    def lr(self, update):
        return RATES[self.rule] * SCHEDULE[update // 10 % len(SCHEDULE)]

    def make_loss(self):
        kind, size = DISTRIBUTIONS[self.distribution]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            outputs = size if self.distribution == "MaskedCategorical" else kind(size).num_params
            if self.critic == "shared":
                trunk = nn.Sequential(NETWORKS[self.actor](self.shape, 8), nn.Tanh())
                actor, critic = nn.Sequential(trunk, nn.Linear(8, outputs)), nn.Sequential(trunk, nn.Linear(8, 1))
            else:
                actor, critic = NETWORKS[self.actor](self.shape, outputs), NETWORKS[self.critic](self.shape, 1)
        if self.distribution == "MaskedCategorical":
            actor = Masked(self.shape, actor)
        if self.shape == ATARI:
            actor, critic = Pixels(actor), Pixels(critic)
        loss = A2CLoss(actor.to(self.dtype), critic.to(self.dtype), kind(size), **self.loss)
        for name, parameter in loss.named_parameters():
            parameter.requires_grad_(not self.frozen or self.frozen not in name)
        if self.out_keys:
            loss.out_keys = self.out_keys
        return loss

    def make_step(self, **options):
        """Returns the training step to export."""
        arguments = {"lr": self.lr(0), "compile": False, **OPTIMIZERS[self.optimizer], **self.options, **options}
        step = TrainStep(self.make_loss(), self.rule, **arguments)
        for update in range(self.updates_before):
            train(step, self, self.rollout(update, before=True), update)
        return step

    def make_torch_step(self, loss=None):
        """Returns the same training step with torch.optim."""
        options = {name: value for name, value in self.options.items() if name != "compile"}
        step = TorchStep(self.make_loss() if loss is None else loss, self.optimizer, **{"lr": self.lr(0), **options})
        for update in range(self.updates_before):
            train(step, self, self.rollout(update, before=True), update)
        return step

    def rollout(self, update, before=False):
        """Returns the rollout of an update, or if ``before`` of an update before the export."""
        return self.make_rollout(SIZES[update % len(SIZES)], 10_000 + update if before else update)

    def example(self):
        return self.make_rollout(EXAMPLE, 20_000)

    def make_rollout(self, size, seed):
        shape = size if self.layout == "TN" else size[::-1]
        steps = make_loss_steps(shape, self.distribution, self.dtype, seed, column=self.layout == "NT1")
        generator = torch.Generator().manual_seed(seed)

        def observed(features):
            more = torch.randn((*shape, int(np.prod(self.shape)) - FEATURES), generator=generator, dtype=torch.float64)
            observation = torch.cat([features, more.to(self.dtype)], -1).unflatten(-1, self.shape)
            return (observation * 64 + 128).clamp(0, 255).round() if self.shape == ATARI else observation

        optional = {"log_prob": steps.sample_log_prob, "state_value": steps.state_value, "mask": steps.mask}
        return Rollout(
            observed(steps.observation),
            steps.action,
            steps.reward,
            observed(steps.next_observation),
            steps.done,
            steps.terminated,
            **{name: optional[name] for name in self.entries},
        )

    def noise(self, update, rollout):
        """Returns the noise of an update if the loss estimates the entropy from samples, else None."""
        kind, size = DISTRIBUTIONS[self.distribution]
        if kind(size).has_entropy or not self.loss.get("entropy_coef", 1.0):
            return None
        shape = (self.loss.get("samples_mc_entropy", 1), *rollout.action.shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(update), dtype=torch.float64).to(self.dtype)


def train(step, case, rollout, update):
    """Runs one update of ``case``, with the learning rate and the noise of this update; returns its metrics."""
    noise = case.noise(update, rollout)
    if noise is not None:
        step.loss.distribution.noise = lambda params: noise.to(params.dtype)
    if isinstance(step, TrainStep):
        step.lr = case.lr(update)
    else:
        step.set_lr(case.lr(update))
    metrics = step(rollout)
    if noise is not None:
        del step.loss.distribution.noise
    return metrics


def case(names, **fields):
    """Returns a case from the names of its distribution, actor, critic and optimizer, separated by spaces."""
    return Case(*names.split(), **fields)


SAMPLED_ENTROPY = {"samples_mc_entropy": 3, "entropy_coef": 0.1, "value_estimator": "td1"}
LAMBDA_L1 = {"entropy_coef": 0.0, "value_estimator": "td_lambda", "loss_critic_type": "l1"}
VTRACE = {"value_estimator": "vtrace", "clip_value": 0.2}
GAE_LAST = {"value_estimator": estimators.GAE(average_gae=True, time_dim=-1)}
OTHER_KEYS = ("loss_objective", "loss_critic", "entropy")
SEPARATE = {"separate_losses": True, "loss_critic_type": "l2"}
EXPORTED = (
    case("Categorical conv_relu shared sgd", options={"max_grad_norm": None}, shape=ATARI, updates=20),
    case("OneHotCategorical conv linear sgd-nesterov", loss={"reduction": "sum"}, entries=("mask",), shape=IMAGE),
    case("OneHotCategorical mlp shared adam-all", options={"compile": True}, loss=SEPARATE, with_policy=True),
    case(
        "MaskedCategorical layer_norm shared sgd-momentum", loss=GAE_LAST, out_keys=OTHER_KEYS, layout="NT", updates_before=3
    )._replace(with_policy=True),
    case("Normal gru lstm sgd", loss=VTRACE, entries=EVERY_ENTRY),
    case("TanhNormal linear shared adamw-all", loss=SAMPLED_ENTROPY, dtype=torch.float64, with_policy=True),
    case("TanhNormal linear linear rmsprop-all", loss=LAMBDA_L1, frozen="bias", layout="NT1"),
)
TD0 = {"value_estimator": "td0", "critic_coef": None}
# Together with EXPORTED: each kind of network with each distribution and each optimizer, and each distribution with each optimizer.
TRACED = tuple(
    traced._replace(updates=50)
    for traced in (
        case("Categorical mlp linear rmsprop"),
        case("Categorical layer_norm gru adamw", loss={"value_estimator": "vtrace"}, entries=("log_prob",)),
        case("OneHotCategorical layer_norm lstm rmsprop-centered", loss={"clip_value": 0.2}, entries=("state_value",)),
        case("MaskedCategorical gru mlp adam", loss={"loss_critic_type": "l1"}),
        case("MaskedCategorical conv linear rmsprop", loss={"value_estimator": "td_lambda"}, shape=IMAGE, layout="NT1"),
        case("Normal mlp shared rmsprop-all", loss=TD0, dtype=torch.float64, updates_before=3),
        case("Normal layer_norm conv adamw-all", loss=VTRACE, entries=EVERY_ENTRY, shape=IMAGE),
        case("TanhNormal lstm layer_norm rmsprop-momentum", loss={"entropy_coef": 0.1}),
        case("TanhNormal conv mlp sgd-momentum", loss={"entropy_coef": 0.0}, frozen="convolutions.0", shape=IMAGE),
    )
)
# The smallest training step, for tests in which its parts do not matter.
SMALL = case("Categorical linear linear sgd", loss={**TD0, "entropy_coef": 0.0})


def export_update(step, rollout, path, **options):
    """Exports the training step without the policy."""
    graph = export.TrainStepGraph(step, rollout)
    return export.export_onnx(graph, graph.example_inputs, path, graph.dynamic_axes, **options)


def state_of(step):
    """Returns parameters and optimizer state of a :class:`TrainStep`, under the names of an exported training step."""
    named = {**dict(step.loss.named_parameters()), **dict(step.optimizer_state.named_buffers()), "step_count": step.step_count}
    return {name: tensor.detach() for name, tensor in named.items()}


def with_layer(layer, dtype=torch.float32, distribution=None):
    """Returns a training step whose actor contains ``layer``, which maps eight features to eight, and an example rollout."""
    actor = nn.Sequential(nn.Linear(FLAT[0], 8), layer, nn.Linear(8, 4)).to(dtype)
    critic = nn.Linear(FLAT[0], 1).to(dtype)
    loss = A2CLoss(actor, critic, distribution or distributions.Categorical(4), "td0", entropy_coef=0.0, critic_coef=None)
    return TrainStep(loss, "sgd", compile=False), SMALL._replace(dtype=dtype).example()


class Runner:
    """A training step as a graph, with the state that its updates change."""

    def __init__(self, state):
        self.state = {name: np.array(array) for name, array in state.items()}

    def __call__(self, rollout, lr, noise=None):
        """Runs an update, keeps the new state and returns the metrics."""
        inputs = {name: entry.numpy() for name, entry in rollout._asdict().items() if entry is not None}
        inputs |= {**self.state, "lr": np.asarray(lr, rollout.reward.numpy().dtype)}
        inputs |= {} if noise is None else {"noise": noise.numpy()}
        outputs = self.run(inputs)
        self.state = {name: outputs.pop(f"new.{name}") for name in self.state}
        return {name: torch.from_numpy(np.asarray(output)) for name, output in outputs.items()}


class InOnnxruntime(Runner):
    """An exported training step in stock onnxruntime."""

    def __init__(self, path, state):
        super().__init__(state)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, inputs):
        arrays = self.session.run(None, {name: inputs[name] for name in self.inputs})
        return dict(zip(self.outputs, arrays, strict=True))


class InTorch(Runner):
    """A training step whose gradients are written out as operations."""

    def __init__(self, step, example):
        graph = export.TrainStepGraph(step, example)
        super().__init__({name: graph.example_inputs[name].numpy() for name in graph.state_names})
        self.inputs = graph.input_names
        self.graph = gradients.with_gradients_written_out(Call(graph, graph.example_inputs, graph.dynamic_axes))

    def run(self, inputs):
        with torch.no_grad():
            outputs = self.graph(**{name: torch.tensor(inputs[name]) for name in self.inputs})
        return {name: tensor.numpy() for name, tensor in outputs.items()}


# Updates

# Largest difference from eager mode after 100 updates, relative to 1 or to the number itself where that is larger.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


class Trained(NamedTuple):
    """The state before and after the updates of a case, in three places, by name."""

    case: Case
    start: Dict[str, torch.Tensor]
    in_graph: Dict[str, torch.Tensor]
    eager: Dict[str, torch.Tensor]
    in_torch_optim: Dict[str, torch.Tensor]
    metrics: list
    """Of each update: the metrics of the graph and those of eager mode."""


def train_all(case, runner):
    """Trains on the same rollouts with ``runner``, in eager mode and with torch.optim."""
    eager, loop = case.make_step(compile=False), case.make_torch_step()
    start, metrics = runner.state, []
    for update in range(case.updates):
        rollout = case.rollout(update)
        outputs = runner(rollout, case.lr(update), case.noise(update, rollout))
        expected = train(eager, case, rollout, update)._asdict()
        metrics.append((outputs, {name: value for name, value in expected.items() if value is not None}))
        train(loop, case, rollout, update)
    start, end = ({name: torch.from_numpy(array) for name, array in state.items()} for state in (start, runner.state))
    eager_state = state_of(eager)
    return Trained(case, start, end, {name: eager_state[name] for name in start}, loop.state(), metrics)


def assert_same_state(actual, expected, dtype):
    """Parameters agree to the tolerance, the optimizer's state, which may be small, to ten times the tolerance of its largest number."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        of_optimizer = not name.startswith(("actor_network", "critic_network"))
        magnitude = 10 * tensor.abs().max() if of_optimizer else tensor.abs().max().clamp_min(1.0)
        error = (actual[name] - tensor).abs().max()
        assert error <= TOLERANCE[dtype] * magnitude, f"{name}: off by {error:.1e}"


def assert_trained_the_same(trained):
    """The graph ends where eager mode and torch.optim do, and reports the same metrics."""
    case = trained.case
    assert_same_state(trained.in_graph, trained.eager, case.dtype)
    step_count = torch.tensor(float(case.updates + case.updates_before))
    assert_same_state(trained.in_graph, {**trained.in_torch_optim, "step_count": step_count}, case.dtype)
    for name in trained.start.keys() & dict(case.make_loss().named_parameters()):
        moved = (trained.in_graph[name] - trained.start[name]).abs().max()
        assert moved > 100 * TOLERANCE[case.dtype], f"{name}: moved by no more than {moved:.1e}, which proves little"
    for outputs, expected in trained.metrics:
        # The norm of a gradient is the root of many squares, and the critic's loss may be the sum of many errors.
        assert_same(outputs, expected, 10 * TOLERANCE[case.dtype])
