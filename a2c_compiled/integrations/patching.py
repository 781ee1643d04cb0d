"""Functions of another library replaced by faster ones, and put back."""

from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

Place = Tuple[Any, str]


class Acceleration:
    """A request for acceleration, and what it came to. As a context manager, it is taken back at the end of the block.

    Attributes:
        calls: how many calls this library has served.
        fallbacks: by reason, how many it has left to the functions that it stands in for.
    """

    def __init__(self, replacement: "Replacement") -> None:
        self.calls = 0
        self.fallbacks: Dict[str, int] = {}
        self._replacement = replacement

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._replacement.end(self)

    def __repr__(self) -> str:
        return f"Acceleration(calls={self.calls}, fallbacks={self.fallbacks})"


class Replacement:
    """Attributes of classes or modules that hold other functions as long as any request for them is open.

    Args:
        functions: by class or module and attribute, what makes the replacement of the function that is there.
    """

    def __init__(self, functions: Dict[Place, Callable[[Any], Any]]) -> None:
        self._functions = functions
        self._originals: Dict[Place, Any] = {}
        self._open: List[Acceleration] = []

    def begin(self) -> Acceleration:
        """A new request; the first one puts the replacements in place."""
        if not self._open:
            self._originals = {(owner, name): getattr(owner, name) for owner, name in self._functions}
            for (owner, name), make in self._functions.items():
                setattr(owner, name, make(self._originals[owner, name]))
        self._open.append(Acceleration(self))
        return self._open[-1]

    def end(self, acceleration: Acceleration) -> None:
        """Close one request; the last one puts back what was there. One that is closed already changes nothing."""
        if acceleration in self._open:
            self._open.remove(acceleration)
            if not self._open:
                self._put_back()

    def end_all(self) -> None:
        """Close every request."""
        if self._open:
            self._open.clear()
            self._put_back()

    def count(self, reason: Optional[str]) -> None:
        """A call was served, or for ``reason`` left to the original."""
        for acceleration in self._open:
            if reason is None:
                acceleration.calls += 1
            else:
                acceleration.fallbacks[reason] = acceleration.fallbacks.get(reason, 0) + 1

    def _put_back(self) -> None:
        for (owner, name), original in self._originals.items():
            setattr(owner, name, original)
