"""Estimators, losses and policies in ONNX and TorchScript against eager, and what an export makes of its arguments."""

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
    LOADERS,
    LOSS_CASES,
    PLAIN,
    QUICK,
    STANDARDIZING_CASES,
    STEPS,
    Exported,
    assert_same_answers,
    gae_inputs,
    load_onnx,
    load_torchscript,
    loss_case,
    loss_inputs,
    named,
)
from loss_cases import gradients, make_loss, make_loss_steps, make_networks, make_rollout, of
from tolerances import assert_close
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export, functional

NAN = float("nan")
INF = float("inf")


# Estimators


@pytest.fixture(scope="module", params=ESTIMATOR_CASES, ids=str)
def estimator_files(request, tmp_path_factory):
    return request.param.export(tmp_path_factory.mktemp("estimator"))


@pytest.mark.parametrize("steps", [1, 3, 200])
@pytest.mark.parametrize("envs", [1, 3])
def test_an_estimator_runs_at_any_size(estimator_files, steps, envs):
    estimator_files.check(estimator_files.make_inputs(steps, envs, "some"))


@pytest.mark.parametrize("ends", ["none", "all_done", "all_terminated"])
def test_an_estimator_runs_however_episodes_end(estimator_files, ends):
    estimator_files.check(estimator_files.make_inputs(40, 5, ends))


def test_an_estimators_files_pass_verification(estimator_files):
    for ending, path in estimator_files.files.items():
        report = export.verify(path)
        assert report.passed, str(report)
        assert list(report.outputs) == ["advantage", "value_target"]
        assert set(report.checks.values()) <= {"passed"}, "the reference evaluator runs it too, and agrees"
        assert len(report.checks) == (3 if ending == ".onnx" else 0)


def test_an_estimators_graph_has_the_names_of_arguments_and_results(estimator_files):
    inputs = estimator_files.make_inputs(STEPS, ENVS, "some")
    session = onnxruntime.InferenceSession(str(estimator_files.files[".onnx"]), providers=["CPUExecutionProvider"])
    read = {name: x.dim() for name, x in inputs.items() if estimator_files.reads(name)}
    assert {node.name: len(node.shape) for node in session.get_inputs()} == read
    assert [node.name for node in session.get_outputs()] == ["advantage", "value_target"]
    for node in session.get_inputs():
        assert set(node.shape) - {1} == {"T", "N"}, "both sizes are free, and named"


def test_what_follows_an_end_does_not_leak_into_what_precedes_it(estimator_files):
    steps, last = 12, 5
    inputs = estimator_files.make_inputs(steps, 3, "none")
    clean = {name: tensor.clone() for name, tensor in inputs.items()}
    time = inputs["reward"].shape.index(steps)
    for given in (inputs, clean):
        for name in ("done", "terminated"):
            given[name].select(time, last).fill_(True)
    for name in ("state_value", "next_state_value", "reward", "log_pi", "log_mu"):
        if name in inputs:
            inputs[name].narrow(time, last + 1, steps - last - 1).fill_(NAN)
    inputs["next_state_value"].select(time, last).fill_(NAN)
    with torch.no_grad():
        expected = estimator_files.module(**clean)
    for answers in estimator_files.answers(inputs).values():
        for name, value in expected._asdict().items():
            assert_close(answers[name].narrow(time, 0, last + 1), value.narrow(time, 0, last + 1), what=name)


def test_no_environments_give_empty_results(estimator_files):
    inputs = estimator_files.make_inputs(5, 0, "some")
    for answers in estimator_files.answers(inputs).values():
        assert {name: answer.shape for name, answer in answers.items()} == dict.fromkeys(
            ("advantage", "value_target"), inputs["reward"].shape
        )


def test_no_steps_never_end_the_process(estimator_files, tmp_path):
    inputs = estimator_files.make_inputs(0, 3, "some")
    assert all(answer.numel() == 0 for answer in estimator_files.runners[".pt"](inputs).values())
    outcome = in_a_process_of_its_own(estimator_files.files[".onnx"], inputs, tmp_path)
    assert outcome in ("an error", f"results of shape {tuple(inputs['reward'].shape)}")


def in_a_process_of_its_own(path, inputs, folder):
    """What plain onnxruntime says of ``inputs``; a process that does not live to say it fails the test."""
    np.savez(folder / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
    code = """
        import sys, numpy, onnxruntime
        inputs = dict(numpy.load(sys.argv[2]))
        session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        try:
            print("results of shape", session.run(None, inputs)[0].shape)
        except Exception:
            print("an error")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(folder / "inputs.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("case", STANDARDIZING_CASES, ids=str)
def test_estimators_that_standardize_run_at_any_size(case, tmp_path):
    exported = case.export(tmp_path)
    for steps, envs in ((1, 7), (9, 1), (200, 3)):
        exported.check(exported.make_inputs(steps, envs, "some"))
    assert all(export.verify(path).passed for path in exported.files.values())


def test_coefficients_are_exported_as_they_are_now(tmp_path):
    module = estimators.GAE(gamma=0.5)
    module.gamma = 0.9
    inputs = gae_inputs(ends="none")
    path = export.export_onnx(module, inputs, tmp_path / "gae.onnx")
    assert_close(load_onnx(path)(inputs)["advantage"], estimators.GAE(gamma=0.9)(**inputs).advantage)


def test_half_precision_is_accumulated_in_float32(tmp_path):
    module = estimators.GAE(gamma=0.97)
    inputs = gae_inputs((200, 3), dtype=torch.float16)
    path = export.export_onnx(module, inputs, tmp_path / "gae.onnx")
    expected = module(**inputs)
    for name, answer in load_onnx(path)(inputs).items():
        assert answer.dtype == torch.float16
        assert_close(answer, getattr(expected, name), what=name, roundings=2)


class NumbersInTheGraph(nn.Module):
    """Arithmetic with numbers that float32 does not hold, the package's own and others."""

    def __init__(self) -> None:
        super().__init__()
        self.distribution = distributions.TanhNormal(2, -0.3, 0.7)

    def forward(self, x: torch.Tensor, done: torch.Tensor) -> tuple[torch.Tensor, ...]:
        action = self.distribution.mode(torch.cat([x, x], -1))
        log_prob = self.distribution.log_prob(torch.cat([x, x], -1), action)
        advantage = functional.generalized_advantage_estimate(0.99, 0.95, x, x, x, done).advantage
        return action, log_prob, advantage, x.clamp_max(0.1), x.clamp(-0.1, 0.1), x * 0.3 + 0.1


def test_numbers_keep_the_precision_of_float64(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn((STEPS, 2), generator=generator, dtype=torch.float64)
    path = export.export_onnx(NumbersInTheGraph(), [x, x > 1.0], tmp_path / "numbers.onnx", ("T",))
    report = export.verify(path)
    assert report.passed, str(report)


# Losses


@pytest.fixture(scope="module", params=LOSS_CASES, ids=str)
def loss_files(request, tmp_path_factory):
    return request.param.export(tmp_path_factory.mktemp("loss"))


@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (1, 4), (7, 1), (200, 3)])
def test_a_loss_runs_at_any_size(loss_files, steps, envs):
    loss_files.check(loss_files.make_inputs(steps, envs, "some"))


@pytest.mark.parametrize("ends", ["none", "all"])
def test_a_loss_runs_however_episodes_end(loss_files, ends):
    loss_files.check(loss_files.make_inputs(30, 5, ends))


def test_a_losss_files_pass_verification(loss_files):
    for ending, path in loss_files.files.items():
        report = export.verify(path)
        assert report.passed, str(report)
        assert list(report.outputs) == list(loss_files.module.out_keys)
        assert not report.random
        assert set(report.checks.values()) <= {"passed"}, "the reference evaluator runs it too, and agrees"
        assert len(report.checks) == (3 if ending == ".onnx" else 0)


def test_a_losss_graph_has_the_names_of_arguments_and_losses(loss_files):
    inputs = loss_files.make_inputs(STEPS, ENVS, "some")
    model = onnx.load(loss_files.files[".onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.name for node in model.graph.input} == {name for name in inputs if loss_files.reads(name)}
    assert [node.name for node in model.graph.output] == list(loss_files.module.out_keys)
    assert {entry.domain for entry in model.opset_import} == {""}, "operators of ONNX alone"


def test_gradients_of_a_scripted_loss_are_eagers(loss_files):
    inputs = loss_files.make_inputs(9, 5, "some")
    loaded = torch.jit.load(str(loss_files.files[".pt"]))
    expected = gradients(loss_files.module(**inputs), loss_files.module)
    actual = gradients(loaded(**inputs), loaded)
    assert list(actual) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_scripted_loss_learns_where_this_package_is_not(tmp_path):
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


@pytest.mark.parametrize(("steps", "envs"), [(0, 3), (5, 0)], ids=["no_steps", "no_environments"])
def test_nothing_to_learn_from_is_a_loss_of_zero_or_an_error(loss_files, steps, envs, tmp_path):
    inputs = loss_files.make_inputs(steps, envs, "some")
    for name, answer in loss_files.runners[".pt"](inputs).items():
        assert not answer.any(), name
    # onnxruntime's operators are not all defined for empty tensors; none of them may end the process.
    outcome = in_a_process_of_its_own(loss_files.files[".onnx"], inputs, tmp_path)
    assert outcome.startswith(("an error", "results of shape"))


def test_what_is_masked_out_does_not_leak(tmp_path):
    exported = loss_case("Categorical-GAE-NT1-masked").export(tmp_path)
    inputs = exported.make_inputs(20, 6, "all")
    unknown = ~inputs["mask"]
    dirty = {
        **inputs,
        "reward": inputs["reward"].masked_fill(unknown, NAN),
        "observation": inputs["observation"].masked_fill(unknown, NAN),
        "next_observation": inputs["next_observation"].masked_fill(unknown, NAN),
    }
    with torch.no_grad():
        expected = exported.module(**dirty)
    for answers in exported.answers(dirty).values():
        for name, answer in answers.items():
            assert answer.isfinite().all()
            assert_close(answer, getattr(expected, name), what=name)


@pytest.fixture(scope="module")
def random_loss_files(tmp_path_factory):
    """Of a loss that estimates its entropy from samples."""
    folder = tmp_path_factory.mktemp("random")
    loss = make_loss("TanhNormal", value_estimator="TD0")
    return {
        ending: EXPORTERS[ending](loss, loss_inputs(distribution="TanhNormal"), folder / f"loss{ending}") for ending in QUICK
    }


@pytest.mark.parametrize("ending", QUICK)
def test_an_entropy_estimated_from_samples_is_told_apart(random_loss_files, ending):
    report = export.verify(random_loss_files[ending])
    assert report.passed, str(report)
    assert (list(report.outputs), report.random) == (["loss_objective", "loss_critic"], ["entropy", "loss_entropy"])
    assert any(line.split()[:2] == ["entropy", "random:"] for line in str(report).splitlines())
    if ending == ".onnx":
        assert report.checks["reference evaluator"] == "not run: outputs are random"


@pytest.mark.parametrize("ending", QUICK)
def test_a_file_draws_as_eager_does(random_loss_files, ending):
    many = loss_inputs(400, 50, "TanhNormal", seed=1)
    with torch.no_grad():
        expected = float(make_loss("TanhNormal", value_estimator="TD0")(**many).entropy)
    run = LOADERS[ending](random_loss_files[ending])
    first, second = (float(run(many)["entropy"]) for _ in range(2))
    assert first != second
    assert abs(first - expected) < 0.05, "another draw from the same distribution"


# Policies


DIM = 2
POLICIES = {
    "Categorical": distributions.Categorical(4),
    "OneHotCategorical": distributions.OneHotCategorical(4),
    "TanhNormal": distributions.TanhNormal(DIM, [-2.0, 0.0], [2.0, 3.0]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_run_greedily_and_from_noise(name, tmp_path):
    distribution = POLICIES[name]
    actor, critic = make_networks({"TanhNormal": "Normal"}.get(name, name))
    observation = torch.randn(ENVS, 3)
    noise = distribution.noise(actor(observation)).detach()
    greedy = export.GreedyPolicy(actor, distribution)
    sampled = export.SampledPolicy(actor, critic, distribution)
    for module, example in ((greedy, {"observation": observation}), (sampled, {"observation": observation, "noise": noise})):
        files = {
            ending: EXPORTERS[ending](module, example, tmp_path / f"{type(module).__name__}{ending}", ("N",))
            for ending in QUICK
        }
        for path in files.values():
            report = export.verify(path)
            assert report.passed, str(report)
            assert set(report.checks.values()) <= {"passed"}, "the reference evaluator runs it too, and agrees"

        def make_inputs(envs, example=example):
            return {key: torch.randn(envs, *tensor.shape[1:]) for key, tensor in example.items()}

        exported = Exported(module, files, make_inputs)
        for envs in (1, 3, 200):
            exported.check(make_inputs(envs))
        nothing = make_inputs(0)
        answers = exported.answers(nothing)
        # onnxruntime leaves the last dimension in a sum over nothing.
        assert not any(answer.numel() for answer in answers.pop(".onnx").values())
        for ending, answer in answers.items():
            assert_same_answers(answer, named(module(**nothing)), ending)


def test_a_sampled_policy_acts_as_the_distribution_does(tmp_path):
    actor, critic = make_networks()
    distribution = distributions.Categorical(4)
    observation = torch.randn(3000, 3)
    with torch.no_grad():
        params = actor(observation)
        noise = distribution.noise(params)
    path = export.export_torchscript(
        export.SampledPolicy(actor, critic, distribution), [observation, noise], tmp_path / "policy.pt", ("N",)
    )
    answers = load_torchscript(path)({"observation": observation, "noise": noise})
    assert list(answers) == ["action", "log_prob", "state_value"]
    assert torch.equal(answers["log_prob"], distribution.log_prob(params, answers["action"]))
    with torch.no_grad():
        assert torch.equal(answers["state_value"], critic(observation).squeeze(-1))
    frequency = torch.bincount(answers["action"], minlength=4) / 3000
    assert (frequency - params.softmax(-1).mean(0)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("options", "of_the_loss", "of_the_estimator"),
    [
        ({}, (), ()),
        ({"clip_value": 0.2}, ("state_value",), ()),
        ({"value_estimator": "VTrace"}, ("sample_log_prob",), ("log_pi", "log_mu")),
    ],
    ids=["plain", "clip_value", "VTrace"],
)
def test_the_graphs_of_a_loss_take_what_it_reads(options, of_the_loss, of_the_estimator, tmp_path):
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


# Extremes


class Bounded(nn.Module):
    """A critic of what may be infinite."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.linear(observation.clamp(-1.0, 1.0))


class Shifted(nn.Module):
    """An actor whose logits are its observation, shifted by what it learns."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation + self.shift


class Masking(Shifted):
    """The same, with a mask that forbids what is impossible, and the last action."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        allowed = torch.ones_like(observation).masked_fill(observation == -float("inf"), 0.0)
        allowed[..., 3] = 0.0
        return torch.cat([observation + self.shift, allowed], -1)


# In each row the first action is possible.
LOGITS = torch.tensor(
    [
        [1e4, -1e4, 0.0, 1.0],
        [-1e4, 1e4, 0.0, 1e4],
        [-1e4, -1e4, -1e4, -1e4],
        [0.0, 0.0, 0.0, 0.0],
        [1e30, -1e30, 0.0, 2e30],
        [0.0, -INF, -INF, 1.0],
        [5.0, -INF, -INF, -INF],
        [-1e4, 0.0, -INF, 1e4],
    ]
)
EXTREME = {
    "Categorical": (distributions.Categorical(4), Shifted),
    "OneHotCategorical": (distributions.OneHotCategorical(4), Shifted),
    "MaskedCategorical": (distributions.MaskedCategorical(4), Masking),
}


@pytest.mark.parametrize("name", EXTREME)
def test_policies_agree_on_extreme_logits(name, tmp_path):
    distribution, actor = EXTREME[name]
    example = torch.randn(5, 4)
    noise = distribution.noise(actor()(example)).detach()
    many = {"observation": LOGITS.repeat(50, 1), "noise": distribution.noise(actor()(LOGITS.repeat(50, 1))).detach()}
    greedy, sampled = export.GreedyPolicy(actor(), distribution), export.SampledPolicy(actor(), Bounded(), distribution)
    for module, inputs in ((greedy, {"observation": LOGITS}), (sampled, many)):
        given = {"observation": example, "noise": noise}
        examples = {key: given[key] for key in inputs}
        expected = named(module(**inputs))
        assert all(value.isfinite().all() for value in expected.values())
        for ending in QUICK:
            path = EXPORTERS[ending](module, examples, tmp_path / f"policy{ending}", ("N",))
            assert_same_answers(LOADERS[ending](path)(inputs), expected, ending)


@pytest.mark.parametrize("name", EXTREME)
def test_losses_and_their_gradients_agree_on_extreme_logits(name, tmp_path):
    distribution, actor = EXTREME[name]
    loss = A2CLoss(actor(), Bounded(), distribution, reduction="none")
    action = torch.zeros(len(LOGITS), 3, dtype=torch.int64)
    if name == "OneHotCategorical":
        action = nn.functional.one_hot(action, 4)
    steps = make_loss_steps((len(LOGITS), 3), column=False)._replace(
        observation=LOGITS.unsqueeze(1).expand(-1, 3, -1),
        next_observation=LOGITS.flip(0).unsqueeze(1).expand(-1, 3, -1),
        action=action,
    )
    inputs = of(steps, *PLAIN)
    example = {**inputs, "observation": torch.randn(len(LOGITS), 3, 4), "next_observation": torch.randn(len(LOGITS), 3, 4)}
    with torch.no_grad():
        expected = named(loss(**inputs))
    assert all(value.isfinite().all() for value in expected.values())
    assert expected["loss_objective"].abs().max() > 1e3
    for ending in QUICK:
        path = EXPORTERS[ending](loss, example, tmp_path / f"loss{ending}")
        assert_same_answers(LOADERS[ending](path)(inputs), expected, ending)
    loaded = torch.jit.load(str(tmp_path / "loss.pt"))
    of_eager, of_the_file = gradients(loss(**inputs), loss), gradients(loaded(**inputs), loaded)
    for parameter, gradient in of_eager.items():
        assert gradient.isfinite().all()
        assert_close(of_the_file[parameter], gradient, what=parameter)
