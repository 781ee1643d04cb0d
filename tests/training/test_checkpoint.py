"""Checkpoints and resumption: a run that was stopped or killed, resumed, ends with the tensors and log of an uninterrupted run."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_and_resume import kill_and_resume, tensors, updates
from safetensors.torch import load_file, save_file
from torch import nn

from a2c_compiled import A2CLoss, distributions
from a2c_compiled.cli import main
from a2c_compiled.environments import CartPole, make
from a2c_compiled.recurrent import Recurrent
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training import TrainConfig, train
from a2c_compiled.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from a2c_compiled.training.diagnosis import TrainingDivergedError, diagnose
from a2c_compiled.training.distributed.processes import Processes
from a2c_compiled.training.evaluation import NetworkPolicy
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.run_folder import load_run, load_step
from a2c_compiled.training.trainer import PATIENCE, Trainer

pytestmark = pytest.mark.usefixtures("terminal_signals")

UPDATES, STOP = 24, 13
"""Number of updates of a run, and the update after which it is stopped: between two lines of the log."""


TRAINING = f"checkpoints/{UPDATES}/training.safetensors"
OWN = f"checkpoints/{UPDATES}/rank_0.safetensors"


class Killed(BaseException):
    """Stands for SIGKILL: it is not an Exception, so no handler for errors runs."""


def config(**changes):
    """A configuration in which episodes last a few updates."""
    tiny = {"num_envs": 4, "num_steps": 5, "total_steps": 20 * UPDATES, "hidden": (8,), "compile": False, "device": "cpu"}
    return TrainConfig(**{**tiny, "solved_return": math.inf, "log_interval": 3, **changes})


OPTIONS = ["--no-compile", "--num-envs", "4", "--num-steps", "5", "--hidden", "8", "--device", "cpu"]
OPTIONS += ["--solved-return", "inf", "--log-interval", "3"]
"""Options of the command that equal :func:`config`."""


def command(folder, *arguments):
    return main(["train", "--out", str(folder), *OPTIONS, "--total-steps", str(20 * UPDATES), *arguments])


def resumed(folder, **changes):
    return train(config(**changes), progress=False, folder=folder, resume=True)


@pytest.fixture
def signalled(monkeypatch):
    """Sends signals to this process after an update."""

    def at(update, *numbers):
        original = Trainer.update

        def interrupted(self):
            result = original(self)
            if self.updates == update:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return result

        monkeypatch.setattr(Trainer, "update", interrupted)

    return at


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config(), progress=False, folder=folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the uninterrupted run, for tests that change it."""
    return shutil.copytree(whole, tmp_path / "run")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_end(folder, other):
    """All tensors and all logged numbers are equal, except times."""
    first, second = tensors(folder), tensors(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    one, two = load_progress(folder), load_progress(other)
    assert list(one) == list(two)
    for name in one.keys() - {"seconds", "steps_per_second"}:
        assert two[name] == pytest.approx(one[name], nan_ok=True, rel=0, abs=0), name


# Stopped and resumed


def remembering_loss(config, across_processes, envs):
    trunk = Recurrent(nn.GRUCell(4, 8))
    return A2CLoss(nn.Sequential(trunk, nn.Linear(8, 2)), nn.Sequential(trunk, nn.Linear(8, 1)), distributions.Categorical(2))


KINDS = {
    "torch": {},
    "gymnasium": {"vectorization": "gymnasium"},
    "sync": {"env": "Acrobot-v1", "vectorization": "sync", "optimizer": "adam"},
    "sampled_vectors": {"env": "Pendulum-v1", "average_gae": True},
    "normalized": {"vectorization": "gymnasium", "normalize_observations": True, "normalize_rewards": True},
    "stacked_frames": {"vectorization": "sync", "frame_stack": 2},
    "choices": {"env": "FrozenLake-v1"},
    "recurrent": {},
}


@pytest.fixture
def without_evaluation(monkeypatch):
    """Skips the 100 episodes of the greedy policy at the end of a run, which take seconds in Acrobot."""
    monkeypatch.setattr(Trainer, "greedy_return", lambda self, seed=0, episodes=100: 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_and_resumed_run_ends_with_the_tensors_and_log_of_an_uninterrupted_run(
    kind, tmp_path, monkeypatch, signalled, without_evaluation
):
    if kind == "recurrent":
        monkeypatch.setattr("a2c_compiled.training.trainer.make_loss", remembering_loss)
    expected = config(**KINDS[kind])
    train(expected, progress=False, folder=tmp_path / "whole")
    signalled(STOP, signal.SIGTERM)
    stopped = train(expected, progress=False, folder=tmp_path / "stopped")
    assert (stopped.interrupted, stopped.steps) == ("SIGTERM", 20 * STOP)
    torch.manual_seed(1)
    result = train(expected, progress=False, folder=tmp_path / "stopped", resume=True)
    assert (result.interrupted, result.steps) == (None, 20 * UPDATES)
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_may_be_stopped_and_resumed_several_times(whole, tmp_path, signalled):
    for update in (1, 2, 10, 23):
        signalled(update, signal.SIGTERM)
        assert resumed(tmp_path).steps == 20 * update
        assert updates(tmp_path) == update
    assert resumed(tmp_path).interrupted is None
    assert_same_end(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_a_run_that_is_killed_twice_ends_with_the_tensors_of_an_uninterrupted_run(tmp_path):
    moments, different = kill_and_resume(tmp_path, 2, 0, ["--no-compile", "--hidden", "8", "--total-steps", "12800"])
    assert len(moments) == 2
    assert 0 < moments[0] <= moments[1] < 200, "both kills came before the end of the run"
    assert different == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_a_checkpoint_and_prints_the_command_that_resumes(number, status, tmp_path, signalled, capsys):
    before = signal.getsignal(number)
    signalled(STOP, number)
    assert command(tmp_path) == status
    assert updates(tmp_path) == STOP
    last = capsys.readouterr().err.strip().splitlines()[-1]
    name = signal.Signals(number).name
    assert last == (
        f"a2c-compiled: stopped by {name} after 260 environment steps; to continue: a2c-compiled train --resume --out {tmp_path}"
    )
    assert signal.getsignal(number) is before


def test_the_command_that_resumes_names_an_environment_that_must_be_imported(tmp_path, signalled, capsys):
    signalled(STOP, signal.SIGTERM)
    assert command(tmp_path, "--env", "own_environments:Corridor") == 143
    resumes = capsys.readouterr().err.strip().partition("to continue: a2c-compiled ")[2]
    assert resumes == f"train --resume --out {tmp_path} --env own_environments:Corridor"
    assert main(resumes.split()) == 0
    assert updates(tmp_path) == UPDATES


def test_training_that_cannot_start_leaves_no_folder(tmp_path):
    assert command(tmp_path / "run", "--env", "Nothing-v0") == 2
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    assert command(tmp_path / "run", "--env", "Nothing-v0") == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "run"], "a folder of the user stays"


def test_an_ignored_signal_stays_ignored(tmp_path, signalled, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signalled(STOP, signal.SIGHUP)
        assert command(tmp_path) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert updates(tmp_path) == UPDATES


def test_a_signal_during_an_evaluation_ends_it_at_the_next_step(whole, tmp_path, near, monkeypatch):
    observations, act = [], NetworkPolicy.__call__

    def signalled(self, observation):
        observations.append(observation)
        if len(observations) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return act(self, observation)

    with monkeypatch.context() as patched:
        patched.setattr(NetworkPolicy, "__call__", signalled)
        stopped = train(config(solved_return=90.0), progress=False, folder=tmp_path)
    assert (stopped.interrupted, stopped.steps, len(observations)) == ("SIGTERM", 0, 3)
    assert resumed(tmp_path).steps == 20 * UPDATES
    expected, actual = tensors(whole), tensors(tmp_path)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


def test_two_trainings_do_not_write_to_one_folder(tmp_path, monkeypatch):
    original, refused = Trainer.update, []

    def update(self):
        if self.updates == STOP:
            with pytest.raises(
                ValueError, match=rf"out: expected a folder to which no other .*, held by process {os.getpid()} on "
            ) as raised:
                resumed(tmp_path)
            refused.append(raised.value)
        return original(self)

    monkeypatch.setattr(Trainer, "update", update)
    train(config(), progress=False, folder=tmp_path)
    assert len(refused) == 1
    assert updates(tmp_path) == UPDATES
    assert resumed(tmp_path).steps == 20 * UPDATES, "the end of a training releases its lock"


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_released(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from a2c_compiled.training.run_folder import folder_lock;"
        "from a2c_compiled.training.distributed.processes import Processes\n"
        "with folder_lock(Path(sys.argv[1]), Processes()): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"out: expected .*, held by process {process.pid} on "):
            train(config(), progress=False, folder=tmp_path)
        process.kill()
        process.wait()
    assert train(config(), progress=False, folder=tmp_path).steps == 20 * UPDATES


@pytest.mark.slow
def test_a_run_goes_on_when_nothing_reads_its_output_any_more(tmp_path):
    read, write = os.pipe()
    os.close(read)
    arguments = [sys.executable, "-m", "a2c_compiled.cli", "train", "--out", tmp_path / "run", *OPTIONS, "--total-steps", "200"]
    assert subprocess.run(list(map(str, arguments)), stdout=write, stderr=write, check=False).returncode == 141
    os.close(write)
    assert updates(tmp_path / "run") == 10
    closed = " ".join(map(str, [*arguments, "--resume", "--total-steps", "400"])) + " 2>&- >&-"
    assert subprocess.run(["bash", "-c", closed], check=False).returncode == 0
    assert updates(tmp_path / "run") == 20


def test_a_second_interrupt_ends_the_run_without_a_checkpoint(tmp_path, signalled, capsys):
    signalled(STOP, signal.SIGINT, signal.SIGINT)
    assert command(tmp_path, "--checkpoint-seconds", "0") == 130
    assert capsys.readouterr().err.strip().endswith("a2c-compiled: interrupted")
    assert updates(tmp_path) == STOP - 1, "the checkpoint before the interrupts is kept"


def test_the_command_resumes_with_the_options_of_the_run(whole, tmp_path, signalled):
    signalled(STOP, signal.SIGTERM)
    assert command(tmp_path) == 143
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    assert updates(tmp_path) == UPDATES
    assert_same_end(whole, tmp_path)


# Runs that end when the environment is solved

SOLVED = 8


@pytest.fixture
def solvable(monkeypatch):
    """Options of a run that is solved after SOLVED updates: from then on the greedy policy reaches the goal."""
    monkeypatch.setattr(Trainer, "greedy_return", lambda self, seed=0, episodes=100: 100.0 * (self.updates >= SOLVED))
    return {"solved_return": 90.0, "log_interval": 2, "checkpoint_seconds": 0.0}


@pytest.fixture
def near(monkeypatch):
    """Training returns are always good enough for an evaluation of the greedy policy."""
    monkeypatch.setattr("a2c_compiled.training.trainer._mean", lambda returns: 90.0)


def test_a_run_that_is_killed_during_an_evaluation_repeats_the_evaluation(tmp_path, solvable, near, monkeypatch):
    assert train(config(**solvable), progress=False).steps == 20 * SOLVED
    look = Trainer.greedy_return

    def killed(self, seed=0, episodes=100):
        if self.updates == SOLVED and episodes == 100:
            raise Killed
        return look(self, seed, episodes)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "greedy_return", killed)
        with pytest.raises(Killed):
            train(config(**solvable), progress=False, folder=tmp_path)
    assert updates(tmp_path) == SOLVED
    assert resumed(tmp_path, **solvable).steps == 20 * SOLVED
    assert resumed(tmp_path, **solvable).steps == 20 * SOLVED, "a finished run does not continue"


def test_a_run_that_is_stopped_when_it_is_solved_ends_at_once_when_resumed(tmp_path, solvable, near, signalled):
    signalled(SOLVED, signal.SIGTERM)
    stopped = train(config(**solvable), progress=False, folder=tmp_path)
    assert (stopped.interrupted, stopped.steps) == ("SIGTERM", 20 * SOLVED)
    result = resumed(tmp_path, **solvable)
    assert (result.interrupted, result.steps, result.greedy_return) == (None, 20 * SOLVED, 100.0)


# Options that may change on resumption


def test_a_resumed_run_may_have_more_total_steps(run):
    assert main(["train", "--resume", "--out", str(run), "--total-steps", "600"]) == 0
    assert updates(run) == 30
    assert load_progress(run)["updates"][-2:] == [27, 30]
    assert load_run(run)[0].total_steps == 600, "the new number is saved"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gamma", "0.9"), "gamma: expected 0.99 as in the run that is resumed, got 0.9"),
        (("--hidden", "16"), r"hidden: expected (8,) as in the run that is resumed, got (16,)"),
        (("--env", "Acrobot-v1"), "env: expected 'CartPole-v1' as in the run that is resumed, got 'Acrobot-v1'"),
        (("--preset", "pendulum"), "env: expected 'CartPole-v1' as in the run that is resumed, got 'Pendulum-v1'"),
    ],
    ids=["gamma", "hidden", "env", "preset"],
)
def test_a_different_option_is_refused_by_name(run, options, message, capsys):
    before = contents(run)
    assert main(["train", "--resume", "--out", str(run), *options]) == 2
    assert message in capsys.readouterr().err
    assert contents(run) == before


def test_a_different_configuration_is_refused_by_name(run):
    with pytest.raises(ValueError, match=r"num_steps: expected 5 as in the run that is resumed, got 6"):
        resumed(run, num_steps=6)


def test_a_folder_may_be_named_by_a_string_and_what_is_no_path_is_named(run):
    folder = str(run)
    before, loss = load_run(folder)
    trainer = Trainer(before, folder)
    trainer.load(folder)
    assert torch.equal(trainer.loss.actor_network[0].weight, loss.actor_network[0].weight)
    assert train(before, progress=False, folder=folder, resume=True).steps >= trainer.updates * trainer.steps_per_update > 0
    for call in (train, Trainer):
        with pytest.raises(TypeError, match=r"folder: expected a path, got 3\.0"):
            call(before, folder=3.0)
    for call in (load_run, load_step, load_checkpoint, trainer.load):
        with pytest.raises(TypeError, match=r"folder: expected a path, got list"):
            call([folder])


def test_fewer_total_steps_than_already_taken_are_refused(run):
    with pytest.raises(ValueError, match="total_steps: expected at least the 480 steps already taken, got 400"):
        resumed(run, total_steps=400)


def test_resume_without_a_run_starts_one_and_says_so(tmp_path, capsys):
    assert command(tmp_path, "--resume") == 0
    assert capsys.readouterr().out.startswith(f"starts a new run, because {tmp_path} contains none\n")
    assert command(tmp_path, "--resume") == 0
    assert "starts a new run" not in capsys.readouterr().out
    assert updates(tmp_path) == UPDATES


def test_a_run_that_was_killed_before_its_first_checkpoint_restarts_with_its_own_options(
    tmp_path, monkeypatch, without_evaluation
):
    def killed(self):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", killed)
        with pytest.raises(Killed):
            command(tmp_path, "--env", "Acrobot-v1", "--gamma", "0.9")
    assert main(["train", "--resume", "--out", str(tmp_path), "--total-steps", "40"]) == 0
    expected = config(env="Acrobot-v1", gamma=0.9, total_steps=40)
    assert load_run(tmp_path)[0] == expected


def test_resume_and_overwrite_exclude_each_other(run, capsys):
    with pytest.raises(SystemExit):
        command(run, "--resume", "--overwrite")
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command(tmp_path / "file") == 2
    assert f"out: expected a folder, got the file {tmp_path / 'file'}" in capsys.readouterr().err


def test_a_run_is_overwritten_only_with_the_option(run, capsys):
    before = contents(run)
    assert command(run) == 2
    assert f"out: expected a folder without a run, got {run}, which contains one" in capsys.readouterr().err
    assert contents(run) == before
    assert command(run, "--overwrite", "--seed", "1") == 0
    assert load_run(run)[0].seed == 1


def test_a_run_that_overwrites_another_and_is_killed_before_its_first_checkpoint_does_not_resume_the_other(run, monkeypatch):

    def killed(self):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", killed)
        with pytest.raises(Killed):
            train(config(seed=1), progress=False, folder=run)
    assert not (run / "checkpoint.json").exists()
    assert load_progress(run) == {}
    assert resumed(run, seed=1).history[0]["updates"] == 3


def test_environments_that_cannot_be_resumed_start_new_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(RolloutCollector, "state_dict", lambda self: None)
    train(config(normalize_rewards=True), progress=False, folder=tmp_path)
    with pytest.warns(RuntimeWarning, match="the run goes on with new episodes .env: its state was not saved"):
        result = resumed(tmp_path, normalize_rewards=True, total_steps=600)
    assert result.steps == 600
    assert result.step.step_count == 30, "the training step is resumed"


def test_a_generator_state_of_another_device_starts_new_episodes(run):
    path = run / OWN
    saved = load_file(path)
    saved["collector.envs.generator"] = torch.zeros(16, dtype=torch.uint8)  # as long as a GPU's
    save_file(saved, path)
    with pytest.warns(RuntimeWarning, match="the run goes on with new episodes"):
        assert resumed(run, total_steps=600).steps == 600


# Checkpoints that are incomplete or unreadable


def numbers(update):
    own = {"collector.x": torch.full((3,), float(update))}
    return Checkpoint({"step.w": torch.full((4,), float(update))}, own, {"updates": update, "returns": [1.0]})


def die(monkeypatch, target, name, at, half=False):
    """Raises Killed at the ``at``-th call of ``target.name``, with ``half`` after half of the data was written."""
    original, calls = getattr(target, name), []

    def deadly(*arguments, **options):
        calls.append(None)
        if len(calls) < at:
            return original(*arguments, **options)
        if half:
            original(arguments[0], arguments[1][: len(arguments[1]) // 2])
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
        raise Killed

    monkeypatch.setattr(target, name, deadly)


@pytest.mark.parametrize(
    ("target", "name", "at", "half"),
    [
        (Path, "write_bytes", 1, True),
        (os, "replace", 1, False),
        (Path, "write_bytes", 2, True),
        (os, "replace", 2, False),
        (Path, "write_text", 1, True),
        (os, "replace", 3, False),
        (shutil, "rmtree", 1, False),
    ],
    ids=["own_half", "own_unnamed", "shared_half", "shared_unnamed", "facts_half", "facts_unnamed", "before_removing"],
)
def test_a_kill_while_a_checkpoint_is_written_keeps_the_checkpoint_before(target, name, at, half, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, numbers(1), Processes())
    with monkeypatch.context() as patched:
        die(patched, target, name, at, half)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, numbers(2), Processes())
    expected = numbers(2 if target is shutil else 1)
    loaded = load_checkpoint(tmp_path)
    assert loaded.facts == {**expected.facts, "version": 1, "world_size": 1}
    assert torch.equal(loaded.training["step.w"], expected.training["step.w"])
    assert torch.equal(loaded.own["collector.x"], expected.own["collector.x"])
    save_checkpoint(tmp_path, numbers(3), Processes())
    assert load_checkpoint(tmp_path).facts["updates"] == 3
    names = sorted(str(path) for path in contents(tmp_path))
    assert names == ["checkpoint.json", "checkpoints/3/rank_0.safetensors", "checkpoints/3/training.safetensors"]


@pytest.fixture
def full_disk(monkeypatch):
    """The disk is full after ``count`` files with tensors, and has space again after ``until`` attempts."""

    def after(count, until=None):
        original, calls = Path.write_bytes, []

        def write(self, data):
            if self.suffix == ".safetensors":
                calls.append(None)
                if count < len(calls) and (until is None or len(calls) <= until):
                    original(self, data[:10])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return original(self, data)

        monkeypatch.setattr(Path, "write_bytes", write)

    return after


def test_training_continues_while_the_disk_is_full(whole, tmp_path, full_disk):
    full_disk(3, 6)
    with pytest.warns(RuntimeWarning, match=r"training goes on, but its checkpoint could not be written: .*No space left"):
        result = train(config(checkpoint_seconds=0.0), progress=False, folder=tmp_path)
    assert result.steps == 20 * UPDATES
    assert_same_end(whole, tmp_path)


@pytest.mark.filterwarnings("ignore:training goes on:RuntimeWarning")
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, full_disk, capsys):
    full_disk(6)
    assert command(tmp_path, "--checkpoint-seconds", "0") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("a2c-compiled: the run could not be saved ([Errno 28] No space left on device")
    assert last.endswith(f"its last checkpoint is in {tmp_path}")
    assert load_checkpoint(tmp_path).facts["updates"] == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"], "no incomplete checkpoint is left"


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        (file, spoil)
        for file in ("checkpoint.json", TRAINING, OWN)
        for spoil in ("half", "empty", "text", "missing")
        if (file, spoil) != ("checkpoint.json", "missing")
    ],
)
def test_an_unreadable_checkpoint_is_an_error_and_stays_unchanged(run, file, spoil):
    path = run / file
    data = path.read_bytes()
    path.write_bytes({"half": data[: len(data) // 2], "text": b"no checkpoint"}.get(spoil, b""))
    if spoil == "missing":
        path.unlink()
    before = contents(run)
    with pytest.raises(ValueError, match=rf"run: the checkpoint in {run} is not readable"):
        resumed(run)
    assert contents(run) == before
    if file != OWN:
        with pytest.raises(ValueError, match="is not readable"):
            load_run(run)


def test_a_missing_configuration_is_an_error(run):
    (run / "config.json").unlink()
    before = contents(run)
    with pytest.raises(ValueError, match=r"run: expected a folder that training wrote, found no .*config\.json"):
        resumed(run)
    assert contents(run) == before


def test_a_checkpoint_of_another_version_is_refused(run):
    facts = json.loads((run / "checkpoint.json").read_text())
    (run / "checkpoint.json").write_text(json.dumps({**facts, "version": 2}))
    with pytest.raises(ValueError, match=r"is not readable .version: expected 1, got 2"):
        resumed(run)


# Gradients that are not finite


def broken(monkeypatch, **overridden):
    """Replaces methods of CartPole."""
    monkeypatch.setitem(make.IN_TORCH, "CartPole-v1", type("Broken", (CartPole,), overridden))


def rewarded(amount):
    def advance(self, physics, action):
        physics, reward, terminated = CartPole.advance(self, physics, action)
        return physics, reward * amount, terminated

    return advance


@pytest.fixture
def spoil_rollouts(monkeypatch):
    """Sets the rewards of some rollouts, counted from 1, to NaN, and with ``observations`` the observations too."""

    def spoil(numbers, observations=False):
        original, seen = RolloutCollector.collect, []

        def collect(self):
            rollout = original(self)
            seen.append(None)
            if len(seen) not in numbers:
                return rollout
            observation = rollout.observation * math.nan if observations else rollout.observation
            return rollout._replace(reward=rollout.reward * math.nan, observation=observation)

        monkeypatch.setattr(RolloutCollector, "collect", collect)

    return spoil


def test_an_update_whose_gradient_is_not_finite_is_skipped_and_counted(spoil_rollouts):
    spoil_rollouts((4, 5, 11))
    result = train(config(), progress=False)
    assert [row["skipped"] for row in result.history] == [0, 2, 2, 3, 3, 3, 3, 3]
    assert int(result.step.step_count) == UPDATES - 3
    assert all(parameter.isfinite().all() for parameter in result.loss.parameters())


def test_nan_does_not_reach_the_running_statistics(spoil_rollouts):
    spoil_rollouts((4, 11), observations=True)
    result = train(config(normalize_observations=True, normalize_rewards=True, total_steps=20 * 100), progress=False)
    assert result.history[-1]["skipped"] < 50, "until the episodes have ended whose returns are not finite"
    assert all(buffer.isfinite().all() for buffer in result.loss.buffers())


@pytest.mark.parametrize(
    ("overridden", "cause"),
    [
        ({"advance": rewarded(math.nan)}, "not finite: reward in the rollout$"),
        (
            {"observe": lambda self, physics: physics * math.inf},
            "not finite: observation in the rollout, next_observation in the rollout$",
        ),
        ({"advance": rewarded(1e30)}, r"so the gradient overflows: lower the learning rate.* largest reward: 1e\+30\)$"),
    ],
    ids=["reward", "observation", "overflow"],
)
def test_training_without_finite_gradients_ends_with_an_error_that_names_the_cause(overridden, cause, tmp_path, monkeypatch):
    broken(monkeypatch, **overridden)
    with pytest.raises(TrainingDivergedError, match=rf"not finite in the last {PATIENCE + 1} training steps.*{cause}"):
        train(config(), progress=False, folder=tmp_path)


def test_the_diagnosis_names_a_network_with_nan_outputs():
    trainer = Trainer(config())
    rollout = trainer.collector.collect()
    trainer.loss.actor_network.register_forward_hook(lambda network, observation, answer: answer * math.nan)
    assert diagnose(trainer.loss, rollout) == "not finite: output of the actor network"


def test_a_diverged_run_keeps_its_last_finite_parameters(tmp_path, spoil_rollouts, capsys):
    spoil_rollouts(range(7, 1000))
    assert command(tmp_path, "--checkpoint-seconds", "0", "--total-steps", "2000") == 2
    assert "a2c-compiled: gradients were not finite in the last 21 training steps" in capsys.readouterr().err
    assert load_checkpoint(tmp_path).training["step.step_count"] == 6
    assert all(parameter.isfinite().all() for parameter in load_run(tmp_path)[1].parameters())


def test_the_diagnosis_names_a_parameter_that_is_not_finite(monkeypatch):
    trainer = Trainer(config())
    with torch.no_grad():
        next(trainer.loss.actor_network.parameters())[0, 0] = math.nan
    with pytest.raises(TrainingDivergedError, match=r"not finite: parameter actor_network\.0\.weight$"):
        trainer.run(progress=False)
