"""Environments of a user in every command: each kind works in each command, or is refused by name."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import own_environments
import pytest
import torch
from loops import loop_over
from own_environments import LENGTH, Corridor, Walk

from a2c_compiled.cli import main
from a2c_compiled.environments import GymnasiumEnvironments, TensorEnvironments, make_environments, make_vector
from a2c_compiled.export.on_device import learn_policy, play_policy
from a2c_compiled.export.on_device.runtime import Learner
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training import TrainConfig, Trainer, train
from a2c_compiled.training.checkpoint import load_checkpoint
from a2c_compiled.training.run_folder import load_run

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="envpool is not installed: pip install 'a2c-compiled[envpool]'"
)
OWN = ["Corridor", "Walk", "next_step_vector", "simulator"]
KINDS = {f"own_environments:{name}": name for name in OWN}
KINDS["envpool:CartPole-v1"] = "envpool"
KINDS["own_environments:pool"] = "pool"
EVERY = [pytest.param(env, id=name, marks=[needs_envpool] if "pool" in name else []) for env, name in KINDS.items()]
HERE = Path(__file__).parent
TINY = (
    "--no-compile",
    "--num-envs",
    "2",
    "--num-steps",
    "5",
    "--hidden",
    "4",
    "--solved-return",
    "inf",
    "--checkpoint-seconds",
    "1000",
)
pytestmark = pytest.mark.filterwarnings("ignore:.*Box (low|high)'s precision lowered:UserWarning")


def run(*arguments):
    """Exit status of the command; argparse's own exits count as that."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


@pytest.fixture(autouse=True)
def _same_path(monkeypatch):
    monkeypatch.syspath_prepend(HERE)  # the commands append the current folder, which this undoes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trains a run once for each environment; returns its folder."""
    folders = {}

    def trained(env):
        if env not in folders:
            folder = tmp_path_factory.mktemp("own") / "run"
            assert run("train", "--env", env, *TINY, "--total-steps", 60, "--out", folder) == 0
            folders[env] = folder
        return folders[env]

    return trained


def is_own(env):
    return not env.startswith("envpool:")


# One test for each command


@pytest.mark.parametrize("env", EVERY)
def test_train_records_the_name_and_steps_the_environments(runs, env):
    config, loss = load_run(runs(env), trust_environment=True)
    assert config.env == env
    assert loss.actor_network[0].weight.shape == (4, 3 if is_own(env) and "pool" not in env else 4)
    facts = load_checkpoint(runs(env)).facts
    assert facts["updates"] == 6
    assert facts["episodes"] == len(facts["returns"])
    if is_own(env):
        # 30 steps of 2 environments, of which some are spent on a reset
        is_counted = "next_step" not in env and "pool" not in env
        assert facts["lengths"] == [LENGTH] * (10 if is_counted else 8)


@pytest.mark.parametrize("env", EVERY)
def test_resume_continues_as_if_never_stopped_or_says_that_it_begins_new_episodes(env, tmp_path):
    common = ("train", "--env", env, *TINY, "--final-lr", 1, "--out")
    assert run(*common, tmp_path / "whole", "--total-steps", 60) == 0
    assert run(*common, tmp_path / "halves", "--total-steps", 30) == 0
    resumed = ("train", "--resume", "--out", tmp_path / "halves", "--total-steps", 60, "--trust-environment")
    if "pool" in env or "next_step" in env:
        with pytest.warns(RuntimeWarning, match="the run goes on with new episodes"):
            assert run(*resumed) == 0
        return
    assert run(*resumed) == 0
    whole, halves = (load_checkpoint(tmp_path / name).training for name in ("whole", "halves"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name


@pytest.mark.parametrize("env", EVERY)
def test_eval_plays_the_environment_of_the_run(runs, env, capsys):
    folder = runs(env)
    capsys.readouterr()
    assert run("eval", folder, "--env", env, "--episodes", 3, "--json", "--sampled") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["env"] == env
    if is_own(env):
        assert result["lengths"] == [LENGTH] * 3
    assert len(result["returns"]) == 3


@pytest.mark.parametrize("env", EVERY)
def test_a_video_shows_the_environment_or_the_error_names_it(runs, env, tmp_path, capsys):
    folder = runs(env)
    capsys.readouterr()
    status = run("eval", folder, "--trust-environment", "--episodes", 1, "--video", tmp_path / "episode.gif")
    if "Corridor" in env or not is_own(env):
        assert status == 0
        assert (tmp_path / "episode.gif").stat().st_size > 0
    else:
        assert status == 2
        error = capsys.readouterr().err
        assert f"env: expected an environment with render mode rgb_array, got {env}, " in error
        remedies = {
            "Walk": "environments in torch have no video",
            "simulator": "environments that are not gymnasium's have no video",
            "next_step_vector": "the function has to pass render_mode='rgb_array' to the environments that it makes",
        }
        assert error.strip().endswith(remedies[env.partition(":")[2]])


def test_plot_reads_the_runs_without_their_environments(tmp_path, runs):
    folders = [runs(f"own_environments:{name}") for name in OWN]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        copy = tmp_path / folder.parent.name
        copy.mkdir()
        (copy / "config.json").write_text(json.dumps({**config, "env": "no_such_module:X"}))
        (copy / "progress.csv").write_text((folder / "progress.csv").read_text())
    assert run("plot", *tmp_path.iterdir(), "--out", tmp_path / "curves.png") == 0
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("env", EVERY)
def test_export_verify_play_and_learn_with_the_environment(runs, env, tmp_path, capsys):
    folder = runs(env)
    graphs = "policy,train-step" if env.endswith(("Corridor", "next_step_vector")) else "policy"
    assert run("export", folder, "--env", env, "--out", tmp_path, "--format", "onnx", "--graph", graphs) == 0
    *_, last = capsys.readouterr().out.splitlines()
    reasons = {"Walk": "they run no environments in torch", "simulator": "they run only vector environments of gymnasium"}
    why_not = reasons.get(env.partition(":")[2])
    if why_not is None:
        assert last.partition(" --env ")[2].startswith(env)
    else:
        assert last == f"play_policy.py and learn_policy.py cannot run {env}: {why_not}"
    assert run("verify", tmp_path) == 0
    play = [sys.executable, str(tmp_path / "play_policy.py"), str(tmp_path / "policy.onnx"), "--env", env, "--episodes", "3"]
    played = subprocess.run(play, cwd=HERE, capture_output=True, text=True)
    if why_not is not None:
        assert "env: expected a gymnasium.Env class or a function that returns a VectorEnv, got " in played.stderr
        return
    assert played.returncode == 0, played.stderr
    assert len(json.loads(played.stdout.splitlines()[-1])) == 3
    if "train-step" in graphs:
        learner = Learner.load(tmp_path / "train_step.onnx", seed=0)
        rollout, returns = next(learn_policy.rollouts(learner, env, 2, 2 * LENGTH, 0))
        learner.step(rollout)
        spends_steps = env.endswith("next_step_vector")
        assert ("mask" in rollout) == spends_steps
        assert len(returns) == (2 if spends_steps else 4)
        if spends_steps:
            assert rollout["mask"].tolist() == [[t != LENGTH] * 2 for t in range(2 * LENGTH)]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["own_environments:Corridor", pytest.param("own_environments:pool", marks=needs_envpool)])
def test_processes_of_torchrun_step_their_part_of_the_environments(env, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "a2c_compiled.cli"]
    options = ["train", "--env", env, *TINY, "--total-steps", "60", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *options], cwd=HERE, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "checkpoint.json").read_text())["world_size"] == 2
    assert load_run(tmp_path / "run", env)[0].env == env


# What is imported, and when


@pytest.mark.parametrize("command", ["eval", "export", "resume"])
def test_a_module_that_only_the_run_names_is_not_imported(command, tmp_path, capsys, monkeypatch):
    (tmp_path / "traitor.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    assert run("train", *TINY, "--total-steps", 10, "--out", folder) == 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "env": "traitor:X"}))
    capsys.readouterr()
    arguments = ("train", "--resume", "--out", folder) if command == "resume" else (command, folder)
    assert run(*arguments) == 2
    expected = "a2c-compiled: env: expected --env traitor:X or --trust-environment, because"
    assert capsys.readouterr().err.startswith(expected)
    assert run(*arguments, "--trust-environment") == "imported"
    if command != "resume":
        assert (
            run(
                *arguments,
                "--env",
                "CartPole-v1",
                *(("--episodes", 1) if command == "eval" else ("--graph", "policy", "--format", "torchscript")),
            )
            == 0
        )


def test_a_run_without_an_importable_environment_is_evaluated_and_resumed_with_its_name(tmp_path, capsys):
    def local(num_envs, seed):
        return own_environments.simulator(num_envs, seed)

    config = TrainConfig(num_envs=2, num_steps=5, total_steps=20, hidden=(4,), compile=False)
    result = train(config, False, tmp_path, environments=local)
    assert result.steps == 20
    assert json.loads((tmp_path / "config.json").read_text())["env"] is None
    for command in (("eval", tmp_path), ("train", "--resume", "--out", tmp_path)):
        assert run(*command) == 2
        assert (
            "env: expected --env, because the config.json of the run names no environment, got none" in capsys.readouterr().err
        )
    assert run("train", "--resume", "--out", tmp_path, "--env", "own_environments:simulator", "--total-steps", 40) == 0
    assert load_run(tmp_path, trust_environment=True)[0].env == "own_environments:simulator"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (Corridor, "own_environments:Corridor"),
        (own_environments.simulator, "own_environments:simulator"),
        (lambda num_envs, seed: Walk(num_envs), None),
        ("CartPole-v1", "CartPole-v1"),
    ],
)
def test_a_trainer_takes_classes_and_functions_and_records_their_names(source, name):
    config = TrainConfig(env=None, num_envs=2, num_steps=5, total_steps=10, hidden=(4,), compile=False, solved_return=7.0)
    trainer = Trainer(config, environments=source)
    assert trainer.config.env == name
    trainer.update()
    assert np.isfinite(trainer.greedy_return(episodes=2))
    with pytest.raises(ValueError, match="env: expected the name of an environment, a class or a function, got none"):
        Trainer(config)


# Kinds of environments


def test_a_module_may_be_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text("from own_environments import Walk as X\n")
    monkeypatch.chdir(tmp_path)
    assert run("train", "--env", "mine_alone:X", *TINY, "--total-steps", 10, "--out", tmp_path / "run") == 0


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("own_environments:NUMBER", {}, "env: expected a gymnasium.Env class, .*, got 'own_environments:NUMBER', which is 3"),
        (
            "own_environments:Coridor",
            {},
            r"env: expected Coridor in module own_environments, or an environment of this name .*, got 'own_environments:Coridor'",
        ),
        ("own_environments:Nowhere-v0", {}, "env: expected Nowhere-v0 in module own_environments, or an environment of this"),
        (
            "own_environments:OfAnotherKind",
            {},
            r"env: expected a gymnasium.Env class, .* or a function of num_envs and seed, got OfAnotherKind \(too many",
        ),
        (
            "own_environments:NeedsSize",
            {},
            r"env: expected a gymnasium.Env class whose constructor needs no arguments, got NeedsSize \(missing .* 'size'\)",
        ),
        ("own_environments:WithoutSpace", {}, "env: expected WithoutSpace.observation_space to be a gymnasium space, got None"),
        ("own_environments:WithoutSeed", {}, "env: expected WithoutSeed.reset to take seed and options, got WithoutSeed.reset"),
        (
            "no_such_module:X",
            {},
            r"env: expected a module that can be imported, got 'no_such_module:X' \(No module named 'no_such_module'\); run the command in"
            r" the folder of no_such_module\.py, or set PYTHONPATH$",
        ),
        (3, {}, "env_id: expected a name, a class or a function, got 3"),
        ("own_environments:one_more", {}, "env: expected 2 environments from the function, got 3"),
        (
            "own_environments:nothing",
            {},
            "env: expected a function that returns a gymnasium VectorEnv or Environments, got None",
        ),
        ("os:getcwd", {}, r"env: expected a function of num_envs and seed, got getcwd \(too many positional arguments\)"),
        ("own_environments:without_reset", {}, "envs: expected autoreset mode SAME_STEP or NEXT_STEP"),
        (
            "own_environments:Walk",
            {"vectorization": "sync"},
            "vectorization: expected 'auto' or 'torch' with environments written in torch",
        ),
        ("own_environments:Walk", {"frame_stack": 2}, "frame_stack: expected 1 with environments written in torch, got 2"),
        (
            "own_environments:simulator",
            {"frame_stack": 2},
            "frame_stack: expected 1 with environments that a function makes, got 2",
        ),
        (
            "own_environments:simulator",
            {"vectorization": "sync"},
            "vectorization: expected 'auto' with environments that a function",
        ),
        ("own_environments:simulator", {"device": "meta"}, "env: expected environments on meta, .* got environments on cpu"),
        (
            "own_environments:Corridor",
            {"vectorization": "gymnasium"},
            "vectorization: expected 'auto' or 'sync' or 'async' with a class",
        ),
        ("own_environments:Corridor", {"vectorization": "torch"}, "vectorization: expected env to be one of CartPole-v1"),
        (
            "envpool:CartPole-v1",
            {"vectorization": "sync"},
            "vectorization: expected 'auto' with envpool's environments, got 'sync'",
        ),
        ("envpool:CartPole-v1", {"frame_stack": 2}, "frame_stack: expected 1 with envpool's environments"),
        pytest.param("envpool:Nowhere-v5", {}, "env: expected an environment that envpool can make here", marks=needs_envpool),
        pytest.param(
            "own_environments:small_batches", {}, "batch_size: expected num_envs, so 2, .* got 1", marks=needs_envpool
        ),
    ],
)
def test_environments_that_are_not_served_are_named(source, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_environments(source, 2, **options)


@pytest.mark.parametrize("frame_stack", [1, 2])
@loop_over(
    ["source", "message"],
    [
        (own_environments.FirstAlone, r"FirstAlone.reset\(\) to return observation and info, got numpy.ndarray"),
        (own_environments.FourResults, r"FourResults.step\(\) to return observation, reward, .* and info, got a tuple of 4"),
        (own_environments.Wide, r"Wide.reset\(\) to return observation of shape \[3\], got shape \[4\]"),
        (
            own_environments.WideInTheThirdStep,
            r"WideInTheThirdStep.step\(\) to return observation of shape \[3\], got shape \[4\]",
        ),
        (own_environments.WithoutLast, r"WithoutLast.step\(\) to return observation of shape \[3\], got shape \[\]"),
        (own_environments.WithoutPart, r"observation as a mapping with the keys \['place', 'room'\], got \['place'\]"),
        (own_environments.NoMapping, r"observation as a mapping with the keys \['place', 'room'\], got numpy.ndarray"),
        (own_environments.WideRoom, r"observation\['room'\]\[1\] of shape \[1\], got shape \[2\]"),
        (own_environments.ShortRoom, r"observation\['room'\] as a tuple of 2, got a tuple of 1"),
    ],
)
def test_what_an_environment_must_not_return_is_named_with_its_class(source, message, frame_stack):
    envs = make_environments(source, 2, frame_stack=frame_stack)

    def play():
        envs.reset(seed=0)
        for _ in range(LENGTH):
            envs.step(torch.ones(2, dtype=torch.int64))

    with pytest.raises(ValueError, match=rf"env: expected .*{message}"):
        play()
    envs.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Worker|.*Traceback|.*Raising the last")
def test_a_mistake_in_another_process_is_named_too():
    envs = make_environments(own_environments.FourResults, 2, vectorization="async")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"env: expected FourResults.step\(\) to return .*, got a tuple of 4"):
        envs.step(torch.ones(2, dtype=torch.int64))
    envs.close()


def test_right_observations_of_several_parts_pass():
    envs = make_vector(own_environments.Parts, 2)
    envs.reset(seed=0)
    observation, *_ = envs.step(np.ones(2, np.int64))
    assert observation["place"].shape == (2, 2)
    envs.close()


def test_an_absent_envpool_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(
        ValueError, match=r"env: expected envpool to be installed for 'envpool:Pong-v5' .*a2c-compiled\[envpool\]"
    ):
        make_vector("envpool:Pong-v5", 2)


WRONG_IN_TORCH = [
    ({"time_limit": None}, TypeError, "Wrong.time_limit: expected an integer, got None"),
    ({"noise_size": None}, TypeError, "Wrong.noise_size: expected an integer, got None"),
    (
        {"start": lambda self, noise: noise[:, 0]},
        ValueError,
        "start() to return floating-point physics of shape [2, S], got torch.float32 of shape [2]",
    ),
    (
        {"start": lambda self, noise: noise.long()},
        ValueError,
        "start() to return floating-point physics of shape [2, S], got torch.int64",
    ),
    (
        {"observe": lambda self, physics: physics[:, :2]},
        ValueError,
        "observe() to return observations of shape [2, 3], got torch.float32 of shape [2, 2]",
    ),
    ({"observe": lambda self, physics: None}, ValueError, "observe() to return observations of shape [2, 3], got None"),
    (
        {"advance": lambda self, x, a: (x, x[:, 0])},
        ValueError,
        "advance() to return physics, reward and terminated, got 2 results",
    ),
    (
        {"advance": lambda self, x, a: (x[:, :1], x[:, 0], x[:, 0] > 9)},
        ValueError,
        "advance() to return physics of shape [2, 3], got torch.float32 of shape [2, 1]",
    ),
    (
        {"advance": lambda self, x, a: (x, x[:, :1], x[:, 0] > 9)},
        ValueError,
        "advance() to return reward of shape [2], got torch.float32 of shape [2, 1]",
    ),
    (
        {"advance": lambda self, x, a: (x, x[:, 0], x[:, :1] > 9)},
        ValueError,
        "advance() to return terminated of shape [2], got torch.bool of shape [2, 1]",
    ),
    (
        {"advance": lambda self, x, a: (x, x[:, 0], x[:, 0])},
        ValueError,
        "advance() to return terminated of dtype torch.bool, got torch.float32",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG_IN_TORCH, ids=[message for _, _, message in WRONG_IN_TORCH])
def test_a_mistake_in_environments_in_torch_is_named_at_the_first_reset_or_step(change, error, message):
    envs = type("Wrong", (Walk,), change)(2)

    def first_step():
        envs.reset(0)
        envs.step(torch.zeros(2, dtype=torch.int64))

    with pytest.raises(error, match=re.escape(message)):
        first_step()


def test_an_evaluation_of_environments_in_torch_is_refused_for_training():
    envs = make_vector(Walk, 2)
    assert isinstance(Walk(2), TensorEnvironments)
    with pytest.raises(ValueError, match="envs: expected autoreset mode SAME_STEP or NEXT_STEP, got None"):
        GymnasiumEnvironments(envs)
    with pytest.raises(ValueError, match="options: expected none for environments of a function or in torch, got render_mode"):
        make_vector(Walk, 2, render_mode="rgb_array")


@pytest.mark.parametrize(
    ("vectorization", "kind"),
    [
        ("auto", gymnasium.vector.SyncVectorEnv),
        pytest.param("async", gymnasium.vector.AsyncVectorEnv, marks=pytest.mark.slow),
    ],
)
def test_a_class_is_made_into_a_vector_as_vectorization_says(vectorization, kind):
    envs = make_environments(Corridor, 2, vectorization=vectorization, frame_stack=3)
    assert isinstance(envs.envs, kind)
    assert envs.reset(seed=0).shape == (2, 3, 3)
    envs.close()


@needs_envpool
@pytest.mark.parametrize("source", ["envpool:CartPole-v1", own_environments.pool])
def test_a_seed_makes_the_episodes_of_envpool_reproducible(source):
    envs = make_environments(source, 3, seed=5)

    def observations(seed):
        return torch.stack([envs.reset(seed), *(envs.step(torch.ones(3, dtype=torch.int64)).observation for _ in range(9))])

    first = observations(5)
    assert torch.equal(first, observations(5))
    assert not torch.equal(first, observations(6))
    envs.close()


@needs_envpool
def test_the_step_after_an_episode_of_envpool_is_masked():
    trainer = Trainer(
        TrainConfig(num_envs=2, num_steps=2 * LENGTH + 1, hidden=(4,), compile=False), environments=own_environments.pool
    )
    rollout, _ = trainer.update()
    for n in range(2):
        ends = rollout.done[:, n].nonzero().flatten().tolist()
        assert ends
        assert [t for t in range(2 * LENGTH + 1) if not rollout.mask[t, n]] == [t + 1 for t in ends if t < 2 * LENGTH]
    assert isinstance(trainer.collector, RolloutCollector)


def test_play_policy_refuses_what_needs_torch():
    with pytest.raises(
        ValueError,
        match=r"env: expected a gymnasium\.Env class or a function that returns a VectorEnv, got own_environments:Walk",
    ):
        play_policy.make_environments("own_environments:Walk", 2)


def test_the_examples_of_the_page_run():
    page = HERE.parents[1] / "docs" / "environments.md"
    session = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), session)
    assert session["result"].steps == 64
