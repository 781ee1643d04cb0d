"""Play a policy that was exported to ONNX, with numpy, onnxruntime and gymnasium alone.

Prints the undiscounted return of the first episode in each of a number of environments, as a JSON list. Copy this file next to a policy:
it imports nothing of the package that it is part of.
"""

import argparse
import json
import sys

import gymnasium
import numpy as np
import onnxruntime


def play(policy_path: str, env_id: str, episodes: int, seed: int) -> list[float]:
    """Returns of the greedy policy, one per environment."""
    session = onnxruntime.InferenceSession(policy_path, providers=["CPUExecutionProvider"])
    envs = gymnasium.make_vec(env_id, episodes)
    observation, _ = envs.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        (action,) = session.run(["action"], {"observation": observation.astype(np.float32)})
        observation, reward, terminated, truncated, _ = envs.step(action)
        returns[running] += reward[running]
        running &= ~(terminated | truncated)
    envs.close()
    return returns.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", help="the .onnx file of a greedy policy")
    parser.add_argument("--env", default="CartPole-v1", help="a gymnasium environment (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=10_000, help="of the environments (default: %(default)s)")
    arguments = parser.parse_args()
    print(json.dumps(play(arguments.policy, arguments.env, arguments.episodes, arguments.seed)))
    assert "torch" not in sys.modules
