"""A compiled function calls its graphs itself, and calls the graph that torch would call."""

import contextlib

import pytest
import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, set_guard_complete_hook
from torch._dynamo.guards import DeletedGuardManagerWrapper

from a2c_compiled.update import compilation

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compilation")]


def scaled(x, factor=2.0):
    return factor * x


class Entered(contextlib.nullcontext):
    """A context that counts how often it was entered."""

    times = 0

    def __enter__(self):
        self.times += 1


def counted(monkeypatch, function):
    """Compiles a function. Returns a function that calls it, and returns whether torch compiled or looked for the graph."""
    context = Entered()
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "tracing_settings", lambda: context)
        run = compilation.CompiledFunction(function)

    def call(*arguments):
        before = context.times
        torch.testing.assert_close(run(*arguments), function(*arguments))
        return context.times > before

    call.copies = run._copies
    return call


@pytest.fixture
def goes_through_torch(monkeypatch):
    return counted(monkeypatch, scaled)


def test_a_call_finds_the_graph_for_its_arguments_itself(goes_through_torch):
    x = torch.rand(3)
    calls = [(x, 2.0), (torch.rand(2, 2), 2.0), (x, 3.0), (torch.arange(4), 2), (x,)]
    assert [goes_through_torch(*arguments) for arguments in calls] == [True] * 5
    # In the last call an argument has its default value, which only torch's way knows.
    assert [goes_through_torch(*arguments) for arguments in calls] == [False] * 4 + [True]


def test_a_graph_that_torch_has_dropped_is_not_called(goes_through_torch):
    x = torch.rand(3)
    assert [goes_through_torch(x, 2.0), goes_through_torch(x, 2.0)] == [True, False]
    torch._dynamo.reset()
    assert [goes_through_torch(x, 2.0), goes_through_torch(x, 2.0)] == [True, False]


def test_a_graph_of_a_class_that_no_longer_exists_is_not_called(monkeypatch):
    def made():
        class Scale(torch.nn.Module):
            def forward(self, x):
                return 2 * x

        return Scale()

    goes_through_torch = counted(monkeypatch, lambda module, x: module(x))
    x, module = torch.rand(3), made()
    assert [goes_through_torch(module, x), goes_through_torch(module, x)] == [True, False]
    (entry,) = _debug_get_cache_entry_list(goes_through_torch.copies[0].__code__)
    entry.guard_manager.extra_state.invalidate(entry, DeletedGuardManagerWrapper("its class was deleted"))
    module = made()
    assert [goes_through_torch(module, x), goes_through_torch(module, x)] == [True, False]


def test_functions_with_free_variables_find_their_graphs(monkeypatch):
    factor = 2.0

    def multiplied(x):
        return factor * x

    goes_through_torch = counted(monkeypatch, multiplied)
    x = torch.rand(3)
    assert [goes_through_torch(x), goes_through_torch(x)] == [True, False]
    factor = 3.0
    assert [goes_through_torch(x), goes_through_torch(x)] == [True, False]


def test_new_memory_of_a_parameter_is_noticed():
    layer, x = torch.nn.Linear(3, 3), torch.rand(2, 3)
    run = compilation.CompiledFunction(lambda module, x: module(x))
    for _ in range(2):
        torch.testing.assert_close(run(layer, x), layer(x))
    layer.weight.data = layer.weight.data.t().clone().t()  # other strides
    torch.testing.assert_close(run(layer, x), layer(x))
    layer.weight.data = torch.rand(2, 3)  # another size
    layer.bias.data = torch.rand(2)
    torch.testing.assert_close(run(layer, x), layer(x))


@pytest.mark.parametrize("stance", [{"stance": "force_eager"}, {"force_backend": "eager"}], ids=str)
def test_a_stance_of_torch_decides_what_runs(monkeypatch, stance):
    x = torch.rand(3)
    goes_through_torch = counted(monkeypatch, scaled)
    with torch.compiler.set_stance(**stance):
        assert [goes_through_torch(x, 2.0), goes_through_torch(x, 2.0)] == [True, True]
    assert [goes_through_torch(x, 2.0), goes_through_torch(x, 2.0)] == [True, False]
    with torch.compiler.set_stance(**stance):
        assert goes_through_torch(x, 2.0)


def test_processes_that_compile_together_look_for_graphs_together(goes_through_torch):
    x = torch.rand(3)
    goes_through_torch(x, 2.0)
    set_guard_complete_hook(lambda accepted: accepted)
    try:
        assert goes_through_torch(x, 2.0)
    finally:
        set_guard_complete_hook(None)
    assert not goes_through_torch(x, 2.0)


def test_a_compiled_function_inside_another_one_is_traced():
    run, x = compilation.CompiledFunction(scaled), torch.rand(3)
    run(x, 2.0)
    outer = torch.compile(lambda x: run(x, 2.0) + 1, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(outer(x), 2 * x + 1)


def test_a_compiled_function_in_an_eager_part_of_another_one():
    run, x = compilation.CompiledFunction(scaled), torch.rand(3)
    run(x, 2.0)

    @torch.compile
    def outer(x):
        x = x + 1
        torch._dynamo.graph_break()
        return run(x, 2.0)

    for _ in range(2):
        torch.testing.assert_close(outer(x), 2 * (x + 1))
