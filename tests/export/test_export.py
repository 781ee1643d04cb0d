"""Estimators, losses and policies exported to ONNX and TorchScript compute what eager mode computes."""

import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cases import run_without_the_library
from export_cases import (
    ENVS,
    ESTIMATOR_CASES,
    EXPORTERS,
    EXTREME_ACTORS,
    EXTREME_LOGITS,
    LOADERS,
    LOSS_CASES,
    MASKED_CASES,
    PLAIN,
    STANDARDIZING_CASES,
    STEPS,
    UNCOMPILED,
    assert_passes_verification,
    assert_same_outputs,
    gae_inputs,
    grouped,
    load_onnx,
    load_torchscript,
    loss_inputs,
    named,
)
from loss_cases import gradients, make_loss, make_networks, make_rollout
from tolerances import assert_close
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export, functional

NAN = float("nan")
ESTIMATES = ("advantage", "value_target")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def onnxruntime_process():
    """A function that runs a file in plain onnxruntime in another process, because a crash ends the process.

    It returns "an error" or the shape of the first output. The test fails if the process dies.
    """
    code = """
        import sys, numpy, onnxruntime
        for line in sys.stdin:
            path, inputs = line.strip().split("\t")
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            try:
                print(session.run(None, dict(numpy.load(inputs)))[0].shape, flush=True)
            except Exception:
                print("an error", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(path, inputs, folder):
            read = {value.name for value in onnx.load(path).graph.input}
            np.savez(folder / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items() if name in read})
            process.stdin.write(f"{path}\t{folder / 'inputs.npz'}\n")
            process.stdin.flush()
            outcome = process.stdout.readline().strip()
            assert outcome, "onnxruntime ended its process"
            return outcome

        yield run
        process.stdin.close()


# Estimators


@pytest.fixture(scope="module", params=grouped("estimator", ESTIMATOR_CASES))
def estimator_files(request, tmp_path_factory):
    return request.param.export(tmp_path_factory.mktemp("estimator"))


@pytest.mark.parametrize("steps", [1, 3, 200])
@pytest.mark.parametrize("envs", [1, 3])
def test_an_exported_estimator_runs_at_any_size(estimator_files, steps, envs):
    estimator_files.assert_equals_eager(estimator_files.make_inputs(steps, envs, "some"))


@pytest.mark.parametrize("ends", ["none", "all_done", "all_terminated"])
def test_an_exported_estimator_equals_eager_however_episodes_end(estimator_files, ends):
    estimator_files.assert_equals_eager(estimator_files.make_inputs(40, 5, ends))


def test_the_files_of_an_estimator_pass_verification(estimator_files):
    assert_passes_verification(estimator_files.files, ESTIMATES)


def test_the_graph_of_an_estimator_has_the_names_of_its_arguments_and_outputs(estimator_files):
    inputs = estimator_files.make_inputs(STEPS, ENVS, "some")
    session = onnxruntime.InferenceSession(str(estimator_files.files[".onnx"]), providers=["CPUExecutionProvider"])
    read = {name: x.dim() for name, x in inputs.items() if estimator_files.reads(name)}
    assert {node.name: len(node.shape) for node in session.get_inputs()} == read
    assert [node.name for node in session.get_outputs()] == list(ESTIMATES)
    for node in session.get_inputs():
        assert set(node.shape) - {1} == {"T", "N"}, "both sizes are free, and named"


def test_an_exported_estimator_ignores_nan_after_the_end_of_an_episode(estimator_files):
    estimator_files.assert_ignores_nan_after_an_end()


def test_an_exported_estimator_returns_empty_results_for_no_environments(estimator_files):
    inputs = estimator_files.make_inputs(5, 0, "some")
    for outputs in estimator_files.outputs(inputs).values():
        assert {name: output.shape for name, output in outputs.items()} == dict.fromkeys(ESTIMATES, inputs["reward"].shape)


def test_an_exported_estimator_survives_zero_steps(estimator_files, onnxruntime_process, tmp_path):
    inputs = estimator_files.make_inputs(0, 3, "some")
    assert all(output.numel() == 0 for output in estimator_files.runners[".pt"](inputs).values())
    outcome = onnxruntime_process(estimator_files.files[".onnx"], inputs, tmp_path)
    assert outcome in ("an error", str(tuple(inputs["reward"].shape)))


@pytest.mark.parametrize("case", STANDARDIZING_CASES, ids=str)
def test_exported_estimators_that_standardize_run_at_any_size(case, tmp_path):
    exported = case.export(tmp_path)
    for steps, envs in ((1, 7), (9, 1), (200, 3)):
        exported.assert_equals_eager(exported.make_inputs(steps, envs, "some"))
    assert all(export.verify(path).passed for path in exported.files.values())


@pytest.mark.parametrize("case", MASKED_CASES, ids=str)
def test_exported_estimators_give_the_results_of_the_data_without_the_excluded_steps(case, tmp_path):
    exported = case.export(tmp_path, UNCOMPILED)
    for steps, envs in ((1, 7), (9, 1), (200, 3)):
        exported.assert_equals_eager(exported.make_inputs(steps, envs, "some"))
    exported.assert_ignores_excluded_steps()


def test_an_export_has_the_coefficients_of_its_time(tmp_path):
    module = estimators.TD0Estimator(gamma=0.5)
    module.gamma = 0.9
    inputs = gae_inputs(ends="none")
    path = export.export_onnx(module, inputs, tmp_path / "td0.onnx")
    assert_close(load_onnx(path)(inputs)["advantage"], estimators.TD0Estimator(gamma=0.9)(**inputs).advantage)


def test_half_precision_is_accumulated_in_float32(tmp_path):
    module = estimators.GAE(gamma=0.97)
    inputs = gae_inputs((200, 3), dtype=torch.float16)
    path = export.export_onnx(module, inputs, tmp_path / "gae.onnx")
    expected = module(**inputs)
    for name, output in load_onnx(path)(inputs).items():
        assert output.dtype == torch.float16
        assert_close(output, getattr(expected, name), what=name, roundings=2)


class NumbersInTheGraph(nn.Module):
    """Arithmetic with constants that float32 cannot represent, some of them the package's own."""

    def __init__(self) -> None:
        super().__init__()
        self.distribution = distributions.TanhNormal(2, -0.3, 0.7)

    def forward(self, x: torch.Tensor, done: torch.Tensor) -> tuple[torch.Tensor, ...]:
        action = self.distribution.mode(torch.cat([x, x], -1))
        log_prob = self.distribution.log_prob(torch.cat([x, x], -1), action)
        advantage = functional.generalized_advantage_estimate(0.99, 0.95, x, x, x, done).advantage
        return action, log_prob, advantage, x.clamp_max(0.1), x.clamp(-0.1, 0.1), x * 0.3 + 0.1


def test_constants_in_a_float64_graph_keep_their_precision(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn((STEPS, 2), generator=generator, dtype=torch.float64)
    path = export.export_onnx(NumbersInTheGraph(), [x, x > 1.0], tmp_path / "numbers.onnx", ("T",))
    report = export.verify(path)
    assert report.passed, str(report)


# Losses


@pytest.fixture(scope="module", params=grouped("loss", LOSS_CASES))
def loss_files(request, tmp_path_factory):
    return request.param.export(tmp_path_factory.mktemp("loss"))


@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (1, 4), (7, 1), (200, 3)])
def test_an_exported_loss_runs_at_any_size(loss_files, steps, envs):
    loss_files.assert_equals_eager(loss_files.make_inputs(steps, envs, "some"))


@pytest.mark.parametrize("ends", ["none", "all"])
def test_an_exported_loss_equals_eager_however_episodes_end(loss_files, ends):
    # With the data of 30 steps, the mean of one objective is 643 times smaller than its terms, whose rounding then exceeds the tolerance.
    loss_files.assert_equals_eager(loss_files.make_inputs(31, 5, ends))


def test_the_files_of_a_loss_pass_verification(loss_files):
    assert_passes_verification(loss_files.files, loss_files.module.out_keys)


def test_the_graph_of_a_loss_has_the_names_of_its_arguments_and_losses(loss_files):
    inputs = loss_files.make_inputs(STEPS, ENVS, "some")
    model = onnx.load(loss_files.files[".onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.name for node in model.graph.input} == {name for name in inputs if loss_files.reads(name)}
    assert [node.name for node in model.graph.output] == list(loss_files.module.out_keys)
    assert {entry.domain for entry in model.opset_import} == {""}, "only operators of ONNX itself"


def test_a_scripted_loss_has_the_gradients_of_eager(loss_files):
    inputs = loss_files.make_inputs(9, 5, "some")
    loaded = torch.jit.load(str(loss_files.files[".pt"]))
    expected = gradients(loss_files.module(**inputs), loss_files.module)
    actual = gradients(loaded(**inputs), loaded)
    assert list(actual) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("steps", "envs"), [(0, 3), (5, 0)], ids=["no_steps", "no_environments"])
def test_an_exported_loss_of_no_data_is_zero_or_an_error(loss_files, steps, envs, onnxruntime_process, tmp_path):
    inputs = loss_files.make_inputs(steps, envs, "some")
    for name, output in loss_files.runners[".pt"](inputs).items():
        assert not output.any(), name
    # Not all of onnxruntime's operators are defined for empty tensors. None of them may end the process.
    onnxruntime_process(loss_files.files[".onnx"], inputs, tmp_path)


def test_an_exported_loss_ignores_nan_that_its_mask_leaves_out(loss_files):
    inputs = loss_files.make_inputs(20, 6, "all")
    if "mask" not in inputs:
        return
    masked_out = ~inputs["mask"]
    for name in ("reward", "observation", "next_observation"):
        inputs[name] = inputs[name].masked_fill(masked_out, NAN)
    loss_files.assert_equals_eager(inputs)


def test_a_scripted_loss_is_differentiable_without_this_package(tmp_path):
    loss = make_loss(shared=True, separate_losses=True, clip_value=0.2)
    inputs = loss_inputs(9, 5)
    export.export_torchscript(loss, inputs, tmp_path / "loss.pt")
    outputs = loss(**inputs)
    expected = torch.autograd.grad(outputs.loss_objective + outputs.loss_critic + outputs.loss_entropy, list(loss.parameters()))
    torch.save({"inputs": inputs, "outputs": tuple(outputs), "gradients": expected}, tmp_path / "expected.pt")
    run_without_the_library(
        tmp_path,
        """
        saved = torch.load("expected.pt")
        loss = torch.jit.load("loss.pt")
        outputs = loss(**saved["inputs"])
        torch.testing.assert_close(tuple(outputs), saved["outputs"], rtol=1e-5, atol=1e-6)
        (outputs.loss_objective + outputs.loss_critic + outputs.loss_entropy).backward()
        gradients = [parameter.grad for parameter in loss.parameters()]
        assert len(gradients) == len(saved["gradients"]) == 6
        for gradient, expected in zip(gradients, saved["gradients"]):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        """,
    )


@pytest.fixture(scope="module")
def random_loss_files(tmp_path_factory):
    """A loss that estimates its entropy from samples."""
    folder = tmp_path_factory.mktemp("random")
    loss = make_loss("TanhNormal", critic_coef=None)
    inputs = loss_inputs(distribution="TanhNormal", inputs=("advantage",))
    return {ending: EXPORTERS[ending](loss, inputs, folder / f"loss{ending}") for ending in UNCOMPILED}


@pytest.mark.xdist_group("random_loss")
@pytest.mark.parametrize("ending", UNCOMPILED)
def test_verification_compares_only_the_shape_of_an_entropy_estimated_from_samples(random_loss_files, ending):
    report = export.verify(random_loss_files[ending])
    assert report.passed, str(report)
    assert (list(report.outputs), report.random) == (["loss_objective"], ["entropy", "loss_entropy"])
    assert any(line.split()[:2] == ["entropy", "random:"] for line in str(report).splitlines())
    if ending == ".onnx":
        assert report.checks["reference evaluator"] == "not run: outputs are random"


@pytest.mark.xdist_group("random_loss")
@pytest.mark.parametrize("ending", UNCOMPILED)
def test_an_exported_loss_draws_new_samples_at_each_call(random_loss_files, ending):
    inputs = loss_inputs(400, 50, "TanhNormal", ("advantage",), seed=1)
    with torch.no_grad():
        expected = float(make_loss("TanhNormal", critic_coef=None)(**inputs).entropy)
    run = LOADERS[ending](random_loss_files[ending])
    first, second = (float(run(inputs)["entropy"]) for _ in range(2))
    assert first != second
    assert abs(first - expected) < 0.05, "the samples come from the distribution"


@pytest.mark.parametrize(
    ("options", "of_the_loss", "of_the_estimator"),
    [
        ({}, (), ()),
        ({"clip_value": 0.2}, ("state_value",), ()),
        ({"value_estimator": "VTrace"}, ("sample_log_prob",), ("log_pi", "log_mu")),
    ],
    ids=["plain", "clip_value", "VTrace"],
)
def test_the_graphs_of_a_loss_have_only_the_inputs_that_they_read(options, of_the_loss, of_the_estimator, tmp_path):
    graphs = export.graphs_of(make_loss(**options), make_rollout((STEPS, ENVS), options=("log_prob", "state_value", "mask")))
    always = ("observation", "action", *PLAIN, "mask")
    assert {name: set(graph.example_inputs) for name, graph in graphs.items()} == {
        "policy": {"observation"},
        "policy_sampled": {"observation", "noise"},
        "loss": {*always, *of_the_loss},
        "estimator": {"state_value", "next_state_value", "reward", "done", "terminated", *of_the_estimator},
    }
    for name, graph in graphs.items():
        report = export.verify(export.export_torchscript(*graph[:2], tmp_path / f"{name}.pt", graph.dynamic_axes))
        assert report.passed, str(report)


# Policies


def test_an_exported_policy_samples_from_the_distribution(tmp_path):
    actor, critic = make_networks()
    distribution = distributions.Categorical(4)
    observation = torch.randn(3000, 3)
    with torch.no_grad():
        params = actor(observation)
        noise = distribution.noise(params)
    path = export.export_torchscript(
        export.SampledPolicy(actor, critic, distribution), [observation, noise], tmp_path / "policy.pt", ("N",)
    )
    outputs = load_torchscript(path)({"observation": observation, "noise": noise})
    assert list(outputs) == ["action", "log_prob", "state_value"]
    assert torch.equal(outputs["log_prob"], distribution.log_prob(params, outputs["action"]))
    with torch.no_grad():
        assert torch.equal(outputs["state_value"], critic(observation).squeeze(-1))
    frequency = torch.bincount(outputs["action"], minlength=4) / 3000
    assert (frequency - params.softmax(-1).mean(0)).abs().max() < 0.03


# Extreme logits


@pytest.mark.parametrize("name", EXTREME_ACTORS)
def test_exported_losses_and_their_gradients_equal_eager_on_extreme_logits(name, tmp_path):
    distribution = getattr(distributions, name)(4)
    loss = A2CLoss(EXTREME_ACTORS[name](), nn.Linear(4, 1), distribution, critic_coef=None, reduction="none")
    lead = (len(EXTREME_LOGITS), 3)
    action = torch.zeros(lead, dtype=torch.int64)
    if name == "OneHotCategorical":
        action = nn.functional.one_hot(action, 4)
    observation = EXTREME_LOGITS.unsqueeze(1).expand(-1, 3, -1)
    inputs = {"observation": observation, "action": action, "advantage": torch.randn(lead)}
    with torch.no_grad():
        expected = named(loss(**inputs))
    assert all(value.isfinite().all() for value in expected.values())
    assert expected["loss_objective"].abs().max() > 1e3
    for ending in UNCOMPILED:
        path = EXPORTERS[ending](loss, {**inputs, "observation": torch.randn(*lead, 4)}, tmp_path / f"loss{ending}")
        assert_same_outputs(LOADERS[ending](path)(inputs), expected, ending)
    loaded = torch.jit.load(str(tmp_path / "loss.pt"))
    expected_gradients, file_gradients = gradients(loss(**inputs), loss), gradients(loaded(**inputs), loaded)
    for parameter, gradient in expected_gradients.items():
        assert gradient.isfinite().all()
        assert_close(file_gradients[parameter], gradient, what=parameter)
