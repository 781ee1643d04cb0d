"""Files that an earlier version wrote, ``fixtures``, load and give the same answers; what is written now has the same names.

A failure here means that something on users' disks no longer works. ``fixtures/make.py`` made the files; see there before it is run again.
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
from safetensors.torch import load_file

from a2c_compiled.cli import main
from a2c_compiled.export import verify
from a2c_compiled.export.on_device.runtime import Learner, Policy
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.run_folder import load_run

NAMES = json.loads((FIXTURES / "names.json").read_text())
TRAINED, EXPORTED, LEARNER = (FIXTURES / name for name in ("trained", "exported", "learner"))
RUNS = sorted(NAMES["tensors"])
GRAPHS = sorted(NAMES["graphs"])
# Equal to the bit with the torch that made the files; others may sum in another order.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
# After many updates, each of which adds to the rounding of those before.
TOLERANCE_OF_RUN = {"rtol": 1e-4, "atol": 1e-5}


def assert_same(actual, expected, **tolerance):
    """Two dicts of tensors have the same names, and the same numbers."""
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, **(tolerance or TOLERANCE), msg=lambda text, name=name: f"{name}: {text}"
        )


def run(*arguments):
    """Exit status of the command."""
    return main([str(argument) for argument in arguments])


def skip_unless_readable(file):
    """Programs of torch.export are for the torch that wrote them and later ones."""
    running = torch.__version__.partition("+")[0]
    made_with, here = ([int(part) for part in version.split(".")[:2]] for version in (NAMES["torch"], running))
    if file.endswith(".pt2") and here < made_with:
        pytest.skip(f"a program of torch {NAMES['torch']}, and this is {running}")


# Losses and training steps


def test_every_earlier_loss_and_training_step_has_its_case():
    for folder, cases in (("losses", LOSSES), ("train_steps", TRAIN_STEPS)):
        assert {path.stem for path in (FIXTURES / folder).iterdir()} == set(cases) == set(NAMES[folder])


@pytest.mark.parametrize("name", LOSSES)
def test_an_earlier_state_loads_into_a_loss_and_gives_the_same_losses(name):
    earlier = load_groups(FIXTURES / "losses" / f"{name}.safetensors")
    loss = make_loss(name, seed=1)  # other networks than those that are loaded
    assert list(loss.state_dict()) == NAMES["losses"][name], "the order is that of the optimizers of torch.optim"
    loss.load_state_dict(earlier["state"], strict=True)
    assert_same(loss.state_dict(), earlier["state"], rtol=0, atol=0)
    losses, gradients = losses_and_gradients(loss, earlier["batch"])
    assert_same(losses, earlier["losses"])
    assert_same(gradients, earlier["gradients"])
    assert_same(loss.state_dict(), earlier["after"])


@pytest.mark.parametrize("name", TRAIN_STEPS)
def test_an_earlier_state_loads_into_a_training_step_and_its_next_update_is_the_same(name):
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
    """A copy of each run that has gone on to 400 steps."""
    folder = tmp_path_factory.mktemp("trained")
    for name in RUNS:
        shutil.copytree(TRAINED / name, folder / name)
        assert run("train", "--resume", "--total-steps", 400, "--out", folder / name) == 0
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_configuration_is_read_field_by_field(name):
    config, _ = load_run(TRAINED / name)
    earlier = json.loads((TRAINED / name / "config.json").read_text())
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert {field: fields[field] for field in earlier} == earlier


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_run_goes_on_as_it_would_have_then(resumed, name):
    (training,) = (resumed / name).glob("checkpoints/*/training.safetensors")
    assert_same(load_file(training), load_file(TRAINED / f"{name}.resumed.safetensors"), **TOLERANCE_OF_RUN)
    assert tensor_names(resumed / name) == NAMES["tensors"][name]


@pytest.mark.parametrize("name", RUNS)
def test_the_progress_of_an_earlier_run_is_kept_and_goes_on(resumed, name, tmp_path):
    (tmp_path / "progress.csv").write_text((TRAINED / f"{name}.resumed.csv").read_text())
    now, earlier = load_progress(resumed / name), load_progress(tmp_path)
    assert now["steps"] == [200, 400]
    assert list(now)[: len(earlier)] == list(earlier)
    for column in sorted(set(earlier) - {"seconds", "steps_per_second"}):
        np.testing.assert_allclose(now[column], earlier[column], rtol=1e-3, atol=1e-5, err_msg=column)


@pytest.mark.parametrize("name", RUNS)
def test_an_earlier_run_is_evaluated(name, capsys):
    assert run("eval", TRAINED / name, "--episodes", 5, "--json") == 0
    now, earlier = json.loads(capsys.readouterr().out), json.loads((TRAINED / f"{name}.eval.json").read_text())
    assert set(earlier) <= set(now)
    assert now["lengths"] == earlier["lengths"]
    assert now["returns"] == pytest.approx(earlier["returns"], rel=1e-4)


def test_earlier_runs_are_plotted(tmp_path):
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
    """What today's code exports of the earlier run."""
    folder = tmp_path_factory.mktemp("exported")
    assert run("export", TRAINED / "cartpole", "--out", folder, "--format", "onnx") == 0
    assert run("export", TRAINED / "cartpole", "--out", folder, "--format", "torchscript,pt2", "--graph", "policy") == 0
    return folder


@pytest.mark.parametrize("file", GRAPHS)
def test_an_earlier_file_is_verified(file):
    skip_unless_readable(file)
    report = verify(EXPORTED / file)
    assert report.passed, str(report)
    assert graph_names(EXPORTED / file) == NAMES["graphs"][file]


def test_an_export_has_the_earlier_files(exported):
    assert sorted(path.name for path in exported.iterdir()) == sorted(NAMES["files"] + NAMES["scripts"])
    assert sorted(np.load(exported / "train_step.state.npz").files) == NAMES["state"]


@pytest.mark.parametrize("file", GRAPHS)
def test_an_exported_file_has_the_earlier_names(exported, file):
    assert graph_names(exported / file) == NAMES["graphs"][file]


@pytest.mark.parametrize("file", GRAPHS)
def test_an_exported_file_gives_the_earlier_answers(exported, file, tmp_path):
    shutil.copy(exported / file, tmp_path)
    shutil.copy(EXPORTED / f"{file}.cases.npz", tmp_path)
    report = verify(tmp_path / file)
    assert report.passed, str(report)


# The runtime


@pytest.fixture(scope="module")
def answers():
    """What policies and learner answered, by group, and what they were given, under the name ``""``."""
    groups = {}
    for name, array in np.load(LEARNER / "answers.npz").items():
        group, _, own = name.rpartition("/")
        groups.setdefault(group, {})[own] = array
    return groups


def load_learner(seed=None):
    """Today's learner, gone on from the earlier state."""
    learner = Learner.load(EXPORTED / "train_step.onnx", "cpu", seed=seed)
    learner.load_state(LEARNER / "learned.npz")
    return learner


def assert_answers(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_earlier_policies_act_as_they_did(answers):
    given = answers[""]
    action = Policy.load(EXPORTED / "policy.onnx", "cpu").act(given["observation"])
    assert_answers({"action": action}, answers["policy"])
    sampled = Policy.load(EXPORTED / "policy_sampled.onnx", "cpu", parameters=load_learner().parameters)
    assert_answers(sampled.act(given["observation"], given["noise"])._asdict(), answers["policy_sampled"])


def test_a_learner_goes_on_from_an_earlier_state(answers):
    learner, given = load_learner(seed=5), answers[""]
    assert learner.lr == 0.02
    observation = given["observation"]
    assert_answers(learner.act(observation, noise=given["noise"])._asdict(), answers["given_noise"])
    assert_answers(learner.act(observation)._asdict(), answers["drawn_noise"])
    assert_answers(learner.act(observation, greedy=True)._asdict(), answers["greedy"])
    assert_answers(learner.step(answers["rollout"]), answers["metrics"])
    assert_answers(learner.parameters, answers["parameters"])


# The command


@pytest.mark.parametrize("command", NAMES["options"])
def test_the_command_has_the_earlier_options(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    missing = set(NAMES["options"][command]) - set(option_names(None if command == "a2c-compiled" else command))
    assert not missing
