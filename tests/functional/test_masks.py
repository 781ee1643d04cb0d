"""Masks: the results and gradients of every function are those of the data without the steps that the mask excludes."""

import functools

import masked_oracle
import oracle
import pytest
import torch
from cases import FUNCTIONS, argument_names, assert_equals, call_arguments, evaluate, function_in_mode, make_steps, per_step
from loops import loop_over
from tolerances import assert_close

from a2c_compiled import functional

T, N = 9, 4
NAN, INFINITY = float("nan"), float("inf")
TRACES = tuple(name for name in FUNCTIONS if not name.startswith("td0"))


def right_padding(shape, dim):
    lengths = torch.arange(1, 1 + shape[1 - dim % 2]).clamp_max(shape[dim])
    steps = torch.arange(shape[dim])
    return steps[:, None] < lengths if dim % 2 == 0 else steps < lengths[:, None]


def holes(shape, dim):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, generator=generator) < 0.6


MASKS = {"right_padding": right_padding, "holes": holes}


def filled(arguments, mask, value):
    """Floating tensors with ``value`` and flags with True at the excluded steps."""

    def fill(tensor):
        return tensor.masked_fill(~mask, True if tensor.dtype == torch.bool else value)

    return {k: fill(v) if isinstance(v, torch.Tensor) and v.shape == mask.shape else v for k, v in arguments.items()}


def assert_equals_data_without(name, arguments, mask, mode="eager", time_dim=-2, skip_masked=False, starts=(), junk=NAN):
    def reference(**arguments):
        time = {argument: -1 for argument in ("time_dim", "dim") if argument in arguments}
        given = {k: v for k, v in arguments.items() if k not in ("mask", "skip_masked", "cu_seqlens", *time)}
        return masked_oracle.on_pieces(
            functools.partial(getattr(oracle, name), **time), given, mask, time_dim, skip_masked, starts
        )

    options = {"mask": mask} if name.startswith("td0") else {"mask": mask, "skip_masked": skip_masked}
    assert_equals(function_in_mode(name, mode), reference, {**filled(arguments, mask, junk), **options})


@pytest.mark.parametrize("time_dim", [-2, -1])
@pytest.mark.parametrize("name", FUNCTIONS)
@loop_over("junk", [NAN, INFINITY, -1.0])
@loop_over("kind", MASKS)
def test_equals_the_data_without_the_excluded_steps_whatever_they_hold(name, time_dim, kind, junk):
    shape = (T, N) if time_dim == -2 else (N, T)
    mask = MASKS[kind](shape, time_dim)
    arguments = call_arguments(name, make_steps(shape), time_dim, gamma=per_step(shape), lmbda=per_step(shape, seed=2))
    for skip_masked in (False, True) if name in TRACES else (False,):
        assert_equals_data_without(name, arguments, mask, time_dim=time_dim, skip_masked=skip_masked, junk=junk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_in_every_dtype_with_numbers_as_coefficients(name, dtype):
    shape = (2, T, 3)
    arguments = call_arguments(name, make_steps(shape, dtype), gamma=0.97, lmbda=0.9)
    for skip_masked in (False, True) if name in TRACES else (False,):
        assert_equals_data_without(name, arguments, holes(shape, -2), skip_masked=skip_masked)


@pytest.mark.parametrize("mode", ["scripted", pytest.param("traced", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_in_every_mode(name, mode):
    for shape in ((T, N), (12, 3)):
        arguments = call_arguments(name, make_steps(shape), gamma=torch.tensor(0.97).double(), lmbda=torch.tensor(0.9).double())
        for skip_masked in (False, True) if name in TRACES else (False,):
            assert_equals_data_without(name, arguments, holes(shape, -2), mode, skip_masked=skip_masked)


@pytest.mark.parametrize("skip_masked", [False, True])
@pytest.mark.parametrize("name", TRACES)
def test_a_trace_ends_at_the_end_of_a_packed_sequence_too(name, skip_masked):
    starts = (0, 3, 4, 7)
    arguments = call_arguments(name, make_steps((T, N)))
    arguments["cu_seqlens"] = torch.tensor([*starts, T])
    assert_equals_data_without(name, arguments, holes((T, N), -2), skip_masked=skip_masked, starts=starts)


@pytest.mark.parametrize("name", ["td1_return_estimate", "td1_advantage_estimate", "td_lambda_return_estimate"])
@pytest.mark.parametrize("skip_masked", [False, True])
def test_the_coefficients_of_each_start_apply_to_the_steps_that_count(name, skip_masked):
    arguments = call_arguments(name, make_steps((T, N)), gamma=per_step((T, N)), rolling_gamma=False)
    assert_equals_data_without(name, arguments, holes((T, N), -2), skip_masked=skip_masked)


@pytest.mark.parametrize("skip_masked", [False, True])
def test_a_reverse_scan_equals_the_data_without_the_excluded_steps(skip_masked):
    x, decay = make_steps((T, N)).reward, per_step((T, N))
    assert_equals_data_without("reverse_scan", {"x": x, "decay": decay, "dim": -2}, holes((T, N), -2), skip_masked=skip_masked)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mask_of_no_step_gives_zeros(name):
    arguments = call_arguments(name, make_steps((3, 2)))
    mask = torch.zeros(3, 2, dtype=torch.bool)
    results, gradients = evaluate(getattr(functional, name), {**filled(arguments, mask, NAN), "mask": mask})
    for tensor in (*results, *gradients.values()):
        assert not tensor.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mask_of_every_step_changes_nothing(name):
    arguments = call_arguments(name, make_steps((T, N)))
    mask = torch.ones(T, N, dtype=torch.bool)
    for options in ({}, {"skip_masked": True}) if name in TRACES else ({},):
        results, gradients = evaluate(getattr(functional, name), {**arguments, "mask": mask, **options})
        expected, expected_gradients = evaluate(getattr(functional, name), arguments)
        for result, truth in zip((*results, *gradients.values()), (*expected, *expected_gradients.values()), strict=True):
            assert_close(result, truth)


def test_rewards_in_the_padding_have_no_effect():
    """All values and rewards are 0, except rewards of 100 in the padding; no step is done."""
    zeros, never = torch.zeros(6, 1), torch.zeros(6, 1, dtype=torch.bool)
    reward = zeros.clone()
    reward[4:] = 100.0
    mask = reward == 0
    estimate = functional.generalized_advantage_estimate(0.99, 0.95, zeros, zeros, reward, never, mask=mask)
    assert not estimate.advantage.any()
    assert not estimate.value_target.any()


@pytest.mark.parametrize("name", [*FUNCTIONS, "reverse_scan"])
def test_a_mask_of_another_shape_or_dtype_is_refused(name):
    arguments = call_arguments(name, make_steps((3, 2)), decay=per_step((3, 2)), dim=0)
    like = "reward" if "reward" in argument_names(name) else "x"
    function = getattr(functional, name)
    with pytest.raises(ValueError, match=rf"mask: expected the shape of {like}, \[3, 2\], got \[3\]"):
        function(**arguments, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask: expected dtype torch.bool, got torch.float32"):
        function(**arguments, mask=torch.ones(3, 2))
