"""Every estimator compiled whole, with dynamic shapes, forward and backward; scripted and saved; exported."""

import inspect

import oracle
import pytest
import torch
from cases import (
    FUNCTIONS,
    argument_names,
    call_arguments,
    evaluate,
    function_in_mode,
    make_steps,
    per_step,
    run_without_the_library,
    weights,
)
from tolerances import assert_close

from a2c_compiled import functional

WITH_ROLLING_GAMMA = tuple(name for name in FUNCTIONS if "rolling_gamma" in argument_names(name))
# One for each scan; the other functions are these and elementwise operations.
SCANS = (
    "generalized_advantage_estimate",
    "td_lambda_return_estimate",
    "vtrace_advantage_estimate",
    "reward2go",
    "retrace_return_estimate",
)
NO_RECOMPILE = torch._dynamo.config.patch(error_on_recompile=True)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    """Each test compiles for itself, so that none meets another's graphs or their limit."""
    torch._dynamo.reset()
    function_in_mode.cache_clear()


def coefficients(dtype=torch.float64):
    return {"gamma": torch.tensor(0.97, dtype=dtype), "lmbda": torch.tensor(0.9, dtype=dtype)}


def assert_equals_oracle(function, name, arguments):
    results, gradients = evaluate(function, arguments)
    expected, expected_gradients = evaluate(
        getattr(oracle, name),
        {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in arguments.items()},
    )
    for i, (result, truth) in enumerate(zip(results, expected, strict=True)):
        assert_close(result, truth, what=f"result {i}")
    for argument, truth in expected_gradients.items():
        assert_close(gradients[argument], truth, what=f"gradient to {argument}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_equals_the_oracle_and_compiles_once_for_all_shapes(name):
    compiled = function_in_mode(name, "compiled")
    dtype = torch.float32
    assert_equals_oracle(compiled, name, call_arguments(name, make_steps((7, 5), dtype), **coefficients(dtype)))
    with NO_RECOMPILE:
        for shape in ((4, 9), (33, 2), (128, 3)):
            assert_equals_oracle(compiled, name, call_arguments(name, make_steps(shape, dtype), **coefficients(dtype)))


# From here on traced through dynamo and autograd's graphs, which is where these differ; the code that inductor writes is the same.
@pytest.mark.parametrize(
    ("shape", "time_dim"),
    [((7,), -1), ((2, 5, 3, 4), -3), ((1, 3), -2)],
    ids=str,
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_equals_the_oracle_in_every_layout(name, shape, time_dim):
    assert_equals_oracle(
        function_in_mode(name, "traced"), name, call_arguments(name, make_steps(shape), time_dim, **coefficients())
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_equals_the_oracle_with_a_coefficient_for_each_step_and_terminated_missing(name):
    traced = function_in_mode(name, "traced")
    first = True
    for shape in ((6, 5), (35, 3)):
        arguments = call_arguments(name, make_steps(shape), gamma=per_step(shape), lmbda=per_step(shape, seed=2))
        if "done" in arguments:
            arguments.pop("terminated", None)
        with torch._dynamo.config.patch(error_on_recompile=not first):
            assert_equals_oracle(traced, name, arguments)
        first = False


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_takes_numbers(name):
    arguments = call_arguments(name, make_steps((6, 5)), gamma=0.97, lmbda=1)
    assert_equals_oracle(function_in_mode(name, "traced"), name, arguments)


@pytest.mark.parametrize("name", WITH_ROLLING_GAMMA)
def test_traced_equals_the_oracle_where_gamma_does_not_roll(name):
    traced = function_in_mode(name, "traced")
    for shape in ((6, 5), (9, 3)):
        assert_equals_oracle(traced, name, call_arguments(name, make_steps(shape), gamma=per_step(shape), rolling_gamma=False))


@pytest.mark.parametrize("shape", [(0, 3), (5, 0)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_gives_empty_results_for_empty_data(name, shape):
    arguments = call_arguments(name, make_steps(shape), **coefficients())
    results, gradients = evaluate(function_in_mode(name, "traced"), arguments)
    assert all(result.shape == shape for result in results)
    assert gradients["reward"].shape == shape


@pytest.mark.parametrize("name", SCANS)
def test_func_grad_compiles_whole_and_equals_the_oracle(name):
    arguments = call_arguments(name, make_steps((6, 5)), **coefficients())
    gamma, reward = arguments.pop("gamma"), arguments.pop("reward")

    def total(function, gamma, reward):
        results = function(gamma=gamma, reward=reward, **arguments)
        return sum(result.square().sum() for result in (results if isinstance(results, tuple) else (results,)))

    gradient = torch.func.grad(lambda gamma, reward: total(getattr(functional, name), gamma, reward), (0, 1))
    compiled = torch.compile(gradient, fullgraph=True, dynamic=True, backend="aot_eager")
    expected = torch.func.grad(lambda gamma, reward: total(getattr(oracle, name), gamma, reward), (0, 1))(gamma, reward)
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
def test_exports_with_dynamic_shapes(name):
    def tensors(shape):
        arguments = call_arguments(name, make_steps(shape), **coefficients())
        return {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor)}

    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    example = tensors((6, 5))
    shapes = {k: dynamic if v.dim() else {} for k, v in example.items()}
    module = Estimator(name)
    program = torch.export.export(module, (example,), dynamic_shapes=(shapes,))
    for shape in ((6, 5), (35, 3)):
        results = program.module()(tensors(shape))
        expected = getattr(oracle, name)(**tensors(shape), **module.options)
        for result, truth in zip(*(r if isinstance(r, tuple) else (r,) for r in (results, expected)), strict=True):
            assert_close(result, truth)


def test_scripted_functions_load_where_the_library_is_absent(tmp_path):
    saved = {}
    for name in FUNCTIONS:
        # A saved function keeps no defaults: every argument is given.
        defaults = {k: p.default for k, p in inspect.signature(getattr(functional, name)).parameters.items()}
        arguments = defaults | call_arguments(name, make_steps((6, 5)), **coefficients())
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
