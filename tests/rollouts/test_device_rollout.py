"""Rollouts of environments in torch, in eager mode and as one graph, and user-defined environments."""

import functools
import math
from typing import NamedTuple

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from loss_cases import compile_backend
from torch import nn

from a2c_compiled import A2CLoss, TrainStep, distributions
from a2c_compiled.environments import CartPole, Environments, EnvironmentStep, Pendulum, TensorEnvironments
from a2c_compiled.networks.for_spaces import distribution_for, mlp
from a2c_compiled.rollouts import RolloutCollector, device_rollout
from a2c_compiled.update import Rollout

STEPS, ENVS, ROLLOUTS = 12, 32, 3
EVERYTHING = {"value_estimator": "VTrace", "clip_value": 0.2}
"""Loss options for which the collector records log-probabilities and state values."""


def limited(kind, limit):
    """``kind`` with another time limit. Two such classes differ in nothing else, not even in the name."""
    return type("Limited", (kind,), {"time_limit": limit})


def make_loss(kind, distribution=None, width=8, **options):
    """Over small networks whose policy is far from uniform."""
    distribution = distribution or distribution_for(kind.action_space)
    size = kind.observation_space.shape[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor, critic = mlp(size, (width,), distribution.num_params, 1.0), mlp(size, (width,), 1, 1.0)
    return A2CLoss(actor, critic, distribution, **options)


def joined(rollouts):
    """Several rollouts as one, one after the other in time."""
    columns = zip(*rollouts, strict=True)
    return Rollout(*(None if column[0] is None else torch.cat(column) for column in columns))


# The contents of a rollout, eager and compiled


class Case(NamedTuple):
    """Environments and a policy for them. Two cases differ in a constant alone, which shows that they do not share a graph."""

    kind: type
    distribution: distributions.Distribution | None = None


CASES = {
    "cartpole": Case(limited(CartPole, 15)),
    "cartpole_cut_sooner": Case(limited(CartPole, 11)),
    "pendulum_beta": Case(limited(Pendulum, 15)),
    "pendulum_normal": Case(limited(Pendulum, 15), distributions.Normal(1)),
}


class Collected(NamedTuple):
    """Successive rollouts, and the returns and lengths of the episodes that ended in each."""

    case: Case
    collector: RolloutCollector
    rollouts: list
    episodes: list

    @property
    def whole(self):
        return joined(self.rollouts)


def collect(case, compile=False, envs=None, steps=STEPS):
    torch.manual_seed(0)
    loss = make_loss(case.kind, case.distribution, **EVERYTHING)
    collector = RolloutCollector(envs or case.kind(ENVS), loss, steps, 0, compile)
    rollouts, episodes = [], []
    for _ in range(ROLLOUTS):
        rollouts.append(collector.collect())
        episodes.append(collector.episodes.take())
    return Collected(case, collector, rollouts, episodes)


COMPILED = [
    pytest.param(
        (name, True), marks=[pytest.mark.slow, pytest.mark.xdist_group(f"device_rollout_{name}")], id=f"{name}-compiled"
    )
    for name in CASES
]


@pytest.fixture(scope="module", params=[*(pytest.param((name, False), id=name) for name in CASES), *COMPILED])
def collected(request):
    name, compile = request.param
    return collect(CASES[name], compile)


def test_each_next_observation_is_the_next_steps_observation_except_at_an_end(collected):
    whole = collected.whole
    on = torch.isclose(whole.next_observation[:-1], whole.observation[1:], rtol=0, atol=1e-6).all(-1)
    assert torch.equal(on, ~whole.done[:-1])
    first = whole.observation[1:][whole.done[:-1]]
    if issubclass(collected.case.kind, CartPole):
        assert (first.abs() <= 0.05).all()
    else:
        assert (first[:, 2].abs() <= 1).all()


def test_transitions_equal_those_of_the_environments(collected):
    """Also at the last step of an episode: its next observation is not that of the next episode."""
    whole, envs = collected.whole, collected.case.kind(1)
    physics = whole.observation
    if isinstance(envs, Pendulum):
        cosine, sine, turning = whole.observation.unbind(-1)
        physics = torch.stack((torch.atan2(sine, cosine), turning), -1)
    physics, reward, terminated = envs.advance(physics, whole.action)
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    close(whole.next_observation, envs.observe(physics))
    close(whole.reward, reward)
    assert torch.equal(whole.terminated, terminated)


def test_episodes_are_truncated_only_at_their_time_limit(collected):
    whole, limit, lengths = collected.whole, collected.case.kind.time_limit, torch.zeros(ENVS)
    for done, terminated in zip(whole.done, whole.terminated, strict=True):
        lengths += 1
        assert torch.equal(done & ~terminated, (lengths == limit) & ~terminated)
        assert not (terminated & ~done).any()
        lengths.masked_fill_(done, 0)
    assert (whole.done & ~whole.terminated).sum() > ENVS // 2
    assert whole.terminated.any() == issubclass(collected.case.kind, CartPole)


def test_recorded_log_probs_and_state_values_equal_those_of_the_networks(collected):
    whole, loss = collected.whole, collected.collector.loss
    with torch.no_grad():
        log_prob = loss.distribution.log_prob(loss.actor_network(whole.observation), whole.action)
        state_value = loss.critic_network(whole.observation).squeeze(-1)
    torch.testing.assert_close(whole.log_prob, log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.state_value, state_value, rtol=1e-5, atol=1e-5)


def test_actions_are_drawn_from_the_policy_and_differ_in_every_step(collected):
    """The mean log-probability is minus the entropy, within its standard error."""
    whole, loss = collected.whole, collected.collector.loss
    with torch.no_grad():
        surprise = whole.log_prob + loss.distribution.entropy(loss.actor_network(whole.observation))
    assert surprise.mean().abs() < 4 * surprise.std() / math.sqrt(surprise.numel())
    assert len(whole.action.flatten(1).unique(dim=0)) == STEPS * ROLLOUTS


def test_returns_and_lengths_of_episodes_add_up_across_rollouts(collected):
    returns, lengths = [0.0] * ENVS, [0.0] * ENVS
    for rollout, (ended_returns, ended_lengths) in zip(collected.rollouts, collected.episodes, strict=True):
        expected = []
        for rewards, dones in zip(rollout.reward.tolist(), rollout.done.tolist(), strict=True):
            for i in range(ENVS):
                returns[i], lengths[i] = returns[i] + rewards[i], lengths[i] + 1
                if dones[i]:
                    expected.append((returns[i], lengths[i]))
                    returns[i] = lengths[i] = 0.0
        assert ended_lengths == [length for _, length in expected]
        assert ended_returns == pytest.approx([value for value, _ in expected])
    assert sum(len(ended) for ended, _ in collected.episodes) > ENVS


# Single steps, seeds and graphs


class OneByOne:
    """Wraps environments in torch so that they have only the protocol's methods, and are stepped one step at a time."""

    def __init__(self, envs):
        self.envs, self.num_envs, self.device = envs, envs.num_envs, envs.device
        self.observation_space, self.action_space = envs.observation_space, envs.action_space
        self.reset, self.step, self.close = envs.reset, envs.step, envs.close


@pytest.mark.parametrize("name", CASES)
def test_an_eager_rollout_equals_single_steps(name):
    case = CASES[name]
    whole, single = collect(case), collect(case, envs=OneByOne(case.kind(ENVS)))
    for field, x, y in zip(Rollout._fields, whole.whole, single.whole, strict=True):
        assert (x is y is None) or torch.equal(x, y), field
    assert whole.episodes == single.episodes


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, set()),
        ({"value_estimator": "VTrace"}, {"log_prob"}),
        ({"clip_value": 0.2}, {"state_value"}),
        (EVERYTHING, {"log_prob", "state_value"}),
    ],
)
def test_only_what_the_loss_needs_is_recorded(options, fields):
    rollout = RolloutCollector(CartPole(4), make_loss(CartPole, **options), 3, 0).collect()
    assert {name for name in ("log_prob", "state_value") if getattr(rollout, name) is not None} == fields
    assert rollout.mask is None
    assert not any(x.requires_grad for x in rollout if x is not None)


@pytest.mark.slow
def test_a_compiled_rollout_follows_its_seeds_and_its_policy():
    """The graph reads the current values of the parameters."""
    first, second = collect(CASES["cartpole"], compile=True), collect(CASES["cartpole"], compile=True)
    for x, y in zip(first.whole, second.whole, strict=True):
        assert (x is y is None) or torch.equal(x, y)
    loss = first.collector.loss
    for action in (1, 0):
        with torch.no_grad():
            nn.init.zeros_(loss.actor_network[-1].weight)
            loss.actor_network[-1].bias.copy_(torch.tensor([100.0, -100.0] if action == 0 else [-100.0, 100.0]))
        assert (first.collector.collect().action == action).all()


@pytest.mark.slow
def test_many_policies_may_be_compiled_in_one_process():
    """Also more policies than the number of graphs that torch.compile keeps for one function."""
    with compile_backend(), torch._dynamo.config.patch(recompile_limit=1):
        for width in (3, 4, 5):
            for envs in (CartPole(2), OneByOne(CartPole(2))):
                rollout = RolloutCollector(envs, make_loss(CartPole, width=width), 2, 0, compile=True).collect()
                assert rollout.reward.tolist() == [[1.0, 1.0]] * 2


# User-defined environments


class Walk(TensorEnvironments):
    """A walk on a line from near 0; the reward is the position."""

    noise_size, time_limit = 1, 20
    observation_space, action_space = Box(-math.inf, math.inf, (1,)), Discrete(2)

    def start(self, noise):
        return noise - 0.5

    def advance(self, physics, action):
        physics = physics + (2 * action - 1).unsqueeze(-1)
        return physics, physics[:, 0] / 10, physics[:, 0].abs() > 10

    def observe(self, physics):
        return physics / 10


class Signals:
    """As a simulator on a GPU is wrapped: its buffers, which it writes into, are handed out as copies.

    A light is on or off; to say which is worth 1. Episodes are cut after 7 steps.
    """

    num_envs, device = 16, torch.device("cpu")
    observation_space, action_space = Box(-1.0, 1.0, (1,)), Discrete(2)

    def __init__(self):
        self.light = torch.zeros(self.num_envs, dtype=torch.int64)
        self.age = torch.zeros(self.num_envs, dtype=torch.int64)

    def reset(self, seed=None):
        self.generator = torch.Generator().manual_seed(seed)
        self.light.random_(0, 2, generator=self.generator)
        self.age.zero_()
        return self._observation()

    def step(self, action):
        reward = (action == self.light).float()
        self.age += 1
        truncated = self.age == 7
        self.light.random_(0, 2, generator=self.generator)
        final = self._observation()
        self.light[truncated] = 1  # a new episode begins with the light on
        self.age[truncated] = 0
        return EnvironmentStep(self._observation(), reward, torch.zeros_like(truncated), truncated, final)

    def close(self):
        pass

    def _observation(self):
        return self.light.float().mul(2).sub(1).unsqueeze(-1)


@pytest.mark.parametrize(("make", "best"), [(functools.partial(Walk, 16), 0.55), (Signals, 1.0)])
def test_user_defined_environments_are_learned(make, best):
    """From a uniform policy to nearly the best return."""
    envs = make()
    assert isinstance(envs, Environments)
    loss = make_loss(envs)
    nn.init.zeros_(loss.actor_network[-1].weight)
    step = TrainStep(loss, lr=0.02, compile=False)
    collector = RolloutCollector(envs, loss, STEPS, seed=0)
    rewards = []
    for _ in range(60):
        rollout = collector.collect()
        on = (rollout.next_observation[:-1] == rollout.observation[1:]).all(-1)
        assert on[~rollout.done[:-1]].all()
        assert step(rollout).grad_norm > 0
        rewards.append(rollout.reward.mean().item())
    assert rewards[0] < 0.6 * best
    assert sum(rewards[-5:]) / 5 > 0.9 * best


@pytest.mark.slow
def test_without_the_scan_operator_the_compiled_steps_are_unrolled_and_give_the_same_rollout(monkeypatch):
    case = CASES[next(iter(CASES))]
    expected = collect(case, compile=True, steps=2)
    monkeypatch.setattr(device_rollout, "scan_operator", lambda: None)
    unrolled = collect(case, compile=True, steps=2)  # each unrolled step adds a second to the compile time
    for one, other in zip(unrolled.whole, expected.whole, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
