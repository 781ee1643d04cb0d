"""What the library compiles with."""

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
    from a2c_compiled.update.cpu_fusion_pass import (
        Float32OnCpu,  # inductor takes seconds to import, which are for those who compile
    )

    options: Dict[str, Any] = {"post_grad_custom_post_pass": Float32OnCpu()}
    if cuda_graph:
        options["triton.cudagraphs"] = True
    return options


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
