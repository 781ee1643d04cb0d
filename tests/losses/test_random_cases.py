"""The short form of ``make random-cases``: some random cases of each function, estimator and loss, and faults that they must notice."""

import pytest
import random_cases
import torch

from a2c_compiled.functional import steps
from a2c_compiled.kernels import cpu_scan
from a2c_compiled.losses import a2c, estimation

EACH = {"estimators": 12, "loss": 20}  # cases of each family


def failures(names, count, backend="cpp"):
    summaries = random_cases.run(names, count * len(names), backend=backend, longest=48)
    found = [failure for summary in summaries.values() for failure in summary.failures]
    return [f"{failure.case.name}: {failure.worst}" for failure in found]


@pytest.mark.parametrize("kind", EACH)
def test_random_cases_equal_the_oracle(kind):
    assert failures(list(random_cases.FAMILIES[kind]), EACH[kind]) == []


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
def test_random_cases_of_the_other_backends_equal_the_oracle(backend):
    if backend == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("the interpreter is switched off where there is a GPU")
    names = [
        "generalized_advantage_estimate",
        "td_lambda_return_estimate",
        "vtrace_advantage_estimate",
        "reward2go",
        "reverse_scan",
    ]
    assert failures(names, 4, backend) == []


def negated(function):
    return lambda *arguments: tuple(-x for x in function(*arguments))


def ends_later(function):
    """Marks the second to last step of each packed sequence, not the last one."""
    return lambda cu_seqlens, like, dim: function((cu_seqlens - 1).clamp_min(0), like, dim)


FAULTS = {
    "sign of the kernels": ("GAE", cpu_scan, "run", negated),
    "ends of packed sequences": ("TDLambdaEstimator", steps, "sequence_ends", ends_later),
    "order of included steps": (
        "VTrace",
        steps,
        "_order_and_place",
        lambda function: lambda mask, dim: function(mask | True, dim),
    ),
    "a detached critic": (
        "A2CLoss",
        estimation,
        "checked_values",
        lambda function: lambda *arguments: function(*arguments).detach(),
    ),
    "mean over the included steps": ("A2CLoss", a2c, "_mean", lambda function: lambda x, mask: function(x, None)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault, monkeypatch):
    name, place, attribute, change = FAULTS[fault]
    monkeypatch.setattr(place, attribute, change(getattr(place, attribute)))
    assert failures([name], 60)
