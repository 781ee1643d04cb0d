"""Runs the campaigns: faults at random, on purpose. Each is a script of its own, see there.

``python tests/campaigns/run.py`` runs a short form of each, in minutes; ``--full`` takes hours. ``--only`` chooses some. The output of each
goes to the terminal; the last lines say which failed.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent

CAMPAIGNS = {
    "guard_pages": ("--times 2000", "--times 50000"),
    "guard_pages, Triton": ("--times 20 --backend triton", "--times 500 --backend triton"),
    "threads": ("--threads 4 --rounds 5 --exports 1", "--threads 8 --rounds 50 --exports 3 --compiled"),
    "forks": ("--times 2 --eager", "--times 20"),
    "memory": ("--times 2000", "--times 200000"),
    "soak": ("--minutes 0.5", "--minutes 10"),
    "kill_and_resume": ("--kills 3", "--kills 20"),
    "signals": ("--times 1", "--times 20"),
    "full_disks": ("--times 2", "--times 30"),
    "wrong_options": ("--every 10", ""),
    "damaged_folders": ("--random 4 --every 20", "--random 20"),
    "fuzz_files": ("--times 5", "--times 2500"),
}
"""By campaign, the options of its short and of its full form. The script is named before the comma."""


def run(name, full):
    """Runs a campaign; returns its exit status and its seconds."""
    short, long = CAMPAIGNS[name]
    script = FOLDER / f"{name.partition(',')[0]}.py"
    command = [sys.executable, str(script), *(long if full else short).split()]
    print(f"\n== {name}: {' '.join(command[1:])}", flush=True)
    started = time.monotonic()
    return subprocess.run(command, check=False).returncode, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the full form of each campaign")
    parser.add_argument("--only", default=",".join(dict.fromkeys(name.partition(",")[0] for name in CAMPAIGNS)))
    arguments = parser.parse_args()
    chosen = [name for name in CAMPAIGNS if name.partition(",")[0] in arguments.only.split(",")]
    results = {name: run(name, arguments.full) for name in chosen}
    print("\ncampaign                   seconds")
    for name, (status, seconds) in results.items():
        print(f"{name:<24}{seconds:>10.0f}  {'passed' if status == 0 else 'FAILED'}")
    return int(any(status for status, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
