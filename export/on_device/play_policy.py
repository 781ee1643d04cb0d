"""Play an exported policy, with numpy, onnxruntime and gymnasium alone.

Prints the undiscounted return of the first episode in each of a number of environments, as a JSON list. Export copies this file next to
a policy, and ``runtime.py`` with it, which is all that it needs of the package that both are part of.
"""

import argparse
import importlib
import json
from typing import TYPE_CHECKING, Any, Callable, List, Union

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

if TYPE_CHECKING or __package__:
    from a2c_compiled.export.on_device.runtime import Policy, PolicyOutput
else:
    from runtime import Policy, PolicyOutput  # the file next to this one

Act = Callable[[np.ndarray], Union[np.ndarray, PolicyOutput]]
"""From a batch of observations to actions, or to what a sampled policy gives."""

EVALUATION_SEED = 10_000
"""Of the environments that policies are compared in."""


def play(policy_path: str, env_id: str, episodes: int, seed: int) -> List[float]:
    """Returns of an exported policy, one per environment; ``seed`` is also that of a sampled policy's noise."""
    return episode_returns(Policy.load(policy_path, seed=seed).act, env_id, episodes, seed)


def episode_returns(act: Act, env_id: str, episodes: int, seed: int) -> List[float]:
    """Undiscounted returns of the first episode in each of ``episodes`` environments."""
    envs = make_environments(env_id, episodes)
    observation, _ = envs.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        result = act(observation)
        action = result.action if isinstance(result, PolicyOutput) else result
        observation, reward, terminated, truncated, _ = envs.step(action)
        returns[running] += reward[running]
        running &= ~(terminated | truncated)
    envs.close()
    return returns.tolist()


def make_environments(env_id: str, num_envs: int, **options: Any) -> VectorEnv:
    """Gymnasium's ``make_vec``; MinAtar's games are known once MinAtar is asked to register them."""
    if env_id.startswith("MinAtar/") and env_id not in gymnasium.registry:
        importlib.import_module("minatar.gym").register_envs()
    return gymnasium.make_vec(env_id, num_envs, **options)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", help="the .onnx file of a policy")
    parser.add_argument("--env", default="CartPole-v1", help="a gymnasium environment (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help="of the environments (default: %(default)s)")
    return parser


if __name__ == "__main__":
    arguments = parser().parse_args()
    print(json.dumps(play(arguments.policy, arguments.env, arguments.episodes, arguments.seed)))
