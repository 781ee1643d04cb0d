"""The modules for private names of other packages work with and without each name, and no other module uses such names."""

import ast
import contextlib
import functools
import importlib.util
import pkgutil
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import a2c_compiled
from a2c_compiled import _torch_internals as present
from a2c_compiled import functional as F
from a2c_compiled.kernels import scan_forms
from a2c_compiled.kernels.torch_scan import linear_scan
from a2c_compiled.ops import eager_fast_path, fused, registration

PACKAGE = Path(a2c_compiled.__file__).parent
DOORS = ("_torch_internals.py", "gymnasium_internals.py", "onnxscript_internals.py", "compiled_kernel.py")
# What subclasses of nn.Module and users of a NamedTuple work with, and os._exit, which Python documents.
USUAL = {"_asdict", "_buffers", "_exit", "_fields", "_modules", "_parameters", "_replace"}
# Of packages that are served by integrations and compared with, and of tensorboard.
OTHERS = {"_get_file_writer", "_get_kwargs", "_kwargs", "_sanitize_next_obs_nan", "_setup_model"}
PRIVATE = ("torch.fx.experimental", "triton.compiler")


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(path):
    """The private names of other packages that a file uses."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")}
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) != "super()":
            if node.attr not in own | USUAL | OTHERS:
                yield ast.unparse(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            for name in (f"{module}.{alias.name}" if module else alias.name for alias in node.names):
                if name.startswith(PRIVATE) or (any(map(is_private, name.split("."))) and not name.startswith("a2c_compiled")):
                    yield name


def test_only_the_listed_modules_use_private_names_of_other_packages():
    files = [path for path in PACKAGE.rglob("*.py") if path.name not in DOORS]
    files += [path for part in ("export", "benchmarks") for path in (PACKAGE / part).rglob("*.py") if path.name not in DOORS]
    found = {f"{path.relative_to(PACKAGE)}: {name}" for path in files for name in private_names(path)}
    assert len(files) > 100
    assert not found


@pytest.fixture
def without(monkeypatch):
    """Loads ``_torch_internals`` again as if torch lacked some names."""
    found = pkgutil.resolve_name

    def load(*missing):
        for path in missing:
            assert found(path) is not None, f"torch has no {path}: the door leads nowhere"

        def resolve(path):
            if path in missing:
                raise AttributeError(path)
            return found(path)

        monkeypatch.setattr(pkgutil, "resolve_name", resolve)
        spec = importlib.util.spec_from_file_location("a2c_compiled._door_of_another_torch", present.__file__)
        door = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(door)
        return door

    return load


def once(function, *arguments):
    """Calls a function twice, which has to warn once; returns its first result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(*arguments)
        function(*arguments)
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert str(warning.message).startswith(f"a2c_compiled: torch {torch.__version__} has no ")
    return found


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_dispatch_is_plain_unless_a_mode_or_transform_is_active():
    assert present.dispatch_is_plain()
    assert not present.in_forward_mode()
    with torch.inference_mode():
        assert present.dispatch_is_plain()
    with Watching():
        assert not present.dispatch_is_plain()
    with forward_ad.dual_level():
        assert not present.dispatch_is_plain()
        assert present.in_forward_mode()
    seen = []
    torch.func.vmap(lambda x: seen.append(present.dispatch_is_plain()) or x)(torch.zeros(2))
    assert seen == [False]


@pytest.mark.parametrize("name", ["keys", "level"])
def test_without_torchs_state_every_call_uses_the_operator_with_the_same_result(name, without, monkeypatch):
    inputs = [0.9, 0.8, *(torch.randn(5, 3) for _ in range(3)), *[torch.rand(5, 3) < 0.2] * 2]
    inputs[2].requires_grad_()
    expected = F.generalized_advantage_estimate(*inputs)
    gradient = torch.autograd.grad(expected.advantage.sum(), inputs[2])[0]
    if name == "keys":
        door = without("torch._C._dispatch_tls_local_include_set")
    else:
        with monkeypatch.context() as patch:
            patch.delattr(forward_ad, "_current_level")
            door = without()
            assert door.in_forward_mode()
    assert not once(door.dispatch_is_plain)
    for module in (registration, fused, eager_fast_path):
        monkeypatch.setattr(module, "dispatch_is_plain", door.dispatch_is_plain)
    with torch.no_grad():
        assert eager_fast_path.direct(scan_forms.GAE, -2, *inputs) is None
    found = F.generalized_advantage_estimate(*inputs)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(torch.autograd.grad(found.advantage.sum(), inputs[2])[0], gradient)


def test_hooks_of_a_module_are_found(monkeypatch):
    module = nn.Linear(2, 2)
    assert not present.module_has_hooks(module)
    module.register_forward_hook(lambda *_: None)
    assert present.module_has_hooks(module)
    monkeypatch.delattr(nn.modules.module, "_has_any_global_hook")
    assert present.module_has_hooks(nn.Linear(2, 2)), "where torch does not tell"


def test_gamma_variates_are_differentiable_with_either_operator(without):
    door = without("torch._standard_gamma")
    for standard_gamma in (torch.ops.aten._standard_gamma, door.standard_gamma):
        torch.manual_seed(0)
        concentration = torch.full((20_000,), 3.0, requires_grad=True)
        drawn = standard_gamma(concentration)
        assert abs(drawn.mean() - 3.0) < 0.05
        assert abs(torch.autograd.grad(drawn.mean(), concentration)[0].sum() - 1.0) < 0.05


def test_without_torchs_assertion_there_is_none(without):
    for door, raises in ((present, True), (without("torch._assert_async"), False)):
        with pytest.raises(RuntimeError, match="action: wrong") if raises else contextlib.nullcontext():
            door.assert_in_graph(torch.tensor(False), "action: wrong")
        door.assert_in_graph(torch.tensor(True), "action: wrong")


def test_a_loop_without_the_operator_is_unrolled(monkeypatch):
    scan_doubling = pytest.importorskip("a2c_compiled.export.tracing.scan_doubling")
    assert present.while_loop is not None
    x, decay = torch.randn(9, 3, dtype=torch.float64), torch.rand(9, 3, dtype=torch.float64)
    for door in (present.while_loop, None):
        monkeypatch.setattr(scan_doubling, "while_loop", door)
        torch.testing.assert_close(scan_doubling.linear_scan(x, decay, -2), linear_scan(x, decay, -2, True))
        torch.testing.assert_close(scan_doubling.linear_scan_transposed(x, decay, -2), linear_scan(x, decay, -2, False))


def test_missing_scan_operators_are_none(without):
    scan, options = present.scan_operator()
    assert callable(scan)
    assert list(options) == ["unsafe_marked_cacheable_functions"]
    assert callable(present.associative_scan())
    door = without("torch._higher_order_ops.scan.scan", "torch._higher_order_ops.associative_scan.associative_scan")
    assert once(door.scan_operator) is None
    assert door.associative_scan() is None


def test_compiler_settings_that_torch_lacks_are_left_unchanged(without):
    settings = torch._dynamo.config
    before = settings.recompile_limit, settings.trace_autograd_ops
    with present.recompile_limit(3), present.tracing_settings():
        assert (settings.recompile_limit, settings.trace_autograd_ops) == (3, True)
        assert settings.skip_tensor_guards_with_matching_dict_tags is False
    for missing in (
        ("torch._dynamo.config.patch",),
        ("torch._dynamo.config.recompile_limit", "torch._dynamo.config.trace_autograd_ops"),
    ):
        door = without(*missing)
        with once(door.recompile_limit, 3), once(door.tracing_settings):
            assert (settings.recompile_limit, settings.trace_autograd_ops) == before


@pytest.mark.parametrize("missing", [(), ("torch._dynamo.callback.callback_handler",)], ids=["with", "without"])
def test_the_warning_of_contexts_is_ignored_again_at_each_compilation(without, missing):
    from torch._dynamo.callback import callback_handler

    door, before = without(*missing), list(callback_handler.start_callbacks)
    try:
        door.ignore_warnings_of_contexts()
        door.ignore_warnings_of_contexts()  # registers once
        torch.autograd.Function()
        added = [callback for callback in callback_handler.start_callbacks if callback not in before]
        assert len(added) == (0 if missing else 1)
        for callback in added:
            warnings.simplefilter("error")  # as a test runner does
            callback(None)
            torch.autograd.Function()
    finally:
        callback_handler.start_callbacks[:] = before


def test_a_missing_inductor_pattern_is_an_error(without):
    assert set(vars(present.inductor_patterns())) == set(present._INDUCTOR)
    with pytest.raises(ImportError, match=r"has no torch\._inductor\.pattern_matcher\.CallFunction"):
        without("torch._inductor.pattern_matcher.CallFunction").inductor_patterns()


def symbolic_size():
    tracing = present.symbolic_tracing()
    mode = tracing.FakeTensorMode(shape_env=tracing.ShapeEnv())
    context = tracing.StatelessSymbolicContext(dynamic_sizes=[tracing.DimDynamic.DUCK])
    return mode.from_tensor(torch.zeros(7), symbolic_context=context).size(0)


def test_size_hints_and_fixed_sizes_of_symbolic_sizes():
    size = symbolic_size()
    assert present.size_hint(7) == present.size_hint(size) == 7
    assert not present.is_fixed(size)
    assert size == 7  # which fixes it
    assert present.is_fixed(size)

    class Silent:
        node = None

    assert present.size_hint(Silent()) == 0
    assert not present.is_fixed(Silent())


def test_a_required_name_that_torch_lacks_is_an_error_on_use(without):
    with pytest.raises(RuntimeError, match=r"has no torch\.fx\.experimental\.proxy_tensor\.make_fx"):
        without("torch.fx.experimental.proxy_tensor.make_fx").symbolic_tracing()
    assert all(map(callable, present.ahead_of_time()))
    with pytest.raises(RuntimeError, match=r"use a \.pt2 file"):
        without("torch._inductor.aoti_load_package").ahead_of_time()


def test_without_a_name_every_call_of_a_graph_goes_through_torch(without):
    def doubled(x):
        return 2 * x

    x, callback = torch.ones(3), "torch._C._dynamo.eval_frame.get_eval_frame_callback"

    def as_it_is(graph, inputs):
        return graph

    torch.compile(doubled, backend=as_it_is)(x)
    (graph,) = present.compiled_graphs(doubled, as_it_is)
    assert present.compiled_graphs(doubled, None) == [], "graphs of another backend"
    assert graph.accepts([x])
    assert not graph.accepts([x.double()])
    assert torch.equal(graph.run(x), 2 * x)
    assert present.may_call_graphs()
    for name in ("torch._C._dynamo.eval_frame._debug_get_cache_entry_list", "torch._dynamo.guards.GuardManagerWrapper"):
        assert without(name).compiled_graphs(doubled, as_it_is) == []
    hook = "torch._C._dynamo.eval_frame.set_guard_complete_hook"
    assert not any(without(name).may_call_graphs() for name in (callback, hook, "torch._dynamo.eval_frame"))


@pytest.mark.slow
def test_inductor_compiles_without_the_names_that_make_it_faster(without):
    names = (
        "torch._functorch._aot_autograd.graph_compile.tensorify_python_scalars",
        "torch._inductor.codegen.cpp.CppKernel.need_use_acc_helper",
        "torch._inductor.codegen.common.DtypePropagationOpsHandler",
        "torch._inductor.codegen.wrapper.PythonWrapperCodegen.codegen_input_size_asserts",
        "torch._inductor.cpu_vec_isa.VecISA.check_build",
    )
    x, found = torch.randn(7, 3), pkgutil.resolve_name
    originals = list(map(found, names))
    for door in (present, without(*names)):
        torch._dynamo.reset()
        backend = functools.partial(door.compile_with_inductor, options={})
        run = torch.compile(lambda x: (2 * x).tanh().sum(0), fullgraph=True, dynamic=True, backend=backend)
        with present.tracing_settings():
            torch.testing.assert_close(run(x), (2 * x).tanh().sum(0))
        assert list(map(found, names)) == originals, "torch is as it was"


GUARDS = {
    "a function of torch": ("CLOSURE_MATCH", True, "G['__import_torch_dot_nn_dot_functional'].linear", False),
    "a class of this library": ("CLASS_MATCH", True, "G['__import_a2c_compiled_dot_losses_dot_a2c'].A2CLosses", False),
    "the package": ("MODULE_MATCH", True, "G['torch']", False),
    "a constant of this library": ("CONSTANT_MATCH", True, "G['__import_a2c_compiled_dot_losses_dot_a2c'].LOSSES[0]", False),
    "a function of the compiled function's module": ("CLOSURE_MATCH", True, "G['_mapped']", False),
    "a builtin": ("BUILTIN_MATCH", True, "G['__builtins_dict___0']['len']", False),
    "how a NamedTuple is made": ("ID_MATCH", True, "G['___unnamed_scope_1403_c0']['_tuple_new']", False),
    "a flag of torch, read in this library": (
        "CONSTANT_MATCH",
        True,
        "G['__import_a2c_compiled_dot_x'].torch.backends.flag",
        True,
    ),
    "a flag of torch, read in the function's module": ("CONSTANT_MATCH", True, "G['torch'].backends.flag", True),
    "a global variable of code without a module": ("CONSTANT_MATCH", True, "G['___unnamed_scope_1403_c0']['scale']", True),
    "an object that Dynamo has added": ("CONSTANT_MATCH", True, "G['_139_c0'].scale", True),
    "a global variable of the main module": ("CONSTANT_MATCH", True, "G['__import___main__'].SCALE", True),
    "a package with a similar name": ("CONSTANT_MATCH", True, "G['__import_a2c_compiled_tasks_dot_net'].SCALE", True),
    "an attribute with the name of torch": ("CLOSURE_MATCH", True, "G['__import_networks'].library.torch.scale", True),
    "a flag of torch": ("CONSTANT_MATCH", True, "G['__import_torch_dot_backends_dot_mha']._is_fastpath_enabled", True),
    "hooks of all modules": (
        "EMPTY_NN_MODULE_HOOKS_DICT",
        True,
        "G['__import_torch_dot_nn_dot_modules_dot_module']._hooks",
        True,
    ),
    "a function of another package": ("CLOSURE_MATCH", True, "G['__import_torch_geometric_dot_nn'].scatter", True),
    "a function of the user": ("CLOSURE_MATCH", True, "G['__import_networks'].scale", True),
    "a module of the network": ("TYPE_MATCH", False, "L['self']._modules['loss']", True),
}


@pytest.mark.parametrize("case", GUARDS)
def test_calls_do_not_check_whether_functions_of_torch_are_the_same(case):
    guard_type, is_global, name, is_needed = GUARDS[case]
    guard = types.SimpleNamespace(guard_type=guard_type, is_global=is_global, name=name)
    assert present.needed_guards([guard]) == [is_needed]


@pytest.mark.parametrize("name", present._SAVING.values())
def test_without_a_name_compiled_code_is_not_saved(name, without):
    door = without(name)
    with pytest.raises(RuntimeError, match=f"^torch .* has no {name}, which saving compiled code needs$"):
        door.saving_of_graphs()


def test_tensors_of_variable_size_are_aliases_and_stay_what_they_are_where_torch_has_no_marks(without):
    x, differentiable = torch.zeros(3, 2), torch.zeros(3, requires_grad=True)
    alias = present.with_variable_sizes(x, (0, 1, 2))
    assert alias is not x
    assert alias.data_ptr() == x.data_ptr()
    assert alias._dynamo_weak_dynamic_indices == {0, 1}
    assert present.with_variable_sizes(differentiable, (0,)) is differentiable
    assert without("torch._dynamo.maybe_mark_dynamic").with_variable_sizes(x, (0,)) is x


def test_compiling_and_exporting_share_one_lock(without):
    import torch._dynamo.convert_frame as convert_frame

    assert present.tracing_lock() is convert_frame.compile_lock
    own = once(without("torch._dynamo.convert_frame.compile_lock").tracing_lock)
    with own, own:  # by one thread again and again
        assert own is not convert_frame.compile_lock


def test_the_export_flag_is_true_in_the_exporting_thread_only(without):
    elsewhere = []
    with present.export_flags():
        assert torch.compiler.is_exporting()
        thread = threading.Thread(target=lambda: elsewhere.append(bool(torch.compiler.is_exporting())))
        thread.start()
        thread.join()
    assert elsewhere == [False]
    assert torch.compiler.is_exporting() is torch.compiler.is_compiling() is False
    door = without("torch.export._trace._compiling_state_context")
    with once(door.thread_local_export_flag):
        pass


def test_decompositions_of_backward_operations_exist_with_and_without_the_table(without):
    operation = torch.ops.aten.tanh_backward.default
    for table in (present.decompositions(), once(without("torch._decomp.decomposition_table").decompositions)):
        found = table[operation](torch.tensor(2.0), torch.tensor(0.5))
        assert found == 1.5


def test_a_false_condition_on_sizes_raises(monkeypatch):
    for _ in range(2):
        present.check_sizes(True)
        with pytest.raises(RuntimeError, match="xpected"):
            present.check_sizes(False)
        monkeypatch.delattr(torch, "_check", raising=False)


def test_the_arguments_that_an_operation_writes_are_found(without):
    add, add_, view = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, torch.ops.aten.view.default
    assert isinstance(add, present.OPERATOR)
    assert [present.argument_writes(operation)[0] for operation in (add, add_, view)] == [
        ("self", None),
        ("self", True),
        ("self", False),
    ]

    class Bare:
        def __init__(self, operation):
            self.name = str(operation)

        def __str__(self):
            return self.name

    fresh = without()
    assert once(fresh.argument_writes, Bare(add_)) == [("self", True)]
    assert fresh.argument_writes(Bare(add)) == fresh.argument_writes(Bare(torch.ops.aten.__and__.Tensor)) == []


def test_without_torchs_dispatch_mode_the_base_class_is_object(without):
    assert present.dispatch_mode() is TorchDispatchMode
    assert without("torch.utils._python_dispatch.TorchDispatchMode").dispatch_mode() is object


def test_importing_without_optional_names_gives_no_warning(without):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without(
            "torch._C._dispatch_tls_local_include_set",
            "torch._standard_gamma",
            "torch._higher_order_ops.scan.scan",
            "torch._higher_order_ops.while_loop.while_loop_op",
        )


def test_sums_over_processes_work_without_functional_collectives(tmp_path, monkeypatch):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        for missing in (False, True):
            if missing:
                monkeypatch.delattr(torch.distributed, "_functional_collectives")
                monkeypatch.setitem(sys.modules, "torch.distributed._functional_collectives", None)
            for given in (group, group.group_name):
                assert torch.equal(present.all_reduce_sum(torch.ones(3), given), torch.ones(3))
        with pytest.raises(RuntimeError, match="process_group: expected the default group"):
            present.all_reduce_sum(torch.ones(3), "another")
    finally:
        torch.distributed.destroy_process_group()
