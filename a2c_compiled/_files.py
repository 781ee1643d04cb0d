"""Paths as arguments, and atomic writing of files: a reader finds the old file or the complete new one, never a part."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

from a2c_compiled._kinds import described

AnyPath = Union[str, "os.PathLike[str]"]
"""Path of a file or folder, as functions accept it."""


def as_path(name: str, path: AnyPath) -> Path:
    """Returns ``path`` as a Path. Raises TypeError, with the argument's ``name``, if it is not a path."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {described(path)}")
    return Path(path)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Context that yields a temporary path in the folder of ``path``.

    When the block ends, the temporary file replaces ``path``. If the block raises, the temporary file is removed and ``path`` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp creates files that only the owner can read
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Context that yields a temporary folder. When the block ends, the files in the temporary folder are moved to ``folder``.

    Each file is moved atomically, one after the other. If the block raises, the files are removed instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        yield Path(temporary)
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


def copy_atomically(file: Path, folder: Path) -> Path:
    """Copies ``file`` into ``folder`` atomically and returns the path of the copy."""
    with atomic_file(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
    return folder / file.name


def _flush(path: Path) -> None:
    """Flushes a file to the disk, so that after a power failure the new name cannot refer to a file without the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Returns the process's file mode mask. ``os.umask`` can only read the mask by setting another one."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
