"""Every fused form equals its definition: results, gradients of any order, layouts, transforms. Packed sequences too."""

import functools
from contextlib import nullcontext

import oracle
import pytest
import torch
from cases import (
    argument_names,
    as_tuple,
    assert_equals,
    call_arguments,
    contiguous,
    interleaved,
    make_steps,
    operands,
    padded,
    per_step,
    transposed,
    weights,
)
from loops import loop_over
from tolerances import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from a2c_compiled import functional
from a2c_compiled._precision import LARGEST_LOG_RATIO
from a2c_compiled.functional.eligibility import _eligibility_trace, _fused_eligibility_trace
from a2c_compiled.functional.gae import _fused_gae, _gae
from a2c_compiled.functional.scan import _fused_reward2go, _reward2go
from a2c_compiled.functional.td import _fused_td_lambda, _td_lambda
from a2c_compiled.functional.vtrace import _fused_vtrace, _vtrace
from a2c_compiled.kernels import cpu_scan, scan_forms

DEFINITIONS = {
    "gae": _gae,
    "td_lambda": _td_lambda,
    "vtrace": _vtrace,
    "reward2go": _reward2go,
    "eligibility_trace": _eligibility_trace,
}
FUSED = {
    "gae": _fused_gae,
    "td_lambda": _fused_td_lambda,
    "vtrace": _fused_vtrace,
    "reward2go": _fused_reward2go,
    "eligibility_trace": _fused_eligibility_trace,
}
FORMS = {form.name: form for form in scan_forms.FORMS}
FUNCTIONS = (
    "generalized_advantage_estimate",
    "td_lambda_return_estimate",
    "td1_return_estimate",
    "vtrace_advantage_estimate",
    "reward2go",
)
name_of_form = pytest.mark.parametrize("name", sorted(DEFINITIONS))
function_name = pytest.mark.parametrize("name", FUNCTIONS)

# Shapes on both sides of every threshold of the C++ kernels: lanes of 8, tiles of 128, parts from 64 steps on, blocks of 1024 sequences,
# and short sequences, of which several fill a lane.
SHAPES = [
    ((1,), -1),
    ((63,), -1),
    ((64,), -1),
    ((1031,), -1),
    ((5, 3), -2),
    ((3, 5), -1),
    ((130, 7), -2),
    ((7, 130), -1),
    ((8, 128), -1),
    ((9, 129), -1),
    ((20, 300), -1),
    ((33, 8), -2),
    ((3, 1030), -2),
    ((3, 70, 5), -2),
    ((2, 3, 4, 9), -4),
    ((1, 9), -2),
    ((9, 1), -1),
    ((83, 2), -1),
    ((140, 5), -1),
    ((29, 12), -1),
]


def double(tensors):
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


def run(form, tensors, dim):
    return as_tuple(getattr(torch.ops.a2c_compiled, form.name)(*tensors, dim))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@name_of_form
@loop_over("layout", [contiguous, transposed, padded, interleaved])
@loop_over(("shape", "dim"), SHAPES)
def test_kernel_and_its_backward_equal_the_definition(name, shape, dim, dtype, layout):
    form, backward_form = FORMS[name], FORMS[f"{name}_backward"]
    by_name = {key: layout(value) if value.dim() else value for key, value in operands(form, shape, dtype).items()}
    inputs = list(by_name.values())
    results = run(form, inputs, dim)
    variables = [tensor.requires_grad_() for tensor in double(inputs)[len(form.coefficients) : -len(form.flags)]]
    wide = double(inputs[: len(form.coefficients)]) + variables + inputs[-len(form.flags) :]
    expected = as_tuple(DEFINITIONS[name](*wide, dim))
    for result, value in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert_close(result, value, what="result")
    grads = [layout(weights(result)) for result in results]
    expected_grads = torch.autograd.grad(expected, variables, double(grads), materialize_grads=True)
    by_name.update({f"grad_{output}": grad for output, grad in zip(form.outputs, grads, strict=True)})
    by_name.update({output: layout(result) for output, result in zip(form.outputs, results, strict=True)})
    backward_operands = (*backward_form.coefficients, *backward_form.values, *backward_form.flags)
    actual_grads = run(backward_form, [by_name[key] for key in backward_operands], dim)
    expected_by_name = dict(zip((f"grad_{value}" for value in form.values), expected_grads, strict=True))
    for output, result in zip(backward_form.outputs, actual_grads, strict=True):
        assert result.dtype == dtype
        # The backward reads results that were rounded to the dtype of the data. Large targets amplify this second rounding.
        assert_close(result, expected_by_name[output], what=output, roundings=8)


# The entries of a coefficient that the strides of a cursor tell apart: one per step, one per time, one for all data.
ENTRIES = {
    "all per step": lambda k, shape: shape,
    "the first per step": lambda k, shape: () if k else shape,
    "the others per step": lambda k, shape: shape if k else (),
    "one per step, others per time": lambda k, shape: (shape[0], *[1] * (len(shape) - 1)) if k else shape,
}


@name_of_form
@loop_over("dtype", [torch.float64, torch.float32])
@loop_over("entries", ENTRIES)
@loop_over(("shape", "dim"), [((13, 9), -2), ((9, 13), -1), ((70,), -1), ((4, 300), -2), ((5, 8), -2)])
def test_kernel_with_coefficients_per_step_equals_the_definition_and_so_do_gradients(name, shape, dim, entries, dtype):
    form, results, gradients = FORMS[name], [], []
    tensors = list(operands(form, shape, dtype).values())
    first_value, first_flag = len(form.coefficients), len(tensors) - len(form.flags)
    for k in range(first_value):
        tensors[k] = (tensors[k] * per_step(ENTRIES[entries](k, shape), dtype=dtype, seed=k)).expand(
            shape if ENTRIES[entries](k, shape) else ()
        )
    for function, inputs in ((FUSED[name], tensors), (DEFINITIONS[name], double(tensors))):
        inputs = [
            tensor.clone().requires_grad_() if first_value <= i < first_flag else tensor for i, tensor in enumerate(inputs)
        ]
        outputs = as_tuple(function(*inputs, dim))
        grads = torch.autograd.grad(outputs, inputs[first_value:first_flag], [weights(output) for output in outputs])
        results.append([output.detach() for output in outputs])
        gradients.append(grads)
    for result, expected in zip(*results, strict=True):
        assert_close(result, expected)
    for gradient, expected in zip(*gradients, strict=True):
        assert_close(gradient, expected, roundings=8)


@pytest.mark.parametrize("name", [form.name for form in scan_forms.FORMS])
def test_operator_passes_opcheck(name):
    form = FORMS[name]
    for layout in (contiguous, transposed, interleaved):
        tensors = [layout(tensor) if tensor.dim() else tensor for tensor in operands(form, (6, 9)).values()]
        outcome = torch.library.opcheck(getattr(torch.ops.a2c_compiled, name).default, (*tensors, -2))
        assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", [form.name for form in scan_forms.FORMS])
def test_outputs_have_the_strides_of_the_fake_ones_where_one_operand_has_another_layout(name):
    form = FORMS[name]
    tensors = list(operands(form, (6, 9)).values())
    for k, operand in enumerate(tensors):
        mixed = [*tensors[:k], transposed(operand) if operand.dim() else operand, *tensors[k + 1 :]]
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = run(form, [mode.from_tensor(tensor) for tensor in mixed], -2)
        assert [fake.stride() for fake in fakes] == [real.stride() for real in run(form, mixed, -2)]


@pytest.mark.parametrize("name", [form.name for form in scan_forms.FORMS])
def test_without_the_extension_the_operator_computes_the_definition(name, monkeypatch):
    form = FORMS[name]
    by_name = operands(form, (40, 9))
    if "value_target" in by_name:  # the definition computes it anew
        by_name["value_target"] = run(scan_forms.VTRACE, [by_name[key] for key in operands(scan_forms.VTRACE, (1, 1))], -2)[1]
    tensors = list(by_name.values())
    expected = run(form, tensors, -2)
    monkeypatch.setattr(cpu_scan, "_extension", None)
    monkeypatch.setattr(cpu_scan, "warn_once", lambda: None)
    for result, value in zip(run(form, tensors, -2), expected, strict=True):
        assert_close(result, value)
        assert result.stride() == value.stride()


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("coefficients", ["values_alone", "numbers", "per step"])
@name_of_form
def test_derivatives_equal_finite_differences(name, coefficients, order):
    """Derivatives in the values and, except in the case "values_alone", in the coefficients."""
    form = FORMS[name]
    by_name = operands(form, (4, 2), coefficients="per step" if coefficients == "per step" else "numbers")
    if name == "vtrace":  # on both sides of the clip's corners, and not at them
        by_name["log_pi"] = by_name["log_mu"] + torch.tensor([[-0.7, 0.9], [0.5, -0.4], [-1.1, 0.6], [0.8, -0.6]]).double()
    flags = [by_name.pop(key) for key in form.flags]
    fixed = [by_name.pop(key) for key in form.coefficients] if coefficients == "values_alone" else []
    variables = tuple(tensor.requires_grad_() for tensor in by_name.values())
    function = FUSED[name]
    check = {"first": torch.autograd.gradcheck, "second": torch.autograd.gradgradcheck}[order]
    assert check(lambda *variables: function(*fixed, *variables, *flags, -2), variables)


@name_of_form
def test_vmap_over_any_operand_equals_one_call_each(name):
    form = FORMS[name]
    by_name = operands(form, (3, 5, 4))
    function = FUSED[name]
    one = {key: value if value.dim() == 0 else value[0] for key, value in by_name.items()}
    for batched in ([*form.values, *form.flags], [form.values[-1]], [form.coefficients[0]], [form.flags[0]]):
        tensors = [
            (torch.tensor([0.9, 0.5, 0.7]).double() if key in form.coefficients else by_name[key])
            if key in batched
            else one[key]
            for key in by_name
        ]
        in_dims = tuple(0 if key in batched else None for key in by_name)
        results = as_tuple(torch.vmap(lambda *tensors: function(*tensors, -2), in_dims)(*tensors))
        for i in range(3):
            single = [tensor if in_dim is None else tensor[i] for tensor, in_dim in zip(tensors, in_dims, strict=True)]
            for result, expected in zip(results, as_tuple(function(*single, -2)), strict=True):
                assert_close(result[i], expected)


@name_of_form
def test_gradients_per_sample_by_vmap_of_grad(name):
    form = FORMS[name]
    tensors = list(operands(form, (3, 5, 4)).values())
    function, last_value = FUSED[name], len(form.coefficients) + len(form.values) - 1

    def objective(value, *tensors):
        arguments = [*tensors[:last_value], value, *tensors[last_value:]]
        return as_tuple(function(*arguments, -2))[0].square().sum()

    value, others = tensors[last_value], tensors[:last_value] + tensors[last_value + 1 :]
    in_dims = (0, *(None if tensor.dim() == 0 else 0 for tensor in others))
    results = torch.vmap(torch.func.grad(objective), in_dims)(value, *others)
    for i in range(3):
        leaf = value[i].clone().requires_grad_()
        single = [tensor if tensor.dim() == 0 else tensor[i] for tensor in others]
        assert_close(results[i], torch.autograd.grad(objective(leaf, *single), leaf)[0])


@function_name
def test_dispatch_modes_and_fake_tensors_receive_the_operator(name):
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    arguments = call_arguments(name, make_steps((6, 3)))
    expected = getattr(functional, name)(**arguments)
    with Recorder():
        getattr(functional, name)(**arguments)
    assert any(operator.startswith("a2c_compiled.") for operator in seen)
    with FakeTensorMode() as mode:
        fake = {key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
        for result, value in zip(as_tuple(getattr(functional, name)(**fake)), as_tuple(expected), strict=True):
            assert (result.shape, result.dtype, result.stride()) == (value.shape, value.dtype, value.stride())


@function_name
def test_a_number_first_used_in_inference_mode_works_in_training(name):
    steps = make_steps((6, 3))
    gamma = 0.123456  # a number that no other test uses, because numbers are cached as tensors
    with torch.inference_mode():
        getattr(functional, name)(**call_arguments(name, steps, gamma=gamma))
    reward = steps.reward.clone().requires_grad_()
    result = as_tuple(getattr(functional, name)(**call_arguments(name, steps._replace(reward=reward), gamma=gamma)))[0]
    assert torch.autograd.grad(result.sum(), reward)[0].isfinite().all()


def test_backward_of_gae_does_not_need_rewards_and_values():
    """GAE is linear in rewards and values, so a rollout's buffers may be overwritten before the backward."""
    steps = make_steps((6, 3))
    value = steps.state_value.clone().requires_grad_()
    advantage, _ = functional.generalized_advantage_estimate(
        **call_arguments("generalized_advantage_estimate", steps._replace(state_value=value))
    )
    steps.reward.zero_()
    advantage.sum().backward()
    assert value.grad.isfinite().all()


def test_results_larger_than_the_cached_allocations_equal_the_oracle():
    steps = make_steps((64, 9000), torch.float32)
    arguments = call_arguments("generalized_advantage_estimate", steps)
    for result, expected in zip(
        functional.generalized_advantage_estimate(**arguments), oracle.generalized_advantage_estimate(**arguments), strict=True
    ):
        assert_close(result, expected)


@pytest.mark.parametrize("shape", [(20, 9), (20,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_vtrace_with_extreme_ratios_equals_the_oracle(dtype, shape):
    steps = make_steps(shape, dtype)
    log_ratio = torch.tensor([0.0, -1e-3, 1e-3, -5, 5, -50, 50, -86.9, -87.5, 79.9, 80.1, 500, -500, -torch.inf, torch.inf])
    log_pi = log_ratio.to(dtype).repeat(20)[: steps.reward.numel()].view(shape)
    arguments = call_arguments(
        "vtrace_advantage_estimate", steps._replace(log_pi=log_pi, log_mu=torch.zeros_like(log_pi)), time_dim=-len(shape)
    )
    # The library clamps ratios at e^80 and the oracle does not, so no clip is infinite here.
    for clips in ({}, {"rho_thresh": 1e3, "c_thresh": 0.9}, {"pg_rho_thresh": 1e3, "lmbda": 0.9}):
        expected = oracle.vtrace_advantage_estimate(**arguments, **clips)
        for result, value in zip(functional.vtrace_advantage_estimate(**arguments, **clips), expected, strict=True):
            assert_close(result, value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_kernel_clips_the_log_ratio_where_the_definition_does(dtype):
    log_pi = LARGEST_LOG_RATIO + torch.tensor([[-2.0, -0.01, 0.01, 5.0]], dtype=dtype)
    zero, one, ended = torch.zeros_like(log_pi), torch.ones_like(log_pi), torch.ones_like(log_pi, dtype=torch.bool)
    coefficients = [torch.tensor(number, dtype=dtype) for number in (0.9, torch.inf, torch.inf, torch.inf, 1.0)]
    results = []
    for function in (FUSED["vtrace"], _vtrace):
        variable = log_pi.clone().requires_grad_()
        advantage, _ = function(*coefficients, variable, zero, zero, zero, one, ended, ended, -2)
        (gradient,) = torch.autograd.grad(advantage.sum(), variable)
        results.append(torch.cat([advantage.detach(), gradient]).log())  # minus infinity where the gradient is 0
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    assert (results[1][1] == -torch.inf).tolist() == [False, False, True, True]


# -- Packed sequences -------------------------------------------------------------------------------------------------------

LENGTHS = {"some": (3, 1, 7, 2), "one": (13,), "empty_ones": (0, 3, 0, 0, 10, 0), "single_steps": (1,) * 13}
PACKED_FUNCTIONS = (
    "generalized_advantage_estimate",
    "td1_return_estimate",
    "td1_advantage_estimate",
    "td_lambda_return_estimate",
    "td_lambda_advantage_estimate",
    "vtrace_advantage_estimate",
    "reward2go",
    "eligibility_trace",
    "episodic_cumsum",
    "n_step_return_estimate",
    "upgo_return_estimate",
    "retrace_return_estimate",
)


def packed(lengths, dtype=torch.int32):
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def one_by_one(name, arguments, lengths, dim):
    """Applies the oracle to each sequence separately."""
    pieces = {
        key: value.split(lengths, dim) if isinstance(value, torch.Tensor) and value.dim() else [value] * len(lengths)
        for key, value in arguments.items()
    }
    results = [
        as_tuple(getattr(oracle, name)(**{key: values[i] for key, values in pieces.items()}))
        for i, length in enumerate(lengths)
        if length > 0
    ]
    return tuple(torch.cat(parts, dim) for parts in zip(*results, strict=True))


@pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "done_alone"])
@pytest.mark.parametrize("name", PACKED_FUNCTIONS)
@loop_over("dtype", [torch.int32, torch.int64])
@loop_over("lengths", LENGTHS.values())
@loop_over(("shape", "dim"), [((13,), -1), ((13, 3), -2), ((2, 13), -1)])
def test_packed_sequences_equal_each_alone_and_so_do_gradients(name, terminated, shape, dim, lengths, dtype):
    arguments = call_arguments(name, make_steps(shape), dim)
    if not terminated:
        arguments.pop("terminated", None)
    function = functools.partial(getattr(functional, name), cu_seqlens=packed(lengths, dtype))
    assert_equals(function, lambda **tensors: one_by_one(name, tensors, lengths, dim), arguments)


def test_packed_reverse_scan_equals_each_alone():
    x, decay = torch.randn(13, 2, dtype=torch.float64), torch.rand(13, 2, dtype=torch.float64)
    result = functional.reverse_scan(x, decay, -2, packed((3, 1, 9)))
    assert_close(
        result,
        torch.cat([oracle.reverse_scan(*part, -2) for part in zip(x.split((3, 1, 9)), decay.split((3, 1, 9)), strict=True)]),
    )


@pytest.mark.parametrize("mode", ["scripted", pytest.param("traced", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PACKED_FUNCTIONS)
def test_packed_sequences_scripted_and_traced_equal_each_alone(name, mode):
    function = getattr(functional, name)
    if mode == "traced":
        torch._dynamo.reset()
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    else:
        function = torch.jit.script(function)
    arguments = call_arguments(name, make_steps((13, 2)), gamma=torch.tensor(0.97))
    results = as_tuple(function(**arguments, cu_seqlens=packed((3, 1, 7, 2))))
    for result, expected in zip(results, one_by_one(name, arguments, (3, 1, 7, 2), -2), strict=True):
        assert_close(result, expected)


def test_packed_td1_without_rolling_gamma_does_not_bootstrap_any_open_end():
    steps = make_steps((13, 2))
    arguments = call_arguments("td1_return_estimate", steps, gamma=per_step((13, 2)), rolling_gamma=False)
    result = functional.td1_return_estimate(**arguments, cu_seqlens=packed((3, 1, 7, 2)))
    assert_close(result, one_by_one("td1_return_estimate", arguments, (3, 1, 7, 2), -2)[0])


@pytest.mark.parametrize("name", [*PACKED_FUNCTIONS, "reverse_scan"])
@pytest.mark.parametrize(
    ("cu_seqlens", "error", "message"),
    [
        ([0, 13], TypeError, "cu_seqlens: expected a torch.Tensor, got list"),
        (torch.tensor([0.0, 13.0]), TypeError, "cu_seqlens: expected dtype torch.int32 or torch.int64, got torch.float32"),
        (torch.tensor([[0, 13]]), ValueError, r"cu_seqlens: expected one dimension, got shape \[1, 2\]"),
        (torch.tensor([0, 13], device="meta"), ValueError, "cu_seqlens: expected the device of the data, cpu, got meta"),
    ],
)
def test_wrong_cu_seqlens_raise_an_error_that_names_them(name, cu_seqlens, error, message):
    if name == "reverse_scan":
        call = functools.partial(functional.reverse_scan, torch.randn(13, 2), torch.rand(13, 2), -2)
    else:
        call = functools.partial(getattr(functional, name), **call_arguments(name, make_steps((13, 2))))
    with pytest.raises(error, match=message):
        call(cu_seqlens=cu_seqlens)


def test_packed_sequences_without_steps_give_an_empty_result():
    result = functional.reward2go(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.bool), 0.9, cu_seqlens=torch.tensor([0]))
    assert result.shape == (0, 2)


def test_every_function_of_time_takes_cu_seqlens():
    assert {name for name in functional.__all__ if name.islower() and "cu_seqlens" in argument_names(name)} == {
        *PACKED_FUNCTIONS,
        "reverse_scan",
    }


@name_of_form
def test_numbers_are_not_copied_from_the_host(name):
    """A copy from the host would synchronise. The meta device replaces any device that is not the CPU."""
    copies = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
                copies.append(function)
            return function(*args, **(kwargs or {}))

    form = FORMS[name]
    by_name = operands(form, (4, 3))
    tensors = [by_name[key] if key in form.coefficients else by_name[key].to("meta") for key in by_name]
    tensors[0] = tensors[0].to("meta").requires_grad_()  # the others stay numbers on the host
    tensors[len(form.coefficients)].requires_grad_()
    with Recorder():
        torch.autograd.grad(sum(result.sum() for result in as_tuple(FUSED[name](*tensors, -2))), tensors[0])
    assert not copies


# -- Calls that must not go past the operator ----------------------------------------------------------------------------------


def reward_and_done(shape=(6, 3)):
    steps = make_steps(shape)
    return steps.reward, steps.done


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the checks read shapes
def test_a_jit_trace_contains_the_operator():
    reward, done = reward_and_done()
    with torch.no_grad():
        traced = torch.jit.trace(lambda reward: functional.reward2go(reward, done, 0.917), (reward,))
    assert "a2c_compiled::reward2go" in str(traced.graph)
    assert_close(traced(2 * reward), functional.reward2go(2 * reward, done, 0.917))


def test_batched_gradients_equal_one_backward_each():
    reward, done = reward_and_done()
    result = functional.reward2go(reward.requires_grad_(), done, 0.9)
    grads = torch.randn(4, *result.shape, dtype=result.dtype)
    (batched,) = torch.autograd.grad(result, reward, grads, is_grads_batched=True, retain_graph=True)
    for one, gradient in zip(grads, batched, strict=True):
        assert_close(gradient, torch.autograd.grad(result, reward, one, retain_graph=True)[0])


def test_a_negated_view_equals_the_oracle():
    _, done = reward_and_done()
    reward = torch.randn(6, 3, dtype=torch.complex128).conj().imag
    assert reward.is_neg()
    assert_close(functional.reward2go(reward, done, 0.9), oracle.reward2go(reward.clone(), done, 0.9))


def test_the_kernel_raises_for_a_tensor_without_memory():
    _, done = reward_and_done()
    with pytest.raises(ValueError, match="without memory"):
        cpu_scan.run(scan_forms.REWARD2GO, (torch.tensor(0.9),), (torch._efficientzerotensor((6, 3)),), (done,), -2)


@pytest.mark.parametrize("where", ["default_device", "func_grad", "vmap", "fake"])
def test_a_number_first_used_on_another_device_or_in_a_transform_works_in_eager_mode(where):
    reward, done = reward_and_done()
    gamma = {"default_device": 0.7101, "func_grad": 0.7102, "vmap": 0.7103, "fake": 0.7104}[where]

    def returns(reward):
        return functional.reward2go(reward, done, gamma)

    if where == "default_device":
        with torch.device("meta"):
            returns(reward)
    elif where == "func_grad":
        torch.func.grad(lambda reward: returns(reward).sum())(reward)
    elif where == "vmap":
        torch.vmap(returns)(torch.stack([reward, reward]))
    else:
        with FakeTensorMode(allow_non_fake_inputs=True):
            returns(reward)
    assert_close(returns(reward), oracle.reward2go(reward, done, gamma))


def test_forward_mode_differentiation_raises():
    reward, done = reward_and_done()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(reward, torch.ones_like(reward))
        with pytest.raises(NotImplementedError):
            functional.reward2go(dual, done, 0.9)


def test_more_dimensions_than_the_kernel_supports_equal_the_oracle():
    shape = (1,) * 15 + (5, 3)
    reward, done = (tensor.reshape(shape) for tensor in reward_and_done((5, 3)))
    assert_close(functional.reward2go(reward, done, 0.9), oracle.reward2go(reward, done, 0.9))


def test_vmap_over_an_operator_equals_one_call_for_each():
    for form in (*scan_forms.FORMS, *scan_forms.MASKED_FORMS):
        operator = getattr(torch.ops.a2c_compiled, form.name)
        coefficients = [
            torch.rand(2, dtype=torch.float64) if i % 2 else torch.tensor(0.9, dtype=torch.float64)
            for i in range(len(form.coefficients))
        ]
        values = [torch.rand(2, 5, 3, dtype=torch.float64) for _ in form.values]
        flags = [torch.rand(5, 3) < 0.3 if i % 2 else torch.rand(2, 5, 3) < 0.3 for i in range(len(form.flags))]
        tensors = [*coefficients, *values, *flags]
        in_dims = tuple(0 if tensor.size()[:1] == (2,) else None for tensor in tensors)
        results = as_tuple(torch.vmap(lambda *tensors, op=operator: op(*tensors, -2), in_dims)(*tensors))
        for i in range(2):
            one = [tensor if dim is None else tensor[i] for tensor, dim in zip(tensors, in_dims, strict=True)]
            for result, expected in zip(results, as_tuple(operator(*one, -2)), strict=True):
                assert_close(result[i], expected, what=form.name)


@pytest.mark.parametrize("mode", ["kernel", "torch", "fake"])
def test_an_operator_refuses_operands_of_another_dtype_or_shape(mode, monkeypatch):
    if mode == "torch":
        monkeypatch.setattr(cpu_scan, "is_available", lambda: False)
        monkeypatch.setattr(cpu_scan, "warn_once", lambda: None)
    for form in (*scan_forms.FORMS, *scan_forms.MASKED_FORMS):
        operator = getattr(torch.ops.a2c_compiled, form.name)
        names = (*form.coefficients, *form.values, *form.flags)
        good = {name: torch.tensor(0.9) for name in form.coefficients}
        good |= {name: torch.rand(5, 3) for name in form.values}
        good |= {name: torch.rand(5, 3) < 0.3 for name in form.flags}
        for name in names:
            others = [(TypeError, tensor) for tensor in (good[name].double(), good[name].long())]
            if mode != "fake":
                others += [
                    (ValueError, tensor)
                    for tensor in (torch.ones(1).to(good[name].dtype), torch.ones(5, 5, 3).to(good[name].dtype))
                ]
            for error, other in others:
                operands = {**good, name: other}.values()
                context = FakeTensorMode() if mode == "fake" else None
                if context is not None:
                    operands = map(context.from_tensor, operands)
                with context or nullcontext(), pytest.raises(error, match=rf"^{form.name}: expected .*got .*\b{name} "):
                    operator(*operands, -2)


def test_vmap_over_a_batch_of_size_0_gives_an_empty_result():
    reward, done = torch.zeros(0, 6, 3), torch.zeros(0, 6, 3, dtype=torch.bool)
    assert torch.vmap(lambda reward, done: functional.reward2go(reward, done, 0.9))(reward, done).shape == (0, 6, 3)


@pytest.mark.parametrize("columns", [1, 8])
@pytest.mark.parametrize("kernel", ["cpp", "torch"])
def test_zeros_stay_zeros_although_products_of_decays_overflow(kernel, columns, monkeypatch):
    if kernel == "torch":
        monkeypatch.setattr(cpu_scan, "_extension", None)
        monkeypatch.setattr(cpu_scan, "warn_once", lambda: None)
    x = torch.zeros(1031, columns)
    x[:3] = 1.0
    assert_close(functional.reverse_scan(x, torch.full_like(x, 2.0), -2), oracle.reverse_scan(x, torch.full_like(x, 2.0), -2))


@pytest.mark.slow
def test_packed_sequences_export_with_any_number_of_steps(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from a2c_compiled.export import export_onnx

    class Returns(torch.nn.Module):
        def forward(self, reward, done, cu_seqlens):
            return functional.reward2go(reward, done, 0.9, -2, cu_seqlens)

    steps = make_steps((13, 2), torch.float32)
    inputs = {"reward": steps.reward, "done": steps.done, "cu_seqlens": packed((3, 1, 9))}
    path = export_onnx(
        Returns(), inputs, tmp_path / "returns.onnx", {"reward": ("T", "N"), "done": ("T", "N"), "cu_seqlens": ("S",)}
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for lengths in ((3, 1, 9), (2, 5), (1,)):
        steps = make_steps((sum(lengths), 3), torch.float32)
        inputs = {"reward": steps.reward, "done": steps.done, "cu_seqlens": packed(lengths)}
        (result,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        assert_close(torch.from_numpy(result), functional.reward2go(steps.reward, steps.done, 0.9, -2, packed(lengths)))
