"""Handling of SIGTERM, SIGHUP and Ctrl-C: training ends after it has saved a checkpoint."""

import signal
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Dict, Iterator, Optional


class StopRequest:
    """A request to end training: true as a bool once a signal has arrived.

    Attributes:
        received: name of the last signal; None if no signal has arrived.
    """

    received: Optional[str] = None

    def __bool__(self) -> bool:
        return self.received is not None


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

    numbers = [
        getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)
    ]  # Windows has no SIGHUP
    before: Dict[signal.Signals, Any] = {
        number: signal.signal(number, request_stop) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
