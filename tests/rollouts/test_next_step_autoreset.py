"""Rollouts in gymnasium's autoreset mode NEXT_STEP with the last next observation alone, and runs that use them."""

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from a2c_compiled import A2CLoss, ActorCritic, distributions, estimators
from a2c_compiled.environments import make_environments
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training import TrainConfig, Trainer, train
from a2c_compiled.training.checkpoint import load_checkpoint
from a2c_compiled.training.config import load_config
from a2c_compiled.update.rollout import as_loss_arguments

STEPS, ENVS, LIMIT, GAMMA, LMBDA = 11, 3, 9, 0.9, 0.8


class Pictures(gymnasium.Env):
    """Small images; an episode ends by chance, or is truncated after LIMIT steps."""

    observation_space, action_space = Box(0, 255, (3, 5, 5), np.uint8), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.image(), {}

    def step(self, action):
        self.steps += 1
        image = self.image()
        terminated = bool(self.np_random.random() < 0.1)
        return image, float(image[0, 0, 0] == action), terminated, self.steps >= LIMIT and not terminated, {}

    def image(self):
        return self.np_random.integers(0, 2, (3, 5, 5), np.uint8)


class Scaled(nn.Module):
    def forward(self, image):
        return image.flatten(-3).double()


def make_loss():
    torch.manual_seed(0)
    network = ActorCritic(nn.Sequential(Scaled(), nn.Linear(75, 8), nn.Tanh()), nn.Linear(8, 2), nn.Linear(8, 1)).double()
    return A2CLoss(
        network, distribution=distributions.Categorical(2), value_estimator=estimators.GAE(GAMMA, LMBDA), loss_critic_type="l2"
    ).double()


def collector_of(loss, last_alone, mode=AutoresetMode.NEXT_STEP):
    envs = SyncVectorEnv([Pictures] * ENVS, autoreset_mode=mode)
    return RolloutCollector(envs, loss, STEPS, seed=0, last_next_observation=last_alone)


def transitions(seed, actions):
    """Steps a single environment: (observation, action, reward, next observation, done, terminated) of each action."""
    env = Pictures()
    observation, _ = env.reset(seed=seed)
    for action in actions:
        following, reward, terminated, truncated, _ = env.step(action)
        yield observation, action, reward, following, terminated or truncated, terminated
        observation = env.reset()[0] if terminated or truncated else following


def losses_of(loss, steps):
    """The losses of each step of one environment, one after the other in float64: a plain loop over time."""
    actor, critic = loss.actor_network, loss.critic_network
    following, results = 0.0, []
    for t in reversed(range(len(steps))):
        observation, action, reward, next_observation, done, terminated = steps[t]
        value, next_value = (critic(torch.from_numpy(image)).squeeze() for image in (observation, next_observation))
        delta = reward + GAMMA * (0.0 if terminated else next_value.item()) - value.item()
        following = delta + GAMMA * LMBDA * (0.0 if done else following)
        policy = torch.distributions.Categorical(logits=actor(torch.from_numpy(observation)))
        log_prob = policy.log_prob(torch.tensor(action))
        results.append((-log_prob * following, (value - (following + value.item())) ** 2, policy.entropy()))
    return results


def test_losses_and_gradients_equal_those_of_single_environments_with_no_step_left_out():
    loss = make_loss()
    collector = collector_of(loss, True)
    rollouts = [collector.collect() for _ in range(8)]
    counted = torch.cat([rollout.mask for rollout in rollouts])
    done, terminated = (torch.cat([getattr(rollout, name) for rollout in rollouts]) for name in ("done", "terminated"))
    assert (done & ~terminated).any()
    assert terminated.any()
    assert any(rollout.done[-1].any() for rollout in rollouts), "an episode ends with a rollout"
    taken = torch.cat([rollout.action for rollout in rollouts])
    singles = [list(transitions(n, taken[counted[:, n], n].tolist())) for n in range(ENVS)]
    assert sum(map(len, singles)) == counted.sum()
    for rollout in rollouts:
        parts = [
            steps
            for n in range(ENVS)
            for steps in losses_of(loss, [singles[n].pop(0) for _ in range(rollout.mask[:, n].sum())])
        ]
        objective, critic, entropy = (torch.stack(terms).mean() for terms in zip(*parts, strict=True))
        losses = loss(**as_loss_arguments(rollout._asdict()))
        got = [losses.loss_objective, losses.loss_critic, losses.loss_entropy]
        expected = [objective, loss.critic_coef * critic, -loss.entropy_coef * entropy]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        gradients, expected_gradients = (torch.autograd.grad(sum(terms), list(loss.parameters())) for terms in (got, expected))
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-10)
    assert not any(singles), "every step of the single environments is in a rollout"


def test_the_last_next_observation_is_that_of_the_full_rollout():
    last, every = (collector_of(make_loss(), last_alone).collect() for last_alone in (True, False))
    torch.manual_seed(0)
    assert last.next_observation.shape == (1, ENVS, 3, 5, 5)
    assert every.next_observation.shape == (STEPS, ENVS, 3, 5, 5)
    assert torch.equal(every.next_observation[:-1], every.observation[1:])


def test_other_environments_need_all_next_observations():
    message = "last_next_observation: expected False unless the environments have autoreset mode NEXT_STEP"
    with pytest.raises(ValueError, match=message):
        collector_of(make_loss(), True, AutoresetMode.SAME_STEP)


# Runs


def config(**changes):
    sizes = {"num_envs": ENVS, "num_steps": STEPS, "hidden": (), "total_steps": 2 * ENVS * STEPS, "compile": False}
    return TrainConfig(**{**sizes, "env": None, "solved_return": float("inf"), "lr": 1e-3, "final_lr": 1.0, **changes})


@pytest.mark.parametrize(
    ("changes", "source", "is_last_alone"),
    [
        ({}, Pictures, True),
        ({"autoreset": "next-step"}, Pictures, True),
        ({"autoreset": "same_step"}, Pictures, False),
        ({}, "CartPole-v1", False),
        ({"vectorization": "sync"}, "CartPole-v1", False),
        ({"vectorization": "sync", "autoreset": "next_step"}, "CartPole-v1", True),
        ({"vectorization": "gymnasium"}, "CartPole-v1", True),
    ],
)
def test_runs_on_images_and_with_next_step_autoreset_have_the_last_next_observation_alone(changes, source, is_last_alone):
    rollout, metrics = Trainer(config(**changes), environments=source).update()
    assert len(rollout.next_observation) == (1 if is_last_alone else STEPS)
    assert metrics.grad_norm.isfinite()


def test_a_run_on_images_resumes_as_if_never_stopped(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(config(total_steps=4 * ENVS * STEPS), False, whole, environments=Pictures)
    train(config(), False, halves, environments=Pictures)
    train(config(total_steps=4 * ENVS * STEPS), False, halves, resume=True, environments=Pictures)
    for name, tensor in load_checkpoint(whole).training.items():
        assert torch.equal(tensor, load_checkpoint(halves).training[name]), name


def test_a_run_of_an_earlier_version_keeps_its_mode(tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(config(total_steps=4 * ENVS * STEPS, autoreset="same_step"), False, whole, environments=Pictures)
    train(config(autoreset="same_step"), False, halves, environments=Pictures)
    fields = json.loads((halves / "config.json").read_text())
    del fields["autoreset"]  # earlier versions had no such option
    (halves / "config.json").write_text(json.dumps(fields))
    train(config(total_steps=4 * ENVS * STEPS), False, halves, resume=True, environments=Pictures)
    assert load_config(halves).autoreset == "same_step"
    for name, tensor in load_checkpoint(whole).training.items():
        assert torch.equal(tensor, load_checkpoint(halves).training[name]), name


def test_a_run_cannot_change_its_mode(tmp_path):
    train(config(autoreset="same_step"), False, tmp_path, environments=Pictures)
    with pytest.raises(ValueError, match="autoreset: expected 'same_step' as in the run that is resumed, got 'next_step'"):
        train(config(autoreset="next_step"), False, tmp_path, resume=True, environments=Pictures)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("CartPole-v1", {"autoreset": "never"}, "autoreset: expected one of 'same_step', 'next_step', got 'never'"),
        ("CartPole-v1", {"autoreset": "next_step"}, "autoreset: expected 'same_step' with environments written in torch"),
        (
            lambda num_envs, seed: SyncVectorEnv([Pictures] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP),
            {"autoreset": "next_step"},
            "autoreset: expected 'same_step' with environments that reset in mode AutoresetMode.SAME_STEP, got 'next_step'",
        ),
    ],
)
def test_modes_that_environments_lack_are_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        make_environments(source, 2, **options)


def test_an_unknown_mode_of_a_run_is_named():
    with pytest.raises(ValueError, match="autoreset: expected one of auto, same_step, next_step, got 'later'"):
        dataclasses.replace(config(), autoreset="later")
