"""CartPole-v1 in torch."""

import math
from typing import Tuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from a2c_compiled.environments.tensor import TensorEnvironments

GRAVITY = 9.8
CART_MASS, POLE_MASS = 1.0, 0.1
TOTAL_MASS = CART_MASS + POLE_MASS
HALF_LENGTH = 0.5
FORCE = 10.0
SECONDS = 0.02
WIDEST, STEEPEST = 2.4, math.radians(12.0)


class CartPole(TensorEnvironments):
    """gymnasium's CartPole-v1, written in torch with the same constants and Euler integration: a pole balances on a cart.

    * Action: ``[N]``, integer: 0 pushes the cart to the left, 1 to the right.
    * Observation and physics (state of the simulation): ``[N, 4]``, floating point: position, velocity, angle, angular velocity.
    * Reward: 1 for each step.
    * Terminated: the cart is more than 2.4 m from the centre, or the pole more than 12 degrees from upright.
    * Truncated: after 500 steps.
    * Start: each of the four numbers is uniform in [-0.05, 0.05).

    Arguments: see :class:`a2c_compiled.environments.TensorEnvironments`.

    Raises:
        ValueError: ``num_envs`` is less than 1.

    Source: Barto, Sutton, Anderson (1983), "Neuronlike adaptive elements that can solve difficult learning control problems"; equations
    of motion as corrected by Florian (2007).
    """

    noise_size = 4
    time_limit = 500
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(
        np.array([-2 * WIDEST, -np.inf, -2 * STEEPEST, -np.inf], np.float32),
        np.array([2 * WIDEST, np.inf, 2 * STEEPEST, np.inf], np.float32),
    )

    def start(self, noise: Tensor) -> Tensor:
        """Returns ``[N, 4]``, dtype of ``noise``: each number is uniform in [-0.05, 0.05)."""
        return 0.1 * noise - 0.05

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Takes an explicit Euler step of 0.02 s. Shapes, dtypes: see :meth:`a2c_compiled.environments.TensorEnvironments.advance`."""
        x, speed, angle, turning = physics.unbind(-1)
        sine, cosine = angle.sin(), angle.cos()
        push = (action * 2 - 1) * FORCE
        swing = (push + POLE_MASS * HALF_LENGTH * turning.square() * sine) / TOTAL_MASS
        angular = (GRAVITY * sine - cosine * swing) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cosine.square() / TOTAL_MASS))
        linear = swing - POLE_MASS * HALF_LENGTH * angular * cosine / TOTAL_MASS
        x, speed = x + SECONDS * speed, speed + SECONDS * linear
        angle, turning = angle + SECONDS * turning, turning + SECONDS * angular
        terminated = (x.abs() > WIDEST) | (angle.abs() > STEEPEST)
        return torch.stack((x, speed, angle, turning), -1), torch.ones_like(x), terminated

    def observe(self, physics: Tensor) -> Tensor:
        """Returns ``physics``, ``[N, 4]``, dtype unchanged."""
        return physics
