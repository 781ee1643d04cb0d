"""Every wrong argument raises an error before any computation. The message names the argument, what was expected and what came."""

import inspect

import pytest
import torch
from cases import FUNCTIONS, argument_names, call_arguments, function_in_mode, make_steps, per_step
from loops import loop_over

from a2c_compiled import functional
from a2c_compiled._kinds import described

SHAPE = (5, 3)
STEPS = make_steps(SHAPE)
FLAGS = {"done", "terminated"}


def tensor_arguments(name):
    return {argument: value for argument, value in call_arguments(name, STEPS).items() if isinstance(value, torch.Tensor)}


def wrong_arguments():
    """Yields (function, changed arguments, type of the error, words of its message)."""
    for name in FUNCTIONS:
        for argument, right in tensor_arguments(name).items():
            yield name, {argument: 1.0}, TypeError, (argument, "expected a torch.Tensor", "1.0")
            if inspect.signature(getattr(functional, name)).parameters[argument].default is not None:
                yield name, {argument: None}, TypeError, (argument, "expected a torch.Tensor", "None")
            if argument in ("reward", "x"):
                yield name, {argument: right.long()}, TypeError, (argument, "floating", "torch.int64")
                continue
            yield name, {argument: right[:4]}, ValueError, (argument, "[5, 3]", "[4, 3]")
            yield name, {argument: right[..., None]}, ValueError, (argument, "[5, 3]", "[5, 3, 1]")
            yield name, {argument: right[:, :1]}, ValueError, (argument, "[5, 3]", "[5, 1]")
            yield name, {argument: right.to("meta")}, ValueError, (argument, "cpu", "meta")
            if argument in FLAGS:
                yield name, {argument: right.double()}, TypeError, (argument, "torch.bool", "torch.float64")
                yield name, {argument: right.long()}, TypeError, (argument, "torch.bool", "torch.int64")
            else:
                yield name, {argument: right.float()}, TypeError, (argument, "torch.float64", "torch.float32")
                yield name, {argument: right.long()}, TypeError, (argument, "torch.float64", "torch.int64")
        for coefficient in ("gamma", "lmbda", "rho_thresh", "c_thresh"):
            if coefficient in argument_names(name):
                for wrong in ((4,), (5,), (3, 5), (1, 5, 3), (0,)):
                    yield name, {coefficient: torch.ones(wrong)}, ValueError, (coefficient, "[5, 3]", str(list(wrong)))
                for wrong in ("0.9", [0.9], *(() if coefficient.endswith("thresh") else (None,))):  # a threshold may be None
                    yield name, {coefficient: wrong}, TypeError, (coefficient, "a number or a tensor", described(wrong))
        if "time_dim" in argument_names(name):
            yield name, {"time_dim": 1.0}, TypeError, ("time_dim", "expected an integer", "1.0")
            for wrong in (2, -3, 7):
                yield name, {"time_dim": wrong}, ValueError, ("time_dim", "[5, 3]", str(wrong))
            without_rows = {argument: value[:, 0] for argument, value in tensor_arguments(name).items()}
            yield name, without_rows, ValueError, ("time_dim", "[5]", "-2", "time_dim=-1")
            single = {argument: value[0, 0] for argument, value in tensor_arguments(name).items()}
            yield name, single, ValueError, ("time_dim", "[]", "-2")
        if name == "n_step_return_estimate":
            for wrong in (0, -2):
                yield name, {"n": wrong}, ValueError, ("n", "at least 1", str(wrong))
            for wrong in (1.5, "3", True, None):
                yield name, {"n": wrong}, TypeError, ("n", "an integer", described(wrong))
        if name == "reward2go":
            yield name, {"next_state_value": None}, ValueError, ("next_state_value", "terminated needs", "None")
        if "rolling_gamma" in argument_names(name):
            for gamma in (0.9, torch.tensor(0.9), torch.tensor([0.9]), per_step((1, 3)), per_step((3,))):
                yield name, {"gamma": gamma, "rolling_gamma": False}, ValueError, ("rolling_gamma", "gamma", "[5, 3]", "False")


@loop_over(("name", "changed", "error", "words"), wrong_arguments())
def test_a_wrong_argument_raises_an_error_that_names_it(name, changed, error, words):
    with pytest.raises(error) as caught:
        getattr(functional, name)(**call_arguments(name, STEPS) | changed)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("generalized_advantage_estimate", {"done": STEPS.done[:4]}, ("done", "[5, 3]", "[4, 3]")),
        ("generalized_advantage_estimate", {"state_value": STEPS.reward.float()}, ("state_value", "expected dtype")),
        ("generalized_advantage_estimate", {"gamma": torch.ones(4)}, ("gamma", "[5, 3]", "[4]")),
        ("vtrace_advantage_estimate", {"time_dim": 2}, ("time_dim", "[5, 3]", "2")),
        ("td1_return_estimate", {"rolling_gamma": False}, ("rolling_gamma", "[5, 3]", "False")),
        ("reward2go", {"reward": STEPS.reward.long()}, ("reward", "floating")),
        ("n_step_return_estimate", {"n": 0}, ("n", "at least 1", "0")),
        ("retrace_return_estimate", {"action_value": STEPS.reward[:4]}, ("action_value", "[5, 3]", "[4, 3]")),
    ],
)
def test_a_scripted_function_raises_an_error_with_the_same_message(name, changed, words):
    with pytest.raises(torch.jit.Error) as caught:
        function_in_mode(name, "scripted")(**call_arguments(name, STEPS) | changed)
    for word in words:
        assert word in str(caught.value)


X = STEPS.reward


@pytest.mark.parametrize(
    ("x", "decay", "dim", "error", "words"),
    [
        (1.0, X, -2, TypeError, ("x", "expected a torch.Tensor", "1.0")),
        (X, 1.0, -2, TypeError, ("decay", "expected a torch.Tensor", "1.0")),
        (X.long(), X, -2, TypeError, ("x", "floating", "torch.int64")),
        (X, X.float(), -2, TypeError, ("decay", "torch.float64", "torch.float32")),
        (X, STEPS.done, -2, TypeError, ("decay", "torch.float64", "torch.bool")),
        (X, X.to("meta"), -2, ValueError, ("decay", "cpu", "meta")),
        (X, X[:4], -2, ValueError, ("decay", "[5, 3]", "[4, 3]")),
        (X, X[None], -2, ValueError, ("decay", "[5, 3]", "[1, 5, 3]")),
        (X, X, 2, ValueError, ("dim", "[5, 3]", "2")),
        (X, X, -3, ValueError, ("dim", "[5, 3]", "-3")),
        (X[0, 0], X[0, 0], -1, ValueError, ("dim", "[]", "-1")),
    ],
)
def test_reverse_scan_raises_an_error_that_names_the_wrong_argument(x, decay, dim, error, words):
    with pytest.raises(error) as caught:
        functional.reverse_scan(x, decay, dim)
    for word in words:
        assert word in str(caught.value)
