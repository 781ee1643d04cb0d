"""Signals in the processes of asynchronous environments."""

import signal
import threading
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that start within the block leave Ctrl-C, which a terminal sends to all of them, to the one that started them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
