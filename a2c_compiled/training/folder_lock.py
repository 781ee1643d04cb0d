"""The lock on the folder of a run: one training at a time writes to it."""

import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from filelock import FileLock, Timeout

from a2c_compiled._files import atomic_file
from a2c_compiled.training.distributed import Processes

LOCK, HOLDER = "run.lock", "run.holder"


@contextmanager
def folder_lock(folder: Optional[Path], processes: Processes) -> Iterator[None]:
    """Context in which only the processes of this training write to ``folder``. All processes must enter it.

    The process with rank 0 holds the lock. The operating system releases the lock when that process ends, however it ends.

    Args:
        folder: folder of the run; None: there is nothing to lock.
        processes: the processes that train together.

    Raises:
        ValueError: another training holds the lock.
        OSError: the file of the lock cannot be written.
    """
    if folder is None:
        yield
        return
    lock = FileLock(folder / LOCK, timeout=0)
    held = True
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            with atomic_file(folder / HOLDER) as path:
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        except Timeout:
            held = False
    if processes.any(not held):
        raise ValueError(f"out: expected a folder to which no other training writes, got {folder}, held by {_holder(folder)}")
    try:
        yield
    finally:
        if lock.is_locked:
            (folder / HOLDER).unlink(missing_ok=True)  # the file of the lock stays: removing it could give two processes a lock
            lock.release()


def _holder(folder: Path) -> str:
    """Returns the text of the process that holds the lock."""
    try:
        return (folder / HOLDER).read_text()
    except OSError:
        return "another process"
