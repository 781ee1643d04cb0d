"""Inputs, outputs and parameters keep their names in every file, also where two of them are equal or one is another."""

import json
from typing import NamedTuple, Tuple

import numpy as np
import onnx
import pytest
import torch
from export_cases import EXPORTERS, LOADERS, UNCOMPILED, named
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from a2c_compiled import distributions, estimators, export
from a2c_compiled.export.on_device import runtime
from a2c_compiled.export.onnx_model import model_file

pytestmark = pytest.mark.slow


class Head(NamedTuple):
    mean: Tensor
    log_std: Tensor


class Named(nn.Module):
    """A linear layer, and a parameter with the name of an input or output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.log_std = nn.Parameter(torch.tensor([0.5, 0.25]))
        self.register_buffer("offset", torch.tensor([1.0, -1.0]))
        self.offset: Tensor


class InputNamedAsAParameter(Named):
    def forward(self, observation: Tensor, temperature: Tensor) -> Tensor:
        return self.linear(observation) * self.temperature + temperature


class OutputNamedAsAParameter(Named):
    def forward(self, observation: Tensor) -> Head:
        mean = self.linear(observation)
        return Head(mean, self.log_std + torch.zeros_like(mean))


class ParameterAsOutput(Named):
    def forward(self, observation: Tensor) -> Head:
        return Head(self.linear(observation), self.log_std)


class ViewOfAParameterAsOutput(Named):
    def forward(self, observation: Tensor) -> Head:
        mean = self.linear(observation)
        return Head(mean, self.log_std.expand_as(mean))


class BufferAsOutput(Named):
    def forward(self, observation: Tensor) -> Head:
        return Head(self.linear(observation), self.offset)


class OneTensorAsThreeOutputs(Named):
    def forward(self, observation: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        mean = self.linear(observation)
        return mean, mean, mean


class InputAsTwoOutputs(Named):
    def forward(self, observation: Tensor) -> Head:
        return Head(observation, observation)


class OutputNamedAsAnOperation(Named):
    """torch names the values of a graph after operations, so these outputs have the names of inner values."""

    def forward(self, observation: Tensor) -> Tuple[Tensor, Tensor]:
        output = self.linear(observation)
        linear = output.add(1.0)
        return linear.mul(2.0), output


@pytest.mark.parametrize("ending", UNCOMPILED)
@pytest.mark.parametrize("kind", Named.__subclasses__())
def test_every_file_has_the_names_and_the_values_of_the_module(kind, ending, tmp_path):
    module = kind()
    examples = [torch.randn(8, 4), *[torch.randn(8, 2)] * (kind is InputNamedAsAParameter)]
    path = EXPORTERS[ending](module, examples, tmp_path / f"graph{ending}", ("N",))
    inputs = {"observation": torch.randn(3, 4), "temperature": torch.randn(3, 2)}
    if kind is not InputNamedAsAParameter:
        del inputs["temperature"]
    outputs = LOADERS[ending](path)(inputs)
    with torch.no_grad():
        expected = named(module(**inputs))
    assert list(outputs) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(outputs[name].detach(), tensor, rtol=1e-6, atol=1e-6)
    report = export.verify(path)
    assert report.passed, str(report)
    assert list(report.outputs) == list(expected)


@pytest.mark.parametrize("kind", [InputNamedAsAParameter, OutputNamedAsAParameter])
def test_a_weight_with_the_name_of_an_input_or_output_is_renamed(kind, tmp_path):
    name = "temperature" if kind is InputNamedAsAParameter else "log_std"
    examples = [torch.randn(8, 4), torch.randn(8, 2)] if name == "temperature" else [torch.randn(8, 4)]
    path = export.export_onnx(kind(), examples, tmp_path / "graph.onnx", ("N",))
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    assert {f"{name}.weight", "linear.weight", "linear.bias"} <= weights
    assert weights.isdisjoint({name, *(value.name for value in [*model.graph.input, *model.graph.output])})
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["a2c_compiled.renamed"])["weights"] == {name: f"{name}.weight"}


class PolicyWithAParameterNamedAction(export.GreedyPolicy):
    def __init__(self) -> None:
        super().__init__(nn.Identity(), distributions.Categorical(3))
        self.action = nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))

    def forward(self, observation: Tensor):
        return super().forward(observation + self.action)


def test_policy_load_takes_parameters_by_their_names_in_the_module(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_GREEDY", (*runtime._GREEDY, "PolicyWithAParameterNamedAction"))
    monkeypatch.setattr(runtime, "_POLICIES", (*runtime._POLICIES, "PolicyWithAParameterNamedAction"))
    path = export.export_onnx(
        PolicyWithAParameterNamedAction(), {"observation": torch.randn(8, 3)}, tmp_path / "policy.onnx", ("N",)
    )
    observation = np.zeros((2, 3), np.float32)
    assert runtime.Policy.load(path).act(observation).tolist() == [2, 2]
    moved = runtime.Policy.load(path, parameters={"action": np.array([0.0, 5.0, 1.0], np.float32)})
    assert moved.act(observation).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"parameters: expected names among \['action'\], which policy\.onnx has, got 'other'"):
        runtime.Policy.load(path, parameters={"other": np.zeros(3, np.float32)})


def test_a_file_whose_names_are_wrong_is_not_written(tmp_path, monkeypatch):
    def swapped(graph, inputs, outputs, weights):
        return assign(graph, inputs, outputs[::-1], weights)

    assign = model_file.assign_names
    monkeypatch.setattr(model_file, "assign_names", swapped)
    with pytest.raises(export.ExportError, match=r"expected outputs \['mean', 'log_std'\], got \['log_std', 'mean'\]"):
        export.export_onnx(ParameterAsOutput(), [torch.randn(8, 4)], tmp_path / "graph.onnx", ("N",))
    assert not list(tmp_path.iterdir())


# Inputs named as flags


class FloatFlags(nn.Module):
    def forward(self, observation: Tensor, mask: Tensor, done: Tensor, terminated: Tensor) -> Tensor:
        return observation.masked_fill(mask < 0.5, -1e9) - (1 - done) * terminated


@pytest.mark.parametrize("ending", UNCOMPILED)
def test_an_input_named_mask_or_done_has_the_dtype_of_its_example(ending, tmp_path):
    flags = {name: (torch.rand(8, 4) < 0.5).float() for name in ("mask", "done", "terminated")}
    examples = {"observation": torch.randn(8, 4), **flags}
    path = EXPORTERS[ending](FloatFlags(), examples, tmp_path / f"masked{ending}", ("N",))
    report = export.verify(path)
    assert report.passed, str(report)
    torch.testing.assert_close(LOADERS[ending](path)(examples)["output"], FloatFlags()(**examples))


# Weights that are computed from other parameters


class Normalized(nn.Module):
    def __init__(self, trained: bool = True) -> None:
        super().__init__()
        self.linear = parametrizations.weight_norm(nn.Linear(4, 3))
        self.rotation = parametrizations.orthogonal(nn.Linear(3, 3)).requires_grad_(trained)
        with pytest.warns(FutureWarning, match="weight_norm"):
            self.older = nn.utils.weight_norm(nn.Linear(3, 3))
        self.older_spectral = nn.utils.spectral_norm(nn.Linear(3, 3)).eval()  # in training mode, each call changes the weight
        self.pruned = prune.random_unstructured(nn.Linear(3, 3), "weight", 4)

    def forward(self, observation: Tensor) -> Tensor:
        return self.pruned(self.older_spectral(self.older(self.rotation(self.linear(observation)))))


@pytest.mark.parametrize("ending", UNCOMPILED)
def test_a_parametrized_weight_is_a_plain_weight_in_the_file(ending, tmp_path):
    module = Normalized()
    observation = torch.randn(8, 4)
    before = module(observation)
    path = EXPORTERS[ending](module, {"observation": observation}, tmp_path / f"normalized{ending}", ("N",))
    assert export.verify(path).passed
    torch.testing.assert_close(LOADERS[ending](path)({"observation": observation})["output"], before.detach())
    assert torch.equal(module(observation), before), "the module itself is unchanged"
    assert sorted(name for name, _ in module.named_parameters()) == sorted(name for name, _ in Normalized().named_parameters())
    if ending == ".onnx":
        weights = {tensor.name for tensor in onnx.load(path).graph.initializer}
        assert {
            f"{layer}.{name}"
            for layer in ("linear", "rotation", "older", "older_spectral", "pruned")
            for name in ("weight", "bias")
        } <= weights


@pytest.mark.parametrize("ending", UNCOMPILED)
def test_a_compiled_module_is_exported_under_its_own_names(ending, tmp_path):
    module, inputs = nn.Linear(4, 2), {"input": torch.randn(3, 4)}
    path = EXPORTERS[ending](torch.compile(module, backend="eager"), inputs, tmp_path / f"compiled{ending}", ("N",))
    torch.testing.assert_close(LOADERS[ending](path)(inputs)["output"], module(inputs["input"]).detach())
    if ending == ".onnx":
        assert {tensor.name for tensor in onnx.load(path).graph.initializer} == {"weight", "bias"}


@pytest.mark.parametrize("ending", UNCOMPILED)
def test_a_compiled_part_of_a_module_is_exported_under_its_own_names(ending, tmp_path):
    network, inputs = torch.compile(nn.Sequential(nn.Linear(4, 2)), backend="eager"), {"observation": torch.randn(3, 4)}
    module = export.GreedyPolicy(network, distributions.Categorical(2))
    path = EXPORTERS[ending](module, inputs, tmp_path / f"compiled{ending}", ("N",))
    torch.testing.assert_close(LOADERS[ending](path)(inputs)["action"], module(**inputs).action)
    assert module.actor_network is network, "the module itself is unchanged"
    if ending == ".onnx":
        names = {tensor.name for tensor in onnx.load(path).graph.initializer}
        assert {"actor_network.0.weight", "actor_network.0.bias"} <= names


def test_a_module_that_cannot_be_copied_is_refused(tmp_path):
    module = nn.Linear(4, 2)
    module.computed = [module.weight * 2]
    with pytest.raises(
        export.ExportError, match=r"^Linear cannot be exported: copying the module fails \(Only Tensors created"
    ):
        export.export_onnx(module, [torch.randn(8, 4)], tmp_path / "graph.onnx", ("N",))


class CompilesButDoesNotRun(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            raise RuntimeError("there is no table here")
        return observation


def test_a_scripted_module_that_does_not_run_is_not_written(tmp_path):
    with pytest.raises(
        export.ExportError, match=r"^CompilesButDoesNotRun cannot .* compiles but does not run \(.*there is no table here\)"
    ):
        export.export_torchscript(CompilesButDoesNotRun(), [torch.randn(8, 4)], tmp_path / "graph.pt", ("N",))
    assert not list(tmp_path.iterdir())


# Metadata and versions


def test_metadata_write_an_infinite_coefficient_as_a_string(tmp_path):
    module = estimators.VTrace(gamma=0.9, rho_thresh=float("inf"))
    inputs = {name: torch.randn(4, 3) for name in ("state_value", "next_state_value", "reward")}
    flags = dict.fromkeys(("done", "terminated"), torch.zeros(4, 3, dtype=torch.bool))
    log_probs = {name: torch.randn(4, 3) for name in ("log_pi", "log_mu")}
    path = export.export_onnx(module, {**inputs, **flags, **log_probs}, tmp_path / "vtrace.onnx")
    texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    parts = json.loads(texts["a2c_compiled.hyperparameters"], parse_constant=refuse)
    assert parts[""]["rho_thresh"] == "inf"
    assert export.verify(path).passed


@pytest.mark.parametrize(("opset", "lowest"), [(18, 8), (20, 9)])
def test_a_file_has_the_lowest_ir_version_that_its_opset_needs(opset, lowest, tmp_path):
    path = export.export_onnx(nn.Linear(4, 2), [torch.randn(8, 4)], tmp_path / "graph.onnx", ("N",), opset)
    assert onnx.load(path).ir_version == lowest
    assert export.verify(path).passed


def test_the_ir_version_may_be_chosen(tmp_path):
    path = export.export_onnx(nn.Linear(4, 2), [torch.randn(8, 4)], tmp_path / "graph.onnx", ("N",), ir_version=10)
    assert onnx.load(path).ir_version == 10


@pytest.mark.parametrize("version", [7, onnx.IR_VERSION + 1])
def test_an_ir_version_out_of_range_is_refused(version, tmp_path):
    with pytest.raises(ValueError, match=rf"ir_version: expected 8, which opset 18 needs, to \d+, .* got {version}"):
        export.export_onnx(nn.Linear(4, 2), [torch.randn(8, 4)], tmp_path / "graph.onnx", ("N",), ir_version=version)
