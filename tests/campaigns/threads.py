"""Many threads call functions, losses, training steps, files and exports at once: the results must equal those of one thread, bit for bit.

As a script: ``python tests/campaigns/threads.py [--threads 8] [--rounds 50] [--exports 2] [--seed 0]``. Each thread calls everything
``--rounds`` times, and the exports ``--exports`` times, each round in another order. Functions, losses and loaded policies of torch are
shared; training steps and policies of the runtime belong to one thread, as documented.
"""

import random
import sys
import tempfile
import threading
import time
import traceback
import warnings

import calls
import torch
from campaign import Summary, parser


def group_of(name):
    """The line of the summary for a call: ``"functional"``, ``"loss"``, ``"export"``, ..."""
    return next((part for part in ("functional", "TrainStep", "verify", "export", "loss") if part in name), name)


def in_threads(of_threads, expected, rounds, exports, seed, summary, end=float("inf")):
    """Calls ``of_threads[i]`` in thread i; adds a case for each call to ``summary``."""
    lock, every_export = threading.Lock(), calls.export_calls()

    def run(i):
        chance = random.Random(f"{seed} {i}")
        for number in range(rounds):
            names = [*of_threads[i], *(every_export if number < exports else ())]
            chance.shuffle(names)
            for name in names:
                if time.monotonic() > end:
                    return
                started, wrong = time.monotonic(), None
                try:
                    actual = (of_threads[i] | every_export)[name]()
                    if calls.differs(actual, expected[name]):
                        wrong = f"thread {i}, round {number}: other results than in one thread"
                except BaseException as error:
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    wrong = (
                        f"thread {i}, round {number}: {type(error).__name__}: {error}"[:300]
                        + f" ({place.filename}:{place.lineno})"
                    )
                with lock:
                    summary.add(group_of(name), "equal", wrong, time.monotonic() - started)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(of_threads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def campaign(threads, rounds, exports, compiled, seed, summary, end=float("inf")):
    """Runs the campaign with that many threads."""
    with tempfile.TemporaryDirectory() as folder:
        calls.write_files(folder)
        shared = calls.function_calls() | calls.loss_calls()

        def of_one_thread():
            return shared | calls.step_calls() | (calls.step_calls(True) if compiled else {}) | calls.file_calls(folder)

        alone = of_one_thread() | calls.export_calls()
        expected = {name: call() for name, call in alone.items()}
        assert all(bool(expected[name][0]) for name in calls.export_calls()), "an export in one thread is verified"
        in_threads([of_one_thread() for _ in range(threads)], expected, rounds, exports, seed, summary, end)


def main():
    options = parser(
        __doc__,
        threads=(8, "number of threads"),
        rounds=(50, "calls of everything in each thread"),
        exports=(2, "rounds with exports"),
    )
    options.add_argument("--compiled", action="store_true", help="also compiled training steps")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    summary = Summary()
    end = time.monotonic() + arguments.seconds
    campaign(arguments.threads, arguments.rounds, arguments.exports, arguments.compiled, arguments.seed, summary, end)
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
