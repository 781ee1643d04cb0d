"""Prepares the process, and creates the loss and the training step, from the options of a run."""

import math
import os
import random
import warnings
from pathlib import Path
from typing import Iterator, Optional

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv

from a2c_compiled.environments import Environments, EnvironmentSource, GymnasiumEnvironments, make_environments
from a2c_compiled.environments.source import is_environment_class, is_registered, resolved
from a2c_compiled.estimators import GAE
from a2c_compiled.losses import A2CLoss
from a2c_compiled.networks.for_spaces import is_image, make_networks
from a2c_compiled.training.config import COMPILE_FROM_STEPS, TrainConfig
from a2c_compiled.training.distributed.processes import Processes
from a2c_compiled.update.train_step import TrainStep


def seed_everything(seed: int) -> None:
    """Seeds the random generators of Python, numpy and torch. numpy's gets the last 32 bits of ``seed``, because it accepts no more."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def autoreset_of(config: TrainConfig, source: EnvironmentSource) -> str:
    """Returns the argument ``autoreset`` of :func:`~a2c_compiled.environments.make_environments`.

    ``"auto"`` is ``"next_step"`` for images from environments that run one after the other in this process. Workers of ``async`` cannot
    be resumed exactly with it.
    """
    source = resolved(source)
    if config.autoreset != "auto":
        return config.autoreset
    if config.vectorization not in ("auto", "sync") or not (is_registered(source) or is_environment_class(source)):
        return "same_step"
    example = make_environments(source, 1, vectorization=config.vectorization, frame_stack=config.frame_stack)
    example.close()
    is_sync = isinstance(example, GymnasiumEnvironments) and isinstance(example.envs, SyncVectorEnv)
    return "next_step" if is_sync and is_image(example.observation_space) else "same_step"


def use_threads(threads: Optional[int]) -> None:
    """Sets the number of CPU threads of torch. None leaves it.

    Issues a RuntimeWarning if torch then has more threads than CPUs that the process may use, see :func:`available_cpus`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    available = available_cpus()
    if torch.get_num_threads() > available:
        warnings.warn(
            f"torch has {torch.get_num_threads()} threads, but this process may use {available} CPUs, which can be many times slower;"
            f" use --threads {available} (TrainConfig(threads={available}))",
            RuntimeWarning,
            stacklevel=2,
        )


def available_cpus(cgroups: Path = Path("/sys/fs/cgroup"), own_cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the number of CPUs that the process may use, by its affinity and by the quota of its control groups, at least 1.

    Args:
        cgroups: folder of the control groups, of version 1 or 2.
        own_cgroup: file that names the control groups of the process.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *map(math.ceil, _cpu_quotas(cgroups, own_cgroup))]))


def _cpu_quotas(cgroups: Path, own_cgroup: Path) -> Iterator[float]:
    """Returns the limits of the control groups of the process, in CPUs. A group without a limit, or without a readable file, has none."""
    try:
        paths = [line.split(":", 2) for line in own_cgroup.read_text().splitlines()]
    except OSError:
        paths = []
    # A container may see its own group as the root.
    folders = {cgroups, cgroups / "cpu"}
    for _, controllers, path in paths:
        root = cgroups if not controllers else cgroups / "cpu"
        if not controllers or "cpu" in controllers.split(","):
            own = root / path.lstrip("/")
            folders |= {own, *(parent for parent in own.parents if parent.is_relative_to(root))}
    for folder in folders:
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def make_loss(config: TrainConfig, across_processes: bool = False, envs: Optional[Environments] = None) -> A2CLoss:
    """Creates the loss with newly initialised networks, on the device of ``config``.

    Args:
        config: options of the run.
        across_processes: whether ``average_gae`` standardises advantages over the rollouts of all processes, not only this one.
        envs: environments for whose spaces the networks are. None: one environment is made and closed.

    Raises:
        ValueError: the environment or an option is not valid.
    """
    example = make_environments(config.environment, 1, frame_stack=config.frame_stack) if envs is None else envs
    actor, critic, distribution = make_networks(example, config.hidden, config.normalize_observations)
    if envs is None:
        example.close()
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


def make_step(
    config: TrainConfig,
    loss: A2CLoss,
    compile: bool,
    processes: Processes = Processes(),  # noqa: B008 - immutable
) -> TrainStep:
    """Creates the training step.

    Args:
        config: options of the run.
        loss: the loss to train.
        compile: whether to compile the training step.
        processes: the processes over which gradients are averaged.
    """
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
    """Returns the device that ``config`` selects.

    Raises:
        ValueError: torch has no device of this name, or the device is a GPU and torch finds no GPU.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto or a torch device such as cpu or cuda:0, got {config.device!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected cpu, since torch finds no GPU here, got {config.device!r}")
    return device


def compiles(config: TrainConfig) -> bool:
    """Returns whether a run with these options compiles the policy, environments written in torch, and the training step."""
    if config.compile is None:
        return device_of(config).type == "cuda" or config.total_steps >= COMPILE_FROM_STEPS
    return config.compile


def compile_decision(config: TrainConfig) -> str:
    """Returns one line that says whether a run with these options compiles, why, and how to choose the other."""
    does = compiles(config)
    if config.compile is not None:
        reason = "as chosen"
    elif device_of(config).type == "cuda":
        reason = "on a GPU"
    else:
        reason = f"{config.total_steps:,} total steps are {'at least' if does else 'fewer than'} {COMPILE_FROM_STEPS:,}"
    if does:
        return f"compiles, which takes up to half a minute ({reason}; --no-compile runs in eager mode, which is faster for short runs)"
    return f"runs in eager mode ({reason}; --compile compiles, which is faster for long runs)"
