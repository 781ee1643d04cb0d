"""Pendulum-v1 in torch."""

import math
from typing import Tuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from a2c_compiled.environments.tensor import TensorEnvironments

GRAVITY, MASS, LENGTH = 10.0, 1.0, 1.0
SECONDS = 0.05
FASTEST, STRONGEST = 8.0, 2.0


class Pendulum(TensorEnvironments):
    """gymnasium's Pendulum-v1, written in torch with the same constants and Euler integration: a torque swings a pendulum up.

    * Action: ``[N, 1]``: the torque, clamped to [-2, 2].
    * Physics (state of the simulation): ``[N, 2]``, floating point: angle from upright, angular velocity in [-8, 8].
    * Observation: ``[N, 3]``, floating point: cosine and sine of the angle, angular velocity.
    * Reward: ``-(angle^2 + 0.1 velocity^2 + 0.001 torque^2)`` before the step, with the angle in [-pi, pi).
    * Terminated: never. Truncated: after 200 steps.
    * Start: the angle is uniform in [-pi, pi), the angular velocity in [-1, 1).

    Arguments: see :class:`a2c_compiled.environments.TensorEnvironments`.

    Raises:
        ValueError: ``num_envs`` is less than 1.
    """

    noise_size = 2
    time_limit = 200
    action_space = spaces.Box(-STRONGEST, STRONGEST, (1,), np.float32)
    observation_space = spaces.Box(np.array([-1, -1, -FASTEST], np.float32), np.array([1, 1, FASTEST], np.float32))

    def start(self, noise: Tensor) -> Tensor:
        """Returns ``[N, 2]``, dtype of ``noise``: an angle in [-pi, pi) and a velocity in [-1, 1)."""
        angle, turning = (2 * noise - 1).unbind(-1)
        return torch.stack((math.pi * angle, turning), -1)

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Takes a semi-implicit Euler step of 0.05 s: first the velocity, then the angle with the new velocity.

        Shapes, dtypes: see :meth:`a2c_compiled.environments.TensorEnvironments.advance`.
        """
        angle, turning = physics.unbind(-1)
        torque = action.squeeze(-1).to(physics.dtype).clamp(-STRONGEST, STRONGEST)
        from_upright = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = from_upright.square() + 0.1 * turning.square() + 0.001 * torque.square()
        pull = 1.5 * GRAVITY / LENGTH * angle.sin() + 3.0 / (MASS * LENGTH**2) * torque
        turning = (turning + pull * SECONDS).clamp(-FASTEST, FASTEST)
        physics = torch.stack((angle + turning * SECONDS, turning), -1)
        return physics, -cost, torch.zeros_like(angle, dtype=torch.bool)

    def observe(self, physics: Tensor) -> Tensor:
        """Returns ``[N, 3]``, dtype of ``physics``: cosine and sine of the angle, and the velocity."""
        angle, turning = physics.unbind(-1)
        return torch.stack((angle.cos(), angle.sin(), turning), -1)
