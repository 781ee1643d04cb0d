"""Environments by name."""

import math
from typing import Optional

import gymnasium
import torch

from a2c_compiled.environments.cartpole import CartPole
from a2c_compiled.environments.pendulum import Pendulum
from a2c_compiled.environments.protocol import Environments
from a2c_compiled.environments.tensor import TensorEnvironments
from a2c_compiled.environments.vector import GymnasiumEnvironments, make_vector

IN_TORCH: dict[str, type[TensorEnvironments]] = {"CartPole-v1": CartPole, "Pendulum-v1": Pendulum}
"""Those of gymnasium's environments that are written in torch here as well."""

VECTORIZATIONS = ("auto", "torch", "gymnasium", "sync", "async")


def make_environments(
    env_id: str,
    num_envs: int,
    device: torch.device | str = "cpu",
    vectorization: str = "auto",
    frame_stack: int = 1,
) -> Environments:
    """``num_envs`` environments side by side.

    Args:
        env_id: one of gymnasium's names.
        num_envs: how many.
        device: of the tensors that come and go.
        vectorization: ``"torch"``: written in torch, on the device; ``"gymnasium"``: the vectorised version that gymnasium has;
            ``"sync"``: one after the other; ``"async"``: a process each; ``"auto"``: the first of these that there is.
        frame_stack: how many observations, this one and those before it, make one; above 1 only one after the other or in processes.

    Raises:
        ValueError: there is no such environment, or not in this form.
    """
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
    """The greedy return that solves an environment: ``solved_return``, or gymnasium's threshold; None where there is none, or infinity."""
    if solved_return is None:
        spec = gymnasium.registry.get(env_id.rpartition(":")[2])
        solved_return = None if spec is None else spec.reward_threshold
    return solved_return if solved_return is None or math.isfinite(solved_return) else None
