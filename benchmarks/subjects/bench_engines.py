"""Measures training on several engines of environments, beside Stable-Baselines3's A2C on the same engine: environment steps per second.

``python -m a2c_compiled.benchmarks.subjects.bench_engines`` prints a table. Engines whose package is not installed are left out.
"""

import argparse
import importlib.util
import sys
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch

from a2c_compiled import Rollout
from a2c_compiled._extras import needs
from a2c_compiled.benchmarks.measure.timing import time_interleaved
from a2c_compiled.benchmarks.report.tables import Table
from a2c_compiled.benchmarks.subjects.bench_training import check_rollout, every_next_observation
from a2c_compiled.environments import EnvironmentSource, make_vector
from a2c_compiled.training import TrainConfig, Trainer

with needs(__name__, "train", "export"):
    import gymnasium
    import numpy as np
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv
    from gymnasium.vector import VectorEnv


class Engine(NamedTuple):
    """An engine and the size of its rollouts.

    Attributes:
        name: how the engine is named on the command line.
        source: what the environments are made from.
        num_envs, num_steps: size of a rollout.
        check: raises AssertionError if a rollout contradicts the environment.
        package: the package that it needs.
        is_image: whether the networks are convolutions with 512 features and linear heads, else two hidden layers of 64 units.
    """

    name: str
    source: EnvironmentSource
    num_envs: int
    num_steps: int
    check: Callable[[Rollout], None] = check_rollout
    package: str = "gymnasium"
    is_image: bool = False


class LimitedCartPole(CartPoleEnv):
    """A class of single environments: CartPole whose episodes end after 500 steps."""

    def reset(self, **options: Any) -> Any:
        """Starts an episode."""
        self.steps = 0
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        """Takes one step, and truncates the episode after 500 steps."""
        observation, reward, terminated, _, info = super().step(action)
        self.steps += 1
        return observation, reward, terminated, self.steps >= 500 and not terminated, info


def cartpoles(num_envs: int, seed: int) -> VectorEnv:
    """A function that makes a vector environment: gymnasium's vectorised CartPole."""
    return gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")


def check_frames(rollout: Rollout) -> None:
    """Raises AssertionError if the stacked frames of the next observation are not those of the observation, moved by one."""
    counted = torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask
    assert torch.equal(every_next_observation(rollout)[counted][:, :-1], rollout.observation[counted][:, 1:])


ENGINES = (
    Engine("CartPole-v1 --vectorization sync", "CartPole-v1", 8, 16),
    Engine("module:X, a gymnasium.Env class", LimitedCartPole, 8, 16),
    Engine("module:X, a function that makes a VectorEnv", cartpoles, 8, 16),
    Engine("envpool:CartPole-v1", "envpool:CartPole-v1", 8, 16, package="envpool"),
    Engine("envpool:Pong-v5", "envpool:Pong-v5", 8, 5, check_frames, "envpool", True),
)


def measure(engine: Engine, compiling: bool, samples: int) -> Dict[str, float]:
    """Returns environment steps per second by implementation. The first rollouts of this library are checked before."""
    options: Dict[str, Any] = {"hidden": ()} if engine.is_image else {}
    if "sync" in engine.name:
        options["vectorization"] = "sync"

    def trainer(compile: bool) -> Callable[[], object]:
        sizes: Dict[str, Any] = {"num_envs": engine.num_envs, "num_steps": engine.num_steps}
        trainer = Trainer(TrainConfig(compile=compile, **sizes, **options), environments=engine.source)
        for _ in range(3):
            engine.check(trainer.update()[0])
        return trainer.update

    functions = {"eager": trainer(False), **({"compiled": trainer(True)} if compiling else {})}
    learner = sb3(engine)
    steps = engine.num_envs * engine.num_steps
    functions["Stable-Baselines3"] = lambda: learner.learn(steps, reset_num_timesteps=False)
    timed = time_interleaved(functions, samples, sample_seconds=0.05, budget_seconds=20.0)
    return {name: steps / timing.median for name, timing in timed.items()}


def sb3(engine: Engine) -> Any:
    """Returns Stable-Baselines3's A2C with networks of the same size, on the same engine.

    With next-step autoreset, it takes the step that the engine spends on a reset for a real one; this takes the same time.
    """
    from stable_baselines3 import A2C
    from stable_baselines3.common.vec_env import VecEnv

    class Adapter(VecEnv):
        """Steps a gymnasium vector environment."""

        def __init__(self, envs: VectorEnv) -> None:
            self.envs = envs
            super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

        def reset(self) -> Any:
            return self.envs.reset(seed=0)[0]

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            observation, reward, terminated, truncated, info = self.envs.step(self.actions)
            infos: List[Dict[str, Any]] = [{} for _ in range(self.num_envs)]
            done = terminated | truncated
            for i in done.nonzero()[0]:
                infos[i] = {"TimeLimit.truncated": truncated[i], "terminal_observation": info.get("final_obs", observation)[i]}
            return observation, reward, done, infos

        def close(self) -> None:
            self.envs.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> List[Any]:
            return [None] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **options: Any) -> List[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> List[bool]:
            return [False] * self.num_envs

    vectorization = "sync" if "sync" in engine.name else "auto"
    envs = Adapter(make_vector(engine.source, engine.num_envs, vectorization))
    policy, arch = ("CnnPolicy", []) if engine.is_image else ("MlpPolicy", [64, 64])
    return A2C(policy, envs, n_steps=engine.num_steps, seed=0, device="cpu", policy_kwargs={"net_arch": arch})


def table(measured: Dict[Engine, Dict[str, float]]) -> Table:
    """Returns the table of :func:`measure`."""
    columns = ["eager", "compiled", "Stable-Baselines3"]
    lines = [
        [engine.name, f"{engine.num_envs}x{engine.num_steps}", *(f"{speeds[c]:,.0f}" if c in speeds else "" for c in columns)]
        for engine, speeds in measured.items()
    ]
    header = ["engine", "environments x steps", *columns]
    return Table("Training: environment steps per second, updates included", header, lines, [])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="", help="measure the engines whose name contains this text (default: all)")
    parser.add_argument("--eager", action="store_true", help="skip compiled training")
    parser.add_argument("--samples", type=int, default=20, help="timed samples per implementation (default: 20)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    chosen = [e for e in ENGINES if arguments.engine in e.name and importlib.util.find_spec(e.package) is not None]
    measured = {engine: measure(engine, not arguments.eager, arguments.samples) for engine in chosen}
    print(table(measured).plain())
    return 0


if __name__ == "__main__":
    sys.exit(main())
