"""Runs a module of the benchmarks in a process of its own."""

import subprocess
import sys
from typing import Mapping, Sequence


def run_module(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Runs ``python -m module`` with ``arguments`` and returns its standard output.

    Raises:
        RuntimeError: the process failed; the message has the last line of its standard error.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return done.stdout
