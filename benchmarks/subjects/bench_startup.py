"""Measures the first training step of a process: imports, construction, compilation and the step itself.

``python -m a2c_compiled.benchmarks.subjects.bench_startup FILE`` is the process: it writes the state after the step to FILE.
"""

import atexit
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

from a2c_compiled.benchmarks.contenders.modes import COMPILED
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.harness import OURS, Case, Contender, Make, PreparedCase
from a2c_compiled.benchmarks.measure.process import run_module
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
            IMPORTS: lambda: Contender(lambda: _process(shape, None), lambda _: [], []),
            EMPTY: lambda: Contender(lambda: _with_empty_cache(shape)),
            WARM: lambda: Contender(lambda: _process(shape, Path(folder.name))),
        }
        return PreparedCase(expected(data.rollout(shape, plan.device), plan), contenders)

    return Case("First training step", "whole", "[T, N]", shape, prepare, tolerance=1e-3)


def _with_empty_cache(shape: Shape) -> Any:
    with tempfile.TemporaryDirectory(prefix="a2c_compiled_") as folder:
        return _process(shape, Path(folder))


def _process(shape: Shape, folder: Optional[Path]) -> Any:
    """Runs the process, with compiled code and temporary files in ``folder``. Returns the state after the step; None without a folder."""
    arguments, environment = [str(torch.get_num_threads()), *map(str, shape)], dict(os.environ)
    if folder is not None:
        arguments.append(str(folder / "state.pt"))
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TMPDIR": str(folder)}
    run_module("a2c_compiled.benchmarks.subjects.bench_startup", arguments, environment)
    return None if folder is None else torch.load(folder / "state.pt", weights_only=True)


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
