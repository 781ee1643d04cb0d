"""Replaces functions of another library while accelerations are active, and restores them afterwards."""

from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

Place = Tuple[Any, str]
"""A class or module, and the name of its attribute."""


class Acceleration:
    """An acceleration and its counters. As a context manager, the acceleration ends at the end of the ``with`` block.

    Attributes:
        calls: number of calls that this library computed.
        fallbacks: by reason, number of calls that the original function computed instead.
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
    """Replaces attributes of classes or modules while at least one acceleration is active.

    Args:
        functions: by class or module and attribute name, a function that takes the original attribute and returns its replacement.
    """

    def __init__(self, functions: Dict[Place, Callable[[Any], Any]]) -> None:
        self._functions = functions
        self._originals: Dict[Place, Any] = {}
        self._active: List[Acceleration] = []

    def begin(self) -> Acceleration:
        """Starts an acceleration. The first acceleration replaces the attributes."""
        if not self._active:
            self._originals = {(owner, name): getattr(owner, name) for owner, name in self._functions}
            for (owner, name), make in self._functions.items():
                setattr(owner, name, make(self._originals[owner, name]))
        self._active.append(Acceleration(self))
        return self._active[-1]

    def end(self, acceleration: Acceleration) -> None:
        """Ends one acceleration. The end of the last one restores the attributes. Does nothing if the acceleration has already ended."""
        if acceleration in self._active:
            self._active.remove(acceleration)
            if not self._active:
                self._restore_attributes()

    def end_all(self) -> None:
        """Ends every acceleration and restores the attributes."""
        if self._active:
            self._active.clear()
            self._restore_attributes()

    def count(self, reason: Optional[str]) -> None:
        """Counts a call in every active acceleration: as a fallback for ``reason``, or if ``reason`` is None, as a call of this library."""
        for acceleration in self._active:
            if reason is None:
                acceleration.calls += 1
            else:
                acceleration.fallbacks[reason] = acceleration.fallbacks.get(reason, 0) + 1

    def _restore_attributes(self) -> None:
        """Sets every replaced attribute to its original value."""
        for (owner, name), original in self._originals.items():
            setattr(owner, name, original)
