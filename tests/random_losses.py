"""Random cases of the loss.

The networks read their outputs from a table with one row for each observation, so the gradient to a row is the gradient of one step, and no
error of a matrix product covers an error of the loss.
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

import distribution_cases
import torch
from random_estimators import FUNCTION_OF, data, group_of, make_module
from random_steps import Case, Draw, Layout, with_zero
from rounding import through, value_and_size
from torch import Tensor, nn

from a2c_compiled import A2CLoss
from a2c_compiled.distributions import TanhNormal

DISTRIBUTIONS = {
    str(case): case
    for case in distribution_cases.CASES
    if str(case)
    in ("Categorical", "OneHotCategorical", "MaskedCategorical", "MultiCategorical", "Bernoulli", "Normal", "TanhNormal")
}


class Rows(nn.Module):
    """A network that returns some columns of the row of a table. The observation, ``[*B, 1]``, is the number of the row."""

    def __init__(self, table: nn.Parameter, columns: Any) -> None:
        super().__init__()
        self.table, self.columns = table, columns

    def forward(self, observation: Tensor) -> Tensor:
        row = observation.squeeze(-1).clamp(0, len(self.table) - 1).long()
        return self.table[row][..., self.columns]


def loss_case(family: str) -> Callable[..., Case]:
    """Returns a function that draws cases of the loss: one of ``NAMES``."""
    shifted, given_advantage, agents = (word in family for word in ("shifted", "given", "agents"))

    def make(draw: Draw, seed: int) -> Case:
        layout = loss_layout(draw, agents)
        column = layout.shape[-1] == 1 and len(layout.shape) > 2
        batch = layout.shape[:-1] if column else layout.shape
        rows = torch.Size(batch).numel()
        included = torch.arange(rows) if layout.mask is None else layout.mask.reshape(-1).nonzero().squeeze(-1)
        kinds = ["MultiAgentGAE"] if agents else [name for name in FUNCTION_OF if name != "MultiAgentGAE"]
        estimator = make_module(draw, draw.one_of(kinds), layout, -2 if agents else None)

        distribution_case = DISTRIBUTIONS[draw.one_of(sorted(DISTRIBUTIONS))]
        distribution, reference = distribution_case.distribution, distribution_case.reference
        params = distribution_case.prepare(draw.normal((rows, distribution.num_params), dtype=torch.float64)).to(draw.dtype)
        action = distribution_case.action(params.double(), seed)
        if isinstance(distribution, TanhNormal):  # away from the bounds, where arctanh loses digits
            action = 0.5 * action + 0.5 * distribution.mode(params.double())
        action = action.to(torch.float32 if action.is_floating_point() and draw.dtype != torch.float64 else action.dtype)
        with torch.no_grad():
            on_policy = reference(params.double()).log_prob(action)
        sample_log_prob = (on_policy + draw.normal((rows,), 0.3, torch.float64)).to(draw.dtype)
        values = draw.values((2 * rows, 1))
        shared = not given_advantage and draw.chance(0.2)
        table = torch.cat([params, values[:rows]], -1)
        if shared:
            table = torch.cat([table, torch.cat([params, values[rows:]], -1)])
        size = distribution.num_params

        options = loss_options(draw, shared)
        options["entropy_bonus"] = distribution.has_entropy
        if shifted:
            options |= {"shifted": True, "shifted_budget": layout.shape[layout.time_dim]}
        elif draw.chance(0.2):
            options["num_chunks"] = 2
        critic_columns = size if draw.chance(0.5) and not agents else slice(size, size + 1)
        if shared:
            variables = {"table": nn.Parameter(table)}
            actor, critic = Rows(variables["table"], slice(0, size)), Rows(variables["table"], critic_columns)
        else:
            variables = {"actor": nn.Parameter(params), "critic": nn.Parameter(values)}
            actor = Rows(variables["actor"], slice(0, size))
            critic = Rows(variables["critic"], 0 if critic_columns == size else slice(0, 1))
        loss = A2CLoss(actor, critic, distribution, estimator.module, **options)

        given = data(draw, layout.shape)
        del given["action_value"], given["state_value"], given["next_state_value"], given["log_pi"], given["log_mu"]
        number = torch.arange(rows, dtype=torch.float32)
        unknown = draw.flags((rows,), 0.1)
        next_number = shifted_numbers(layout, given["done"]) if shifted else (number + rows).masked_fill(unknown, torch.nan)
        if given_advantage:
            given = {"advantage": draw.values(layout.shape), "value_target": draw.values(layout.shape)}
        else:
            given["steps_to_next_obs"] = draw.integers(1, 4, layout.shape) if draw.chance(0.2) and not shifted else None
            given["group"] = group_of(draw, layout.shape) if not agents else None
        old = draw.chance(0.5) or given_advantage
        given["state_value"] = (values[:rows].reshape(batch) + draw.normal(batch, 0.3)).to(draw.dtype) if old else None
        needs_mu = draw.chance(0.5) or (estimator.module.needs_log_prob and not given_advantage)
        given["sample_log_prob"] = sample_log_prob.reshape(batch) if needs_mu else None
        if agents and layout.mask is None and draw.chance(0.5):
            for name in ("reward", "done", "terminated"):
                given[name] = None if given[name] is None else given[name].select(-2, 0)
        constants = {name: x for name, x in given.items() if isinstance(x, Tensor)}
        next_row = torch.where(next_number.isnan(), number, next_number).long()

        def per_step(x: Tensor) -> Tensor:
            return x.reshape(*batch, *x.shape[1:])

        arguments = {"observation": per_step(number.unsqueeze(-1)), "action": per_step(action)}
        arguments["next_observation"] = None if given_advantage else per_step(next_number.unsqueeze(-1))
        arguments |= given
        if layout.mask is not None:
            mask = layout.mask.reshape(batch)
            arguments = {name: with_junk(draw, x, mask) for name, x in arguments.items()}
            arguments["mask"] = mask
        if not given_advantage:
            arguments["cu_seqlens"] = draw.cu_seqlens(layout)
        junk_rows = torch.ones(rows, dtype=torch.bool).index_fill(0, included, False)
        with torch.no_grad():
            variables["table" if shared else "actor"][:rows][junk_rows] = draw.one_of((float("nan"), float("inf"), 3.0))

        def call(**_: Any) -> Tuple[Tensor, ...]:
            return tuple(x for x in loss(**arguments) if x is not None)

        def tables(leaves: Dict[str, Any]) -> Tuple[Any, Any]:
            """Returns the parameters of the included steps, and the values of all rows."""
            if shared:
                return leaves["table"][included][:, :size], leaves["table"][:, size]
            return leaves["actor"][included], leaves["critic"][:, 0]

        def scored(params: Any, score: Callable[[Any], Tensor]) -> Any:
            """Applies ``score`` to the distributions of the included steps. torch has none without a step."""
            return through(lambda x: score(reference(x)) if len(included) else x.sum(-1), params)

        def log_prob_of(params: Any) -> Any:
            return scored(params, lambda distribution: distribution.log_prob(action[included]))

        def before(**leaves: Any) -> Dict[str, Any]:
            params, values = tables(leaves)
            steps = {name: leaves.get(name) for name in ("reward", "done", "terminated", "group", "steps_to_next_obs")}
            steps["state_value"] = values[:rows].reshape(layout.shape).detach()
            steps["next_state_value"] = values[next_row].reshape(layout.shape).detach()
            steps |= {name: leaves[name] for name in estimator.numbers}
            if estimator.module.needs_log_prob:
                steps["log_pi"] = spread(log_prob_of(params).detach(), included, rows).reshape(layout.shape)
                steps["log_mu"] = leaves["sample_log_prob"].reshape(layout.shape)
            return estimator.before(**steps)

        def after(results: Tuple[Any, ...], **leaves: Any) -> Tuple[Any, ...]:
            params, values = tables(leaves)
            old_value = values[:rows].detach()
            if given_advantage:
                advantage, value_target = leaves["advantage"], leaves["value_target"]
            else:
                all_values = old_value.reshape(layout.shape)
                advantage, value_target = estimator.after(results, all_values, leaves.get("group"))
            flat = {"advantage": advantage, "value_target": value_target, "old_value": leaves.get("state_value", old_value)}
            flat = {name: x.reshape(-1)[included].detach() for name, x in flat.items()}
            value = values[:rows][included]
            flat["value"] = value.detach() if shared and options["separate_losses"] else value
            flat["log_prob"] = log_prob_of(params)
            if distribution.has_entropy:
                flat["entropy"] = scored(params, lambda distribution: distribution.entropy())
            if "sample_log_prob" in leaves:
                flat["sample_log_prob"] = leaves["sample_log_prob"].reshape(-1)[included]
            return losses(
                flat, {k: leaves.get(k) for k in NUMBERS}, options, lambda x: spread(x, included, rows).reshape(batch)
            )

        constants |= estimator.numbers | {name: options[name] for name in NUMBERS if options[name] is not None}
        scan = {} if given_advantage else {"scan": estimator.scan, "options": estimator.options, "before": before}
        return Case(family, seed, call, variables, layout, draw.dtype, constants, after=after, **scan)

    return make


def loss_options(draw: Draw, shared: bool) -> Dict[str, Any]:
    options = {
        "entropy_coef": draw.one_of((0.0, 0.01, 0.5)),
        "critic_coef": draw.one_of((None, 0.5, 1.0, 1.0)),
        "loss_critic_type": draw.one_of(("l1", "l2", "smooth_l1")),
        "reduction": draw.one_of(("mean", "sum", "none")),
        "clip_value": draw.one_of((None, 0.2, 1.0)),
        "diagnostics": draw.chance(0.5),
        "separate_losses": shared and draw.chance(0.5),
    }
    if options["critic_coef"] is None:
        options["clip_value"] = None
    return options


NUMBERS = ("entropy_coef", "critic_coef", "clip_value")


def loss_layout(draw: Draw, agents: bool) -> Layout:
    """Returns ``[T, N]`` or ``[N, T]``, maybe with a last dimension of 1, or ``[N, T, agents, 1]``."""
    if agents:
        shape = (draw.one_of((1, 2, 3)), draw.one_of((1, 2, 3, 5, 8)), draw.one_of((1, 2, 3)), 1)
        mask = draw.mask(shape, -3) if draw.chance(0.5) else None
        return Layout(shape, -3, mask, mask is not None and draw.chance(0.5))
    layout = draw.layout((2,))
    if draw.chance(0.5):
        return layout
    time_dim = layout.time_dim if layout.time_dim >= 0 else layout.time_dim - 1
    return layout._replace(
        shape=(*layout.shape, 1), time_dim=time_dim, mask=None if layout.mask is None else layout.mask.unsqueeze(-1)
    )


def shifted_numbers(layout: Layout, done: Tensor) -> Tensor:
    """The next observation of a step is the observation of the next step, except where that step is not the next one of the trace."""
    number = torch.arange(done.numel(), dtype=torch.float32).reshape(layout.shape)
    dim, length = layout.time_dim, layout.shape[layout.time_dim]
    own = done.clone()
    ends = [start - 1 for start in layout.starts if start > 0] + [length - 1]
    own.index_fill_(dim, torch.tensor(ends), True)
    if layout.mask is not None:
        own |= ~layout.mask.roll(-1, dim)
    return torch.where(own, number + done.numel(), number.roll(-1, dim)).reshape(-1)


def with_junk(draw: Draw, x: Any, mask: Tensor) -> Any:
    """Returns ``x``, whose leading dimensions are those of the mask, with junk at the excluded steps."""
    if not isinstance(x, Tensor) or x.dim() < mask.dim():
        return x
    return draw.with_junk(x, mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())).expand(x.shape))


def spread(x: Any, included: Tensor, rows: int) -> Any:
    """Returns the entries of ``x`` at the rows ``included``, and 0 at the others."""
    place = torch.full((rows,), len(included)).index_copy(0, included, torch.arange(len(included)))
    return with_zero(x).take(place)


def losses(
    steps: Dict[str, Any], numbers: Dict[str, Any], options: Dict[str, Any], whole: Callable[[Any], Any]
) -> Tuple[Any, ...]:
    """The formulas of the loss on the included steps, ``[M]``, in the order of ``A2CLosses``."""
    count = max(len(value_and_size(steps["value"])[0]), 1)

    def mean(x: Any) -> Any:
        return x.sum() * (1.0 / count)

    def reduced(x: Any) -> Any:
        return {"mean": mean, "sum": lambda x: x.sum(), "none": whole}[options["reduction"]](x)

    result: List[Optional[Any]] = [reduced(-(steps["log_prob"] * steps["advantage"]))]
    critic = options["critic_coef"] is not None
    if critic:
        value, target = steps["value"], steps["value_target"]
        distance = distance_of(value - target, options["loss_critic_type"])
        clipped = None
        if options["clip_value"] is not None:
            limit, old = numbers["clip_value"], steps["old_value"]
            change = value - old
            clipped = ~((change <= limit) & (change >= -limit))
            bound = torch.where(change >= limit, limit, -limit)
            other = distance_of(old + bound - target, options["loss_critic_type"])
            larger = torch.where(distance >= other, torch.where(distance <= other, (distance + other) * 0.5, distance), other)
            # Without a clip, old + change is the value, but the library rounds this sum.
            same = distance_of(old + change - target, options["loss_critic_type"])
            distance = torch.where(clipped, larger, (distance + same) * 0.5)
        result.append(reduced(distance * numbers["critic_coef"]))
    if "entropy" in steps and options["entropy_coef"]:
        result += [mean(steps["entropy"]).detach(), reduced(-(steps["entropy"] * numbers["entropy_coef"]))]
    if critic and clipped is not None:
        result.append(clipped.double().sum() / count)
    if options["diagnostics"]:
        if critic:
            result.append(
                through(explained_variance, value.detach().reshape(1, -1), target.reshape(1, -1)).reshape(()).detach()
            )
        if "sample_log_prob" in steps:
            log_ratio = (steps["log_prob"] - steps["sample_log_prob"]).detach()
            result.append(mean(log_ratio.exp() - 1.0 - log_ratio))
    return tuple(result)


def distance_of(x: Any, kind: str) -> Any:
    if kind == "smooth_l1":
        return torch.where((x <= 1.0) & (x >= -1.0), x * x * 0.5, torch.where(x >= 0.0, x, -x) - 0.5)
    # Where rounding made a distance exactly 0, the derivative of "l1" is undecided: the comparisons are with a tiny number.
    return x * x if kind == "l2" else torch.where(x >= 1e-30, x, torch.where(x <= -1e-30, -x, x * 0.0))


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """``[1, M]`` each, to ``[1]``."""
    if value.numel() == 0:
        return torch.full((1,), torch.nan, dtype=torch.float64, requires_grad=True)
    return 1.0 - (target - value).var(-1, correction=0) / target.var(-1, correction=0)


NAMES = ("A2CLoss", "A2CLoss-shifted", "A2CLoss-given-advantage", "A2CLoss-agents")
FAMILIES: Dict[str, Callable[..., Case]] = {name: loss_case(name) for name in NAMES}
