"""Every private name of torch that this library uses, each with what serves where a version of torch lacks it.

A name is looked up once: at import where the code that needs it is hot or traced by torch.compile, else at its first use. Where it is
missing, the import still succeeds; the first use warns once and takes a slower way.
"""

import functools
import pkgutil
import threading
import warnings
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Set, Tuple, Type, Union
from unittest import mock

import torch
from torch import SymInt, Tensor, nn
from torch.autograd import forward_ad


@functools.cache
def _found(path: str) -> Any:
    """What a dotted name leads to, None where this version of torch has no such name."""
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


@functools.cache
def _warn_once(name: str, consequence: str) -> None:
    warnings.warn(f"a2c_compiled: torch {torch.__version__} has no {name}; {consequence}", RuntimeWarning, stacklevel=3)


# -- The dispatcher --

_included_set = _found("torch._C._dispatch_tls_local_include_set")


def _usual() -> Set[int]:
    """What is included where nothing is at work, outside and inside inference mode."""
    found = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.add(_included_set().raw_repr())
    return found


try:
    _USUAL = _usual()
    forward_ad._current_level  # noqa: B018 - whether it exists
except (AttributeError, TypeError):
    _USUAL = None  # type: ignore[assignment]


def nothing_watches() -> bool:
    """Whether an operator that is called now goes straight to its kernel: no mode, function transform or trace sees it, and no
    forward-mode derivative is taken.

    Where torch does not tell, the answer is no, and every call takes the way through the dispatcher. Not for code that torch.compile
    traces.
    """
    if _USUAL is None:
        _warn_once("_C._dispatch_tls_local_include_set", "small scans take the way through the dispatcher, slower")
        return False
    return forward_ad._current_level < 0 and _included_set().raw_repr() in _USUAL


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative is taken. Where torch does not tell: yes, since what serves that serves everything."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of ``module`` runs hooks. Where torch does not tell: yes."""
    try:
        own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        return bool(own) or nn.modules.module._has_any_global_hook()
    except AttributeError:
        return True


# -- Operators --


def _gamma_of_distributions(concentration: Tensor) -> Tensor:
    return torch.distributions.Gamma(concentration, torch.ones_like(concentration), validate_args=False).rsample()


standard_gamma: Callable[[Tensor], Tensor] = _found("torch._standard_gamma") or _gamma_of_distributions
"""Gamma variates of scale 1, differentiable in the concentration; by way of torch.distributions where torch lacks the operator."""

onednn_product: Optional[Callable[..., Tensor]] = (
    _found("torch.ops.mkldnn._linear_pointwise") if torch.backends.mkldnn.is_available() else None
)
"""oneDNN's product with a bias and an activation; without it products are left to torch."""

while_loop: Optional[Callable[..., Tuple[Tensor, ...]]] = _found("torch._higher_order_ops.while_loop.while_loop_op")
"""The operator of a loop in a graph. Without it a loop is unrolled to the most rounds that it may take."""

_scan, _scan_op = _found("torch._higher_order_ops.scan.scan"), _found("torch._higher_order_ops.scan.scan_op")


def scan_operator() -> Optional[Tuple[Callable[..., Any], Dict[str, Any]]]:
    """The operator that scans over steps in a graph, and the options with which torch.compile keeps it on disk.

    Without it a rollout is compiled step by step, which takes time for each.
    """
    if _scan is None or _scan_op is None:
        _warn_once("_higher_order_ops.scan", "a compiled rollout repeats its step in the graph, slower to compile")
        return None
    # A scan is as good to keep on disk as what it is compiled to; torch asks to be told so.
    cached = {f"{_scan_op.__module__}.{_scan_op.__name__}": str(torch.__version__)}
    return _scan, {"unsafe_marked_cacheable_functions": cached}


def associative_scan() -> Optional[Callable[..., Any]]:
    """torch's own associative scan, which benchmarks compare with; None without it."""
    return _found("torch._higher_order_ops.associative_scan.associative_scan")


def sum_over_processes(tensor: Tensor, group: Any) -> Tensor:
    """``tensor`` summed over a group of processes, given or by name, in a graph or out of one; by ``torch.distributed.all_reduce``
    where torch lacks what traces.

    Raises:
        RuntimeError: torch lacks it, and the name is not the default group's.
    """
    try:
        from torch.distributed import _functional_collectives as collectives
    except ImportError:
        world = torch.distributed.group.WORLD
        if isinstance(group, str) and (world is None or world.group_name != group):
            raise RuntimeError(f"process_group: expected the default group with this version of torch, got {group}") from None
        total = tensor.clone()
        torch.distributed.all_reduce(total, group=world if isinstance(group, str) else group)
        return total
    return collectives.wait_tensor(collectives.all_reduce(tensor, "sum", group))


# -- torch.compile --


def _dynamo_setting(name: str, value: Any, consequence: str) -> ContextManager[Any]:
    patch = _found("torch._dynamo.config.patch")
    if patch is None or _found(f"torch._dynamo.config.{name}") is None:
        _warn_once(f"_dynamo.config.{name}", consequence)
        return nullcontext()
    return patch(**{name: value})


def traced_gradients() -> ContextManager[Any]:
    """A block in which torch.compile traces torch.autograd.grad. It may be entered again and again.

    Where torch has no such setting, it is the rule or never possible.
    """
    return _dynamo_setting("trace_autograd_ops", True, "a training step may not compile; compile=False runs it eagerly")


def many_recompilations(limit: int) -> ContextManager[Any]:
    """A block in which torch.compile keeps so many graphs of one function; torch's own number where that cannot be set."""
    return _dynamo_setting("recompile_limit", limit, "functions that are compiled often run eagerly")


def _all_of(paths: Dict[str, str], error: Type[Exception], consequence: str = "") -> Any:
    found = {name: _found(path) for name, path in paths.items()}
    for name, part in found.items():
        if part is None:
            raise error(f"torch {torch.__version__} has no {paths[name]}{consequence}")
    return SimpleNamespace(**found)


_INDUCTOR = {
    "CustomGraphPass": "torch._inductor.custom_graph_pass.CustomGraphPass",
    "get_hash_for_files": "torch._inductor.custom_graph_pass.get_hash_for_files",
    "CallFunction": "torch._inductor.pattern_matcher.CallFunction",
    "KeywordArg": "torch._inductor.pattern_matcher.KeywordArg",
    "PatternMatcherPass": "torch._inductor.pattern_matcher.PatternMatcherPass",
    "register_graph_pattern": "torch._inductor.pattern_matcher.register_graph_pattern",
}


@functools.cache
def inductor_patterns() -> Any:
    """What a pass over inductor's graphs is made of, by name; it takes seconds to import.

    Raises:
        ImportError: this torch lacks a part of it. The pass is optional: what it replaces is computed as torch does.
    """
    return _all_of(_INDUCTOR, ImportError)


def size_hint(size: Union[int, SymInt]) -> int:
    """A size, or where it varies the example's; 0 where there is none, or torch does not tell."""
    return size if isinstance(size, int) else int(getattr(size.node, "hint", None) or 0)


def is_fixed(size: SymInt) -> bool:
    """Whether a size that was to vary has become a constant. Where torch does not tell: no."""
    ask = getattr(size.node, "maybe_as_int", None)
    return ask is not None and ask() is not None


# -- torch.export --


@functools.cache
def tracing_lock() -> Any:
    """The lock under which torch makes graphs, for it does so for one thread at a time: Dynamo's own, so that nothing is compiled in one
    thread while another exports. A lock of this library where torch has none: then exports alone wait for each other.
    """
    lock = _found("torch._dynamo.convert_frame.compile_lock")
    if lock is None:
        _warn_once("_dynamo.convert_frame.compile_lock", "compiling and exporting at once in two threads may fail")
    return lock or threading.RLock()


class _InThisThread(threading.local):
    """What torch's flag for "exporting" is while this library exports: up in the thread that does, down in every other."""

    depth = 0

    def __bool__(self) -> bool:
        return self.depth > 0


_exports_here = _InThisThread()


@contextmanager
def as_torch_exports() -> Iterator[None]:
    """A block in which torch's own layers are traced as ``torch.export`` traces them. Under :func:`tracing_lock` alone.

    As torch's own context, but that no other thread takes itself to export: compiled functions that it calls would annotate the graph.
    """
    flags = torch.compiler.__dict__
    before: Dict[str, Any] = {name: flags[name] for name in ("_is_compiling_flag", "_is_exporting_flag") if name in flags}
    flags.update({name: True if name == "_is_compiling_flag" else _exports_here for name in before})
    _exports_here.depth += 1
    try:
        yield
    finally:
        _exports_here.depth -= 1
        flags.update(before)


def exports_in_one_thread() -> ContextManager[Any]:
    """A block in which ``torch.export`` raises its flag in the threads that export alone. Under :func:`tracing_lock` alone.

    Where torch has changed, the flag is up in all of them.
    """
    if _found("torch.export._trace._compiling_state_context") is None or not hasattr(torch.compiler, "_is_exporting_flag"):
        _warn_once(
            "export._trace._compiling_state_context", "while one thread exports, do not call compiled functions in others"
        )
        return nullcontext()
    return mock.patch("torch.export._trace._compiling_state_context", as_torch_exports)


_TRACING = {
    "FakeTensorMode": "torch._subclasses.fake_tensor.FakeTensorMode",
    "make_fx": "torch.fx.experimental.proxy_tensor.make_fx",
    "DimDynamic": "torch.fx.experimental.symbolic_shapes.DimDynamic",
    "ShapeEnv": "torch.fx.experimental.symbolic_shapes.ShapeEnv",
    "StatelessSymbolicContext": "torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext",
}


@functools.cache
def symbolic_tracing() -> Any:
    """What a function is traced with for any size of its inputs' dimensions, by name.

    Raises:
        RuntimeError: this torch lacks a part of it; there is no other way.
    """
    return _all_of(_TRACING, RuntimeError, ", without which no training step is exported")


@functools.cache
def decompositions() -> Dict[Any, Callable[..., Any]]:
    """Operations in terms of others, by operation: all that torch knows, or those of ``torch.export`` alone."""
    table = _found("torch._decomp.decomposition_table")
    if table is None:
        _warn_once("_decomp.decomposition_table", "fewer operations can be exported with their gradients")
    return dict(torch.export.default_decompositions() if table is None else table)


def check(condition: Any) -> None:
    """Tell a trace that a condition on sizes holds. Where torch takes no such word, the branch tells it."""
    tell = getattr(torch, "_check", None)
    if tell is not None:
        tell(condition)
    elif not condition:
        raise RuntimeError("expected a condition on sizes to hold, which it does not")


OPERATOR = type(torch.ops.aten.add.Tensor)
"""The class of an operation in a graph."""


def aliases(operation: Any) -> List[Tuple[str, Optional[bool]]]:
    """The arguments of an operation, and of each whether it is written into; None where its memory is not shared with a result.

    Where torch shows no schema, the first argument is written into by operations whose name ends in an underscore.
    """
    schema = getattr(operation, "_schema", None)
    if schema is None:
        _warn_once("_ops.OpOverload._schema", "what is written into is guessed from names")
        written = str(operation).split(".")[1].endswith("_")
        return [("self", True)] if written else []
    return [(one.name, one.alias_info and one.alias_info.is_write) for one in schema.arguments]


def dispatch_mode() -> type:
    """The base class of what sees every operation; without it ``object``, which sees none, and errors do not say where they arose."""
    return _found("torch.utils._python_dispatch.TorchDispatchMode") or object


def ahead_of_time() -> Tuple[Callable[..., Any], Callable[..., Any]]:
    """AOTInductor: what compiles a program into a package, and what loads it.

    Raises:
        RuntimeError: this torch has none; a ``.pt2`` file does the same, compiled or not where it runs.
    """
    compile_, load = _found("torch._inductor.aoti_compile_and_package"), _found("torch._inductor.aoti_load_package")
    if compile_ is None or load is None:
        raise RuntimeError(f"torch {torch.__version__} has no AOTInductor; use a .pt2 file")
    return compile_, load
