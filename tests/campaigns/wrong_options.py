"""Gives each option of each command wrong values: each must be refused in one clear line with exit status 2.

As a script: ``python tests/campaigns/wrong_options.py [--commands train,eval] [--every 1]``. The options come from the parsers themselves,
so a new option is tried too. Some of the values are right for some options; then the command begins its work, which this script ends.
"""

import argparse
import contextlib
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
from campaign import Summary, in_processes, is_crash, parser
from damaged_folders import SECONDS, make_run, run_command

from a2c_compiled import cli
from a2c_compiled.export import export_torchscript

TEXTS = (
    *(
        "",
        " ",
        "x",
        "-1",
        "-0",
        "0",
        "1.5",
        "-1e9",
        "1e999",
        "1e-400",
        "nan",
        "inf",
        "-inf",
        "99999999999999999999",
        "4294967296",
    ),
    *(
        "none",
        "None",
        "true",
        "\u00e9",
        "\u0663",
        "0x10",
        "1_0",
        "1,2",
        ",",
        "a b",
        "x" * 5000,
        "\0",
        "\n",
        "%s",
        "{}",
        "--",
        "-",
    ),
    *("/dev/null", "/proc/none", "no/such/folder/file", "module:Name", "os:getcwd", ":", "Nothing-v0", "cuda:99", "meta"),
)
NOT_NUMBERS = ("", " ", "x", "true", "\u00e9", "0x10", "1,2", "a b", "--", "-", "%s", "None")
"""Texts that an option for a number must refuse."""

TINY = ["--no-compile", "--device", "cpu", "--num-envs", "2", "--num-steps", "2", "--total-steps", "8", "--hidden", "4"]
TINY += ["--solved-return", "inf"]
BYTES = 12 * 2**30
"""Memory limit of the commands."""

CLEAR = ("arguments: expected text without null bytes", "allocate")
"""Messages that name neither the option nor its value: a null byte, and memory that the system does not have."""


class BegunError(BaseException):
    """The command accepted its options and began its work."""


def commands():
    """The names of all commands."""
    return list(subparsers("").choices)


def subparsers(command):
    actions = cli._parser(command)._actions
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction))


def options_of(command):
    """The actions of a command's parser, without --help."""
    return [action for action in subparsers(command).choices[command]._actions if not isinstance(action, argparse._HelpAction)]


def base(command, folder):
    """Arguments with which the command succeeds."""
    run, out = str(folder / "run"), str(folder / "out")
    return {
        "train": [*TINY, "--out", out],
        "eval": [run, "--episodes", "1"],
        "plot": [run, "--out", f"{out}.png"],
        "export": [run, "--out", out, "--format", "torchscript", "--graph", "policy"],
        "verify": [str(folder / "policy.pt")],
    }.get(command, ["--out", out])


def cases():
    """Every case: the command, the number of the option, and the text; None stands for the option without a value."""
    every = []
    for command in commands():
        for i, action in enumerate(options_of(command)):
            texts = TEXTS if action.nargs != 0 else ("x", "")
            if not action.option_strings:  # -- is no text there
                texts = [text for text in texts if text != "--"]
            every += [(command, i, text) for text in (*texts, *([None] if action.option_strings and action.nargs != 0 else []))]
    return every


def arguments_of(case, folder):
    """The name of the option, and the whole command line."""
    command, i, text = case
    action, arguments = options_of(command)[i], base(command, folder)
    if not action.option_strings:  # a positional argument comes first
        return action.metavar or action.dest, [command, text, *arguments[1:]]
    option = action.option_strings[0]
    if text is None:
        return option, [command, *arguments, option]
    if action.nargs == 0:
        return option, [command, *arguments, f"{option}={text}"]
    return option, [command, *arguments, option, text]


def begun(*arguments, **options):
    raise BegunError


def after_once(function):
    """``function``, which raises BegunError after its first call."""

    def call(*arguments, **options):
        function(*arguments, **options)
        raise BegunError

    return call


@contextlib.contextmanager
def ended_early():
    """In the block, commands that would work for long end after their first step."""
    from a2c_compiled.benchmarks import run as benchmarks
    from a2c_compiled.demo import demo
    from a2c_compiled.training import evaluation
    from a2c_compiled.training.trainer import Trainer

    with (
        mock.patch.object(Trainer, "update", after_once(Trainer.update)),
        mock.patch.object(evaluation, "_first_episodes", after_once(evaluation._first_episodes)),
        mock.patch.object(demo, "run_demo", begun),
        mock.patch.object(benchmarks, "run", begun),
    ):
        yield


def outcome(case, folder):
    """Returns ``"refused"`` or ``"served"``, or what is wrong."""
    option, arguments = arguments_of(case, folder)
    with ended_early():
        status, said = run_command(arguments)
    lines = said.splitlines() or [""]
    if status in (0, 1) or str(status).startswith(BegunError.__name__):
        action, text = options_of(case[0])[case[1]], case[2]
        if action.type in (int, float) and text in NOT_NUMBERS:
            return f"served {text!r} as a number"
        return "served"
    if status != 2:
        return f"{status}: {said[-300:]}"
    own = [line for line in lines if line.startswith("a2c-compiled: ") or line.startswith(f"a2c-compiled {case[0]}: error: ")]
    if len(own) != 1 or lines[-1] != own[0] or "Traceback" in said:
        return f"not one clear line: {said[-300:]}"
    name, text = option.lstrip("-"), case[2] or ""
    named = [name, name.replace("-", "_"), name.removeprefix("no-").replace("-", "_"), option.lower()]
    named += [f"got {text.strip()}".strip(), repr(text), *([text] if len(text) > 2 else [])]
    if not any(word in own[0] for word in (*named, *CLEAR, str(folder))):
        return f"does not name {option}: {own[0][:300]}"
    return "refused"


def work(some, folder):
    """Yields the outcome of each case."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    own = Path(tempfile.mkdtemp(dir=folder)) / "a" / "b" / "c"
    own.mkdir(parents=True)
    os.chdir(own)
    with mock.patch.dict(os.environ, {"PYTHONWARNINGS": "ignore"}):
        for case in some:
            yield outcome(case, folder)


def prepare(folder):
    """Makes the run and the file that commands read."""
    make_run(folder / "run")
    export_torchscript(torch.nn.Linear(3, 2), (torch.zeros(2, 3),), folder / "policy.pt", ("N",))


def campaign(some):
    """Yields each case, its outcome and its seconds."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        yield from in_processes(work, some, Path(name), seconds=2 * SECONDS)


def is_wrong(result):
    return result not in ("refused", "served")


def main():
    options = parser(__doc__, every=(1, "run every N-th case"))
    options.add_argument("--commands", default=",".join(commands()))
    arguments = options.parse_args()
    end, summary, names = time.monotonic() + arguments.seconds, Summary(), arguments.commands.split(",")
    some = [case for case in cases() if case[0] in names][:: arguments.every]
    for case, result, seconds in campaign(some):
        wrong = f"{arguments_of(case, Path('.'))[1]}: {result}"[:600] if is_wrong(result) else None
        summary.add(case[0], "crash" if is_crash(result) else result, wrong, seconds)
        if time.monotonic() > end:
            break
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
