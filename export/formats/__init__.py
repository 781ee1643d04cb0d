"""The export formats, one module for each."""

from importlib import import_module
from pathlib import Path
from typing import Dict, Optional

from a2c_compiled import _export_names
from a2c_compiled.export.formats.record import Format

FORMATS: Dict[str, Format] = {name: import_module(f"{__name__}.{name}").FORMAT for name in _export_names.FORMATS}
"""Record of each format by its name."""
ENDINGS = tuple(format.ending for format in FORMATS.values())
"""Endings of the file names of all formats."""


def format_of(path: Path) -> Optional[Format]:
    """Returns the format of a file by the ending of its name; None if no format has that ending.

    If several endings fit, the longest counts: ``.aot.pt2`` before ``.pt2``.
    """
    fitting = [format for format in FORMATS.values() if path.name.endswith(format.ending)]
    return max(fitting, key=lambda format: len(format.ending), default=None)
