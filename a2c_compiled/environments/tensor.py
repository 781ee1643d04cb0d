"""Environments written in torch: they live on the device, and compile together with the policy."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled.environments.protocol import EnvironmentStep
from a2c_compiled.environments.replay import CannotResume


class EnvironmentState(NamedTuple):
    """Where ``N`` environments are: their ``physics``, ``[N, S]``, and how many ``steps`` their episodes have had, int64 of ``[N]``."""

    physics: Tensor
    steps: Tensor


class TensorEnvironments:
    """Base of environments whose steps are tensor mathematics.

    A subclass says where episodes start (:meth:`start`), how they go on (:meth:`advance`) and what is seen (:meth:`observe`); all three
    are pure functions, so that ``torch.compile`` takes whole rollouts (:meth:`transition`). Chance enters as uniform numbers that are
    drawn beforehand, :attr:`noise_size` of them for each environment and step.

    Args:
        num_envs: environments side by side.
        device: where they live.
        dtype: of their physics.

    Attributes:
        noise_size: uniform numbers in [0, 1) that a start takes.
        time_limit: steps after which an episode is cut short.
        generator: of the noise, on the device.
    """

    noise_size: int
    time_limit: int
    observation_space: Any
    action_space: Any

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.dtype = dtype
        self.generator = torch.Generator(self.device)
        self.state: Optional[EnvironmentState] = None

    def start(self, noise: Tensor) -> Tensor:
        """Physics at the start of an episode, ``[N, S]``, from uniform noise ``[N, noise_size]``."""
        raise NotImplementedError

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Physics after ``action``, the reward ``[N]``, and whether the episode terminated, bool ``[N]``."""
        raise NotImplementedError

    def observe(self, physics: Tensor) -> Tensor:
        """What the policy sees, ``[N, ...]``."""
        raise NotImplementedError

    def transition(self, state: EnvironmentState, action: Tensor, noise: Tensor) -> Tuple[EnvironmentState, EnvironmentStep]:
        """One step as a function, the start of the next episode included."""
        physics, reward, terminated = self.advance(state.physics, action)
        steps = state.steps + 1
        truncated = (steps >= self.time_limit) & ~terminated
        done = terminated | truncated
        next_physics = torch.where(done.unsqueeze(-1), self.start(noise), physics)
        step = EnvironmentStep(self.observe(next_physics), reward, terminated, truncated, self.observe(physics))
        return EnvironmentState(next_physics, steps.masked_fill(done, 0)), step

    def draw(self, *shape: int) -> Tensor:
        """Noise of ``[*shape, N, noise_size]``."""
        size = (*shape, self.num_envs, self.noise_size)
        return torch.rand(size, generator=self.generator, device=self.device, dtype=self.dtype)

    def reset(self, seed: Optional[int] = None) -> Tensor:
        """New episodes everywhere."""
        if seed is not None:
            self.generator.manual_seed(seed)
        physics = self.start(self.draw())
        self.state = EnvironmentState(physics, torch.zeros(self.num_envs, dtype=torch.int64, device=self.device))
        return self.observe(physics)

    def step(self, action: Tensor) -> EnvironmentStep:
        """One step of every environment.

        Raises:
            RuntimeError: before the first ``reset``.
        """
        if self.state is None:
            raise RuntimeError("expected reset() before the first step()")
        self.state, step = self.transition(self.state, action, self.draw())
        return step

    def close(self) -> None:
        """Nothing is held."""

    def state_dict(self) -> Dict[str, Tensor]:
        """All that the episodes' future depends on."""
        if self.state is None:
            raise RuntimeError("expected reset() before state_dict()")
        return {**self.state._asdict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Dict[str, Tensor]) -> Tensor:
        """Go on from ``state``; returns what is seen there.

        Raises:
            CannotResume: it is the state of other environments.
        """
        if not {"physics", "steps", "generator"} <= state.keys() or state["steps"].shape != (self.num_envs,):
            raise CannotResume(f"env: expected the state of {self.num_envs} environments written in torch, got another")
        self.state = EnvironmentState(state["physics"].to(self.device), state["steps"].to(self.device))
        self.generator.set_state(state["generator"].cpu())
        return self.observe(self.state.physics)
