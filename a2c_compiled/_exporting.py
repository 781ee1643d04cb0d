"""Whether this thread exports: the exporter's own state, which no other thread sees."""

import threading
from contextlib import contextmanager
from typing import Iterator

import torch

from a2c_compiled._torch_internals import exports_in_one_thread, nothing_watches, tracing_lock


class _ThisThread(threading.local):
    exporting = False


_this_thread = _ThisThread()


@contextmanager
def exporting() -> Iterator[None]:
    """A block in which this thread makes a graph for export. One thread at a time: torch patches its own modules while it does.

    Two exports at once would each put back what the other had set: torch's flag for "exporting" then stays up for ever.
    """
    with tracing_lock(), exports_in_one_thread():
        before, _this_thread.exporting = _this_thread.exporting, True
        try:
            yield
        finally:
            _this_thread.exporting = before


def in_exporting_thread() -> bool:
    """Whether :func:`exporting` is at work in this thread."""
    return _this_thread.exporting


def is_exporting() -> bool:
    """Whether the code that runs now is traced for export, by this library or by the caller's own ``torch.export``.

    torch's flag is one for all threads. A thread that no mode watches is not the one that exports, and goes on with its kernels.
    """
    if torch.compiler.is_dynamo_compiling():
        return torch.compiler.is_exporting()
    return not nothing_watches() and (_this_thread.exporting or torch.compiler.is_exporting())
