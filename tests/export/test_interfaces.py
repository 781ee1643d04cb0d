"""Files with an interface that another program prescribes: names, unread inputs, dtypes, metadata, targets. The page docs/interfaces.md."""

import io
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import EXPORTERS, LOADERS, UNCOMPILED
from torch import Tensor, nn

from a2c_compiled import distributions, export
from a2c_compiled.export.on_device import runtime
from a2c_compiled.export.onnx_model import model_file

PAGE = Path(__file__).parents[2] / "docs" / "interfaces.md"


def interface(file):
    """Returns the inputs and outputs of a file: dtype and shape by name."""
    source = str(file) if isinstance(file, Path) else file
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return tuple(
        {node.name: (node.type, node.shape) for node in nodes} for nodes in (session.get_inputs(), session.get_outputs())
    )


def run(file, inputs):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_files_of_the_page_have_the_interfaces_of_the_engines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), session)
    observation = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    logits = session["actor"](torch.from_numpy(observation)).detach().numpy()
    choices = logits.argmax(-1)

    assert interface(tmp_path / "godot.onnx") == (
        {"obs": ("tensor(float)", ["N", 4]), "state_ins": ("tensor(float)", ["N"])},
        {"output": ("tensor(float)", ["N", 2]), "state_outs": ("tensor(float)", ["N"])},
    )
    state = np.array([1.0, 2.0, 3.0], np.float32)
    godot = run("godot.onnx", {"obs": observation, "state_ins": state})
    np.testing.assert_allclose(godot["output"], logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(godot["state_outs"], state)

    assert list(interface(tmp_path / "unity.onnx")[0]) == ["obs_0", "action_masks"]
    assert interface(tmp_path / "unity.onnx")[1]["discrete_actions"] == ("tensor(int32)", ["N", 1])
    unity = run("unity.onnx", {"obs_0": observation, "action_masks": np.ones((3, 2), np.float32)})
    assert unity["discrete_actions"].tolist() == [[choice] for choice in choices]
    assert [unity[name].tolist() for name in ("version_number", "memory_size", "discrete_action_output_shape")] == [
        [3.0],
        [0.0],
        [[2.0]],
    ]
    only_first = np.array([[1.0, 0.0]] * 3, np.float32)
    masked = run("unity.onnx", {"obs_0": observation, "action_masks": only_first})
    assert masked["deterministic_discrete_actions"].tolist() == [[0], [0], [0]]

    assert interface(tmp_path / "ros.onnx") == (
        {"obs": ("tensor(float)", ["N", 4])},
        {"command": ("tensor(int32)", ["N"])},
    )
    assert [session["on_message"](row.tolist()) for row in observation] == choices.tolist()
    assert {entry.key: entry.value for entry in onnx.load("ros.onnx").metadata_props}["frame_id"] == "base_link"
    assert interface(tmp_path / "fixed.onnx")[0] == {"obs": ("tensor(float)", [1, 4])}
    for name in ("godot", "unity", "ros", "fixed"):
        assert export.verify(f"{name}.onnx").passed


class Unread(nn.Module):
    def forward(self, observation: Tensor, state: Tensor) -> Tensor:
        return observation * 2


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_an_unread_input_stays_if_it_is_kept(keep, tmp_path):
    examples = [torch.randn(8, 4), torch.randn(8, 2)]
    names = ["obs", "state_ins"]
    path = export.export_onnx(Unread(), examples, tmp_path / "graph.onnx", ("N",), input_names=names, keep_unread_inputs=keep)
    inputs, _ = interface(path)
    assert list(inputs) == (names if keep else ["obs"])
    report = export.verify(path)
    assert report.passed, str(report)


@pytest.mark.slow
def test_a_sampled_policy_with_other_names_acts_and_takes_parameters(tmp_path):
    torch.manual_seed(0)
    policy = export.SampledPolicy(nn.Linear(4, 3), nn.Linear(4, 1), distributions.Categorical(3), torch.float32)
    observation = torch.randn(1, 4)
    inputs = {"observation": observation, "noise": policy.distribution.noise(policy.actor_network(observation))}
    plain = export.export_onnx(policy, inputs, tmp_path / "plain.onnx", ("N",))
    renamed = export.export_onnx(
        policy, inputs, tmp_path / "renamed.onnx", ("N",), input_names=["obs", "epsilon"], output_names=["a", "b", "c"]
    )
    assert [list(nodes) for nodes in interface(renamed)] == [["obs", "epsilon"], ["a", "b", "c"]]
    assert export.verify(renamed).passed
    for observations in (np.ones((5, 4)), np.ones(4), np.zeros((2, 4))):
        answers = [runtime.Policy.load(path, seed=0).act(observations) for path in (plain, renamed)]
        for one, other in zip(*answers, strict=True):
            np.testing.assert_array_equal(one, other)
        assert answers[0].action.dtype == np.float32
    zeros = {name: np.zeros_like(tensor.detach().numpy()) for name, tensor in policy.named_parameters()}
    changed = runtime.Policy.load(renamed, parameters=zeros).act(np.ones((2, 4)))
    np.testing.assert_allclose(changed.log_prob, np.log([1 / 3, 1 / 3]), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ending", UNCOMPILED)
def test_one_observation_is_enough_as_an_example(ending, tmp_path):
    policy = export.GreedyPolicy(nn.Linear(4, 3), distributions.Categorical(3), torch.int32)
    path = EXPORTERS[ending](policy, {"observation": torch.randn(1, 4)}, tmp_path / f"policy{ending}", ("N",))
    for rows in (1, 7):
        observation = torch.randn(rows, 4)
        answer = LOADERS[ending](path)({"observation": observation})["action"]
        assert answer.dtype == torch.int32
        assert torch.equal(answer, policy(observation).action)
    assert export.verify(path).passed


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64])
def test_choices_have_the_chosen_dtype(dtype):
    observation = torch.randn(5, 4)
    actor, categorical = nn.Linear(4, 3), distributions.Categorical(3)
    action = export.GreedyPolicy(actor, categorical, dtype)(observation).action
    assert action.dtype == dtype
    assert torch.equal(action.long(), export.GreedyPolicy(actor, categorical)(observation).action)


def test_real_actions_are_not_cut_to_integers():
    policy = export.GreedyPolicy(nn.Linear(4, 4), distributions.Normal(2), torch.int32)
    with pytest.raises(
        TypeError, match=r"action_dtype: expected a floating dtype for actions of torch.float32, got torch.int32"
    ):
        policy(torch.randn(5, 4))
    with pytest.raises(TypeError, match=r"action_dtype: expected a torch.dtype or None, got 'int32'"):
        export.GreedyPolicy(nn.Linear(4, 4), distributions.Categorical(4), "int32")


@pytest.mark.slow
def test_a_file_object_receives_the_graph(tmp_path, monkeypatch):
    file = io.BytesIO()
    assert export.export_onnx(nn.Linear(4, 2), [torch.randn(1, 4)], file, ("N",), output_names=["y"]) is None
    inputs, outputs = interface(file.getvalue())
    assert (list(inputs), list(outputs)) == (["input"], ["y"])
    monkeypatch.setattr(model_file, "MAX_WEIGHT_BYTES", 8)
    with pytest.raises(export.ExportError, match="path: expected a path, since the weights of 2 GB or more need a second file"):
        export.export_onnx(nn.Linear(64, 64), [torch.randn(1, 64)], io.BytesIO(), ("N",))
    with pytest.raises(TypeError, match="path: expected a path or a binary file object, got 3"):
        export.export_onnx(nn.Linear(4, 2), [torch.randn(1, 4)], 3, ("N",))


INVALID = {
    "no_inputs": ({"input_names": []}, ValueError, r"input_names: expected 1 names for the inputs \['input'\], got \[\]"),
    "many_inputs": ({"input_names": ["a", "b"]}, ValueError, r"input_names: expected 1 names for the inputs \['input'\], got"),
    "input_is_output": (
        {"input_names": ["output"]},
        ValueError,
        "output_names: expected names that differ from each other and",
    ),
    "metadata_number": ({"metadata": {"size": 3}}, TypeError, "metadata: expected strings by name, got 3 for 'size'"),
    "metadata_list": ({"metadata": ["size"]}, TypeError, "metadata: expected a mapping of names to strings, got list"),
    "metadata_prefix": (
        {"metadata": {"a2c_compiled.module": "x"}},
        ValueError,
        r"metadata: expected names without the prefix 'a2c_compiled\.'",
    ),
    "keep": ({"keep_unread_inputs": 1}, TypeError, "keep_unread_inputs: expected True or False, got 1"),
}


@pytest.mark.parametrize("what", INVALID)
def test_an_invalid_interface_is_refused(what, tmp_path):
    options, error, message = INVALID[what]
    with pytest.raises(error, match=f"^{message}"):
        export.export_onnx(nn.Linear(4, 2), [torch.randn(8, 4)], tmp_path / "graph.onnx", ("N",), **options)
    assert not list(tmp_path.iterdir())
