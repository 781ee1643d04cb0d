"""What cannot be exported, and why."""

from typing import Optional


class ExportError(RuntimeError):
    """A module cannot be exported; the message names the operation, where it stands and what to do.

    Attributes:
        operation: the one that stands in the way, where it is known, as torch names it (``aten.cumsum``).
    """

    def __init__(self, message: str, operation: Optional[str] = None) -> None:
        super().__init__(message)
        self.operation = operation
