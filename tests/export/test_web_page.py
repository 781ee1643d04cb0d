"""The web page is laid beside an exported training step, with onnxruntime-web; what the page cannot serve is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from on_device_files import as_tensors
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export
from a2c_compiled.demo import web_page as demo
from a2c_compiled.export.on_device import JAVASCRIPT, WEB, learn_policy
from a2c_compiled.export.on_device.runtime import Learner
from a2c_compiled.export.web_page import ENVIRONMENTS, ONNXRUNTIME, downloads, instructions, onnxruntime_web, write_page
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.update import TrainStep

slow = pytest.mark.slow
grouped = pytest.mark.xdist_group("web_page")


def make_rollout(size, action):
    """Random steps ``[3, 2, size]``."""
    generator = np.random.default_rng(0)
    observation, next_observation = generator.standard_normal((2, 3, 2, size), dtype=np.float32)
    done = generator.random((3, 2)) < 0.2
    reward = generator.standard_normal((3, 2), dtype=np.float32)
    entries = (observation, action, reward, next_observation, done, done)
    return dict(zip(("observation", "action", "reward", "next_observation", "done", "terminated"), entries, strict=True))


CHOICES = np.zeros((3, 2), np.int64)
VECTORS = np.zeros((3, 2, 1), np.float32)


def exported(folder, rollout, distribution, make_network=nn.Linear, estimator=None):
    """A folder with the training step of linear networks."""
    torch.manual_seed(0)
    size = rollout["observation"].shape[-1] if isinstance(rollout["observation"], np.ndarray) else 4
    actor, critic = make_network(size, distribution.num_params), make_network(size, 1)
    loss = A2CLoss(actor, critic, distribution, estimator or estimators.GAE())
    export.export_train_step(TrainStep(loss, "sgd", 0.1, compile=False), as_tensors(rollout), folder / "train_step.onnx")
    return folder


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """The files of a training step for CartPole-v1."""
    return exported(tmp_path_factory.mktemp("learner"), make_rollout(4, CHOICES), distributions.Categorical(2))


@pytest.fixture
def folder(learner, tmp_path):
    """A copy of these files."""
    return shutil.copytree(learner, tmp_path / "page")


@pytest.fixture
def package(tmp_path):
    """A folder with node_modules, in which onnxruntime-web is three small files."""
    dist = tmp_path / "node" / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in ONNXRUNTIME:
        (dist / name).write_text(name)
    return tmp_path / "node"


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Writing


@slow
@grouped
def test_a_page_lies_beside_the_files_of_the_training_step(folder, package):
    before = names(folder)
    index = write_page(folder, "CartPole-v1", 8, 4, solved_return=475, ort=package)
    assert index == folder / "index.html"
    laid = {path.name for path in (*WEB, *JAVASCRIPT)} | {f"ort/{name}" for name in ONNXRUNTIME} | {"page.json"}
    assert names(folder) == before | laid
    for path in (*WEB, *JAVASCRIPT):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    for name in ONNXRUNTIME:
        assert (folder / "ort" / name).read_text() == name
    assert json.loads((folder / "page.json").read_text()) == {
        "environment": "CartPole-v1",
        "learner": "train_step.onnx",
        "num_steps": 8,
        "num_envs": 4,
        "solved_return": 475.0,
        "reward_scale": 1.0,
    }
    assert set(downloads(folder)) == laid - {"runtime.d.ts"} | {
        f"train_step.{ending}" for ending in ("onnx", "onnx.sha256", "policy.onnx", "state.npz")
    }
    size = sum(path.stat().st_size for path in downloads(folder).values())
    assert instructions(folder).startswith(
        f"to learn in a web page: python -m http.server --directory {folder}, then open http://localhost:8000; a browser"
        f" downloads {size / 1e6:.1f} MB, or "
    )


@slow
@grouped
def test_a_page_without_onnxruntime_says_how_to_get_it_and_a_later_one_keeps_it(folder, package):
    write_page(folder, "CartPole-v1")
    assert not (folder / "ort").exists()
    said = instructions(folder)
    assert "npm install onnxruntime-web@1 && mkdir -p" in said
    copied = re.search(r"cp (.*) (\S+)", said)
    assert [name.rpartition("/")[2] for name in copied[1].split()] == list(ONNXRUNTIME)
    assert copied[2] == str(folder / "ort")
    write_page(folder, "CartPole-v1", ort=package)
    write_page(folder, "CartPole-v1", solved_return=None)
    assert (folder / "ort" / ONNXRUNTIME[0]).is_file()
    assert "npm" not in instructions(folder)
    assert json.loads((folder / "page.json").read_text())["solved_return"] is None


@pytest.mark.parametrize("place", ["", "node_modules", "node_modules/onnxruntime-web", "node_modules/onnxruntime-web/dist"])
def test_onnxruntime_is_found_in_its_package_and_in_the_folders_around_it(package, place):
    assert onnxruntime_web(package / place).samefile(package / "node_modules" / "onnxruntime-web" / "dist")


def test_the_page_has_the_environments_that_the_exporter_accepts():
    source = next(path for path in WEB if path.name == "environments.js").read_text()
    table = source.partition("export const ENVIRONMENTS = {")[2].partition("\n};")[0]
    found = {}
    for name, body in re.findall(r'^  "([^"]+)": \{(.*?)^  \},', table, re.DOTALL | re.MULTILINE):
        found[name] = (int(re.search(r"observation_size: (\d+)", body)[1]), "choices:" in body)
    assert found == ENVIRONMENTS
    assert {name: config.env for name, config in demo.PAGES.items()} == {name: name for name in ENVIRONMENTS}


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("LunarLander-v3",), "env: expected one that the web page has, CartPole-v1, .*, got 'LunarLander-v3'"),
        ((7,), "env: expected one that the web page has, .*, got 7"),
        (("CartPole-v1", 0), "num_steps: expected at least 1, got 0"),
        (("CartPole-v1", 1.5), "num_steps: expected an integer, got 1.5"),
        (("CartPole-v1", 1, True), "num_envs: expected an integer, got True"),
        (("CartPole-v1", 1, 1, "x"), "solved_return: expected a number"),
        (("CartPole-v1", 1, 1, float("inf")), "solved_return: expected a finite number or None, got inf"),
        (("CartPole-v1", 1, 1, 475, 0), "reward_scale: expected a positive finite number, got 0"),
        (("CartPole-v1", 1, 1, 475, float("nan")), "reward_scale: expected a positive finite number, got nan"),
        (
            ("CartPole-v1", 1, 1, 475, 1, "nowhere"),
            "ort: expected the npm package onnxruntime-web with .*, got nowhere",
        ),
        (("CartPole-v1", 1, 1, 475, 1, 3), "ort: expected a path, got 3"),
        (("CartPole-v1", 1, 1, 475, 1, None, "a/b.onnx"), "learner: expected the name of a file in .*, got 'a/b.onnx'"),
        (("CartPole-v1", 1, 1, 475, 1, None, 3), "learner: expected a file name, got 3"),
        (("CartPole-v1",), "train_step.onnx"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(arguments, message, tmp_path):
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        write_page(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


@slow
@grouped
def test_a_training_step_for_another_environment_is_refused(learner, tmp_path):
    before = names(learner)
    with pytest.raises(
        ValueError, match=r"learner: expected one for the observations of Acrobot-v1, got train_step\.onnx \(obs"
    ):
        write_page(learner, "Acrobot-v1")
    assert names(learner) == before
    vectors = exported(tmp_path / "vectors", make_rollout(4, VECTORS), distributions.Normal(1))
    with pytest.raises(
        ValueError, match=r"learner: expected actions of CartPole-v1, each a choice, got float32 of shape \[1\]"
    ):
        write_page(vectors, "CartPole-v1")


class OfThree(nn.Sequential):
    """A policy with memory for observations of three numbers, the hidden state and the start of an episode."""

    def __init__(self, size, outputs):
        super().__init__(Recurrent(MinGRU(size, 2), offset=2 * (outputs == 1)), nn.Linear(2, outputs))


@slow
@grouped
def test_rollouts_and_policies_that_page_and_script_cannot_serve_are_refused(tmp_path):
    rollout = make_rollout(4, CHOICES)
    categorical = distributions.Categorical(2)
    in_groups = exported(tmp_path / "grouped", {**rollout, "group": CHOICES}, categorical, estimator=estimators.GAE())
    with pytest.raises(ValueError, match=r"learner: expected a training step that reads only obs.*, got one that reads group"):
        write_page(in_groups, "CartPole-v1")
    transposed = exported(tmp_path / "transposed", rollout, categorical, estimator=estimators.GAE(time_dim=-1))
    with pytest.raises(
        ValueError, match=r"learner: expected a training step for rollouts \[T, N, \.\.\.\], got one for \[N, T, "
    ):
        write_page(transposed, "CartPole-v1")
    learner = Learner.load(transposed / "train_step.onnx")
    assert learner.time_dim == 1
    with pytest.raises(ValueError, match=r"graph: expected a training step for rollouts \[T, N, "):
        next(learn_policy.rollouts(learner, "CartPole-v1", 2, 3, seed=0))
    hidden, start = np.zeros((3, 2, 4), np.float32), np.ones((3, 2), bool)
    for name in ("observation", "next_observation"):
        rollout[name] = (rollout[name], hidden, start)
    memory = exported(tmp_path / "memory", rollout, categorical, OfThree)
    with pytest.raises(ValueError, match=r"learner: expected a policy without memory, got train_step\.onnx"):
        write_page(memory, "CartPole-v1")


# The page of make web


@slow
@grouped
def test_the_page_that_learns_from_scratch_has_new_networks(tmp_path, package, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["web_page", str(tmp_path / "page"), "--ort", str(package)])
    assert demo.main() == 0
    assert capsys.readouterr().out.startswith("to learn in a web page: python -m http.server --directory")
    page = json.loads((tmp_path / "page" / "page.json").read_text())
    config = demo.PAGES["CartPole-v1"]
    assert (page["environment"], page["solved_return"], page["num_envs"]) == ("CartPole-v1", 475.0, config.num_envs)
    learner = Learner.load(tmp_path / "page" / page["learner"])
    assert learner.lr == config.lr
    assert learner.act(np.zeros(4, np.float32)).log_prob == pytest.approx(np.log(0.5), abs=0.01)


def test_a_wrong_folder_of_onnxruntime_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["web_page", str(tmp_path / "page"), "--ort", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
