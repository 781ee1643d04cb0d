"""The one private class of Triton that is used: a compiled kernel, which is launched without another look at its arguments."""

import functools
import warnings
from typing import Any, Callable, Optional, Protocol, Tuple

try:
    from triton.compiler import CompiledKernel  # type: ignore[import-untyped]
except ImportError:
    CompiledKernel = None


class Launcher(Protocol):
    """From a grid to a call with all of a kernel's arguments."""

    def __getitem__(self, grid: Tuple[int, int, int]) -> Callable[..., None]: ...


def launcher_of(launched: Any) -> Optional[Launcher]:
    """What launches a kernel again, of what its first launch returned.

    None in Triton's interpreter, which compiles nothing, and in a version of Triton whose launches return something else: every launch
    then goes through Triton's own look at the arguments, slower.
    """
    if launched is None:
        return None
    if CompiledKernel is not None and isinstance(launched, CompiledKernel) and hasattr(launched, "__getitem__"):
        return launched
    _warn_once()
    return None


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "a2c_compiled: this version of Triton returns no kernel to launch again; launches are slower",
        RuntimeWarning,
        stacklevel=4,
    )
