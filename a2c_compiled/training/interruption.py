"""Handling of SIGTERM, SIGHUP and Ctrl-C: training ends after it has saved a checkpoint."""

import contextlib
import signal
import socket
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Dict, Iterator, List, Optional


class StopRequest:
    """A request to end training: true as a bool once a signal has arrived.

    Attributes:
        received: name of the last signal; None if no signal has arrived.
    """

    received: Optional[str] = None
    _signals: Optional[socket.socket] = None
    _sent: Optional[str] = None

    def __bool__(self) -> bool:
        return self.received is not None

    def sent(self) -> Optional[str]:
        """Returns the name of the last signal, also while the main thread is inside a function of C++ and cannot handle it.

        For a thread other than the main one.
        """
        with contextlib.suppress(OSError):  # there is no signal to read
            for number in self._signals.recv(100) if self._signals is not None else b"":
                if number in _numbers():
                    self._sent = signal.Signals(number).name
        return self.received or self._sent


def _numbers() -> List[signal.Signals]:
    """Returns the signals that end training. Windows has no SIGHUP."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Makes SIGTERM, SIGHUP and Ctrl-C within the block set a :class:`StopRequest` instead of ending the process.

    After the first signal, Ctrl-C raises KeyboardInterrupt. A signal that the process ignores stays ignored, as SIGHUP under nohup. In
    threads other than the main one, signal handling is unchanged.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def request_stop(number: int, frame: Optional[FrameType]) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.received = signal.Signals(number).name

    before: Dict[signal.Signals, Any] = {
        number: signal.signal(number, request_stop) for number in _numbers() if signal.getsignal(number) is not signal.SIG_IGN
    }
    request._signals, written = socket.socketpair()
    with request._signals, written:
        for end in (request._signals, written):
            end.setblocking(False)
        fd_before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        try:
            yield request
        finally:
            signal.set_wakeup_fd(fd_before)
            for number, handler in before.items():
                signal.signal(number, handler)
