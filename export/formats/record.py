"""What the command line, the exporter of a run and ``verify`` know of a format."""

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Tuple

import numpy as np
import torch

from a2c_compiled.export.checking.reference_cases import Case
from a2c_compiled.export.tracing.call import named_outputs

Runner = Callable[[Mapping[str, np.ndarray]], Dict[str, np.ndarray]]
"""From inputs to outputs, both by name."""


def _none(path: Path, cases: Mapping[str, Case]) -> Dict[str, str]:
    return {}


class Format(NamedTuple):
    """An export format.

    Attributes:
        name: on the command line.
        ending: of the names of its files.
        export: writes a file; its arguments are a module, example inputs, a path and dynamic axes.
        load: reads a file, to be run on the CPU.
        checks: what else a file is put to, and how it went, as in :class:`~a2c_compiled.export.Report`.
        options: names of further arguments of ``export``, among those that the command line has.
        has_gradients: a file can hold a training step, whose graph computes gradients.
        has_runtime: the files of :mod:`a2c_compiled.export.on_device` run it, and are placed beside it.
    """

    name: str
    ending: str
    export: Callable[..., Path]
    load: Callable[[Path], Runner]
    checks: Callable[[Path, Mapping[str, Case]], Dict[str, str]] = _none
    options: Tuple[str, ...] = ()
    has_gradients: bool = True
    has_runtime: bool = False


def run_in_torch(load: Callable[[Path], Callable[..., Any]]) -> Callable[[Path], Runner]:
    """The ``load`` of a format whose files torch loads as functions of tensors by keyword."""

    def loaded(path: Path) -> Runner:
        module = load(path)

        @torch.no_grad()
        def run(inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
            result = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            return {name: tensor.numpy() for name, tensor in named_outputs(result).items()}

        return run

    return loaded
