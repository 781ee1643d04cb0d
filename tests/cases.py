"""The data every test draws from: layouts, episode ends, and how a function is called and differentiated."""

import functools
import inspect
import subprocess
import sys
import textwrap
from typing import NamedTuple

import pytest
import torch

from a2c_compiled import functional
from a2c_compiled.estimators import GAE, UPGO, NStepEstimator, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace

FUNCTIONS = (
    "generalized_advantage_estimate",
    "td0_return_estimate",
    "td0_advantage_estimate",
    "td1_return_estimate",
    "td1_advantage_estimate",
    "td_lambda_return_estimate",
    "td_lambda_advantage_estimate",
    "vtrace_advantage_estimate",
    "reward2go",
    "n_step_return_estimate",
    "upgo_return_estimate",
    "retrace_return_estimate",
)

# Shape and time_dim. 32 steps is where the plain torch backend changes its algorithm.
LAYOUTS = tuple(
    pytest.param(shape, time_dim, id=f"{name}-{time_dim}")
    for name, shape, time_dim in (
        ("T", (7,), -1),
        ("T", (7,), 0),
        ("TN", (5, 3), -2),
        ("TN", (5, 3), 0),
        ("NT", (3, 5), -1),
        ("NT", (3, 5), 1),
        ("NT1", (3, 5, 1), -2),
        ("BNTF", (2, 3, 5, 4), -2),
        ("BTNF", (2, 5, 3, 4), -3),
        ("BTNF", (2, 5, 3, 4), 1),
        ("TBNF", (5, 2, 3, 4), -4),
        ("BNFT", (2, 3, 4, 5), 3),
        ("one_step", (1, 3), -2),
        ("one_row", (5, 1), -2),
        ("one_entry", (1, 1), -1),
        ("odd", (13, 17), -2),
        ("31_steps", (31, 2), -2),
        ("32_steps", (32, 2), -2),
        ("33_steps", (2, 33), -1),
        ("1000_steps", (1000, 2), -2),
    )
)

EMPTY_LAYOUTS = tuple(
    pytest.param(shape, time_dim, id=f"{name}-{time_dim}")
    for name, shape, time_dim in (
        ("no_steps", (0,), -1),
        ("no_steps", (0, 3), -2),
        ("no_steps", (3, 0), -1),
        ("no_steps", (2, 0, 1), -2),
        ("no_rows", (5, 0), -2),
        ("no_rows", (0, 40, 1), -2),
        ("nothing", (0, 0), -2),
    )
)

# How often an episode ends; "rare" is for long data.
END_RATES = {"some": 0.25, "none": 0.0, "all_done": 1.0, "all_terminated": 1.0, "rare": 5e-4}
ENDS = ("some", "none", "all_done", "all_terminated")


# Of [steps, rows]: what a tensor may be in memory.
VIEWS = [
    pytest.param(lambda x: x.t(), id="transposed"),
    pytest.param(lambda x: x[::2], id="every_other_step"),
    pytest.param(lambda x: x[:, 1::3], id="every_third_row"),
    pytest.param(lambda x: x[:, :1].expand(-1, 4), id="expanded_rows"),
    pytest.param(lambda x: x[:1].expand(40, -1), id="expanded_steps"),
]


# Gamma and lmbda for data of a shape.
COEFFICIENTS = {
    "float": lambda shape: (0.9, 0.8),
    "int": lambda shape: (1, 1),
    "zero": lambda shape: (0.0, 0.0),
    "zero_int": lambda shape: (0, 0),
    "zero_tensor": lambda shape: (torch.tensor(0.0).double(), torch.tensor(0.0).double()),
    "zero_gamma": lambda shape: (0.0, 0.9),
    "zero_lmbda": lambda shape: (0.9, torch.tensor(0.0).double()),
    "scalar_tensor": lambda shape: (torch.tensor(0.9).double(), torch.tensor(0.8).double()),
    "one_element": lambda shape: (torch.tensor([0.9]).double(), torch.tensor([[[0.8]]]).double()),
    "per_step": lambda shape: (per_step(shape), per_step(shape, seed=2)),
    "per_step_some_zero": lambda shape: (per_step(shape).masked_fill(per_step(shape, seed=3) < 0.6, 0.0), per_step(shape)),
    "per_row": lambda shape: (per_step((1, *shape[1:])), per_step(shape[1:])),
    "per_time": lambda shape: (per_step((shape[0], *[1] * (len(shape) - 1))), 0.8),
    "mixed": lambda shape: (0.9, per_step(shape)),
}

# The value estimators as modules, but for that of several agents, whose values have another shape.
CLASSES = (GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace, NStepEstimator, UPGO)
# The option that standardises, and the smallest standard deviation it divides by.
STANDARDISING = {
    GAE: ("average_gae", 1e-4),
    TD0Estimator: ("average_rewards", 1e-5),
    TD1Estimator: ("average_rewards", 1e-5),
    TDLambdaEstimator: ("average_rewards", 1e-4),
    VTrace: ("average_adv", 1e-5),
    NStepEstimator: ("average_rewards", 1e-5),
    UPGO: ("average_rewards", 1e-5),
}
VARIANTS = tuple((kind, options) for kind in CLASSES for options in ({}, {STANDARDISING[kind][0]: True})) + (
    (GAE, {"auto_reset_env": True}),
    (GAE, {"auto_reset_env": True, "average_gae": True}),
)
VARIANT_IDS = tuple("-".join((kind.__name__, *options)) for kind, options in VARIANTS)


class Steps(NamedTuple):
    """One entry per step of everything that a function may ask for; field names are argument names."""

    state_value: torch.Tensor
    next_state_value: torch.Tensor
    reward: torch.Tensor
    done: torch.Tensor
    terminated: torch.Tensor
    log_pi: torch.Tensor
    log_mu: torch.Tensor
    action_value: torch.Tensor


def make_steps(shape, dtype=torch.float64, seed=0, ends="some"):
    """Random steps. ``terminated`` implies ``done``; of the done steps about half are terminated, unless ``ends`` says all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale=1.0):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    values = [normal(), normal(), normal()]
    done = torch.rand(shape, generator=generator) < END_RATES[ends]
    terminated = done & (torch.rand(shape, generator=generator) < (1.0 if ends == "all_terminated" else 0.5))
    return Steps(*values, done, terminated, normal(0.5), normal(0.5), normal())


def per_step(shape, low=0.5, high=1.0, dtype=torch.float64, seed=1):
    """A coefficient with an entry of its own for each step."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def call_arguments(name, steps, time_dim=-2, gamma=0.97, lmbda=0.9, n=3, **options):
    """Those of ``steps``, coefficients and options that ``functional.<name>`` takes, by name."""
    available = {**steps._asdict(), "gamma": gamma, "lmbda": lmbda, "n": n, "time_dim": time_dim, **options}
    if name.startswith("vtrace"):
        del available["lmbda"]  # TorchRL's has none; tests of its own give it one
    return {argument: available[argument] for argument in argument_names(name) if argument in available}


def on(device, data):
    """``data`` with each tensor in it on ``device``."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), data)


def in_double(arguments):
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def poisoned(arguments, where, names):
    """``arguments`` with NaN at ``where`` in each of ``names``."""
    return {k: v.masked_fill(where, torch.nan) if k in names else v for k, v in arguments.items()}


def inputs(kind, steps):
    """What an estimator of ``kind`` takes of ``steps``, by name."""
    taken = inspect.signature(kind.forward).parameters
    return {
        name: value
        for name, value in steps._asdict().items()
        if name in taken and (kind.needs_log_prob or not name.startswith("log_"))
    }


@functools.cache
def argument_names(name):
    return tuple(inspect.signature(getattr(functional, name)).parameters)


@functools.cache
def function_in_mode(name, mode):
    """``functional.<name>``, eager or scripted; "compiled" goes through inductor, "traced" as far as autograd's graphs."""
    function = getattr(functional, name)
    if mode == "eager":
        return function
    if mode == "scripted":
        return torch.jit.script(function)
    return torch.compile(function, fullgraph=True, dynamic=True, backend={"compiled": "inductor", "traced": "aot_eager"}[mode])


def evaluate(function, arguments):
    """Results of ``function(**arguments)`` and the gradients of a fixed weighting of them to every floating argument, by name."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    results = function(**{**arguments, **leaves})
    results = tuple(results) if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad(results, tuple(leaves.values()), [weights(r) for r in results], materialize_grads=True)
    return results, dict(zip(leaves, gradients, strict=True))


def weights(result):
    """Exact in every floating dtype, and nowhere zero."""
    generator = torch.Generator().manual_seed(result.numel())
    return (torch.randint(1, 9, result.shape, generator=generator) / 4).to(result)


def operands(form, shape, dtype=torch.float64, coefficients="numbers", seed=0):
    """Coefficients, values and flags of ``form``, by name."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = {}
    for name, number in zip(form.coefficients, (0.97, 0.9, 1.1, 1.3, 0.8), strict=False):
        if coefficients == "numbers":
            found[name] = torch.tensor(number, dtype=wide)
        else:
            found[name] = number * per_step(shape, dtype=wide, seed=len(found))
    for name in form.values:
        found[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    done = torch.rand(shape, generator=generator) < 0.2
    found.update(zip(form.flags, (done, done & (torch.rand(shape, generator=generator) < 0.5)), strict=False))
    return found


def as_tuple(result):
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def run_without_the_library(directory, code):
    """``code`` in a fresh interpreter in ``directory``, where importing the library fails."""
    head = """
        import sys, warnings
        sys.modules["a2c_compiled"] = None
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch
    """
    script = textwrap.dedent(head) + textwrap.dedent(code) + "\nprint('finished')"
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "finished", done.stderr
