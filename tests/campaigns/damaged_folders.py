"""Damages each file of a run folder in many ways, and runs the commands that read it: only errors in one line may come out.

As a script: ``python tests/campaigns/damaged_folders.py [--random 20] [--seed 0] [--commands eval,resume,plot,export] [--every 1]``.
It prints a summary, and the cases that ended otherwise.
"""

import contextlib
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import safetensors.torch
import torch
from campaign import ENDLESS, Summary, parser

from a2c_compiled.cli import main as command

OPTIONS = (
    "--env CartPole-v1 --vectorization sync --num-envs 2 --num-steps 5 --hidden 4 --no-compile --device cpu --solved-return inf"
)
OPTIONS += " --normalize-rewards --normalize-observations --log-interval 1"
STEPS = 30

COMMANDS = {
    "eval": lambda folder: ["eval", folder, "--episodes", "1"],
    "resume": lambda folder: ["train", "--resume", "--out", folder, "--total-steps", str(2 * STEPS)],
    "plot": lambda folder: ["plot", folder],
    "export": lambda folder: ["export", folder, "--format", "torchscript", "--graph", "policy"],
}
READERS = {
    "config.json": ("eval", "resume", "plot", "export"),
    "checkpoint.json": ("eval", "resume", "export"),
    "training.safetensors": ("eval", "resume", "export"),
    "rank_0.safetensors": ("resume",),
    "progress.csv": ("resume", "plot"),
    "run.lock": ("resume",),
}
"""By file, the commands that read it."""

VALUES = (None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x", "\0", [], [1], {}, {"a": [1]}, [[]])
SECONDS = 60
"""Time limit of one command."""


class EndlessError(BaseException):
    """A command took longer than SECONDS."""


def make_run(folder):
    """Trains a tiny run in ``folder``."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert command(["train", "--out", str(folder), *OPTIONS.split(), "--total-steps", str(STEPS)]) == 0


def same_kind(file, content):
    """Ways to damage a file of any kind: pairs of a name and a function of the path."""

    def in_its_place(make):
        return lambda path: (path.unlink(), make(path))

    yield "removed", Path.unlink
    yield "a folder", in_its_place(Path.mkdir)
    yield "a link to itself", in_its_place(lambda path: path.symlink_to(path))
    for name, other in {
        "empty": b"",
        "zeros": bytes(len(content)),
        "text": b"\xff\xfe not this",
        "doubled": content * 2,
        "nested": b"[" * 100_000,
        "without its end": content[: len(content) // 2],
        "with an end": content + b"\0",
    }.items():
        yield name, lambda path, other=other: path.write_bytes(other)


def at_random(chance, content, times):
    """Ways to damage a file at random places."""
    for i in range(times):
        place, data = chance.randrange(max(1, len(content))), bytearray(content)
        if i % 4 == 0:
            data = data[:place]
        elif i % 4 == 1:
            data[place : place + 1] = bytes([data[place] ^ 1 << chance.randrange(8)]) if data else b""
        elif i % 4 == 2:
            data[place : place + 16] = chance.randbytes(16)
        else:
            data[place:place] = chance.randbytes(chance.randrange(1, 9))
        yield f"random {i}", lambda path, data=bytes(data): path.write_bytes(data)


def other_json(content):
    """Ways to replace entries of a JSON object."""
    entries = json.loads(content)
    for key in entries:
        yield (
            f"without {key}",
            lambda path, key=key: path.write_text(json.dumps({k: v for k, v in entries.items() if k != key})),
        )
        values = [*VALUES, *([[value] for value in VALUES] if isinstance(entries[key], list) else ())]
        for value in values:
            if (key, value) == ("compile", True):
                continue  # right, but takes a minute
            yield f"{key} = {value!r}", lambda path, new={key: value}: path.write_text(json.dumps({**entries, **new}))
        nested = json.dumps({**entries, key: "NESTED"}).replace('"NESTED"', "[" * 50_000 + "]" * 50_000)
        yield f"{key} nested", lambda path, nested=nested: path.write_text(nested)
    yield "another key", lambda path: path.write_text(json.dumps({**entries, "another": 1}))
    for value in VALUES:
        yield f"{value!r}", lambda path, value=value: path.write_text(json.dumps(value))
    yield "a number of many digits", lambda path: path.write_text("1" * 10_000)


def other_tensors(content):
    """Ways to replace tensors of a safetensors file, and entries of its header."""
    tensors = safetensors.torch.load(content)
    for name, x in tensors.items():
        others = {
            "missing": None,
            "of no elements": x.new_zeros(0),
            "of another shape": torch.zeros(*x.shape, 2, dtype=x.dtype),
            "float64": x.double() if x.dtype != torch.float64 else x.float(),
            "bool": x.bool(),
            "of other numbers": torch.full_like(x, 100) if x.dtype != torch.bool else ~x,
            "negative": -x.double(),
            "not finite": torch.full(x.shape, float("nan")),
        }
        for kind, other in others.items():
            new = {key: value for key, value in {**tensors, name: other}.items() if value is not None}
            yield f"{name} {kind}", lambda path, new=new: path.write_bytes(safetensors.torch.save(new))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    headers = [{}, {**header, "x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, [], "x"]
    headers += [{**header, next(iter(header)): {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]}}]
    for i, other in enumerate(headers):
        data = json.dumps(other).encode()
        whole = len(data).to_bytes(8, "little") + data + content[8 + size :]
        yield f"header {i}", lambda path, whole=whole: path.write_bytes(whole)
    for length in (0, 2**31, 2**63, 2**64 - 1):
        whole = length.to_bytes(8, "little") + content[8:]
        yield f"header of {length} bytes", lambda path, whole=whole: path.write_bytes(whole)


def other_cells(content):
    """Ways to replace cells of a CSV file."""
    lines = content.decode().splitlines()
    for value in ("", "x", "1e999", "-1", "nan", "9" * 5000, '"', "\0", "1,2", "é", "1_0"):
        for row in (0, 1):
            for column in (0, 3):
                cells = lines[row].split(",")
                cells[column] = value
                text = "\n".join([*lines[:row], ",".join(cells), *lines[row + 1 :]]) + "\n"
                yield f"cell {row}, {column} = {value[:8]!r}", lambda path, text=text: path.write_text(text)
    yield "no rows", lambda path: path.write_text(lines[0] + "\n")
    yield "equal columns", lambda path: path.write_text("\n".join([",".join(["steps"] * 4), "1,2,3,4"]) + "\n")
    yield "a long line", lambda path: path.write_text("x" * 1_000_000 + "\n")


OF_ITS_KIND = {".json": other_json, ".safetensors": other_tensors, ".csv": other_cells}


def damages(file, chance, times):
    """All ways to damage ``file``, of which ``times`` are at random places: pairs of a name and a function of the path."""
    content = file.read_bytes()
    yield from same_kind(file, content)
    yield from OF_ITS_KIND.get(file.suffix, lambda content: ())(content)
    yield from at_random(chance, content, times)


def run_command(arguments):
    """Runs a command; returns its exit status, or ENDLESS or the error that came out, and what it wrote to stderr."""

    def endless(number, frame):
        raise EndlessError

    before = signal.signal(signal.SIGALRM, endless)
    signal.alarm(SECONDS)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            warnings.simplefilter("ignore")
            status = command([str(argument) for argument in arguments])
    except EndlessError:
        return ENDLESS, ""
    except SystemExit as stop:  # argparse
        return stop.code, errors.getvalue().strip()
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error}"[:150] + f" ({Path(place.filename).name}:{place.lineno})", ""
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, errors.getvalue().strip()


def outcome(arguments):
    """Runs a command; returns ``"ran"``, ``"error"`` for an error in one line, or what else came out."""
    status, said = run_command(arguments)
    own = [line for line in said.splitlines() if line.startswith("a2c-compiled: ")]
    if status == 0:
        return "ran"
    return (
        "error" if status == 2 and len(own) == 1 and said.endswith(own[0]) and len(own[0]) > 25 else f"{status}: {said}"[:300]
    )


def campaign(run, names, chance, times, chosen=lambda i: True):
    """Yields the file, the damage, the command and the :func:`outcome` of every case with a ``chosen`` index; ``run`` is a run folder."""
    index = 0
    for file in sorted(path for path in run.rglob("*") if path.name in READERS):
        for damage, apply in damages(file, chance, times):
            for name in READERS[file.name]:
                index += 1
                if name not in names or not chosen(index):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    copy = shutil.copytree(run, Path(folder) / "run")
                    apply(copy / file.relative_to(run))
                    yield file.name, damage, name, outcome(COMMANDS[name](copy))


def main():
    options = parser(__doc__, random=(20, "damages at random places of each file"), every=(1, "run every N-th case"))
    options.add_argument("--commands", default=",".join(COMMANDS))
    arguments = options.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, resource.RLIM_INFINITY))  # a number in a file may ask for any memory
    summary = Summary()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run)
        names, chance, end = arguments.commands.split(","), random.Random(arguments.seed), time.monotonic() + arguments.seconds
        for case in campaign(run, names, chance, arguments.random, lambda i: i % arguments.every == 0):
            if time.monotonic() > end:
                break
            summary.add(case[2], case[3], None if case[3] in ("ran", "error") else "; ".join(case))
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
