"""Shared by all tests: data (layouts, episode ends, coefficients), and helpers that call, differentiate and compare functions."""

import functools
import inspect
import subprocess
import sys
import textwrap
from typing import NamedTuple

import oracle
import pytest
import torch
from tolerances import assert_close

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
    "eligibility_trace",
    "episodic_cumsum",
)

# Shape and time_dim. Above 32 steps, the plain torch backend uses another algorithm.
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
        ("300_steps", (300, 2), -2),
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

# Probability that a step is done. "rare" is for long data.
END_RATES = {"some": 0.25, "none": 0.0, "all_done": 1.0, "all_terminated": 1.0, "rare": 5e-4}
ENDS = ("some", "none", "all_done", "all_terminated")


# Views of a tensor [steps, rows] with other strides.
VIEWS = [
    pytest.param(lambda x: x.t(), id="transposed"),
    pytest.param(lambda x: x[::2], id="every_other_step"),
    pytest.param(lambda x: x[:, 1::3], id="every_third_row"),
    pytest.param(lambda x: x[:, :1].expand(-1, 4), id="expanded_rows"),
    pytest.param(lambda x: x[:1].expand(40, -1), id="expanded_steps"),
]


# The same numbers with other strides. Memory between the numbers holds NaN or True.
def contiguous(tensor):
    return tensor


def transposed(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def padded(tensor):
    """Returns a view with a gap after each row, like the values of T + 1 observations without the last value."""
    return torch.cat([tensor, filler(tensor)[..., :1]], -1)[..., :-1]


def interleaved(tensor):
    return torch.stack([tensor, filler(tensor)], -1)[..., 0]


def filler(tensor):
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else True)


# Functions from the shape of the data to gamma and lmbda.
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

# The value estimators as modules, except MultiAgentGAE, whose values have another shape.
CLASSES = (GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace, NStepEstimator, UPGO)
# The option that standardises, and the smallest standard deviation that the standardisation divides by.
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
    *((kind, {"auto_reset_env": True}) for kind in CLASSES),
    (TDLambdaEstimator, {"auto_reset_env": True, "average_rewards": True}),
    (GAE, {"auto_reset_env": True, "average_gae": True}),
)
VARIANT_IDS = tuple("-".join((kind.__name__, *options)) for kind, options in VARIANTS)


class Steps(NamedTuple):
    """The tensor arguments of the functions, all of the same shape. Field names are argument names."""

    state_value: torch.Tensor
    next_state_value: torch.Tensor
    reward: torch.Tensor
    done: torch.Tensor
    terminated: torch.Tensor
    log_pi: torch.Tensor
    log_mu: torch.Tensor
    action_value: torch.Tensor


def make_steps(shape, dtype=torch.float64, seed=0, ends="some"):
    """Returns random steps. About half of the done steps are terminated, or all of them if ``ends`` is "all_terminated"."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale=1.0):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    values = [normal(), normal(), normal()]
    done = torch.rand(shape, generator=generator) < END_RATES[ends]
    terminated = done & (torch.rand(shape, generator=generator) < (1.0 if ends == "all_terminated" else 0.5))
    return Steps(*values, done, terminated, normal(0.5), normal(0.5), normal())


def per_step(shape, low=0.5, high=1.0, dtype=torch.float64, seed=1):
    """Returns a random coefficient between ``low`` and ``high``, with one entry per step."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def call_arguments(name, steps, time_dim=-2, gamma=0.97, lmbda=0.9, n=3, **options):
    """Returns the arguments of ``functional.<name>`` by name, chosen from ``steps``, coefficients and ``options``."""
    available = {**steps._asdict(), "x": steps.reward, "gamma": gamma, "lmbda": lmbda, "n": n, "time_dim": time_dim, **options}
    if name.startswith("vtrace"):
        del available["lmbda"]  # TorchRL's V-trace has no lmbda; other tests pass lmbda
    return {argument: available[argument] for argument in argument_names(name) if argument in available}


def without_bootstrap(arguments):
    """Returns the arguments of ``reward2go`` without those that make it bootstrap."""
    return {name: value for name, value in arguments.items() if name not in ("next_state_value", "terminated")}


def on(device, data):
    """Returns ``data`` with all its tensors on ``device``."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), data)


def in_double(arguments):
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def poisoned(arguments, where, names):
    """Returns ``arguments`` with NaN in each of ``names``, at the entries for which ``where`` is True."""
    return {k: v.masked_fill(where, torch.nan) if k in names else v for k, v in arguments.items()}


def inputs(kind, steps):
    """Returns the arguments of the estimator class ``kind`` by name, chosen from ``steps``."""
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
    """Returns ``functional.<name>`` in a mode: "eager", "scripted", "compiled" by inductor, or "traced" by Dynamo and autograd alone."""
    function = getattr(functional, name)
    if mode == "eager":
        return function
    if mode == "scripted":
        return torch.jit.script(function)
    return torch.compile(function, fullgraph=True, dynamic=True, backend={"compiled": "inductor", "traced": "aot_eager"}[mode])


def evaluate(function, arguments):
    """Returns the results of ``function(**arguments)``, and by name the gradients to every floating-point argument.

    They are gradients of a weighted sum of the results.
    """
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    results = function(**{**arguments, **leaves})
    results = tuple(results) if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad(results, tuple(leaves.values()), [weights(r) for r in results], materialize_grads=True)
    return results, dict(zip(leaves, gradients, strict=True))


def assert_equals(function, reference, arguments, gradient_roundings=None):
    """Asserts that ``function`` has the results and gradients of ``reference``, which computes with the same numbers in float64 on the CPU.

    A result must have dtype and device of the data (``reward`` or ``x``). A gradient must have dtype and device of its argument.

    Args:
        gradient_roundings: for each argument, how often its gradient is rounded in half precision. Default: once.
    """
    results, gradients = evaluate(function, arguments)
    expected, expected_gradients = evaluate(reference, in_double(on("cpu", arguments)))
    data = arguments["reward"] if "reward" in arguments else arguments["x"]
    for i, (result, truth) in enumerate(zip(results, expected, strict=True)):
        assert (result.dtype, result.device) == (data.dtype, data.device)
        assert_close(result.cpu(), truth, what=f"result {i}")
    for name, truth in expected_gradients.items():
        assert (gradients[name].dtype, gradients[name].device) == (arguments[name].dtype, arguments[name].device)
        # A float64 coefficient of narrower data enters the computation in float32.
        dtype = torch.promote_types(data.dtype, torch.float32) if gradients[name].dtype == torch.float64 else None
        assert_close(gradients[name].cpu(), truth, dtype, f"gradient to {name}", (gradient_roundings or {}).get(name, 1))


def assert_equals_oracle(name, arguments, mode="eager"):
    """Asserts that ``functional.<name>`` equals the oracle of the same name, with gradients."""
    assert_equals(function_in_mode(name, mode), getattr(oracle, name), arguments)


def weights(result):
    """Returns weights for a weighted sum of ``result``: exact in every floating dtype, and nowhere zero."""
    generator = torch.Generator().manual_seed(result.numel())
    return (torch.randint(1, 9, result.shape, generator=generator) / 4).to(result)


def operands(form, shape, dtype=torch.float64, coefficients="numbers", seed=0):
    """Returns random coefficients, values and flags of ``form``, by name. ``coefficients`` is "numbers" or "per step"."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {}
    for name, number in zip(form.coefficients, (0.97, 0.9, 1.1, 1.3, 0.8), strict=False):
        if coefficients == "numbers":
            tensors[name] = torch.tensor(number, dtype=wide)
        else:
            tensors[name] = number * per_step(shape, dtype=wide, seed=len(tensors))
    for name in form.values:
        tensors[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    done = torch.rand(shape, generator=generator) < 0.2
    terminated = torch.rand(shape, generator=generator) < 0.1  # some of these steps are not done
    tensors.update(zip(form.flags, (done, terminated), strict=False))
    return tensors


def as_tuple(result):
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def run_without_the_library(directory, code):
    """Runs ``code`` in a new interpreter in ``directory``, where importing the library fails."""
    head = """
        import sys, warnings
        sys.modules["a2c_compiled"] = None
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch
    """
    script = textwrap.dedent(head) + textwrap.dedent(code) + "\nprint('finished')"
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "finished", done.stderr
