"""Every function compiled whole (fullgraph) with dynamic shapes, forward and backward; scripted and saved; exported."""

import inspect

import oracle
import pytest
import torch
from cases import (
    FUNCTIONS,
    argument_names,
    as_tuple,
    assert_equals_oracle,
    call_arguments,
    evaluate,
    function_in_mode,
    make_steps,
    per_step,
    run_without_the_library,
    weights,
    without_bootstrap,
)
from tolerances import assert_close
from torch._dynamo.testing import AotEagerAndRecordGraphs

from a2c_compiled import functional

pytestmark = pytest.mark.slow

# Every algorithm, in the outermost function that contains it: td_lambda_advantage_estimate calls td_lambda_return_estimate. The other
# functions are wrappers of these with elementwise operations around them.
SCANS = (
    "generalized_advantage_estimate",
    "td_lambda_advantage_estimate",
    "vtrace_advantage_estimate",
    "reward2go",
    "retrace_return_estimate",
    "n_step_return_estimate",
)
OUTERMOST = (*SCANS, "td0_advantage_estimate", "upgo_return_estimate")
NO_RECOMPILE = torch._dynamo.config.patch(error_on_recompile=True)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    """Starts each test without compiled graphs, so that no test runs another's graph or reaches Dynamo's limit of graphs."""
    torch._dynamo.reset()
    function_in_mode.cache_clear()


def scalar_tensors(dtype=torch.float64):
    return {"gamma": torch.tensor(0.97, dtype=dtype), "lmbda": torch.tensor(0.9, dtype=dtype)}


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
def test_compiled_code_calls_the_fused_operator_and_its_backward():
    """Not the definition, which is for exported graphs and gives the same numbers. Dynamo of torch 2.11 takes every call for an export."""
    graphs = AotEagerAndRecordGraphs()
    arguments = call_arguments("reward2go", make_steps((6, 5)))
    arguments["reward"].requires_grad_()
    returns = torch.compile(functional.reward2go, fullgraph=True, backend=graphs)(**arguments)
    returns.sum().backward()
    called = {str(node.target) for graph in (*graphs.fw_graphs, *graphs.bw_graphs) for node in graph.graph.nodes}
    assert {name for name in called if "a2c_compiled" in name} == {
        "a2c_compiled.reward2go.default",
        "a2c_compiled.reward2go_backward.default",
    }


@pytest.mark.parametrize("name", OUTERMOST)
def test_compiled_equals_the_oracle_and_compiles_once_for_all_shapes(name):
    dtype = torch.float32
    assert_equals_oracle(name, call_arguments(name, make_steps((7, 5), dtype), **scalar_tensors(dtype)), "compiled")
    with NO_RECOMPILE:
        for shape in ((4, 9), (33, 2), (128, 3)):
            assert_equals_oracle(name, call_arguments(name, make_steps(shape, dtype), **scalar_tensors(dtype)), "compiled")


# The tests below trace with Dynamo and autograd ("aot_eager"), where layouts and kinds of arguments give different graphs. How inductor
# turns a graph into code does not depend on them. Every layout, rank and kind of coefficient is one more trace, so each test takes
# several of them at once.


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_with_numbers_as_coefficients_and_time_alone_equals_the_oracle(name):
    """Numbers need no gradient, so the graph of the backward holds the backward kernel."""
    assert_equals_oracle(name, call_arguments(name, make_steps((7,)), -1, gamma=0.97, lmbda=1), "traced")


@pytest.mark.parametrize("name", SCANS)
def test_traced_with_dimensions_before_and_after_time_equals_the_oracle(name):
    # Each dimension makes a trace slower, so only one function has four.
    shape, time_dim = ((2, 5, 3, 4), -3) if name == SCANS[0] else ((2, 5, 3), 1)
    assert_equals_oracle(name, call_arguments(name, make_steps(shape), time_dim, **scalar_tensors()), "traced")


@pytest.mark.parametrize("name", OUTERMOST)
def test_traced_with_a_single_step_equals_the_oracle(name):
    """Dynamo makes a size of 1 a constant of the graph."""
    assert_equals_oracle(name, call_arguments(name, make_steps((1, 3)), **scalar_tensors()), "traced")


@pytest.mark.parametrize("name", OUTERMOST)
def test_traced_with_coefficients_per_step_and_without_terminated_equals_the_oracle(name):
    for shape in ((6, 5), (35, 3)):
        arguments = call_arguments(name, make_steps(shape), gamma=per_step(shape), lmbda=per_step(shape, seed=2))
        arguments.pop("terminated", None)
        with torch._dynamo.config.patch(error_on_recompile=shape != (6, 5)):
            assert_equals_oracle(name, arguments, "traced")


def test_traced_rewards_to_go_without_a_bootstrap_equal_the_oracle():
    for shape in ((6, 5), (35, 3)):
        arguments = call_arguments("reward2go", make_steps(shape), **scalar_tensors())
        assert_equals_oracle("reward2go", without_bootstrap(arguments), "traced")


@pytest.mark.parametrize("name", ["td1_advantage_estimate", "td_lambda_advantage_estimate"])
def test_traced_without_rolling_gamma_equals_the_oracle(name):
    for shape in ((6, 5), (9, 3)):
        arguments = call_arguments(name, make_steps(shape), gamma=per_step(shape), rolling_gamma=False)
        assert_equals_oracle(name, arguments, "traced")


# Without rows, td_lambda_advantage_estimate and reward2go differ from the first function in elementwise operations alone.
NO_ROWS = [(name, (5, 0)) for name in SCANS if name not in ("td_lambda_advantage_estimate", "reward2go")]


@pytest.mark.parametrize(("name", "shape"), [*((name, (0, 3)) for name in OUTERMOST), *NO_ROWS])
def test_traced_gives_empty_results_and_gradients_for_empty_data(name, shape):
    arguments = call_arguments(name, make_steps(shape), **scalar_tensors())
    results, gradients = evaluate(function_in_mode(name, "traced"), arguments)
    assert all(result.shape == shape for result in results)
    assert gradients["reward"].shape == shape


# Gradients after a change of T. The gradient of a sum is an expanded number, whose strides are 0, and the numbers of steps of two arguments
# are two symbols, which a guard merges. Dynamo may read a size in a backward from such a stride. The names of the arguments number the
# symbols, and the numbers decide which symbol remains, so the table passes the tensors in both orders. The sizes shrink and grow, also to
# 1 and from 1.
LENGTHS = (9, 12, 1, 7)
LAYOUT_OF = {"TN": (lambda steps: (steps, 4), -2), "NT": (lambda steps: (4, steps), -1)}
KINDS_OF_COEFFICIENT = {
    "numbers": lambda shape: (0.97, 0.9),
    "tensors": lambda shape: (torch.tensor(0.97).double(), torch.tensor(0.9).double()),
    "per_step": lambda shape: (per_step(shape), per_step(shape, seed=2)),
}
# Function, kind of coefficient, layout, order of the tensors, the compiler's option `dynamic`, numbers of steps.
GRADIENT_CASES = [
    ("reverse_scan", "per_step", "NT", 1, None, LENGTHS),
    ("reverse_scan", "per_step", "NT", -1, None, (1, 9, 7)),
    ("reverse_scan", "per_step", "TN", 1, True, (4, 12, 1)),  # a square first: both sizes are then one symbol
    ("reward2go", "per_step", "NT", 1, None, LENGTHS),
    ("reward2go", "per_step", "NT", -1, None, LENGTHS),
    ("td_lambda_advantage_estimate", "tensors", "NT", 1, None, LENGTHS),
    ("td_lambda_advantage_estimate", "per_step", "NT", -1, None, LENGTHS),
    ("td_lambda_advantage_estimate", "per_step", "TN", 1, True, (4, 12)),
    ("retrace_return_estimate", "tensors", "NT", 1, None, LENGTHS),
    ("retrace_return_estimate", "numbers", "NT", -1, None, LENGTHS),
    ("vtrace_advantage_estimate", "tensors", "NT", 1, None, (9, 12, 7)),
    ("generalized_advantage_estimate", "tensors", "NT", 1, None, LENGTHS),
    ("n_step_return_estimate", "tensors", "NT", 1, None, (9, 12, 7)),
    ("upgo_return_estimate", "per_step", "NT", 1, None, (9, 12, 7)),
]


def sum_of_results(name, tensors, options):
    """Returns a function of as many tensors as ``tensors`` names: the sum of the results of ``functional.<name>``."""
    names = [f"tensor{i}" for i in range(len(tensors))]  # Dynamo numbers the symbols by these names
    call = ", ".join(f"{argument}={name}" for argument, name in zip(tensors, names, strict=True))
    function = getattr(functional, name)
    scope = {"total": lambda **given: sum(result.sum() for result in as_tuple(function(**given, **options)))}
    return eval(f"lambda {', '.join(names)}: total({call})", scope)


def arguments_of_length(name, kind, layout, steps):
    """Returns the tensors that ``functional.<name>`` takes by name, and the other arguments."""
    shape, time_dim = LAYOUT_OF[layout][0](steps), LAYOUT_OF[layout][1]
    gamma, lmbda = KINDS_OF_COEFFICIENT[kind](shape)
    data = make_steps(shape, seed=steps)
    if name == "reverse_scan":
        return {"x": data.reward, "decay": gamma}, {"dim": time_dim}
    arguments = call_arguments(name, data, time_dim, gamma, lmbda)
    if name.startswith("vtrace"):
        arguments |= {"lmbda": lmbda, "rho_thresh": gamma, "c_thresh": lmbda}
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    return tensors, {k: v for k, v in arguments.items() if k not in tensors}


def assert_gradients_survive_a_change_of_length(name, kind, layout, order, dynamic, lengths, backend="aot_eager"):
    tensors, options = arguments_of_length(name, kind, layout, lengths[0])
    argument_order = list(tensors)[::order]
    function = sum_of_results(name, argument_order, options)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    for steps in lengths:
        tensors, _ = arguments_of_length(name, kind, layout, steps)
        given = [tensors[argument] for argument in argument_order]
        leaves = [tensor.requires_grad_() for tensor in given if tensor.is_floating_point()]
        expected = torch.autograd.grad(function(*given), leaves, materialize_grads=True)
        gradients = torch.autograd.grad(compiled(*given), leaves, materialize_grads=True)
        for gradient, truth in zip(gradients, expected, strict=True):
            assert_close(gradient, truth, what=f"gradient with {steps} steps")


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=lambda case: "-".join(map(str, case)))
def test_compiled_gradients_equal_eager_ones_when_the_number_of_steps_changes(case):
    assert_gradients_survive_a_change_of_length(*case)


def test_gradients_compiled_by_inductor_equal_eager_ones_when_the_number_of_steps_changes():
    assert_gradients_survive_a_change_of_length("reverse_scan", "per_step", "NT", -1, None, (9, 12), "inductor")


# Two fused kernels, with one output and with two, and a scan without a fused kernel.
@pytest.mark.parametrize("name", ["reward2go", "generalized_advantage_estimate", "retrace_return_estimate"])
def test_func_grad_compiles_whole_and_equals_the_oracle(name):
    arguments = call_arguments(name, make_steps((6, 5)), **scalar_tensors())
    gamma, reward = arguments.pop("gamma"), arguments.pop("reward")

    def gradient(function):
        def sum_of_squares(gamma, reward):
            return sum(result.square().sum() for result in as_tuple(function(gamma=gamma, reward=reward, **arguments)))

        return torch.func.grad(sum_of_squares, (0, 1))

    compiled = torch.compile(gradient(getattr(functional, name)), fullgraph=True, dynamic=True, backend="aot_eager")
    expected = gradient(getattr(oracle, name))(gamma, reward)
    for result, truth in zip(compiled(gamma, reward), expected, strict=True):
        assert_close(result, truth)


class Estimator(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = getattr(functional, name)
        self.options = {"n": 3} if "n" in argument_names(name) else {}

    def forward(self, arguments):
        return self.function(**arguments, **self.options)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exported_with_dynamic_shapes_equals_the_oracle_in_other_shapes(name):
    def tensors(shape):
        arguments = call_arguments(name, make_steps(shape), **scalar_tensors())
        return {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}

    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    example = tensors((6, 5))
    shapes = {k: dynamic if v.dim() else {} for k, v in example.items()}
    module = Estimator(name)
    program = torch.export.export(module, (example,), dynamic_shapes=(shapes,)).module()
    for shape in ((6, 5), (35, 3)):
        expected = as_tuple(getattr(oracle, name)(**tensors(shape), **module.options))
        for result, truth in zip(as_tuple(program(tensors(shape))), expected, strict=True):
            assert_close(result, truth)


def test_scripted_functions_load_where_the_library_is_absent(tmp_path):
    saved = {}
    for name in FUNCTIONS:
        # A saved function has no defaults, so every argument is passed.
        defaults = {k: p.default for k, p in inspect.signature(getattr(functional, name)).parameters.items()}
        arguments = defaults | call_arguments(name, make_steps((6, 5)), **scalar_tensors())
        results, gradients = evaluate(getattr(functional, name), arguments)
        torch.jit.script(getattr(functional, name)).save(str(tmp_path / f"{name}.pt"))
        saved[name] = {"arguments": arguments, "gradients": gradients, "weights": [weights(r) for r in results]}
        saved[name]["results"] = [result.detach() for result in results]
    torch.save(saved, tmp_path / "data.pt")
    run_without_the_library(
        tmp_path,
        """
        for name, data in torch.load("data.pt").items():
            arguments = data["arguments"]
            leaves = {k: v.requires_grad_() for k, v in arguments.items() if torch.is_tensor(v) and v.is_floating_point()}
            results = torch.jit.load(name + ".pt")(**arguments)
            results = results if isinstance(results, tuple) else (results,)
            for result, expected in zip(results, data["results"], strict=True):
                torch.testing.assert_close(result.detach(), expected, rtol=1e-10, atol=1e-10)
            gradients = torch.autograd.grad(results, tuple(leaves.values()), data["weights"], materialize_grads=True)
            for argument, gradient in zip(leaves, gradients, strict=True):
                torch.testing.assert_close(gradient, data["gradients"][argument], rtol=1e-10, atol=1e-10)
        """,
    )
