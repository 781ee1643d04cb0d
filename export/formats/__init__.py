"""How it is written: one module for each format."""

from importlib import import_module
from pathlib import Path
from typing import Dict, Optional

from a2c_compiled import _export_names
from a2c_compiled.export.formats.record import Format

FORMATS: Dict[str, Format] = {name: import_module(f"{__name__}.{name}").FORMAT for name in _export_names.FORMATS}
"""Every format by name."""
ENDINGS = tuple(format.ending for format in FORMATS.values())
"""Of the names of their files."""


def format_of(path: Path) -> Optional[Format]:
    """The format of a file, by the end of its name: of ``.pt2`` and ``.aot.pt2`` the longer one that fits."""
    fitting = [format for format in FORMATS.values() if path.name.endswith(format.ending)]
    return max(fitting, key=lambda format: len(format.ending), default=None)
