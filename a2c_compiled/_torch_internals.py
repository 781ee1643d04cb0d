"""The private and unstable names of torch that this library uses, except ``_modules``, ``_parameters`` and ``_buffers`` of nn.Module.

Each docstring gives the name and what happens without it. Some names exist only in some builds of torch, for example oneDNN's operator.

Names that time-critical or traced code needs are looked up at import, the others when they are used. Importing this file never fails. If a
version of torch lacks a name, the function takes a slower path or does less, and warns once if users notice the difference. If there is
no other path, the function raises an error.
"""

import ctypes
import functools
import math
import pkgutil
import re
import threading
import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Type, Union
from unittest import mock

import torch
from torch import SymInt, Tensor, nn
from torch.autograd import forward_ad


@functools.cache
def _lookup(path: str) -> Any:
    """Returns the object with the dotted name ``path``, or None if this version of torch has no such object.

    Some of torch's modules use deprecated functions of torch while they are imported. Their warnings do not concern the user.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


@functools.cache
def _warn_once(name: str, consequence: str) -> None:
    """Warns that torch lacks ``name``. ``consequence`` says what happens instead. Equal warnings are issued once."""
    warnings.warn(f"a2c_compiled: torch {torch.__version__} has no {name}; {consequence}", RuntimeWarning, stacklevel=3)


# -- The dispatcher --

_included_keys = _lookup("torch._C._dispatch_tls_local_include_set")
_assert_async = _lookup("torch._assert_async")
_any_global_hook = _lookup("torch.nn.modules.module._has_any_global_hook")


def _read_idle_key_sets() -> Set[int]:
    """Returns two sets of included dispatch keys, each as an integer: outside of inference mode and inside.

    They are the sets of an idle thread, one in which no dispatch mode, transform or tracer is active.
    """
    key_sets = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            key_sets.add(_included_keys().raw_repr())
    return key_sets


try:
    _IDLE_KEY_SETS = _read_idle_key_sets()
    forward_ad._current_level  # noqa: B018 - raises AttributeError if the name is missing
except (AttributeError, TypeError):
    _IDLE_KEY_SETS = None  # type: ignore[assignment]


def dispatch_is_plain() -> bool:
    """Returns True if no dispatch mode, functorch transform, tracer or forward-mode derivative is active in this thread.

    An operator may then call its kernel directly, without the dispatcher. Do not call this in code that torch.compile traces.

    Names: ``torch._C._dispatch_tls_local_include_set``, the dispatch keys that this thread adds to every call (modes, transforms and
    tracers add theirs); ``torch.autograd.forward_ad._current_level``, negative outside of forward mode.
    Without one of them: False, so every call goes through the dispatcher.
    """
    if _IDLE_KEY_SETS is None:
        _warn_once(
            "_C._dispatch_tls_local_include_set or autograd.forward_ad._current_level",
            "small scans go through the dispatcher, which is slower",
        )
        return False
    return forward_ad._current_level < 0 and _included_keys().raw_repr() in _IDLE_KEY_SETS


# Dynamo of these versions takes torch.compiler.is_exporting() for True, also outside of an export. 2.12 was not tried.
_IS_EXPORTING_IS_CONSTANT = torch.__version__ < "2.13"


def is_exporting_in_dynamo() -> bool:
    """Returns ``torch.compiler.is_exporting()``, in code that torch.compile traces. Compiled code would otherwise never call a kernel.

    Name: ``torch.compiler._is_exporting_flag``, before torch 2.13 alone. Without it: False.
    """
    if _IS_EXPORTING_IS_CONSTANT:
        return bool(getattr(torch.compiler, "_is_exporting_flag", False))
    return torch.compiler.is_exporting()


def assert_in_graph(condition: Tensor, message: str) -> None:
    """Adds an assertion to the graph that torch.compile traces: a call then raises RuntimeError with ``message`` if ``condition`` is False.

    Args:
        condition: ``[]``, bool, on the CPU. On another device, a false assertion would make the device unusable for the process.
        message: the error message.

    Name: ``torch._assert_async``. Without it: no assertion.
    """
    if _assert_async is not None:
        _assert_async(condition, message)


def in_forward_mode() -> bool:
    """Returns whether a forward-mode level is open, see ``torch.autograd.forward_ad.dual_level``.

    Name: ``torch.autograd.forward_ad._current_level``. Without it: True, so callers use code that supports forward mode.
    """
    return getattr(forward_ad, "_current_level", 0) >= 0


def module_has_hooks(module: nn.Module) -> bool:
    """Returns whether a call of ``module`` runs hooks, its own or global ones.

    Names: ``_forward_hooks``, ``_forward_pre_hooks``, ``_backward_hooks`` and ``_backward_pre_hooks`` of ``nn.Module``, and
    ``torch.nn.modules.module._has_any_global_hook``. Without one of them: True, so callers treat the module as one with hooks.
    """
    try:
        own_hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        return bool(own_hooks) or nn.modules.module._has_any_global_hook()
    except AttributeError:
        return True


def hooks_of_all_modules() -> bool:
    """Returns whether there are hooks for the calls of all modules, see ``torch.nn.modules.module.register_module_forward_hook``.

    Name: ``torch.nn.modules.module._has_any_global_hook``. Without it: False, and compiled code does not notice new ones.
    """
    return _any_global_hook is not None and _any_global_hook()


def call_is_plain(module: nn.Module) -> bool:
    """Returns whether a call of ``module`` does no more than to run the ``forward`` of its class.

    That is not so with hooks, with a ``forward`` that is set on the instance, and after ``module.compile()``.

    Name: ``nn.Module._compiled_call_impl``, what ``module.compile()`` sets. Without it: a compiled module counts as plain.
    """
    return (
        "forward" not in module.__dict__
        and getattr(module, "_compiled_call_impl", None) is None
        and not module_has_hooks(module)
    )


# -- Operators --


def _gamma_from_distributions(concentration: Tensor) -> Tensor:
    return torch.distributions.Gamma(concentration, torch.ones_like(concentration), validate_args=False).rsample()


standard_gamma: Callable[[Tensor], Tensor] = _lookup("torch._standard_gamma") or _gamma_from_distributions
"""Samples gamma variables of scale 1; differentiable in the concentration.

Name: ``torch._standard_gamma``, one operator without a distribution object. Without it: ``torch.distributions.Gamma``."""

onednn_product: Optional[Callable[..., Tensor]] = (
    _lookup("torch.ops.mkldnn._linear_pointwise") if torch.backends.mkldnn.is_available() else None
)
"""oneDNN's matrix product with a bias and an activation in one operator, for the fusion pass on CPUs.

Name: ``torch.ops.mkldnn._linear_pointwise``, in builds of torch with oneDNN. Without it: None, and the pass leaves products unchanged."""


def fused_multiply_add(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Computes ``x * y + z``, in a graph of inductor: with one instruction and one rounding, if the processor has the instruction.

    Name: ``torch._inductor.inductor_prims.fma``. Without it: two instructions.
    """
    fma = _lookup("torch._inductor.inductor_prims.fma")
    return x * y + z if fma is None else fma(x, y, z)


def parallel_for() -> int:
    """Returns the address of the function that divides a loop among torch's threads, for the C++ kernels.

    Name: ``torch_parallel_for`` of ``torch/csrc/stable/c/shim.h``, in torch's library for the CPU. Without it: 0, and every scan runs in
    the thread that calls it.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        try:
            return ctypes.cast(ctypes.CDLL(str(folder / name)).torch_parallel_for, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0


while_loop: Optional[Callable[..., Tuple[Tensor, ...]]] = _lookup("torch._higher_order_ops.while_loop.while_loop_op")
"""The operator for a while loop in an exported graph.

Name: ``torch._higher_order_ops.while_loop.while_loop_op``. The public function would trace the loop with Dynamo. If a Python number, such
as the direction of a scan, differs between two loops of a process, Dynamo makes it an input of the graph, and the exported graph has no
value for this input.
Without it: None, and the caller unrolls the loop to its largest number of rounds."""

_scan, _scan_op = _lookup("torch._higher_order_ops.scan.scan"), _lookup("torch._higher_order_ops.scan.scan_op")


def scan_operator() -> Optional[Tuple[Callable[..., Any], Dict[str, Any]]]:
    """Returns the scan over steps for a compiled graph, and the options for torch.compile that let it cache this scan on disk.

    Names: ``torch._higher_order_ops.scan.scan`` and ``scan_op``, because one step is then compiled once for all steps.
    Without one of them: None, and the caller compiles every step of a rollout, which takes longer.
    """
    if _scan is None or _scan_op is None:
        _warn_once("_higher_order_ops.scan", "a compiled rollout contains every step in its graph, which compiles more slowly")
        return None
    # torch requires this mark before it caches the compiled scan on disk. The value is a part of the cache key.
    cacheable = {f"{_scan_op.__module__}.{_scan_op.__name__}": str(torch.__version__)}
    return _scan, {"unsafe_marked_cacheable_functions": cacheable}


def associative_scan() -> Optional[Callable[..., Any]]:
    """Returns torch's associative scan. The benchmarks compare this library's scan with it.

    Name: ``torch._higher_order_ops.associative_scan.associative_scan``.
    Without it: None, and the contender "associative_scan compiled" is reported as failed.
    """
    return _lookup("torch._higher_order_ops.associative_scan.associative_scan")


def all_reduce_sum(tensor: Tensor, group: Any) -> Tensor:
    """Returns the sum of ``tensor`` over a process group, without changing ``tensor``, in eager mode and in compiled graphs.

    Name: ``torch.distributed._functional_collectives``, because its operators can be traced.
    Without it: ``torch.distributed.all_reduce`` on a copy. A group given by its name must then be the default group.

    Args:
        tensor: any shape; the same shape and dtype on every rank.
        group: a process group, or its name.

    Raises:
        RuntimeError: torch lacks the module, and ``group`` is a name other than the default group's.
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


def _dynamo_setting(name: str, value: Any, consequence: str, **others: Any) -> ContextManager[Any]:
    """Returns a context that sets the option ``name`` of ``torch._dynamo.config`` to ``value``, and sets ``others`` if torch has them.

    If torch has no option ``name``: warns, and returns a context that does nothing.
    """
    patch = _lookup("torch._dynamo.config.patch")
    if patch is None or _lookup(f"torch._dynamo.config.{name}") is None:
        _warn_once(f"_dynamo.config.{name}", consequence)
        return nullcontext()
    known = {other: its for other, its in others.items() if _lookup(f"torch._dynamo.config.{other}") is not None}
    return patch(**{name: value}, **known)


def tracing_settings() -> ContextManager[Any]:
    """Returns a context for calls that torch.compile may trace. It can be entered again after it was left.

    Names: ``torch._dynamo.config.trace_autograd_ops``, because a training step computes its gradients inside the compiled function. Without
    it: versions of torch that always trace these calls still compile a training step; versions that never trace them do not.
    ``torch._dynamo.config.skip_tensor_guards_with_matching_dict_tags``: torch checks a tensor again only if the dict that holds it has
    changed, but an assignment to ``parameter.data`` changes no dict. Without it: see :func:`_no_checks_of_inputs`.
    ``torch._dynamo.config.skip_nnmodule_hook_guards``: torch would not notice hooks that are added to a module or removed after the first
    call. Without it: torch always notices them.
    """
    consequence = "a training step may fail to compile; pass compile=False to run it in eager mode"
    checked = {"skip_tensor_guards_with_matching_dict_tags": False, "skip_nnmodule_hook_guards": False}
    return _dynamo_setting("trace_autograd_ops", True, consequence, **checked)


_CPU_OPTIONS = {
    # One C++ file instead of one for each kernel and Python between them: less to compile, and calls without Python.
    "cpp_wrapper": True,
    # Inductor would compile a program for each vector instruction set that the processor has, to try it.
    "cpp.vec_isa_ok": True,
    # Compiling torch's headers in advance takes longer than one file gains by it.
    "cpp_cache_precompile_headers": False,
}


def compile_with_inductor(graph: Any, inputs: Sequence[Any], options: Dict[str, Any]) -> Callable[..., Any]:
    """Compiles a graph of Dynamo with inductor. If all inputs are on the CPU, and the graph has no loops, the code is C++ alone.

    Args:
        graph: the graph module.
        inputs: its example inputs.
        options: options of inductor.

    Names: ``torch._inductor.compile_fx.compile_fx`` and ``torch._inductor.config``; options that this version of torch lacks are left out.
    """
    # The body of a loop is a module in the graph. Inductor's C++ for loops ends in a segmentation fault.
    if len(list(graph.modules())) == 1 and all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor)):
        known = _lookup("torch._inductor.config").get_config_copy()
        options = {**{name: value for name, value in _CPU_OPTIONS.items() if name in known}, **options}
    contexts = (_sums_of_any_size(), _one_table_of_dtypes(), _no_checks_of_inputs(), _no_trial_compilations())
    with ExitStack() as stack:
        for context in (_numbers_are_tensors(graph), *contexts):
            stack.enter_context(context)
        return _lookup("torch._inductor.compile_fx.compile_fx")(graph, inputs, config_patches=options)


def _numbers_are_tensors(graph: Any) -> ContextManager[Any]:
    """Returns a context in which torch does not look for float numbers among the inputs of ``graph``, if there are none.

    For each float64 tensor without dimensions, Dynamo creates a symbol, in case that the code reads its value. If the code does not, the
    search finds the symbol unused, and all of the tracing starts again. Torch's compilations exclude each other, so the context changes no
    other one.

    Name: ``torch._functorch._aot_autograd.graph_compile.tensorify_python_scalars``. Without it: tracing takes twice as long.
    """
    nodes = [node for part in graph.modules() if isinstance(part, torch.fx.GraphModule) for node in part.graph.nodes]
    if any(node.target == "item" for node in nodes):
        return nullcontext()
    return _replaced(
        "torch._functorch._aot_autograd.graph_compile.tensorify_python_scalars",
        lambda original: lambda *arguments, **named: None,
    )


def _sums_of_any_size() -> ContextManager[Any]:
    """Returns a context in which inductor's code for CPUs adds up numbers in blocks if their count is not known.

    Inductor adds up more than 4,096 numbers in blocks, because the error of one long sum grows. For counts that are not known it compiles
    one graph for smaller counts and one for larger ones.

    Name: ``torch._inductor.codegen.cpp.CppKernel.need_use_acc_helper``. Without it: two graphs are compiled.
    """

    def replacement(original: Callable[..., bool]) -> Callable[..., bool]:
        def in_blocks(self: Any, reduction_type: str, dtype: torch.dtype, *arguments: Any) -> bool:
            count = math.prod((self.call_ranges or ())[self.reduction_depth :])
            if reduction_type == "sum" and dtype == torch.float and getattr(count, "free_symbols", None):
                return True
            return original(self, reduction_type, dtype, *arguments)

        return in_blocks

    return _replaced("torch._inductor.codegen.cpp.CppKernel.need_use_acc_helper", replacement)


def _one_table_of_dtypes() -> ContextManager[Any]:
    """Returns a context in which inductor makes its table of dtype rules once. It makes the same table for each operation of each kernel.

    Name: ``torch._inductor.codegen.common.DtypePropagationOpsHandler``. Without it: compiling a training step takes one second of 17 more.
    """
    return _replaced("torch._inductor.codegen.common.DtypePropagationOpsHandler", functools.cache)


def _no_checks_of_inputs() -> ContextManager[Any]:
    """Returns a context in which inductor's code does not check sizes and strides of its inputs, if Dynamo checks them before each call.

    Names: ``torch._inductor.codegen.wrapper.PythonWrapperCodegen.codegen_input_size_asserts``, and the setting of
    :func:`tracing_settings` with which Dynamo checks every tensor. Without one of them: a small training step takes 5 % more time.
    """
    if getattr(_lookup("torch._dynamo.config"), "skip_tensor_guards_with_matching_dict_tags", True):
        return nullcontext()
    return _replaced(
        "torch._inductor.codegen.wrapper.PythonWrapperCodegen.codegen_input_size_asserts", lambda original: lambda self: None
    )


def _no_trial_compilations() -> ContextManager[Any]:
    """Returns a context in which inductor does not compile programs to find out whether the compiler knows BF16 and VNNI instructions.

    Every compiler that accepts inductor's ``-std=c++20`` knows them. Inductor asks only if the processor has them; ``cpp.vec_isa_ok`` does
    not stop these questions.

    Name: ``torch._inductor.cpu_vec_isa.VecISA.check_build``, and the programs ``VecAVX512._avx512_bf16_code`` and
    ``VecAVX512VNNI._avx512_vnni_code`` beside it. Without one of them: the first compilation takes up to 1.2 s more.
    """
    isa = "torch._inductor.cpu_vec_isa."
    known = _lookup(f"{isa}VecAVX512._avx512_bf16_code"), _lookup(f"{isa}VecAVX512VNNI._avx512_vnni_code")
    return _replaced(f"{isa}VecISA.check_build", lambda original: lambda self, code: code in known or original(self, code))


def _replaced(name: str, replacement: Callable[[Any], Any]) -> ContextManager[Any]:
    """Returns a context in which torch's object ``name`` is ``replacement(object)``. If torch has no such object, nothing is replaced."""
    original = _lookup(name)
    return nullcontext() if original is None else mock.patch(name, replacement(original))


def needed_guards(guards: Sequence[Any]) -> List[bool]:
    """Returns for each guard whether compiled code must check it at each call: the ``guard_filter_fn`` of torch.compile.

    Calls need not check that functions and classes of torch are the same, nor that builtins of Python and global variables of this library
    are, which are constants.

    Name: the guard types of ``torch._dynamo.guards``. Guards of other names are needed.
    """
    return [not (guard.is_global and _is_known(guard)) for guard in guards]


def _is_known(guard: Any) -> bool:
    """Returns whether a guard is about a global object that does not change."""
    if _TORCH.match(guard.name):
        return guard.guard_type in _IDENTITIES
    return _CONSTANTS.match(guard.name) is not None


_IDENTITIES = frozenset(("CLOSURE_MATCH", "FUNCTION_MATCH", "MODULE_MATCH", "BUILTIN_MATCH", "CLASS_MATCH", "DUPLICATE_INPUT"))
"""Guards that functions, modules and classes are the same objects as when they were traced."""

_OWN = r"__import_a2c_compiled(_dot_|'\])"
_TORCH = re.compile(rf"(dict\()?G\['((__import_)?torch(_dot_|'\])|{_OWN}.*\.torch\b)")
"""The names of objects of torch in guards: of its modules, and of those that this library has imported."""

_CONSTANTS = re.compile(
    rf"(dict\()?G\['({_OWN}"  # a global variable of another module of this library
    r"|(?!_\d|__)"  # a global variable of the module of the compiled function. Names that Dynamo adds begin with _ and a digit, or with __.
    r"|__builtins_dict__"  # a builtin of Python
    r"|___unnamed_scope_\w+'\](\['_tuple_new'\]|$))"  # a function in which a NamedTuple makes its objects
)
"""The names of constants of this library and of Python in guards."""


class CompiledGraph:
    """A graph that torch.compile has made of a function. A call of ``run`` lacks most of torch's work before a graph, which takes 0.1 ms.

    Args:
        function: the compiled function.
        guards: torch's guard manager for the graph.
        run: calls the graph.
    """

    def __init__(self, function: FunctionType, guards: Any, run: Callable[..., Any]) -> None:
        self.guards, self.run = guards, run
        code = function.__code__
        self._names = code.co_varnames[: code.co_argcount]
        self._cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))

    def accepts(self, arguments: Sequence[Any]) -> bool:
        """Returns whether torch would call this graph with ``arguments``: whether its guards accept them."""
        # With fewer arguments, others have their default values.
        return len(arguments) == len(self._names) and self._accepts(self._variables(arguments))

    def _accepts(self, variables: Dict[str, Any]) -> bool:
        # Without an entry, torch has dropped the graph.
        return self.guards.cache_entry is not None and bool(self.guards.root.check(variables))

    def _variables(self, arguments: Sequence[Any]) -> Dict[str, Any]:
        variables = dict(zip(self._names, arguments, strict=True))
        for name, cell in self._cells.items():
            variables[name] = cell.cell_contents
        return variables


def compiled_graphs(function: FunctionType, backend: Any) -> List[CompiledGraph]:
    """Returns the graphs that torch.compile has made of ``function`` with ``backend``, and has not dropped.

    Names: ``torch._C._dynamo.eval_frame._debug_get_cache_entry_list``; the attribute ``backend.compiler_fn`` of its entries; and
    ``torch._dynamo.guards.GuardManagerWrapper`` with its attributes ``root`` and ``cache_entry``, which torch sets to None when it drops a
    graph. Without one of them: no graphs, so that every call goes through the function that torch.compile returned.
    """
    entries = _lookup("torch._C._dynamo.eval_frame._debug_get_cache_entry_list")
    wrapper = _lookup("torch._dynamo.guards.GuardManagerWrapper")
    if entries is None or wrapper is None or not hasattr(wrapper(), "cache_entry"):
        return []

    def graph_of(entry: Any) -> CompiledGraph:
        run = FunctionType(entry.code, function.__globals__, function.__name__, None, function.__closure__)
        return CompiledGraph(function, entry.guard_manager, run)

    return [
        graph_of(entry)
        for entry in entries(function.__code__)
        if entry.guard_manager.cache_entry is not None and getattr(entry.backend, "compiler_fn", None) is backend
    ]


_SAVING = {
    "GraphWithGuards": "torch._dynamo.aot_compile.AOTCompiledFunction",
    "GraphCode": "torch._dynamo.aot_compile.BundledAOTAutogradSerializableCallable",
    "unsavable_guards": "torch._dynamo.guards.CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES",
    "SourceCode": "torch._inductor.codecache.PyCodeCache",
    "MachineCode": "torch._inductor.codecache.CppCodeCache",
}


@functools.cache
def saving_of_graphs() -> Any:
    """Returns a namespace with the classes and functions that save compiled graphs and load them.

    Names: those in ``_SAVING``, from ``torch._dynamo`` and ``torch._inductor``. ``GraphWithGuards`` is a compiled graph, and ``GraphCode``
    is its code. ``unsavable_guards`` are the types of guards that torch cannot save. ``SourceCode`` and ``MachineCode`` load inductor's
    code.

    Raises:
        RuntimeError: a name is missing. There is no fallback: each process compiles.
    """
    return _resolve_all(_SAVING, RuntimeError, ", which saving compiled code needs")


@contextmanager
def saving_settings() -> Iterator[None]:
    """Context in which torch.compile can compile a function without calling it, with :func:`tracing_settings`, in one thread at a time.

    Name: ``torch._dynamo.config.enable_aot_compile``. Without it: versions of torch without this setting always can.
    """
    setting = "torch._dynamo.config.enable_aot_compile"
    can_compile = nullcontext() if _lookup(setting) is None else _lookup("torch._dynamo.config.patch")(enable_aot_compile=True)
    with tracing_lock(), tracing_settings(), can_compile, _sources_of_defaults_are_picklable():
        yield


def _sources_of_defaults_are_picklable() -> ContextManager[Any]:
    """Returns a context in which torch pickles the place of a default value with the arguments of its class alone.

    Before torch 2.13, torch pickles all fields, but the class does not accept all of them.

    Name: ``torch._dynamo.source.DefaultsSource``. Without it: nothing is changed.
    """
    source = _lookup("torch._dynamo.source.DefaultsSource")
    if source is None:
        return nullcontext()
    return mock.patch.object(source, "__reduce__", lambda self: (source, (self.base, self.idx_key, self.is_kw)))


def compile_without_call(compiled_function: Any, arguments: Sequence[Any]) -> Any:
    """Compiles the result of ``torch.compile`` for ``arguments``. Returns a ``GraphWithGuards``, see :func:`saving_of_graphs`.

    Name: ``torch._dynamo.exc.TensorifyScalarRestartAnalysis``. torch raises it when it has found out which numbers must be constants, and
    starts again if it compiles for a call, but not here. Without it: the error is passed on.
    """
    restart = _lookup("torch._dynamo.exc.TensorifyScalarRestartAnalysis")
    restarts = () if restart is None else (restart,)
    try:
        return compiled_function.aot_compile((tuple(arguments), {}))
    except restarts:
        return compiled_function.aot_compile((tuple(arguments), {}))


def guards_of(graph: Any) -> Any:
    """Returns torch's guard manager of a ``GraphWithGuards``, see :func:`saving_of_graphs`.

    Name: ``_artifacts.guard_manager`` of the class. There is no fallback.
    """
    return graph._artifacts.guard_manager


def load_library(loader: Any, path: Path) -> Any:
    """Loads machine code of a graph. ``loader``: the class that inductor has chosen, a subclass of ``MachineCode``.

    Name: ``MachineCode._load_library``, which sets what the code needs from Python. There is no fallback.
    """
    return loader._load_library(str(path), path.stem)


def may_call_graphs() -> bool:
    """Returns whether :class:`CompiledGraph` may be called now: nothing in this thread traces, compiles or intercepts calls.

    Names: those of :func:`dispatch_is_plain`; ``stance`` and ``backend`` of ``torch._dynamo.eval_frame._stance``, which
    ``torch.compiler.set_stance`` sets; ``torch._C._dynamo.eval_frame.get_eval_frame_callback``, which returns None unless this is an eager
    part of a compiled function; ``set_guard_complete_hook`` beside it, a hook with which processes compile together. Without one of them:
    False.
    """
    callback = _lookup("torch._C._dynamo.eval_frame.get_eval_frame_callback")
    set_hook = _lookup("torch._C._dynamo.eval_frame.set_guard_complete_hook")
    stance = getattr(_lookup("torch._dynamo.eval_frame"), "_stance", None)
    if callback is None or set_hook is None or getattr(stance, "stance", None) != "default":
        return False
    hook = set_hook(None)  # the only way to read it
    if hook is not None:
        set_hook(hook)
        return False
    return callback() is None and getattr(stance, "backend", None) is None and dispatch_is_plain()


def with_variable_sizes(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Returns an alias of ``tensor`` for which torch.compile compiles code for all sizes of the dimensions ``dims``.

    Name: ``torch._dynamo.maybe_mark_dynamic``. Without it: ``tensor``, and torch compiles for each dimension when its size first changes.
    """
    mark = _lookup("torch._dynamo.maybe_mark_dynamic")
    if mark is None or tensor.requires_grad:
        return tensor
    alias = tensor.detach()
    mark(alias, [dim for dim in dims if dim < tensor.dim()])
    return alias


class TracingErrors(NamedTuple):
    """Errors that come from tracing a function, not from running it. Each field is a tuple for ``except`` or isinstance.

    Fields:
        of_compile: the errors of torch.compile.
        of_operators: those among them that an operator has raised on fake tensors.
        of_fake_tensors: errors of operations that fake tensors do not support, because they need the data.
    """

    of_compile: Tuple[Type[Exception], ...]
    of_operators: Tuple[Type[Exception], ...]
    of_fake_tensors: Tuple[Type[Exception], ...]


@functools.cache
def tracing_errors() -> TracingErrors:
    """Returns the errors of tracing.

    Names: ``torch._dynamo.exc.TorchDynamoException`` and ``TorchRuntimeError``; those of ``torch._subclasses.fake_tensor`` that end with
    ``Exception``. Without a name: it is not among the errors, and an error of torch.compile stays as it is.
    """
    of_compile, of_operators = _lookup("torch._dynamo.exc.TorchDynamoException"), _lookup("torch._dynamo.exc.TorchRuntimeError")
    fakes = vars(_lookup("torch._subclasses.fake_tensor") or SimpleNamespace())
    of_fake_tensors = tuple(error for name, error in fakes.items() if name.endswith("Exception") and isinstance(error, type))
    return TracingErrors(
        () if of_compile is None else (of_compile,), () if of_operators is None else (of_operators,), of_fake_tensors
    )


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Returns a context in which operators compute shapes and dtypes, but no values, and write to no tensor that exists before it.

    As with real tensors, a matrix product or a convolution of two dtypes raises RuntimeError.

    Names: ``torch._subclasses.fake_tensor.FakeTensorMode``, and ``torch.utils._python_dispatch.TorchDispatchMode``, because fake tensors
    alone accept two dtypes.

    Raises:
        ImportError: a name is missing.
    """
    fake_mode, base = _lookup("torch._subclasses.fake_tensor.FakeTensorMode"), dispatch_mode()
    if fake_mode is None or base is object:
        raise ImportError(f"torch {torch.__version__} has no FakeTensorMode")

    class OneDtype(base):  # type: ignore[misc, valid-type]
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator.overloadpacket in _PRODUCTS:
                dtypes = {argument.dtype for argument in args if isinstance(argument, Tensor)}
                if len(dtypes) > 1:
                    raise RuntimeError(f"{operator}: expected one dtype, got {' and '.join(sorted(map(str, dtypes)))}")
            return operator(*args, **(kwargs or {}))

    with fake_mode(allow_non_fake_inputs=True), OneDtype():
        yield


_PRODUCTS = [getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm", "convolution")]
"""Operators that accept no tensors of several dtypes."""


def ignore_warnings_of_contexts() -> None:
    """Makes every compilation in this process ignore torch's warning about the context of an autograd function.

    Dynamo instantiates ``torch.autograd.Function`` for each context that it traces, which warns. If warnings are errors, the compilation
    fails. The filter is set again at the start of each compilation, because test runners restore the filters after each test.

    Name: ``torch._dynamo.callback.callback_handler``. Without it: the filter is set once.
    """
    _ignore_warnings_of_contexts()
    handler = _lookup("torch._dynamo.callback.callback_handler")
    if handler is not None and _ignore_warnings_of_contexts not in handler.start_callbacks:
        handler.register_start_callback(_ignore_warnings_of_contexts)


def _ignore_warnings_of_contexts(compilation: Any = None) -> None:
    message = "<class 'torch.autograd.function.Function'> should not be instantiated"
    warnings.filterwarnings("ignore", message, DeprecationWarning)


def recompile_limit(limit: int) -> ContextManager[Any]:
    """Returns a context in which torch.compile compiles one function up to ``limit`` times before it falls back to eager mode.

    Name: ``torch._dynamo.config.recompile_limit``, because benchmarks compile one function for many cases.
    Without it: torch's default limit applies.
    """
    return _dynamo_setting("recompile_limit", limit, "after many recompilations of a function, torch runs it in eager mode")


def uncompiled(module: nn.Module) -> nn.Module:
    """Returns the module that ``torch.compile`` was given, if ``module`` is its result, else ``module``.

    Names: ``_orig_mod`` of the class ``torch._dynamo.eval_frame.OptimizedModule``, because the arguments of its ``forward`` have no names.
    Without one of them: ``module``, and the export of a compiled module fails with a message about the names of its arguments.
    """
    compiled = _lookup("torch._dynamo.eval_frame.OptimizedModule")
    return getattr(module, "_orig_mod", module) if compiled is not None and isinstance(module, compiled) else module


def _resolve_all(paths: Dict[str, str], error: Type[Exception], needed_for: str = "") -> Any:
    """Looks up several names and returns them as a namespace. Raises ``error`` if one is missing; ``needed_for`` ends the message."""
    resolved = {name: _lookup(path) for name, path in paths.items()}
    for name, value in resolved.items():
        if value is None:
            raise error(f"torch {torch.__version__} has no {paths[name]}{needed_for}")
    return SimpleNamespace(**resolved)


_INDUCTOR = {
    "compile_fx": "torch._inductor.compile_fx.compile_fx",  # for its import alone, which warns, see _lookup
    "CustomGraphPass": "torch._inductor.custom_graph_pass.CustomGraphPass",
    "get_hash_for_files": "torch._inductor.custom_graph_pass.get_hash_for_files",
    "CallFunction": "torch._inductor.pattern_matcher.CallFunction",
    "KeywordArg": "torch._inductor.pattern_matcher.KeywordArg",
    "PatternMatcherPass": "torch._inductor.pattern_matcher.PatternMatcherPass",
    "register_graph_pattern": "torch._inductor.pattern_matcher.register_graph_pattern",
}


@functools.cache
def inductor_patterns() -> Any:
    """Returns a namespace with the classes and functions of Inductor that a custom graph pass needs. The first call takes seconds.

    Names: those in ``_INDUCTOR``, from ``torch._inductor.custom_graph_pass`` and ``torch._inductor.pattern_matcher``.

    Raises:
        ImportError: a name is missing. The pass is optional; without it, torch computes the same products unfused.
    """
    return _resolve_all(_INDUCTOR, ImportError)


def size_hint(size: Union[int, SymInt]) -> int:
    """Returns ``size`` as an integer. For a symbolic size: its value in the example inputs.

    Name: ``SymInt.node.hint``. Without it, or without example inputs: 0, so the fusion pass leaves the product unchanged.
    """
    return size if isinstance(size, int) else int(getattr(size.node, "hint", None) or 0)


def is_fixed(size: SymInt) -> bool:
    """Returns whether the trace has fixed a symbolic size to a constant.

    Name: ``SymInt.node.maybe_as_int``. Without it: False, so an export error does not name the module that fixed a size.
    """
    maybe_as_int = getattr(size.node, "maybe_as_int", None)
    return maybe_as_int is not None and maybe_as_int() is not None


# -- torch.export --


@functools.cache
def tracing_lock() -> Any:
    """Returns the lock to hold while tracing a graph: torch can trace in only one thread at a time. The lock is reentrant.

    Name: ``torch._dynamo.convert_frame.compile_lock``, Dynamo's own lock, so that no thread compiles while another exports.
    Without it: a lock of this library, which excludes other exports but not compilations.
    """
    lock = _lookup("torch._dynamo.convert_frame.compile_lock")
    if lock is None:
        _warn_once("_dynamo.convert_frame.compile_lock", "compiling in one thread while another exports may fail")
    return lock or threading.RLock()


class _ExportingFlag(threading.local):
    """Replaces torch's exporting flag during an export: true in the exporting thread, false in every other."""

    depth = 0

    def __bool__(self) -> bool:
        return self.depth > 0


_exporting_flag = _ExportingFlag()


@contextmanager
def export_flags() -> Iterator[None]:
    """Returns a context that sets torch's flags as ``torch.export`` does. Hold :func:`tracing_lock` around it.

    Torch's own layers read these flags. Unlike in torch's own context, the exporting flag is true in this thread only. If it were true in
    all threads, compiled functions called in another thread would run as in an export.

    Names: ``torch.compiler._is_compiling_flag`` and ``_is_exporting_flag``. Without one of them: that flag is not set.
    """
    flags = torch.compiler.__dict__
    before: Dict[str, Any] = {name: flags[name] for name in ("_is_compiling_flag", "_is_exporting_flag") if name in flags}
    flags.update({name: True if name == "_is_compiling_flag" else _exporting_flag for name in before})
    _exporting_flag.depth += 1
    try:
        yield
    finally:
        _exporting_flag.depth -= 1
        flags.update(before)


def thread_local_export_flag() -> ContextManager[Any]:
    """Returns a context in which ``torch.export`` sets its exporting flag in the exporting thread only. Hold :func:`tracing_lock`.

    Names: ``torch.export._trace._compiling_state_context``, which the context replaces with :func:`export_flags`, and
    ``torch.compiler._is_exporting_flag``. Without one of them: torch sets the flag in all threads.
    """
    if _lookup("torch.export._trace._compiling_state_context") is None or not hasattr(torch.compiler, "_is_exporting_flag"):
        _warn_once(
            "export._trace._compiling_state_context or compiler._is_exporting_flag",
            "do not call compiled functions in other threads during an export",
        )
        return nullcontext()
    return mock.patch("torch.export._trace._compiling_state_context", export_flags)


_TRACING = {
    "FakeTensorMode": "torch._subclasses.fake_tensor.FakeTensorMode",
    "enable_python_dispatcher": "torch._dispatch.python.enable_python_dispatcher",
    "make_fx": "torch.fx.experimental.proxy_tensor.make_fx",
    "DimDynamic": "torch.fx.experimental.symbolic_shapes.DimDynamic",
    "ShapeEnv": "torch.fx.experimental.symbolic_shapes.ShapeEnv",
    "StatelessSymbolicContext": "torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext",
}


@functools.cache
def symbolic_tracing() -> Any:
    """Returns a namespace with the classes and functions that trace a function with symbolic input sizes.

    Names: those in ``_TRACING``, from ``torch._subclasses`` and ``torch.fx.experimental``. An export uses them to write the gradients of a
    training step as operators of the graph, because the exported formats have no autograd.

    Raises:
        RuntimeError: a name is missing. There is no fallback.
    """
    return _resolve_all(_TRACING, RuntimeError, ", which the export of a training step needs")


def outside_of_tracing() -> ContextManager[Any]:
    """Returns a context in which operations on real tensors run at once, although a tracer is active.

    Name: ``torch.utils._python_dispatch._disable_current_modes``, because these tensors become constants of the graph.
    Without it: the context changes nothing, and the graph computes these tensors.
    """
    disable_modes = _lookup("torch.utils._python_dispatch._disable_current_modes")
    return nullcontext() if disable_modes is None else disable_modes()


@functools.cache
def decompositions() -> Dict[Any, Callable[..., Any]]:
    """Returns torch's table of decompositions: for each operator, a function that computes it from other operators.

    Name: ``torch._decomp.decomposition_table``, because this table has the backward operators.
    Without it: the smaller table of ``torch.export``.
    """
    table = _lookup("torch._decomp.decomposition_table")
    if table is None:
        _warn_once("_decomp.decomposition_table", "the gradients of fewer operators can be exported")
    return dict(torch.export.default_decompositions() if table is None else table)


def aten_operator(name: str) -> Any:
    """Returns the operator ``torch.ops.aten.<name>.default``, whose name may be private.

    Without it: None, and an export leaves operators of other names as they are.
    """
    return getattr(getattr(torch.ops.aten, name, None), "default", None)


def check_sizes(condition: Any) -> None:
    """Adds a condition on symbolic sizes to the trace. Raises RuntimeError if the condition is False.

    Name: ``torch._check``. Without it: a Python ``if``; tracing it adds the same condition.
    """
    torch_check = getattr(torch, "_check", None)
    if torch_check is not None:
        torch_check(condition)
    elif not condition:
        raise RuntimeError("inputs: expected equal sizes along a shared dimension, got different sizes")


OPERATOR = type(torch.ops.aten.add.Tensor)
"""The class of an operator in a graph, ``torch._ops.OpOverload``, for isinstance."""


def argument_writes(operator: Any) -> List[Tuple[str, Optional[bool]]]:
    """Returns a pair ``(name, writes)`` for each argument of an operator.

    ``writes`` is True if the operator writes to the argument, False if a result only shares the argument's memory, otherwise None.

    Name: ``OpOverload._schema``. Without it: only in-place operators, recognised by a final underscore, are reported; they write to
    ``self``.
    """
    schema = getattr(operator, "_schema", None)
    if schema is None:
        _warn_once("_ops.OpOverload._schema", "in-place operators are recognised by their names")
        name = str(operator).split(".")[1]
        is_in_place = name.endswith("_") and not name.endswith("__")  # __and__ is not in place
        return [("self", True)] if is_in_place else []
    return [
        (argument.name, None if argument.alias_info is None else argument.alias_info.is_write) for argument in schema.arguments
    ]


def dispatch_mode() -> type:
    """Returns the base class of dispatch modes. torch calls an active mode for every operator. An export names an error's module with one,
    and a benchmark records the products of an update.

    Name: ``torch.utils._python_dispatch.TorchDispatchMode``. Without it: ``object``, error messages do not name the module, and the
    benchmark has no time of the products.
    """
    return _lookup("torch.utils._python_dispatch.TorchDispatchMode") or object


def ahead_of_time() -> Tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns two functions of AOTInductor: the first compiles a program into a package, the second loads a package.

    Names: ``torch._inductor.aoti_compile_and_package`` and ``aoti_load_package``.

    Raises:
        RuntimeError: a name is missing. Export a ``.pt2`` file instead; the program that loads it can run or compile it.
    """
    compile_package, load = _lookup("torch._inductor.aoti_compile_and_package"), _lookup("torch._inductor.aoti_load_package")
    if compile_package is None or load is None:
        raise RuntimeError(f"torch {torch.__version__} has no AOTInductor; use a .pt2 file")
    return compile_package, load
