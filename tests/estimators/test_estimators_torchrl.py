"""Every estimator that TorchRL also has equals TorchRL's module, with gradients, on the same data."""

import functools

import pytest
import torch
from cases import STANDARDISING, VARIANT_IDS, VARIANTS, assert_equals, inputs, make_steps

from a2c_compiled.estimators import GAE, MultiAgentGAE, TDLambdaEstimator, VTrace

advantages = pytest.importorskip("torchrl.objectives.value.advantages")
tensordict = pytest.importorskip("tensordict")

GAMMA, LMBDA = 31 / 32, 7 / 8  # exact in float32, TorchRL's dtype of them
BATCH, TIME, AGENTS = 4, 6, 3
SHAPE = (BATCH, TIME, 1)
WITH_LMBDA = (GAE, MultiAgentGAE, TDLambdaEstimator)  # TorchRL's V-trace has no lmbda

KNOWN = [
    (variant, name)
    for variant, name in zip(VARIANTS, VARIANT_IDS, strict=True)
    if hasattr(advantages, variant[0].__name__) and (variant[0] is GAE or "auto_reset_env" not in variant[1])
]
each_variant = pytest.mark.parametrize(("kind", "options"), [variant for variant, _ in KNOWN], ids=[name for _, name in KNOWN])
STANDARDISING_VARIANTS = [(variant, name) for variant, name in KNOWN if variant[1].get(STANDARDISING[variant[0]][0])]
each_standardising = pytest.mark.parametrize(
    ("kind", "options"),
    [variant for variant, _ in STANDARDISING_VARIANTS],
    ids=[name for _, name in STANDARDISING_VARIANTS],
)


def torchrl_module(kind, options, monkeypatch, log_pi):
    """Returns TorchRL's module of that name. It reads the values from its data instead of calling networks."""
    hyperparameters = {"gamma": GAMMA, "value_network": None, "differentiable": True, **options}
    if kind in WITH_LMBDA:
        hyperparameters |= {"lmbda": LMBDA, "vectorized": False}
    if kind is VTrace:
        # TorchRL's V-trace requires networks, and scores an action that it samples anew. The patches return the values of the data and
        # the log-probability of the action that was taken.
        from tensordict.nn import TensorDictModule

        network = TensorDictModule(torch.nn.Identity(), ["observation"], ["state_value"])
        hyperparameters |= {"actor_network": network, "value_network": network}
        monkeypatch.setattr(advantages, "_call_actor_net", lambda **arguments: log_pi)
    module = getattr(advantages, kind.__name__)(**hyperparameters)
    module.gamma = module.gamma.double()  # TD(1) multiplies its powers with the data, in one dtype
    if kind is VTrace:
        monkeypatch.setattr(
            type(module),
            "_call_value_nets",
            lambda self, data, **rest: (data["state_value"], data["next", "state_value"], None),
        )
    return module


def torchrl(kind, options, monkeypatch, **extra):
    """Returns TorchRL's estimator as a function of tensors. ``extra`` are more entries of its data."""

    def function(state_value, next_state_value, reward, done, terminated, log_pi=None, log_mu=None):
        next_ = {
            "state_value": next_state_value,
            "reward": reward,
            "done": done,
            "terminated": terminated,
            "truncated": done & ~terminated,
        }
        # TorchRL also requires an observation, and overwrites the reward in its data.
        data = {"state_value": state_value, "observation": state_value.detach(), "next": next_, **extra}
        if log_mu is not None:
            data["action_log_prob"] = log_mu.squeeze(-1)
        known = {**options, "group_key": "group"} if "group" in extra else options
        result = torchrl_module(kind, known, monkeypatch, log_pi)(tensordict.TensorDict(data, [BATCH, TIME]))
        return result["advantage"], result["value_target"]

    return function


def assert_equals_torchrl(kind, options, monkeypatch, arguments, **extra):
    lmbda = {"lmbda": LMBDA} if kind in WITH_LMBDA else {}
    module = kind(gamma=GAMMA, **lmbda, **options, differentiable=True)
    assert_equals(functools.partial(module, **extra), torchrl(kind, options, monkeypatch, **extra), arguments)


@each_variant
def test_estimator_equals_torchrl_with_gradients(kind, options, monkeypatch):
    assert_equals_torchrl(kind, options, monkeypatch, inputs(kind, make_steps(SHAPE)))


@each_variant
def test_steps_to_next_obs_equal_torchrl(kind, options, monkeypatch):
    steps = torch.randint(1, 4, SHAPE)
    assert_equals_torchrl(kind, options, monkeypatch, inputs(kind, make_steps(SHAPE)), steps_to_next_obs=steps)


@pytest.mark.parametrize("group_shape", [SHAPE, (BATCH, TIME)], ids=str)
@each_standardising
def test_groups_equal_torchrl(kind, options, group_shape, monkeypatch):
    group = torch.randint(-1, 3, group_shape)
    assert_equals_torchrl(kind, options, monkeypatch, inputs(kind, make_steps(SHAPE)), group=group)


# Several agents


def of_agents(team, ends="some"):
    """Values ``[batch, time, agents, 1]``, with rewards and ends of each agent, or ``[batch, time, 1]`` of the team."""
    steps = inputs(MultiAgentGAE, make_steps((BATCH, TIME, AGENTS, 1), ends=ends))
    if team:
        steps |= {name: steps[name][:, :, 0] for name in ("reward", "done", "terminated")}
    return steps


MULTI_AGENT_OPTIONS = ({}, {"average_gae": True}, {"auto_reset_env": True}, {"auto_reset_env": True, "average_gae": True})


@pytest.mark.parametrize("team", [True, False], ids=["team_reward", "reward_of_each"])
@pytest.mark.parametrize("options", MULTI_AGENT_OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_multi_agent_gae_equals_torchrl_with_gradients(options, team, monkeypatch):
    assert_equals_torchrl(MultiAgentGAE, options, monkeypatch, of_agents(team))


@pytest.mark.parametrize("team", [True, False], ids=["team_reward", "reward_of_each"])
@pytest.mark.parametrize("group_shape", [(BATCH, TIME), (BATCH, TIME, AGENTS, 1)], ids=["of_steps", "of_each"])
def test_groups_of_several_agents_equal_torchrl(group_shape, team, monkeypatch):
    group = torch.randint(-1, 2, group_shape)
    assert_equals_torchrl(MultiAgentGAE, {"average_gae": True}, monkeypatch, of_agents(team), group=group)


def test_steps_to_next_obs_of_several_agents_equal_torchrl(monkeypatch):
    """Each agent has a reward, because TorchRL's discounts do not broadcast to the reward of a team."""
    steps = torch.randint(1, 4, (BATCH, TIME, AGENTS, 1))
    assert_equals_torchrl(MultiAgentGAE, {"average_gae": True}, monkeypatch, of_agents(team=False), steps_to_next_obs=steps)
