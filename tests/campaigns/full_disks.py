"""Trains and exports on disks that fill up at random moments: errors are one line, and what was whole before stays whole.

As a script: ``python tests/campaigns/full_disks.py [--times 20] [--seed 0]``. Two kinds of disks: a small tmpfs that this script fills and
empties, skipped where it may not be mounted, and a limit on the size of files (RLIMIT_FSIZE). A run that could not be saved is
resumed on a free disk, and must end as an uninterrupted run, bit for bit. An export that failed leaves files that verify accepts.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from campaign import Summary, parser
from kill_and_resume import OPTIONS, Running, command_line, start, tensors

from a2c_compiled import export
from a2c_compiled.export.formats import format_of

TRAINING = ["--no-compile", "--hidden", "8", "--num-envs", "4", "--total-steps", "12800"]
EXPORT = ["--format", "torchscript,onnx", "--graph", "policy"]
TMPFS_BYTES = 4 * 2**20


@contextlib.contextmanager
def small_disk(folder):
    """Mounts a small tmpfs at ``folder``; yields None where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0 if shutil.which("mount") else False
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, chance):
    """Fills the disk but for a random part, which may be nothing."""
    left = chance.choice((0, chance.randrange(1, 20_000)))
    size = shutil.disk_usage(disk).free
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        file.write(bytes(max(size - left, 0)))


def empty(disk):
    (disk / "filler").unlink(missing_ok=True)


def limited(size, arguments):
    """The command, which may write no file beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            status = command_line(arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    print(said.getvalue())
    return status


def fault_of_end(running):
    """What is wrong with the end of a process; None if it succeeded or said in one line why not."""
    running.process.join(300)
    if running.process.is_alive():
        running.process.kill()
        running.process.join()
        return "had not ended after 300 s"
    said = running.log.read_bytes().decode(errors="replace")
    if "Traceback" in said:
        return f"traceback: {said[-1000:]}"
    last = (said.strip().splitlines() or [""])[-1]
    if running.process.exitcode == 0 or (running.process.exitcode == 2 and last.startswith("a2c-compiled: ")):
        return None
    return f"status {running.process.exitcode}: {said[-500:]}"


def disturb(running, disk, chance, longest):
    """Fills and empties the disk until the process ends."""
    while running.process.is_alive():
        time.sleep(chance.uniform(0.0, longest))
        fill(disk, chance)
        time.sleep(chance.uniform(0.0, longest))
        if chance.random() < 0.7:
            empty(disk)


def fault_on_full_disk(arguments, log, chance, disk):
    """Runs a command on a disk that fills up, and frees the disk; returns what is wrong, or None. No disk: limits the size of files."""
    if disk is None:
        running = Running(log, limited, chance.choice((0, chance.randrange(30_000))), arguments)
    else:
        running = Running(log, command_line, arguments)
        disturb(running, disk, chance, 0.3)
    wrong = fault_of_end(running)
    if disk is not None:
        empty(disk)
    return wrong


def training(folder, out, chance, disk):
    """Trains on a disk that fills up, then resumes on a free one; returns what is wrong, or None."""
    arguments = ["train", "--resume", "--out", str(out), *OPTIONS, *TRAINING]
    wrong = fault_on_full_disk(arguments, folder / "train.log", chance, disk)
    if wrong is None:
        resumed = start(out, TRAINING)
        resumed.process.join(300)
        if resumed.process.exitcode != 0:
            wrong = f"does not resume: {resumed.log.read_text()[-500:]}"
    return wrong


def fault_of_files(folder):
    """What is wrong with exported files; None if verify accepts each."""
    for path in filter(format_of, sorted(folder.rglob("*"))):
        if path.name.startswith("."):
            return f"{path.name} was left"
        try:
            if not export.verify(path).passed:
                return f"{path.name} differs from eager mode"
        except Exception as error:
            return f"{path.name}: {type(error).__name__}: {error}"
    return None


def exporting(folder, run, out, chance, disk):
    """Exports over an earlier export on a disk that fills up; returns what is wrong, or None."""
    arguments = ["export", str(run), "--out", str(out), *EXPORT]
    return fault_on_full_disk(arguments, folder / "export.log", chance, disk) or fault_of_files(out)


def campaign(times, seed, summary, exports=True, end=float("inf")):
    """Runs ``times`` trainings and exports on each kind of disk."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as disk:
        folder = Path(name)
        start(folder / "whole", TRAINING).assert_success()
        expected = tensors(folder / "whole")
        exported = folder / "exported"
        if exports:
            Running(
                folder / "export.log", command_line, ["export", str(folder / "whole"), "--out", str(exported), *EXPORT]
            ).assert_success()
        for i in range(times):
            for kind, place in (("tmpfs", disk), ("RLIMIT_FSIZE", None)):
                if kind == "tmpfs" and disk is None:
                    if i == 0:
                        print("no right to mount a tmpfs: skipped")
                    continue
                for what in ("train", *(("export",) if exports else ())):
                    if time.monotonic() > end:
                        return
                    own, started = folder / f"{kind}{i}{what}", time.monotonic()
                    own.mkdir()
                    out = (place or own) / "out"
                    if what == "train":
                        wrong = training(own, out, chance, place)
                        if wrong is None:
                            actual = tensors(out)
                            names = [key for key in expected if not torch.equal(expected[key], actual[key])]
                            wrong = f"different tensors: {names}" if names else None
                    else:
                        shutil.copytree(exported, out)
                        wrong = exporting(own, folder / "whole", out, chance, place)
                    summary.add(
                        f"{what}, {kind}", "whole", None if wrong is None else f"try {i}: {wrong}", time.monotonic() - started
                    )
                    shutil.rmtree(out, ignore_errors=True)
                    out.with_suffix(".log").unlink(missing_ok=True)
                    shutil.rmtree(own)


def main():
    arguments = parser(__doc__, times=(20, "trainings and exports on each kind of disk")).parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    summary = Summary()
    campaign(arguments.times, arguments.seed, summary, end=time.monotonic() + arguments.seconds)
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
