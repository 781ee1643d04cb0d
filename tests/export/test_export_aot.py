"""Programs of torch.export (``.pt2``) and packages of AOTInductor (``.aot.pt2``).

They hold the scan as a loop of torch's own operations, and need nothing but torch to run.
"""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from cases import VIEWS, run_without_the_library, weights
from export_cases import (
    ENVS,
    ESTIMATOR_CASES,
    STEPS,
    EstimatorCase,
    assert_same_outputs,
    export_as,
    gae_inputs,
    grouped,
    load_pt2,
    loss_case,
    loss_inputs,
    named,
    scan_arguments,
)
from loss_cases import gradients, losses_of, make_loss, make_rollout
from tolerances import assert_close
from torch import nn

from a2c_compiled import distributions, estimators, export
from a2c_compiled.export.formats.aot import load_aot
from a2c_compiled.ops import linear_scan
from a2c_compiled.update import Rollout, TrainStep, cpu_fusion_pass

NAN = float("nan")

pytestmark = pytest.mark.slow

BOTH = (".pt2", ".aot.pt2")
# Steps and environments: the smallest, odd sizes, powers of two and their neighbours, a long rollout; and empty ones.
SHAPES = ((1, 1), (1, 5), (2, 3), (7, 1), (13, 17), (31, 2), (32, 2), (33, 2), (3000, 2))
EMPTY = ((0, 3), (5, 0), (0, 0))


# The scan in a program


class BothScans(nn.Module):
    def forward(self, x: torch.Tensor, decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_scan(x, decay, -2), linear_scan(x, decay, -2, False)


@pytest.mark.parametrize("axes", [("T", "N"), (None, "N"), ("T",), ()], ids=["both", "steps_fixed", "rows_fixed", "fixed"])
def test_a_program_holds_both_scans_as_operations_of_torch(axes, tmp_path):
    arguments = dict(zip(("x", "decay"), scan_arguments((6, 4)), strict=True))
    path = export.export_pt2(BothScans(), arguments, tmp_path / "scans.pt2", dict.fromkeys(arguments, axes))
    program = torch.export.load(path)
    called = {str(node.target) for node in program.graph_module.graph.nodes if node.op == "call_function"}
    assert "while_loop" in called
    assert not any("a2c_compiled" in name for name in called)
    run = program.module()
    for steps, rows in SHAPES + EMPTY:
        shape = (steps if "T" in axes else 6, rows if "N" in axes else 4)
        x, decay = scan_arguments(shape)
        reverse, transposed = run(x=x, decay=decay).values()
        assert_close(reverse, oracle.linear_scan(x, decay, -2, True))
        assert_close(transposed, oracle.linear_scan(x, decay, -2, False))


class OneScan(nn.Module):
    def __init__(self, dim, reverse):
        super().__init__()
        self.dim, self.reverse = dim, reverse

    def forward(self, x: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        return linear_scan(x, decay, self.dim, self.reverse)


def test_one_process_exports_scans_of_different_directions_and_dimensions(tmp_path):
    # If Dynamo traced the loop, it would turn what differs from the first scan into an input, and torch.export would fail.
    arguments = scan_arguments((6, 4))
    for i, (dim, reverse) in enumerate([(-2, True), (-1, True), (-1, False)]):
        path = export.export_pt2(OneScan(dim, reverse), arguments, tmp_path / f"{i}.pt2")
        x, decay = scan_arguments((9, 5))
        assert_close(load_pt2(path)({"x": x, "decay": decay})["output"], oracle.linear_scan(x, decay, dim, reverse))


# Estimators as programs


PROGRAM_CASES = (
    *(case for case in ESTIMATOR_CASES if str(case) != "GAE-float32-TN"),  # gae_files has that one
    EstimatorCase(estimators.GAE, torch.float16, "TN"),
    EstimatorCase(estimators.GAE, torch.float32, "NT", {"average_gae": True}),
)


@pytest.fixture(scope="module", params=grouped("program", PROGRAM_CASES))
def program(request, tmp_path_factory):
    return request.param.export(tmp_path_factory.mktemp("program"), [".pt2"])


@pytest.mark.parametrize(("steps", "envs"), SHAPES)
def test_a_program_runs_at_any_size(program, steps, envs):
    if getattr(program.module, "average_gae", False) and steps * envs == 1:
        return  # one number has no standard deviation
    program.assert_equals_eager(program.make_inputs(steps, envs, "some"), roundings=2)


@pytest.mark.parametrize("ends", ["none", "all_done", "all_terminated"])
def test_a_program_equals_eager_however_episodes_end(program, ends):
    program.assert_equals_eager(program.make_inputs(40, 5, ends), roundings=2)


@pytest.mark.parametrize(("steps", "envs"), EMPTY)
def test_a_program_returns_empty_results_for_empty_data(program, steps, envs):
    inputs = program.make_inputs(steps, envs, "some")
    outputs = program.outputs(inputs)[".pt2"]
    assert {name: output.shape for name, output in outputs.items()} == dict.fromkeys(
        ("advantage", "value_target"), inputs["reward"].shape
    )


@pytest.mark.parametrize("view", VIEWS)
def test_a_program_runs_on_any_strides(program, view):
    layout = program.make_inputs(2, 3, "some")["reward"].shape
    made = program.make_inputs(12, 10, "some")
    whole = {name: tensor.reshape(12, 10) for name, tensor in made.items()}
    inputs = {name: view(tensor).reshape(*view(tensor).shape, *layout[2:]) for name, tensor in whole.items()}
    assert not all(tensor.is_contiguous() for tensor in inputs.values())
    program.assert_equals_eager(inputs, roundings=2)


def test_a_program_ignores_nan_after_the_end_of_an_episode(program):
    if not getattr(program.module, "average_gae", False):  # that one standardises over all steps
        program.assert_ignores_nan_after_an_end(roundings=2)


def test_a_program_passes_verification(program):
    report = export.verify(program.files[".pt2"])
    assert report.passed, str(report)
    assert list(report.outputs) == ["advantage", "value_target"]


def test_a_program_is_differentiable(tmp_path):
    module = estimators.GAE(gamma=0.97, differentiable=True)
    path = export.export_pt2(module, gae_inputs(dtype=torch.float64), tmp_path / "gae.pt2")
    inputs = gae_inputs((40, 3), dtype=torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("state_value", "next_state_value", "reward")]
    results = module(**inputs), tuple(torch.export.load(path).module()(**inputs).values())
    expected, actual = (torch.autograd.grad(result, leaves, [weights(r) for r in result]) for result in results)
    for gradient, expected_gradient in zip(actual, expected, strict=True):
        assert_close(gradient, expected_gradient)


def test_a_program_contains_no_paths_of_this_machine(program):
    checkout = str(Path(export.__file__).parents[2]).encode()
    with zipfile.ZipFile(program.files[".pt2"]) as archive:
        assert not any(checkout in archive.read(name) for name in archive.namelist())


# Losses as programs


LOSS_NAMES = (
    "Categorical-GAE-clipped-shared",
    "MaskedCategorical-TD1-none",
    "TanhNormal-VTrace-no_critic",
    "OneHotCategorical-TD0-NT1-masked",
)


@pytest.fixture(scope="module", params=grouped("loss_program", map(loss_case, LOSS_NAMES)))
def loss_program(request, tmp_path_factory):
    return request.param.export(tmp_path_factory.mktemp("loss"), [".pt2"])


@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (1, 4), (7, 1), (13, 17), (3000, 2)])
def test_a_loss_program_runs_at_any_size(loss_program, steps, envs):
    loss_program.assert_equals_eager(loss_program.make_inputs(steps, envs, "some"))


def test_a_loss_program_passes_verification(loss_program):
    report = export.verify(loss_program.files[".pt2"])
    assert report.passed, str(report)
    assert list(report.outputs) == list(loss_program.module.out_keys)


def test_a_loss_program_has_the_gradients_of_eager(loss_program):
    inputs = loss_program.make_inputs(9, 5, "some")
    loaded = torch.export.load(loss_program.files[".pt2"]).module()
    expected = gradients(loss_program.module(**inputs), loss_program.module)
    outputs = named(loss_program.module(**inputs))
    losses = losses_of(loaded(**inputs))
    names, parameters = zip(*loaded.named_parameters(), strict=True)
    actual = torch.autograd.grad(
        list(losses.values()),
        parameters,
        [weights(loss) for loss in losses.values()],
        allow_unused=True,
        materialize_grads=True,
    )
    assert list(losses) == list(losses_of(outputs))
    # A parameter that two networks share appears under both names; its gradient is the sum.
    by_own_name = {name.removeprefix("module."): gradient for name, gradient in zip(names, actual, strict=True)}
    by_name = dict(loss_program.module.named_parameters(remove_duplicate=False))
    for name, gradient in expected.items():
        aliases = [alias for alias, parameter in by_name.items() if parameter is by_name[name] and alias in by_own_name]
        total = sum(by_own_name[alias] for alias in aliases)
        torch.testing.assert_close(total, gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# The graphs of a deployment, as a program and as a package. The update contains a loss.


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    loss = make_loss()

    def make_inputs(steps, envs, ends):
        return {"observation": loss_inputs(1, envs, seed=steps)["observation"][0] if steps else torch.randn(0, 3)}

    module = export.GreedyPolicy(loss.actor_network, loss.distribution)
    return export_as(BOTH, tmp_path_factory.mktemp("policy"), module, make_inputs, ("N",))


def make_step():
    """A training step of one-layer networks, because each parameter takes half a second of CPU time to compile."""
    return TrainStep(make_loss(networks=[nn.Linear(3, 4), nn.Linear(3, 1)]), "rmsprop", lr=0.01, compile=False)


@pytest.fixture(scope="module")
def update(tmp_path_factory):
    torch.manual_seed(0)
    step = make_step()
    step(make_rollout((STEPS, ENVS), seed=9))  # a state that is not all zero
    graph = export.TrainStepGraph(step, make_rollout((STEPS, ENVS)))
    state = {name: graph.example_inputs[name] for name in (*graph.state_names, "lr")}

    def make_inputs(steps, envs, ends):
        rollout = make_rollout((steps, envs), seed=steps)
        return {**state, **{name: getattr(rollout, name) for name in graph.input_names if name in Rollout._fields}}

    deployed = export_as(BOTH, tmp_path_factory.mktemp("update"), graph, make_inputs, graph.dynamic_axes)
    deployed.step = step
    return deployed


# Each group runs in one process, which compiles its packages once.
GROUPS = {"gae_files": ("gae_files", "policy"), "update": ("update",)}
GRAPHS = [pytest.param(name, marks=pytest.mark.xdist_group(group)) for group, names in GROUPS.items() for name in names]
uses_gae = pytest.mark.xdist_group("gae_files")


@pytest.fixture(scope="module", params=GRAPHS)
def deployed(request):
    """Each graph in turn; module-scoped, so that the tests of one graph follow each other."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("steps", "envs"), SHAPES)
def test_a_graph_runs_at_any_size(deployed, steps, envs):
    inputs = deployed.make_inputs(steps, envs, "some")
    expected = named(deployed.module(**inputs))
    for ending, outputs in deployed.outputs(inputs).items():
        assert sorted(outputs) == sorted(expected), ending
        for name, value in expected.items():
            torch.testing.assert_close(outputs[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")


@uses_gae
@pytest.mark.parametrize("ending", BOTH)
def test_a_loop_of_one_step_returns_no_uninitialised_memory(gae_files, ending):
    run = gae_files.runners[ending]
    for seed in range(50):
        filled = [torch.full((1, envs), NAN) for envs in (1, 3, 8)]  # the loop's outputs may reuse this memory
        del filled
        inputs = gae_inputs((1, 1 + seed % 8), seed=seed)
        assert_same_outputs(run(inputs), named(gae_files.module(**inputs)), ending)


@uses_gae
@pytest.mark.parametrize(("steps", "envs"), EMPTY)
def test_a_package_returns_empty_results_for_empty_data(gae_files, steps, envs):
    for ending, outputs in gae_files.outputs(gae_files.make_inputs(steps, envs, "some")).items():
        shapes = {name: output.shape for name, output in outputs.items()}
        assert shapes == dict.fromkeys(("advantage", "value_target"), (steps, envs)), ending


@pytest.mark.xdist_group("gae_files")
def test_a_policy_of_no_environments_returns_no_actions(policy):
    for outputs in policy.outputs({"observation": torch.randn(0, 3)}).values():
        assert outputs["action"].shape == (0,)


@uses_gae
@pytest.mark.parametrize("ends", ["none", "all_done", "all_terminated"])
def test_a_package_equals_eager_however_episodes_end(gae_files, ends):
    gae_files.assert_equals_eager(gae_files.make_inputs(40, 5, ends))


@uses_gae
def test_a_package_ignores_nan_after_the_end_of_an_episode(gae_files):
    inputs = gae_files.make_inputs(12, 3, "none")
    inputs["done"][5] = inputs["terminated"][5] = True
    expected = named(gae_files.module(**inputs))
    for name in ("state_value", "next_state_value", "reward"):
        inputs[name][6:] = NAN
    inputs["next_state_value"][5] = NAN
    for outputs in gae_files.outputs(inputs).values():
        for name, value in expected.items():
            assert_close(outputs[name][:6], value[:6], what=name)


@pytest.mark.parametrize("ending", BOTH)
def test_a_graph_passes_verification(deployed, ending):
    report = export.verify(deployed.files[ending])
    assert report.passed, str(report)
    assert report.checks == {}
    assert report.size == deployed.files[ending].stat().st_size


@uses_gae
def test_a_package_that_differs_from_its_reference_outputs_does_not_pass(gae_files, tmp_path):
    other = export.export_pt2(estimators.GAE(gamma=0.5), gae_inputs(), tmp_path / "other.pt2")
    path = tmp_path / "gae.aot.pt2"
    path.write_bytes(gae_files.files[".aot.pt2"].read_bytes())
    path.with_name("gae.aot.pt2.cases.npz").write_bytes(other.with_name("other.pt2.cases.npz").read_bytes())
    assert not export.verify(path).passed


@pytest.mark.xdist_group("update")
def test_verification_of_an_update_starts_from_the_exported_state_and_another_one(update):
    path, exported = update.files[".pt2"], "T=9 N=4, as exported"
    assert exported in export.verify(path).cases
    with np.load(f"{path}.cases.npz") as arrays:
        for name in update.module.state_names:
            assert np.array_equal(arrays[f"{exported}/inputs/{name}"], update.module.example_inputs[name].numpy())
            assert not np.array_equal(arrays[f"every case/inputs/{name}"], arrays[f"{exported}/inputs/{name}"]), name


def test_a_package_is_compiled_with_the_pass_for_cpus_but_without_operators_of_this_library(monkeypatch, tmp_path):
    operators, run_pass = [], cpu_fusion_pass.Float32OnCpu.__call__

    def noted(self, graph):
        run_pass(self, graph)
        operators.extend(str(node.target) for node in graph.nodes if node.op == "call_function")

    monkeypatch.setattr(cpu_fusion_pass.Float32OnCpu, "__call__", noted)
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64)), torch.randn(64, 128, 8)
    path = export.export_aot(network, {"input": x}, tmp_path / "network.aot.pt2")
    assert operators
    assert not any("tanh" in name or "a2c_compiled" in name for name in operators)
    for inputs in (x, x[:1, :3].contiguous()):
        (output,) = load_aot(path)(input=inputs).values()
        torch.testing.assert_close(output.double(), network.double()(inputs.double()), rtol=1e-5, atol=1e-5)
        network.float()


@pytest.mark.xdist_group("update")
@pytest.mark.parametrize("ending", BOTH)
def test_consecutive_updates_of_a_file_equal_those_of_eager(update, ending):
    run = update.runners[ending]
    graph = update.module
    state = {name: update.make_inputs(2, 2, "some")[name] for name in graph.state_names}
    eager = make_step()
    eager.load_state_dict(update.step.state_dict())
    for i, (steps, envs) in enumerate([(1, 1), (1, 4), (9, 1), (3, 5), (16, 8), (2, 2)] * 3):
        lr = 0.01 / (1 + i)
        rollout = make_rollout((steps, envs), seed=i)
        entries = {name: getattr(rollout, name) for name in graph.input_names if name in Rollout._fields}
        outputs = run({**state, "lr": torch.tensor(lr), **entries})
        eager.lr = lr
        metrics = eager(rollout)
        state = {name: outputs[f"new.{name}"] for name in graph.state_names}
        torch.testing.assert_close(outputs["grad_norm"], metrics.grad_norm, rtol=1e-3, atol=1e-6)
    for name, parameter in eager.loss.named_parameters():
        torch.testing.assert_close(
            state[name], parameter.detach(), rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert state["step_count"] == eager.state().step


@pytest.mark.parametrize(
    "names", [pytest.param(names, marks=pytest.mark.xdist_group(group), id=group) for group, names in GROUPS.items()]
)
def test_files_run_with_nothing_but_torch(names, request, tmp_path):
    """In another process, without this library, onnx and a compiler."""
    graphs = []
    for graph in map(request.getfixturevalue, names):
        cases = []
        for steps, envs in ((1, 1), (7, 3), (200, 2)):
            inputs = graph.make_inputs(steps, envs, "some")
            arguments = {name.replace(".", "__"): tensor for name, tensor in inputs.items()}
            cases.append((arguments, named(graph.module(**inputs))))
        graphs.append((*(str(graph.files[ending]) for ending in BOTH), cases))
    torch.save(graphs, tmp_path / "expected.pt")
    run_without_the_library(
        tmp_path,
        """
        import os
        os.environ["PATH"] = os.environ["CXX"] = ""
        for name in ("onnx", "onnxruntime", "onnxscript", "numpy.testing"):
            sys.modules[name] = None
        torch.set_num_threads(1)
        for program, package, cases in torch.load("expected.pt"):
            for run in (torch.export.load(program).module(), torch._inductor.aoti_load_package(package)):
                for arguments, expected in cases:
                    with torch.no_grad():
                        outputs = run(**arguments)
                    assert sorted(outputs) == sorted(expected)
                    for name, value in expected.items():
                        torch.testing.assert_close(outputs[name], value, rtol=1e-4, atol=2e-6)
        """,
    )


@pytest.mark.parametrize("ending", BOTH)
def test_the_metadata_of_a_file_describe_its_module(deployed, ending):
    path = deployed.files[ending]
    if ending == ".pt2":
        extra = {"a2c_compiled.json": ""}
        torch.export.load(path, extra_files=extra)
        metadata = json.loads(extra["a2c_compiled.json"])
    else:
        metadata = torch._inductor.aoti_load_package(str(path)).get_metadata()
    kind = type(deployed.module).__name__
    assert metadata["a2c_compiled.module"] == kind
    assert metadata["a2c_compiled.torch_version"] == torch.__version__
    shapes = json.loads(metadata["a2c_compiled.shapes"])
    assert list(shapes) == list(deployed.make_inputs(2, 2, "some"))
    for name, shape in shapes.items():
        assert len(shape) == deployed.make_inputs(2, 2, "some")[name].dim()
    assert json.loads(metadata["a2c_compiled.hyperparameters"])


@uses_gae
def test_a_package_checks_its_inputs_if_the_environment_asks_for_it(gae_files, monkeypatch):
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    run = torch._inductor.aoti_load_package(str(gae_files.files[".aot.pt2"]))
    inputs = gae_files.make_inputs(7, 3, "some")
    with pytest.raises(RuntimeError, match="unmatched stride value"):
        run(**{**inputs, "reward": inputs["reward"].t().contiguous().t()})
    with pytest.raises(RuntimeError, match="unmatched dtype"):
        run(**{**inputs, "reward": inputs["reward"].double()})
    for steps, envs in ((1, 1), (0, 3)):
        small = {name: tensor[:steps, :envs].contiguous() for name, tensor in inputs.items()}
        assert run(**small)["advantage"].shape == (steps, envs)


def test_a_machine_without_a_compiler_cannot_make_packages(tmp_path):
    message = r"GAE cannot be exported to gae\.aot\.pt2: .*No working C\+\+ compiler found"
    with torch._inductor.config.patch({"cpp.cxx": ("no_such_compiler",)}), pytest.raises(export.ExportError, match=message):
        export.export_aot(estimators.GAE(gamma=0.123), gae_inputs(), tmp_path / "gae.aot.pt2")
    assert not list(tmp_path.iterdir())


class Loop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x[0])
        for t in range(x.size(0)):
            total = torch.tanh(total + x[t])
        return total


@pytest.mark.parametrize("shape", [[1, 4], [4]], ids=str)
def test_the_error_of_dynamic_axes_that_name_the_features_says_which_to_pass(shape, tmp_path):
    policy = export.GreedyPolicy(nn.Linear(4, 2), distributions.Categorical(2))
    axes = ("T", "N") if len(shape) == 2 else ("N",)
    remedy = "Pass dynamic_axes=('N',)" if len(shape) == 2 else "Pass an example of shape [1, 4]"
    message = (
        "GreedyPolicy cannot be exported to policy.pt2: its code only works for 4 in the last dimension of observation, which dynamic_axes"
        f" {axes} makes variable too. {remedy}"
    )
    with pytest.raises(export.ExportError, match=f"^{re.escape(message)}$"):
        export.export_pt2(policy, {"observation": torch.zeros(shape)}, tmp_path / "policy.pt2", axes)
    with pytest.raises(export.ExportError, match=re.escape(message.partition(": ")[2])):
        export.export_onnx(policy, {"observation": torch.zeros(shape)}, tmp_path / "policy.onnx", axes)


@pytest.mark.parametrize("export_one", [export.export_pt2, export.export_aot])
def test_the_error_for_a_python_loop_over_time_names_a_remedy(export_one, tmp_path):
    name = f"loop.{'aot.' if export_one is export.export_aot else ''}pt2"
    message = rf"Loop cannot be exported to {name}: its code only works for T = 6.* Give T a fixed size in dynamic_axes"
    with pytest.raises(export.ExportError, match=message):
        export_one(Loop(), [torch.randn(6, 4)], tmp_path / name)
    assert not list(tmp_path.iterdir())
