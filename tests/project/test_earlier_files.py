"""Files in ``fixtures``, which an earlier version wrote, load and give the same results; files written now have the same names.

A failure here means that a file on a user's disk no longer works. ``fixtures/make.py`` wrote the files; read it before you run it again.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from earlier_cases import (
    FIXTURES,
    LOSSES,
    TRAIN_STEPS,
    graph_names,
    load_groups,
    losses_and_gradients,
    make_loss,
    make_step,
    metrics_of,
    option_names,
    tensor_names,
)
from export_cases import one_operator_table
from safetensors.torch import load_file

from a2c_compiled.cli import main
from a2c_compiled.export import verify
from a2c_compiled.export.on_device.runtime import Learner, Policy
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.run_folder import load_run

__all__ = ["one_operator_table"]

NAMES = json.loads((FIXTURES / "names.json").read_text())
TRAINED, EXPORTED, LEARNER = (FIXTURES / name for name in ("trained", "exported", "learner"))
RUNS = sorted(NAMES["tensors"])
GRAPHS = sorted(NAMES["graphs"])
# The torch version that wrote the files gives equal bits; other versions may sum in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # centred RMSprop subtracts nearly equal numbers, and processors round differently
# Rounding errors add up over the updates of a run.
TOLERANCE_OF_RUN = {"rtol": 1e-4, "atol": 1e-5}


def assert_same(actual, expected, **tolerance):
    """Two dicts of tensors have the same names, and the same values within the tolerance."""
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, **(tolerance or TOLERANCE), msg=lambda text, name=name: f"{name}: {text}"
        )


def run(*arguments):
    """Runs the command and returns its exit status."""
    return main([str(argument) for argument in arguments])


def skip_unless_readable(file):
    """A program of torch.export loads only in the torch version that wrote it and in later versions."""
    running = torch.__version__.partition("+")[0]
    made_with, here = ([int(part) for part in version.split(".")[:2]] for version in (NAMES["torch"], running))
    if file.endswith(".pt2") and here < made_with:
        pytest.skip(f"a program of torch {NAMES['torch']}, and this is {running}")


# Losses and training steps


def test_each_fixture_of_a_loss_or_training_step_has_a_case():
    for folder, cases in (("losses", LOSSES), ("train_steps", TRAIN_STEPS)):
        assert {path.stem for path in (FIXTURES / folder).iterdir()} == set(cases) == set(NAMES[folder])


@pytest.mark.parametrize("name", LOSSES)
def test_an_earlier_state_loads_into_a_loss_and_gives_the_same_losses(name):
    earlier = load_groups(FIXTURES / "losses" / f"{name}.safetensors")
    loss = make_loss(name, seed=1)  # other weights than those that are loaded
    assert list(loss.state_dict()) == NAMES["losses"][name], "optimizers of torch.optim rely on this order"
    loss.load_state_dict(earlier["state"], strict=True)
    assert_same(loss.state_dict(), earlier["state"], rtol=0, atol=0)
    losses, gradients = losses_and_gradients(loss, earlier["batch"])
    assert_same(losses, earlier["losses"])
    assert_same(gradients, earlier["gradients"])
    assert_same(loss.state_dict(), earlier["after"])


@pytest.mark.parametrize("name", TRAIN_STEPS)
def test_an_earlier_state_loads_into_a_training_step_and_gives_the_same_update(name):
    earlier = load_groups(FIXTURES / "train_steps" / f"{name}.safetensors")
    step = make_step(name, seed=1)
    assert list(step.state_dict()) == NAMES["train_steps"][name]
    step.load_state_dict(earlier["state"], strict=True)
    assert_same(step.state_dict(), earlier["state"], rtol=0, atol=0)
    assert_same(metrics_of(step, earlier["batch"]), earlier["metrics"])
    assert_same(step.state_dict(), earlier["after"])


# Runs


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A folder with a copy of each run, resumed and trained up to 400 steps."""
    folder = tmp_path_factory.mktemp("trained")
    for name in RUNS:
        shutil.copytree(TRAINED / name, folder / name)
        assert run("train", "--resume", "--total-steps", 400, "--out", folder / name) == 0
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_every_field_of_an_earlier_configuration_is_read(name):
    config, _ = load_run(TRAINED / name)
    earlier = json.loads((TRAINED / name / "config.json").read_text())
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert {field: fields[field] for field in earlier} == earlier


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_earlier_run_reaches_the_same_state(resumed, name):
    (training,) = (resumed / name).glob("checkpoints/*/training.safetensors")
    assert_same(load_file(training), load_file(TRAINED / f"{name}.resumed.safetensors"), **TOLERANCE_OF_RUN)
    assert tensor_names(resumed / name) == NAMES["tensors"][name]


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_earlier_run_appends_the_same_progress(resumed, name, tmp_path):
    (tmp_path / "progress.csv").write_text((TRAINED / f"{name}.resumed.csv").read_text())
    now, earlier = load_progress(resumed / name), load_progress(tmp_path)
    assert now["steps"] == [200, 400]
    assert list(now)[: len(earlier)] == list(earlier)
    for column in sorted(set(earlier) - {"seconds", "steps_per_second"}):
        np.testing.assert_allclose(now[column], earlier[column], rtol=1e-3, atol=1e-5, err_msg=column)


@pytest.mark.parametrize("name", RUNS)
def test_the_evaluation_of_an_earlier_run_is_the_same(name, capsys):
    assert run("eval", TRAINED / name, "--episodes", 5, "--json") == 0
    now, earlier = json.loads(capsys.readouterr().out), json.loads((TRAINED / f"{name}.eval.json").read_text())
    assert set(earlier) <= set(now)
    assert now["lengths"] == earlier["lengths"]
    assert now["returns"] == pytest.approx(earlier["returns"], rel=1e-4)


def test_earlier_runs_can_be_plotted(tmp_path):
    picture = tmp_path / "curves.png"
    assert run("plot", *(TRAINED / name for name in RUNS), "--out", picture) == 0
    assert picture.stat().st_size > 0


def test_a_new_run_has_the_earlier_columns_and_tensors(tmp_path):
    options = ("--no-compile", "--device", "cpu", "--num-envs", 4, "--num-steps", 5, "--total-steps", 200, "--hidden", 8)
    assert run("train", *options, "--out", tmp_path) == 0
    columns = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert [column for column in columns if column in NAMES["columns"]] == NAMES["columns"]
    assert tensor_names(tmp_path) == NAMES["tensors"]["cartpole"]


# Exported files


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The earlier run, exported with the current code."""
    folder = tmp_path_factory.mktemp("exported")
    assert run("export", TRAINED / "cartpole", "--out", folder, "--format", "onnx") == 0
    assert run("export", TRAINED / "cartpole", "--out", folder, "--format", "torchscript,pt2", "--graph", "policy") == 0
    return folder


@pytest.mark.parametrize("file", GRAPHS)
def test_an_earlier_exported_file_passes_verification(file):
    skip_unless_readable(file)
    report = verify(EXPORTED / file)
    assert report.passed, str(report)
    assert graph_names(EXPORTED / file) == NAMES["graphs"][file]


@pytest.mark.slow
@pytest.mark.xdist_group("earlier_export")
def test_an_export_writes_the_earlier_file_names(exported):
    earlier = NAMES["files"] + NAMES["scripts"]
    digests = [f"{name}.sha256" for name in earlier if name.endswith((".onnx", ".pt", ".pt2"))]  # earlier versions wrote none
    assert sorted(path.name for path in exported.iterdir()) == sorted(earlier + digests)
    assert sorted(np.load(exported / "train_step.state.npz").files) == NAMES["state"]


@pytest.mark.slow
@pytest.mark.xdist_group("earlier_export")
@pytest.mark.parametrize("file", GRAPHS)
def test_a_new_exported_file_has_the_earlier_names(exported, file):
    assert graph_names(exported / file) == NAMES["graphs"][file]


@pytest.mark.slow
@pytest.mark.xdist_group("earlier_export")
@pytest.mark.parametrize("file", GRAPHS)
def test_a_new_exported_file_gives_the_earlier_outputs(exported, file, tmp_path):
    shutil.copy(exported / file, tmp_path)
    shutil.copy(EXPORTED / f"{file}.cases.npz", tmp_path)
    report = verify(tmp_path / file)
    assert report.passed, str(report)


# The runtime


@pytest.fixture(scope="module")
def earlier_outputs():
    """The earlier outputs of policies and learner, by group; the group ``""`` has their inputs."""
    groups = {}
    for name, array in np.load(LEARNER / "answers.npz").items():
        group, _, own = name.rpartition("/")
        groups.setdefault(group, {})[own] = array
    return groups


def load_learner(seed=None):
    """Returns the current learner with the earlier state."""
    learner = Learner.load(EXPORTED / "train_step.onnx", "cpu", seed=seed)
    learner.load_state(LEARNER / "learned.npz")
    return learner


def assert_equal_outputs(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_earlier_policies_choose_the_same_actions(earlier_outputs):
    inputs = earlier_outputs[""]
    action = Policy.load(EXPORTED / "policy.onnx", "cpu").act(inputs["observation"])
    assert_equal_outputs({"action": action}, earlier_outputs["policy"])
    sampled = Policy.load(EXPORTED / "policy_sampled.onnx", "cpu", parameters=load_learner().parameters)
    assert_equal_outputs(sampled.act(inputs["observation"], inputs["noise"])._asdict(), earlier_outputs["policy_sampled"])


def test_a_learner_continues_from_an_earlier_state(earlier_outputs):
    learner, inputs = load_learner(seed=5), earlier_outputs[""]
    assert learner.lr == 0.02
    observation = inputs["observation"]
    assert_equal_outputs(learner.act(observation, noise=inputs["noise"])._asdict(), earlier_outputs["given_noise"])
    assert_equal_outputs(learner.act(observation)._asdict(), earlier_outputs["drawn_noise"])
    assert_equal_outputs(learner.act(observation, greedy=True)._asdict(), earlier_outputs["greedy"])
    assert_equal_outputs(learner.step(earlier_outputs["rollout"]), earlier_outputs["metrics"])
    assert_equal_outputs(learner.parameters, earlier_outputs["parameters"])


# The command


@pytest.mark.parametrize("command", NAMES["options"])
def test_the_command_has_the_earlier_options(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    missing = set(NAMES["options"][command]) - set(option_names(None if command == "a2c-compiled" else command))
    assert not missing
