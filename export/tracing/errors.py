"""The error of a failed export."""

from typing import Optional


class ExportError(RuntimeError):
    """A module cannot be exported. The message names the operation, its place in the module and a remedy.

    Attributes:
        operation: torch's name of the operation that cannot be exported, such as ``aten.cumsum``; None if the operation is unknown.
    """

    def __init__(self, message: str, operation: Optional[str] = None) -> None:
        super().__init__(message)
        self.operation = operation
