"""Trains for minutes: speed, memory, open files, threads and child processes must stay as they were.

As a script: ``python tests/campaigns/soak.py [--minutes 5] [-- TRAIN OPTIONS]``. The last quarter of the time is compared with the second.
The speed is measured in environment steps for each second of CPU time, so that other programs on the machine disturb it less.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from campaign import Summary, parser
from kill_and_resume import OPTIONS, command_line
from kill_and_resume import Running as Process

from a2c_compiled.training.log import PROGRESS

SPARSE = ["--checkpoint-seconds", "5", "--log-interval", "200"]
LOWEST_SPEED = 0.85
"""The speed of the last quarter, as a fraction of that of the second."""

FEWEST_GROWTHS = 16
"""The log grows at least so often in a run, so that a quarter has several of its rows. A run on a busy machine takes longer."""

MOST_MIB = 16.0


def descendants(pid):
    """The process numbers of all children, and their children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def sample(pid):
    """What a process has at this moment."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = descendants(pid)
    return {
        "time": time.monotonic(),
        "cpu": sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"),
        "mib": int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(fields[17]),
        "children": len(children),
    }


def steps_logged(folder):
    """The last logged number of environment steps; 0 before the first row."""
    path = folder / PROGRESS
    header, *rows = (path.read_text() if path.is_file() else "").splitlines() or [""]
    complete = [row.split(",") for row in rows[-2:] if row.count(",") == header.count(",")]
    return int(float(complete[-1][header.split(",").index("steps")])) if complete else 0


def growths(samples):
    """The indices of the samples at which the log had just grown. It grows by many steps at a time."""
    return [i for i in range(1, len(samples)) if samples[i]["steps"] > samples[i - 1]["steps"]]


def quarters(samples):
    """The samples of the second and of the last quarter of the run. Each begins and ends with a growth of the log."""
    grown = growths(samples)
    count = len(grown)
    return [samples[grown[first] : grown[last] + 1] for first, last in ((count // 4, count // 2), (3 * count // 4, count - 1))]


def speed(samples):
    """Environment steps for each second of CPU time, and for each second."""
    steps = samples[-1]["steps"] - samples[0]["steps"]
    return [steps / max(samples[-1][name] - samples[0][name], 1e-9) for name in ("cpu", "time")]


def campaign(seconds, options, summary, lowest_speed=LOWEST_SPEED):
    """Trains for ``seconds``; adds a case for each quantity to ``summary``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        arguments = ["train", "--out", str(out), *OPTIONS, *SPARSE, "--total-steps", str(10**12), *options]
        running, samples = Process(out.with_suffix(".log"), command_line, arguments), []
        while steps_logged(out) == 0:
            assert running.process.is_alive(), running.log.read_text()
            time.sleep(0.05)
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(growths(samples)) < FEWEST_GROWTHS:
            assert running.process.is_alive(), running.log.read_text()
            samples.append({**sample(running.process.pid), "steps": steps_logged(out)})
            time.sleep(min(1.0, seconds / 40))
        os.kill(running.process.pid, signal.SIGTERM)
        running.process.join(120)
        status = running.process.exitcode
        summary.add("end", "SIGTERM", None if status == 143 else f"status {status}: {running.log.read_text()[-500:]}")
    second, last = quarters(samples)
    (cpu, wall), (last_cpu, last_wall) = speed(second), speed(last)
    print(
        f"steps for each second of CPU time: {cpu:,.0f}, then {last_cpu:,.0f}; for each second: {wall:,.0f}, then {last_wall:,.0f}"
    )
    slow = None if last_cpu >= lowest_speed * cpu else f"{cpu:.0f} steps for each second of CPU time, then {last_cpu:.0f}"
    summary.add("speed", "steady", slow)
    for name, most in (("mib", MOST_MIB), ("files", 0), ("threads", 0), ("children", 0)):
        before, after = (max(x[name] for x in part) for part in (second, last))
        print(f"{name}: {before:.1f}, then {after:.1f}")
        summary.add(name, "steady", None if after - before <= most else f"{before:.1f}, then {after:.1f}")


def main():
    options = parser(__doc__, minutes=(5.0, "time of the run"))
    options.add_argument("options", nargs="*", default=[], help="options of a2c-compiled train")
    arguments = options.parse_args()
    summary = Summary()
    campaign(60 * arguments.minutes, arguments.options, summary)
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
