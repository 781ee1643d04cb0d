"""Python without torch, made of what is installed here: where to show that exported files need none."""

import os
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MODULES = ("numpy", "onnxruntime", "gymnasium")
"""What exported files and the scripts beside them import."""


def make_bare_environment(folder: Path, modules: Iterable[str] = MODULES) -> Path:
    """An environment in ``folder`` with the distributions that ``modules`` are from and all that those require, and no other.

    They are linked from where they are installed: nothing is downloaded, nothing copied.

    Returns:
        Path of its interpreter.

    Raises:
        ModuleNotFoundError: a module or a requirement is not installed here.
    """
    venv.create(folder, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    for distribution in _with_requirements(modules).values():
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = Path(paths["purelib"]) / name
            if not link.exists():  # distributions may share a folder
                link.symlink_to(Path(str(distribution.locate_file(name))).resolve())
    return Path(paths["scripts"]) / ("python.exe" if os.name == "nt" else "python")


def _with_requirements(modules: Iterable[str]) -> Dict[str, metadata.Distribution]:
    """The distributions of ``modules`` and, without extras, of all that they require, by name."""
    installed = metadata.packages_distributions()
    missing = [module for module in modules if module not in installed]
    if missing:
        raise ModuleNotFoundError(f"modules: expected installed ones, got {', '.join(missing)}")
    found: Dict[str, metadata.Distribution] = {}
    waiting = [name for module in modules for name in installed[module]]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        requirements = map(Requirement, found[name].requires or ())
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found
