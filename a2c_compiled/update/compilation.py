"""What the library compiles with."""

import functools
import warnings
from types import FunctionType
from typing import Any, Callable, Dict, Optional

import torch


def compile_options(cuda_graph: bool = False) -> Dict[str, Any]:
    """Options that make compiled training faster: ``torch.compile(loss, options=a2c_compiled.compile_options())``.

    On a CPU, large float32 products go to oneDNN, which uses all of the processor's vector width where MKL may not, and float32 ``tanh``
    is computed from ``exp``, right to 2 units in the last place. Other dtypes and devices are compiled as they are without.

    Args:
        cuda_graph: launch what runs on a CUDA device at once, as ``mode="reduce-overhead"`` does.
    """
    options = dict(_own_pass())
    if cuda_graph:
        options["triton.cudagraphs"] = True
    return options


@functools.cache
def _own_pass() -> Dict[str, Any]:
    """The pass over inductor's graphs as an option; none where this version of torch has no place for it, or a changed one."""
    try:
        from a2c_compiled.update.cpu_fusion_pass import Float32OnCpu  # inductor takes seconds to import, for those who compile
    except Exception as error:  # whatever a changed inductor raises
        warnings.warn(
            f"a2c_compiled: compiled without its pass for CPUs, which is slower there ({error})", RuntimeWarning, stacklevel=3
        )
        return {}
    return {"post_grad_custom_post_pass": Float32OnCpu()}


def compiled(
    function: Callable[..., Any], dynamic: Optional[bool] = None, cuda_graph: bool = False, **options: Any
) -> Callable[..., Any]:
    """``function`` as one graph under ``torch.compile``, with :func:`compile_options` and others.

    Torch keeps graphs by code object, looks through all of them at each call, and refuses more than a few. So the function gets a code
    object of its own: many steps and policies may be compiled in one process, and none waits for another's.
    """
    assert isinstance(function, FunctionType)
    own = FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    return torch.compile(own, dynamic=dynamic, fullgraph=True, options={**compile_options(cuda_graph), **options})
