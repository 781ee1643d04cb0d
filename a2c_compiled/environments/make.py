"""Creates environments by name."""

import math
from typing import Optional

import gymnasium
import torch

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled.environments import vector
from a2c_compiled.environments.cartpole import CartPole
from a2c_compiled.environments.pendulum import Pendulum
from a2c_compiled.environments.protocol import Environments
from a2c_compiled.environments.tensor import TensorEnvironments
from a2c_compiled.environments.vector import GymnasiumEnvironments, make_vector

IN_TORCH: dict[str, type[TensorEnvironments]] = {"CartPole-v1": CartPole, "Pendulum-v1": Pendulum}
"""By the name of a gymnasium environment, the class that implements the environment in torch."""

VECTORIZATIONS = ("auto", "torch", *vector.VECTORIZATIONS[1:])


def make_environments(
    env_id: str,
    num_envs: int,
    device: torch.device | str = "cpu",
    vectorization: str = "auto",
    frame_stack: int = 1,
) -> Environments:
    """Creates ``num_envs`` environments that are stepped together.

    Args:
        env_id: name of a gymnasium environment.
        num_envs: number of environments.
        device: device of observations, rewards and flags.
        vectorization: how the environments run together:

            * ``"torch"``: written in torch, on the device;
            * ``"gymnasium"``: gymnasium's own vectorised version;
            * ``"sync"``: one after the other, in this process;
            * ``"async"``: each in a process of its own;
            * ``"auto"``: the first of torch, gymnasium and sync that exists for this environment and ``frame_stack``.
        frame_stack: number of successive observations that form one observation, the current one last. Values above 1 need ``"auto"``,
            ``"sync"`` or ``"async"``; Atari games also accept ``"gymnasium"``.

    Raises:
        ValueError: the environment or ``vectorization`` is unknown, the environment does not exist with this ``vectorization`` and
            ``frame_stack``, or ``num_envs`` or ``frame_stack`` is less than 1.
        TypeError: ``num_envs`` or ``frame_stack`` is not an integer.
    """
    num_envs, frame_stack = positive_int("num_envs", num_envs), positive_int("frame_stack", frame_stack)
    if vectorization not in VECTORIZATIONS:
        raise ValueError(f"vectorization: expected one of {', '.join(map(repr, VECTORIZATIONS))}, got {vectorization!r}")
    if vectorization == "torch" and env_id not in IN_TORCH:
        raise ValueError(f"vectorization: expected env to be one of {', '.join(IN_TORCH)} with 'torch', got {env_id!r}")
    if vectorization == "torch" and frame_stack > 1:
        raise ValueError(f"frame_stack: expected 1 with vectorization 'torch', got {frame_stack}")
    if vectorization in ("auto", "torch") and env_id in IN_TORCH and frame_stack == 1:
        return IN_TORCH[env_id](num_envs, device)
    return GymnasiumEnvironments(make_vector(env_id, num_envs, vectorization, frame_stack), device)


def goal_of(env_id: str, solved_return: Optional[float] = None) -> Optional[float]:
    """Returns the return of the greedy policy at which an environment counts as solved.

    Args:
        env_id: name of a gymnasium environment.
        solved_return: the return, if the user has set one. None selects gymnasium's reward threshold of the environment.

    Returns:
        The return. None if ``solved_return`` is infinite or NaN, or if ``solved_return`` is None and gymnasium has no threshold.
    """
    if solved_return is None:
        spec = gymnasium.registry.get(env_id.rpartition(":")[2])
        solved_return = None if spec is None else spec.reward_threshold
    return solved_return if solved_return is None or math.isfinite(solved_return) else None
