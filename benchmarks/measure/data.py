"""Random inputs, networks and rollouts. Because the seeds are fixed, every contender has the same data."""

from typing import Any, Dict, List

import torch
from torch import Tensor, nn

from a2c_compiled import A2CLoss, Rollout
from a2c_compiled.benchmarks.measure.shapes import Shape
from a2c_compiled.distributions import Categorical
from a2c_compiled.networks.for_spaces import ImageEncoder

# Entries of an observation, number of actions, units of a hidden layer.
OBSERVATION, ACTIONS, HIDDEN = 8, 4, 64
IMAGE = (4, 84, 84)  # Atari's four stacked grey frames
GAMMA, LMBDA = 0.99, 0.95
LEARNING_RATE, MAX_GRAD_NORM, ENTROPY_COEF, CRITIC_COEF = 7e-4, 0.5, 0.01, 0.5


def steps(shape: Shape, device: torch.device) -> Dict[str, Tensor]:
    """Returns random inputs of the estimators by name, each ``[T, N]``: ``done`` and ``terminated`` bool, the others float32.

    One step in twenty ends an episode; about half of these episodes are truncated. Within an episode ``next_state_value[t]`` equals
    ``state_value[t + 1]``: some peer libraries keep only one of the two.

    Args:
        shape: (environments N, steps T).
        device: device of the tensors.
    """
    num_envs, num_steps = shape
    random: Any = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    values = torch.randn(num_steps + 1, num_envs, **random)
    reward, final_value, log_pi, log_mu = torch.randn(4, num_steps, num_envs, **random)
    done = torch.rand(num_steps, num_envs, **random) < 0.05
    return {
        "state_value": values[:-1].clone(),
        "next_state_value": torch.where(done, final_value, values[1:]),
        "reward": reward.clone(),
        "done": done,
        "terminated": done & (torch.rand(num_steps, num_envs, **random) < 0.5),
        "log_pi": 0.1 * log_pi,
        "log_mu": 0.1 * log_mu,
    }


def cotangents(like: Tensor, count: int) -> List[Tensor]:
    """Returns ``count`` random gradients of an estimator's outputs, each float32 with the shape of ``like``."""
    generator = torch.Generator(like.device).manual_seed(2)
    return list(torch.randn(count, *like.shape, generator=generator, device=like.device))


def rollout(shape: Shape, device: torch.device) -> Rollout:
    """Returns a random rollout: ``observation`` and ``next_observation`` ``[T, N, 8]``, the other fields ``[T, N]``."""
    num_envs, num_steps = shape
    ends = steps(shape, device)
    random: Any = {"generator": torch.Generator(device).manual_seed(1), "device": device}
    observations = torch.randn(num_steps + 1, num_envs, OBSERVATION, **random)
    final = torch.randn(num_steps, num_envs, OBSERVATION, **random)
    next_observation = torch.where(ends["done"].unsqueeze(-1), final, observations[1:])
    action = torch.randint(ACTIONS, (num_steps, num_envs), **random)
    return Rollout(observations[:-1].clone(), action, ends["reward"], next_observation, ends["done"], ends["terminated"])


def image_rollout(shape: Shape, device: torch.device) -> Rollout:
    """Returns a random rollout of Atari's shapes: observations ``[T, N, 4, 84, 84]``, uint8, and that after the last step alone.

    All steps count, and every episode that ends is terminated. So libraries that reset in the same step compute the same update.
    """
    num_envs, num_steps = shape
    ends = steps(shape, device)
    random: Any = {"generator": torch.Generator(device).manual_seed(1), "device": device}
    observations = torch.randint(256, (num_steps + 1, num_envs, *IMAGE), dtype=torch.uint8, **random)
    action = torch.randint(ACTIONS, (num_steps, num_envs), **random)
    mask = torch.ones_like(ends["done"])
    return Rollout(
        observations[:-1].clone(), action, ends["reward"], observations[-1:].clone(), ends["done"], ends["done"], mask=mask
    )


def every_next_observation(rollout: Rollout) -> Rollout:
    """Returns the result of :func:`image_rollout` with the next observation of every step."""
    return rollout._replace(next_observation=torch.cat([rollout.observation[1:], rollout.next_observation]))


def image_loss(device: torch.device) -> A2CLoss:
    """Returns the A2C loss of the networks that ``a2c-compiled train --hidden`` builds for Atari, with fixed initial weights.

    Three convolutions and 512 units, which actor and critic share, and a linear layer for each. Coefficients: as in :func:`loss`.
    """
    torch.manual_seed(0)
    encoder = ImageEncoder(IMAGE, 1.0 / 255.0)
    actor, critic = (nn.Sequential(encoder, nn.Linear(encoder.width, outputs)) for outputs in (ACTIONS, 1))
    options = {"entropy_coef": ENTROPY_COEF, "critic_coef": CRITIC_COEF, "loss_critic_type": "l2"}
    return A2CLoss(actor, critic, Categorical(ACTIONS), **options).to(device)  # type: ignore[arg-type]


def loss(device: torch.device) -> A2CLoss:
    """Returns the A2C loss of two :func:`network` modules with fixed initial weights, and the coefficients at the top of this file."""
    torch.manual_seed(0)
    options = {"entropy_coef": ENTROPY_COEF, "critic_coef": CRITIC_COEF, "loss_critic_type": "l2"}
    return A2CLoss(network(ACTIONS), network(1), Categorical(ACTIONS), **options).to(device)  # type: ignore[arg-type]


def network(outputs: int) -> nn.Sequential:
    """Returns a network with 8 inputs, two hidden tanh layers of 64 units, and ``outputs`` outputs."""
    layers = [nn.Linear(OBSERVATION, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, outputs)]
    return nn.Sequential(*layers)
