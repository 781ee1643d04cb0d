"""Compiled functions, and the options that the library passes to torch.compile."""

import functools
import itertools
import warnings
from types import FunctionType
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch

from a2c_compiled._torch_internals import (
    CompiledGraph,
    compile_with_inductor,
    compiled_graphs,
    ignore_warnings_of_contexts,
    may_call_graphs,
    needed_guards,
    tracing_settings,
    with_variable_sizes,
)
from a2c_compiled.update.eager_errors import eager_error
from a2c_compiled.update.rollout import Rollout, mapped

_COPIES = itertools.count()  # numbers the functions that `compiled` has copied


def compile_options(cuda_graph: bool = False) -> Dict[str, Any]:
    """Returns options for ``torch.compile`` that make compiled training faster on a CPU.

    >>> fast_loss = torch.compile(loss, options=a2c_compiled.compile_options())

    The options add a pass to inductor. The pass changes operations on a CPU and nothing else:

    - Activations between linear layers are computed and stored once, as matrices, and not once for each shape in which they are used.
    - Large float32 matrix products run in oneDNN. oneDNN uses the full vector width of the processor; MKL may not.
    - The gradient of a float32 weight with fewer inputs than outputs is computed as the transpose of a product. MKL takes up to ten times
      as long for a product with 2 to 8 columns.
    - Sums over the rows of large float32 matrices, such as the gradients of biases, run in ATen, which reads the matrix once.
    - ``tanh`` of float32 is a rational function. The error is at most 6.1 units in the last place.

    If this version of torch cannot load the pass, the function issues a RuntimeWarning and returns the options without the pass.

    Args:
        cuda_graph: whether to run the kernels on a CUDA device as one CUDA graph, as ``mode="reduce-overhead"`` does.

    Returns:
        A new dict for the argument ``options`` of ``torch.compile``.
    """
    ignore_warnings_of_contexts()
    options = dict(_own_pass(own_operators=True))
    if cuda_graph:
        options["triton.cudagraphs"] = True
    return options


def portable_options() -> Dict[str, Any]:
    """Returns the options of :func:`compile_options` for code that runs without this library."""
    return dict(_own_pass(own_operators=False))


@functools.cache
def _own_pass(own_operators: bool) -> Dict[str, Any]:
    """Returns the option that adds the inductor pass, or no option if this version of torch does not support the pass."""
    try:
        # Imported here because inductor takes seconds to import, and only callers that compile need it.
        from a2c_compiled.update.cpu_fusion_pass import Float32OnCpu
    except Exception as error:  # a changed inductor may raise any type of error
        warnings.warn(
            f"a2c_compiled: cannot load the inductor pass for CPUs; compiled code is slower on a CPU ({error})",
            RuntimeWarning,
            stacklevel=3,
        )
        return {}
    return {"post_grad_custom_post_pass": Float32OnCpu(own_operators)}


def compiled(
    function: Callable[..., Any],
    dynamic: Optional[bool] = None,
    cuda_graph: bool = False,
    eager: Optional[Callable[..., Any]] = None,
    rollout_dims: Optional[Sequence[int]] = None,
    **options: Any,
) -> Callable[..., Any]:
    """Compiles a copy of ``function`` as one graph (``fullgraph=True``), with :func:`compile_options` and ``options``.

    If a call fails, it raises the error that ``eager``, by default ``function``, raises for the same arguments, see
    :func:`~a2c_compiled.update.eager_errors.eager_error`.

    Torch stores compiled graphs by code object. A call searches all graphs of the called code object, and torch limits their number.
    The copy has a new code object, so that any number of training steps and policies can be compiled in one process. Torch remembers the
    shapes of earlier calls by the name of the code object, and compiles for all shapes what differs from them: this is slower. The name is
    new, too, so that the first shape of each copy is compiled for itself.

    ``rollout_dims`` are dimensions of the tensors in the last argument, a rollout. The second size of one of them is compiled for all sizes
    of all of them. Without it, torch compiles again when another dimension changes.

    A call first looks for a graph that fits, because torch.compile's own way to a graph takes up to 0.1 ms.
    """
    settings = {**compile_options(cuda_graph), **options}
    backend = "inductor" if cuda_graph else functools.partial(compile_with_inductor, options=settings)
    tracing = tracing_settings()  # created once, because creating it takes longer than entering it
    copies: List[FunctionType] = []
    graphs: List[CompiledGraph] = []

    def compiled_copy() -> Callable[..., Any]:
        assert isinstance(function, FunctionType)
        code = function.__code__.replace(co_name=f"{function.__name__}_{next(_COPIES)}")
        copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
        copies.append(copy)
        own = {"guard_filter_fn": needed_guards, **(settings if cuda_graph else {})}
        return torch.compile(copy, dynamic=dynamic, fullgraph=True, backend=backend, options=own)

    run = compiled_copy()
    if rollout_dims is not None and dynamic is None:
        run = _BySizes(run, compiled_copy(), rollout_dims)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return run(*arguments)
        try:
            if graphs and may_call_graphs():
                for graph in graphs:
                    if graph.accepts(arguments):
                        return graph.run(*arguments)
            with tracing:
                result = run(*arguments)
            if not cuda_graph:  # torch numbers the calls of CUDA graphs
                graphs[:] = [graph for copy in copies for graph in compiled_graphs(copy, backend)]
            return result
        except RuntimeError as error:  # errors of torch.compile are of this class
            failure = error
        # Outside of the except block, so that the error does not show that of torch.compile as its context.
        raise eager_error(function if eager is None else eager, arguments, failure) or failure

    return call


class _BySizes:
    """A compiled function whose last argument is a rollout, once for the sizes of the first rollout and once for all sizes.

    Code for constant sizes is faster, so the first sizes keep their graph.
    """

    def __init__(self, first: Callable[..., Any], others: Callable[..., Any], dims: Sequence[int]) -> None:
        self._run_first, self._run_others = first, others
        self._variable = functools.partial(with_variable_sizes, dims=dims)
        self._first: Optional[torch.Size] = None

    def __call__(self, *arguments: Any) -> Any:
        *others, rollout = arguments
        sizes = rollout.reward.shape
        self._first = self._first or sizes
        if sizes == self._first:
            return self._run_first(*arguments)
        return self._run_others(*others, Rollout(*(mapped(self._variable, entry) for entry in rollout)))
