"""The exported training step: its updates in stock onnxruntime equal those of eager mode and of torch.optim."""

import copy
import itertools
import json
import os
import site
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import grouped
from loss_cases import DISTRIBUTIONS, assert_same
from torch import nn
from torch_step import OPTIMIZERS
from train_step_cases import (
    ATARI,
    EXPORTED,
    FLAT,
    SMALL,
    TRACED,
    Case,
    InOnnxruntime,
    InTorch,
    assert_trained_the_same,
    export_update,
    state_of,
    train,
    train_all,
)

import a2c_compiled
from a2c_compiled import export
from a2c_compiled.export import update_files
from a2c_compiled.export.checking import reference_cases
from a2c_compiled.export.tracing import gradients
from a2c_compiled.update import Rollout, TrainStep

pytestmark = pytest.mark.slow


class Exported(NamedTuple):
    """An exported case: its file, its training step, and the state and the training modes of that step before the export."""

    case: Case
    path: Path
    step: TrainStep
    before: Dict[str, Any]
    modes: List[bool]

    @property
    def state(self):
        """The inputs that the graph has for the state at the time of the export."""
        named = {**dict(self.step.loss.named_parameters()), **dict(self.step.optimizer_state.named_buffers())}
        named["step_count"] = self.step.step_count
        read = self.model().graph.input
        return {value.name: named[value.name].detach().numpy().copy() for value in read if value.name in named}

    def model(self):
        return onnx.load(self.path)


def export_case(case, folder, **options):
    """Exports a case, with the critic in evaluation mode and the actor not."""
    step = case.make_step()
    step.loss.critic_network.eval()
    before, modes = copy.deepcopy(step.state_dict()), [module.training for module in step.modules()]
    path = folder / "train_step.onnx"
    if case.with_policy:
        assert export.export_train_step(step, case.example(), path, **options) == path
    else:
        export_update(step, case.example(), path, **options)
    return Exported(case, path, step, before, modes)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports a case on its first use."""
    exported: Dict[str, Exported] = {}

    def exports(case):
        if str(case) not in exported:
            with pytest.MonkeyPatch.context() as patch:
                if case.shape == ATARI:  # reference outputs for as many frames as other cases have steps would be slow
                    patch.setattr(reference_cases, "_SIZES", ((1, 1), (2, 3)))
                    patch.setattr(reference_cases, "_MAX_BYTES", 0)
                exported[str(case)] = export_case(case, tmp_path_factory.mktemp("exported"))
        return exported[str(case)]

    return exports


@pytest.fixture(scope="module", params=grouped("train-step", EXPORTED))
def exported(request, exports):
    return exports(request.param)


@pytest.fixture(scope="module", params=grouped("train-step", (case for case in EXPORTED if case.with_policy)))
def with_policy(request, exports):
    return exports(request.param)


# Updates


def test_the_cases_have_every_network_with_every_distribution_and_optimizer():
    kinds, distributions = ("mlp", "layer_norm", "conv", "recurrent", "shared"), tuple(DISTRIBUTIONS)
    rules = ("sgd", "rmsprop", "adam")  # adamw counts as adam
    found = set()
    for case in (*EXPORTED, *TRACED):
        rule = case.rule.removesuffix("w")
        found |= {(case.distribution, rule), *itertools.product(case.networks, (case.distribution, rule))}
    for one, other in ((kinds, distributions), (kinds, rules), (distributions, rules)):
        assert found >= set(itertools.product(one, other))
    assert {case.distribution for case in EXPORTED} == set(distributions)
    assert {kind for case in EXPORTED for kind in case.networks} == {*kinds, "linear"}
    assert {case.rule for case in EXPORTED if case.updates == 100} == {"sgd", "rmsprop", "adam", "adamw"}
    assert {case.optimizer for case in (*EXPORTED, *TRACED)} == set(OPTIMIZERS)


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_updates_with_gradients_written_out_end_where_eager_mode_does(case, monkeypatch):
    monkeypatch.setattr(gradients, "_OTHER_SIZES", ())  # the exported cases compare the operations at several sizes
    assert_trained_the_same(train_all(case, InTorch(case.make_step(), case.example())))


def test_updates_in_onnxruntime_end_where_eager_mode_and_torch_optim_do(exported):
    assert_trained_the_same(train_all(exported.case, InOnnxruntime(exported.path, exported.state)))


def test_adam_with_a_small_epsilon_is_as_exact_as_torch_is(tmp_path):
    """Compares with float64, from which torch's own float32 differs by some 2e-7 after 100 updates of up to 1e-3.

    Adam divides each gradient by its own size, so relative rounding errors stay the same. Those of the parameters are added, at most 3e-8
    an update for parameters near 0.5. Epsilon only matters for gradients of its size, and for those that are 0, here behind a ReLU. An
    exporter that drops ``+ 1e-8`` computes 0 / 0 for these.
    """
    case = Case("Categorical", "sparse", "linear", "adam", {"eps": 1e-8}, SMALL.loss)
    exported = export_case(case, tmp_path)
    runner, loop = InOnnxruntime(exported.path, exported.state), case.make_torch_step()
    exact = case.make_torch_step(case.make_loss().double())
    for update in range(case.updates):
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


class NearlyNeutral(nn.Module):
    """Adds nearly 0 and multiplies by nearly 1."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + 1e-9, x - 1e-9, x * 0.999995, x / 1.000005, 1e-9 + 0 * x


def test_numbers_close_to_0_and_1_are_not_folded_as_0_and_1(tmp_path):
    path = export.export_onnx(NearlyNeutral(), [torch.rand(3, 2, dtype=torch.float64)], tmp_path / "numbers.onnx", ("T",))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.linspace(0.5, 1.0, 8).reshape(4, 2)
    for output, expected in zip(session.run(None, {"x": x}), NearlyNeutral()(torch.from_numpy(x)), strict=True):
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-15)


of_small = pytest.mark.xdist_group("train-step-small")


@pytest.fixture(scope="module")
def small(exports):
    return exports(SMALL)


@of_small
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


@of_small
def test_an_example_with_equal_sizes_leaves_every_size_free(small, tmp_path):
    size = FLAT[0]  # of steps, environments and features
    path = export_update(SMALL.make_step(), SMALL.make_rollout((size, size), 0), tmp_path / "update.onnx")
    assert onnx.load(path).graph.node == small.model().graph.node


# The file


def nodes_of(graph):
    """All nodes, also those in loops."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def shape_of(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def entries_read(case):
    """The rollout entries that are inputs of the graph."""
    read = list(Rollout._fields[:6])
    if case.loss.get("value_estimator") == "td0":
        read.remove("done")  # TD(0) continues where an episode was cut short
    if case.loss.get("value_estimator") == "vtrace":
        read.append("log_prob")
    if "clip_value" in case.loss:
        read.append("state_value")
    return read + ["mask"] * ("mask" in case.entries)


def learnt(case):
    """The parameters that learn and their optimizer state, as torch.optim has them after an update."""
    loop = case.make_torch_step()
    train(loop, case, case.rollout(0), 0)
    return loop.state()


def test_inputs_are_the_state_the_learning_rate_and_the_rollout_entries_that_are_read(exported):
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


def test_only_the_numbers_of_steps_and_environments_may_vary(exported):
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
    """Metadata of a file without the prefix, with JSON decoded."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entries = {key.removeprefix("a2c_compiled."): text for key, text in session.get_modelmeta().custom_metadata_map.items()}
    plain = ("version", "torch_version", "module")
    return {key: text if key in plain else json.loads(text) for key, text in entries.items()}


def test_metadata_describes_the_training_step(exported):
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


def test_the_files_hold_no_path_of_the_exporting_machine(exported):
    folders = [Path(a2c_compiled.__file__).parent.parent, Path.home(), exported.path.parent, *site.getsitepackages()]
    for path in exported.path.parent.iterdir():
        if path.suffix in (".onnx", ".npz"):
            for folder in (*folders, "site-packages", "train_step_cases.py"):
                assert os.fsencode(folder) not in path.read_bytes(), path.name


def test_export_does_not_change_the_training_step(exported):
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
    """The newest opset that both onnx and onnxruntime support."""
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
    raise AssertionError("expected an opset that both support")


@of_small
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


# The files that export_train_step writes beside the graph


def test_the_files_are_an_update_a_policy_a_state_a_runtime_and_reference_outputs(with_policy):
    assert sorted(path.name for path in with_policy.path.parent.iterdir()) == [
        "runtime.py",
        "train_step.onnx",
        "train_step.onnx.cases.npz",
        "train_step.onnx.sha256",
        "train_step.policy.onnx",
        "train_step.policy.onnx.cases.npz",
        "train_step.policy.onnx.sha256",
        "train_step.state.npz",
    ]


def test_the_state_file_has_the_state_and_the_learning_rate_and_nothing_else(with_policy):
    case, step = with_policy.case, with_policy.step
    with np.load(with_policy.path.with_name("train_step.state.npz"), allow_pickle=False) as saved:
        arrays = dict(saved)
    expected = {name: tensor.numpy() for name, tensor in state_of(step).items() if name in {*learnt(case), "step_count"}}
    expected["lr"] = np.asarray(step.lr.item())  # float64, so that it can be read in any precision
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert arrays["step_count"] == case.updates_before


def test_the_runtime_is_copied(with_policy):
    copied = with_policy.path.with_name("runtime.py").read_text()
    assert copied == update_files.RUNTIME.read_text()
    assert "import torch" not in copied


@pytest.mark.parametrize("envs", [1, 7])
def test_the_policy_acts_as_in_eager_mode_with_other_parameters(with_policy, envs):
    case = with_policy.case
    other = case.make_loss()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    observation = case.make_rollout((1, envs), 1).observation.flatten(0, 1)
    with torch.no_grad():
        params = other.actor_network(observation)
        noise = other.distribution.noise(params)
        action = other.distribution.sample(params, noise)
        log_prob = other.distribution.log_prob(params, action)
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
    inputs = {name: parameter.detach().numpy() for name, parameter in other.named_parameters()}
    inputs |= {"observation": observation.numpy(), "noise": noise.numpy()}
    names = [value.name for value in session.get_inputs()]
    assert set(names) == set(inputs), "every parameter learns"
    outputs = session.run(list(expected), inputs)
    assert [value.name for value in session.get_outputs()] == list(expected)
    for (name, tensor), output in zip(expected.items(), outputs, strict=True):
        assert output.dtype == tensor.numpy().dtype
        np.testing.assert_allclose(output, tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=name, strict=True)


def test_metadata_describes_the_policy(with_policy):
    metadata = metadata_of(with_policy.path.with_name("train_step.policy.onnx"))
    assert metadata["module"] == "ActingPolicy"
    assert metadata["noise"] == {"noise": "normal" if with_policy.case.distribution == "TanhNormal" else "gumbel"}
    assert metadata["shapes"]["observation"] == ["N", *with_policy.case.shape]
