"""The loss and the training step that a configuration describes, and where they run."""

import random

import numpy as np
import torch

from a2c_compiled.environments import make_environments
from a2c_compiled.estimators import GAE
from a2c_compiled.losses import A2CLoss
from a2c_compiled.networks.for_spaces import make_networks
from a2c_compiled.training.config import COMPILED_FROM, TrainConfig
from a2c_compiled.training.distributed import Processes
from a2c_compiled.update.train_step import TrainStep


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_loss(config: TrainConfig, across_processes: bool = False) -> A2CLoss:
    """The loss that ``config`` describes, with new networks."""
    envs = make_environments(config.env, 1, frame_stack=config.frame_stack)
    actor, critic, distribution = make_networks(envs, config.hidden, config.normalize_observations)
    envs.close()
    loss = A2CLoss(
        actor,
        critic,
        distribution,
        GAE(config.gamma, config.lmbda, average_gae=config.average_gae, across_processes=across_processes),
        entropy_coef=config.entropy_coef,
        critic_coef=config.critic_coef,
        loss_critic_type="l2",
    )
    return loss.to(device_of(config))


def make_step(config: TrainConfig, loss: A2CLoss, compile: bool, processes: Processes = Processes()) -> TrainStep:  # noqa: B008
    """The training step that ``config`` describes."""
    return TrainStep(
        loss,
        config.optimizer,
        config.lr,
        config.max_grad_norm,
        compile,
        minibatches=config.minibatches,
        autocast=None if config.autocast is None else getattr(torch, config.autocast),
        process_group=processes.group,
    )


def device_of(config: TrainConfig) -> torch.device:
    """Where ``config`` trains."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, or as torch names it, got {config.device!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected cpu, since torch finds no GPU here, got {config.device!r}")
    return device


def compiles(config: TrainConfig) -> bool:
    """Whether ``config`` compiles."""
    if config.compile is None:
        return device_of(config).type == "cuda" or config.total_steps >= COMPILED_FROM
    return config.compile
