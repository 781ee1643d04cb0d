"""Files of an exported training step: written whole or not at all, and with weights beside a file that cannot hold them."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from train_step_cases import SMALL, InOnnxruntime, state_of, with_layer

from a2c_compiled import distributions, export
from a2c_compiled.export import update_files
from a2c_compiled.export.onnx_model import model_file

# Files are written whole or not at all


def older_files(folder):
    """Writes the files of an earlier export; returns their contents by name."""
    names = ("train_step.onnx", "train_step.policy.onnx", "train_step.state.npz", "runtime.py")
    for name in (*names, *(f"{name}.cases.npz" for name in names[:2])):
        (folder / name).write_text(f"older {name}")
    return contents(folder)


def contents(folder):
    """The bytes of every file in a folder by name, also of hidden files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("culprit", ["update", "policy", "state", "runtime"])
def test_an_export_that_fails_halfway_leaves_the_older_files(culprit, tmp_path, monkeypatch):
    older = older_files(tmp_path)

    def write(graph, inputs, path, *arguments):
        path.write_text("newer")
        if culprit == {export.TrainStepGraph: "update", export.ActingPolicy: "policy"}[type(graph)]:
            raise OSError("no space left")

    def fail(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(update_files, "export_onnx", write)
    if culprit in ("state", "runtime"):
        module, name = {"state": (np, "savez"), "runtime": (shutil, "copy")}[culprit]
        monkeypatch.setattr(module, name, fail)
    with pytest.raises(OSError, match="no space left"):
        export.export_train_step(SMALL.make_step(), SMALL.example(), tmp_path / "train_step.onnx")
    assert contents(tmp_path) == older


@pytest.mark.slow
def test_an_update_that_cannot_be_exported_leaves_the_older_files(tmp_path):
    older = older_files(tmp_path)
    with pytest.raises(export.ExportError):
        export.export_train_step(*with_layer(nn.Dropout()), tmp_path / "train_step.onnx")
    assert contents(tmp_path) == older


# Weights that a file cannot hold


@pytest.fixture
def small_files(monkeypatch):
    """Lowers the limit on the size of a file, so that weights are written beside it."""
    monkeypatch.setattr(model_file, "MAX_WEIGHT_BYTES", 64)


def of_policy(test):
    """Marks a test that shares the exported policy with others."""
    return pytest.mark.slow(pytest.mark.xdist_group("policy-with-weights-beside")(test))


def make_policy(seed=0):
    torch.manual_seed(seed)
    return export.GreedyPolicy(nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 4)), distributions.Normal(2))


def export_policy(policy, path):
    return export.export_onnx(policy, {"observation": torch.randn(6, 3)}, path, ("N",))


@pytest.fixture(scope="module")
def exported_policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "policy.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "MAX_WEIGHT_BYTES", 64)
        return export_policy(make_policy(), path)


@pytest.fixture
def policy_with_weights_beside(exported_policy, tmp_path):
    """The path of a copy of the exported policy, with its weights beside it."""
    return shutil.copytree(exported_policy.parent, tmp_path, dirs_exist_ok=True) / "policy.onnx"


def acts_as(policy, path):
    observation = torch.randn(5, 3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = policy(observation).action.numpy()
    return np.allclose(session.run(["action"], {"observation": observation.numpy()})[0], expected, atol=1e-6)


def weights_beside(path):
    return [file.name for file in path.parent.glob(f"{path.name}.*.data")]


@of_policy
def test_weights_that_a_file_cannot_hold_are_written_beside_it(policy_with_weights_beside, tmp_path):
    policy, path = make_policy(), policy_with_weights_beside
    (weights,) = weights_beside(path)
    assert weights.removeprefix("policy.onnx.").removesuffix(".data").isalnum()
    assert (tmp_path / weights).stat().st_size >= 4 * (3 * 64 + 64 * 4)
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    assert {tensor.name for tensor in tensors if tensor.external_data} == {"actor_network.0.weight", "actor_network.2.weight"}
    assert acts_as(policy, path)
    report = export.verify(path)
    assert report.passed, str(report)
    assert report.size == path.stat().st_size + (tmp_path / weights).stat().st_size


@of_policy
@pytest.mark.usefixtures("small_files")
def test_a_new_export_replaces_the_weights_beside_a_file(policy_with_weights_beside, tmp_path):
    bystander = tmp_path / "policy.onnx2.0123456789abcdef.data"
    bystander.write_text("another file's")
    path = policy_with_weights_beside
    before = weights_beside(path)
    other = make_policy(seed=1)
    export_policy(other, path)
    assert len(weights_beside(path)) == 1
    assert weights_beside(path) != before
    assert acts_as(other, path)
    assert bystander.exists()


@of_policy
def test_weights_beside_a_file_are_removed_when_the_new_file_holds_its_own(policy_with_weights_beside):
    path = policy_with_weights_beside
    other = make_policy(seed=1)
    export_policy(other, path)
    assert weights_beside(path) == []
    assert acts_as(other, path)


@of_policy
@pytest.mark.usefixtures("small_files")
def test_a_failed_export_keeps_the_older_file_and_its_weights(policy_with_weights_beside, tmp_path, monkeypatch):
    policy, path = make_policy(), policy_with_weights_beside
    before = contents(tmp_path)

    def refuse(*arguments, **options):
        raise onnx.checker.ValidationError("refused")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(onnx.checker.ValidationError):
        export_policy(make_policy(seed=1), path)
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    assert acts_as(policy, path)
    assert len(contents(tmp_path)) == len(before), "nothing is left behind"


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
def test_frozen_weights_of_a_training_step_are_written_beside_its_files(tmp_path):
    path, policy = tmp_path / "train_step.onnx", tmp_path / "train_step.policy.onnx"
    for file in (path, policy):
        file.with_name(f"{file.name}.0123456789abcdef.data").write_text("from an earlier export")
    layer = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)).requires_grad_(False)
    step, rollout = with_layer(layer)
    export.export_train_step(step, rollout, path)
    for file in (path, policy):
        (weights,) = weights_beside(file)
        assert (tmp_path / weights).stat().st_size >= 4 * 2 * 8 * 64
        assert export.verify(file).passed
    assert_updates_as(step, path)


def assert_updates_as(step, path):
    """An update in onnxruntime equals an update of ``step``."""
    runner = InOnnxruntime(path, {})
    state = state_of(step)
    runner.state = {name: state[name].clone().numpy() for name in runner.inputs if name in state}
    runner(SMALL.rollout(0), step.lr.item())
    step(SMALL.rollout(0))
    state = state_of(step)
    for name, array in runner.state.items():
        np.testing.assert_allclose(array, state[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
