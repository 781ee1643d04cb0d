"""Signal handling in the worker processes of asynchronous environments."""

import signal
import threading
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def ignoring_ctrl_c() -> Iterator[None]:
    """Makes processes that start within the block ignore SIGINT.

    A terminal sends Ctrl-C (SIGINT) to all processes. Only the main process should handle the signal, because it closes the others.
    In a thread other than the main one, this context does nothing, because Python sets signal handlers only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
