"""The exported training step: a whole A2C update in stock onnxruntime, held against eager and against torch.optim."""

import copy
import itertools
import json
import os
import shutil
import site
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from loss_cases import DISTRIBUTIONS, FEATURES, allowed, assert_same, make_loss_steps
from torch import nn
from torch_step import OPTIMIZERS, TorchStep

import a2c_compiled
from a2c_compiled import A2CLoss, distributions, estimators, export
from a2c_compiled.export import update_files
from a2c_compiled.export.checking import reference_cases
from a2c_compiled.export.onnx_model import model_file
from a2c_compiled.update import Rollout, TrainStep

# Steps and environments of examples; no test runs a graph again at that size.
EXAMPLE = (5, 6)
# Steps and environments of the updates, in turns.
SIZES = ((3, 4), (1, 1), (1, 7), (9, 1), (2, 2), (16, 5))
UPDATES = 100
# Largest difference from eager after as many updates, to 1 or to the number itself where that is larger.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
# Learning rates by optimizer, and what they are multiplied by in turns of ten updates.
RATES = {"sgd": 3e-2, "rmsprop": 7e-4, "adam": 1e-3, "adamw": 1e-3}
SCHEDULE = (1.0, 0.5, 1.5, 0.0, 0.7)

HIDDEN = 5
FLAT, IMAGE, ATARI = (FEATURES + HIDDEN,), (2, 9, 9), (4, 84, 84)


# Networks of observations of any of the three shapes; convolutions need pixels


class Flat(nn.Module):
    """Any network of vectors, for observations of any shape."""

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


class Pixels(nn.Module):
    """Another network, of whole numbers from 0 to 255."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, observation):
        return self.network(observation / 255)


class Convolutional(nn.Module):
    """Strides leave over nothing at Atari's size, and rows and columns of smaller images, which are padded."""

    def __init__(self, shape, outputs, activation=nn.Tanh):
        super().__init__()
        if shape == ATARI:
            layers = [nn.Conv2d(4, 8, 8, 4), nn.Conv2d(8, 8, 4, 2), nn.Conv2d(8, 4, 3)]
        else:
            layers = [nn.Conv2d(shape[0], 4, 3, 2, padding=1), nn.Conv2d(4, 4, 2, 3, dilation=2)]
        self.convolutions = nn.Sequential(*(part for layer in layers for part in (layer, activation())))
        self.head = nn.Linear(4 * 7 * 7 if shape == ATARI else 4, outputs)

    def forward(self, observation):
        leading = observation.shape[:-3]
        features = self.convolutions(observation.flatten(0, -4))
        return self.head(features.flatten(1)).reshape(*leading, self.head.out_features)


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
    """Logits, and the mask of choices that is part of the observation."""

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
    "conv": Convolutional,
    "conv_relu": lambda shape, outputs: Convolutional(shape, outputs, nn.ReLU),
    "gru": Recurrent,
    "lstm": lambda shape, outputs: Recurrent(shape, outputs, nn.LSTMCell),
}
EVERY_ENTRY = ("log_prob", "state_value", "mask")


class Case(NamedTuple):
    """A training step to export, and how to train with it."""

    distribution: str
    actor: str
    critic: str
    """``shared``: another head on the actor's trunk."""
    optimizer: str
    options: Dict[str, Any] = {}
    loss: Dict[str, Any] = {}
    entries: tuple = ()
    out_keys: tuple = ()
    frozen: str = ""
    """What the names of parameters that do not learn have in them."""
    shape: tuple = FLAT
    layout: str = "TN"
    dtype: torch.dtype = torch.float32
    updates: int = UPDATES
    updates_before: int = 0
    """Eagerly, before the step is exported."""
    with_policy: bool = False
    """Written by ``export_train_step``, with all that goes with it."""

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
        """Kinds of network in it."""
        kinds = {"conv_relu": "conv", "lstm": "recurrent", "gru": "recurrent"}
        return {"shared"} if self.critic == "shared" else {kinds.get(name, name) for name in (self.actor, self.critic)}

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
        """As it is exported."""
        arguments = {"lr": self.lr(0), "compile": False, **OPTIMIZERS[self.optimizer], **self.options, **options}
        step = TrainStep(self.make_loss(), self.rule, **arguments)
        for update in range(self.updates_before):
            train(step, self, self.rollout(update, before=True), update)
        return step

    def make_torch_step(self, loss=None):
        """The same in an independent loop."""
        options = {name: value for name, value in self.options.items() if name != "compile"}
        step = TorchStep(self.make_loss() if loss is None else loss, self.optimizer, **{"lr": self.lr(0), **options})
        for update in range(self.updates_before):
            train(step, self, self.rollout(update, before=True), update)
        return step

    def rollout(self, update, before=False):
        """Of the sizes whose turn it is."""
        return self.make_rollout(SIZES[update % len(SIZES)], 10_000 + update if before else update)

    def example(self):
        return self.make_rollout(EXAMPLE, 20_000)

    def make_rollout(self, size, seed):
        shape = size if self.layout == "TN" else size[::-1]
        made = make_loss_steps(shape, self.distribution, self.dtype, seed, column=self.layout == "NT1")
        generator = torch.Generator().manual_seed(seed)

        def observed(features):
            more = torch.randn((*shape, int(np.prod(self.shape)) - FEATURES), generator=generator, dtype=torch.float64)
            observation = torch.cat([features, more.to(self.dtype)], -1).unflatten(-1, self.shape)
            return (observation * 64 + 128).clamp(0, 255).round() if self.shape == ATARI else observation

        optional = {"log_prob": made.sample_log_prob, "state_value": made.state_value, "mask": made.mask}
        return Rollout(
            observed(made.observation),
            made.action,
            made.reward,
            observed(made.next_observation),
            made.done,
            made.terminated,
            **{name: optional[name] for name in self.entries},
        )

    def noise(self, update, rollout):
        """For the entropy of an update, where that is estimated, else None."""
        kind, size = DISTRIBUTIONS[self.distribution]
        if kind(size).has_entropy or not self.loss.get("entropy_coef", 1.0):
            return None
        shape = (self.loss.get("samples_mc_entropy", 1), *rollout.action.shape)
        return torch.randn(shape, generator=torch.Generator().manual_seed(update), dtype=torch.float64).to(self.dtype)


def train(step, case, rollout, update):
    """One update with the learning rate and the noise of its turn."""
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


# Each kind of network with each distribution and each optimizer, and each distribution with each optimizer; AdamW is a kind of Adam.
CASES = (
    Case("Categorical", "conv_relu", "shared", "rmsprop", shape=ATARI, updates=20),
    Case("Categorical", "mlp", "conv", "sgd", {"max_grad_norm": None}, shape=ATARI, updates=20),
    Case("Categorical", "layer_norm", "gru", "adamw", loss={"value_estimator": "vtrace"}, entries=("log_prob",)),
    Case(
        "OneHotCategorical",
        "mlp",
        "shared",
        "adam-all",
        {"compile": True},
        {"separate_losses": True, "loss_critic_type": "l2"},
        with_policy=True,
    ),
    Case("OneHotCategorical", "layer_norm", "mlp", "rmsprop-centered", loss={"clip_value": 0.2}, entries=("state_value",)),
    Case("OneHotCategorical", "conv", "lstm", "sgd-nesterov", loss={"reduction": "sum"}, entries=("mask",), shape=IMAGE),
    Case(
        "MaskedCategorical",
        "layer_norm",
        "shared",
        "sgd-momentum",
        loss={"value_estimator": estimators.GAE(time_dim=-1)},
        out_keys=("loss_objective", "loss_critic", "entropy"),
        layout="NT",
        updates_before=3,
        with_policy=True,
    ),
    Case("MaskedCategorical", "gru", "mlp", "adam", loss={"loss_critic_type": "l1"}),
    Case(
        "MaskedCategorical",
        "conv",
        "layer_norm",
        "rmsprop",
        loss={"value_estimator": "td_lambda"},
        shape=IMAGE,
        layout="NT1",
    ),
    Case(
        "Normal",
        "mlp",
        "shared",
        "rmsprop-all",
        loss={"value_estimator": "td0", "critic_coef": None},
        dtype=torch.float64,
        updates_before=3,
    ),
    Case("Normal", "layer_norm", "mlp", "sgd", loss={"value_estimator": estimators.GAE(average_gae=True)}),
    Case(
        "Normal",
        "gru",
        "conv",
        "adamw-all",
        loss={"value_estimator": "vtrace", "clip_value": 0.2},
        entries=EVERY_ENTRY,
        shape=IMAGE,
    ),
    Case(
        "TanhNormal",
        "mlp",
        "shared",
        "adam",
        loss={"samples_mc_entropy": 3, "entropy_coef": 0.1, "value_estimator": "td1"},
        dtype=torch.float64,
        with_policy=True,
    ),
    Case("TanhNormal", "lstm", "layer_norm", "rmsprop-momentum", loss={"entropy_coef": 0.1}),
    Case("TanhNormal", "conv", "mlp", "sgd-momentum", loss={"entropy_coef": 0.0}, frozen="convolutions.0", shape=IMAGE),
)
# What is exported in half the time, where it does not matter.
SMALL = Case(
    "Categorical", "linear", "linear", "sgd", loss={"critic_coef": None, "entropy_coef": 0.0, "value_estimator": "td0"}
)


class InOnnxruntime:
    """An exported training step with its state, in stock onnxruntime."""

    def __init__(self, path, state):
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.state = dict(state)

    def __call__(self, rollout, lr, noise=None):
        """Metrics of one update, whose new state is kept."""
        given = {name: entry.numpy() for name, entry in rollout._asdict().items() if entry is not None}
        given |= {**self.state, "lr": np.asarray(lr, rollout.reward.numpy().dtype)}
        given |= {} if noise is None else {"noise": noise.numpy()}
        answers = dict(zip(self.outputs, self.session.run(None, {name: given[name] for name in self.inputs}), strict=True))
        self.state = {name: answers.pop(f"new.{name}") for name in self.state}
        return {name: torch.from_numpy(np.asarray(answer)) for name, answer in answers.items()}


class Exported(NamedTuple):
    """A case, the file that was written of it, and of the step that it was made from what was there before."""

    case: Case
    path: Path
    step: TrainStep
    before: Dict[str, Any]
    modes: List[bool]

    @property
    def state(self):
        """What goes in first."""
        named = {**dict(self.step.loss.named_parameters()), **dict(self.step.optimizer_state.named_buffers())}
        named["step_count"] = self.step.step_count
        read = self.model().graph.input
        return {value.name: named[value.name].detach().numpy().copy() for value in read if value.name in named}

    def model(self):
        return onnx.load(self.path)


def export_case(case, folder, **options):
    """A :class:`Exported`; modules of the critic are in evaluation mode, those of the actor are not."""
    step = case.make_step()
    step.loss.critic_network.eval()
    before, modes = copy.deepcopy(step.state_dict()), [module.training for module in step.modules()]
    path = folder / "train_step.onnx"
    if case.with_policy:
        assert export.export_train_step(step, case.example(), path, **options) == path
    else:
        export_update(step, case.example(), path, **options)
    return Exported(case, path, step, before, modes)


def export_update(step, rollout, path, **options):
    """Without the policy."""
    graph = export.TrainStepGraph(step, rollout)
    return export.export_onnx(graph, graph.example_inputs, path, graph.dynamic_axes, **options)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exported cases, each on its first use."""
    exported: Dict[str, Exported] = {}

    def exports(case):
        if str(case) not in exported:
            with pytest.MonkeyPatch.context() as patch:
                if case.shape == ATARI:  # as many frames as others have steps would take their time
                    patch.setattr(reference_cases, "_SIZES", ((1, 1), (2, 3)))
                    patch.setattr(reference_cases, "_LARGE", 0)
                exported[str(case)] = export_case(case, tmp_path_factory.mktemp("exported"))
        return exported[str(case)]

    return exports


@pytest.fixture(scope="module", params=CASES, ids=str)
def exported(request, exports):
    return exports(request.param)


@pytest.fixture(scope="module", params=[case for case in CASES if case.with_policy], ids=str)
def with_policy(request, exports):
    return exports(request.param)


# The same training


class Trained(NamedTuple):
    """What a hundred updates of the same rollouts led to in three places: tensors by name."""

    case: Case
    start: Dict[str, torch.Tensor]
    in_onnxruntime: Dict[str, torch.Tensor]
    eager: Dict[str, torch.Tensor]
    in_torch_optim: Dict[str, torch.Tensor]
    metrics: list
    """Of each update: those of the file and eager's."""


@pytest.fixture(scope="module")
def trained(exported):
    case, start = exported.case, exported.state
    runner, eager, loop = InOnnxruntime(exported.path, start), case.make_step(compile=False), case.make_torch_step()
    metrics = []
    for update in range(case.updates):
        rollout = case.rollout(update)
        answers = runner(rollout, case.lr(update), case.noise(update, rollout))
        expected = train(eager, case, rollout, update)._asdict()
        metrics.append((answers, {name: value for name, value in expected.items() if value is not None}))
        train(loop, case, rollout, update)
    ours = state_of(eager)
    as_tensors = [{name: torch.from_numpy(array) for name, array in state.items()} for state in (start, runner.state)]
    return Trained(case, *as_tensors, {name: ours[name] for name in start}, loop.state(), metrics)


def state_of(step):
    """Parameters and optimizer state of a :class:`TrainStep` under the names of an exported one."""
    named = {**dict(step.loss.named_parameters()), **dict(step.optimizer_state.named_buffers()), "step_count": step.step_count}
    return {name: tensor.detach() for name, tensor in named.items()}


def test_the_cases_have_every_network_with_every_distribution_and_optimizer():
    kinds = ("mlp", "layer_norm", "conv", "recurrent", "shared")
    rules = ("sgd", "rmsprop", "adam")  # of which AdamW is one
    assert {(kind, case.distribution) for case in CASES for kind in case.networks} == set(
        itertools.product(kinds, DISTRIBUTIONS)
    )
    assert {(kind, case.rule.removesuffix("w")) for case in CASES for kind in case.networks} == set(
        itertools.product(kinds, rules)
    )
    assert {(case.distribution, case.rule.removesuffix("w")) for case in CASES} == set(itertools.product(DISTRIBUTIONS, rules))


def assert_same_state(actual, expected, dtype):
    """Parameters to the tolerance; the optimizer's state, which may be small, to ten times that of its largest magnitude."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        optimizers = not name.startswith(("actor_network", "critic_network"))
        magnitude = 10 * tensor.abs().max() if optimizers else tensor.abs().max().clamp_min(1.0)
        error = (actual[name] - tensor).abs().max()
        assert error <= TOLERANCE[dtype] * magnitude, f"{name}: off by {error:.1e}"


def test_updates_end_where_eager_does(trained):
    assert_same_state(trained.in_onnxruntime, trained.eager, trained.case.dtype)


def test_updates_end_where_torch_optim_does(trained):
    expected = {**trained.in_torch_optim, "step_count": torch.tensor(float(trained.case.updates + trained.case.updates_before))}
    assert_same_state(trained.in_onnxruntime, expected, trained.case.dtype)


def test_updates_move_parameters_by_far_more_than_the_tolerance(trained):
    for name in trained.start.keys() & dict(trained.case.make_loss().named_parameters()):
        moved = (trained.in_onnxruntime[name] - trained.start[name]).abs().max()
        assert moved > 100 * TOLERANCE[trained.case.dtype], name


def test_every_update_reports_what_eager_does(trained):
    for answers, expected in trained.metrics:
        # The norm of a gradient is the root of many squares, and the critic's loss may be the sum of many errors.
        assert_same(answers, expected, 10 * TOLERANCE[trained.case.dtype])


def test_adam_with_a_small_epsilon_is_as_exact_as_torch_is(tmp_path):
    """Against float64, from which torch's own float32 is some 2e-7 away after 100 updates of up to 1e-3.

    Adam divides each gradient by its own size: relative rounding stays what it is, and adds up with that of the parameters, at most 3e-8
    an update for those around 0.5. Epsilon matters for gradients of its size alone, and for those that are 0, here behind a ReLU. An
    exporter that drops ``+ 1e-8`` makes 0 / 0 of these, and moves the others by as much as a small gradient is smaller than epsilon.
    """
    case = Case("Categorical", "conv_relu", "linear", "adam", {"eps": 1e-8}, shape=IMAGE)
    exported = export_case(case, tmp_path)
    runner, loop = InOnnxruntime(exported.path, exported.state), case.make_torch_step()
    exact = case.make_torch_step(case.make_loss().double())
    for update in range(UPDATES):
        rollout = case.rollout(update)
        runner(rollout, case.lr(update))
        train(loop, case, rollout, update)
        train(exact, case, Rollout(*map(in_double, rollout)), update)
        if update == 0:
            assert any((square == 0).any() for name, square in runner.state.items() if name.startswith("exp_avg_sq"))
    expected = {name: tensor for name, tensor in exact.state().items() if not name.startswith("exp_avg")}
    allowed = max((loop.state()[name] - tensor).abs().max() for name, tensor in expected.items())
    error = max((torch.from_numpy(runner.state[name]) - tensor).abs().max() for name, tensor in expected.items())
    assert 0 < allowed < 1e-6
    assert error < 3 * allowed


def in_double(entry):
    return entry.double() if entry is not None and entry.is_floating_point() else entry


class NextToNothing(nn.Module):
    """Numbers that are nearly those that change nothing."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + 1e-9, x - 1e-9, x * 0.999995, x / 1.000005, 1e-9 + 0 * x


def test_numbers_next_to_0_and_1_are_not_taken_for_them(tmp_path):
    path = export.export_onnx(NextToNothing(), [torch.rand(3, 2, dtype=torch.float64)], tmp_path / "numbers.onnx", ("T",))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.linspace(0.5, 1.0, 8).reshape(4, 2)
    for answer, expected in zip(session.run(None, {"x": x}), NextToNothing()(torch.from_numpy(x)), strict=True):
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-15)


@pytest.fixture(scope="module")
def small(exports):
    return exports(SMALL)


def test_the_learning_rate_is_chosen_at_every_update(small):
    moved = []
    for lr in (0.0, 0.1, 0.2):
        runner = InOnnxruntime(small.path, small.state)
        runner(SMALL.rollout(0), lr)
        moved.append({name: runner.state[name] - tensor for name, tensor in small.state.items() if name != "step_count"})
    for name, once in moved[1].items():
        assert not moved[0][name].any()
        assert once.any()
        np.testing.assert_allclose(moved[2][name], 2 * once, atol=1e-6, err_msg=name)


def test_an_example_of_equal_sizes_fixes_none_of_them(small, tmp_path):
    size = FLAT[0]  # of steps, environments and features
    path = export_update(SMALL.make_step(), SMALL.make_rollout((size, size), 0), tmp_path / "update.onnx")
    assert onnx.load(path).graph.node == small.model().graph.node


# The graph


def nodes_of(graph):
    """Those in loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def shape_of(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def entries_read(case):
    """What the rollout's part of the inputs is."""
    read = list(Rollout._fields[:6])
    if case.loss.get("value_estimator") == "td0":
        read.remove("done")  # where an episode was cut short, TD(0) goes on
    if case.loss.get("value_estimator") == "vtrace":
        read.append("log_prob")
    if "clip_value" in case.loss:
        read.append("state_value")
    return read + ["mask"] * ("mask" in case.entries)


def learnt(case):
    """Names of parameters and of the optimizer's state, as torch.optim has them after an update."""
    loop = case.make_torch_step()
    train(loop, case, case.rollout(0), 0)
    return loop.state()


def test_inputs_are_the_state_the_learning_rate_and_what_is_read_of_a_rollout(exported):
    case, names = exported.case, [value.name for value in exported.model().graph.input]
    state = learnt(case)
    noise = ["noise"] if case.noise(0, case.example()) is not None else []
    assert set(names[: len(state) + 1]) == {*state, "step_count"}
    assert names[len(state) + 1 :] == ["lr", *entries_read(case), *noise]


def test_outputs_are_the_new_state_and_what_eager_reports(exported):
    case, graph = exported.case, exported.model().graph
    state = [value.name for value in graph.input][: len(learnt(case)) + 1]
    metrics = train(case.make_torch_step(), case, case.rollout(0), 0)._asdict()
    reported = [name for name, value in metrics.items() if value is not None]
    assert [value.name for value in graph.output] == [*(f"new.{name}" for name in state), *reported]


def test_parameters_that_do_not_learn_are_constants(exported):
    own, graph = dict(exported.step.loss.named_parameters()), exported.model().graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name in own.keys() & constants:
        np.testing.assert_array_equal(constants[name], own[name].detach().numpy())
    assert not own.keys() & constants & learnt(exported.case).keys()


def test_every_input_is_read(exported):
    graph = exported.model().graph
    read = {name for node in nodes_of(graph) for name in node.input}
    assert {value.name for value in graph.input} <= read


def test_operators_are_those_of_onnx_alone(exported):
    model = exported.model()
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.domain for node in nodes_of(model.graph)} == {""}
    assert not model.functions


def test_steps_and_environments_are_named_and_nothing_else_varies(exported):
    case, graph = exported.case, exported.model().graph
    axes = ["T", "N"] if case.layout == "TN" else ["N", "T"]
    example = {**case.example()._asdict(), "noise": case.noise(0, case.example())}
    for value in graph.input:
        if value.name in example:
            first = 1 if value.name == "noise" else 0
            fixed = list(example[value.name].shape)
            assert shape_of(value) == [*fixed[:first], *axes, *fixed[first + 2 :]], value.name
        else:
            assert shape_of(value) == list(exported.state.get(value.name, np.zeros(())).shape), value.name
    state = {value.name: shape_of(value) for value in graph.input}
    for value in graph.output:
        assert shape_of(value) == state.get(value.name.removeprefix("new."), []), value.name


def test_the_file_passes_the_checker_and_strict_shape_inference(exported):
    onnx.checker.check_model(exported.path, full_check=True)
    onnx.shape_inference.infer_shapes(exported.model(), check_type=True, strict_mode=True, data_prop=True)


def metadata_of(path):
    """Without the prefix, JSON as what it says."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = {key.removeprefix("a2c_compiled."): text for key, text in session.get_modelmeta().custom_metadata_map.items()}
    plain = ("version", "torch_version", "module")
    return {key: text if key in plain else json.loads(text) for key, text in found.items()}


def test_the_file_says_what_it_is_made_of(exported):
    case, metadata = exported.case, metadata_of(exported.path)
    with_noise = case.noise(0, case.example()) is not None
    assert set(metadata) == {"version", "torch_version", "module", "hyperparameters", "distribution", "shapes"} | (
        {"noise"} if with_noise else set()
    )
    assert (metadata["version"], metadata["torch_version"]) == (a2c_compiled.__version__, torch.__version__)
    assert metadata["module"] == "TrainStepGraph"
    assert metadata["distribution"]["class"] == case.distribution
    assert metadata.get("noise", {}) == ({"noise": "normal"} if with_noise else {})
    hyperparameters = metadata["hyperparameters"]
    assert hyperparameters[""]["optimizer"] == case.rule
    assert hyperparameters[""]["max_grad_norm"] == case.options.get("max_grad_norm", 0.5)
    for name, value in OPTIMIZERS[case.optimizer].items():
        assert hyperparameters[""][name] == (list(value) if isinstance(value, tuple) else value)
    assert hyperparameters["loss.value_estimator"]["gamma"] == 0.99
    assert hyperparameters["loss"].get("critic_coef") == case.loss.get("critic_coef", 1.0)
    assert metadata["shapes"].keys() >= {value.name for value in exported.model().graph.input}
    for value in exported.model().graph.input:
        assert metadata["shapes"][value.name] == shape_of(value)


def test_nothing_in_the_files_says_where_they_were_made(exported):
    folders = [Path(a2c_compiled.__file__).parent.parent, Path.home(), exported.path.parent, *site.getsitepackages()]
    for path in exported.path.parent.iterdir():
        if path.suffix in (".onnx", ".npz"):
            for folder in (*folders, "site-packages", "export_train_step.py"):
                assert os.fsencode(folder) not in path.read_bytes(), path.name


def test_the_step_is_left_as_it_was(exported):
    step = exported.step
    assert_same(dict(step.state_dict()), dict(exported.before), 0)
    assert [module.training for module in step.modules()] == exported.modes
    assert "noise" not in vars(step.loss.distribution)
    assert all(parameter.grad is None for parameter in step.parameters())


def test_files_pass_verification(exported):
    paths = [path for path in exported.path.parent.iterdir() if path.suffix == ".onnx"]
    assert len(paths) == 1 + exported.case.with_policy
    for path in paths:
        report = export.verify(path)
        assert report.passed, str(report)
        assert not report.random
        assert set(report.checks.values()) == {"passed"}


def newest_opset():
    """That both onnx and onnxruntime know."""
    for opset in range(onnx.defs.onnx_opset_version(), 18, -1):
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "identity", [value], [result])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return opset
    raise AssertionError("expected an opset that both know")


@pytest.mark.parametrize("opset", [20, newest_opset()])
def test_newer_opsets_update_the_same(opset, small, tmp_path):
    path = export_update(SMALL.make_step(), SMALL.example(), tmp_path / "update.onnx", opset=opset)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", opset)]
    assert export.verify(path).passed
    runners = [InOnnxruntime(file, small.state) for file in (small.path, path)]
    for runner in runners:
        runner(SMALL.rollout(0), 0.1)
    for name, tensor in runners[0].state.items():
        np.testing.assert_allclose(runners[1].state[name], tensor, rtol=1e-6, err_msg=name)


# What goes with it


def test_there_are_an_update_a_policy_a_state_and_a_runtime(with_policy):
    assert sorted(path.name for path in with_policy.path.parent.iterdir()) == [
        "runtime.py",
        "train_step.onnx",
        "train_step.onnx.cases.npz",
        "train_step.policy.onnx",
        "train_step.policy.onnx.cases.npz",
        "train_step.state.npz",
    ]


def test_the_state_file_has_the_state_and_the_learning_rate_and_nothing_else(with_policy):
    case, step = with_policy.case, with_policy.step
    with np.load(with_policy.path.with_name("train_step.state.npz"), allow_pickle=False) as saved:
        arrays = dict(saved)
    expected = {name: tensor.numpy() for name, tensor in state_of(step).items() if name in {*learnt(case), "step_count"}}
    expected["lr"] = np.asarray(step.lr.item())  # a number of Python, which a file of another precision reads as its own
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert arrays["step_count"] == case.updates_before


def test_the_runtime_is_copied(with_policy):
    copied = with_policy.path.with_name("runtime.py").read_text()
    assert copied == update_files.RUNTIME.read_text()
    assert "import torch" not in copied


@pytest.mark.parametrize("envs", [1, 7])
def test_the_policy_acts_as_eager_does_with_the_parameters_given(with_policy, envs):
    case = with_policy.case
    other = case.make_loss()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    observation = case.make_rollout((1, envs), 1).observation.flatten(0, 1)
    with torch.no_grad():
        params = other.actor_network(observation)
        noise = other.distribution.noise(params)
        action, log_prob = other.distribution.sample_and_log_prob(params, noise)
        expected = {
            "action": action,
            "log_prob": log_prob,
            "state_value": other.critic_network(observation).squeeze(-1),
            "greedy_action": other.distribution.mode(params),
            "greedy_log_prob": other.distribution.log_prob(params, other.distribution.mode(params)),
        }
    session = onnxruntime.InferenceSession(
        str(with_policy.path.with_name("train_step.policy.onnx")), providers=["CPUExecutionProvider"]
    )
    given = {name: parameter.detach().numpy() for name, parameter in other.named_parameters()}
    given |= {"observation": observation.numpy(), "noise": noise.numpy()}
    names = [value.name for value in session.get_inputs()]
    assert set(names) == set(given), "all learn"
    answers = session.run(list(expected), given)
    assert [value.name for value in session.get_outputs()] == list(expected)
    for (name, tensor), answer in zip(expected.items(), answers, strict=True):
        assert answer.dtype == tensor.numpy().dtype
        np.testing.assert_allclose(answer, tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=name, strict=True)


def test_the_policy_says_what_it_is_made_of(with_policy):
    metadata = metadata_of(with_policy.path.with_name("train_step.policy.onnx"))
    assert metadata["module"] == "ActingPolicy"
    assert metadata["noise"] == {"noise": "normal" if with_policy.case.distribution == "TanhNormal" else "gumbel"}
    assert metadata["shapes"]["observation"] == ["N", *with_policy.case.shape]


# Files are written whole or not at all


def older_files(folder):
    """Of an earlier export, by name, with what is in them."""
    names = ("train_step.onnx", "train_step.policy.onnx", "train_step.state.npz", "runtime.py")
    for name in (*names, *(f"{name}.cases.npz" for name in names[:2])):
        (folder / name).write_text(f"older {name}")
    return contents(folder)


def contents(folder):
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("culprit", ["update", "policy", "state", "runtime"])
def test_an_export_that_fails_halfway_leaves_the_older_files(culprit, tmp_path, monkeypatch):
    older = older_files(tmp_path)

    def write(graph, inputs, path, *arguments):
        path.write_text("newer")
        if culprit == {export.TrainStepGraph: "update", export.ActingPolicy: "policy"}[type(graph)]:
            raise OSError("no space left")

    def fail(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(update_files, "export_onnx", write)
    if culprit in ("state", "runtime"):
        module, name = {"state": (np, "savez"), "runtime": (shutil, "copy")}[culprit]
        monkeypatch.setattr(module, name, fail)
    with pytest.raises(OSError, match="no space left"):
        export.export_train_step(SMALL.make_step(), SMALL.example(), tmp_path / "train_step.onnx")
    assert contents(tmp_path) == older


def test_an_update_that_cannot_be_exported_leaves_the_older_files(tmp_path):
    older = older_files(tmp_path)
    with pytest.raises(export.ExportError):
        export.export_train_step(*with_layer(nn.Dropout()), tmp_path / "train_step.onnx")
    assert contents(tmp_path) == older


# Weights that a file cannot hold


@pytest.fixture
def small_files(monkeypatch):
    """Files that hold a few bytes."""
    monkeypatch.setattr(model_file, "LARGEST_FILE", 64)


def make_policy(seed=0):
    torch.manual_seed(seed)
    return export.GreedyPolicy(nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 4)), distributions.Normal(2))


def export_policy(policy, path, **options):
    return export.export_onnx(policy, {"observation": torch.randn(6, 3)}, path, ("N",), **options)


def answers_as(policy, path):
    observation = torch.randn(5, 3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = policy(observation).action.numpy()
    return np.allclose(session.run(["action"], {"observation": observation.numpy()})[0], expected, atol=1e-6)


def weights_beside(path):
    return [file.name for file in path.parent.glob(f"{path.name}.*.data")]


@pytest.mark.usefixtures("small_files")
def test_weights_that_a_file_cannot_hold_are_beside_it(tmp_path):
    policy = make_policy()
    path = export_policy(policy, tmp_path / "policy.onnx")
    (weights,) = weights_beside(path)
    assert weights.removeprefix("policy.onnx.").removesuffix(".data").isalnum()
    assert (tmp_path / weights).stat().st_size >= 4 * (3 * 64 + 64 * 4)
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    assert {tensor.name for tensor in tensors if tensor.external_data} == {"actor_network.0.weight", "actor_network.2.weight"}
    assert answers_as(policy, path)
    report = export.verify(path)
    assert report.passed, str(report)
    assert report.size == path.stat().st_size + (tmp_path / weights).stat().st_size


@pytest.mark.usefixtures("small_files")
def test_other_weights_take_the_place_of_those_beside_a_file(tmp_path):
    bystander = tmp_path / "policy.onnx2.0123456789abcdef.data"
    bystander.write_text("of another file")
    path = export_policy(make_policy(), tmp_path / "policy.onnx")
    before = weights_beside(path)
    other = make_policy(seed=1)
    export_policy(other, path)
    assert len(weights_beside(path)) == 1
    assert weights_beside(path) != before
    assert answers_as(other, path)
    assert bystander.exists()


def test_weights_beside_a_file_go_when_it_holds_its_own(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model_file, "LARGEST_FILE", 64)
        path = export_policy(make_policy(), tmp_path / "policy.onnx")
    other = make_policy(seed=1)
    export_policy(other, path)
    assert weights_beside(path) == []
    assert answers_as(other, path)


@pytest.mark.usefixtures("small_files")
def test_an_export_that_fails_keeps_the_older_file_and_its_weights(tmp_path, monkeypatch):
    policy = make_policy()
    path = export_policy(policy, tmp_path / "policy.onnx")
    before = contents(tmp_path)

    def refuse(*arguments, **options):
        raise onnx.checker.ValidationError("refused")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(onnx.checker.ValidationError):
        export_policy(make_policy(seed=1), path)
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    assert answers_as(policy, path)
    assert len(contents(tmp_path)) == len(before), "nothing is left behind"


@pytest.mark.usefixtures("small_files")
def test_frozen_weights_of_a_training_step_are_beside_its_files(tmp_path):
    path, policy = tmp_path / "train_step.onnx", tmp_path / "train_step.policy.onnx"
    for file in (path, policy):
        file.with_name(f"{file.name}.0123456789abcdef.data").write_text("of an earlier export")
    layer = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)).requires_grad_(False)
    step, rollout = with_layer(layer)
    export.export_train_step(step, rollout, path)
    for file in (path, policy):
        (weights,) = weights_beside(file)
        assert (tmp_path / weights).stat().st_size >= 4 * 2 * 8 * 64
        assert export.verify(file).passed
    assert_updates_as(step, path)


def assert_updates_as(step, path):
    """One update in onnxruntime is that of ``step``, which is trained by it."""
    runner = InOnnxruntime(path, {})
    ours = state_of(step)
    runner.state = {name: ours[name].clone().numpy() for name in runner.inputs if name in ours}
    runner(SMALL.rollout(0), step.lr.item())
    step(SMALL.rollout(0))
    ours = state_of(step)
    for name, array in runner.state.items():
        np.testing.assert_allclose(array, ours[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


# What stands in the way


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class BranchingOnSize(nn.Module):
    def forward(self, x):
        return x if x.shape[0] < 50 else -x


class Looping(nn.Module):
    """A moving average over the steps."""

    def forward(self, x):
        averages = [x[0]]
        for step in x[1:]:
            averages.append((averages[-1] + step) / 2)
        return torch.stack(averages)


class OverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8)

    def forward(self, x):
        return self.lstm(x)[0]


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x.flatten(0, -2)).reshape(x.shape)


class Counting(nn.Module):
    """Writes into a part of what it keeps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x):
        self.seen[0].add_(1)
        return x


class Convolved(nn.Module):
    """Of eight features as two channels of a row."""

    def __init__(self, **options):
        super().__init__()
        self.convolution = nn.Conv1d(2, 2, 3, padding=1, **options)

    def forward(self, x):
        return self.convolution(x.flatten(0, -2).unflatten(-1, (2, 4))).reshape(x.shape)


def with_layer(layer, dtype=torch.float32, distribution=None):
    """A training step with a layer of eight features in the actor, and an example."""
    actor = nn.Sequential(nn.Linear(FLAT[0], 8), layer, nn.Linear(8, 4)).to(dtype)
    critic = nn.Linear(FLAT[0], 1).to(dtype)
    loss = A2CLoss(actor, critic, distribution or distributions.Categorical(4), "td0", entropy_coef=0.0, critic_coef=None)
    return TrainStep(loss, "sgd", compile=False), SMALL._replace(dtype=dtype).example()


LAYER = r"loss\.actor_network\.1"


@pytest.mark.parametrize(
    ("layer", "operation", "message"),
    [
        (Bessel(), "prims.bessel_j0", rf"\(in {LAYER}, Bessel\) has no translation to ONNX. Write it in other operations"),
        (
            nn.Dropout(),
            "aten.bernoulli_.float",
            rf"\(in {LAYER}, Dropout\): draws random numbers .* Call \.eval\(\) on the module",
        ),
        (
            Convolved(groups=2),
            "aten.convolution_backward",
            rf"\(in {LAYER}\.convolution, Conv1d\): expected a plain convolution, with groups=1 .* Change the layer, or freeze it",
        ),
    ],
    ids=["no_translation", "dropout", "groups"],
)
def test_an_operation_that_cannot_be_exported_is_named_with_its_module_and_a_remedy(layer, operation, message, tmp_path):
    with pytest.raises(
        export.ExportError, match=rf"^TrainStepGraph cannot be exported to ONNX: {operation} {message}"
    ) as raised:
        export.export_train_step(*with_layer(layer), tmp_path / "train_step.onnx")
    assert raised.value.operation == operation
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layer", "buffer"),
    [
        (Normalized(), r"norm\.(running_mean|num_batches_tracked)"),
        (Counting(), "seen"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), r"parametrizations\.weight\.0\._u"),
    ],
    ids=["batch_norm", "part_of_a_buffer", "spectral_norm"],
)
def test_a_buffer_that_a_network_writes_is_named_with_a_remedy_and_left_as_it_was(layer, buffer, tmp_path):
    before = copy.deepcopy(layer.state_dict())
    message = rf"^TrainStepGraph cannot be exported.* buffer actor_network\.1\.{buffer}, which a graph cannot update"
    with pytest.raises(export.ExportError, match=rf"{message}.* Call \.eval\(\) .* nn\.LayerNorm and nn\.GroupNorm"):
        export.export_train_step(*with_layer(layer), tmp_path / "train_step.onnx")
    assert_same(dict(layer.state_dict()), dict(before), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            Branching(),
            rf'branches on values of tensors \(in {LAYER}, Branching, "return x if .*", test_export_train_step\.py:\d+\)\. .* torch\.where',
        ),
        (BranchingOnSize(), r"operations depend on the sizes \(.*T.*\).* does not read a size"),
        (
            Looping(),
            rf"only works for T = 5, the example's size \(in {LAYER}, Looping\); a loop over .* part of the observation, .* nn\.GRUCell",
        ),
        (
            OverTime(),
            rf"\(in {LAYER}\.lstm, LSTM, .* a recurrent network's state part of the observation, and use nn\.GRUCell",
        ),
    ],
    ids=["branch", "branch_on_size", "loop", "lstm"],
)
def test_code_that_cannot_be_exported_is_found_and_a_remedy_given(layer, message, tmp_path):
    with pytest.raises(export.ExportError, match=rf"^TrainStepGraph cannot be exported to ONNX: .*{message}"):
        export.export_train_step(*with_layer(layer), tmp_path / "train_step.onnx")
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_onnxruntime_does_not_have_is_named_with_its_modules(tmp_path):
    with pytest.raises(export.ExportError, match=rf"Conv \(in {LAYER}\.convolution, Conv1d\): .* export it in float32"):
        export.export_train_step(*with_layer(Convolved(), torch.float64), tmp_path / "train_step.onnx")
    assert not list(tmp_path.iterdir())


def test_a_distribution_that_draws_its_own_noise_is_named(tmp_path):
    distribution = distributions.TorchDistribution(
        lambda params: torch.distributions.Categorical(logits=params, validate_args=False)
    )
    with pytest.raises(export.ExportError, match=r"TorchDistribution draws its own .* Use one of a2c_compiled\.distributions"):
        export.export_train_step(*with_layer(nn.Identity(), distribution=distribution), tmp_path / "train_step.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [Normalized(), nn.Dropout()], ids=["batch_norm", "dropout"])
def test_what_is_in_evaluation_mode_stands_in_no_ones_way(layer, tmp_path):
    step, rollout = with_layer(layer.eval())
    path = export_update(step, rollout, tmp_path / "update.onnx")
    assert export.verify(path).passed


# Arguments

HALF = SMALL._replace(dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": SMALL.make_loss()}, TypeError, "step: expected a TrainStep, got A2CLoss"),
        ({"example_rollout": tuple(SMALL.example())}, TypeError, "example_rollout: expected a Rollout, got tuple"),
        ({"path": "train_step.pt"}, ValueError, r"path: expected a name ending in \.onnx, got .*train_step\.pt"),
        ({"path": "train_step"}, ValueError, r"path: expected a name ending in \.onnx, got .*train_step"),
        (
            {"example_rollout": SMALL.make_rollout((1, 6), 0)},
            ValueError,
            r"example_inputs: expected dimension 0 \(T\) of observation to be 2 or more, got 1",
        ),
        (
            {"example_rollout": SMALL.make_rollout((5, 1), 0)},
            ValueError,
            r"example_inputs: expected dimension 1 \(N\) of observation to be 2 or more, got 1",
        ),
        (
            {"step": SMALL._replace(loss={"value_estimator": "vtrace"}).make_step()},
            ValueError,
            "rollout: expected a log_prob, which the value estimator needs, got None",
        ),
        ({"opset": 17}, ValueError, r"opset: expected 18 to \d+, the newest that onnx knows here, got 17"),
        ({"opset": 1000}, ValueError, r"opset: expected 18 to \d+, the newest that onnx knows here, got 1000"),
        (
            {"example_rollout": SMALL.example()._replace(done=SMALL.example().done.float())},
            TypeError,
            r"done: expected dtype torch\.bool, got torch\.float32",
        ),
        (
            {"step": HALF.make_step(), "example_rollout": HALF.example()},
            ValueError,
            r"step: expected parameters of float32 or float64, got torch\.bfloat16 for actor_network\.network\.weight",
        ),
    ],
    ids=[
        "step",
        "rollout",
        "pt",
        "no_ending",
        "one_step",
        "one_environment",
        "log_prob",
        "opset",
        "newer_opset",
        "flag",
        "bfloat16",
    ],
)
def test_an_unfit_argument_is_named_and_nothing_is_written(change, error, message, tmp_path):
    arguments = {"step": SMALL.make_step(), "example_rollout": SMALL.example(), "path": "train_step.onnx", **change}
    arguments["path"] = tmp_path / "new" / arguments["path"]
    with pytest.raises(error, match=f"^{message}"):
        export.export_train_step(**arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
