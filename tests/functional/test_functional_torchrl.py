"""Every function equals TorchRL's loop version of it, with gradients, on the same data."""

import pytest
import torch
from cases import (
    FUNCTIONS,
    argument_names,
    assert_equals,
    call_arguments,
    evaluate,
    function_in_mode,
    make_steps,
    per_step,
)
from loops import loop_over
from tolerances import assert_close

from a2c_compiled import functional

torchrl = pytest.importorskip("torchrl.objectives.value.functional")

MODES = ("eager", "scripted")
# Time is at -2, because TorchRL's V-trace is wrong elsewhere. TorchRL's reward2go has no gradient to gamma, so it has a test of its own.
# TorchRL has no n-step return, no upgoing return and no Retrace return.
LAYOUTS = [(6, 5), (1, 4), (5, 1), (3, 7, 1), (2, 3, 9, 4), (60, 3)]
LOOPS = tuple(name for name in FUNCTIONS if hasattr(torchrl, name) and name != "reward2go")
WITH_ROLLING_GAMMA = tuple(name for name in FUNCTIONS if "rolling_gamma" in argument_names(name))


def assert_equals_torchrl(name, arguments, mode="eager"):
    assert_equals(function_in_mode(name, mode), getattr(torchrl, name), arguments)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOOPS)
@loop_over("ends", ["some", "none", "all_terminated"])
@loop_over("shape", LAYOUTS)
def test_equals_torchrl(name, shape, ends, mode):
    arguments = call_arguments(name, make_steps(shape, ends=ends), gamma=per_step(shape), lmbda=per_step(shape, seed=2))
    arguments.pop("time_dim", None)
    assert_equals_torchrl(name, arguments, mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOOPS)
def test_equals_torchrl_with_scalar_coefficients(name, dtype):
    gamma, lmbda = torch.tensor([0.97, 0.9], dtype=dtype)
    arguments = call_arguments(name, make_steps((6, 5), dtype), gamma=gamma, lmbda=lmbda)
    arguments.pop("time_dim", None)
    assert_equals_torchrl(name, arguments)


@pytest.mark.parametrize("name", [name for name in LOOPS if name != "td0_return_estimate"])
def test_equals_torchrl_without_terminated(name):
    shape = (6, 5)
    arguments = call_arguments(name, make_steps(shape), gamma=per_step(shape), lmbda=per_step(shape, seed=2))
    arguments = {k: v for k, v in arguments.items() if k not in ("time_dim", "terminated")}
    assert_equals_torchrl(name, arguments)


@pytest.mark.parametrize(("shape", "time_dim"), [((3, 5), -1), ((5, 3), 0), ((2, 5, 3, 4), 1), ((2, 5, 3, 4), -3)], ids=str)
@pytest.mark.parametrize("name", [name for name in LOOPS if name.startswith(("generalized", "td1", "td_lambda"))])
def test_equals_torchrl_in_every_position_of_the_time_dimension(name, shape, time_dim):
    steps = make_steps(shape)
    assert_equals_torchrl(name, call_arguments(name, steps, time_dim, per_step(shape), per_step(shape, seed=2)))


@pytest.mark.parametrize("rolling_gamma", [True, None, False])
@pytest.mark.parametrize("ends", ["some", "none", "all_terminated"])
@pytest.mark.parametrize("name", WITH_ROLLING_GAMMA)
def test_equals_torchrl_with_and_without_rolling_gamma(name, ends, rolling_gamma):
    shape = (7, 3)
    options = {"gamma": per_step(shape), "lmbda": per_step(shape, seed=2), "rolling_gamma": rolling_gamma}
    arguments = call_arguments(name, make_steps(shape, ends=ends), **options)
    assert_equals_torchrl(name, arguments)


@pytest.mark.parametrize(("rho_thresh", "c_thresh"), [(1.0, 1.0), (0.5, 1.5), (2.0, 0.75)], ids=str)
def test_vtrace_equals_torchrl_for_every_threshold(rho_thresh, c_thresh):
    name = "vtrace_advantage_estimate"
    steps = make_steps((7, 3))
    options = {"gamma": per_step((7, 3)), "rho_thresh": rho_thresh, "c_thresh": c_thresh}
    assert_equals_torchrl(name, call_arguments(name, steps, **options))
    # On policy, the ratio is 1. If this is the threshold, TorchRL's gradient is that of torch.clamp, which torch 2.15 has changed to 0.
    on_policy = call_arguments(name, steps._replace(log_mu=steps.log_pi), **options)
    if clamp_has_the_gradient_at_its_bound() or 1.0 not in (rho_thresh, c_thresh):
        assert_equals_torchrl(name, on_policy)
    else:
        for result, expected in zip(
            function_in_mode(name, "eager")(**on_policy), getattr(torchrl, name)(**on_policy), strict=True
        ):
            torch.testing.assert_close(result, expected)


def clamp_has_the_gradient_at_its_bound():
    x = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(x.clamp(max=1.0), x)
    return gradient.item() == 1.0


@pytest.mark.parametrize("ends", ["some", "none", "all_done"])
@pytest.mark.parametrize(("shape", "time_dim"), [((6, 5), -2), ((40, 2), -2), ((3, 5, 1), -2), ((3, 5), -1)], ids=str)
def test_reward2go_equals_torchrl(shape, time_dim, ends):
    steps = make_steps(shape, ends=ends)
    done = steps.done.clone()
    done.select(time_dim, -1).fill_(True)  # TorchRL's version requires it
    arguments = {"reward": steps.reward, "done": done, "gamma": 0.9, "time_dim": time_dim}
    (result,), gradients = evaluate(functional.reward2go, arguments)
    (expected,), expected_gradients = evaluate(torchrl.reward2go, arguments)
    # TorchRL convolves with powers of a float32 gamma and leaves out those below 1e-7.
    assert_close(result, expected, torch.float32)
    assert_close(gradients["reward"], expected_gradients["reward"], torch.float32)
