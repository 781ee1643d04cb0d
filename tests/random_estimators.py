"""Random cases of the functions and of the value estimators."""

import inspect
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import cases
import oracle
import torch
from random_steps import HALF, Case, Draw, Layout
from rounding import Magnitude

from a2c_compiled import estimators, functional

FUNCTION_OF = {
    "GAE": "generalized_advantage_estimate",
    "MultiAgentGAE": "generalized_advantage_estimate",
    "TD0Estimator": "td0_return_estimate",
    "TD1Estimator": "td1_return_estimate",
    "TDLambdaEstimator": "td_lambda_return_estimate",
    "VTrace": "vtrace_advantage_estimate",
    "NStepEstimator": "n_step_return_estimate",
    "UPGO": "upgo_return_estimate",
}
STANDARDISING = {kind.__name__: option for kind, option in cases.STANDARDISING.items()} | {
    "MultiAgentGAE": ("average_gae", 1e-4)
}
NUMBERS_OF_THRESHOLDS = (0.3, 1.0, 1.0, 1.3, float("inf"))


def data(draw: Draw, shape: Tuple[int, ...]) -> Dict[str, Any]:
    """Returns the tensors of the steps by argument name."""
    done, terminated = draw.ends(shape)
    log_pi = draw.normal(shape, 0.5)
    log_mu = log_pi if draw.chance(0.3) else draw.normal(shape, 0.5)
    values = {name: draw.values(shape) for name in ("state_value", "next_state_value", "reward", "action_value")}
    return {**values, "done": done, "terminated": terminated, "log_pi": log_pi, "log_mu": log_mu.clone()}


def coefficients(draw: Draw, shape: Tuple[int, ...], functions_own: Any) -> Dict[str, Any]:
    """Returns those coefficients that are named in ``functions_own``."""
    result = {name: draw.discount(shape) for name in ("gamma", "lmbda")}
    for name in ("rho_thresh", "c_thresh", "pg_rho_thresh"):
        result[name] = None if draw.chance(0.2) else draw.coefficient(shape, NUMBERS_OF_THRESHOLDS, 0.3, 1.5)
        if isinstance(result[name], torch.Tensor):
            result[name] = result[name].clamp_min(0.3)
    for name in ("lmbda", "pg_rho_thresh"):
        if draw.chance(0.3):  # the default of most functions
            result.pop(name)
    result.setdefault("lmbda", 0.95)
    return {name: value for name, value in result.items() if name in functions_own}


def oracle_arguments(scan: str, arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the per-step arguments of the oracle's function ``scan``. A step that is terminated ends the trace."""
    given = dict(arguments)
    if scan == "vtrace_advantage_estimate":
        for name in ("rho_thresh", "c_thresh"):
            given[name] = float("inf") if given.get(name) is None else given[name]
        given["pg_rho_thresh"] = given["rho_thresh"] if given.get("pg_rho_thresh") is None else given["pg_rho_thresh"]
        given.setdefault("lmbda", 1.0)
    if "done" in given and "terminated" in given:
        given["terminated"] = given["done"] if given["terminated"] is None else given["terminated"]
        given["done"] = given["done"] | given["terminated"]
    names = inspect.signature(getattr(oracle, scan)).parameters
    return {name: oracle.wide(value) for name, value in given.items() if name in names and name not in ("time_dim", "dim", "n")}


def function_case(name: str) -> Callable[..., Case]:
    def make(draw: Draw, seed: int) -> Case:
        draw.longest = min(draw.longest, 300 if name.startswith("n_step") else draw.longest)  # the oracle's loop is O(nT)
        layout = draw.layout()
        length = layout.shape[layout.time_dim]
        own = cases.argument_names(name)
        arguments = {**data(draw, layout.shape), **coefficients(draw, layout.shape, own)}
        arguments["x"] = arguments["reward"]
        options: Dict[str, Any] = {}
        if name == "reverse_scan":
            kind = draw.one_of((layout.shape, layout.shape, (1,) * len(layout.shape)))
            decay = draw.uniform(kind, -1.0 if draw.chance(0.3) else 0.2, 1.0) * draw.flags(kind, 0.9)
            arguments = {"x": arguments["x"], "decay": decay.to(draw.dtype)}
        if name == "td0_return_estimate" and arguments["terminated"] is None:
            arguments["terminated"] = arguments["done"]
        if name == "n_step_return_estimate":
            options["n"] = draw.one_of((1, 2, 3, 5) if length > 16 else (1, 2, 3, 5, 20))
        rolls_not = "rolling_gamma" in own and length <= 16 and draw.chance(0.15)
        if rolls_not:
            arguments["gamma"] = draw.uniform(layout.shape, 0.3, 1.0)
            options["rolling_gamma"] = False
        arguments = draw.laid_out({k: v for k, v in arguments.items() if k in own}, layout)
        given = {**options, "mask": layout.mask}
        if "cu_seqlens" in own:
            time = "dim" if name == "reverse_scan" else "time_dim"
            given |= {"cu_seqlens": draw.cu_seqlens(layout), "skip_masked": layout.skip_masked, time: layout.time_dim}
        function = getattr(functional, name)
        return Case(
            name,
            seed,
            lambda **arguments: cases.as_tuple(function(**arguments, **given)),
            arguments,
            layout,
            draw.dtype,
            {},
            name,
            tuple(options.items()),
            lambda **arguments: oracle_arguments(name, arguments),
        )

    return make


def standardized(x: Any, eps: float, mask: Any, group: Any, separate_dim: Any = None) -> Any:
    """The oracle's ``standardize``. The size of an element's result counts each derivative by its absolute value."""
    if not isinstance(x, Magnitude):
        return oracle.standardize(x, eps, mask, group, separate_dim)
    mask = torch.ones(x.shape, dtype=torch.bool) if mask is None else mask
    value = oracle.standardize(x.value, eps, mask, group, separate_dim)
    if group is None and separate_dim is None and mask.sum() == 1:
        return Magnitude(value, torch.where(mask, x.size, 0.0), x.arithmetic)
    size = torch.zeros_like(value)
    for chosen in oracle.standardized_together(x.value, mask, group, separate_dim):
        y, sizes = value[chosen].abs(), x.size[chosen]
        scale = x.value[chosen].std(correction=min(len(y) - 1, 1)).clamp_min(eps)
        # Derivatives: (1 if i = j, minus 1 / n, minus y[i] * y[j] / (n - 1)) / scale.
        total = (sizes + sizes.mean() + y * (y * sizes).sum() / max(len(y) - 1, 1)) / scale
        size = size.index_put((chosen,), total * (1.0 + sizes.mean() / scale).detach())
    return x.rounded(value, size, operations=2 + value.numel().bit_length())


def group_of(draw: Draw, shape: Tuple[int, ...]) -> Any:
    sizes = shape[: draw.one_of(range(1, len(shape) + 1))]
    return None if draw.chance(0.4) else draw.integers(0, draw.one_of((1, 2, 4)), sizes) * draw.one_of((1, -7, 1 << 40))


def standardize_case(draw: Draw, seed: int) -> Case:
    layout = draw.layout()._replace(starts=())
    arguments = draw.laid_out({"x": draw.values(layout.shape), "group": group_of(draw, layout.shape)}, layout)
    options = {
        "eps": draw.one_of((1e-5, 1e-4, 0.5)),
        "mask": layout.mask,
        "separate_dim": draw.one_of((None, None, *range(-len(layout.shape), len(layout.shape)))),
    }
    return Case(
        "standardize",
        seed,
        lambda **arguments: (functional.standardize(**arguments, **options),),
        arguments,
        layout,
        draw.dtype,
        after=lambda results, x, group: (standardized(x, group=group, **options),),
    )


class Module(NamedTuple):
    """A value estimator, and what the oracle must know about it.

    Attributes:
        module: the estimator.
        layout: the steps of the values.
        numbers: coefficients by name.
        agent_dim: the dimension of the agents that a reward of the team lacks, or None.
    """

    module: Any
    layout: Layout
    numbers: Dict[str, Any]
    agent_dim: Optional[int]

    @property
    def scan(self) -> str:
        return FUNCTION_OF[type(self.module).__name__]

    @property
    def options(self) -> Tuple[Tuple[str, Any], ...]:
        return (("n", self.module.n),) if hasattr(self.module, "n") else ()

    def standardizes(self, what: str) -> bool:
        option, _ = STANDARDISING[type(self.module).__name__]
        return (option == "average_rewards") == (what == "reward") and getattr(self.module, option)

    def standardized(self, x: Any, group: Any) -> Any:
        eps = STANDARDISING[type(self.module).__name__][1]
        return standardized(x, eps, self.layout.mask, group, self.module.agent_dim if self.module.several_agents else None)

    def of_each_agent(self, x: Any) -> Any:
        """Returns a signal of the team for each agent."""
        if self.agent_dim is None or x is None or x.dim() == len(self.layout.shape):
            return x
        return x.unsqueeze(self.agent_dim).expand(self.layout.shape)

    def before(self, group: Any = None, steps_to_next_obs: Any = None, **steps: Any) -> Dict[str, Any]:
        """From the estimator's arguments to those of the oracle's function."""
        for name in ("reward", "done", "terminated"):
            steps[name] = self.of_each_agent(steps[name])
        if steps_to_next_obs is not None:
            power = self.of_each_agent(steps_to_next_obs)
            steps["gamma"] = steps["gamma"] ** (power if self.layout.mask is None else power.masked_fill(~self.layout.mask, 1))
        if self.standardizes("reward"):
            steps["reward"] = self.standardized(steps["reward"], group)
        if steps["terminated"] is None:
            steps["terminated"] = steps["done"]
        elif self.module.auto_reset_env:
            truncated = steps["done"] & ~steps["terminated"]
            steps["next_state_value"] = torch.where(truncated, steps["state_value"], steps["next_state_value"])
        return oracle_arguments(self.scan, steps)

    def after(self, results: Tuple[Any, ...], state_value: Any, group: Any = None, **steps: Any) -> Tuple[Any, Any]:
        """From the results of the oracle's function to advantage and value target."""
        if len(results) == 1:
            value = state_value if self.layout.mask is None else torch.where(self.layout.mask, state_value, 0.0)
            return results[0] - value, results[0]
        advantage, value_target = results
        return self.standardized(advantage, group) if self.standardizes("advantage") else advantage, value_target


def make_module(draw: Draw, name: str, layout: Layout, agent_dim: Optional[int] = None) -> Module:
    """Draws coefficients and options of the estimator class ``name``."""
    kind = getattr(estimators, name)
    own = inspect.signature(kind).parameters
    numbers = coefficients(draw, layout.shape, own)
    options = {
        # Rewards that are standardised in half precision would turn many of UPGO's comparisons.
        STANDARDISING[name][0]: draw.chance(0.4) and not (name == "UPGO" and draw.dtype in HALF),
        "auto_reset_env": draw.chance(0.3),
        "skip_masked": layout.skip_masked,
        "differentiable": True,
        "agent_dim": agent_dim,
        "n": draw.one_of((1, 2, 3, 5)),
        "time_dim": layout.time_dim,
    }
    module = kind(**numbers, **{option: value for option, value in options.items() if option in own})
    return Module(module, layout, numbers, agent_dim)


def estimator_case(name: str) -> Callable[..., Case]:
    def make(draw: Draw, seed: int) -> Case:
        several_agents = name == "MultiAgentGAE"
        layout = draw.layout((2, 3, 3, 4) if several_agents else (1, 2, 2, 3))
        shape, rank = layout.shape, len(layout.shape)
        agent_dim = None
        if several_agents:
            agent_dim = draw.one_of([dim for dim in range(-rank, rank) if dim % rank != layout.time_dim % rank])
        estimator = make_module(draw, name, layout, agent_dim)
        taken = inspect.signature(estimator.module.forward).parameters
        arguments = {name: x for name, x in data(draw, shape).items() if name in taken}
        if not estimator.module.needs_log_prob:
            del arguments["log_pi"], arguments["log_mu"]
        arguments["steps_to_next_obs"] = draw.integers(1, 4, shape) if draw.chance(0.2) else None
        arguments["group"] = group_of(draw, shape)
        arguments = draw.laid_out(arguments, layout)
        if several_agents and layout.mask is None and draw.chance(0.5):
            for signal in ("reward", "done", "terminated", "steps_to_next_obs"):
                if arguments[signal] is not None:
                    of_team = arguments[signal].detach().select(agent_dim, 0)
                    arguments[signal] = of_team.requires_grad_(of_team.is_floating_point())
        given = {"mask": layout.mask, "cu_seqlens": draw.cu_seqlens(layout)}
        return Case(
            name,
            seed,
            lambda **arguments: tuple(estimator.module(**arguments, **given)),
            arguments,
            layout,
            draw.dtype,
            estimator.numbers,
            estimator.scan,
            estimator.options,
            estimator.before,
            estimator.after,
        )

    return make


FAMILIES: Dict[str, Callable[..., Case]] = {
    **{name: function_case(name) for name in (*cases.FUNCTIONS, "reverse_scan")},
    "standardize": standardize_case,
    **{name: estimator_case(name) for name in FUNCTION_OF},
}
