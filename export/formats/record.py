"""The record that describes an export format to the command line, to ``export_run`` and to ``verify``."""

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Tuple

from a2c_compiled.export.checking.reference_cases import Case

Checks = Callable[[Path, Mapping[str, Case]], Dict[str, str]]


class Format(NamedTuple):
    """An export format.

    Attributes:
        name: name on the command line.
        ending: ending of the file names.
        export: function that writes a file. Its arguments are a module, example inputs, a path and dynamic axes.
        load: function that loads a file, and returns a function that takes tensors by input name and runs on the CPU.
        checks: function that runs further checks on a file, and returns their outcomes as in :class:`~a2c_compiled.export.Report`.
        options: names of further arguments of ``export`` that are also options of the command line.
        has_gradients: True if a file can hold a training step, whose graph computes gradients.
        has_runtime: True if the files of :mod:`a2c_compiled.export.on_device` can run a file. ``export_run`` then copies them beside it.
    """

    name: str
    ending: str
    export: Callable[..., Path]
    load: Callable[[Path], Callable[..., Any]]
    checks: Checks = lambda path, cases: {}
    options: Tuple[str, ...] = ()
    has_gradients: bool = True
    has_runtime: bool = False
