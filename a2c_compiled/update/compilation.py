"""Compiled functions, and the options that the library passes to torch.compile."""

import functools
import itertools
import warnings
from types import FunctionType
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._torch_internals import (
    CompiledGraph,
    compile_with_inductor,
    compiled_graphs,
    hooks_of_all_modules,
    ignore_warnings_of_contexts,
    may_call_graphs,
    needed_guards,
    tracing_settings,
    with_variable_sizes,
)
from a2c_compiled.update.eager_errors import eager_error
from a2c_compiled.update.rollout import Rollout, mapped
from a2c_compiled.update.saved_code import LoadedGraph, SavedGraph, saved_graph, source_digest

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


class CompiledFunction:
    """A copy of ``function``, compiled as one graph (``fullgraph=True``) with :func:`compile_options` and ``options``.

    If a call fails, it raises the error that ``eager``, by default ``function``, raises for the same arguments, see
    :func:`~a2c_compiled.update.eager_errors.eager_error`.

    Torch stores compiled graphs by code object. A call searches all graphs of the called code object, and torch limits their number.
    The copy has a new code object, so that any number of training steps and policies can be compiled in one process. Torch remembers the
    shapes of earlier calls by the name of the code object, and compiles for all shapes what differs from them: this is slower. The name is
    new, too, so that the first shape of each copy is compiled for itself.

    ``rollout_dims`` are dimensions of the tensors in the last argument, a rollout. The second size of one of them is compiled for all sizes
    of all of them. Without it, torch compiles again when another dimension changes. Code for constant sizes is faster, so the first sizes
    keep their graph, in a copy of its own.

    While there are hooks for all modules, calls run in eager mode.

    A call first looks for a graph that fits, because torch.compile's own way to a graph takes up to 0.1 ms.

    With ``keep_examples``, :meth:`saved_graphs` can save the graphs. The first argument of each call is then the same module.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        dynamic: Optional[bool] = None,
        cuda_graph: bool = False,
        eager: Optional[Callable[..., Any]] = None,
        rollout_dims: Optional[Sequence[int]] = None,
        keep_examples: bool = False,
        **options: Any,
    ) -> None:
        self._eager = function if eager is None else eager
        self._cuda_graph = cuda_graph
        settings = {**compile_options(cuda_graph), **options}
        self._backend: Any = "inductor" if cuda_graph else functools.partial(compile_with_inductor, options=settings)
        options = settings if cuda_graph else {}

        def compile_copy(copy: FunctionType, guards: Callable[..., Any], backend: Any) -> Any:
            own = {"guard_filter_fn": guards, **options}
            return torch.compile(copy, dynamic=dynamic, fullgraph=True, backend=backend, options=own)

        self._compile = compile_copy
        self._variable: Optional[Callable[[Tensor], Tensor]] = None
        if rollout_dims is not None and dynamic is None:
            self._variable = functools.partial(with_variable_sizes, dims=rollout_dims)
        self._copies = [_copy(function) for _ in range(1 if self._variable is None else 2)]
        self._runs = [compile_copy(copy, needed_guards, self._backend) for copy in self._copies]
        self._first_sizes: Optional[torch.Size] = None
        self._tracing = tracing_settings()  # created once, because creating it takes longer than entering it
        self._graphs: List[CompiledGraph] = []
        self._loaded: List[LoadedGraph] = []
        self._keep_examples = keep_examples
        if keep_examples:
            source_digest()
        self._examples: List[_Example] = []  # the first call of each graph

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            index, chosen = self._choice(arguments)
            return self._runs[index](*chosen)
        if hooks_of_all_modules():  # torch does not notice when they are added or removed
            return self._eager(*arguments)
        try:
            if (self._loaded or self._graphs) and may_call_graphs():
                for graph in itertools.chain(self._loaded, self._graphs):
                    if graph.accepts(arguments):
                        return graph.run(*arguments)
                if self._loaded:
                    self._warn_of_refusal(arguments)
            return self._call_through_torch(arguments)
        except RuntimeError as error:  # errors of torch.compile are of this class
            failure = error
        # Outside of the except block, so that the error does not show that of torch.compile as its context.
        raise eager_error(self._eager, arguments, failure) or failure

    def _call_through_torch(self, arguments: Sequence[Any]) -> Any:
        """Calls the function that torch.compile has returned, which may compile, and looks up the graphs."""
        index, arguments = self._choice(arguments)
        with self._tracing:
            result = self._runs[index](*arguments)
        if not self._cuda_graph:  # torch numbers the calls of CUDA graphs
            before = [graph.guards for graph in self._graphs]
            self._graphs = [graph for copy in self._copies for graph in compiled_graphs(copy, self._backend)]
            if self._keep_examples and any(graph.guards not in before for graph in self._graphs):
                self._examples.append(_Example(arguments))
        return result

    def _warn_of_refusal(self, arguments: Sequence[Any]) -> None:
        """Says why a call is compiled although there are loaded graphs."""
        reason = self._loaded[0].refusal(arguments)
        message = (
            f"a2c_compiled: no loaded code fits this call, which is compiled. Torch's reason for the first graph: {reason}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=7)  # the caller of the module

    def _choice(self, arguments: Sequence[Any]) -> Tuple[int, Sequence[Any]]:
        """Returns the index of the copy to call, and its arguments."""
        if self._variable is None:
            return 0, arguments
        *others, rollout = arguments
        if self._first_sizes is None:
            self._first_sizes = rollout.reward.shape
        if rollout.reward.shape == self._first_sizes:
            return 0, arguments
        return 1, (*others, Rollout(*(mapped(self._variable, entry) for entry in rollout)))

    @property
    def has_graphs(self) -> bool:
        """Whether :meth:`saved_graphs` returns any graph."""
        return bool(self._loaded or self._examples)

    def saved_graphs(self, owner: nn.Module) -> List[SavedGraph]:
        """Compiles graphs that can be saved, for the arguments of each call that has compiled one.

        Args:
            owner: the first argument of each call.

        Raises:
            RuntimeError: see :func:`~a2c_compiled.update.saved_code.saved_graph`.
        """
        loaded = list(self._loaded)
        for example in self._examples:
            index, arguments = self._choice(example.arguments(owner))
            if not any(graph.accepts(arguments) for graph in loaded):
                copy = self._copies[index]
                loaded.append(saved_graph(copy, arguments, self._compile, self._backend))
        return [graph.saved for graph in loaded]

    def load_graphs(self, saved: Sequence[SavedGraph]) -> None:
        """Lets calls use saved graphs. Other sizes are then compiled for all sizes.

        Raises:
            ValueError: see :class:`~a2c_compiled.update.saved_code.LoadedGraph`.
            RuntimeError: this process cannot load the code.
        """
        self._first_sizes = self._first_sizes or torch.Size()
        present = [graph.saved for graph in self._loaded]
        try:
            self._loaded += [LoadedGraph(self._copies[0], graph) for graph in saved if graph not in present]
        except ValueError:
            raise
        except Exception as error:  # torch and the system's loader raise errors of many types
            raise RuntimeError(f"load_compiled: expected code that loads, got {type(error).__name__}: {error}") from error


class _Example:
    """The arguments of a call of which the first one is a module: the layouts of tensors without their data."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        owner, *others = arguments
        self._own = {id(tensor): name for name, tensor in _named_tensors(owner).items()}
        self._others = _with_tensors(lambda tensor: tensor if id(tensor) in self._own else _empty_like(tensor, "meta"), others)

    def arguments(self, owner: Any) -> List[Any]:
        """Returns the arguments with ``owner`` as the first one. Its own tensors are themselves; the others have no values."""
        own = _named_tensors(owner)

        def filled(tensor: Tensor) -> Tensor:
            name = self._own.get(id(tensor))
            return _empty_like(tensor, "cpu") if name is None else own[name]

        return [owner, *_with_tensors(filled, self._others)]


def _named_tensors(module: nn.Module) -> Dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _empty_like(tensor: Tensor, device: str) -> Tensor:
    return torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device, requires_grad=tensor.requires_grad
    )


def _with_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies ``function`` to the tensors in tuples, lists and dicts: once to each, so that a tensor that occurs twice stays one tensor."""
    results: Dict[int, Tensor] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in results:
                results[id(value)] = function(value)
            return results[id(value)]
        if isinstance(value, dict):
            return {key: replaced(entry) for key, entry in value.items()}
        if isinstance(value, (tuple, list)):
            entries = map(replaced, value)
            return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
        return value

    return replaced(value)


def _copy(function: Callable[..., Any]) -> FunctionType:
    """Returns a copy of ``function`` with a code object and a name of its own."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_COPIES)}")
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
