"""Actions lie in their space: every row of docs/action_spaces.md, in an environment that refuses any other action."""

import re

import numpy as np
import pytest
import torch
from action_space_cases import (
    CLIPPED,
    DIFFERS,
    HALF_BOUNDED,
    LENGTH,
    PAGE,
    REFUSED,
    SERVED,
    SPACES,
    Strict,
    env_id,
    make_loss,
    outside,
)
from gymnasium import spaces
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export
from a2c_compiled.environments import EnvironmentAction, TensorEnvironments, make_vector
from a2c_compiled.networks.for_spaces import distribution_for, mlp
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training import TrainConfig, train
from a2c_compiled.training.evaluation import NetworkPolicy, play
from a2c_compiled.training.video import record_episode


def test_the_table_has_both_kinds_of_rows():
    assert len(SERVED) >= 11
    assert len(REFUSED) >= 8
    assert len(CLIPPED) == 3


@pytest.mark.parametrize("name", SERVED)
def test_the_environment_gets_actions_in_its_space_and_the_rollout_keeps_those_that_were_drawn(name):
    loss, space = make_loss(name), SPACES[name]
    assert type(loss.distribution).__name__ == SERVED[name]
    envs = make_vector(env_id(name), 4, "sync")
    rollout = RolloutCollector(envs, loss, 3 * LENGTH, seed=0).collect()
    envs.close()
    params = loss.actor_network(rollout.observation)
    torch.testing.assert_close(rollout.log_prob, loss.distribution.log_prob(params, rollout.action))
    if name in CLIPPED:
        assert 0.1 < outside(space, rollout.action).mean() < 1.0, "without clipping, the environment would refuse these"
        assert np.isfinite(loss(*rollout[:2], *rollout[2:6], sample_log_prob=rollout.log_prob).loss_objective.item())
    for sampled in (False, True):
        policy = NetworkPolicy(loss, sampled)
        assert play(policy, env_id(name), 3, vectorization="sync").lengths.tolist() == [LENGTH] * 3
        assert record_episode(policy, env_id(name)).total_return == LENGTH


@pytest.mark.parametrize("name", SERVED)
def test_a_difference_is_expected_where_the_table_says_so(name):
    distribution = distribution_for(SPACES[name])
    assert EnvironmentAction(SPACES[name]).can_change(distribution) == (name in DIFFERS)
    float64 = distribution.action_of_ones(torch.zeros(distribution.num_params, dtype=torch.float64)).dtype
    assert EnvironmentAction(SPACES[name]).can_change(distribution, torch.float64) or str(float64)[6:] == SPACES[name].dtype


@pytest.mark.parametrize("name", REFUSED)
def test_a_space_that_is_not_served_is_refused_before_training_with_its_name_and_what_would_do(name):
    space = SPACES[name]
    with pytest.raises(ValueError, match=r"action_space: expected ") as raised:
        train(TrainConfig(env_id(name), total_steps=100, num_envs=2, num_steps=5, compile=False), progress=False)
    assert str(space) in str(raised.value)
    instead = re.search("`(.*)`", REFUSED[name])
    if instead is not None:
        assert str(raised.value).endswith(f"so that its action space is a {instead[1]}")


@pytest.mark.parametrize("name", ["Box(-5, 5, (2,), np.int32)", "Discrete(3, start=1)"])
def test_a_collector_and_exports_refuse_actions_that_cannot_be_right(name):
    actor, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    envs = make_vector(env_id(name), 1, "sync")
    with pytest.raises(ValueError, match=r"action_space: expected .*, got "):
        RolloutCollector(envs, A2CLoss(actor, critic, distributions.Normal(2)), 2)
    with pytest.raises(ValueError, match=r"action_space: expected .*, got "):
        export.GreedyPolicy(actor, distributions.Normal(2), action_space=SPACES[name])
    envs.close()


@pytest.mark.parametrize("name", [HALF_BOUNDED, "Discrete(3)"])
def test_the_actions_of_a_torch_distribution_of_unknown_parameters_lie_in_the_space(name):
    def factory(params):
        if name == HALF_BOUNDED:
            return torch.distributions.Independent(torch.distributions.Normal(params, 1.0), 1)
        return torch.distributions.Categorical(logits=params)

    size = 2 if name == HALF_BOUNDED else 3
    loss = A2CLoss(nn.Linear(4, size), nn.Linear(4, 1), distributions.TorchDistribution(factory), estimators.VTrace())
    envs = make_vector(env_id(name), 4, "sync")
    rollout = RolloutCollector(envs, loss, LENGTH, seed=0).collect()
    envs.close()
    assert rollout.log_prob.isfinite().all()


def test_real_actions_are_not_rounded_to_choices():
    for space in (spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-5, 5, (2,), np.int32)):
        with pytest.raises(TypeError, match=f"action: expected torch.{space.dtype}, .* got torch.float32"):
            EnvironmentAction(space)(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="action_space: expected a gymnasium space, got 3"):
        EnvironmentAction(3)


def test_an_action_is_clipped_in_the_dtype_of_the_space_as_numpy_clips_it():
    low, high = np.float16([-0.1, -np.inf, -np.inf]), np.float16([0.3, 5.0, np.inf])
    space = spaces.Box(low, high, dtype=np.float16)
    action = 4 * torch.randn(100, 3, dtype=torch.float64)
    result = EnvironmentAction(space)(action).numpy()
    np.testing.assert_array_equal(result, np.clip(action.numpy().astype(np.float16), space.low, space.high))
    assert all(space.contains(row) for row in result)
    module = EnvironmentAction(space).half().double()
    np.testing.assert_array_equal(module(action).numpy(), result)


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_an_action_gets_the_shape_of_a_box_that_has_not_one_dimension(shape):
    space = spaces.Box(-1.0, 1.0, shape)
    action = torch.randn(5, int(np.prod(shape)))
    expected = action.clamp(-1, 1).reshape(5, *shape)
    for given in (action, action.reshape(5, *shape)):
        assert torch.equal(EnvironmentAction(space)(given), expected)
        assert torch.equal(torch.jit.script(EnvironmentAction(space))(given), expected)


def test_actions_of_other_spaces_and_policies_that_return_no_arrays_are_unchanged():
    space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])
    action = torch.randn(3, 2)
    assert EnvironmentAction(space)(action) is action
    assert EnvironmentAction(spaces.Discrete(2)).of_array([0, 1]) == [0, 1]
    assert EnvironmentAction(spaces.MultiBinary(2)).of_array(np.float32([[0, 1]])).tolist() == [[0, 1]]


def test_the_code_of_the_page_runs():
    session = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), session)
    assert (session["for_the_environment"] >= -0.1).all()
    assert (session["action"] < -0.1).any()
    assert session["sampled"](torch.zeros(1, 4), torch.zeros(1, 2))._fields[-1] == "environment_action"
    env = session["with_choices"](Strict(spaces.Box(-5, 5, (2,), np.int32)))
    env.reset()
    for choice in ([0, 0], [10, 3]):
        env.step(np.array(choice))


# Rollouts as one graph


class Recording(TensorEnvironments):
    """Environments in torch whose observation is the last action."""

    noise_size, time_limit = 1, 3
    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = SPACES[HALF_BOUNDED]

    def start(self, noise):
        return noise.repeat(1, 2)

    def advance(self, physics, action):
        return action, action.sum(-1), torch.zeros_like(action[:, 0], dtype=torch.bool)

    def observe(self, physics):
        return physics


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_environments_in_torch_get_clipped_actions(compile):
    torch.manual_seed(0)
    loss = A2CLoss(mlp(2, (4,), 4, 1.0), mlp(2, (4,), 1, 1.0), distributions.Normal(2), estimators.VTrace())
    rollout = RolloutCollector(Recording(5), loss, 8, seed=0, compile=compile).collect()
    torch.testing.assert_close(rollout.next_observation, rollout.action.clamp_min(-0.1), rtol=0, atol=0)
    assert outside(Recording.action_space, rollout.action).any()
    log_prob = loss.distribution.log_prob(loss.actor_network(rollout.observation), rollout.action)
    torch.testing.assert_close(rollout.log_prob, log_prob)
