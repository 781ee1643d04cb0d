"""What the command line, the exporter of a run and ``verify`` know of a format."""

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Tuple

from a2c_compiled.export.checking.reference_cases import Case

Checks = Callable[[Path, Mapping[str, Case]], Dict[str, str]]


class Format(NamedTuple):
    """An export format.

    Attributes:
        name: on the command line.
        ending: of the names of its files.
        export: writes a file; its arguments are a module, example inputs, a path and dynamic axes.
        load: makes a function of a file, which takes tensors by name and runs on the CPU.
        checks: what else a file is put to, and how it went, as in :class:`~a2c_compiled.export.Report`.
        options: names of further arguments of ``export``, among those that the command line has.
        has_gradients: a file can hold a training step, whose graph computes gradients.
        has_runtime: the files of :mod:`a2c_compiled.export.on_device` run it, and are placed beside it.
    """

    name: str
    ending: str
    export: Callable[..., Path]
    load: Callable[[Path], Callable[..., Any]]
    checks: Checks = lambda path, cases: {}
    options: Tuple[str, ...] = ()
    has_gradients: bool = True
    has_runtime: bool = False
