"""Measures the first training step of a process: imports, construction, compilation and the step itself.

``python -m a2c_compiled.benchmarks.subjects.bench_startup`` is the process, see :func:`main`.
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

EMPTY, WARM, SAVED = f"{COMPILED}, empty cache", f"{COMPILED}, code on disk", f"{COMPILED}, load_compiled"
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
            SAVED: lambda: _with_saved_code(shape, Path(folder.name) / "step.code"),
        }
        return PreparedCase(expected(data.rollout(shape, plan.device), plan), contenders)

    return Case("First training step", "whole", "[T, N]", shape, prepare, tolerance=1e-3)


def _with_saved_code(shape: Shape, code: Path) -> Contender:
    """Saves the compiled code of the training step in the file ``code``, and returns the contender that loads it."""
    _process(shape, code.parent, code)
    return Contender(lambda: _with_empty_cache(shape, code))


def _with_empty_cache(shape: Shape, code: Optional[Path] = None) -> Any:
    with tempfile.TemporaryDirectory(prefix="a2c_compiled_") as folder:
        return _process(shape, Path(folder), code)


def _process(shape: Shape, folder: Optional[Path], code: Optional[Path] = None) -> Any:
    """Runs the process, with torch's cache and temporary files in ``folder``. Returns the state after the step; None without a folder."""
    arguments, environment = [str(torch.get_num_threads()), *map(str, shape)], dict(os.environ)
    if folder is not None:
        arguments += [str(folder / "state.pt"), *([] if code is None else [str(code)])]
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TMPDIR": str(folder)}
    run_module("a2c_compiled.benchmarks.subjects.bench_startup", arguments, environment)
    return None if folder is None else torch.load(folder / "state.pt", weights_only=True)


def main(argv: Sequence[str]) -> None:
    """Runs the process.

    Args:
        argv: number of threads, environments, steps. If a step is to be taken: the file to which the state after it is written, and
            optionally the file of the compiled code, which is loaded if it exists, otherwise saved.
    """
    threads, environments, steps, *files = argv
    torch.set_num_threads(int(threads))
    if files:
        device = torch.device("cpu")
        step = make_step(data.loss(device), compile=True)
        result, *code = map(Path, files)
        is_saved = bool(code) and code[0].exists()
        if is_saved:
            step.load_compiled(code[0])
        step(data.rollout((int(environments), int(steps)), device))
        torch.save([tensor.detach() for tensor in state(step)], result)
        if code and not is_saved:
            step.save_compiled(code[0])


if __name__ == "__main__":
    main(sys.argv[1:])
