"""How exports treat their arguments, in every format; the errors for invalid ones; and that a failed export changes no file."""

import json
import warnings
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import EXPORTERS, GAE_INPUTS, LOADERS, STEPS, UNCOMPILED, gae_inputs, loss_inputs
from loss_cases import make_loss, make_networks, make_rollout
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export
from a2c_compiled.export.formats import torchscript
from a2c_compiled.update import TrainStep


@pytest.fixture(params=[pytest.param(ending, marks=pytest.mark.slow) for ending in UNCOMPILED])
def ending(request):
    return request.param


@pytest.fixture(
    scope="module",
    params=[pytest.param(end, marks=[pytest.mark.slow, pytest.mark.xdist_group(f"call{end}")]) for end in UNCOMPILED],
)
def gae_path(request, tmp_path_factory):
    """GAE, exported from inputs in order, without ``terminated``, and transposed in memory."""
    inputs = [tensor.t() for tensor in gae_inputs((4, 6)).values()][:4]
    path = tmp_path_factory.mktemp("gae") / f"gae{request.param}"
    return EXPORTERS[request.param](estimators.GAE(gamma=0.9, lmbda=0.8), inputs, path)


def test_example_inputs_may_come_in_order_and_with_any_strides(gae_path):
    report = export.verify(gae_path)
    assert report.passed, str(report)
    with np.load(f"{gae_path}.cases.npz") as cases:
        assert {key.split("/")[2] for key in cases.files if "/inputs/" in key} == set(GAE_INPUTS) - {"terminated"}


def test_the_metadata_of_a_file_describe_its_module(gae_path):
    metadata = metadata_of(gae_path)
    assert metadata["a2c_compiled.module"] == "GAE"
    assert metadata["a2c_compiled.torch_version"] == torch.__version__
    assert json.loads(metadata["a2c_compiled.shapes"]) == {name: ["T", "N"] for name in GAE_INPUTS if name != "terminated"}
    parts = json.loads(metadata["a2c_compiled.hyperparameters"])
    assert (parts[""]["class"], parts[""]["time_dim"]) == ("GAE", -2)
    assert (round(parts[""]["gamma"], 6), round(parts[""]["lmbda"], 6)) == (0.9, 0.8)


def metadata_of(path):
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    extra = {"a2c_compiled.json": ""}
    if path.suffix == ".pt":
        torch.jit.load(str(path), _extra_files=extra)
    else:
        torch.export.load(str(path), extra_files=extra)
    return json.loads(extra["a2c_compiled.json"])


def test_one_tensor_may_be_two_inputs(ending, tmp_path):
    inputs = gae_inputs()
    inputs["next_state_value"] = inputs["state_value"]
    path = EXPORTERS[ending](estimators.GAE(), inputs, tmp_path / f"gae{ending}")
    others = gae_inputs(seed=1)
    expected = estimators.GAE()(**others)
    for name, answer in LOADERS[ending](path)(others).items():
        torch.testing.assert_close(answer, getattr(expected, name))


class Passing(NamedTuple):
    given: torch.Tensor
    total: torch.Tensor


class PassesOn(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Passing:
        return Passing(x, x + y)


def test_an_input_may_be_an_output(ending, tmp_path):
    path = EXPORTERS[ending](PassesOn(), [torch.ones(3, 2), torch.ones(3, 2)], tmp_path / f"passes{ending}")
    inputs = {"x": torch.rand(5, 7), "y": torch.rand(5, 7)}
    answers = LOADERS[ending](path)(inputs)
    assert torch.equal(answers["given"], inputs["x"])
    assert torch.equal(answers["total"], inputs["x"] + inputs["y"])
    assert export.verify(path).passed


INVALID_INPUTS = {
    "unknown": (lambda inputs: {**inputs, "rewards": inputs["reward"]}, ValueError, r"expected names among .*, got 'rewards'"),
    "number": (lambda inputs: {**inputs, "reward": 1.0}, TypeError, "expected a torch.Tensor for reward, got 1.0"),
    "none": (lambda inputs: {**inputs, "terminated": None}, TypeError, "expected a torch.Tensor for terminated, got None"),
    "too_many": (lambda inputs: [*inputs.values(), *[inputs["done"]] * 7], ValueError, "expected at most 11"),
    "tensor": (lambda inputs: inputs["reward"], TypeError, "expected a mapping of names to tensors or a sequence of tensors"),
    "bfloat16": (
        lambda inputs: {**inputs, "reward": inputs["reward"].bfloat16()},
        TypeError,
        r"expected a dtype that numpy supports for reward, got torch\.bfloat16",
    ),
    "no_steps": (
        lambda inputs: {name: tensor[:0] for name, tensor in inputs.items()},
        ValueError,
        r"expected dimension 0 \(T\) of state_value to be 1 or more, got 0",
    ),
    "no_environments": (
        lambda inputs: {name: tensor[:, :0] for name, tensor in inputs.items()},
        ValueError,
        r"expected dimension 1 \(N\) of state_value to be 1 or more, got 0",
    ),
    "two_sizes": (
        lambda inputs: {**inputs, "reward": inputs["reward"][:, :3]},
        ValueError,
        r"expected 4 for dimension 1 \(N\) of reward, got 3",
    ),
}


@pytest.mark.parametrize("ending", EXPORTERS)
@pytest.mark.parametrize("what", INVALID_INPUTS)
def test_the_error_for_invalid_example_inputs_names_them(ending, what, tmp_path):
    change, error, message = INVALID_INPUTS[what]
    with pytest.raises(error, match=f"example_inputs: {message}"):
        EXPORTERS[ending](estimators.GAE(), change(gae_inputs()), tmp_path / f"gae{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", EXPORTERS)
def test_dynamic_axes_of_an_unknown_input_are_refused(ending, tmp_path):
    with pytest.raises(ValueError, match=r"dynamic_axes: expected names among .*, got 'rewards'"):
        EXPORTERS[ending](estimators.GAE(), gae_inputs(), tmp_path / f"gae{ending}", {"rewards": ("T", "N")})


def test_the_error_for_a_dimension_that_cannot_vary_names_it(tmp_path):
    policy = export.GreedyPolicy(nn.Linear(4, 2), distributions.Categorical(2))
    with pytest.raises(
        ValueError, match="dynamic_axes: the module does not run at sizes T=1 N=1; name those leading dimensions"
    ):
        export.export_torchscript(policy, {"observation": torch.randn(8, 4)}, tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("export_one", "name", "expected"),
    [
        (export.export_pt2, "gae.aot.pt2", r"\.pt2"),
        (export.export_pt2, "gae.pt", r"\.pt2"),
        (export.export_pt2, "gae.onnx", r"\.pt2"),
        (export.export_aot, "gae.pt2", r"\.aot\.pt2"),
        (export.export_aot, "gae.aot", r"\.aot\.pt2"),
        (export.export_aot, "gae.so", r"\.aot\.pt2"),
    ],
)
def test_a_name_with_the_ending_of_another_format_is_refused(export_one, name, expected, tmp_path):
    with pytest.raises(ValueError, match=rf"path: expected a name ending in {expected}, got .*{name}"):
        export_one(estimators.GAE(), gae_inputs(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_no_path_is_refused():
    for export_one in (export.export_onnx, export.export_torchscript, export.export_pt2, export.export_aot):
        with pytest.raises(TypeError, match=r"path: expected a path.*, got 3"):
            export_one(estimators.GAE(), gae_inputs(), 3)
    with pytest.raises(TypeError, match="path: expected a path, got None"):
        export.verify(None)


@pytest.mark.parametrize("opset", [17, 1000])
def test_an_opset_out_of_range_is_refused(opset, tmp_path):
    with pytest.raises(ValueError, match=f"opset: expected 18 to .*, got {opset}"):
        export.export_onnx(estimators.GAE(), gae_inputs(), tmp_path / "gae.onnx", opset=opset)


@pytest.mark.slow
def test_a_file_has_the_opset_of_the_argument(tmp_path):
    path = export.export_onnx(estimators.TD0Estimator(), gae_inputs(), tmp_path / "td0.onnx", opset=20)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", 20)]
    assert export.verify(path).passed


@pytest.mark.slow
def test_an_opset_that_torch_cannot_write_is_an_error(tmp_path, monkeypatch):
    real_export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: real_export(*args, **{**options, "opset_version": 18}))
    with pytest.raises(RuntimeError, match="opset: expected 18, which torch writes for this module, got 20"):
        export.export_onnx(estimators.TD0Estimator(), gae_inputs(), tmp_path / "td0.onnx", opset=20)
    assert not (tmp_path / "td0.onnx").exists()


@pytest.mark.slow
def test_sizes_may_be_fixed_and_outputs_renamed(tmp_path):
    inputs = gae_inputs()
    axes = dict.fromkeys(inputs, (None, "N"))
    path = export.export_onnx(
        estimators.TD0Estimator(), inputs, tmp_path / "td0.onnx", axes, output_names=["advantage", "target"]
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {tuple(node.shape) for node in session.get_inputs()} == {(STEPS, "N")}
    assert [node.name for node in session.get_outputs()] == ["advantage", "target"]
    report = export.verify(path)
    assert report.passed
    assert list(report.outputs) == ["advantage", "target"]


@pytest.mark.parametrize("names", [["advantage"], ["advantage", "value_target", "third"]], ids=["few", "many"])
def test_each_output_needs_one_name(names, tmp_path):
    with pytest.raises(
        ValueError, match=r"output_names: expected 2 names for the outputs \['advantage', 'value_target'\], got "
    ):
        export.export_onnx(estimators.GAE(), gae_inputs(), tmp_path / "gae.onnx", output_names=names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [["reward", "target"], ["advantage", "advantage"]], ids=["name_of_an_input", "twice"])
def test_output_names_must_be_unique(names, tmp_path):
    with pytest.raises(ValueError, match="output_names: expected names that differ from each other and from "):
        export.export_onnx(estimators.GAE(), gae_inputs(), tmp_path / "gae.onnx", output_names=names)
    assert not list(tmp_path.iterdir())


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.dropout(x))


def test_a_module_is_exported_in_evaluation_mode_and_keeps_its_own_mode(ending, tmp_path):
    module = WithDropout()
    path = EXPORTERS[ending](module, [torch.ones(3, 2)], tmp_path / f"dropout{ending}")
    assert (module.training, module.dropout.training, module.frozen.training) == (True, True, False)
    x = torch.randn(5, 7)
    assert torch.equal(LOADERS[ending](path)({"x": x})["output"], x)


# A failed export changes no file


class Branching(nn.Module):
    """Branches on data, which torch.export cannot trace, and calls a lambda, which TorchScript cannot read."""

    def __init__(self):
        super().__init__()
        self.function = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x) if x.sum() > 0 else -x


@pytest.mark.slow
@pytest.mark.parametrize("ending", EXPORTERS)
def test_a_module_that_cannot_be_exported_keeps_the_older_file(ending, tmp_path):
    path, cases = tmp_path / f"graph{ending}", tmp_path / f"graph{ending}.cases.npz"
    path.write_text("older")
    cases.write_text("older cases")
    with pytest.raises(export.ExportError, match="Branching cannot be exported to ") as raised:
        EXPORTERS[ending](Branching(), [torch.ones(3, 2)], path)
    assert isinstance(raised.value, RuntimeError)
    assert (path.read_text(), cases.read_text()) == ("older", "older cases")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_file_that_the_onnx_checker_refuses_keeps_the_older_file(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise onnx.checker.ValidationError("refused")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    (tmp_path / "graph.onnx").write_text("older")
    with pytest.raises(onnx.checker.ValidationError):
        export.export_onnx(estimators.TD0Estimator(), gae_inputs(), tmp_path / "graph.onnx")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("graph.onnx", "older")]


# Modules that TorchScript cannot read


class WithOptions(nn.Module):
    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return x


class WithDefaults(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        return x * scale


class WithLambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.function = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class WithSetting(nn.Module):
    def __init__(self):
        super().__init__()
        self.settings = object()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.settings is None else -x


class WithTry(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return x
        except RuntimeError:
            return -x


class WithUndefined(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            y = x
        return y


UNREADABLE = {
    WithOptions: (r"variable number of arguments .*", r"def forward\(self, x: torch.Tensor, \*\*options: Any\).*"),
    WithDefaults: (r"variable number of arguments or use keyword-only arguments with defaults", r"def forward.*scale.*"),
    WithLambda: ("WithLambda.function is a function that TorchScript cannot read", r"return self\.function\(x\)"),
    WithSetting: (
        "WithSetting.settings is an attribute that TorchScript cannot read",
        "return x if self.settings is None else -x",
    ),
    WithTry: ("try blocks aren't supported", "try:"),
    WithUndefined: ("y is not defined in the false branch", r"if x\.sum\(\) > 0:"),
}


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_the_error_for_code_that_torchscript_cannot_read_names_its_line(kind, nested, tmp_path):
    # TorchScript keeps the failure of a class, so each test uses a class of its own.
    kind = type(kind.__name__, (kind,), {})
    what, code = UNREADABLE[kind.__base__]
    module = nn.Sequential(nn.Linear(2, 2), kind()) if nested else kind()
    name = "Sequential" if nested else kind.__name__
    message = (
        rf'^{name} cannot be exported to TorchScript: .*{what} \("{code}", test_export_call\.py:\d+\)\. Write that part in'
    )
    with pytest.raises(export.ExportError, match=message) as raised:
        export.export_torchscript(module, [torch.ones(3, 2)], tmp_path / "module.pt", ("N",))
    assert str(raised.value).endswith("or export with export_onnx or export_pt2")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_the_error_says_that_an_earlier_export_of_the_class_failed(tmp_path):
    class Twice(WithUndefined):
        pass

    for message in ("y is not defined", "an earlier export of this class failed in this process"):
        with pytest.raises(export.ExportError, match=f"Twice cannot be exported to TorchScript: {message}"):
            export.export_torchscript(Twice(), [torch.ones(3, 2)], tmp_path / "module.pt", ("N",))


@pytest.mark.slow
def test_a_class_without_source_cannot_be_scripted(tmp_path):
    namespace = {"nn": nn, "torch": torch}
    exec("class Typed(nn.Module):\n    def forward(self, x: torch.Tensor) -> torch.Tensor:\n        return x", namespace)
    with pytest.raises(export.ExportError, match="Typed cannot be exported to TorchScript: Can't get source for"):
        export.export_torchscript(namespace["Typed"](), [torch.ones(3, 2)], tmp_path / "typed.pt")
    path = export.export_pt2(namespace["Typed"](), [torch.ones(3, 2)], tmp_path / "typed.pt2")
    assert export.verify(path).passed, "as the message of other failures advises"


def test_torch_distributions_cannot_be_scripted(tmp_path):
    distribution = distributions.TorchDistribution(lambda params: torch.distributions.Categorical(logits=params))
    loss = A2CLoss(*make_networks(), distribution)
    with pytest.raises(TypeError, match=r"distribution: expected another class .* got TorchDistribution"):
        export.export_torchscript(loss, loss_inputs(), tmp_path / "loss.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_training_step_cannot_be_scripted(tmp_path):
    graph = export.TrainStepGraph(TrainStep(make_loss(), compile=False), make_rollout())
    with pytest.raises(
        export.ExportError, match=r"TrainStepGraph cannot be exported to TorchScript: .*export_onnx or export_pt2"
    ):
        export.export_torchscript(graph, graph.example_inputs, tmp_path / "step.pt", graph.dynamic_axes)
    assert not list(tmp_path.iterdir())


# TorchScript on newer versions of Python


def test_the_error_on_python_without_torchscript_names_other_formats(tmp_path, monkeypatch):
    older = export.export_torchscript(estimators.GAE(), gae_inputs(), tmp_path / "older.pt")
    monkeypatch.setattr(torchscript.sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(RuntimeError, match=r"torch has none from Python 3\.14 on; use export_pt2, export_aot or export_onnx"):
        export.export_torchscript(estimators.GAE(), gae_inputs(), tmp_path / "gae.pt")
    with pytest.raises(RuntimeError, match="use export_pt2, export_aot or export_onnx"):
        torchscript.script(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"older\.pt: does not run \(TorchScript: torch has none from Python 3\.14 on"):
        export.verify(older)
    assert not (tmp_path / "gae.pt").exists()


def test_an_export_prints_nothing_and_does_not_warn(ending, tmp_path, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = EXPORTERS[ending](estimators.GAE(), gae_inputs(), tmp_path / f"gae{ending}")
        assert export.verify(path).passed
        if ending == ".pt":
            torchscript.script(make_loss())
            torchscript.load(path)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
