"""Rollouts from environments: shapes and dtypes, resets, masks, and the returns of episodes."""

import functools
import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators
from a2c_compiled._environment_action import environment_action
from a2c_compiled.environments import CartPole
from a2c_compiled.networks.for_spaces import distribution_for, mlp
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.update import Rollout

STEPS, ENVS, LIMIT = 30, 3, 9


# Environments side by side


def native(**options):
    """CartPole's own vectorised version, which spends a step on the reset; episodes are cut after LIMIT steps."""
    return gymnasium.make_vec("CartPole-v1", ENVS, max_episode_steps=LIMIT, **options)


def side_by_side(mode, env_id="CartPole-v1", limit=LIMIT, **options):
    kwargs = {"autoreset_mode": mode, **options}
    return gymnasium.make_vec(env_id, ENVS, vectorization_mode="sync", vector_kwargs=kwargs, max_episode_steps=limit)


ENVIRONMENTS = {
    "native": native,
    "same_step": functools.partial(side_by_side, AutoresetMode.SAME_STEP),
    "next_step": functools.partial(side_by_side, AutoresetMode.NEXT_STEP),
}


@pytest.fixture
def open_envs():
    """Make environments that are closed after the test."""
    made = []

    def make(name, **options):
        made.append(ENVIRONMENTS[name](**options))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


def cartpole_loss(deterministic=False, **options):
    """Over small networks; the deterministic policy pushes to where the pole leans."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor, critic = mlp(4, (8,), 2, 1.0), mlp(4, (8,), 1, 1.0)
    if deterministic:
        actor = nn.Linear(4, 2, bias=False)
        nn.init.zeros_(actor.weight)
        actor.weight.data[1, 2:] = 1e6
    return A2CLoss(actor, critic, distributions.Categorical(2), **options)


def joined(rollouts):
    """Several rollouts as one, one after the other in time."""
    columns = zip(*rollouts, strict=True)
    return Rollout(*(None if column[0] is None else torch.cat(column) for column in columns))


# The collector


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_rollout_has_time_first_and_the_dtypes_that_the_loss_expects(open_envs, name):
    rollout = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0).collect()
    kinds = {
        "observation": ((STEPS, ENVS, 4), torch.float32),
        "action": ((STEPS, ENVS), torch.int64),
        "reward": ((STEPS, ENVS), torch.float32),
        "next_observation": ((STEPS, ENVS, 4), torch.float32),
        "done": ((STEPS, ENVS), torch.bool),
        "terminated": ((STEPS, ENVS), torch.bool),
    }
    if name != "same_step":
        kinds["mask"] = ((STEPS, ENVS), torch.bool)
    assert {key: (tuple(x.shape), x.dtype) for key, x in rollout._asdict().items() if x is not None} == kinds
    losses = cartpole_loss()(**{key: x for key, x in rollout._asdict().items() if x is not None})
    assert all(value.isfinite() for value in losses if value is not None)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_each_next_observation_is_the_next_steps_observation_except_at_an_end(open_envs, name):
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    rollout = joined([collector.collect(), collector.collect()])
    same = (rollout.next_observation[:-1] == rollout.observation[1:]).all(-1)
    if name == "same_step":
        assert torch.equal(same, ~rollout.done[:-1]), "the next episode's first observation follows its end"
    else:
        assert same.all(), "a step of its own leads from an episode's end to the next episode"
    assert rollout.done.sum() > 2 * ENVS


@pytest.mark.parametrize("name", ["native", "next_step"])
def test_the_mask_excludes_the_steps_that_reset(open_envs, name):
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    rollout = joined([collector.collect() for _ in range(3)])
    assert rollout.mask[0].all()
    assert torch.equal(rollout.mask[1:], ~rollout.done[:-1]), "also from the last step of a rollout to the next rollout"
    resets = ~rollout.mask
    assert resets.sum() > ENVS
    assert not rollout.reward[resets].any()
    assert not rollout.done[resets].any()
    assert (rollout.next_observation[resets].abs() <= 0.05).all(), "where CartPole's episodes begin"


def replayed(seed, actions, limit=LIMIT):
    """The steps that one environment takes with ``actions``, reset when an episode ends."""
    env = gymnasium.make("CartPole-v1", max_episode_steps=limit)
    observation, _ = env.reset(seed=seed)
    steps = []
    for action in actions:
        next_observation, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, reward, next_observation, terminated or truncated, terminated))
        observation = env.reset()[0] if terminated or truncated else next_observation
    env.close()
    return [torch.as_tensor(np.stack(column)) for column in zip(*steps, strict=True)]


@pytest.mark.parametrize("name", ["same_step", "next_step"])
def test_the_steps_in_the_mask_equal_those_of_each_environment_alone(open_envs, name):
    rollout = RolloutCollector(open_envs(name), cartpole_loss(), 4 * STEPS, seed=5).collect()
    counted = torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask
    cut = rollout.done & ~rollout.terminated
    assert cut.any()
    for i in range(ENVS):
        mine = [column[:, i][counted[:, i]] for column in rollout[:6]]
        for field, actual, expected in zip(Rollout._fields, mine, replayed(5 + i, mine[1].numpy()), strict=False):
            assert torch.equal(actual, expected.to(actual.dtype)), field


def test_both_ways_of_resetting_give_the_same_episodes(open_envs):
    episodes = {}
    for name in ("same_step", "next_step"):
        loss = cartpole_loss(deterministic=True)
        rollout = RolloutCollector(open_envs(name, limit=40), loss, 200, seed=1).collect()
        mask = torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask
        episodes[name] = [[column[:, i][mask[:, i]] for column in rollout[:6]] for i in range(ENVS)]
    for one, other in zip(*episodes.values(), strict=True):
        count = min(len(one[0]), len(other[0]))
        assert one[4][:count].sum() > 2
        for field, x, y in zip(Rollout._fields, one, other, strict=False):
            assert torch.equal(x[:count], y[:count]), field


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_truncated_episode_bootstraps_from_its_own_last_observation(open_envs, name):
    gamma = 0.9
    loss = cartpole_loss(value_estimator=estimators.TD0Estimator(gamma))
    rollout = RolloutCollector(open_envs(name, **({} if name == "native" else {"limit": 4})), loss, STEPS, seed=0).collect()
    cut = rollout.done & ~rollout.terminated
    assert cut.sum() >= ENVS
    following = torch.cat([rollout.observation[1:], rollout.observation[:1]])
    assert not rollout.terminated[cut].any()
    if name == "same_step":
        assert (rollout.next_observation[cut] != following[cut]).any(-1).all(), "not where the next episode begins"
    with torch.no_grad():
        values, next_values = (loss.critic_network(x).squeeze(-1) for x in (rollout.observation, rollout.next_observation))
        target = loss.value_estimator(values, next_values, rollout.reward, rollout.done, rollout.terminated).value_target
    torch.testing.assert_close(target[cut], 1.0 + gamma * next_values[cut])
    # Its pole has moved on by one step's velocity: CartPole's own dynamics, position + 0.02 velocity.
    moved = rollout.observation[cut][:, 0] + 0.02 * rollout.observation[cut][:, 1]
    torch.testing.assert_close(rollout.next_observation[cut][:, 0], moved)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_two_short_rollouts_are_one_long_one(open_envs, name):
    torch.manual_seed(0)
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS // 2, seed=0)
    first = collector.collect()
    returns = list(collector.returns)
    short = joined([first, collector.collect()])
    returns += collector.returns
    torch.manual_seed(0)
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    long = collector.collect()
    for field, x, y in zip(Rollout._fields, short, long, strict=True):
        assert (x is y is None) or torch.equal(x, y), field
    assert collector.returns == returns


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_returns_are_the_sums_of_rewards_of_the_episodes_that_ended(open_envs, name):
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    rollouts, recorded = [], []
    for _ in range(3):
        rollouts.append(collector.collect())
        recorded.append(list(collector.returns))
    running, expected = [0.0] * ENVS, []
    for rollout in rollouts:
        ended = []
        for t in range(STEPS):
            for i in range(ENVS):
                running[i] += float(rollout.reward[t, i])
                if rollout.done[t, i]:
                    ended.append(running[i])
                    running[i] = 0.0
        expected.append(ended)
    assert recorded == expected
    assert len(recorded[0]) >= ENVS
    assert max(map(max, recorded)) == LIMIT


def test_log_probs_and_state_values_are_recorded_if_the_loss_needs_them(open_envs):
    for options, fields in (
        ({}, set()),
        ({"value_estimator": "VTrace"}, {"log_prob"}),
        ({"clip_value": 0.2}, {"state_value"}),
        ({"value_estimator": "VTrace", "clip_value": 0.2}, {"log_prob", "state_value"}),
    ):
        loss = cartpole_loss(**options)
        rollout = RolloutCollector(open_envs("same_step"), loss, STEPS, seed=0).collect()
        assert {name for name in ("log_prob", "state_value") if getattr(rollout, name) is not None} == fields
        with torch.no_grad():
            log_prob = loss.distribution.log_prob(loss.actor_network(rollout.observation), rollout.action)
            state_value = loss.critic_network(rollout.observation).squeeze(-1)
        if "log_prob" in fields:
            torch.testing.assert_close(rollout.log_prob, log_prob)
        if "state_value" in fields:
            torch.testing.assert_close(rollout.state_value, state_value)
        assert not any(x.requires_grad for x in rollout if x is not None)


def test_actions_follow_the_policy(open_envs):
    loss = cartpole_loss(deterministic=True)
    rollout = RolloutCollector(open_envs("native"), loss, STEPS, seed=0).collect()
    assert torch.equal(rollout.action, loss.distribution.mode(loss.actor_network(rollout.observation)))
    assert 0 < rollout.action.float().mean() < 1


def test_environments_that_do_not_reset_themselves_are_refused():
    envs = side_by_side(AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match=r"expected autoreset mode SAME_STEP or NEXT_STEP, got .*DISABLED"):
        RolloutCollector(envs, cartpole_loss(), STEPS)
    envs.close()


def test_a_distribution_for_the_batched_spaces_is_refused(open_envs):
    envs = open_envs("native")
    distribution = distribution_for(envs.action_space)  # of all environments, not of one
    loss = A2CLoss(mlp(4, (8,), distribution.num_params, 1.0), mlp(4, (8,), 1, 1.0), distribution)
    message = rf"distribution: .* of one environment, Discrete\(2\), such as Categorical\(2\), got MultiCategorical, .* {ENVS} entries"
    with pytest.raises(ValueError, match=message):
        RolloutCollector(envs, loss, STEPS)


DISTRIBUTIONS_OF_OTHER_SPACES = [
    ("Pendulum-v1", distributions.Categorical(2), "Beta(1, low, high), got Categorical, whose action is a single choice"),
    ("CartPole-v1", distributions.Normal(1), "Categorical(2), got Normal, whose actions are real numbers"),
    ("CartPole-v1", distributions.Categorical(3), "Categorical(2), got Categorical, which chooses among 3 actions"),
    ("CartPole-v1", distributions.Ordinal(3), "Categorical(2), got Ordinal, which chooses among 3 actions"),
    ("CartPole-v1", distributions.MultiCategorical([2, 2]), "Categorical(2), got MultiCategorical, whose action has 2 entries"),
]


@pytest.mark.parametrize(("env_id", "distribution", "message"), DISTRIBUTIONS_OF_OTHER_SPACES)
def test_a_distribution_for_other_actions_is_refused(env_id, distribution, message):
    envs = gymnasium.make_vec(env_id, ENVS)
    inputs = envs.single_observation_space.shape[0]
    loss = A2CLoss(mlp(inputs, (8,), distribution.num_params, 1.0), mlp(inputs, (8,), 1, 1.0), distribution)
    expected = f"distribution: expected one for the actions of one environment, {envs.single_action_space}, such as {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        RolloutCollector(envs, loss, STEPS)
    envs.close()


def test_a_distribution_that_never_takes_an_action_warns():
    envs = gymnasium.make_vec("Acrobot-v1", ENVS)
    loss = A2CLoss(mlp(6, (8,), 2, 1.0), mlp(6, (8,), 1, 1.0), distributions.Categorical(2))
    message = (
        r"Discrete\(3\), such as Categorical\(3\), got Categorical, which chooses among 2 actions: the policy never takes the"
    )
    with pytest.warns(RuntimeWarning, match=message) as warned:
        collector = RolloutCollector(envs, loss, STEPS)
    assert [warning.filename for warning in warned] == [__file__]
    assert collector.collect().action.max() == 1
    envs.close()


@pytest.mark.parametrize(("nvec", "is_larger"), [([3, 2], False), ([2, 3], True), ([2, 2], None), ([4, 1], True)])
def test_each_choice_is_compared_with_that_of_the_space(nvec, is_larger):
    arguments = gymnasium.spaces.MultiDiscrete([3, 2] if is_larger is False else [2, 2]), distributions.MultiCategorical(nvec)
    if is_larger:
        with pytest.raises(
            ValueError, match=rf"such as MultiCategorical\(\[2, 2\]\), got .* among {nvec[0]} and {nvec[1]} actions"
        ):
            environment_action(*arguments, nn.Linear(1, 1))
    else:
        assert environment_action(*arguments, nn.Linear(1, 1)) is None
    agents = gymnasium.spaces.MultiDiscrete([2, 2, 2])
    assert environment_action(agents, distributions.Categorical(2), nn.Linear(1, 1)) is None
    masked = environment_action(gymnasium.spaces.Discrete(2), distributions.MaskedCategorical(5), nn.Linear(1, 1))
    assert masked is None, "a mask may exclude the others"


@pytest.mark.parametrize(
    ("envs", "got"),
    [
        ("CartPole-v1", "'CartPole-v1'; use gymnasium.make_vec('CartPole-v1', 8)"),
        (gymnasium.make("CartPole-v1"), "gymnasium.wrappers.common.TimeLimit; use gymnasium.make_vec('CartPole-v1', 8)"),
        (CartPole, f"the class {CartPole.__module__}.CartPole; use environments.make_environments(CartPole, 8)"),
        (3, "3"),
    ],
)
def test_what_is_no_vector_environment_is_refused_with_the_call_that_makes_one(envs, got):
    with pytest.raises(TypeError, match=f"^{re.escape(f'envs: expected a gymnasium VectorEnv or Environments, got {got}')}$"):
        RolloutCollector(envs, cartpole_loss(), STEPS)


def test_environments_may_overwrite_the_arrays_that_they_returned(open_envs):
    torch.manual_seed(0)
    expected = RolloutCollector(open_envs("same_step"), cartpole_loss(), STEPS, seed=0).collect()
    torch.manual_seed(0)
    actual = RolloutCollector(open_envs("same_step", copy=False), cartpole_loss(), STEPS, seed=0).collect()
    assert torch.equal(actual.observation, expected.observation)
    assert torch.equal(actual.next_observation, expected.next_observation)
