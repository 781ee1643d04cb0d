"""Shared by the campaigns: cases in processes of their own, options of every script, and the summary."""

import argparse
import collections
import ctypes
import multiprocessing
import resource
import signal
import sys
import time
from pathlib import Path

# The campaigns share tables of cases with the tests.
sys.path.append(str(Path(__file__).parents[1]))

PROCESSES = multiprocessing.get_context("forkserver")
"""Each process is a fork of a server that has imported the package, because the import takes longer than most cases."""

PROCESSES.set_forkserver_preload(
    [
        "a2c_compiled.export",
        "a2c_compiled.export.on_device.runtime",
        "a2c_compiled.training.plots",
        "a2c_compiled.training.trainer",
        "torch.jit",
        "torch.export",
        "torch.utils.tensorboard",
    ]
)

ENDLESS = "endless"


def parser(doc, **numbers):
    """Returns a parser with ``--seed``, ``--seconds``, and an option for each of ``numbers``: its default and its help text."""
    result = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, (default, text) in numbers.items():
        result.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after this time")
    return result


def is_crash(result):
    """Whether :func:`in_processes` yields ``result`` for a process that died."""
    return isinstance(result, str) and result.startswith("crash")


def end_with_parent():
    """Makes the system end this process when the process that forked it ends, also by a signal."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def send_all(work, cases, arguments, sender):
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file
    for result in work(cases, *arguments):
        sender.send(result)


def in_processes(work, cases, *arguments, at_once=500, seconds=60):
    """Yields each case with its result and its seconds. A process that dies or hangs costs one case alone.

    Args:
        work: ``work(cases, *arguments)`` yields the result of each case in turn. It runs in another process.
        cases: a list.
        arguments: further arguments of ``work``.
        at_once: number of cases of one process. Libraries may leak memory, so a process does not run all cases.
        seconds: time limit of one case.

    Yields:
        The case; what ``work`` yielded, or ``"crash with exit status ..."``, or ``ENDLESS``; the seconds.
    """
    while cases:
        some, cases = cases[:at_once], cases[at_once:]
        receiver, sender = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=send_all, args=(work, some, arguments, sender))
        process.start()
        sender.close()
        try:
            result = None
            while some and not (is_crash(result) or result == ENDLESS):
                case, *some = some
                started, result = time.monotonic(), ENDLESS
                try:
                    if receiver.poll(seconds):
                        result = receiver.recv()
                except EOFError:
                    process.join()
                    result = f"crash with exit status {process.exitcode}"
                yield case, result, time.monotonic() - started
        finally:
            process.join(0 if some or result == ENDLESS else 10)
            process.kill()
            process.join()
            receiver.close()
        cases = some + cases


class Summary:
    """Counts cases by group and outcome, and prints each wrong case at once."""

    def __init__(self):
        self.counts, self.wrong = collections.Counter(), []
        self.started, self.slowest = time.monotonic(), 0.0

    def add(self, group, outcome, wrong=None, seconds=0.0):
        """Counts a case. ``wrong``: what is wrong with it, for the person who repeats it; None if nothing is."""
        self.slowest = max(self.slowest, seconds)
        self.counts[str(group), "WRONG" if wrong is not None else outcome] += 1
        if wrong is not None:
            self.wrong.append(f"{group}; {wrong}")
            print(f"WRONG {self.wrong[-1]}", flush=True)

    @property
    def seconds(self):
        return time.monotonic() - self.started

    def report(self):
        """Prints the counts; returns the exit status of the script: 1 if a case was wrong."""
        for (group, outcome), count in sorted(self.counts.items()):
            print(f"{group:<36}{outcome:<28}{count:>8,}")
        cases = sum(self.counts.values())
        print(
            f"{cases:,} cases, {len(self.wrong)} wrong, in {self.seconds:.0f} s; the slowest took {self.slowest:.1f} s",
            flush=True,
        )
        return 1 if self.wrong else 0
