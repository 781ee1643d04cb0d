"""Base of environments written in torch, which run on the device and can be compiled together with the policy.

``N`` is the number of environments. Physics is the state of the simulation: ``S`` numbers per environment. ``*event`` is the shape of one
action.
"""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import described, integer
from a2c_compiled.environments.checked import refuse
from a2c_compiled.environments.protocol import EnvironmentStep
from a2c_compiled.environments.replay import CannotResume


class EnvironmentState(NamedTuple):
    """State of ``N`` environments.

    Attributes:
        physics: ``[N, S]``, floating point: state of the simulation, ``S`` numbers per environment.
        steps: ``[N]``, int64: number of steps in the current episode.
    """

    physics: Tensor
    steps: Tensor


class TensorEnvironments:
    """Base class of environments written in torch.

    A subclass defines :meth:`start`, :meth:`advance` and :meth:`observe`, and the class attributes ``noise_size``, ``time_limit``,
    ``observation_space`` and ``action_space``. The three methods are pure functions, so ``torch.compile`` can compile
    :meth:`transition` and whole rollouts. :meth:`transition` is deterministic: its caller draws the random numbers with :meth:`draw`.

    Args:
        num_envs: ``N``, the number of environments.
        device: device of all tensors.
        dtype: floating point dtype of the physics.

    Attributes:
        noise_size: number of random numbers, uniform in [0, 1), that :meth:`start` uses for one environment.
        time_limit: number of steps after which an episode is truncated. An environment that terminates at that step is not truncated.
        observation_space: gymnasium's space of one environment's observations.
        action_space: gymnasium's space of one environment's actions.
        generator: random generator of the noise, on the device.
        state: current state of the environments; None before the first :meth:`reset`.

    The first :meth:`reset` and the first step check ``noise_size``, ``time_limit`` and what the three methods return. A mistake is named
    with the class, what was expected and what came.

    Raises:
        ValueError: ``num_envs`` is less than 1.
        TypeError: ``num_envs`` is not an integer.
    """

    _has_checked_start = False
    _has_checked_advance = False

    noise_size: int
    time_limit: int
    observation_space: Any
    action_space: Any

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.num_envs = positive_int("num_envs", num_envs)
        self.device = torch.device(device)
        self.dtype = dtype
        self.generator = torch.Generator(self.device)
        self.state: Optional[EnvironmentState] = None

    def start(self, noise: Tensor) -> Tensor:
        """Returns the physics at the start of an episode: ``[N, S]``, dtype of ``noise``.

        Args:
            noise: ``[N, noise_size]``, floating point: uniform in [0, 1).
        """
        raise NotImplementedError

    def advance(self, physics: Tensor, action: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Simulates one step.

        Args:
            physics: ``[N, S]``, floating point: the physics before the action.
            action: ``[N, *event]``, dtype as the action space requires.

        Returns:
            Three tensors:

            * ``[N, S]``, dtype of ``physics``: the physics after the action;
            * ``[N]``, dtype of ``physics``: the reward;
            * ``[N]``, bool: whether the episode terminated.
        """
        raise NotImplementedError

    def observe(self, physics: Tensor) -> Tensor:
        """Returns the observations of ``physics``, ``[N, S]``. Result: ``[N, ...]``, dtype of ``physics``."""
        raise NotImplementedError

    def transition(self, state: EnvironmentState, action: Tensor, noise: Tensor) -> Tuple[EnvironmentState, EnvironmentStep]:
        """Takes one step as a pure function. If an episode ends, the returned state is the start of the next episode.

        Args:
            state: state before the step, shapes and dtypes as in :class:`EnvironmentState`.
            action: ``[N, *event]``, dtype as the action space requires.
            noise: ``[N, noise_size]``, floating point, uniform in [0, 1). Only environments whose episode ends use it.

        Returns:
            The state after the step, and the step's result, see :class:`~a2c_compiled.environments.EnvironmentStep`.

        Raises:
            ValueError: :meth:`advance` returns something else than documented.
        """
        result = self.advance(state.physics, action)
        if not torch.compiler.is_compiling() and not self._has_checked_advance:
            self._check_advance(state.physics, result)
            self._has_checked_advance = True
        physics, reward, terminated = result
        steps = state.steps + 1
        truncated = (steps >= self.time_limit) & ~terminated
        done = terminated | truncated
        next_physics = torch.where(done.unsqueeze(-1), self.start(noise), physics)
        step = EnvironmentStep(self.observe(next_physics), reward, terminated, truncated, self.observe(physics))
        return EnvironmentState(next_physics, steps.masked_fill(done, 0)), step

    def draw(self, *shape: int) -> Tensor:
        """Draws noise that is uniform in [0, 1). Result: ``[*shape, N, noise_size]``, dtype of the physics."""
        size = (*shape, self.num_envs, self.noise_size)
        return torch.rand(size, generator=self.generator, device=self.device, dtype=self.dtype)

    def reset(self, seed: Optional[int] = None) -> Tensor:
        """Starts a new episode in every environment.

        Args:
            seed: seed of the generator; None continues the generator.

        Returns:
            The first observations, ``[N, ...]``, dtype of the physics.

        Raises:
            TypeError: ``noise_size`` or ``time_limit`` is not an integer.
            ValueError: :meth:`start` or :meth:`observe` returns something else than documented.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        if not self._has_checked_start:
            for name in ("noise_size", "time_limit"):
                integer(f"{type(self).__name__}.{name}", getattr(self, name, None))
        physics = self.start(self.draw())
        if not self._has_checked_start:
            self._check_start(physics)
            self._has_checked_start = True
        self.state = EnvironmentState(physics, torch.zeros(self.num_envs, dtype=torch.int64, device=self.device))
        return self.observe(physics)

    def step(self, action: Tensor) -> EnvironmentStep:
        """Takes one step in every environment.

        Args:
            action: ``[N, *event]``, dtype as the action space requires.

        Returns:
            The step's result, see :class:`~a2c_compiled.environments.EnvironmentStep`.

        Raises:
            RuntimeError: :meth:`reset` has not been called.
        """
        if self.state is None:
            raise RuntimeError("expected reset() before the first step()")
        self.state, step = self.transition(self.state, action, self.draw())
        return step

    def _check_start(self, physics: Any) -> None:
        """Raises ValueError unless ``start`` returned ``physics`` as documented, and ``observe`` returns observations of the space."""
        name, n = type(self).__name__, self.num_envs
        if not isinstance(physics, Tensor) or physics.dim() != 2 or len(physics) != n or not physics.is_floating_point():
            refuse(name, "start", f"floating-point physics of shape [{n}, S]", _described(physics))
        observation, shape = self.observe(physics), getattr(getattr(self, "observation_space", None), "shape", None)
        expected = None if shape is None else [n, *shape]
        if not isinstance(observation, Tensor) or (expected is not None and list(observation.shape) != expected):
            refuse(name, "observe", f"observations of shape {expected or f'[{n}, ...]'}", _described(observation))

    def _check_advance(self, physics: Tensor, result: Any) -> None:
        """Raises ValueError unless ``advance`` returned ``result`` as documented for ``physics``."""
        name = type(self).__name__
        if not isinstance(result, (tuple, list)) or len(result) != 3:
            got = f"{len(result)} results" if isinstance(result, (tuple, list)) else _described(result)
            refuse(name, "advance", "physics, reward and terminated", got)
        shapes = {"physics": list(physics.shape), "reward": list(physics.shape[:-1]), "terminated": list(physics.shape[:-1])}
        for (part, shape), value in zip(shapes.items(), result, strict=True):
            if not isinstance(value, Tensor) or list(value.shape) != shape:
                refuse(name, "advance", f"{part} of shape {shape}", _described(value))
        if result[2].dtype != torch.bool:
            refuse(name, "advance", "terminated of dtype torch.bool", str(result[2].dtype))

    def close(self) -> None:
        """Does nothing: there are no resources to release."""

    def state_dict(self) -> Dict[str, Tensor]:
        """Returns the state of the environments.

        Returns:
            By name: ``physics``, ``[N, S]``, floating point; ``steps``, ``[N]``, int64; ``generator``, uint8: the state of the random
            generator.

        Raises:
            RuntimeError: :meth:`reset` has not been called.
        """
        if self.state is None:
            raise RuntimeError("expected reset() before state_dict()")
        return {**self.state._asdict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Dict[str, Tensor]) -> Tensor:
        """Restores what :meth:`state_dict` returned.

        Args:
            state: shapes and dtypes as in :meth:`state_dict`.

        Returns:
            The current observations, ``[N, ...]``, dtype of ``physics``.

        Raises:
            CannotResume: ``state`` lacks one of these tensors, or has another number of environments.
            RuntimeError: the state of the generator was saved on another type of device.
        """
        if not {"physics", "steps", "generator"} <= state.keys() or state["steps"].shape != (self.num_envs,):
            got = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in state.items())
            raise CannotResume(
                f"state: expected physics, steps and generator of {self.num_envs} environments, got {got or 'no tensors'}"
            )
        self.state = EnvironmentState(state["physics"].to(self.device), state["steps"].to(self.device))
        self.generator.set_state(state["generator"].cpu())
        return self.observe(self.state.physics)


def _described(value: Any) -> str:
    """Returns dtype and shape of a tensor, for the end of an error message; otherwise what ``value`` is."""
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else described(value)
