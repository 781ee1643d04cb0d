"""Measures the first training step of a process: imports, construction, compilation and the step itself.

``python -m a2c_compiled.benchmarks.subjects.bench_startup FILE`` is the process: it writes the state after the step to FILE.
"""

import atexit
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

from a2c_compiled.benchmarks.contenders.modes import COMPILED
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.harness import OURS, Case, Contender, Make, PreparedCase
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.subjects.bench_update import expected, make_step, state

EMPTY, WARM = f"{COMPILED}, empty cache", f"{COMPILED}, code on disk"
IMPORTS = f"{OURS} imports alone"
"""The name of the process that imports the same modules and ends."""


def cases(plan: Plan) -> List[Case]:
    """Returns one case per shape."""
    return [_case(shape, plan) for shape in plan.startups]


def _case(shape: Shape, plan: Plan) -> Case:
    def prepare() -> PreparedCase:
        folder = tempfile.TemporaryDirectory(prefix="a2c_compiled_")
        atexit.register(folder.cleanup)
        contenders: Dict[str, Make] = {
            IMPORTS: lambda: Contender(lambda: _process(None, shape, None), lambda _: [], []),
            EMPTY: lambda: Contender(lambda: _with_empty_cache(shape)),
            WARM: lambda: Contender(lambda: _process(Path(folder.name), shape, Path(folder.name) / "state.pt")),
        }
        return PreparedCase(expected(data.rollout(shape, plan.device), plan), contenders)

    return Case("First training step", "whole", "[T, N]", shape, prepare, tolerance=1e-3)


def _with_empty_cache(shape: Shape) -> Any:
    with tempfile.TemporaryDirectory(prefix="a2c_compiled_") as folder:
        return _process(Path(folder), shape, Path(folder) / "state.pt")


def _process(cache: Optional[Path], shape: Shape, result: Optional[Path]) -> Any:
    """Runs the process, with compiled code in ``cache``. Returns the state that the process has written to ``result``."""
    command = [
        sys.executable,
        "-m",
        "a2c_compiled.benchmarks.subjects.bench_startup",
        str(torch.get_num_threads()),
        *map(str, shape),
    ]
    folders = {} if cache is None else {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TMPDIR": str(cache)}
    if result is not None:
        command.append(str(result))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **folders}, check=False)
    if done.returncode:
        raise RuntimeError(f"the process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return None if result is None else torch.load(result, weights_only=True)


def main(argv: Sequence[str]) -> None:
    """Runs the process. ``argv``: number of threads, environments, steps, and the file for the state, if a step is to be taken."""
    threads, environments, steps, *result = argv
    torch.set_num_threads(int(threads))
    if result:
        device = torch.device("cpu")
        step = make_step(data.loss(device), compile=True)
        step(data.rollout((int(environments), int(steps)), device))
        torch.save([tensor.detach() for tensor in state(step)], result[0])


if __name__ == "__main__":
    main(sys.argv[1:])
