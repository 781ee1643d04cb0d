"""Exported files against eager: in onnxruntime, in TorchScript without this package, and as ``verify`` sees them."""

import inspect
import shutil
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cases import make_steps, run_without_the_library
from loss_cases import INSIDE, gradients, make_loss, make_loss_steps, make_networks, of
from tolerances import assert_close
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export, functional
from a2c_compiled.training import Rollout

NAN = float("nan")
# Examples have 6 steps of 4 environments; no test runs them again at that size.
AXES = {"TN": ("T", "N"), "NT": ("N", "T"), "NT1": ("N", "T")}
STEPS, ENVS = 6, 4


def shape_of(layout, steps=STEPS, envs=ENVS):
    return {"TN": (steps, envs), "NT": (envs, steps), "NT1": (envs, steps, 1)}[layout]


class Exported(NamedTuple):
    """A module, its two files, and how its data lies."""

    module: nn.Module
    onnx: Any
    torchscript: Any
    make_inputs: Any
    """From number of steps, number of environments, and how episodes end."""

    def reads(self, name):
        """Whether the module has a use for that argument: TD(0) has none for ``done`` where it is given ``terminated``."""
        estimator = getattr(self.module, "value_estimator", self.module)
        return not (isinstance(estimator, estimators.TD0Estimator) and name == "done")

    def check(self, inputs, runtimes=("onnx", "torchscript")):
        """Both files answer as eager does."""
        with torch.no_grad():
            expected = {name: value for name, value in self.module(**inputs)._asdict().items() if value is not None}
        for runtime in runtimes:
            answers = {"onnx": in_onnxruntime, "torchscript": in_torchscript}[runtime](getattr(self, runtime), inputs)
            assert list(answers) == list(expected), runtime
            real = next((value.dtype for value in expected.values() if value.is_floating_point()), torch.float32)
            for name, value in expected.items():
                assert answers[name].dtype == value.dtype
                assert_close(answers[name].to(real), value.to(real), what=f"{name} in {runtime}")


def in_onnxruntime(path, inputs):
    """Outputs by name, from stock onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    read = [value.name for value in session.get_inputs()]
    answers = session.run(names, {name: inputs[name].numpy() for name in read})
    return {name: torch.from_numpy(np.asarray(answer)) for name, answer in zip(names, answers, strict=True)}


@torch.no_grad()
def in_torchscript(path, inputs):
    """Outputs by name, those that are None left out."""
    return {name: value for name, value in torch.jit.load(str(path))(**inputs)._asdict().items() if value is not None}


def export_both(folder, module, make_inputs, axes):
    inputs = make_inputs(STEPS, ENVS, "some")
    files = (
        export_one(module, inputs, folder / f"graph{suffix}", axes)
        for export_one, suffix in ((export.export_onnx, ".onnx"), (export.export_torchscript, ".pt"))
    )
    return Exported(module, *files, make_inputs)


# Estimators


class EstimatorCase(NamedTuple):
    kind: type
    dtype: torch.dtype
    layout: str
    options: dict = {}

    def __str__(self):
        return "-".join([self.kind.__name__, str(self.dtype).removeprefix("torch."), self.layout, *self.options])

    def export(self, folder):
        options = dict(self.options)
        if self.layout == "NT":
            options["time_dim"] = -1
        module = self.kind(gamma=0.97, **options)
        names = inspect.signature(module.forward).parameters

        def make_inputs(steps, envs, ends):
            made = make_steps(shape_of(self.layout, steps, envs), self.dtype, seed=steps, ends=ends)._asdict()
            return {name: tensor for name, tensor in made.items() if name in names}

        return export_both(folder, module, make_inputs, AXES[self.layout])


ESTIMATOR_CASES = (
    EstimatorCase(estimators.GAE, torch.float32, "TN"),
    EstimatorCase(estimators.GAE, torch.float64, "NT1", {"auto_reset_env": True}),
    EstimatorCase(estimators.GAE, torch.float64, "NT"),
    EstimatorCase(estimators.TD0Estimator, torch.float32, "NT1"),
    EstimatorCase(estimators.TD0Estimator, torch.float64, "TN"),
    EstimatorCase(estimators.TD1Estimator, torch.float32, "NT"),
    EstimatorCase(estimators.TD1Estimator, torch.float64, "TN"),
    EstimatorCase(estimators.TDLambdaEstimator, torch.float32, "NT1"),
    EstimatorCase(estimators.TDLambdaEstimator, torch.float64, "NT"),
    EstimatorCase(estimators.VTrace, torch.float32, "TN"),
    EstimatorCase(estimators.VTrace, torch.float64, "NT1"),
)
STANDARDIZING_CASES = (
    EstimatorCase(estimators.GAE, torch.float32, "NT", {"average_gae": True}),
    EstimatorCase(estimators.TDLambdaEstimator, torch.float64, "TN", {"average_rewards": True}),
    EstimatorCase(estimators.VTrace, torch.float64, "TN", {"average_adv": True}),
)


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
    for path in (estimator_files.onnx, estimator_files.torchscript):
        report = export.verify(path)
        assert report.passed, str(report)
        assert list(report.outputs) == ["advantage", "value_target"]


def test_an_estimators_graph_has_the_names_of_arguments_and_results(estimator_files):
    inputs = estimator_files.make_inputs(STEPS, ENVS, "some")
    session = onnxruntime.InferenceSession(str(estimator_files.onnx), providers=["CPUExecutionProvider"])
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
    for answers in (in_onnxruntime(estimator_files.onnx, inputs), in_torchscript(estimator_files.torchscript, inputs)):
        for name, value in expected._asdict().items():
            assert_close(answers[name].narrow(time, 0, last + 1), value.narrow(time, 0, last + 1), what=name)


def test_no_environments_give_empty_results(estimator_files):
    inputs = estimator_files.make_inputs(5, 0, "some")
    for answers in (in_onnxruntime(estimator_files.onnx, inputs), in_torchscript(estimator_files.torchscript, inputs)):
        assert {name: answer.shape for name, answer in answers.items()} == dict.fromkeys(
            ("advantage", "value_target"), inputs["reward"].shape
        )


def test_no_steps_never_end_the_process(estimator_files, tmp_path):
    inputs = estimator_files.make_inputs(0, 3, "some")
    assert all(answer.numel() == 0 for answer in in_torchscript(estimator_files.torchscript, inputs).values())
    outcome = in_a_process_of_its_own(estimator_files.onnx, inputs, tmp_path)
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
    assert export.verify(exported.onnx).passed
    assert export.verify(exported.torchscript).passed


def test_coefficients_are_exported_as_they_are_now(tmp_path):
    module = estimators.GAE(gamma=0.5)
    module.gamma = 0.9
    inputs = make_steps((STEPS, ENVS), ends="none")._asdict()
    arguments = {name: inputs[name] for name in ("state_value", "next_state_value", "reward", "done")}
    path = export.export_onnx(module, arguments, tmp_path / "gae.onnx")
    assert_close(in_onnxruntime(path, arguments)["advantage"], estimators.GAE(gamma=0.9)(**arguments).advantage)


def test_half_precision_is_accumulated_in_float32(tmp_path):
    module = estimators.GAE(gamma=0.97)
    steps = make_steps((200, 3), torch.float16)._asdict()
    inputs = {name: steps[name] for name in gae_inputs()}
    path = export.export_onnx(module, inputs, tmp_path / "gae.onnx")
    expected = module(**inputs)
    for name, answer in in_onnxruntime(path, inputs).items():
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


class LossCase(NamedTuple):
    name: str
    distribution: str
    estimator: str
    inputs: tuple
    options: dict = {}
    dtype: torch.dtype = torch.float32
    column: bool = False

    def __str__(self):
        return self.name

    def export(self, folder):
        # A value function some way from the data, so that both sides of the clipping occur.
        options = {"value_estimator": self.estimator, **self.options}
        module = make_loss(self.distribution, dtype=self.dtype, **options)

        def make_inputs(steps, envs, ends):
            shape = shape_of("NT" if self.column else "TN", steps, envs)
            made = make_loss_steps(shape, self.distribution, self.dtype, seed=steps, column=self.column)
            done = {"some": made.done, "none": torch.zeros_like(made.done), "all": torch.ones_like(made.done)}[ends]
            return of(made._replace(done=done, terminated=made.terminated & done), *self.inputs)

        return export_both(folder, module, make_inputs, AXES["NT" if self.column else "TN"])


PLAIN = ("reward", "next_observation", "done", "terminated")
LOSS_CASES = (
    LossCase(
        "Categorical-GAE-clipped-shared",
        "Categorical",
        "GAE",
        (*PLAIN, "state_value"),
        {"clip_value": 0.2, "separate_losses": True, "shared": True},
    ),
    LossCase("OneHotCategorical-TD0-sum", "OneHotCategorical", "TD0", PLAIN, {"reduction": "sum", "loss_critic_type": "l1"}),
    LossCase("MaskedCategorical-TD1-none", "MaskedCategorical", "TD1", PLAIN, {"reduction": "none"}),
    LossCase("Normal-TDLambda-float64", "Normal", "TDLambda", PLAIN, {"loss_critic_type": "l2"}, torch.float64),
    LossCase("TanhNormal-VTrace", "TanhNormal", "VTrace", INSIDE, {"entropy_coef": 0.0}),
    LossCase("Categorical-GAE-NT1-masked", "Categorical", "GAE", (*PLAIN, "mask"), {"reduction": "mean"}, column=True),
    LossCase(
        "Categorical-advantage_given",
        "Categorical",
        "GAE",
        ("advantage", "value_target", "state_value"),
        {"clip_value": 0.2, "shared": True},
    ),
    LossCase("Categorical-no_critic", "Categorical", "GAE", PLAIN, {"critic_coef": None, "reduction": "none"}),
)


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
    for path in (loss_files.onnx, loss_files.torchscript):
        report = export.verify(path)
        assert report.passed, str(report)
        assert list(report.outputs) == list(loss_files.module.out_keys)
        assert not report.random


def test_a_losss_graph_has_the_names_of_arguments_and_losses(loss_files):
    inputs = loss_files.make_inputs(STEPS, ENVS, "some")
    model = onnx.load(loss_files.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert {node.name for node in model.graph.input} == {name for name in inputs if loss_files.reads(name)}
    assert [node.name for node in model.graph.output] == list(loss_files.module.out_keys)
    assert {entry.domain for entry in model.opset_import} == {""}, "operators of ONNX alone"


def test_gradients_of_a_scripted_loss_are_eagers(loss_files):
    inputs = loss_files.make_inputs(9, 5, "some")
    loaded = torch.jit.load(str(loss_files.torchscript))
    expected = gradients(loss_files.module(**inputs), loss_files.module)
    actual = gradients(loaded(**inputs), loaded)
    assert list(actual) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_scripted_loss_learns_where_this_package_is_not(tmp_path):
    loss = make_loss(shared=True, separate_losses=True, clip_value=0.2)
    inputs = of(make_loss_steps((9, 5), column=False), *PLAIN)
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
    for name, answer in in_torchscript(loss_files.torchscript, inputs).items():
        assert not answer.any(), name
    # onnxruntime's operators are not all defined for empty tensors; none of them may end the process.
    outcome = in_a_process_of_its_own(loss_files.onnx, inputs, tmp_path)
    assert outcome.startswith(("an error", "results of shape"))


def exported_loss(name, folder):
    return next(case for case in LOSS_CASES if case.name == name).export(folder)


def test_what_is_masked_out_does_not_leak(tmp_path):
    exported = exported_loss("Categorical-GAE-NT1-masked", tmp_path)
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
    for answers in (in_onnxruntime(exported.onnx, dirty), in_torchscript(exported.torchscript, dirty)):
        for name, answer in answers.items():
            assert answer.isfinite().all()
            assert_close(answer, getattr(expected, name), what=name)


def test_an_entropy_estimated_from_samples_is_told_apart(tmp_path):
    loss = make_loss("TanhNormal", value_estimator="TD0")
    inputs = of(make_loss_steps((STEPS, ENVS), "TanhNormal", column=False), *PLAIN)
    for path in (
        export.export_onnx(loss, inputs, tmp_path / "loss.onnx"),
        export.export_torchscript(loss, inputs, tmp_path / "loss.pt"),
    ):
        report = export.verify(path)
        assert report.passed
        assert (list(report.outputs), report.random) == (["loss_objective", "loss_critic"], ["entropy", "loss_entropy"])
        assert "entropy              random" in str(report)
    many = of(make_loss_steps((400, 50), "TanhNormal", column=False), *PLAIN)
    with torch.no_grad():
        expected = float(loss(**many).entropy)
    session = onnxruntime.InferenceSession(str(tmp_path / "loss.onnx"), providers=["CPUExecutionProvider"])
    feed = {node.name: many[node.name].numpy() for node in session.get_inputs()}
    first, second = (float(session.run(["entropy"], feed)[0]) for _ in range(2))
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
        paths = [tmp_path / f"{type(module).__name__}{suffix}" for suffix in (".onnx", ".pt")]
        export.export_onnx(module, example, paths[0], ("N",))
        export.export_torchscript(module, example, paths[1], ("N",))
        assert all(export.verify(path).passed for path in paths)

        def make_inputs(steps, envs, ends, example=example):
            return {key: torch.randn(envs, *tensor.shape[1:]) for key, tensor in example.items()}

        exported = Exported(module, *paths, make_inputs)
        for envs in (1, 3, 200):
            exported.check(make_inputs(0, envs, "none"))


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
    answers = in_torchscript(path, {"observation": observation, "noise": noise})
    assert list(answers) == ["action", "log_prob", "state_value"]
    assert torch.equal(answers["log_prob"], distribution.log_prob(params, answers["action"]))
    with torch.no_grad():
        assert torch.equal(answers["state_value"], critic(observation).squeeze(-1))
    frequency = torch.bincount(answers["action"], minlength=4) / 3000
    assert (frequency - params.softmax(-1).mean(0)).abs().max() < 0.03


def make_rollout(distribution="Categorical"):
    steps = make_loss_steps((STEPS, ENVS), distribution, column=False)
    return Rollout(
        *(getattr(steps, name) for name in Rollout._fields[:6]),
        log_prob=steps.sample_log_prob,
        state_value=steps.state_value,
        mask=steps.mask,
    )


@pytest.mark.parametrize(
    ("options", "loss_inputs", "estimator_inputs"),
    [
        ({}, (), ()),
        ({"clip_value": 0.2}, ("state_value",), ()),
        ({"value_estimator": "VTrace"}, ("sample_log_prob",), ("log_pi", "log_mu")),
    ],
    ids=["plain", "clip_value", "VTrace"],
)
def test_the_graphs_of_a_loss_take_what_it_reads(options, loss_inputs, estimator_inputs, tmp_path):
    graphs = export.graphs_of(make_loss(**options), make_rollout())
    always = ("observation", "action", *PLAIN, "mask")
    assert {name: set(graph.example_inputs) for name, graph in graphs.items()} == {
        "policy": {"observation"},
        "policy_sampled": {"observation", "noise"},
        "loss": {*always, *loss_inputs},
        "estimator": {"state_value", "next_state_value", "reward", "done", "terminated", *estimator_inputs},
    }
    for name, graph in graphs.items():
        report = export.verify(export.export_torchscript(*graph[:2], tmp_path / f"{name}.pt", graph.dynamic_axes))
        assert report.passed, str(report)


# The call


def gae_inputs(shape=(STEPS, ENVS), ends="some"):
    steps = make_steps(shape, torch.float32, ends=ends)._asdict()
    return {name: steps[name] for name in ("state_value", "next_state_value", "reward", "done", "terminated")}


EXPORTERS = {".onnx": export.export_onnx, ".pt": export.export_torchscript}


@pytest.fixture(params=EXPORTERS)
def suffix(request):
    return request.param


def test_inputs_may_come_in_order(suffix, tmp_path):
    inputs = gae_inputs()
    path = EXPORTERS[suffix](estimators.GAE(), list(inputs.values())[:4], tmp_path / f"gae{suffix}")
    assert export.verify(path).passed
    with np.load(tmp_path / f"gae{suffix}.cases.npz") as cases:
        assert {key.split("/")[2] for key in cases.files if "/inputs/" in key} == set(inputs) - {"terminated"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda inputs: {**inputs, "rewards": inputs["reward"]}, ValueError, r"expected names among .*, got 'rewards'"),
        (lambda inputs: {**inputs, "reward": 1.0}, TypeError, "expected a tensor for reward, got float"),
        (lambda inputs: {**inputs, "terminated": None}, TypeError, "expected a tensor for terminated, got NoneType"),
        (lambda inputs: [*inputs.values(), inputs["done"]], ValueError, "expected at most 5"),
        (
            lambda inputs: {name: tensor[:1] for name, tensor in inputs.items()},
            ValueError,
            r"expected dimension 0 \(T\) of state_value to be 2 or more, got 1",
        ),
        (
            lambda inputs: {**inputs, "reward": inputs["reward"][:, :3]},
            ValueError,
            r"expected 4 for dimension 1 \(N\) of reward, got 3",
        ),
    ],
    ids=["unknown", "number", "none", "too_many", "size_1", "two_sizes"],
)
def test_unfit_example_inputs_are_named(suffix, change, error, message, tmp_path):
    with pytest.raises(error, match=f"example_inputs: {message}"):
        EXPORTERS[suffix](estimators.GAE(), change(gae_inputs()), tmp_path / f"gae{suffix}")
    assert not list(tmp_path.iterdir())


def test_dynamic_axes_of_an_unknown_input_are_refused(suffix, tmp_path):
    with pytest.raises(ValueError, match=r"dynamic_axes: expected names among .*, got 'rewards'"):
        EXPORTERS[suffix](estimators.GAE(), gae_inputs(), tmp_path / f"gae{suffix}", {"rewards": ("T", "N")})


@pytest.mark.parametrize("opset", [17, 1000])
def test_an_opset_out_of_range_is_refused(opset, tmp_path):
    with pytest.raises(ValueError, match=f"opset: expected 18 to .*, got {opset}"):
        export.export_onnx(estimators.GAE(), gae_inputs(), tmp_path / "gae.onnx", opset=opset)


def test_the_opset_asked_for_is_written(tmp_path):
    path = export.export_onnx(estimators.TD0Estimator(), gae_inputs(), tmp_path / "td0.onnx", opset=20)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", 20)]
    assert export.verify(path).passed


def test_an_opset_that_torch_cannot_make_is_an_error(tmp_path, monkeypatch):
    real_export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: real_export(*args, **{**options, "opset_version": 18}))
    with pytest.raises(RuntimeError, match="opset: 20 cannot be made of this module, 18 can"):
        export.export_onnx(estimators.TD0Estimator(), gae_inputs(), tmp_path / "td0.onnx", opset=20)
    assert not (tmp_path / "td0.onnx").exists()


def test_sizes_may_be_fixed_and_outputs_renamed(tmp_path):
    inputs = gae_inputs()
    axes = dict.fromkeys(inputs, (None, "N"))
    path = export.export_onnx(
        estimators.TD0Estimator(), inputs, tmp_path / "td0.onnx", axes, output_names=["advantage", "target"]
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {tuple(node.shape) for node in session.get_inputs()} == {(STEPS, "N")}
    assert [node.name for node in session.get_outputs()] == ["advantage", "target"]


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.dropout(x))


def test_modules_are_exported_for_evaluation_and_left_as_they_were(suffix, tmp_path):
    module = WithDropout()
    path = EXPORTERS[suffix](module, [torch.ones(3, 2)], tmp_path / f"dropout{suffix}")
    assert (module.training, module.dropout.training, module.frozen.training) == (True, True, False)
    x = torch.randn(5, 7)
    run = in_onnxruntime if suffix == ".onnx" else lambda path, inputs: {"output": torch.jit.load(path)(**inputs)}
    assert torch.equal(run(path, {"x": x})["output"], x)


def test_recorded_cases_keep_what_belongs_together(tmp_path):
    loss = make_loss("MaskedCategorical", value_estimator="GAE", reduction="none")
    inputs = of(make_loss_steps((STEPS, ENVS), "MaskedCategorical", column=False), *PLAIN)
    path = export.export_torchscript(loss, inputs, tmp_path / "loss.pt")
    with np.load(f"{path}.cases.npz") as cases:
        for i in range(6):
            assert np.isfinite(cases[f"{i}/outputs/loss_objective"]).all(), "no action that its observation forbids"
            assert (cases[f"{i}/inputs/terminated"] <= cases[f"{i}/inputs/done"]).all()
        sizes = {cases[f"{i}/inputs/reward"].shape for i in range(6)}
    assert len(sizes) == 6
    assert (STEPS, ENVS) not in sizes


# What fails leaves everything as it was


class Branching(nn.Module):
    """Decides on data, which neither export nor ``torch.jit.script`` of a lambda can follow."""

    def __init__(self):
        super().__init__()
        self.function = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x) if x.sum() > 0 else -x


def test_a_module_that_cannot_be_exported_leaves_the_older_file(suffix, tmp_path):
    path = tmp_path / f"graph{suffix}"
    path.write_text("older")
    cases = tmp_path / f"graph{suffix}.cases.npz"
    cases.write_text("older cases")
    with pytest.raises(RuntimeError):
        EXPORTERS[suffix](Branching(), [torch.ones(3, 2)], path)
    assert (path.read_text(), cases.read_text()) == ("older", "older cases")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_the_checker_refuses_leaves_the_older_file(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise onnx.checker.ValidationError("refused")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    (tmp_path / "graph.onnx").write_text("older")
    with pytest.raises(onnx.checker.ValidationError):
        export.export_onnx(estimators.TD0Estimator(), gae_inputs(), tmp_path / "graph.onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("graph.onnx", "older")]


def test_torch_distributions_cannot_be_scripted(tmp_path):
    distribution = distributions.TorchDistribution(lambda params: torch.distributions.Categorical(logits=params))
    loss = A2CLoss(*make_networks(), distribution)
    inputs = of(make_loss_steps((STEPS, ENVS), column=False), *PLAIN)
    with pytest.raises(TypeError, match=r"TorchScript cannot read torch\.distributions"):
        export.export_torchscript(loss, inputs, tmp_path / "loss.pt")
    assert not list(tmp_path.iterdir())


# verify


@pytest.fixture(scope="module")
def gae_files(tmp_path_factory):
    """Folder of gae.onnx and gae.pt, and of other.onnx and other.pt: another discount under the same data."""
    folder = tmp_path_factory.mktemp("gae")
    for name, gamma in (("gae", 0.99), ("other", 0.9)):
        for suffix, export_one in EXPORTERS.items():
            export_one(estimators.GAE(gamma=gamma), gae_inputs(), folder / f"{name}{suffix}")
    return folder


@pytest.fixture
def folder(gae_files, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(gae_files, tmp_path / "files")


def altered_cases(path, alter):
    """Change the arrays beside an exported file."""
    cases = path.with_name(f"{path.name}.cases.npz")
    with np.load(cases) as loaded:
        arrays = {key: loaded[key] for key in loaded.files}
    np.savez(cases, **(alter(arrays) or {}))


def test_a_file_with_other_coefficients_does_not_pass(folder, suffix):
    shutil.copy(folder / f"other{suffix}", folder / f"gae{suffix}")
    report = export.verify(folder / f"gae{suffix}")
    assert not report.passed
    assert "DIFFERS FROM EAGER at 6 shapes" in str(report)
    assert report.outputs["advantage"].relative > 1e-3


@pytest.mark.parametrize("wrong", [1e-2, NAN, float("inf")])
def test_one_entry_that_differs_does_not_pass(folder, suffix, wrong):
    def alter(arrays):
        arrays["3/outputs/advantage"][1, 1] += wrong
        return arrays

    altered_cases(folder / f"gae{suffix}", alter)
    report = export.verify(folder / f"gae{suffix}")
    assert (report.passed, report.outputs["advantage"].passed, report.outputs["value_target"].passed) == (False, False, True)
    lines = str(report).splitlines()
    assert lines[1].startswith("  advantage")
    assert [line.endswith("!") for line in lines] == [False, True, False]


@pytest.mark.parametrize("kind", ["outputs", "random"])
@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x.astype(np.float64)], ids=["shape", "dtype"])
def test_an_output_of_another_kind_does_not_pass(folder, kind, change):
    def alter(arrays):
        return {
            key.replace("outputs/value_target", f"{kind}/value_target"): change(x) if "value_target" in key else x
            for key, x in arrays.items()
        }

    altered_cases(folder / "gae.pt", alter)
    report = export.verify(folder / "gae.pt")
    assert (report.passed, report.outputs["advantage"].passed) == (False, True)
    assert report.outputs["value_target"].relative == float("inf")


def test_a_report_says_where_and_how_far(folder):
    report = export.verify(folder / "gae.onnx")
    assert report.passed
    assert report.path == folder / "gae.onnx"
    assert report.shapes == [[1, 1], [1, 7], [11, 1], [3, 2], [67, 5], [128, 19]]
    first, *outputs = str(report).splitlines()
    assert first == f"{folder / 'gae.onnx'}: equal to eager at 6 shapes"
    assert [line.split()[0] for line in outputs] == ["advantage", "value_target"]
    assert all(error.relative <= error.absolute < 1e-4 for error in report.outputs.values())


def test_a_missing_file_is_named(suffix, tmp_path):
    with pytest.raises(ValueError, match=rf"path: expected an exported file, found nothing at .*none\{suffix}"):
        export.verify(tmp_path / f"none{suffix}")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(ValueError, match=r"expected a file ending in \.onnx or \.pt, got .*model\.bin"):
        export.verify(tmp_path / "model.bin")


def test_a_file_without_its_cases_is_refused(folder, suffix):
    (folder / f"gae{suffix}.cases.npz").unlink()
    with pytest.raises(ValueError, match=rf"expected gae\{suffix}\.cases\.npz beside it"):
        export.verify(folder / f"gae{suffix}")


def test_a_truncated_file_is_refused(folder, suffix):
    path = folder / f"gae{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="does not run"):
        export.verify(path)


def test_a_text_file_is_refused(folder, suffix):
    (folder / f"gae{suffix}").write_text("an exported file, once")
    with pytest.raises(ValueError, match="does not run"):
        export.verify(folder / f"gae{suffix}")


@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda data: b"text", lambda data: b""], ids=["truncated", "text", "empty"]
)
def test_spoilt_cases_are_refused(folder, spoil):
    cases = folder / "gae.pt.cases.npz"
    cases.write_bytes(spoil(cases.read_bytes()))
    with pytest.raises(ValueError, match=r"gae\.pt\.cases\.npz: not readable"):
        export.verify(folder / "gae.pt")


def without(*names):
    return lambda arrays: {key: x for key, x in arrays.items() if not key.endswith(names)}


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda arrays: {}, "expected at least one case, found none"),
        (lambda arrays: {**arrays, "seven": np.ones(1)}, "not readable"),
        (lambda arrays: {**arrays, "0/other/advantage": np.ones(1)}, "not readable"),
        (without("outputs/advantage", "outputs/value_target"), "expected outputs"),
        (without("outputs/advantage"), r"expected outputs \['value_target'\], got \['advantage', 'value_target'\]"),
        (without("inputs/reward"), "does not run"),
    ],
    ids=["none", "stray_array", "stray_kind", "no_outputs", "other_outputs", "no_reward"],
)
def test_cases_that_are_not_the_files_are_refused(folder, alter, message):
    altered_cases(folder / "gae.pt", alter)
    with pytest.raises(ValueError, match=message):
        export.verify(folder / "gae.pt")


def test_cases_of_other_inputs_are_refused_by_onnxruntime(folder):
    altered_cases(folder / "gae.onnx", lambda arrays: {key.replace("/reward", "/rewards"): x for key, x in arrays.items()})
    with pytest.raises(ValueError, match="does not run"):
        export.verify(folder / "gae.onnx")


def test_axes_that_may_not_vary_are_named(tmp_path):
    policy = export.GreedyPolicy(nn.Linear(4, 2), distributions.Categorical(2))
    with pytest.raises(ValueError, match="dynamic_axes: the module does not run at sizes"):
        export.export_torchscript(policy, {"observation": torch.randn(8, 4)}, tmp_path / "policy.pt")
    with pytest.raises(TypeError, match="example_inputs: expected a mapping"):
        export.export_torchscript(policy, torch.randn(8, 4), tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())
