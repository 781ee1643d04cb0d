"""Launches of a compiled Triton kernel that skip Triton's analysis of the arguments.

``triton.compiler.CompiledKernel`` is the only private class of Triton that this library uses.
"""

import functools
import warnings
from typing import Any, Callable, Optional, Protocol, Tuple

try:
    from triton.compiler import CompiledKernel  # type: ignore[import-untyped]
except ImportError:
    CompiledKernel = None


class Launcher(Protocol):
    """A compiled kernel: ``launcher[grid](*arguments)`` launches it with all arguments of the kernel, in order."""

    def __getitem__(self, grid: Tuple[int, int, int]) -> Callable[..., None]: ...


def launcher_from(launched: Any) -> Optional[Launcher]:
    """Returns the launcher for the next launches, from the return value of the first launch.

    Returns None in Triton's interpreter, which compiles nothing. Also returns None, with one warning per process, in versions of Triton
    whose launches return another type. Every launch then goes through Triton's slower analysis of the arguments.
    """
    if launched is None:
        return None
    if CompiledKernel is not None and isinstance(launched, CompiledKernel) and hasattr(launched, "__getitem__"):
        return launched
    _warn_once()
    return None


@functools.cache
def _warn_once() -> None:
    """Warns, once per process, that launches are slower."""
    warnings.warn(
        "a2c_compiled: expected a launch to return triton.compiler.CompiledKernel, got another type in this version of Triton;"
        " launches are slower",
        RuntimeWarning,
        stacklevel=4,
    )
