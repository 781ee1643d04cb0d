"""Sends signals to training runs at random moments and resumes them: each must end as an uninterrupted run, bit for bit.

As a script: ``python tests/campaigns/signals.py [--times 20] [--kinds sync,async] [--seed 0]``. Each kind of environments gets each signal
``--times`` times: SIGINT, two SIGINT within 20 ms, SIGTERM, SIGHUP, SIGKILL, and SIGSTOP with SIGCONT after a moment. The process must end
with the exit status of the signal, in bounded time, without a traceback and without processes that it leaves behind.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from campaign import Summary, parser
from kill_and_resume import start, tensors, updates
from soak import descendants

KINDS = {
    "torch": ["--vectorization", "torch"],
    "sync": ["--vectorization", "sync", "--env", "Acrobot-v1", "--num-envs", "4"],
    "async": ["--vectorization", "async", "--env", "Acrobot-v1", "--num-envs", "2"],
}
SMALL = ["--no-compile", "--hidden", "8"]
SIGNALS = {
    "SIGINT": (130,),
    "SIGINT twice": (130,),
    "SIGTERM": (143, -signal.SIGTERM),  # the second: before the training handles signals
    "SIGHUP": (129, -signal.SIGHUP),
    "SIGKILL": (-signal.SIGKILL,),
    "SIGSTOP": (),
}
"""By signal, the exit statuses that may follow. 0 is allowed too: the run may have ended before."""

SECONDS_TO_END = 60


def is_running(pid):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def send(pid, name, chance):
    """Sends a signal, or the two of a pair."""
    first, _, twice = name.partition(" ")
    os.kill(pid, getattr(signal, first))
    if twice:
        time.sleep(chance.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGINT)
    if first == "SIGSTOP":
        time.sleep(chance.uniform(0.0, 0.5))
        os.kill(pid, signal.SIGCONT)


def left_behind(children, seconds=10):
    """Those of the processes that still run after ``seconds``."""
    end = time.monotonic() + seconds
    while (left := [child for child in children if is_running(child)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def interrupt(folder, options, name, chance, longest):
    """Trains and sends a signal at a random moment; returns the exit status, and what is wrong or None."""
    log = folder.with_suffix(".log")
    before = log.stat().st_size if log.is_file() else 0
    running, checkpoint = start(folder, options), updates(folder)
    pid = running.process.pid
    from_the_start = chance.random() < 0.3
    while log.stat().st_size == before if from_the_start and log.is_file() else updates(folder) == checkpoint:
        if not running.process.is_alive():
            return running.process.exitcode, f"ended before the signal: {log.read_text()[before:][-500:]}"
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, longest))
    children = descendants(pid) if is_running(pid) else []
    if running.process.is_alive():
        send(pid, name, chance)
    if name == "SIGSTOP":
        time.sleep(0.2)
        if running.process.is_alive():
            os.kill(pid, signal.SIGTERM)
    running.process.join(SECONDS_TO_END)
    if running.process.is_alive():
        running.process.kill()
        running.process.join()
        return None, f"had not ended after {SECONDS_TO_END} s"
    said, status = log.read_text()[before:], running.process.exitcode
    if status not in (0, *(SIGNALS[name] or SIGNALS["SIGTERM"])):
        return status, f"status {status}: {said[-500:]}"
    if "Traceback" in said:
        return status, f"traceback: {said[-1000:]}"
    left = left_behind(children)
    for child in left:
        os.kill(child, signal.SIGKILL)
    return status, f"{len(left)} of its {len(children)} processes still run" if left else None


def campaign(kinds, times, steps, seed, summary, longest=0.5, end=float("inf")):
    """Interrupts a run of each kind, and starts it anew whenever it has ended."""
    chance = random.Random(seed)
    for kind in kinds:
        options = [*SMALL, *KINDS[kind], "--total-steps", str(steps)]
        names = [*SIGNALS] * times
        chance.shuffle(names)
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "whole"
            start(whole, options).assert_success()
            expected, number = tensors(whole), 0
            while names and time.monotonic() < end:
                number += 1
                run, status = Path(folder) / f"run{number}", None
                while names and status != 0 and time.monotonic() < end:
                    name, started = names.pop(), time.monotonic()
                    status, wrong = interrupt(run, options, name, chance, longest)
                    summary.add(f"{kind} {name}", "ended", wrong, time.monotonic() - started)
                start(run, options).assert_success()
                actual = tensors(run)
                different = [key for key in expected if key not in actual or not torch.equal(expected[key], actual[key])]
                summary.add(f"{kind} final tensors", "equal", f"run {number}: different {different}" if different else None)


def main():
    options = parser(
        __doc__, times=(20, "signals of each sort for each kind of environments"), steps=(32_000, "environment steps of a run")
    )
    options.add_argument("--kinds", default=",".join(KINDS))
    arguments = options.parse_args()
    summary, end = Summary(), time.monotonic() + arguments.seconds
    campaign(arguments.kinds.split(","), arguments.times, arguments.steps, arguments.seed, summary, end=end)
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
