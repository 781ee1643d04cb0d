"""Changes exported files and those of a run at random, and reads them. Only ValueError, TypeError and OSError may come out, soon.

As a script: ``python tests/campaigns/fuzz_files.py [--times 100] [--seed 0] [--files policy.onnx,policy.pt]``. It makes
``--times`` changes of each kind in each file, and prints a summary, and what ended otherwise. The files are read in processes of their own.
A crash of such a process is counted apart: the C++ libraries that read a format (onnx, onnxruntime, torch) crash on some files.
"""

import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from campaign import Summary, in_processes, is_crash, parser

SECONDS, BYTES = 60, 12 * 2**30
"""Limits for the reading of one file."""


def make_files(folder):
    """Exports a policy in three formats, and a training step with its state, to ``folder``, and trains a tiny run in ``run``."""
    import torch
    from damaged_folders import make_run
    from torch import nn

    from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, export
    from a2c_compiled.export.on_device.runtime import Learner

    torch.manual_seed(0)
    loss = A2CLoss(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), nn.Linear(3, 1), distributions.Categorical(2))
    policy, observation = export.SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution), torch.randn(5, 3)
    noise = torch.zeros(5, 2)
    export.export_onnx(policy, (observation, noise), folder / "policy.onnx", ("N",))
    export.export_torchscript(policy, (observation, noise), folder / "policy.pt", ("N",))
    export.export_pt2(policy, (observation, noise), folder / "policy.pt2", ("N",))
    flags = torch.zeros(4, 5, dtype=torch.bool)
    steps = torch.randn(4, 5, 3)
    rollout = Rollout(steps, torch.zeros(4, 5, dtype=torch.int64), torch.randn(4, 5), steps, flags, flags)
    export.export_train_step(TrainStep(loss, compile=False), rollout, folder / "train_step.onnx")
    Learner.load(folder / "train_step.onnx").save_state(folder / "saved.npz")
    make_run(folder / "run")


def read_policy(folder, check):
    from a2c_compiled.export.on_device.runtime import Policy

    Policy.load(folder / "policy.onnx", provider="cpu", check=check)


def read_learner(folder, check):
    from a2c_compiled.export.on_device.runtime import Learner

    Learner.load(folder / "train_step.onnx", provider="cpu", check=check)


def read_state(folder, check):
    from a2c_compiled.export.on_device.runtime import Learner

    Learner.load(folder / "train_step.onnx", provider="cpu").load_state(folder / "saved.npz")


def read_run(folder, check):
    from a2c_compiled.training.run_folder import load_step

    load_step(folder / "run")


def read_own_tensors(folder, check):
    from a2c_compiled.training.checkpoint import load_checkpoint

    load_checkpoint(folder / "run", rank=0)


def verifying(name):
    def verify_file(folder, check):
        from a2c_compiled import export

        export.verify(folder / name, check=check)

    return verify_file


READERS = {
    "policy.onnx": (read_policy, verifying("policy.onnx")),
    "policy.onnx.cases.npz": (verifying("policy.onnx"),),
    "policy.onnx.sha256": (read_policy, verifying("policy.onnx")),
    "policy.pt": (verifying("policy.pt"),),
    "policy.pt2": (verifying("policy.pt2"),),
    "train_step.onnx": (read_learner,),
    "train_step.policy.onnx": (read_learner,),
    "train_step.state.npz": (read_learner,),
    "train_step.onnx.sha256": (read_learner,),
    "saved.npz": (read_state,),
    "run/config.json": (read_run,),
    "run/checkpoint.json": (read_run,),
    "run/checkpoints/3/training.safetensors": (read_run,),
    "run/checkpoints/3/rank_0.safetensors": (read_own_tensors,),
}
"""By file, the functions that read it."""


def flipped(data, chance):
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def truncated(data, chance):
    del data[chance.randrange(len(data)) :]


def garbage(data, chance):
    place, size = chance.randrange(len(data)), chance.choice((1, 4, 16, 64))
    data[place : place + size] = chance.choice((chance.randbytes(size), bytes(size), b"\xff" * size))


def inserted(data, chance):
    place = chance.randrange(len(data))
    data[place:place] = chance.randbytes(chance.choice((1, 2, 8)))


CHANGES = {"bits flipped": flipped, "truncated": truncated, "garbage": garbage, "bytes inserted": inserted}


def cases_of(files, times):
    """All cases: file, kind of change, index. A part from the beginning has all files and changes."""
    return [(file, change, i) for i in range(times) for file in files for change in CHANGES]


def outcome(source, folder, case, seed):
    """Reads the changed file with each of its readers; returns ``"read"``, ``"error"``, or what came out."""
    file, change, _ = case
    data = bytearray((source / file).read_bytes())
    CHANGES[change](data, random.Random(f"{seed} {case}"))
    (folder / file).write_bytes(data)
    results = []
    for read in READERS[file]:
        try:
            read(folder, check=file.endswith(".sha256"))
            results.append("read")
        except (ValueError, TypeError, OSError) as error:
            results.append("error" if type(error) is not UnicodeDecodeError and str(error).strip() else f"{error!r}")
        except BaseException as error:
            places = traceback.extract_tb(error.__traceback__)
            own = [place for place in places if "/a2c_compiled/" in place.filename or "/export/" in place.filename][-1:]
            where = ", ".join(f"{Path(place.filename).name}:{place.lineno}" for place in own)
            results.append(f"{type(error).__name__}: {str(error)[:100]} ({where})")
    shutil.copyfile(source / file, folder / file)
    return results[0] if len(set(results)) == 1 else "error" if set(results) == {"read", "error"} else "; ".join(results)


def work(cases, source, folder, seed):
    """Yields the outcome of each case."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    nothing = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):  # also that of C++ libraries
        os.dup2(nothing, output)
    copy = shutil.copytree(source, tempfile.mkdtemp(dir=folder), dirs_exist_ok=True)
    for case in cases:
        yield outcome(source, Path(copy), case, seed)


def campaign(source, files, times, seed=0):
    """Yields every case with its outcome, which may also be ``"crash ..."`` and ``"endless"``, and its seconds.

    Args:
        source: folder with the files of :func:`make_files`.
        files: names of the files to change.
        times: number of changes of each kind in each file.
        seed: seed of the changes.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield from in_processes(work, cases_of(files, times), source, Path(folder), seed, seconds=SECONDS)


def is_wrong(result):
    """Whether a case ended otherwise than read, with an error that is allowed, or in a crash of a library."""
    return result not in ("read", "error") and not is_crash(result)


def main():
    options = parser(__doc__, times=(100, "changes of each kind in each file"))
    options.add_argument("--files", default=",".join(READERS))
    arguments = options.parse_args()
    end, summary = time.monotonic() + arguments.seconds, Summary()
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        for case, result, seconds in campaign(Path(folder), arguments.files.split(","), arguments.times, arguments.seed):
            if time.monotonic() > end:
                break
            summary.add(case[0], result, f"{case}: {result}" if is_wrong(result) else None, seconds)
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
