"""Several agents: the loss equals a loop over the agents, each with the oracle of a single agent, in every shape that users have."""

import copy
import functools
import itertools
import re

import masked_oracle
import oracle
import pytest
import torch
from cases import make_steps
from loss_cases import CHOICES, FEATURES, assert_same, compile_backend, gradients, losses_of, make_networks, present, traced
from torch import nn

from a2c_compiled import A2CLoss, TrainStep, distributions
from a2c_compiled.losses import PercentileNorm, a2c_loss
from a2c_compiled.update import Rollout

N, T, AGENTS = 4, 5, 3
GAMMA, LMBDA = 0.97, 0.9
EXACT = 1e-10
ENTRIES = ("reward", "done", "terminated")


class Flat(nn.Module):
    """The values without the last dimension of 1."""

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, observation):
        return self.critic(observation).squeeze(-1)


class Central(nn.Module):
    """One value for all agents, ``[N, T, 1]``, from the observations of all of them."""

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, observation):
        return self.critic(observation.mean(-2))


class CentralOfState(nn.Module):
    """One value for all agents from a state that they share."""

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, observation):
        return self.critic(observation[1])


class ActorOfParts(nn.Module):
    def __init__(self, actor):
        super().__init__()
        self.actor = actor

    def forward(self, observation):
        return self.actor(observation[0])


def make_loss(critic="column", dtype=torch.float64, **options):
    """``critic``: it returns ``[N, T, agents, 1]`` (column), ``[N, T, agents]`` (flat), or one value for all agents (central)."""
    actor, values = make_networks(dtype=dtype)
    wrap = {"column": nn.Identity(), "flat": Flat(values), "central": Central(values), "central_flat": Flat(Central(values))}
    values = values if critic == "column" else wrap[critic]
    options = {"value_estimator": "magae", "reduction": "none", **options}
    loss = A2CLoss(actor, values, distributions.Categorical(CHOICES), **options)
    loss.value_estimator.gamma, loss.value_estimator.lmbda = GAMMA, LMBDA
    return loss


def make_data(team=(), mask=None, shape=(N, T), dtype=torch.float64, seed=0):
    """Everything of each agent, ``[N, T, agents, ...]``, except the entries named in ``team``, which are ``[N, T]``.

    ``mask``: None, ``"team"`` or ``"each"``. The excluded entries hold NaN and True.
    """
    lead = (*shape, AGENTS)
    steps = make_steps(lead, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    observation, next_observation = torch.randn((2, *lead, FEATURES), generator=generator, dtype=dtype)
    data = {
        "observation": observation,
        "next_observation": next_observation,
        "action": torch.randint(CHOICES, lead, generator=generator),
        "state_value": steps.state_value,
        **{name: getattr(steps, name) for name in ENTRIES},
    }
    for name in team:
        data[name] = data[name][..., 0]
    if mask is not None:
        counts = torch.rand(lead, generator=generator) < 0.7
        counts = counts[..., 0] if mask == "team" else counts
        for name in {*data} - {"action"}:
            data[name] = junk_outside(data[name], counts, name)
        data["mask"] = counts
    return data


def junk_outside(tensor, mask, name):
    """NaN, or True in flags, at the excluded steps; an entry of the team is excluded if all agents are."""
    is_observation = name.endswith("observation")
    if mask.dim() == 3 and tensor.dim() == 2:
        mask = mask.any(-1)
    while mask.dim() < tensor.dim():
        mask = mask.unsqueeze(-1)
    assert mask.dim() == tensor.dim() or is_observation
    return tensor | ~mask if tensor.dtype == torch.bool else tensor.masked_fill(~mask, float("nan"))


def with_columns(data, names=(*ENTRIES, "mask", "state_value", "advantage", "value_target")):
    """The entries in ``names`` with a last dimension of 1."""
    return {name: tensor.unsqueeze(-1) if name in names else tensor for name, tensor in data.items()}


def of_agent(tensor, agent, dims=2):
    """The entries of one agent; those of the team belong to each."""
    return tensor if tensor.dim() == dims else tensor[:, :, agent]


def on_steps(function, steps, mask):
    """The oracle of a single agent, ``[N, T]``, on the steps that count."""
    if mask is None:
        return function(**steps, time_dim=-1)
    return masked_oracle.on_pieces(functools.partial(function, time_dim=-1), steps, mask, -1)


def expected_losses(loss, data, average_gae=False):
    """The losses of each step by a loop over the agents, in float64, and the weights of the steps: 0 or 1."""
    gae = functools.partial(oracle.generalized_advantage_estimate, GAMMA, LMBDA)
    mask, clean = data.get("mask"), {name: x.nan_to_num() if x.is_floating_point() else x for name, x in data.items()}
    params = loss.actor_network(clean["observation"])
    values = loss.critic_network(clean["observation"])
    with torch.no_grad():
        next_values = loss.critic_network(clean["next_observation"])
    values, next_values = (x.squeeze(-1) if x.dim() == 4 or x.shape == (*x.shape[:2], 1) else x for x in (values, next_values))
    central = values.dim() == 2
    rows = {name: [] for name in ("objective", "entropy", "critic", "counts", "value_counts")}
    advantages, targets = [], []
    for agent in range(AGENTS):
        counts = None if mask is None else of_agent(mask, agent)
        trace = mask.any(-1) if central and mask is not None and mask.dim() == 3 else counts
        steps = {name: of_agent(clean[name], agent) for name in ENTRIES}
        steps |= {"state_value": of_agent(values.detach(), agent), "next_state_value": of_agent(next_values, agent)}
        advantage, target = on_steps(gae, steps, trace)
        advantages.append(advantage)
        targets.append(target)
        every = torch.ones(advantage.shape, dtype=torch.bool)
        rows["counts"].append(every if counts is None else counts)
        rows["value_counts"].append(every if trace is None else trace)
    stacked = torch.stack(advantages, -1)
    if average_gae:
        counted = torch.stack(rows["value_counts"], -1)
        stacked = oracle.standardize(stacked, 1e-4, None if mask is None else counted, separate_dim=-1)
    for agent in range(AGENTS):
        logits = torch.log_softmax(params[:, :, agent], -1)
        log_prob = logits.gather(-1, data["action"][:, :, agent].unsqueeze(-1)).squeeze(-1)
        rows["objective"].append(-log_prob * stacked[..., agent])
        rows["entropy"].append(-0.01 * -(logits.exp() * logits).sum(-1))
        error = (of_agent(values, agent) - targets[agent]).abs()
        rows["critic"].append(torch.where(error < 1, error.square() / 2, error - 0.5))
    rows = {name: torch.stack(entries, -1) for name, entries in rows.items()}
    if central:
        rows |= {name: rows[name][..., :1] for name in ("critic", "value_counts")}
    of_steps = torch.where(rows["counts"], rows["objective"], 0.0), torch.where(rows["counts"], rows["entropy"], 0.0)
    losses = {
        "loss_objective": of_steps[0],
        "loss_critic": torch.where(rows["value_counts"], rows["critic"], 0.0),
        "loss_entropy": of_steps[1],
    }
    return losses, {"loss_objective": rows["counts"], "loss_critic": rows["value_counts"], "loss_entropy": rows["counts"]}


def assert_equals_loop(loss, module, arguments, data, average_gae=False):
    outputs = module(**{name: tensor for name, tensor in arguments.items() if name != "state_value"})
    losses, expected = losses_of(outputs), expected_losses(loss, data, average_gae)[0]
    assert_same(losses, expected, EXACT)
    assert_same(gradients_of(losses, loss), gradients_of(expected, loss), EXACT)


def gradients_of(losses, loss):
    """The gradients of a weighted sum, in which every entry has a weight of its own."""
    return gradients(dict(sorted(losses.items())), loss)


TEAMS = {"each": (), "team": ENTRIES, "team_reward": ("reward",)}
# Whose reward and ends, whose mask, and the critic.
CASES = [
    (team, mask, critic)
    for team, mask, critic in itertools.product(TEAMS, (None, "team", "each"), ("column", "flat", "central", "central_flat"))
    if not critic.startswith("central") or team == "team"
]
each_case = pytest.mark.parametrize(("team", "mask", "critic"), CASES, ids=lambda value: str(value))
each_layout = pytest.mark.parametrize("layout", [dict, with_columns], ids=["flat", "columns"])


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@each_layout
@each_case
def test_equals_a_loop_over_the_agents(team, mask, critic, layout, mode):
    loss = make_loss(critic)
    module = torch.jit.script(loss) if mode == "scripted" else loss
    data = make_data(TEAMS[team], mask)
    assert_equals_loop(loss, module, layout(data), data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("team", "mask", "critic"), [("each", None, "flat"), ("team_reward", "each", "column"), ("team", "each", "central_flat")]
)
def test_traced_equals_a_loop_over_the_agents_in_other_shapes(team, mask, critic):
    loss = make_loss(critic)
    module = traced(loss, "aot_eager")
    for shape in ((N, T), (3, 7)):
        data = make_data(TEAMS[team], mask, shape)
        with torch._dynamo.config.patch(error_on_recompile=shape != (N, T)):
            assert_equals_loop(loss, module, data, data)


@pytest.mark.parametrize("mask", [None, "each"])
@pytest.mark.parametrize("critic", ["column", "central"])
def test_advantages_are_standardised_for_each_agent(critic, mask):
    loss = make_loss(critic)
    loss.value_estimator.average_gae = True
    data = make_data(ENTRIES, mask)
    assert_equals_loop(loss, loss, data, data, average_gae=True)


@pytest.mark.parametrize("mask", [None, "team", "each"])
@pytest.mark.parametrize("critic", ["flat", "central"])
def test_means_and_sums_are_over_the_steps_that_count(critic, mask):
    data = make_data(ENTRIES, mask)
    losses, counts = expected_losses(make_loss(critic), data)
    arguments = {name: tensor for name, tensor in data.items() if name != "state_value"}
    for reduction in ("mean", "sum"):
        outputs = losses_of(make_loss(critic, reduction=reduction)(**arguments))
        for name, total in ((name, loss.sum()) for name, loss in losses.items()):
            expected = total if reduction == "sum" else total / counts[name].sum()
            torch.testing.assert_close(outputs[name], expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("time_dim", "agent_dim"), [(-4, -2), (0, 2), (-3, -1)])
@each_layout
@pytest.mark.parametrize("critic", ["flat", "central"])
def test_time_may_be_first(critic, layout, time_dim, agent_dim):
    data = make_data(ENTRIES, "each")
    expected = make_loss(critic)(**without(data, "state_value"))
    loss = make_loss(critic)
    loss.make_value_estimator("magae", gamma=GAMMA, lmbda=LMBDA, time_dim=time_dim, agent_dim=agent_dim)
    outputs = loss(**layout({name: tensor.transpose(0, 1) for name, tensor in without(data, "state_value").items()}))
    for name, value in losses_of(outputs).items():
        torch.testing.assert_close(value.transpose(0, 1), getattr(expected, name), rtol=EXACT, atol=EXACT)


def test_agents_may_be_first():
    data = without(make_data(("reward",), "each"), "state_value")
    first = {name: tensor if name == "reward" else tensor.movedim(2, 0) for name, tensor in data.items()}
    loss = make_loss("flat")
    loss.make_value_estimator("magae", gamma=GAMMA, lmbda=LMBDA, time_dim=-2, agent_dim=0)
    for arguments in (first, with_columns(first)):
        outputs = {name: value.movedim(0, 2) for name, value in losses_of(loss(**arguments)).items()}
        assert_same(outputs, losses_of(make_loss()(**data)), EXACT)


def without(data, *names):
    return {name: tensor for name, tensor in data.items() if name not in names}


@pytest.mark.parametrize("critic", ["flat", "central"])
def test_coefficients_of_each_step_of_a_team_belong_to_each_agent(critic):
    data = without(make_data(ENTRIES), "state_value")
    steps = torch.randint(1, 4, (N, T))
    group = torch.randint(2, (N, T))
    loss = make_loss(critic)
    loss.value_estimator.average_gae = True
    outputs = loss(**data, steps_to_next_obs=steps, group=group)
    assert_same(loss(**data, steps_to_next_obs=steps.unsqueeze(-1), group=group.unsqueeze(-1)), outputs, 0)
    if critic == "flat":
        each = {"steps_to_next_obs": steps, "group": group}
        each = {name: tensor.unsqueeze(-1).expand(N, T, AGENTS) for name, tensor in each.items()}
        assert_same(loss(**data, **each), outputs, 0)


# Advantages that the caller passes


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@each_layout
@pytest.mark.parametrize("mask", [None, "team", "each"])
@pytest.mark.parametrize("critic", ["column", "flat", "central", "central_flat"])
def test_an_advantage_of_the_team_belongs_to_each_agent(critic, mask, layout, mode):
    data = make_data(ENTRIES, mask)
    loss = make_loss(critic)
    module = torch.jit.script(loss) if mode == "scripted" else loss
    advantage, value_target = make_steps((N, T), torch.float64, 5)[:2]
    given = {**{name: data[name] for name in ("observation", "action", "mask") if name in data}, "advantage": advantage}
    outputs = module(**layout({**given, "value_target": value_target}))
    params = loss.actor_network(data["observation"].nan_to_num())
    value = loss.critic_network(data["observation"].nan_to_num())
    value = value.squeeze(-1) if critic in ("column", "central") else value
    counts = data.get("mask")
    counts = counts if counts is None or counts.dim() == 3 else counts.unsqueeze(-1).expand(N, T, AGENTS)
    log_prob, entropy = loss.distribution.log_prob(params, data["action"]), loss.distribution.entropy(params)
    of_policy = a2c_loss(
        log_prob,
        advantage.unsqueeze(-1).expand_as(log_prob),
        entropy,
        entropy_coef=loss.entropy_coef,
        reduction="none",
        mask=counts,
    )
    value_counts = counts if counts is None or value.dim() == 3 else counts.any(-1)
    of_critic = a2c_loss(
        value,
        value,
        new_state_value=value,
        value_target=value_target if value.dim() == 2 else value_target.unsqueeze(-1).expand_as(value),
        reduction="none",
        mask=value_counts,
    )
    expected = losses_of(of_policy) | {"loss_critic": of_critic.loss_critic.reshape(outputs.loss_critic.shape)}
    assert outputs.loss_critic.shape == ((N, T, 1) if critic.startswith("central") else (N, T, AGENTS))
    assert_same(losses_of(outputs), expected, EXACT)
    assert_same(gradients_of(losses_of(outputs), loss), gradients_of(expected, loss), EXACT)


@pytest.mark.parametrize("critic", ["flat", "central"])
def test_estimates_of_a_rollout_give_the_losses_of_the_rollout(critic):
    data = make_data((*ENTRIES, "state_value") if critic == "central" else ENTRIES, "each")
    loss = make_loss(critic, clip_value=0.1, reduction="mean", diagnostics=True)
    estimates = loss.estimates(**data)
    given = {name: getattr(estimates, name) for name in ("advantage", "value_target", "state_value", "mask")}
    assert estimates.advantage.shape == (N, T, AGENTS)
    outputs, expected = loss(data["observation"], data["action"], **given), loss(**data)
    assert_same(outputs, expected, EXACT)
    assert 0 < expected.value_clip_fraction < 1


@pytest.mark.parametrize("critic", ["flat", "central"])
def test_an_advantage_norm_reads_the_targets_that_count(critic):
    norm = PercentileNorm(rate=1.0, min_scale=1e-3)
    data = without(make_data(ENTRIES, "each"), "state_value")
    loss = make_loss(critic, advantage_norm=norm)
    loss(**data)
    target = loss.estimates(**data).value_target
    counts = data["mask"].any(-1, keepdim=True) if critic == "central" else data["mask"]
    torch.testing.assert_close(norm.high[0], target[counts].quantile(0.95), rtol=EXACT, atol=EXACT)


# A state that all agents share


@pytest.mark.parametrize("size", [AGENTS, 7])
@pytest.mark.parametrize("with_agent_dim", [False, True])
def test_a_central_critic_reads_a_state_whose_masked_entries_hold_nan(size, with_agent_dim):
    data = without(make_data(ENTRIES, "each"), "state_value")
    state, next_state = torch.randn(2, N, T, size, dtype=torch.float64)
    actor, critic = make_networks(dtype=torch.float64)[0], nn.Linear(size, 1).double()
    networks = ActorOfParts(actor), CentralOfState(critic)
    loss = A2CLoss(*networks, distributions.Categorical(CHOICES), value_estimator="magae", reduction="none")

    def losses_with(junk):
        counts = data["mask"].any(-1, keepdim=True)
        states = [torch.where(counts, x, junk) for x in (state, next_state)]
        states = [x.unsqueeze(2) for x in states] if with_agent_dim else states
        observations = {name: (data[name], x) for name, x in zip(("observation", "next_observation"), states, strict=True)}
        return losses_of(loss(**{**data, **observations}))

    losses, clean = losses_with(float("nan")), losses_with(0.0)
    assert_same(losses, clean, 0)
    found, expected = gradients_of(losses, loss), gradients_of(clean, loss)
    assert_same(found, expected, 0)
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_nan_in_a_shared_state_is_not_hidden_by_an_agent_that_ended():
    data = without(make_data(ENTRIES), "state_value")
    mask = torch.ones(N, T, AGENTS, dtype=torch.bool)
    mask[0, 0, 1] = False
    state = torch.zeros(N, T, AGENTS, dtype=torch.float64)
    state[0, 0, 1] = float("nan")
    networks = ActorOfParts(make_networks(dtype=torch.float64)[0]), CentralOfState(nn.Linear(AGENTS, 1).double())
    loss = A2CLoss(*networks, distributions.Categorical(CHOICES), value_estimator="magae")
    observations = {name: (data[name], state) for name in ("observation", "next_observation")}
    assert loss(**{**data, **observations}, mask=mask).loss_critic.isnan()


# The training step


def rollout_of(data):
    named = {name: tensor for name, tensor in data.items() if name != "state_value"}
    return Rollout(**named)


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize(("mask", "critic"), [(None, "flat"), ("team", "column"), ("each", "flat"), ("each", "central")])
def test_a_training_step_takes_the_gradient_of_the_loop(mask, critic, minibatches):
    assert_takes_the_gradient_of_the_loop(mask, critic, minibatches, compile=False)


@pytest.mark.slow
def test_a_compiled_training_step_takes_the_gradient_of_the_loop():
    with compile_backend("aot_eager"):
        assert_takes_the_gradient_of_the_loop("each", "central", 2, compile=True)


def assert_takes_the_gradient_of_the_loop(mask, critic, minibatches, compile):
    data = make_data(ENTRIES, mask)
    loss = make_loss(critic, reduction="mean")
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    losses, counts = expected_losses(loss, data)
    means = {name: loss.sum() / counts[name].sum() for name, loss in losses.items()}
    grads = torch.autograd.grad(sum(means.values()), list(loss.parameters()))
    step = TrainStep(loss, "sgd", lr=0.1, max_grad_norm=None, minibatches=minibatches, compile=compile)
    metrics = step(rollout_of(data))
    for name, mean in means.items():
        torch.testing.assert_close(getattr(metrics, name), mean.detach(), rtol=EXACT, atol=EXACT)
    for parameter, old, grad in zip(loss.parameters(), before, grads, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * grad, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_minibatches_have_the_metrics_of_the_whole_rollout(reduction):
    data = make_data((*ENTRIES, "state_value"), "each")
    loss = make_loss("central", reduction=reduction, clip_value=0.1)
    metrics = [TrainStep(copy.deepcopy(loss), "sgd", compile=False, minibatches=count)(Rollout(**data)) for count in (1, 2, 4)]
    for other in metrics[1:]:
        assert_same(present(other), present(metrics[0]), EXACT)


def test_minibatches_split_environments_also_if_time_is_first():
    data = make_data(ENTRIES)
    swapped = {name: tensor.transpose(0, 1) for name, tensor in data.items()}
    loss = make_loss("flat", reduction="mean")
    loss.make_value_estimator("magae", time_dim=-4)
    expected = TrainStep(copy.deepcopy(loss), "sgd", compile=False)(rollout_of(swapped))
    for arguments in (swapped, with_columns(swapped)):
        metrics = TrainStep(copy.deepcopy(loss), "sgd", compile=False, minibatches=4)(rollout_of(arguments))
        assert_same(present(metrics), present(expected), EXACT)
    with pytest.raises(ValueError, match=r"^minibatches: expected a number that divides the 4 environments, got 5"):
        TrainStep(loss, "sgd", compile=False, minibatches=5)(rollout_of(swapped))


# Files


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".pt2"])
@pytest.mark.parametrize(
    ("team", "mask", "critic"),
    [("each", None, "column"), ("team_reward", "each", "flat"), ("team", "team", "column"), ("team", "each", "central")],
)
def test_an_exported_loss_serves_other_sizes(team, mask, critic, ending, tmp_path):
    pytest.importorskip("onnxruntime")
    from export_cases import EXPORTERS, LOADERS, assert_same_outputs, named

    from a2c_compiled import export

    def arguments(shape):
        data = make_data(TEAMS[team], mask, shape, torch.float32)
        data = {name: x.nan_to_num() if x.is_floating_point() else x for name, x in data.items() if name != "state_value"}
        return with_columns(data, ENTRIES) if critic == "column" else data

    loss = make_loss(critic, torch.float32)
    path = EXPORTERS[ending](loss, arguments((N, T)), tmp_path / f"loss{ending}", ("N", "T"))
    run = LOADERS[ending](path)
    for shape in ((N, T), (3, 7)):
        with torch.no_grad():
            assert_same_outputs(run(arguments(shape)), named(loss(**arguments(shape))), ending)
    assert all(output.passed for output in export.verify(path).outputs.values())


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "critic"), [("team", "flat"), ("each", "central")])
def test_an_exported_training_step_and_the_graphs_of_its_loss_are_verified(mask, critic, tmp_path):
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    data = {
        name: x.nan_to_num() if x.is_floating_point() else x
        for name, x in make_data(ENTRIES, mask, dtype=torch.float32).items()
    }
    loss = make_loss(critic, torch.float32, reduction="mean")
    rollout = rollout_of(data)
    path = export.export_train_step(TrainStep(loss, "sgd", lr=0.1, compile=False), rollout, tmp_path / "step.onnx")
    assert all(output.passed for output in export.verify(path).outputs.values())
    graphs = export.graphs_of(loss, rollout)
    for name, graph in ((name, graphs[name]) for name in ("policy_sampled", "estimator")):
        path = export.export_onnx(graph.module, graph.example_inputs, tmp_path / f"{name}.onnx", graph.dynamic_axes)
        assert all(output.passed for output in export.verify(path).outputs.values()), name


# What is refused


def changed(**shapes):
    """A change of the arguments: tensors of other shapes, flags for ``done``, ``terminated`` and ``mask``."""
    flags = ("done", "terminated", "mask")
    return {
        name: torch.zeros(shape, dtype=torch.bool) if name in flags else torch.zeros(shape, dtype=torch.float64)
        for name, shape in shapes.items()
    }


EACH_OR_TEAM = "expected [4, 5, 3] or [4, 5, 3, 1] for each agent, or [4, 5] or [4, 5, 1] for the team, got "
ONE_VALUE = (
    "expected one entry for all agents, [4, 5, 1], because critic_network returns one value for all agents, got one for each"
)
REFUSED = [
    ("flat", {}, changed(reward=(4, 3)), f"reward: {EACH_OR_TEAM}[4, 3]"),
    ("flat", {}, changed(done=(4, 5, 2)), f"done: {EACH_OR_TEAM}[4, 5, 2]"),
    ("flat", {}, changed(terminated=(4,)), f"terminated: {EACH_OR_TEAM}[4]"),
    ("flat", {}, changed(mask=(5, 5, 3)), "mask: expected the leading dimensions of observation, [4, 5, 3, 3], got [5, 5, 3]"),
    ("flat", {}, changed(mask=(4, 5, 3, 1, 1)), "mask: expected the leading dimensions of action, [4, 5, 3], got"),
    ("flat", {}, changed(mask=(4,)), f"mask: {EACH_OR_TEAM}[4]"),
    ("flat", {}, changed(steps_to_next_obs=(4, 4)), f"steps_to_next_obs: {EACH_OR_TEAM}[4, 4]"),
    ("flat", {"clip_value": 0.2}, changed(state_value=(4, 3)), f"state_value: {EACH_OR_TEAM}[4, 3]"),
    ("flat", {"clip_value": 0.2}, changed(state_value=(4, 5)), "state_value: expected the shape of log_prob, [4, 5, 3], got"),
    (
        "flat",
        {"diagnostics": True},
        changed(sample_log_prob=(4, 5)),
        "sample_log_prob: expected the shape of log_prob, [4, 5, 3]",
    ),
    ("flat", {}, changed(advantage=(5,)), f"advantage: {EACH_OR_TEAM}[5]"),
    ("flat", {}, changed(advantage=(4, 5), value_target=(4, 3)), f"value_target: {EACH_OR_TEAM}[4, 3]"),
    ("central", {}, changed(reward=(4, 5, 3)), f"reward: {ONE_VALUE}"),
    ("central", {}, changed(done=(4, 5, 3)), f"done: {ONE_VALUE}"),
    ("central_flat", {}, changed(terminated=(4, 5, 3, 1)), f"terminated: {ONE_VALUE}"),
    ("central", {}, changed(advantage=(4, 5, 3), value_target=(4, 5, 3)), f"value_target: {ONE_VALUE}"),
    (
        "central",
        {"clip_value": 0.2},
        changed(state_value=(4, 5, 3)),
        "state_value: expected the shape of the values, [4, 5, 1], got",
    ),
    ("wrong", {}, {}, f"critic_network: {EACH_OR_TEAM}[4, 5, 3, 3]"),
    ("wrong", {}, changed(advantage=(4, 5), value_target=(4, 5)), f"critic_network: {EACH_OR_TEAM}[4, 5, 3, 3]"),
    (
        "flat",
        {"value_estimator": "gae"},
        changed(advantage=(4, 5)),
        "advantage: expected the shape of log_prob, [4, 5, 3], or an est",
    ),
    (
        "flat",
        {"value_estimator": "gae"},
        changed(mask=(4, 5)),
        "mask: expected the shape of log_prob, [4, 5, 3], or an estimator of",
    ),
]


@pytest.mark.parametrize(("critic", "options", "arguments", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_other_shapes_are_refused_with_the_shapes_that_would_do(critic, options, arguments, message):
    loss = make_loss("flat" if critic == "wrong" else critic, **options)
    if critic == "wrong":
        loss.critic_network = nn.Identity()
    data = without(make_data(ENTRIES), "state_value")
    for module in (loss, torch.jit.script(loss)):
        with pytest.raises((ValueError, torch.jit.Error)) as error:
            module(**{**data, **arguments})
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent_dim": 3}, "agent_dim: expected a dimension of the log-probability, whose shape is [4, 5, 3], got 3"),
        ({"agent_dim": -5}, "agent_dim: expected a dimension of the log-probability, whose shape is [4, 5, 3], got -5"),
        ({"time_dim": -5}, "time_dim: expected a dimension of a tensor with shape [4, 5, 3, 1], got -5"),
        ({"time_dim": 2}, "agent_dim: expected another dimension than time_dim, 2, got -2"),
    ],
)
def test_a_wrong_dimension_is_refused_by_name(options, message):
    loss = make_loss("flat")
    loss.make_value_estimator("magae", **options)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        loss(**without(make_data(ENTRIES), "state_value"))
