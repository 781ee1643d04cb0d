"""Observations of several inputs, as tuples and as mappings: exported policies, losses and training steps, and the runtime."""

import copy
import re

import numpy as np
import onnx
import pytest
import torch
from loss_cases import CHOICES, FEATURES, TupleNetwork, make_loss, make_loss_steps, of
from torch import nn

pytest.importorskip("onnxruntime")
from a2c_compiled import TrainStep, distributions, export
from a2c_compiled.export.on_device.runtime import Learner, Policy
from a2c_compiled.export.tracing.call import Call
from a2c_compiled.update import Rollout

SECOND = 2  # features of the second input


class OfMapping(nn.Module):
    """A network over a mapping with a tuple in it. It does not read the second entry of the tuple."""

    def __init__(self):
        super().__init__()
        self.network = TupleNetwork(CHOICES)

    def forward(self, observation):
        return self.network((observation["vectors"][0], observation["goal"]))


def make_observation(size=5, seed=0):
    generator = np.random.default_rng(seed)
    return tuple(generator.standard_normal((size, features), dtype=np.float32) for features in (FEATURES, SECOND))


def as_mapping(observation):
    """In another order than the export's."""
    return {"goal": observation[1], "vectors": (observation[0], np.zeros_like(observation[1]))}


def as_tensors(observation):
    return tuple(map(torch.from_numpy, observation))


def make_rollout(steps=4, envs=5, seed=0):
    """A rollout as arrays, whose observations are tuples."""
    of_steps = make_loss_steps((steps, envs), column=False, seed=seed)
    second = np.random.default_rng(seed).standard_normal((2, steps, envs, SECOND), dtype=np.float32)
    names = ("reward", "next_observation", "done", "terminated")
    arrays = {name: tensor.numpy() for name, tensor in of(of_steps, *names).items()}
    for name, other in zip(("observation", "next_observation"), second, strict=True):
        arrays[name] = arrays[name], other
    return arrays


def in_torch(rollout):
    return Rollout(**{name: as_tensors(x) if isinstance(x, tuple) else torch.from_numpy(x) for name, x in rollout.items()})


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    torch.manual_seed(0)
    step = TrainStep(make_loss(networks=[TupleNetwork(CHOICES), TupleNetwork(1)]), "rmsprop", 1e-2, compile=False)
    path = export.export_train_step(step, in_torch(make_rollout()), tmp_path_factory.mktemp("step") / "step.onnx")
    return path, step


@pytest.fixture(scope="module")
def policies(step, tmp_path_factory):
    """A greedy policy over tuples, and one over mappings with the same parameters."""
    folder, actor = tmp_path_factory.mktemp("policies"), step[1].loss.actor_network
    of_mapping = OfMapping()
    of_mapping.network = actor
    of_tuple = export.GreedyPolicy(actor, distributions.Categorical(CHOICES))
    observation = as_tensors(make_observation())
    paths = [folder / "tuple.onnx", folder / "mapping.onnx"]
    export.export_onnx(of_tuple, {"observation": observation}, paths[0], ("N",))
    mapping = {"vectors": (observation[0], observation[1]), "goal": observation[1]}
    export.export_onnx(
        export.GreedyPolicy(of_mapping, distributions.Categorical(CHOICES)), {"observation": mapping}, paths[1], ("N",)
    )
    return paths, of_tuple


def inputs_of(path):
    return [value.name for value in onnx.load(path).graph.input]


# Policies


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".pt2"])
def test_a_policy_over_tuples_equals_eager_in_every_format(ending, tmp_path):
    write = {".onnx": export.export_onnx, ".pt": export.export_torchscript, ".pt2": export.export_pt2}[ending]
    loss = make_loss(networks=[TupleNetwork(CHOICES), TupleNetwork(1)])
    graph = export.graphs_of(loss, in_torch(make_rollout()))["policy_sampled"]
    path = write(graph.module, graph.example_inputs, tmp_path / f"policy{ending}", graph.dynamic_axes)
    report = export.verify(path)
    assert report.passed, str(report)
    with np.load(f"{path}.cases.npz") as cases:
        names = {key.split("/")[2] for key in cases.files if "/inputs/" in key}
    assert names == {"observation.0", "observation.1", "noise"}


@pytest.mark.slow
@pytest.mark.xdist_group("several_inputs")
@pytest.mark.parametrize("kind", ["tuple", "mapping"])
def test_the_runtime_takes_a_tuple_or_a_mapping_and_acts_as_eager(kind, policies):
    paths, eager = policies
    policy = Policy.load(paths[kind == "mapping"])
    for size in (5, 1, 7):
        observation = make_observation(size, seed=size)
        passed = as_mapping(observation) if kind == "mapping" else observation
        expected = eager(as_tensors(observation)).action
        np.testing.assert_array_equal(policy.act(passed), expected)
    single = tuple(part[0] for part in observation)
    assert policy.act(as_mapping(single) if kind == "mapping" else single) == expected[0]
    assert len(set(expected.tolist())) > 1, "equal actions would test nothing"


@pytest.mark.slow
@pytest.mark.xdist_group("several_inputs")
def test_an_entry_that_is_not_read_is_no_input_but_is_passed(policies):
    (_, path), _ = policies
    assert inputs_of(path) == ["observation.vectors.0", "observation.goal"]
    first, second = make_observation()
    with pytest.raises(ValueError, match=re.escape("observation.vectors: expected a tuple of 2 arrays, got one of 1")):
        Policy.load(path).act({"vectors": (first,), "goal": second})


FIRST, OTHER = make_observation()


@pytest.mark.slow
@pytest.mark.xdist_group("several_inputs")
@pytest.mark.parametrize(
    ("kind", "observation", "error", "message"),
    [
        ("tuple", FIRST, TypeError, "observation: expected a tuple of 2 arrays, got ndarray"),
        ("tuple", {"0": FIRST, "1": OTHER}, TypeError, "observation: expected a tuple of 2 arrays, got dict"),
        ("tuple", (FIRST,), ValueError, "observation: expected a tuple of 2 arrays, got one of 1"),
        ("tuple", (FIRST, OTHER, OTHER), ValueError, "observation: expected a tuple of 2 arrays, got one of 3"),
        ("tuple", (FIRST, OTHER[:2]), ValueError, "observation.1: expected float32 [5, 2], got shape [2, 2]"),
        ("tuple", (FIRST[0], OTHER), ValueError, "observation.0: expected float32 [N, 3], got shape [3]"),
        ("tuple", (FIRST, FIRST), ValueError, "observation.1: expected float32 [5, 2], got shape [5, 3]"),
        ("tuple", (FIRST, OTHER * 1j), TypeError, "observation.1: expected float32 or a dtype that converts to it"),
        ("mapping", (FIRST, OTHER), TypeError, "observation: expected a mapping of vectors, goal to arrays, got tuple"),
        ("mapping", {"goal": OTHER}, ValueError, "observation: expected vectors, goal; missing: ['vectors'], unknown: []"),
        (
            "mapping",
            {**as_mapping((FIRST, OTHER)), "map": OTHER},
            ValueError,
            "observation: expected vectors, goal; missing: [], unknown: ['map']",
        ),
        ("mapping", as_mapping((FIRST, FIRST)), ValueError, "observation.goal: expected float32 [5, 2], got shape [5, 3]"),
    ],
)
def test_a_wrong_observation_is_an_error_that_names_the_entry(kind, observation, error, message, policies):
    with pytest.raises(error, match=re.escape(message)):
        Policy.load(policies[0][kind == "mapping"]).act(observation)


@pytest.mark.slow
def test_inputs_may_have_names_of_their_own(tmp_path):
    policy = export.GreedyPolicy(TupleNetwork(CHOICES), distributions.Categorical(CHOICES))
    observation = make_observation()
    inputs = {"observation": as_tensors(observation)}
    path = export.export_onnx(policy, inputs, tmp_path / "p.onnx", ("N",), input_names=["obs_0", "obs_1"])
    assert inputs_of(path) == ["obs_0", "obs_1"]
    np.testing.assert_array_equal(Policy.load(path).act(observation), policy(as_tensors(observation)).action)


@pytest.mark.parametrize(
    ("observation", "error", "message"),
    [
        ((), ValueError, "example_inputs: expected at least one tensor for observation, got an empty tuple"),
        ({"a.b": torch.zeros(1)}, ValueError, "example_inputs: expected identifiers as keys of observation, got 'a.b'"),
        ({"0": torch.zeros(1)}, ValueError, "example_inputs: expected identifiers as keys of observation, got '0'"),
        (
            {"a": {"b": torch.zeros(1)}, "a__b": torch.zeros(1)},
            ValueError,
            "got 'observation.a.b' and 'observation.a__b', which are both observation__a__b",
        ),
        ((torch.zeros(1), None), TypeError, "example_inputs: expected a torch.Tensor for observation.1, got None"),
        ([torch.zeros(1)], TypeError, "example_inputs: expected a torch.Tensor for observation, got list"),
        (
            {"a": (torch.zeros(2), torch.zeros(3))},
            ValueError,
            "example_inputs: expected 2 for dimension 0 (N) of observation.a.1, got 3",
        ),
    ],
)
def test_wrong_examples_are_errors_that_name_the_entry(observation, error, message):
    policy = export.GreedyPolicy(TupleNetwork(CHOICES), distributions.Categorical(CHOICES))
    with pytest.raises(error, match=re.escape(message)):
        Call(policy, {"observation": observation}, ("N",))


def test_dynamic_axes_may_name_an_argument_or_one_of_its_entries():
    policy = export.GreedyPolicy(TupleNetwork(CHOICES), distributions.Categorical(CHOICES))
    inputs = {"observation": as_tensors(make_observation())}
    both, one = ("N", None), ("N",)
    assert Call(policy, inputs, {"observation": both, "observation.1": one}).axes == {
        "observation.0": ["N", None],
        "observation.1": ["N"],
    }
    with pytest.raises(ValueError, match=re.escape("dynamic_axes: expected names among ['observation', 'observation.0'")):
        Call(policy, inputs, {"observation.2": one})


# Losses and training steps


def tuple_networks(shared="nothing"):
    """An actor and a critic over tuples. ``shared``: "trunk", a first layer that is computed once; "body", a part of both networks."""
    if shared == "nothing":
        return [TupleNetwork(CHOICES), TupleNetwork(1)]
    body = TupleNetwork(8)
    if shared == "trunk":
        return [nn.Sequential(body, nn.Linear(8, outputs)) for outputs in (CHOICES, 1)]
    return [nn.Sequential(nn.Sequential(body, nn.Tanh()), nn.Linear(8, outputs)) for outputs in (CHOICES, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".pt2"])
def test_a_loss_over_tuples_equals_eager(ending, tmp_path):
    loss = make_loss(networks=tuple_networks())
    graphs = export.graphs_of(loss, in_torch(make_rollout()))
    write = {".onnx": export.export_onnx, ".pt": export.export_torchscript, ".pt2": export.export_pt2}[ending]
    path = write(loss, graphs["loss"].example_inputs, tmp_path / f"loss{ending}", graphs["loss"].dynamic_axes)
    report = export.verify(path)
    assert report.passed, str(report)


def scripted_loss(loss, folder):
    inputs = export.graphs_of(loss, in_torch(make_rollout()))["loss"].example_inputs
    return torch.jit.load(export.export_torchscript(loss, inputs, folder / "loss.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["nothing", "trunk", "body"])
@pytest.mark.parametrize("separate_losses", [False, True])
def test_a_torchscript_file_of_a_loss_over_tuples_has_the_gradients_of_eager(shared, separate_losses, tmp_path):
    torch.manual_seed(0)
    loss = make_loss(networks=tuple_networks(shared), separate_losses=separate_losses)
    file = scripted_loss(loss, tmp_path)
    rollout = in_torch(make_rollout(40, 3, seed=1))  # other sizes than the example's
    entries = {name: entry for name, entry in rollout._asdict().items() if entry is not None}
    flat = {
        f"{name}__{i}" if isinstance(entry, tuple) else name: part
        for name, entry in entries.items()
        for i, part in enumerate(entry if isinstance(entry, tuple) else (entry,))
    }
    ours, theirs = file(**flat), loss(**entries)
    for losses in (ours, theirs._asdict()):
        sum(losses[name] for name in ("loss_objective", "loss_critic", "loss_entropy")).backward()
    expected = dict(loss.named_parameters())
    for name, parameter in file.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_torchscript_names_a_function_in_python_that_a_trace_cannot_hold(tmp_path):
    class Network(TupleNetwork):
        def forward(self, observation):
            return Doubled.apply(super().forward(observation))

    loss = make_loss(networks=[Network(CHOICES), TupleNetwork(1)])
    with pytest.raises(export.ExportError, match=r"A2CLoss cannot be exported to TorchScript: .* a trace cannot hold Doubled"):
        scripted_loss(loss, tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("several_inputs")
def test_the_files_of_a_training_step_over_tuples_pass_verification(step):
    path, _ = step
    for file in (path, path.with_suffix(".policy.onnx")):
        report = export.verify(file)
        assert report.passed, str(report)
    assert [name for name in inputs_of(path) if "observation" in name] == [
        f"{entry}.{i}" for entry in ("observation", "next_observation") for i in range(2)
    ]


@pytest.mark.slow
@pytest.mark.xdist_group("several_inputs")
def test_a_learner_trains_on_tuples_as_eager_does_and_acts_with_the_new_parameters(step):
    path, original = step
    learner, eager = Learner.load(path), copy.deepcopy(original)
    assert learner.rollout_entries == ("observation", "action", "reward", "next_observation", "done", "terminated")
    for seed, sizes in enumerate(((4, 5), (1, 1), (6, 2))):
        rollout = make_rollout(*sizes, seed=seed)
        metrics, expected = learner.step(rollout), eager(in_torch(rollout))
        assert metrics["grad_norm"] == pytest.approx(float(expected.grad_norm), rel=1e-5)
    for name, parameter in eager.loss.named_parameters():
        np.testing.assert_allclose(learner.parameters[name], parameter.detach(), rtol=1e-5, atol=1e-5, err_msg=name)
    observation = make_observation()
    params = eager.loss.actor_network(as_tensors(observation))
    np.testing.assert_array_equal(learner.act(observation, greedy=True).action, params.argmax(-1))


@pytest.mark.slow
@pytest.mark.xdist_group("several_inputs")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[0], TypeError, "rollout['observation']: expected a tuple of 2 arrays, got ndarray"),
        (lambda x: x[:1], ValueError, "rollout['observation']: expected a tuple of 2 arrays, got one of 1"),
        (lambda x: (x[0], x[1][:1]), ValueError, "rollout['observation.1']: expected float32 [4, 5, 2], got shape [1, 5, 2]"),
    ],
)
def test_a_wrong_rollout_is_an_error_that_names_the_entry(change, error, message, step):
    rollout = make_rollout()
    rollout["observation"] = change(rollout["observation"])
    with pytest.raises(error, match=re.escape(message)):
        Learner.load(step[0]).step(rollout)
