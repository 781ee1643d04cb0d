"""Acts and learns without torch: a training loop on an exported training step, with numpy, onnxruntime and gymnasium alone.

Run:    python examples/export_and_verify.py && python examples/onnxruntime_loop.py
Prints: greedy policy: mean return 9.3 before learning, 486.7 after it; torch was imported: False (3 s)
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

FOLDER, MAX_UPDATES, NUM_ENVS, NUM_STEPS = Path("exported"), 300, 64, 16

sys.path.insert(0, str(FOLDER))  # the export wrote runtime.py, which needs numpy and onnxruntime alone
from runtime import Learner, Policy  # noqa: E402


def make_envs(number: int) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * number, autoreset_mode=AutoresetMode.SAME_STEP)


def mean_return(learner: Learner, seed: int) -> float:
    """Returns the mean return of the greedy policy over the first episodes of 100 environments."""
    policy = Policy.load(
        FOLDER / "policy.onnx", parameters=learner.parameters
    )  # the exported policy with the learner's parameters
    envs = make_envs(100)
    observation, _ = envs.reset(seed=seed)
    returns, running = np.zeros(100), np.ones(100, dtype=bool)
    while running.any():
        observation, reward, terminated, truncated, _ = envs.step(policy.act(observation))
        returns += reward * running
        running &= ~(terminated | truncated)
    return float(returns.mean())


learner = Learner.load(FOLDER / "train_step.onnx", seed=0)
before = mean_return(learner, seed=1_000_000)
envs = make_envs(NUM_ENVS)
observation, _ = envs.reset(seed=0)
for update in range(1, MAX_UPDATES + 1):
    steps: dict[str, list[np.ndarray]] = {name: [] for name in learner.rollout_entries}
    for _ in range(NUM_STEPS):
        output = learner.act(observation)  # sampled: action, log_prob, state_value
        after, reward, terminated, truncated, info = envs.step(output.environment_action)
        done = terminated | truncated
        next_observation = after.copy()
        if done.any():  # the last observation of an episode, not the first of the next
            next_observation[done] = np.stack(info["final_obs"][done])
        entries = {
            **{"observation": observation, "action": output.action, "reward": reward, "next_observation": next_observation},
            **{"done": done, "terminated": terminated},
        }
        for name, arrays in steps.items():
            arrays.append(entries[name])
        observation = after
    metrics = learner.step({name: np.stack(arrays) for name, arrays in steps.items()})
    if update % 10 == 0:
        solved = mean_return(learner, seed=100 * update)
        print(f"update {update}: entropy {metrics['entropy']:.2f}, mean return of the greedy policy {solved:.1f}")
        if solved >= 475:
            break
learner.save_state("learner.npz")  # load_state continues from here

after_learning = mean_return(learner, seed=1_000_000)
print(
    f"greedy policy: mean return {before:.1f} before learning, {after_learning:.1f} after it;"
    f" torch was imported: {'torch' in sys.modules}"
)
