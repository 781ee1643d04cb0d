"""Kills a training run at random moments, resumes it each time, and compares its end with that of an uninterrupted run.

As a script it kills ten times: ``python tests/campaigns/kill_and_resume.py [--kills 10] [--seed 0] [-- TRAIN OPTIONS]``.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch
from campaign import PROCESSES, end_with_parent

from a2c_compiled.cli import main as command

# A checkpoint after every update, so that many kills come while a checkpoint is being written.
OPTIONS = ["--num-envs", "8", "--num-steps", "8", "--solved-return", "inf", "--checkpoint-seconds", "0", "--device", "cpu"]


def environment_of_programs():
    """Returns the environment of a process that runs a test file as a program, which imports this module."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}


def call(function, log, *arguments):
    """Ends this process with the status that ``function`` returns; its output goes to the file ``log``."""
    end_with_parent()
    # As in a process of a terminal: a shell's background jobs ignore SIGINT, nohup SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.exit(function(*arguments))


def command_line(arguments):
    """The command ``a2c-compiled``, as the whole process."""
    sys.argv = ["a2c-compiled", *arguments]
    return command()


class Running:
    """A process that calls ``function(*arguments)``; ``log`` is the file for its output."""

    def __init__(self, log, function, *arguments):
        self.log = log
        self.process = PROCESSES.Process(target=call, args=(function, log, *arguments))
        self.process.start()

    def assert_success(self):
        """Waits for the end of the process, which has to be exit status 0."""
        self.process.join(600)
        assert self.process.exitcode == 0, self.log.read_text()


def start(folder, options):
    """Starts a training process in ``folder``, which resumes from the checkpoint if there is one."""
    arguments = ["train", "--resume", "--out", str(folder), *OPTIONS, *options]
    return Running(folder.with_suffix(".log"), command_line, arguments)


def updates(folder):
    """The number of training steps before the valid checkpoint; 0 without a checkpoint."""
    path = folder / "checkpoint.json"
    return json.loads(path.read_text())["updates"] if path.is_file() else 0


def kill(folder, options, seconds):
    """Trains, and kills the process ``seconds`` after its first checkpoint; returns :func:`updates` at that moment."""
    running, before = start(folder, options), updates(folder)
    while updates(folder) == before:
        assert running.process.is_alive(), running.log.read_text()
        time.sleep(0.01)
    time.sleep(seconds)
    running.process.kill()
    running.process.join()
    return updates(folder)


def tensors(folder):
    """All tensors of the last checkpoint by file and name."""
    place = folder / "checkpoints" / str(updates(folder))
    return {
        f"{file.stem}/{name}": x
        for file in sorted(place.glob("*.safetensors"))
        for name, x in safetensors.torch.load_file(file).items()
    }


def kill_and_resume(folder, kills, seed, options, longest=0.3):
    """Trains twice in ``folder``: without interruption, and killed ``kills`` times, each at most ``longest`` seconds after a checkpoint.

    Returns the number of training steps at each kill, and the names of the tensors that differ at the end.
    """
    chance = random.Random(seed)
    uninterrupted = start(folder / "uninterrupted", options)
    moments = [kill(folder / "killed", options, chance.uniform(0.0, longest)) for _ in range(kills)]
    start(folder / "killed", options).assert_success()
    uninterrupted.assert_success()
    expected, actual = tensors(folder / "uninterrupted"), tensors(folder / "killed")
    assert expected.keys() == actual.keys()
    return moments, [name for name in expected if not torch.equal(expected[name], actual[name])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=3.0, help="longest time in seconds from a checkpoint to a kill")
    parser.add_argument("options", nargs="*", default=["--total-steps", "64000"], help="options of a2c-compiled train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        moments, different = kill_and_resume(
            Path(folder), arguments.kills, arguments.seed, arguments.options, arguments.longest
        )
    verdict = f"DIFFERENT: {', '.join(different)}" if different else "the same tensors, bit for bit"
    print(f"killed after updates {', '.join(map(str, moments))}; {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
