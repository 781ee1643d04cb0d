"""Ending when asked to, at a point where all is saved."""

import signal
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Dict, Iterator, Optional


class StopRequest:
    """Whether somebody wants training to end: ``received`` is the signal's name, None before one came."""

    received: Optional[str] = None

    def __bool__(self) -> bool:
        return self.received is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block SIGTERM and Ctrl-C only ask; a second Ctrl-C interrupts as ever.

    Signals reach the main thread alone; in others nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: Optional[FrameType]) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.received = signal.Signals(number).name

    before: Dict[signal.Signals, Any] = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
