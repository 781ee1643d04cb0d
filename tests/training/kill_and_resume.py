"""Train, be killed at random moments, go on each time: does it end where a run ends that is left alone?

As a script it kills ten times: ``python tests/training/kill_and_resume.py [--kills 10] [--seed 0] [-- TRAIN OPTIONS]``.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import safetensors.torch
import torch

# A checkpoint after every update, so that many a kill comes while one is being written.
OPTIONS = ["--num-envs", "8", "--num-steps", "8", "--solved-return", "inf", "--checkpoint-seconds", "0", "--device", "cpu"]


def start(folder, options):
    """A training process in ``folder``; it goes on where there is a checkpoint."""
    command = [sys.executable, "-m", "a2c_compiled.cli", "train", "--resume", "--out", folder, *OPTIONS, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for its end, which is to be a good one."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def updates(folder):
    """How many the checkpoint that counts has seen."""
    path = folder / "checkpoint.json"
    return json.loads(path.read_text())["updates"] if path.is_file() else 0


def killed(folder, options, seconds):
    """Train, and be killed so long after the first new checkpoint; how many updates were saved then."""
    process, before = start(folder, options), updates(folder)
    while updates(folder) == before:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return updates(folder)


def tensors(folder):
    """All of the last checkpoint."""
    place = folder / "checkpoints" / str(updates(folder))
    return {
        f"{file.stem}/{name}": x
        for file in sorted(place.glob("*.safetensors"))
        for name, x in safetensors.torch.load_file(file).items()
    }


def kill_and_resume(folder, kills, seed, options, longest=0.3):
    """Two runs in ``folder``, one left alone and one killed, each time after ``longest`` seconds at most; after how many updates it was
    killed, and what differs between their ends."""
    chance = random.Random(seed)
    finish(start(folder / "alone", options))
    moments = [killed(folder / "killed", options, chance.uniform(0.0, longest)) for _ in range(kills)]
    finish(start(folder / "killed", options))
    alone, other = tensors(folder / "alone"), tensors(folder / "killed")
    assert alone.keys() == other.keys()
    return moments, [name for name in alone if not torch.equal(alone[name], other[name])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds from a checkpoint to a kill")
    parser.add_argument("options", nargs="*", default=["--total-steps", "64000"], help="of a2c-compiled train")
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
