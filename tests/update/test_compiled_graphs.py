"""A compiled function calls its graphs itself, and calls the graph that torch would call."""

import contextlib

import pytest
import torch

from a2c_compiled.update import compilation

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compilation")]


def scaled(x, factor=2.0):
    return factor * x


class Entered(contextlib.nullcontext):
    """A context that counts how often it was entered."""

    times = 0

    def __enter__(self):
        self.times += 1


@pytest.fixture
def goes_through_torch():
    """Calls a compiled function. Returns whether torch compiled it or looked for its graph."""
    context = Entered()
    run = compilation.compiled(scaled, context=context)

    def call(*arguments):
        before = context.times
        torch.testing.assert_close(run(*arguments), scaled(*arguments))
        return context.times > before

    return call


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


def test_a_stance_of_torch_decides_what_runs(goes_through_torch):
    x = torch.rand(3)
    goes_through_torch(x, 2.0)
    with torch.compiler.set_stance("force_eager"):
        assert goes_through_torch(x, 2.0)
    assert not goes_through_torch(x, 2.0)


def test_a_compiled_function_inside_another_one_is_traced():
    run, x = compilation.compiled(scaled), torch.rand(3)
    run(x, 2.0)
    outer = torch.compile(lambda x: run(x, 2.0) + 1, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(outer(x), 2 * x + 1)


def test_a_compiled_function_in_an_eager_part_of_another_one():
    run, x = compilation.compiled(scaled), torch.rand(3)
    run(x, 2.0)

    @torch.compile
    def outer(x):
        x = x + 1
        torch._dynamo.graph_break()
        return run(x, 2.0)

    for _ in range(2):
        torch.testing.assert_close(outer(x), 2 * (x + 1))
