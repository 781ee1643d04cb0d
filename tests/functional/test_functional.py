"""Every function, eager and scripted, equals the oracle's loops in float64, with gradients."""

import functools

import oracle
import pytest
import torch
from cases import (
    COEFFICIENTS,
    EMPTY_LAYOUTS,
    ENDS,
    FUNCTIONS,
    LAYOUTS,
    VIEWS,
    argument_names,
    as_tuple,
    assert_equals,
    assert_equals_oracle,
    call_arguments,
    evaluate,
    function_in_mode,
    in_double,
    make_steps,
    per_step,
    poisoned,
    without_bootstrap,
)
from loops import loop_over
from tolerances import assert_close

from a2c_compiled import functional as F

MODES = ("eager", "scripted")
OF_TIME = tuple(name for name in FUNCTIONS if "time_dim" in argument_names(name))
WITH_LMBDA = tuple(name for name in FUNCTIONS if "lmbda" in argument_names(name))
WITH_ROLLING_GAMMA = tuple(name for name in FUNCTIONS if "rolling_gamma" in argument_names(name))
WITH_DONE = tuple(name for name in FUNCTIONS if "done" in argument_names(name))
FORWARD_IN_TIME = ("eligibility_trace", "episodic_cumsum")
TERMINATED_OPTIONAL = tuple(name for name in WITH_DONE if "terminated" in argument_names(name))
WITH_NEXT_VALUE = tuple(name for name in FUNCTIONS if "next_state_value" in argument_names(name))


def arguments_with_scalar_tensors(name, shape, time_dim=-2, dtype=torch.float64):
    """Arguments of ``functional.<name>``. The coefficients are scalar tensors, in float32 for narrower data."""
    gamma, lmbda = torch.tensor([0.97, 0.9], dtype=torch.promote_types(dtype, torch.float32))
    return call_arguments(name, make_steps(shape, dtype), time_dim, gamma, lmbda)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
@loop_over(("shape", "time_dim"), LAYOUTS)
def test_equals_the_oracle_in_every_layout_and_dtype(name, shape, time_dim, dtype):
    assert_equals_oracle(name, arguments_with_scalar_tensors(name, shape, time_dim, dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
@loop_over("dtype", [torch.float64, torch.bfloat16])
@loop_over(("shape", "time_dim"), [case for case in LAYOUTS if "300" not in case.id])
def test_scripted_equals_the_oracle_in_every_layout(name, shape, time_dim, dtype):
    assert_equals_oracle(name, arguments_with_scalar_tensors(name, shape, time_dim, dtype), "scripted")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FUNCTIONS)
@loop_over("ends", ENDS)
def test_equals_the_oracle_wherever_episodes_end(name, ends, mode):
    assert_equals_oracle(name, call_arguments(name, make_steps((9, 4), ends=ends)), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TERMINATED_OPTIONAL)
@loop_over("ends", ENDS)
def test_equals_the_oracle_without_terminated(name, ends, mode):
    arguments = call_arguments(name, make_steps((9, 4), ends=ends))
    del arguments["terminated"]
    assert_equals_oracle(name, arguments, mode)


@pytest.mark.parametrize("name", TERMINATED_OPTIONAL)
def test_terminated_none_means_done(name):
    arguments = call_arguments(name, make_steps((9, 4)))
    with_none, _ = evaluate(getattr(F, name), {**arguments, "terminated": None})
    with_done, _ = evaluate(getattr(F, name), {**arguments, "terminated": arguments["done"]})
    for a, b in zip(with_none, with_done, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FUNCTIONS)
@loop_over(
    "view",
    [
        *VIEWS,
        pytest.param(lambda x: x.unsqueeze(-1).transpose(0, 1).contiguous().transpose(0, 1), id="channels_moved"),
    ],
)
def test_equals_the_oracle_on_views(name, view):
    steps = make_steps((10, 7))
    steps = type(steps)(*(view(tensor) for tensor in steps))
    assert_equals_oracle(name, call_arguments(name, steps, 0))


@pytest.mark.parametrize("name", OF_TIME)
def test_moving_the_time_dimension_moves_the_result(name):
    steps = make_steps((6, 4, 3))
    moved = type(steps)(*(tensor.movedim(0, 2) for tensor in steps))
    first, _ = evaluate(getattr(F, name), call_arguments(name, steps, 0))
    last, _ = evaluate(getattr(F, name), call_arguments(name, moved, -1))
    for a, b in zip(first, last, strict=True):
        assert_close(b.movedim(2, 0), a)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FUNCTIONS)
@loop_over("kind", COEFFICIENTS)
def test_equals_the_oracle_for_every_kind_of_coefficient(name, kind, mode):
    shape = (6, 5)
    gamma, lmbda = COEFFICIENTS[kind](shape)
    assert_equals_oracle(name, call_arguments(name, make_steps(shape), gamma=gamma, lmbda=lmbda), mode)


@pytest.mark.parametrize("name", OF_TIME)
@loop_over("kind", COEFFICIENTS)
def test_equals_the_oracle_for_every_kind_of_coefficient_over_many_steps(name, kind):
    shape = (45, 3)
    gamma, lmbda = COEFFICIENTS[kind](shape)
    assert_equals_oracle(name, call_arguments(name, make_steps(shape), gamma=gamma, lmbda=lmbda))


def test_a_coefficient_may_have_another_dtype_than_the_data():
    arguments = call_arguments("generalized_advantage_estimate", make_steps((6, 5), torch.float32))
    wide = F.generalized_advantage_estimate(**{**arguments, "gamma": torch.tensor(0.9, dtype=torch.float64), "lmbda": 1})
    plain = F.generalized_advantage_estimate(**{**arguments, "gamma": 0.9, "lmbda": 1.0})
    assert wide.advantage.dtype == torch.float32
    assert_close(wide.advantage, plain.advantage)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("rho_thresh", "c_thresh"),
    [
        (1.0, 1.0),
        (2, 1),
        (0.5, 1.5),
        (float("inf"), 1.0),
        (None, 1.0),
        (1.0, None),
        ("tensor", "tensor"),
        ("per_step", "per_row"),
    ],
    ids=str,
)
def test_vtrace_equals_the_oracle_for_every_threshold(rho_thresh, c_thresh, mode):
    kinds = {"tensor": torch.tensor(0.8).double(), "per_step": per_step((9, 4)), "per_row": per_step((1, 4))}
    options = {"rho_thresh": kinds.get(rho_thresh, rho_thresh), "c_thresh": kinds.get(c_thresh, c_thresh)}
    name = "vtrace_advantage_estimate"
    assert_equals_oracle(name, call_arguments(name, make_steps((9, 4)), **options), mode)


@pytest.mark.parametrize("shape", [(5, 3), (40, 2)], ids=str)
@pytest.mark.parametrize("per_step_lmbda", [False, True], ids=["number", "per_step"])
def test_vtrace_with_lambda_and_pg_rho_thresh_equals_the_oracle(shape, per_step_lmbda):
    arguments = call_arguments("vtrace_advantage_estimate", make_steps(shape), gamma=torch.tensor(0.9).double())
    lmbda = per_step(shape) if per_step_lmbda else torch.tensor(0.8).double()
    arguments |= {"rho_thresh": 1.1, "c_thresh": 0.9, "pg_rho_thresh": torch.tensor(1.4).double(), "lmbda": lmbda}
    assert_equals_oracle("vtrace_advantage_estimate", arguments)


def test_vtrace_with_lambda_1_and_pg_rho_thresh_equal_to_rho_thresh_is_vtrace():
    arguments = call_arguments("vtrace_advantage_estimate", make_steps((6, 3)), rho_thresh=0.8)
    plain = F.vtrace_advantage_estimate(**arguments)
    for options in ({"lmbda": 1.0}, {"pg_rho_thresh": None}, {"pg_rho_thresh": 0.8, "lmbda": 1}):
        for result, expected in zip(F.vtrace_advantage_estimate(**arguments, **options), plain, strict=True):
            assert torch.equal(result, expected)


def test_vtrace_with_lambda_0_corrects_one_step():
    steps = make_steps((6, 3))
    arguments = call_arguments("vtrace_advantage_estimate", steps)
    result = F.vtrace_advantage_estimate(**arguments, lmbda=0.0)
    ratio = (steps.log_pi - steps.log_mu).exp().clamp_max(1.0)
    next_value = steps.next_state_value.masked_fill(steps.terminated, 0.0)
    assert_close(result.value_target, steps.state_value + ratio * (steps.reward + 0.97 * next_value - steps.state_value))


@pytest.mark.parametrize("mode", MODES)
def test_vtrace_on_policy_equals_the_oracle(mode):
    steps = make_steps((9, 4))
    name = "vtrace_advantage_estimate"
    assert_equals_oracle(name, call_arguments(name, steps._replace(log_mu=steps.log_pi)), mode)


def test_vtrace_on_policy_target_is_the_lambda_1_advantage():
    steps = make_steps((9, 4))
    steps = steps._replace(log_mu=steps.log_pi)
    _, value_target = F.vtrace_advantage_estimate(**call_arguments("vtrace_advantage_estimate", steps))
    gae = F.generalized_advantage_estimate(**call_arguments("generalized_advantage_estimate", steps, lmbda=1.0))
    assert_close(value_target, gae.value_target)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_step_gamma", [False, True], ids=["number", "per_step"])
@pytest.mark.parametrize("n", [1, 2, 5, 9, 40])
def test_n_step_return_equals_the_oracle_for_every_n(n, per_step_gamma, mode):
    name, shape = "n_step_return_estimate", (2, 9, 3)
    gamma = per_step(shape) if per_step_gamma else torch.tensor(0.97).double()
    assert_equals_oracle(name, call_arguments(name, make_steps(shape), gamma=gamma, n=n), mode)


def test_n_step_return_is_td0_for_n_1_and_td1_for_n_of_at_least_the_length():
    steps = make_steps((6, 4))
    td0 = F.td0_return_estimate(**call_arguments("td0_return_estimate", steps))
    td1 = F.td1_return_estimate(**call_arguments("td1_return_estimate", steps))
    for n, expected in ((1, td0), (6, td1), (11, td1)):
        assert_close(F.n_step_return_estimate(**call_arguments("n_step_return_estimate", steps, n=n)), expected)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [6.0, 12.0, 4.0, 28.0]), (2, [7.0, 4.0, 4.0, 28.0]), (9, [3.0, 4.0, 4.0, 28.0])]
)
def test_n_step_return_equals_values_computed_by_hand(n, expected):
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0])
    next_value = torch.tensor([10.0, 20.0, 30.0, 40.0])
    terminated = torch.tensor([False, False, True, False])
    assert F.n_step_return_estimate(0.5, n, next_value, reward, terminated, None, -1).tolist() == expected


def upgoing_returns(state_value, reward=(1.0, 2.0, 4.0, 8.0), done=(False,) * 4, terminated=(False,) * 4):
    """Upgoing returns for a discount of 0.5. The next value is the value of the next step, and 40 after the last step."""
    value = torch.tensor(state_value)
    next_value = torch.cat([value[1:], torch.tensor([40.0])])
    flags = torch.tensor(done), torch.tensor(terminated)
    return F.upgo_return_estimate(0.5, value, next_value, torch.tensor(reward), *flags, -1).tolist()


def test_upgoing_return_equals_values_computed_by_hand():
    # One-step returns of 28 at the last step; 4 + V/2, 2 + V/2, 1 + V/2 before.
    assert upgoing_returns((0.0, 0.0, 0.0, 0.0)) == [6.5, 11.0, 18.0, 28.0], (
        "every one-step return is at least the value: TD(1)"
    )
    assert upgoing_returns((0.0, 90.0, 80.0, 70.0)) == [46.0, 42.0, 39.0, 28.0], (
        "every one-step return is below the value: TD(0)"
    )
    assert upgoing_returns((0.0, 30.0, 40.0, 20.0)) == [16.0, 22.0, 18.0, 28.0], "below the value at steps 1 and 2"
    assert upgoing_returns((0.0, 0.0, 4.0, 0.0)) == [6.5, 11.0, 18.0, 28.0], (
        "equal to the value at step 2 counts as at least the value"
    )
    done, terminated = (False, True, False, False), (False, True, False, False)
    assert upgoing_returns((0.0, 0.0, 0.0, 0.0), done=done, terminated=terminated) == [2.0, 2.0, 18.0, 28.0]
    # The truncated step bootstraps from the value after it, not from the return.
    assert upgoing_returns((0.0, 0.0, 6.0, 0.0), done=done) == [3.5, 5.0, 18.0, 28.0]


def on_policy(steps):
    """Steps with the value of the next step as the next value, and with the behaviour policy as the policy."""
    following = torch.cat([steps.state_value[1:], steps.next_state_value[-1:]])
    next_value = torch.where(steps.done, steps.next_state_value, following)
    return steps._replace(next_state_value=next_value, action_value=steps.state_value, log_mu=steps.log_pi)


def test_upgoing_return_is_never_below_td0():
    steps = on_policy(make_steps((50, 20)))
    returns = F.upgo_return_estimate(**call_arguments("upgo_return_estimate", steps))
    td0 = F.td0_return_estimate(**call_arguments("td0_return_estimate", steps))
    assert (returns >= td0 - 1e-12).all()
    assert 0.1 < (returns > td0 + 1e-12).double().mean() < 0.9


@pytest.mark.parametrize("lmbda", [0.0, 0.8, 1.0])
def test_retrace_on_policy_is_the_lambda_return(lmbda):
    """This holds if the values of actions are those of states. With lambda = 1, it is TD(1)."""
    steps = on_policy(make_steps((9, 4)))
    returns = F.retrace_return_estimate(**call_arguments("retrace_return_estimate", steps, lmbda=lmbda))
    assert_close(returns, F.td_lambda_return_estimate(**call_arguments("td_lambda_return_estimate", steps, lmbda=lmbda)))
    if lmbda == 1.0:
        assert_close(returns, F.td1_return_estimate(**call_arguments("td1_return_estimate", steps)))


def test_retrace_bootstraps_before_an_action_of_probability_0():
    steps = make_steps((6, 3))
    unlikely = steps.log_pi.clone()
    unlikely[3] = -torch.inf
    arguments = call_arguments("retrace_return_estimate", steps._replace(log_pi=unlikely))
    one_step = F.td0_return_estimate(**call_arguments("td0_return_estimate", steps))
    assert_close(F.retrace_return_estimate(**arguments)[2], one_step[2])


@pytest.mark.parametrize("name", ["vtrace_advantage_estimate", "retrace_return_estimate"])
def test_gradients_are_finite_if_the_importance_weight_overflows(name):
    arguments = call_arguments(name, make_steps((5, 3), torch.float32))
    results, gradients = evaluate(getattr(F, name), {**arguments, "log_pi": arguments["log_pi"] + 200.0})
    assert all(result.isfinite().all() for result in results)
    assert torch.equal(gradients["log_pi"], torch.zeros(5, 3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WITH_ROLLING_GAMMA)
@loop_over("rolling_gamma", [True, None, False])
@loop_over(
    ("shape", "time_dim"),
    [((7,), -1), ((5, 3), -2), ((3, 5), 1), ((2, 3, 5, 4), -2), ((2, 5, 3, 4), 1), ((5, 2, 3), 0), ((1, 3), -2), ((35, 2), -2)],
)
def test_equals_the_oracle_with_and_without_rolling_gamma(name, shape, time_dim, rolling_gamma, mode):
    steps = make_steps(shape)
    gamma, lmbda = per_step(shape), per_step(shape, seed=2)
    assert_equals_oracle(name, call_arguments(name, steps, time_dim, gamma, lmbda, rolling_gamma=rolling_gamma), mode)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", WITH_ROLLING_GAMMA)
def test_without_rolling_gamma_equals_the_oracle_wherever_episodes_end(name, ends):
    arguments = call_arguments(name, make_steps((6, 4), ends=ends), gamma=per_step((6, 4)), rolling_gamma=False)
    assert_equals_oracle(name, arguments)


@pytest.mark.parametrize("kind", ["per_time", "mixed"])
@pytest.mark.parametrize("name", [name for name in WITH_LMBDA if name in WITH_ROLLING_GAMMA])
def test_without_rolling_gamma_one_coefficient_per_step_is_enough(name, kind):
    shape = (6, 4)
    gamma, lmbda = COEFFICIENTS[kind](shape)
    assert_equals_oracle(name, call_arguments(name, make_steps(shape), gamma=gamma, lmbda=lmbda, rolling_gamma=False))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FUNCTIONS)
@loop_over(("shape", "time_dim"), EMPTY_LAYOUTS)
def test_empty_data_gives_empty_results_and_gradients(name, shape, time_dim, mode):
    arguments = arguments_with_scalar_tensors(name, shape, time_dim)
    results, gradients = evaluate(function_in_mode(name, mode), arguments)
    assert all(result.shape == shape and result.dtype == torch.float64 for result in results)
    assert all(gradients[argument].shape == arguments[argument].shape for argument in gradients)
    assert gradients.get("gamma", 0) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 3), (5, 0)], ids=str)
@pytest.mark.parametrize("name", WITH_ROLLING_GAMMA)
def test_empty_data_gives_empty_results_without_rolling_gamma(name, shape, mode):
    arguments = call_arguments(name, make_steps(shape), gamma=per_step(shape), rolling_gamma=False)
    results, _ = evaluate(function_in_mode(name, mode), arguments)
    assert results[0].shape == shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WITH_NEXT_VALUE)
@loop_over("length", [8, 40])
def test_nan_in_the_next_value_of_a_terminated_step_reaches_neither_results_nor_gradients(name, length, mode):
    arguments = arguments_with_scalar_tensors(name, (length, 5))
    if name == "vtrace_advantage_estimate":
        arguments["c_thresh"] = torch.tensor(0.9).double()
    clean = evaluate(function_in_mode(name, mode), arguments)
    results, gradients = evaluate(
        function_in_mode(name, mode), poisoned(arguments, arguments["terminated"], {"next_state_value"})
    )
    for result, truth in zip(results, clean[0], strict=True):
        assert torch.equal(result, truth)
    for argument, truth in clean[1].items():
        assert_close(gradients[argument], truth, what=f"gradient to {argument}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "end"), [(8, 3), (40, 20), (40, 0), (40, 38)])
@pytest.mark.parametrize("name", [name for name in WITH_DONE if name not in FORWARD_IN_TIME])
def test_nan_after_the_end_of_an_episode_does_not_reach_earlier_steps(name, length, end, mode):
    shape = (length, 3)
    steps = make_steps(shape)
    done, terminated = steps.done.clone(), steps.terminated.clone()
    done[end], terminated[end] = True, torch.tensor([True, False, True])
    steps = steps._replace(done=done, terminated=terminated)
    arguments = call_arguments(name, steps, gamma=per_step(shape), lmbda=per_step(shape, seed=2))
    after = torch.arange(length).unsqueeze(-1).expand(shape) > end
    floating = {k for k, v in arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}

    def before(**tensors):
        results = function_in_mode(name, mode)(**tensors)
        return tuple(r[: end + 1] for r in (results if isinstance(results, tuple) else (results,)))

    clean = evaluate(before, arguments)
    results, gradients = evaluate(before, poisoned(arguments, after, floating))
    for result, truth in zip(results, clean[0], strict=True):
        assert_close(result, truth)  # a script rounds otherwise if a result is not finite
    for argument, truth in clean[1].items():
        assert_close(gradients[argument][: end + 1], truth[: end + 1], what=f"gradient to {argument}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "end"), [(8, 3), (40, 20), (40, 0), (40, 38)])
@pytest.mark.parametrize("name", FORWARD_IN_TIME)
def test_nan_before_the_end_of_an_episode_does_not_reach_later_steps(name, length, end, mode):
    arguments = call_arguments(name, make_steps((length, 3)))
    arguments["done"] = arguments["done"].index_fill(0, torch.tensor(end), True)
    not_later = torch.arange(length).unsqueeze(-1).expand(length, 3) <= end
    result, clean = (function_in_mode(name, mode)(**given) for given in (poisoned(arguments, not_later, {"x"}), arguments))
    assert_close(result[end + 1 :], clean[end + 1 :])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rewards_to_go_without_a_bootstrap_equal_the_oracle(dtype, mode):
    """The tables of this file pass next values, so their rewards-to-go bootstrap."""
    for shape, time_dim in (((7,), -1), ((2, 5, 3), 1), ((40, 3), -2)):
        arguments = without_bootstrap(arguments_with_scalar_tensors("reward2go", shape, time_dim, dtype))
        assert_equals_oracle("reward2go", arguments, mode)


def test_rewards_to_go_bootstrap_at_truncated_ends_alone():
    reward, value = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([torch.nan, 16.0, torch.nan, 32.0])
    done = torch.tensor([False, True, True, False])
    terminated = torch.tensor([False, False, True, False])
    options = {"next_state_value": value, "terminated": terminated, "time_dim": -1}
    assert F.reward2go(reward, done, 0.5, **options).tolist() == [6.0, 10.0, 4.0, 24.0]
    options["cu_seqlens"] = torch.tensor([0, 1, 4])
    value[0] = 64.0
    assert F.reward2go(reward, done, 0.5, **options).tolist() == [33.0, 10.0, 4.0, 24.0]
    assert F.reward2go(reward, done, 0.5, -1, None, None, False, value).tolist() == [2.0, 2.0, 4.0, 24.0]


@pytest.mark.parametrize("mode", MODES)
def test_rewards_to_go_do_not_read_gamma_where_the_episode_has_terminated(mode):
    arguments = arguments_with_scalar_tensors("reward2go", (8, 5)) | {"gamma": per_step((8, 5))}
    clean = evaluate(function_in_mode("reward2go", mode), arguments)
    odd = poisoned(arguments, arguments["terminated"], {"gamma", "next_state_value"})
    results, gradients = evaluate(function_in_mode("reward2go", mode), odd)
    for result, truth in zip((*results, *gradients.values()), (*clean[0], *clean[1].values()), strict=True):
        assert_close(result, truth)


def test_rewards_to_go_with_a_bootstrap_are_td1_returns():
    arguments = arguments_with_scalar_tensors("reward2go", (40, 3))
    assert_equals(F.reward2go, F.td1_return_estimate, arguments)


def test_reverse_scan_equals_its_definition_and_broadcasts_decay():
    x, decay = make_steps((2, 6, 3)).reward, per_step((6, 1))
    assert_equals(F.reverse_scan, oracle.reverse_scan, {"x": x, "decay": decay, "dim": 1})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_accumulates_in_float32(dtype):
    """In half precision, a sum of 4000 ones would stop at 256 (bfloat16) or 2048 (float16)."""
    reward = torch.ones(4000, 1, dtype=dtype)
    returns = F.reward2go(reward, torch.zeros_like(reward, dtype=torch.bool), 1.0)
    assert returns.dtype == dtype
    assert_close(returns, torch.arange(4000, 0, -1).double().unsqueeze(-1))


def test_results_are_named_advantage_and_value_target():
    for name in ("generalized_advantage_estimate", "vtrace_advantage_estimate"):
        result = getattr(F, name)(**call_arguments(name, make_steps((5, 3))))
        assert result._fields == ("advantage", "value_target")
        assert isinstance(result, F.ValueEstimate)


def test_arguments_are_not_written_to():
    for name in FUNCTIONS:
        arguments = call_arguments(name, make_steps((5, 3)), gamma=per_step((5, 3)), lmbda=per_step((5, 3)))
        before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        getattr(F, name)(**arguments)
        for argument, value in before.items():
            unchanged = (
                torch.equal(arguments[argument], value) if isinstance(value, torch.Tensor) else arguments[argument] == value
            )
            assert unchanged, f"{name} wrote to {argument}"


# Steps that are terminated but not done


@pytest.mark.parametrize("mode", ["eager", "scripted", pytest.param("traced", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "terminated" in argument_names(name)])
def test_a_terminated_step_ends_the_trace_whether_it_is_done_or_not(name, mode):
    for shape, dtype in (((9, 4), torch.float64), ((40, 3), torch.float32)):
        arguments = call_arguments(name, make_steps(shape, dtype), gamma=0.97, lmbda=0.9)
        terminated = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.3
        arguments["terminated"] = terminated
        ends = {"terminated": terminated, "done": arguments["done"] | terminated} if "done" in arguments else {}

        def reference(ends=ends, **given):
            return getattr(oracle, name)(**{**given, **ends})

        function = function_in_mode(name, mode)
        assert_equals(function, reference, arguments)
        # Without a gradient, small data takes another path.
        for result, truth in zip(as_tuple(function(**arguments)), as_tuple(reference(**in_double(arguments))), strict=True):
            assert_close(result, truth)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "coefficient"),
    [(name, coefficient) for name in FUNCTIONS for coefficient in ("gamma", "lmbda") if coefficient in argument_names(name)],
)
@loop_over("value", [torch.nan, torch.inf])
def test_a_coefficient_that_is_not_finite_at_a_terminated_step_changes_nothing(name, coefficient, value, mode):
    steps, function = make_steps((9, 4)), function_in_mode(name, mode)
    arguments = call_arguments(name, steps, gamma=per_step((9, 4))) | {coefficient: per_step((9, 4), seed=2)}
    cut = steps.done & steps.terminated
    if name == "retrace_return_estimate" and coefficient == "lmbda":  # the step before reads c[t], a product with lmbda[t]
        cut = cut & cut.roll(1, 0)
    changed = {**arguments, coefficient: arguments[coefficient].masked_fill(cut, value)}
    torch.testing.assert_close(evaluate(function, changed), evaluate(function, arguments))
    torch.testing.assert_close(function(**changed), function(**arguments))
    # Without a gradient to coefficients, another kernel computes the gradients.
    without = [
        evaluate(functools.partial(function, **{c: a.pop(c) for c in ("gamma", "lmbda") if c in a}), a)
        for a in (changed, arguments)
    ]
    torch.testing.assert_close(*without)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_reward_that_is_not_finite_reaches_every_earlier_return(value, rows, mode):
    """The product of the discounts underflows long before the first step."""
    reward = torch.ones(2048, rows)
    reward[-1] = value
    returns = function_in_mode("reward2go", mode)(reward, torch.zeros(2048, rows, dtype=torch.bool), 0.4)
    assert not returns.isfinite().any()
