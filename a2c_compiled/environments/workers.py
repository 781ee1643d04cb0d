"""The worker processes of gymnasium's asynchronous environments: signals, workers that end, and how all are ended."""

import multiprocessing.connection
import signal
import threading
from contextlib import contextmanager
from traceback import clear_frames
from typing import Iterator

from gymnasium.vector import AsyncVectorEnv, VectorEnv

from a2c_compiled.environments.gymnasium_internals import forget_pending_call

_SECONDS_TO_END = 1.0
"""The system closes the pipe of a worker before its exit status is known. This is the longest time between the two."""


@contextmanager
def deferring_ctrl_c() -> Iterator[None]:
    """Context at whose end Ctrl-C (SIGINT) takes effect. Forked processes that start within it ignore the signal.

    In a thread other than the main one, this context does nothing, because Python sets signal handlers only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


def ignore_ctrl_c() -> None:
    """Makes this process, a worker, ignore SIGINT.

    A terminal sends Ctrl-C to all processes. Only the main process should handle the signal, because it closes the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Context in which asynchronous environments are made. Ctrl-C takes effect when they are.

    Raises:
        RuntimeError: a worker ended before it had made its environment.
    """
    with deferring_ctrl_c():
        try:
            yield
        except (EOFError, ConnectionError) as error:  # of a pipe to a worker
            _forget_message(error)
            raise RuntimeError(
                "env: expected every worker process to make its environment, got one that ended; its own error is above"
            ) from error


@contextmanager
def calling(envs: VectorEnv) -> Iterator[None]:
    """Context for a call of ``envs``, of which :func:`starting_workers` has started the workers, if there are any.

    If Ctrl-C interrupts the call, the workers are terminated: a worker may still compute, and ``close()`` would wait for it.

    Raises:
        RuntimeError: a worker has ended, for example because the system had too little memory; the message names it.
    """
    workers = envs.unwrapped
    if not isinstance(workers, AsyncVectorEnv):
        yield
        return
    try:
        yield
    except (EOFError, OSError) as error:  # of a pipe to a worker, or of an environment
        ended = _ended_workers(workers)
        if not ended:
            raise
        _terminate(workers)
        _forget_message(error)
        raise RuntimeError(f"env: expected every worker process to run, got {ended}") from error
    except (KeyboardInterrupt, SystemExit) as error:
        _terminate(workers)
        _forget_message(error)
        raise


def _ended_workers(envs: AsyncVectorEnv) -> str:
    """Returns the numbers and exit statuses of the workers that have ended, as text; an empty text if all run.

    A worker whose environment raised an error also ends, but is left out: gymnasium has raised that error here and closed the pipe.
    """
    at_the_end = multiprocessing.connection.wait([process.sentinel for process in envs.processes], _SECONDS_TO_END)
    for process in envs.processes:
        if process.sentinel in at_the_end:
            process.join(_SECONDS_TO_END)
    return ", ".join(
        f"worker {i} with exit status {process.exitcode}"
        for i, (process, pipe) in enumerate(zip(envs.processes, envs.parent_pipes, strict=True))
        if pipe is not None and process.exitcode is not None
    )


def _forget_message(error: BaseException) -> None:
    """Frees the variables of the calls that raised ``error``, among them the message that could not be sent to a worker.

    The message is a view of an ``io.BytesIO``. When the garbage collector frees both, Python may free the BytesIO first: Python 3.13
    reports this, and 3.12.1 ends in a segmentation fault (CPython issue 111331).
    """
    clear_frames(error.__traceback__)


def _terminate(envs: AsyncVectorEnv) -> None:
    """Ends the workers without waiting for their answers, and closes ``envs``."""
    forget_pending_call(envs)
    with deferring_ctrl_c():
        envs.close(terminate=True)
