"""Programs of torch.export and packages of AOTInductor: the scan in plain operations, and files that need torch alone."""

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import oracle
import pytest
import torch
from cases import EMPTY_LAYOUTS, LAYOUTS, VIEWS, make_steps, per_step, run_without_the_library, weights
from export_cases import (
    ENVS,
    ESTIMATOR_CASES,
    PLAIN,
    STANDARDIZING_CASES,
    STEPS,
    EstimatorCase,
    assert_same_answers,
    export_as,
    gae_inputs,
    load_pt2,
    loss_case,
    loss_inputs,
    named,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import gradients, losses_of, make_loss, make_rollout
from tolerances import assert_close
from torch import nn

from a2c_compiled import estimators, export
from a2c_compiled.export.tracing import scan_doubling
from a2c_compiled.ops import linear_scan
from a2c_compiled.update import Rollout, TrainStep

NAN = float("nan")
BOTH = (".pt2", ".aot.pt2")
# Steps and environments: the smallest, odd ones, powers of two and their neighbours, a long one, and nothing.
SHAPES = ((1, 1), (1, 5), (2, 3), (7, 1), (13, 17), (31, 2), (32, 2), (33, 2), (3000, 2))
EMPTY = ((0, 3), (5, 0), (0, 0))


# The scan by doubling


SCANS = {True: scan_doubling.linear_scan, False: scan_doubling.linear_scan_transposed}
DIRECTIONS = pytest.mark.parametrize("reverse", SCANS, ids=["reverse", "transposed"])


def scan_arguments(shape, dtype=torch.float64, seed=0):
    """Decays over the whole of [-1, 1], a quarter of them zero."""
    decay = per_step(shape, -1.0, 1.0, dtype, seed + 1).masked_fill(make_steps(shape, seed=seed + 2).done, 0.0)
    return make_steps(shape, dtype, seed).reward, decay


@DIRECTIONS
@pytest.mark.parametrize(("shape", "time_dim"), LAYOUTS)
def test_doubling_equals_the_definition_in_every_layout(shape, time_dim, reverse):
    dim = time_dim - len(shape) if time_dim >= 0 else time_dim
    x, decay = scan_arguments(shape)
    assert_close(SCANS[reverse](x, decay, dim), oracle.linear_scan(x, decay, dim, reverse))


@DIRECTIONS
@settings(deadline=None, max_examples=60)
@given(steps=st.integers(0, 70), rows=st.integers(1, 3), seed=st.integers(0, 1000), ends=st.sampled_from([0.0, 0.3, 1.0]))
def test_doubling_equals_the_definition_at_any_length(reverse, steps, rows, seed, ends):
    generator = torch.Generator().manual_seed(seed)
    x, decay = 2 * torch.rand((2, steps, rows), generator=generator, dtype=torch.float64) - 1
    decay = decay.masked_fill(torch.rand((steps, rows), generator=generator) < ends, 0.0)
    assert_close(SCANS[reverse](x, decay, -2), oracle.linear_scan(x, decay, -2, reverse))


@DIRECTIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_doubling_accumulates_half_precision_in_float32(dtype, reverse):
    x, decay = scan_arguments((500, 3), dtype)
    result = SCANS[reverse](x, decay, -2)
    assert result.dtype == dtype
    assert_close(result, oracle.linear_scan(x, decay, -2, reverse))


@DIRECTIONS
@pytest.mark.parametrize(("shape", "time_dim"), EMPTY_LAYOUTS)
def test_doubling_of_nothing_is_empty(shape, time_dim, reverse):
    x, decay = scan_arguments(shape)
    assert SCANS[reverse](x, decay, time_dim).shape == shape


@DIRECTIONS
@pytest.mark.parametrize("garbage", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("cut", [0, 4, 10])
def test_doubling_lets_nothing_pass_a_zero_decay(garbage, cut, reverse):
    x, decay = scan_arguments((12, 3))
    decay[cut] = 0.0  # between a step and the next one
    expected = oracle.linear_scan(x, decay, -2, reverse)
    if reverse:
        x[cut + 1 :] = garbage
        decay[cut + 1 :] = NAN
        kept = slice(0, cut + 1)
    else:
        x[: cut + 1] = garbage
        decay[:cut] = NAN
        kept = slice(cut + 1, None)
    assert_close(SCANS[reverse](x, decay, -2)[kept], expected[kept])


@DIRECTIONS
def test_doubling_leaves_its_arguments_alone(reverse):
    x, decay = scan_arguments((9, 2))
    before = x.clone(), decay.clone()
    SCANS[reverse](x, decay, -2)
    assert torch.equal(x, before[0])
    assert torch.equal(decay, before[1])


@DIRECTIONS
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9])
def test_doubling_takes_as_many_rounds_as_its_length_needs(length, reverse, monkeypatch):
    rounds = []

    def counting(goes_on, body, carried, others):
        while goes_on(*carried, *others):
            rounds.append(carried[0].item())
            carried = body(*carried, *others)
        return carried

    monkeypatch.setattr(scan_doubling, "while_loop", counting)
    SCANS[reverse](*scan_arguments((length, 2)), -2)
    # One at least: AOTInductor's loop of no rounds returns what was in memory.
    assert rounds == [2**i for i in range(max(1, (length - 1).bit_length()))]


class BothScans(nn.Module):
    def forward(self, x: torch.Tensor, decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_scan(x, decay, -2), linear_scan(x, decay, -2, False)


@pytest.mark.parametrize("axes", [("T", "N"), (None, "N"), ("T",), ()], ids=["both", "steps_fixed", "rows_fixed", "fixed"])
def test_a_program_has_both_scans_in_torchs_own_operations(axes, tmp_path):
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


def test_programs_that_differ_in_direction_and_dimension_are_made_in_one_process(tmp_path):
    # Where Dynamo reads the loop, the second of them makes an input of what they differ in, and torch.export fails.
    arguments = scan_arguments((6, 4))
    for i, (dim, reverse) in enumerate([(-2, True), (-1, True), (-2, False), (-1, False), (-2, True)]):
        path = export.export_pt2(OneScan(dim, reverse), arguments, tmp_path / f"{i}.pt2")
        x, decay = scan_arguments((9, 5))
        assert_close(load_pt2(path)({"x": x, "decay": decay})["output"], oracle.linear_scan(x, decay, dim, reverse))


# Estimators as programs


HALF = EstimatorCase(estimators.GAE, torch.float16, "TN")
PROGRAM_CASES = (*ESTIMATOR_CASES, HALF, STANDARDIZING_CASES[0])


@pytest.fixture(scope="module", params=PROGRAM_CASES, ids=str)
def program(request, tmp_path_factory):
    return request.param.export(tmp_path_factory.mktemp("program"), [".pt2"])


@pytest.mark.parametrize(("steps", "envs"), SHAPES)
def test_a_program_runs_at_any_size(program, steps, envs):
    if getattr(program.module, "average_gae", False) and steps * envs == 1:
        return  # there is no standard deviation of one number
    program.check(program.make_inputs(steps, envs, "some"), roundings=2)


@pytest.mark.parametrize("ends", ["none", "all_done", "all_terminated"])
def test_a_program_runs_however_episodes_end(program, ends):
    program.check(program.make_inputs(40, 5, ends), roundings=2)


@pytest.mark.parametrize(("steps", "envs"), EMPTY)
def test_a_program_of_nothing_gives_empty_results(program, steps, envs):
    inputs = program.make_inputs(steps, envs, "some")
    answers = program.answers(inputs)[".pt2"]
    assert {name: answer.shape for name, answer in answers.items()} == dict.fromkeys(
        ("advantage", "value_target"), inputs["reward"].shape
    )


@pytest.mark.parametrize("view", VIEWS)
def test_a_program_runs_on_any_strides(program, view):
    layout = program.make_inputs(2, 3, "some")["reward"].shape
    made = program.make_inputs(12, 10, "some")
    whole = {name: tensor.reshape(12, 10) for name, tensor in made.items()}
    inputs = {name: view(tensor).reshape(*view(tensor).shape, *layout[2:]) for name, tensor in whole.items()}
    assert not all(tensor.is_contiguous() for tensor in inputs.values())
    program.check(inputs, roundings=2)


def test_a_program_lets_nothing_leak_from_behind_an_end(program):
    steps, last = 12, 5
    if getattr(program.module, "average_gae", False):
        return  # which looks at every step
    inputs = program.make_inputs(steps, 3, "none")
    time = inputs["reward"].shape.index(steps)
    for name in ("done", "terminated"):
        inputs[name].select(time, last).fill_(True)
    clean = {name: tensor.clone() for name, tensor in inputs.items()}
    for name in inputs.keys() - {"done", "terminated"}:
        inputs[name].narrow(time, last + 1, steps - last - 1).fill_(NAN)
    inputs["next_state_value"].select(time, last).fill_(NAN)
    with torch.no_grad():
        expected = named(program.module(**clean))
    for name, answer in program.answers(inputs)[".pt2"].items():
        assert_close(answer.narrow(time, 0, last + 1), expected[name].narrow(time, 0, last + 1), what=name, roundings=2)


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


def test_a_program_has_no_paths_of_the_machine_in_it(program):
    checkout = str(Path(export.__file__).parents[2]).encode()
    with zipfile.ZipFile(program.files[".pt2"]) as archive:
        assert not any(checkout in archive.read(name) for name in archive.namelist())


# Losses as programs


LOSS_NAMES = ("Categorical-GAE-clipped-shared", "MaskedCategorical-TD1-none", "TanhNormal-VTrace", "Categorical-GAE-NT1-masked")


@pytest.fixture(scope="module", params=LOSS_NAMES)
def loss_program(request, tmp_path_factory):
    return loss_case(request.param).export(tmp_path_factory.mktemp("loss"), [".pt2"])


@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (1, 4), (7, 1), (13, 17), (3000, 2)])
def test_a_loss_program_runs_at_any_size(loss_program, steps, envs):
    loss_program.check(loss_program.make_inputs(steps, envs, "some"))


def test_a_loss_program_passes_verification(loss_program):
    report = export.verify(loss_program.files[".pt2"])
    assert report.passed, str(report)
    assert list(report.outputs) == list(loss_program.module.out_keys)


def test_gradients_of_a_loss_program_are_eagers(loss_program):
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
    # A parameter that two networks share stands under either name; its gradient is the sum.
    found = {name.removeprefix("module."): gradient for name, gradient in zip(names, actual, strict=True)}
    by_name = dict(loss_program.module.named_parameters(remove_duplicate=False))
    for name, gradient in expected.items():
        aliases = [alias for alias, parameter in by_name.items() if parameter is by_name[name] and alias in found]
        total = sum(found[alias] for alias in aliases)
        torch.testing.assert_close(total, gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# Packages, and the same as programs: one of each graph that a deployment needs


@pytest.fixture(scope="module")
def gae(tmp_path_factory):
    def make_inputs(steps, envs, ends):
        inputs = gae_inputs((steps, envs), ends, seed=steps)
        if (steps, envs) == (STEPS, ENVS):  # the example's strides are not those that callers are held to
            return {name: tensor.t().contiguous().t() for name, tensor in inputs.items()}
        return inputs

    return export_as(BOTH, tmp_path_factory.mktemp("gae"), estimators.GAE(gamma=0.97), make_inputs, ("T", "N"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    loss = make_loss()

    def make_inputs(steps, envs, ends):
        return {"observation": loss_inputs(1, envs, seed=steps)["observation"][0] if steps else torch.randn(0, 3)}

    module = export.GreedyPolicy(loss.actor_network, loss.distribution)
    return export_as(BOTH, tmp_path_factory.mktemp("policy"), module, make_inputs, ("N",))


@pytest.fixture(scope="module")
def loss(tmp_path_factory):
    def make_inputs(steps, envs, ends):
        return loss_inputs(steps, envs, inputs=(*PLAIN, "state_value"), seed=steps)

    return export_as(BOTH, tmp_path_factory.mktemp("loss"), make_loss(clip_value=0.2, shared=True), make_inputs, ("T", "N"))


@pytest.fixture(scope="module")
def update(tmp_path_factory):
    step = TrainStep(make_loss(), "rmsprop", lr=0.01, compile=False)
    step(make_rollout((STEPS, ENVS), seed=9))  # a state that is not all zero
    graph = export.TrainStepGraph(step, make_rollout((STEPS, ENVS)))
    state = {name: graph.example_inputs[name] for name in (*graph.state_names, "lr")}

    def make_inputs(steps, envs, ends):
        rollout = make_rollout((steps, envs), seed=steps)
        return {**state, **{name: getattr(rollout, name) for name in graph.input_names if name in Rollout._fields}}

    deployed = export_as(BOTH, tmp_path_factory.mktemp("update"), graph, make_inputs, graph.dynamic_axes)
    deployed.step = step
    return deployed


GRAPHS = ("gae", "policy", "loss", "update")


@pytest.fixture(scope="module", params=GRAPHS)
def deployed(request):
    """Each of them in turn; module-wide, so that tests of one graph follow each other."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("steps", "envs"), SHAPES)
def test_a_graph_runs_at_any_size(deployed, steps, envs):
    inputs = deployed.make_inputs(steps, envs, "some")
    expected = named(deployed.module(**inputs))
    for ending, answers in deployed.answers(inputs).items():
        assert sorted(answers) == sorted(expected), ending
        for name, value in expected.items():
            torch.testing.assert_close(answers[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("ending", BOTH)
def test_a_loop_of_one_step_returns_no_garbage(gae, ending):
    # AOTInductor's loop of no rounds returns what was in memory.
    run = gae.runners[ending]
    for seed in range(50):
        filled = [torch.full((1, envs), NAN) for envs in (1, 3, 8)]  # memory to be found again
        del filled
        inputs = gae_inputs((1, 1 + seed % 8), seed=seed)
        assert_same_answers(run(inputs), named(gae.module(**inputs)), ending)


@pytest.mark.parametrize(("steps", "envs"), EMPTY)
def test_a_package_of_nothing_gives_empty_results(gae, steps, envs):
    for ending, answers in gae.answers(gae.make_inputs(steps, envs, "some")).items():
        assert {name: answer.shape for name, answer in answers.items()} == dict.fromkeys(
            ("advantage", "value_target"), (steps, envs)
        ), ending


def test_a_policy_of_no_environments_has_no_actions(policy):
    for answers in policy.answers({"observation": torch.randn(0, 3)}).values():
        assert answers["action"].shape == (0,)


@pytest.mark.parametrize("ends", ["none", "all_done", "all_terminated"])
def test_a_package_runs_however_episodes_end(gae, ends):
    gae.check(gae.make_inputs(40, 5, ends))


def test_a_package_lets_nothing_leak_from_behind_an_end(gae):
    inputs = gae.make_inputs(12, 3, "none")
    inputs["done"][5] = inputs["terminated"][5] = True
    expected = named(gae.module(**inputs))
    for name in ("state_value", "next_state_value", "reward"):
        inputs[name][6:] = NAN
    inputs["next_state_value"][5] = NAN
    for answers in gae.answers(inputs).values():
        for name, value in expected.items():
            assert_close(answers[name][:6], value[:6], what=name)


@pytest.mark.parametrize("ending", BOTH)
def test_a_graph_passes_verification(deployed, ending):
    report = export.verify(deployed.files[ending])
    assert report.passed, str(report)
    assert report.checks == {}
    assert report.size == deployed.files[ending].stat().st_size


def test_a_package_with_other_answers_does_not_pass_verification(gae, tmp_path):
    other = export.export_pt2(estimators.GAE(gamma=0.5), gae_inputs(), tmp_path / "other.pt2")
    path = tmp_path / "gae.aot.pt2"
    path.write_bytes(gae.files[".aot.pt2"].read_bytes())
    path.with_name("gae.aot.pt2.cases.npz").write_bytes(other.with_name("other.pt2.cases.npz").read_bytes())
    assert not export.verify(path).passed


@pytest.mark.parametrize("ending", BOTH)
def test_updates_that_feed_on_each_other_are_eagers(update, ending):
    run = update.runners[ending]
    graph = update.module
    state = {name: update.make_inputs(2, 2, "some")[name] for name in graph.state_names}
    eager = TrainStep(make_loss(), "rmsprop", lr=0.01, compile=False)
    eager.load_state_dict(update.step.state_dict())
    for i, (steps, envs) in enumerate([(1, 1), (1, 4), (9, 1), (3, 5), (16, 8), (2, 2)] * 3):
        lr = 0.01 / (1 + i)
        rollout = make_rollout((steps, envs), seed=i)
        entries = {name: getattr(rollout, name) for name in graph.input_names if name in Rollout._fields}
        answers = run({**state, "lr": torch.tensor(lr), **entries})
        eager.lr = lr
        metrics = eager(rollout)
        state = {name: answers[f"new.{name}"] for name in graph.state_names}
        torch.testing.assert_close(answers["grad_norm"], metrics.grad_norm, rtol=1e-3, atol=1e-6)
    for name, parameter in eager.loss.named_parameters():
        torch.testing.assert_close(
            state[name], parameter.detach(), rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert state["step_count"] == eager.state().step


def test_files_need_torch_alone(gae, policy, loss, update, tmp_path):
    """In another process, where neither this library nor onnx can be imported, and there is no compiler."""
    expected = []
    for deployed in (gae, policy, loss, update):
        for steps, envs in ((1, 1), (7, 3), (200, 2)):
            inputs = deployed.make_inputs(steps, envs, "some")
            answers = named(deployed.module(**inputs))
            for ending in BOTH:
                arguments = {name.replace(".", "__"): tensor for name, tensor in inputs.items()}
                expected.append((str(deployed.files[ending]), ending, arguments, answers))
    torch.save(expected, tmp_path / "expected.pt")
    run_without_the_library(
        tmp_path,
        """
        import os
        os.environ["PATH"] = os.environ["CXX"] = ""
        for name in ("onnx", "onnxruntime", "onnxscript", "numpy.testing"):
            sys.modules[name] = None
        torch.set_num_threads(1)
        loaders = {".pt2": lambda path: torch.export.load(path).module(), ".aot.pt2": torch._inductor.aoti_load_package}
        loaded = {}
        with torch.no_grad():
            for path, ending, arguments, expected in torch.load("expected.pt"):
                if path not in loaded:
                    loaded[path] = loaders[ending](path)
                answers = loaded[path](**arguments)
                assert sorted(answers) == sorted(expected)
                for name, value in expected.items():
                    torch.testing.assert_close(answers[name], value, rtol=1e-4, atol=2e-6)
        assert len(loaded) == 8
        """,
    )


@pytest.mark.parametrize("ending", BOTH)
def test_a_graph_says_what_it_is_made_of(deployed, ending):
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


def test_a_package_checks_its_inputs_where_it_is_asked_to(gae, tmp_path):
    code = f"""
        import torch

        run = torch._inductor.aoti_load_package({str(gae.files[".aot.pt2"])!r})
        inputs = torch.load("inputs.pt")
        strided = inputs["reward"].t().contiguous().t()
        for changed in (
            {{**inputs, "reward": strided}},
            {{**inputs, "reward": inputs["reward"].double()}},
            {{name: tensor[:1, :1].contiguous() for name, tensor in inputs.items()}},
            {{name: tensor[:0] for name, tensor in inputs.items()}},
        ):
            try:
                print("right", list(run(**changed)["advantage"].shape))
            except RuntimeError as error:
                print(str(error).splitlines()[0])
    """
    torch.save(gae.make_inputs(7, 3, "some"), tmp_path / "inputs.pt")
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    strides, dtype, one_step, no_steps = done.stdout.splitlines()
    assert "unmatched stride value" in strides
    assert "unmatched dtype" in dtype
    assert (one_step, no_steps) == ("right [1, 1]", "right [0, 3]")


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


@pytest.mark.parametrize("export_one", [export.export_pt2, export.export_aot])
def test_a_loop_over_time_is_named_with_what_to_do(export_one, tmp_path):
    name = f"loop.{'aot.' if export_one is export.export_aot else ''}pt2"
    message = rf"Loop cannot be exported to {name}: its code only works for T = 6.* Give T a fixed size in dynamic_axes"
    with pytest.raises(export.ExportError, match=message):
        export_one(Loop(), [torch.randn(6, 4)], tmp_path / name)
    assert not list(tmp_path.iterdir())
