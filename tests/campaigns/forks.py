"""A process that has used kernels, threads and compiled steps forks and spawns: its children must give equal results, and end.

As a script: ``python tests/campaigns/forks.py [--times 20] [--eager] [--seed 0]``. Children come from ``os.fork``, from the three start
methods of ``multiprocessing``, and from a ``DataLoader`` with workers. Some are started while other threads of the parent call kernels.
"""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import calls
import torch
from campaign import Summary, parser
from torch.utils.data import DataLoader, Dataset

SECONDS = 300
"""Time limit of a child. A child that was spawned imports the package and compiles."""

RIGHT, DIFFERENT, FAILED = 0, 3, 4
EXPECTED = "expected.pt"


def make_calls(folder, compiled):
    return (
        calls.function_calls()
        | calls.loss_calls()
        | calls.step_calls()
        | calls.file_calls(folder)
        | (calls.step_calls(True) if compiled else {})
    )


def results_of(every_call):
    return {name: call() for name, call in every_call.items()}


def status_of(every_call, expected):
    """Calls everything; returns RIGHT, DIFFERENT or FAILED."""
    try:
        different = [name for name, call in every_call.items() if calls.differs(call(), expected[name])]
    except BaseException as error:
        print(f"in a child: {type(error).__name__}: {error}"[:500], file=sys.stderr, flush=True)
        return FAILED
    if different:
        print(f"in a child: different {different}", file=sys.stderr, flush=True)
    return DIFFERENT if different else RIGHT


def by_os_fork(parent):
    pid = os.fork()
    if pid == 0:
        os._exit(status_of(parent.calls, parent.expected))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "endless"


def exit_with_status(every_call, expected):
    os._exit(status_of(every_call, expected))


def exit_anew(folder, compiled):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os._exit(status_of(make_calls(folder, compiled), torch.load(Path(folder) / EXPECTED, weights_only=False)))


def status_of_process(process):
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return "endless"
    return process.exitcode


def by_multiprocessing_fork(parent):
    process = multiprocessing.get_context("fork").Process(target=exit_with_status, args=(parent.calls, parent.expected))
    return status_of_process(process)


def anew(method):
    def start(parent):
        arguments = parent.folder, parent.compiled
        return status_of_process(multiprocessing.get_context(method).Process(target=exit_anew, args=arguments))

    return start


class Statuses(Dataset):
    """Each entry is the status of a worker that called everything."""

    def __init__(self, parent):
        self.parent = parent

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return torch.tensor(status_of(self.parent.calls, self.parent.expected))


def by_data_loader(parent):
    loader = DataLoader(Statuses(parent), batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=SECONDS)
    return max(int(status) for status in loader)


KINDS = {
    "os.fork": by_os_fork,
    "multiprocessing fork": by_multiprocessing_fork,
    "DataLoader": by_data_loader,
    "multiprocessing spawn": anew("spawn"),
    "multiprocessing forkserver": anew("forkserver"),
}
ANEW = ("multiprocessing spawn", "multiprocessing forkserver")
"""These import the package again, which takes seconds."""


class Parent:
    """A process that has used everything that its children use."""

    def __init__(self, folder, compiled):
        self.folder, self.compiled = folder, compiled
        self.calls = make_calls(folder, compiled)
        self.expected = results_of(self.calls)
        # Children that begin anew read them from a file: multiprocessing would send a file descriptor for each tensor, and at most 252.
        torch.save(self.expected, Path(folder) / EXPECTED)

    @contextmanager
    def calling(self, threads):
        """In the block, that many threads call functions and losses."""
        over = threading.Event()

        def call():
            while not over.is_set():
                for name, function in self.calls.items():
                    if name.startswith(("functional", "loss")):
                        function()

        running = [threading.Thread(target=call) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in running:
                thread.join()


def campaign(times, compiled, seed, summary, kinds=tuple(KINDS), end=float("inf")):
    """Starts children of each kind: ``times`` that are forks of this process, and a tenth of it that begin anew."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        calls.write_files(folder)
        parent = Parent(folder, compiled)
        for kind in kinds:
            for i in range(max(1, times // 10) if kind in ANEW else times):
                if time.monotonic() > end:
                    return
                threads, started = chance.choice((0, 2)), time.monotonic()
                with parent.calling(threads):
                    status = KINDS[kind](parent)
                wrong = None if status == RIGHT else f"child {i} with {threads} other threads: status {status}"
                summary.add(kind, "right", wrong, time.monotonic() - started)
        status = status_of(parent.calls, parent.expected)
        summary.add("parent", "right", None if status == RIGHT else f"other results after its children: status {status}")


def main():
    options = parser(__doc__, times=(20, "number of forked children of each kind"))
    options.add_argument("--eager", action="store_true", help="without compiled training steps")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    summary = Summary()
    campaign(arguments.times, not arguments.eager, arguments.seed, summary, end=time.monotonic() + arguments.seconds)
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
