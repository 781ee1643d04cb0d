"""Environments of a user, one of each kind that ``--env module:X`` accepts, and some that it refuses."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from a2c_compiled.environments import TensorEnvironments

LENGTH = 6


class Corridor(gymnasium.Env):
    """A walker starts at a random place and moves left or right; the reward is 1 for a step to the right. Truncated after 6 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = Box(-np.inf, np.inf, (3,)), Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.standard_normal()
        return self.observation(), {}

    def step(self, action):
        self.steps += 1
        self.place += 2.0 * action - 1.0
        return self.observation(), float(action), False, self.steps == LENGTH, {}

    def observation(self):
        return np.array([self.place, self.steps, 1.0], np.float32)

    def render(self):
        return np.full((8, 8, 3), 20 * self.steps, np.uint8)


class Walk(TensorEnvironments):
    """The corridor in torch."""

    noise_size, time_limit = 1, LENGTH
    observation_space, action_space = Corridor.observation_space, Corridor.action_space

    def start(self, noise):
        return (2 * noise - 1).expand(-1, 3)

    def advance(self, physics, action):
        return physics + (2 * action - 1).unsqueeze(-1), action.to(physics.dtype), torch.zeros_like(action, dtype=torch.bool)

    def observe(self, physics):
        return physics


class Refused(Corridor):
    """Base of the environments below, each with one mistake."""

    metadata = {}

    def __init__(self):
        super().__init__()


class NeedsSize(Refused):
    def __init__(self, size):
        super().__init__()


class WithoutSpace(gymnasium.Env):
    action_space = Discrete(2)


class WithoutSeed(Refused):
    def reset(self):
        return super().reset()


class FirstAlone(Refused):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class FourResults(Refused):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class Wide(Refused):
    def observation(self):
        return np.zeros(4, np.float32)


class WideInTheThirdStep(Refused):
    def observation(self):
        return np.zeros(4 if self.steps == 3 else 3, np.float32)


class WithoutLast(Refused):
    def step(self, action):
        observation, *others = super().step(action)
        return (None if self.steps == LENGTH else observation), *others


class Parts(Refused):
    observation_space = Dict(place=Box(-1, 1, (2,)), room=Tuple([Discrete(3), Box(-1, 1)]))
    parts = {"place": np.zeros(2, np.float32), "room": (1, np.zeros(1, np.float32))}

    def observation(self):
        return self.parts


class WithoutPart(Parts):
    parts = {"place": np.zeros(2, np.float32)}


class WideRoom(Parts):
    parts = {"place": np.zeros(2, np.float32), "room": (1, np.zeros(2, np.float32))}


class ShortRoom(Parts):
    parts = {"place": np.zeros(2, np.float32), "room": (1,)}


class NoMapping(Parts):
    parts = np.zeros(2, np.float32)


class OfAnotherKind:
    def __init__(self):
        pass


def next_step_vector(num_envs, seed):
    """A vector environment of gymnasium that spends a step on each reset."""
    return SyncVectorEnv([Corridor] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def simulator(num_envs, seed):
    """Environments that are not gymnasium's."""
    return Walk(num_envs)


def pool(num_envs, seed):
    """Environments of envpool, with options."""
    import envpool

    return envpool.make_gymnasium("CartPole-v1", num_envs=num_envs, seed=seed, max_episode_steps=LENGTH)


def small_batches(num_envs, seed):
    import envpool

    return envpool.make_gymnasium("CartPole-v1", num_envs=num_envs, batch_size=num_envs // 2, seed=seed)


def without_reset(num_envs, seed):
    return SyncVectorEnv([Corridor] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def one_more(num_envs, seed):
    return Walk(num_envs + 1)


def nothing(num_envs, seed):
    return None


NUMBER = 3
