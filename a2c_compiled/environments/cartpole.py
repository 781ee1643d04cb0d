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
TIME_STEP = 0.02
MAX_POSITION, MAX_ANGLE = 2.4, math.radians(12.0)


class CartPole(TensorEnvironments):
    """gymnasium's CartPole-v1, written in torch with the same constants and Euler integration: a pole balances on a cart.

    * Action: ``[N]``, integer: 0 pushes the cart to the left, 1 to the right.
    * Observation and physics (state of the simulation): ``[N, 4]``, floating point: position, velocity, angle, angular velocity.
    * Reward: 1 for each step.
    * Terminated: the cart is more than 2.4 m from the centre, or the pole more than 12 degrees from upright.
    * Truncated: after 500 steps.
    * Start of an episode: each of the four numbers is uniform in [-0.05, 0.05).

    Arguments: see :class:`a2c_compiled.environments.TensorEnvironments`.

    Raises:
        ValueError: ``num_envs`` is less than 1.
        TypeError: ``num_envs`` is not an integer.

    Source: Barto, Sutton, Anderson (1983), "Neuronlike adaptive elements that can solve difficult learning control problems"; equations
    of motion as corrected by Florian (2007).
    """

    noise_size = 4
    time_limit = 500
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(
        np.array([-2 * MAX_POSITION, -np.inf, -2 * MAX_ANGLE, -np.inf], np.float32),
        np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32),
    )

    def start(self, noise: Tensor) -> Tensor:
        """Returns the physics at the start of an episode: ``[N, 4]``, dtype of ``noise``."""
        return 0.1 * noise - 0.05

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Takes an explicit Euler step of 0.02 s. Shapes, dtypes: see :meth:`a2c_compiled.environments.TensorEnvironments.advance`."""
        x, velocity, angle, angular_velocity = physics.unbind(-1)
        sine, cosine = angle.sin(), angle.cos()
        force = (action * 2 - 1) * FORCE
        # Florian's equations of motion, without friction. common_term occurs in both equations.
        common_term = (force + POLE_MASS * HALF_LENGTH * angular_velocity.square() * sine) / TOTAL_MASS
        effective_length = HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cosine.square() / TOTAL_MASS)
        angular_acceleration = (GRAVITY * sine - cosine * common_term) / effective_length
        acceleration = common_term - POLE_MASS * HALF_LENGTH * angular_acceleration * cosine / TOTAL_MASS
        x, velocity = x + TIME_STEP * velocity, velocity + TIME_STEP * acceleration
        angle, angular_velocity = angle + TIME_STEP * angular_velocity, angular_velocity + TIME_STEP * angular_acceleration
        terminated = (x.abs() > MAX_POSITION) | (angle.abs() > MAX_ANGLE)
        return torch.stack((x, velocity, angle, angular_velocity), -1), torch.ones_like(x), terminated

    def observe(self, physics: Tensor) -> Tensor:
        """Returns ``physics`` unchanged: ``[N, 4]``, same dtype."""
        return physics
