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
    """A pendulum that is to be swung up by a torque in [-2, 2]: gymnasium's Pendulum-v1, with its constants and its Euler steps.

    Observations are cosine and sine of the angle from upright, and the angular velocity; the reward is
    ``-(angle^2 + 0.1 velocity^2 + 0.001 torque^2)`` with the angle in [-pi, pi); episodes are cut after 200 steps. Starts are uniform in
    all angles and in velocities up to 1.
    """

    noise_size = 2
    time_limit = 200
    action_space = spaces.Box(-STRONGEST, STRONGEST, (1,), np.float32)
    observation_space = spaces.Box(np.array([-1, -1, -FASTEST], np.float32), np.array([1, 1, FASTEST], np.float32))

    def start(self, noise: Tensor) -> Tensor:
        """Any angle, a velocity in [-1, 1)."""
        angle, turning = (2 * noise - 1).unbind(-1)
        return torch.stack((math.pi * angle, turning), -1)

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """An Euler step of 0.05 s, the velocity first."""
        angle, turning = physics.unbind(-1)
        torque = action.squeeze(-1).to(physics.dtype).clamp(-STRONGEST, STRONGEST)
        from_upright = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = from_upright.square() + 0.1 * turning.square() + 0.001 * torque.square()
        pull = 1.5 * GRAVITY / LENGTH * angle.sin() + 3.0 / (MASS * LENGTH**2) * torque
        turning = (turning + pull * SECONDS).clamp(-FASTEST, FASTEST)
        physics = torch.stack((angle + turning * SECONDS, turning), -1)
        return physics, -cost, torch.zeros_like(angle, dtype=torch.bool)

    def observe(self, physics: Tensor) -> Tensor:
        """Cosine and sine of the angle, and the velocity."""
        angle, turning = physics.unbind(-1)
        return torch.stack((angle.cos(), angle.sin(), turning), -1)
