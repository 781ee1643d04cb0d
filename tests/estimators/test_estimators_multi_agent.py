"""GAE of several agents that share rewards and ends as a team, or have their own."""

import functools

import masked_oracle
import oracle
import pytest
import torch
from cases import assert_equals, evaluate, in_double, inputs, make_steps
from tolerances import assert_close

from a2c_compiled.estimators import GAE, MultiAgentGAE

SHAPE = (4, 6, 3, 1)  # [N, T, agents, 1]
GAMMA, LMBDA = 0.97, 0.9
OPTIONS = ({}, {"average_gae": True}, {"auto_reset_env": True, "average_gae": True})
each_options = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
each_team = pytest.mark.parametrize("team", [True, False], ids=["team_reward", "reward_of_each"])


def data(team, shape=SHAPE, dtype=torch.float64, agent_dim=-2):
    """Values of each agent, with rewards and ends of the team or of each agent."""
    steps = inputs(MultiAgentGAE, make_steps(shape, dtype))
    if team:
        steps |= {name: steps[name].select(agent_dim, 0) for name in ("reward", "done", "terminated")}
    return steps


def expected(options, team, agent_dim=-2, time_dim=-3, group=None, mask=None, gamma=GAMMA):
    """Returns a function of the same tensors that applies the oracle to each agent separately."""

    def function(**steps):
        dim, time = agent_dim % steps["state_value"].dim(), time_dim % steps["state_value"].dim()
        agents = steps["state_value"].size(dim)
        advantages, value_targets = [], []
        for agent in range(agents):
            one = {k: v if team and not k.endswith("value") else v.select(dim, agent) for k, v in steps.items()}
            if options.get("auto_reset_env"):
                truncated = one["done"] & ~one["terminated"]
                one["reward"] = one["reward"] + torch.where(truncated, gamma * one["state_value"], 0.0)
                one["terminated"] = one["done"]
            time_of_one = time - (time > dim)
            if mask is None:
                advantage, value_target = oracle.generalized_advantage_estimate(gamma, LMBDA, **one, time_dim=time_of_one)
            else:
                advantage, value_target = masked_oracle.on_pieces(
                    functools.partial(oracle.generalized_advantage_estimate, gamma, LMBDA, time_dim=-1),
                    one,
                    mask.select(dim, agent),
                    time_of_one,
                )
            advantages.append(advantage)
            value_targets.append(value_target)
        advantage = torch.stack(advantages, dim)
        if options.get("average_gae"):
            advantage = oracle.standardize(advantage, 1e-4, mask, group, dim)
        return advantage, torch.stack(value_targets, dim)

    return function


def assert_equals_oracle(module, options, team, arguments, agent_dim=-2, time_dim=-3, **extra):
    assert_equals(functools.partial(module, **extra), expected(options, team, agent_dim, time_dim, **extra), arguments)


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize(
    ("shape", "time_dim", "agent_dim"),
    [(SHAPE, -3, -2), ((6, 4, 3), 0, 2), ((3, 4, 6), -1, 0), ((6, 3), -2, -1), ((2, 3, 6, 4), -2, 1)],
    ids=str,
)
@each_team
@each_options
def test_each_agent_equals_the_oracle_with_gradients(options, team, shape, time_dim, agent_dim, mode):
    module = MultiAgentGAE(GAMMA, LMBDA, **options, time_dim=time_dim, agent_dim=agent_dim, differentiable=True)
    module = torch.jit.script(module) if mode == "scripted" else module
    assert_equals_oracle(module, options, team, data(team, shape, agent_dim=agent_dim), agent_dim, time_dim)


@pytest.mark.slow
@each_team
def test_traced_equals_the_oracle_in_other_shapes(team):
    torch._dynamo.reset()
    options = OPTIONS[-1]
    compiled = torch.compile(
        MultiAgentGAE(GAMMA, LMBDA, **options, differentiable=True), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for shape in (SHAPE, (3, 9, 2, 1)):
        with torch._dynamo.config.patch(error_on_recompile=shape != SHAPE):
            assert_equals_oracle(compiled, options, team, data(team, shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_results_have_the_dtype_of_the_reward(dtype):
    arguments = data(True, dtype=dtype)
    results = MultiAgentGAE(GAMMA, LMBDA, average_gae=True)(**arguments)
    truths = expected({"average_gae": True}, True)(**in_double(arguments))
    for result, truth in zip(results, truths, strict=True):
        assert result.dtype == dtype
        assert_close(result, truth, roundings=3)


@each_team
def test_each_agent_is_standardised_within_groups_and_the_mask(team):
    group = torch.tensor([7, 7, -3, 7])
    mask = torch.rand(SHAPE) < 0.8
    module = MultiAgentGAE(GAMMA, LMBDA, average_gae=True, differentiable=True)
    assert_equals_oracle(module, {"average_gae": True}, team, data(team), group=group, mask=mask)


def test_mask_and_steps_to_next_obs_of_a_team_need_no_agent_dimension():
    steps, mask = torch.randint(1, 4, SHAPE[:2] + (1,)), torch.rand(SHAPE[:2] + (1,)) < 0.8
    module, arguments = MultiAgentGAE(average_gae=True), data(True)
    shared = module(**arguments, steps_to_next_obs=steps, mask=mask)
    each = module(**arguments, steps_to_next_obs=steps.unsqueeze(2).expand(SHAPE), mask=mask.unsqueeze(2).expand(SHAPE))
    assert all(torch.equal(a, b) for a, b in zip(shared, each, strict=True))
    truth = expected({}, True, gamma=0.99 ** steps.double())(**arguments)
    assert_close(MultiAgentGAE(lmbda=LMBDA)(**arguments, steps_to_next_obs=steps).advantage, truth[0])


def test_multi_agent_gae_of_one_agent_equals_gae():
    arguments = inputs(GAE, make_steps((4, 6, 1)))
    alone = {k: v.unsqueeze(2) for k, v in arguments.items()}
    for result, same in zip(MultiAgentGAE()(**alone), GAE()(**arguments), strict=True):
        assert_close(result.squeeze(2), same)


@pytest.mark.parametrize("shape", [(0, 6, 3, 1), (4, 0, 3, 1), (4, 6, 0, 1), (1, 1, 2, 1)], ids=str)
@each_team
def test_empty_data_and_a_single_step_give_finite_results_and_gradients(team, shape):
    if team and shape[2] == 0:
        return  # the reward of a team is that of its first agent
    module = MultiAgentGAE(average_gae=True, differentiable=True)
    results, gradients = evaluate(module, data(team, shape))
    assert all(result.shape == shape for result in results)
    assert all(tensor.isfinite().all() for tensor in (*results, *gradients.values()))


@pytest.mark.parametrize(
    ("changed", "options", "error", "message"),
    [
        ({}, {"agent_dim": 4}, ValueError, r"agent_dim: expected a dimension of values of shape \[4, 6, 3, 1\], got 4"),
        ({}, {"time_dim": 2}, ValueError, "agent_dim: expected another dimension than time_dim, 2, got -2"),
        ({}, {"time_dim": -5}, ValueError, r"time_dim: expected a dimension of a tensor with shape \[4, 6, 3, 1\], got -5"),
        (
            {"done": torch.zeros(4, 6).bool()},
            {},
            ValueError,
            r"done: expected the shape of reward, \[4, 6, 3, 1\], got \[4, 6\]",
        ),
        ({"reward": torch.zeros(4, 5, 1).double()}, {}, ValueError, r"done: expected the shape of reward, \[4, 5, 3, 1\]"),
        ({"next_state_value": torch.zeros(4, 6, 1)}, {}, ValueError, "next_state_value: expected the shape of reward"),
    ],
)
def test_a_wrong_shape_raises_an_error_that_names_the_argument(changed, options, error, message):
    with pytest.raises(error, match=message):
        MultiAgentGAE(**options)(**{**data(True), **changed})
