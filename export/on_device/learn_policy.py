"""Learn a policy with numpy, onnxruntime and gymnasium alone, by a training step that was exported.

A2C: act in environments side by side, update from what they gave, until the greedy policy is good enough. Prints its progress, and last
a line of JSON; leaves the learner's state in a file. Export copies this file next to a training step, with ``play_policy.py`` and
``runtime.py``, which are all that it needs of the package that they are part of.
"""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple

import numpy as np
from gymnasium.vector import AutoresetMode

if TYPE_CHECKING or __package__:
    from a2c_compiled.export.on_device.play_policy import EVALUATION_SEED, episode_returns, make_environments
    from a2c_compiled.export.on_device.runtime import Learner
else:  # the files next to this one
    from play_policy import EVALUATION_SEED, episode_returns, make_environments
    from runtime import Learner

Rollout = Dict[str, np.ndarray]

FINAL_LR = 0.1
"""Share of the learning rate that it falls to."""
EVALUATION_INTERVAL = 10
"""Updates from one look at whether the greedy policy is good enough to the next."""
NEAR = 0.8
"""How far below the goal the mean return of sampled episodes may be, as a share of it, for the greedy policy to be tried."""
EVALUATION_TRIALS = ((EVALUATION_SEED + 200, 10), (EVALUATION_SEED, 100), (EVALUATION_SEED + 100, 100))
"""First seed and number of the episodes of each trial: a few cost little, and one lucky set of 100 starts is not enough."""


def learn(
    learner: Learner, env_id: str, num_envs: int, num_steps: int, total_steps: int, solved_return: float, seed: int
) -> Dict[str, Any]:
    """Update ``learner`` until its greedy policy reaches ``solved_return``, or ``total_steps`` are spent, and say how it went.

    The learning rate falls linearly to ``FINAL_LR`` of itself over ``total_steps``.
    """
    started, first_lr = time.perf_counter(), learner.lr
    updates = max(1, total_steps // (num_envs * num_steps))
    returns: List[float] = []
    for update, (rollout, ended) in enumerate(rollouts(learner, env_id, num_envs, num_steps, seed), 1):
        learner.lr = first_lr * (FINAL_LR + (1.0 - FINAL_LR) * (1.0 - (update - 1) / updates))
        learner.step(rollout)
        returns = (returns + ended)[-100:]
        mean_return = np.mean(returns) if returns else -np.inf
        if update % 50 == 0:
            print(f"{update * num_envs * num_steps:>9,} steps, {time.perf_counter() - started:.1f} s, return {mean_return:.1f}")
        is_near = update % EVALUATION_INTERVAL == 0 and mean_return >= solved_return - NEAR * abs(solved_return)
        is_solved = is_near and all(greedy_return(learner, env_id, *look) >= solved_return for look in EVALUATION_TRIALS)
        if is_solved or update == updates:
            break
    first, second = (greedy_return(learner, env_id, *look) for look in EVALUATION_TRIALS[1:])
    return {
        "return": first,
        "steps": update * num_envs * num_steps,
        "seconds": round(time.perf_counter() - started, 1),
        "solved": min(first, second) >= solved_return,
    }


def rollouts(learner: Learner, env_id: str, num_envs: int, num_steps: int, seed: int) -> Iterator[Tuple[Rollout, List[float]]]:
    """Rollouts of ``num_steps`` steps without end, time first, each with the returns of the episodes that ended in it."""
    # A step that ends an episode also begins the next one, and hands over the observation that was the last.
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    envs = make_environments(env_id, num_envs, vectorization_mode="sync", vector_kwargs=mode)
    observation, _ = envs.reset(seed=seed)
    running = np.zeros(num_envs)
    while True:
        steps: Dict[str, List[np.ndarray]] = {name: [] for name in learner.rollout_entries}
        ended: List[float] = []
        for _ in range(num_steps):
            output = learner.act(observation)
            following, reward, terminated, truncated, info = envs.step(output.action)
            done = terminated | truncated
            seen = {
                **output._asdict(),
                "observation": observation,
                "reward": reward,
                "next_observation": with_final_observations(following, info),
                "done": done,
                "terminated": terminated,
                "mask": np.ones(num_envs, dtype=bool),
            }
            for name, arrays in steps.items():
                arrays.append(seen[name])
            running += reward
            ended += running[done].tolist()
            running[done] = 0.0
            observation = following
        yield {name: np.stack(arrays) for name, arrays in steps.items()}, ended


def with_final_observations(observation: np.ndarray, info: Dict[str, Any]) -> np.ndarray:
    """Where an episode ended, its last observation in place of the next one's first."""
    if "final_obs" not in info:
        return observation
    observation, ended = observation.copy(), info["_final_obs"]
    observation[ended] = np.stack(list(info["final_obs"][ended]))
    return observation


def greedy_return(learner: Learner, env_id: str, seed: int, episodes: int) -> float:
    """Mean return of greedy episodes."""
    return float(np.mean(episode_returns(lambda observation: learner.act(observation, greedy=True), env_id, episodes, seed)))


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", help="the .onnx file of a training step, with its policy and state beside it")
    parser.add_argument("--env", default="CartPole-v1", help="a gymnasium environment (default: %(default)s)")
    parser.add_argument("--num-envs", type=int, default=64, help="side by side (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, default=16, help="of each between two updates (default: %(default)s)")
    parser.add_argument("--total-steps", type=int, default=1_000_000, help="of all together, at most (default: %(default)s)")
    parser.add_argument("--solved-return", type=float, default=475.0, help="of the greedy policy (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of environments and noise (default: %(default)s)")
    parser.add_argument("--out", default="learned.npz", help="file for the learner's state (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime (default: %(default)s)")
    return parser


if __name__ == "__main__":
    arguments = parser().parse_args()
    learner = Learner.load(arguments.graph, threads=arguments.threads, seed=arguments.seed)
    learner.save_state(arguments.out)  # fails now, not after learning
    sizes = (arguments.num_envs, arguments.num_steps, arguments.total_steps)
    try:
        result = learn(learner, arguments.env, *sizes, arguments.solved_return, arguments.seed)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; {arguments.out} holds what was learnt until then")
    finally:
        learner.save_state(arguments.out)
    print(json.dumps(result))
