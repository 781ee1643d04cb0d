"""The error of a failed export."""

from typing import Optional


class ExportError(RuntimeError):
    """A module cannot be exported. The message names the operation, its place in the module and a remedy.

    Attributes:
        operation: the operation that cannot be exported, as torch names it (``aten.cumsum``); None if it is not known.
    """

    def __init__(self, message: str, operation: Optional[str] = None) -> None:
        super().__init__(message)
        self.operation = operation
