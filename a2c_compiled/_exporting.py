"""The state "this thread is exporting a graph", one for each thread."""

import threading
from contextlib import contextmanager
from typing import Iterator

import torch

from a2c_compiled._torch_internals import dispatch_is_plain, is_exporting_in_dynamo, thread_local_export_flag, tracing_lock


class _ThisThread(threading.local):
    exporting = False


_this_thread = _ThisThread()


@contextmanager
def exporting() -> Iterator[None]:
    """Context in which this thread builds a graph for export. Only one thread at a time can be in the context; the others wait.

    torch sets global state during an export and restores the earlier values afterwards. Two exports at once would restore each other's
    values, and torch's exporting flag could stay set.
    """
    with tracing_lock(), thread_local_export_flag():
        before, _this_thread.exporting = _this_thread.exporting, True
        try:
            yield
        finally:
            _this_thread.exporting = before


def in_exporting_thread() -> bool:
    """Returns whether this thread is inside :func:`exporting`."""
    return _this_thread.exporting


def is_exporting() -> bool:
    """Returns whether this library or a call of ``torch.export`` is tracing the current code for an export.

    All threads share torch's exporting flag. A thread without an active dispatch mode is not the exporting thread, so it still calls the
    library's kernels.
    """
    if torch.compiler.is_dynamo_compiling():
        return is_exporting_in_dynamo()
    return not dispatch_is_plain() and (_this_thread.exporting or torch.compiler.is_exporting())
