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
    """A pole on a cart that is pushed left (0) or right (1): gymnasium's CartPole-v1, with its constants and its Euler steps.

    Observations are position, velocity, angle and angular velocity; the reward is 1 a step; an episode ends where the cart leaves 2.4 m
    or the pole 12 degrees, and is cut after 500 steps. Starts are uniform within 0.05 of rest.

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
        """Uniform within 0.05 of rest."""
        return 0.1 * noise - 0.05

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """An Euler step of 0.02 s."""
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
        """The physics themselves."""
        return physics
