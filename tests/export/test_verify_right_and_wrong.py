"""``verify`` passes right files, also random and ill-conditioned ones, and refuses files with a small fault."""

import shutil
import warnings
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, export
from a2c_compiled.export.checking import onnx_file
from a2c_compiled.export.checking.randomness import SAMPLES, random_outputs, same_distribution
from a2c_compiled.export.checking.rounding import RoundingErrors, within_rounding
from a2c_compiled.export.tracing.call import Call

pytestmark = pytest.mark.xdist_group("right_and_wrong")


# Random outputs


class Draws(NamedTuple):
    bernoulli: torch.Tensor
    dropout: torch.Tensor
    normal: torch.Tensor
    choices: torch.Tensor
    choice: torch.Tensor
    certain: torch.Tensor


class Drawing(nn.Module):
    """Draws with the operators that onnxruntime or torch's exporter get wrong. ``choice`` is nearly always 0."""

    def __init__(self, flipped: bool = False) -> None:
        super().__init__()
        self.flipped = flipped

    def forward(self, x: torch.Tensor) -> Draws:
        p = x.sigmoid()
        return Draws(
            torch.bernoulli(1 - p if self.flipped else p),
            F.dropout(x.exp(), 0.3, True).abs() + 1.0,
            torch.normal(1.0, x.exp()),
            torch.multinomial(x.softmax(-1), 2),
            torch.multinomial((5.0 * x).softmax(-1), 1),
            x.double().exp(),
        )


LOGITS = torch.tensor([2.0, -0.5, 0.3, -2.0])
RANDOM = ["bernoulli", "choice", "choices", "dropout", "normal"]


@pytest.fixture(scope="module")
def drawing_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawing")
    inputs = {"x": LOGITS.expand(5, 4)}
    return [export.export_onnx(Drawing(flipped), inputs, folder / f"{flipped}.onnx", ("N",)) for flipped in (False, True)]


@pytest.mark.slow
def test_random_operators_in_a_file_draw_from_the_distribution_of_eager_mode(drawing_files):
    report = export.verify(drawing_files[0])
    assert report.passed, str(report)
    assert (report.random, list(report.outputs)) == (RANDOM, ["certain"])
    assert report.checks["distribution of random outputs"] == "passed"
    session = onnxruntime.InferenceSession(str(drawing_files[0]), providers=["CPUExecutionProvider"])
    x = LOGITS.expand(20_000, 4).contiguous()
    answers = dict(zip(Draws._fields, session.run(None, {"x": x.numpy()}), strict=True))
    p = LOGITS.double()
    assert np.abs(answers["bernoulli"].mean(0) - p.sigmoid().numpy()).max() < 0.02
    assert np.abs((answers["dropout"] == 1.0).mean(0) - 0.3).max() < 0.02
    assert np.abs((answers["normal"] - 1.0).mean(0) / p.exp().numpy()).max() < 0.04
    assert np.abs(answers["normal"].std(0) / p.exp().numpy() - 1.0).max() < 0.04
    assert abs(np.corrcoef(answers["normal"][:, 0], answers["normal"][:, 1])[0, 1]) < 0.04
    first, second = answers["choices"].T
    assert (first != second).all()
    assert np.abs(np.bincount(first, minlength=4) / len(x) - p.softmax(-1).numpy()).max() < 0.02


@pytest.mark.slow
def test_a_file_that_draws_with_another_probability_does_not_pass(drawing_files, tmp_path):
    right, flipped = drawing_files
    shutil.copy(flipped, tmp_path / "file.onnx")
    shutil.copy(f"{right}.cases.npz", tmp_path / "file.onnx.cases.npz")
    report = export.verify(tmp_path / "file.onnx")
    assert (report.passed, report.checks["distribution of random outputs"]) == (False, "differs in bernoulli")


@pytest.mark.slow
def test_cases_of_an_earlier_version_still_serve(drawing_files, tmp_path):
    """They have no samples and no rounding errors, and an output is random only in the cases in which two seeds gave other numbers."""
    path = tmp_path / "earlier.onnx"
    shutil.copy(drawing_files[0], path)
    with np.load(f"{drawing_files[0]}.cases.npz") as loaded:
        arrays = {key: loaded[key] for key in loaded.files if "/samples/" not in key and "/errors/" not in key}
    arrays["N=1/outputs/choice"] = 0 * arrays.pop("N=1/random/choice") + 3
    np.savez(f"{path}.cases.npz", **arrays)
    report = export.verify(path)
    assert report.passed, str(report)
    assert report.random == RANDOM
    assert report.checks["distribution of random outputs"].startswith("not run: ")


def test_outputs_that_depend_on_random_numbers_are_known_from_the_operators():
    def run():
        noise = torch.empty(3)
        noise[1:].bernoulli_(1.0)
        branched = torch.ones(3)
        return {"view": noise[:1], "product": noise * 0.0, "certain": F.dropout(torch.ones(3), 0.5, False), "other": branched}

    assert random_outputs(run) == {"view", "product"}

    def branches():
        return {"either": torch.ones(1) if torch.rand(()) < 2.0 else torch.zeros(1)}

    assert random_outputs(branches) == {"either"}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mean", lambda x: x + 1.0),
        ("spread", lambda x: 3.0 * x),
        ("constant", lambda x: 0.0 * x),
        ("shared", lambda x: x[:, :1] + 0.0 * x),
        ("small shift of every element", lambda x: x + 0.3),
        ("not a number", lambda x: x / 0.0 * 0.0),
    ],
)
def test_other_distributions_are_recognised(name, wrong):
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, SAMPLES, 32))
    assert same_distribution(one, other)
    with np.errstate(all="ignore"):
        assert not same_distribution(one, wrong(other)), name


def test_equal_distributions_of_all_kinds_are_recognised():
    generator = np.random.default_rng(0)
    for _ in range(100):
        for draw in (generator.standard_cauchy, generator.standard_normal, lambda size: generator.integers(3, size=size) / 3.0):
            one, other = (draw((SAMPLES, 8)) for _ in range(2))
            assert same_distribution(one, other * (1.0 + 1e-6))


# Rounding


def test_tolerances_follow_from_the_rounding_errors_of_eager_mode():
    class Cancels(nn.Module):
        def forward(self, x):
            return {"cancels": (x.exp() + 1e4) - 1e4, "exact": 2.0 * x, "choice": x.argmax(-1)}

    x = torch.randn(50, 4)
    x[0] = 1.0
    call = Call(Cancels(), {"x": x}, ("N",))
    outputs = call.eager(call.inputs)
    errors = RoundingErrors(call).of(call.inputs, outputs)
    expected = {name: tensor.numpy() for name, tensor in outputs.items()}

    def passes(name, error):
        return within_rounding(expected[name] + np.asarray(error, expected[name].dtype), expected[name], errors[name])

    assert (passes("cancels", 1e-3), passes("cancels", 1.0)) == (True, False)
    assert (passes("exact", 1e-7), passes("exact", 1e-5)) == (True, False)
    assert (passes("choice", 0), passes("choice", 1)) == (True, False)


@pytest.mark.slow
def test_a_training_step_whose_gradient_is_zero_but_for_rounding_passes(tmp_path):
    """A bias before instance normalisation has no effect. Adam turns its rounding errors into steps of full size."""
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.Conv2d(2, 4, 2), nn.GroupNorm(4, 4), nn.Flatten())

    class Images(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.body, self.head = body, nn.Linear(16, outputs)

        def forward(self, x):
            return self.head(self.body(x.flatten(0, -2).unflatten(-1, (1, 5, 5)))).view(x.shape[:-1] + (-1,))

    torch.manual_seed(0)
    loss = A2CLoss(Images(2), Images(1), distributions.Categorical(2))
    flags = torch.zeros(4, 3, dtype=torch.bool)
    frames = torch.randn(2, 4, 3, 25)
    rollout = Rollout(frames[0], torch.randint(2, (4, 3)), torch.randn(4, 3), frames[1], flags, flags)
    graph = export.TrainStepGraph(TrainStep(loss, "adam", compile=False), rollout)
    report = export.verify(export.export_onnx(graph, graph.example_inputs, tmp_path / "step.onnx", graph.dynamic_axes))
    assert report.passed, str(report)


# Twenty wrong files


class Acts(NamedTuple):
    action: torch.Tensor
    log_prob: torch.Tensor
    state_value: torch.Tensor


class Policy(nn.Module):
    """A policy with two hidden layers, a scan over its outputs and a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ELU())
        self.actor, self.critic = nn.Linear(8, 5), nn.Linear(8, 1)

    def forward(self, observation: torch.Tensor) -> Acts:
        hidden = self.body(observation)
        log_probs = self.actor(hidden).log_softmax(-1)
        return Acts(log_probs.argmax(-1), log_probs.amax(-1), self.critic(hidden).squeeze(-1).cumsum(0))


def changed_weight(name, change):
    """Returns an alteration of a model: ``change`` of the weights ``name``."""

    def alter(model):
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        weights.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weights).copy()), name))

    return alter


def added(error, entry=(0, 0)):
    """Returns a change of one entry."""

    def change(weights):
        weights[entry[: weights.ndim]] += error
        return weights

    return change


def replaced_operator(old, new):
    """Returns an alteration of a model: another operator in place of every ``old``."""

    def alter(model):
        for node in model.graph.node:
            if node.op_type == old:
                node.op_type = new

    return alter


def swapped_outputs(model):
    real = [output for output in model.graph.output if output.name != "action"]
    names = {real[0].name: real[1].name, real[1].name: real[0].name}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]


def output_of_operator(op_type, suffix_nodes):
    """Returns an alteration of a model: operators after every ``op_type``. ``suffix_nodes`` makes them from the names before and after."""

    def alter(model):
        for i, node in reversed(list(enumerate(model.graph.node))):
            if node.op_type == op_type:
                after = node.output[0]
                node.output[0] = f"{after}_right"
                for new in reversed(suffix_nodes(node.output[0], after)):
                    model.graph.node.insert(i + 1, new)

    return alter


def times(factor):
    """Returns operators that multiply by a factor."""

    def nodes(before, after):
        constant = numpy_helper.from_array(np.float32(factor), f"{after}_factor")
        return [
            onnx.helper.make_node("Constant", [], [f"{after}_factor"], value=constant),
            onnx.helper.make_node("Mul", [before, f"{after}_factor"], [after]),
        ]

    return nodes


def flag_set(op_type, flag):
    """Returns an alteration of a model: sets an attribute of every ``op_type`` to 1."""

    def alter(model):
        for node in model.graph.node:
            for attribute in node.attribute:
                if (node.op_type, attribute.name) == (op_type, flag):
                    attribute.i = 1

    return alter


WRONG = {
    **{f"{name} off by 1e-3": changed_weight(name, added(1e-3)) for name in ("body.0.weight", "body.2.weight", "actor.weight")},
    **{f"{name} bias off by 1e-3": changed_weight(f"{name}.bias", added(1e-3)) for name in ("body.0", "body.2", "critic")},
    "one weight of the critic off by 1e-4": changed_weight("critic.weight", added(1e-4)),
    "weights transposed": changed_weight("body.2.weight", lambda weights: weights.T.copy()),
    "weights in half precision": changed_weight("body.0.weight", lambda weights: weights.astype(np.float16).astype(np.float32)),
    "a bias left out": changed_weight("body.2.bias", np.zeros_like),
    "rows in another order": changed_weight("actor.weight", lambda weights: weights[::-1].copy()),
    "weights negated": changed_weight("critic.weight", np.negative),
    "another activation": replaced_operator("Tanh", "Softsign"),
    "another activation later": replaced_operator("Elu", "Selu"),
    "outputs swapped": swapped_outputs,
    "a sum off by one step": flag_set("CumSum", "exclusive"),
    "a sum from the end": flag_set("CumSum", "reverse"),
    "a factor of 1.001": output_of_operator("Tanh", times(1.001)),
    "a factor of 0.9999 in the value": output_of_operator("CumSum", times(0.9999)),
    "the smallest for the largest": replaced_operator("ArgMax", "ArgMin"),
}


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory):
    torch.manual_seed(0)
    inputs = {"observation": torch.randn(9, 4)}
    path = export.export_onnx(Policy(), inputs, tmp_path_factory.mktemp("policy") / "policy.onnx", ("N",))
    assert export.verify(path).passed
    return path


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_does_not_pass(what, policy_file, tmp_path):
    assert len(WRONG) == 20
    path = tmp_path / "policy.onnx"
    model = onnx.load(policy_file)
    before = model.SerializeToString()
    WRONG[what](model)
    assert model.SerializeToString() != before
    onnx.save(model, path)
    shutil.copy(f"{policy_file}.cases.npz", f"{path}.cases.npz")
    assert not export.verify(path).passed


# Files that do not run


class MaskedAttention(nn.Module):
    def forward(self, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=present)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("opset", [18, 23])
def test_attention_over_nothing_is_zero(opset, dtype, tmp_path):
    present = (torch.arange(5) < torch.arange(4).unsqueeze(-1)).reshape(4, 1, 1, 5)
    if dtype != torch.bool:
        present = torch.zeros(present.shape).masked_fill(~present, -float("inf"))
    x = torch.randn(4, 2, 5, 8)
    path = export.export_onnx(MaskedAttention(), {"x": x, "present": present}, tmp_path / "file.onnx", ("N",), opset=opset)
    report = export.verify(path)
    assert report.passed, str(report)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": x.numpy(), "present": present.numpy()})
    assert (answer[0] == 0).all()
    scores = x.double() @ x.double().mT / 8**0.5
    allowed = present if dtype == torch.bool else present == 0
    expected = scores.masked_fill(~allowed, -float("inf")).softmax(-1)[1:] @ x.double()[1:]
    assert np.allclose(answer[1:], expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_file_that_fails_in_one_case_is_not_written(tmp_path, monkeypatch):
    real = onnx_file.as_function

    def failing(session):
        def run(x):
            if len(x) == 1:
                raise RuntimeError("no such kernel")
            return real(session)(x=x)

        return run

    monkeypatch.setattr(onnx_file, "as_function", failing)
    with pytest.raises(
        export.ExportError, match=r"Tanh cannot be exported: eager mode runs at sizes N=1, but the exported file does not"
    ):
        export.export_onnx(nn.Tanh(), {"input": torch.randn(4, 3)}, tmp_path / "file.onnx", ("N",))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_of_an_opset_that_the_runtime_does_not_know_is_written_with_a_warning(tmp_path, monkeypatch):
    real = onnx_file.cpu_session

    def refuse(model):
        raise RuntimeError("unknown opset")

    monkeypatch.setattr(onnx_file, "cpu_session", refuse)
    with pytest.warns(RuntimeWarning, match=r"file\.onnx was not run: onnxruntime .* does not support its opset"):
        path = export.export_onnx(nn.Tanh(), {"input": torch.randn(4, 3)}, tmp_path / "file.onnx", ("N",))
    monkeypatch.setattr(onnx_file, "cpu_session", lambda model: refuse(model) if model == path else real(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(onnx_file, "cpu_session", real)
        assert export.verify(path).passed
