"""A Python environment without torch, in which the demo shows that exported files do not need torch."""

import os
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterable

from a2c_compiled._extras import needs

with needs(__name__, "train", "export"):
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

MODULES = ("numpy", "onnxruntime", "gymnasium")
"""The modules that the scripts beside exported files import."""


def make_bare_environment(folder: Path, modules: Iterable[str] = MODULES) -> Path:
    """Creates a virtual environment that contains only the packages of ``modules`` and their requirements.

    The packages are symbolic links to the packages of this Python. Nothing is downloaded or copied.

    Args:
        folder: folder of the new environment.
        modules: names of importable modules.

    Returns:
        Path of the environment's Python interpreter.

    Raises:
        ModuleNotFoundError: a module or a requirement is not installed in this Python.
    """
    venv.create(folder, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    for distribution in _with_requirements(modules).values():
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = Path(paths["purelib"]) / name
            if not link.exists():  # several packages may share a folder
                link.symlink_to(Path(str(distribution.locate_file(name))).resolve())
    return Path(paths["scripts"]) / ("python.exe" if os.name == "nt" else "python")


def _with_requirements(modules: Iterable[str]) -> Dict[str, metadata.Distribution]:
    """Returns, by name, the installed distributions of ``modules`` and of all their requirements, without extras."""
    installed = metadata.packages_distributions()
    missing = [module for module in modules if module not in installed]
    if missing:
        raise ModuleNotFoundError(f"modules: expected installed modules, got {', '.join(missing)}")
    distributions: Dict[str, metadata.Distribution] = {}
    pending = [name for module in modules for name in installed[module]]
    while pending:
        name = canonicalize_name(pending.pop())
        if name in distributions:
            continue
        distributions[name] = metadata.distribution(name)
        requirements = map(Requirement, distributions[name].requires or ())
        pending += [
            required.name for required in requirements if required.marker is None or required.marker.evaluate({"extra": ""})
        ]
    return distributions
