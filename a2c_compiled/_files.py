"""Files that are written whole or not at all."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` that takes its place when the block ends, and is removed if the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved to ``folder`` when the block ends, and are gone if the block fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        yield Path(temporary)
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


def copied_whole(file: Path, folder: Path) -> Path:
    """A copy of ``file`` in ``folder``, whole or not at all."""
    with written_whole(folder / file.name) as temporary:
        shutil.copyfile(file, temporary)
    return folder / file.name


def _flush(path: Path) -> None:
    """Wait until a file is on the disk: a power cut must not find the new name in place and the content not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
