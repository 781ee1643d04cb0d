"""Pendulum-v1 in torch."""

import math
from typing import Tuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from a2c_compiled.environments.tensor import TensorEnvironments

GRAVITY, MASS, LENGTH = 10.0, 1.0, 1.0
TIME_STEP = 0.05
MAX_VELOCITY, MAX_TORQUE = 8.0, 2.0


class Pendulum(TensorEnvironments):
    """gymnasium's Pendulum-v1, written in torch with the same constants and Euler integration: a torque swings a pendulum up.

    * Action: ``[N, 1]``, floating point: the torque, which is clamped to [-2, 2].
    * Physics (state of the simulation): ``[N, 2]``, floating point: angle from upright, angular velocity in [-8, 8].
    * Observation: ``[N, 3]``, floating point: cosine and sine of the angle, angular velocity.
    * Reward: ``-(angle^2 + 0.1 velocity^2 + 0.001 torque^2)``, with the angle (in [-pi, pi)) and the velocity before the step.
    * Terminated: never. Truncated: after 200 steps.
    * Start of an episode: the angle is uniform in [-pi, pi), the angular velocity in [-1, 1).

    Arguments: see :class:`a2c_compiled.environments.TensorEnvironments`.

    Raises:
        ValueError: ``num_envs`` is less than 1.
        TypeError: ``num_envs`` is not an integer.
    """

    noise_size = 2
    time_limit = 200
    action_space = spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)
    observation_space = spaces.Box(np.array([-1, -1, -MAX_VELOCITY], np.float32), np.array([1, 1, MAX_VELOCITY], np.float32))

    def start(self, noise: Tensor) -> Tensor:
        """Returns the physics at the start of an episode: ``[N, 2]``, dtype of ``noise``."""
        angle, velocity = (2 * noise - 1).unbind(-1)
        return torch.stack((math.pi * angle, velocity), -1)

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Takes a semi-implicit Euler step of 0.05 s: first the velocity, then the angle with the new velocity.

        Shapes, dtypes: see :meth:`a2c_compiled.environments.TensorEnvironments.advance`.
        """
        angle, velocity = physics.unbind(-1)
        torque = action.squeeze(-1).to(physics.dtype).clamp(-MAX_TORQUE, MAX_TORQUE)
        from_upright = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = from_upright.square() + 0.1 * velocity.square() + 0.001 * torque.square()
        # The pendulum is a uniform rod that turns about its end: its moment of inertia is MASS * LENGTH**2 / 3.
        acceleration = 1.5 * GRAVITY / LENGTH * angle.sin() + 3.0 / (MASS * LENGTH**2) * torque
        velocity = (velocity + acceleration * TIME_STEP).clamp(-MAX_VELOCITY, MAX_VELOCITY)
        physics = torch.stack((angle + velocity * TIME_STEP, velocity), -1)
        return physics, -cost, torch.zeros_like(angle, dtype=torch.bool)

    def observe(self, physics: Tensor) -> Tensor:
        """Returns cosine and sine of the angle, and the angular velocity: ``[N, 3]``, dtype of ``physics``."""
        angle, velocity = physics.unbind(-1)
        return torch.stack((angle.cos(), angle.sin(), velocity), -1)
