"""Trains a policy with an exported training step. Needs numpy, onnxruntime and gymnasium, but not torch.

The algorithm is A2C (advantage actor-critic): collect a rollout in parallel environments, run one training step on it, and repeat until the
greedy policy reaches the required return. The script prints its progress, and as the last line the result as JSON. It writes the state of
the learner to a file, also after SIGTERM, SIGHUP or Ctrl-C, and continues from this file if it exists. The export of a2c_compiled copies
this file beside a training step, together with ``play_policy.py`` and ``runtime.py``. No other file of a2c_compiled is needed.
"""

import argparse
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
from gymnasium.vector import AutoresetMode

if TYPE_CHECKING or __package__:
    from a2c_compiled.export.on_device import play_policy
    from a2c_compiled.export.on_device.play_policy import (
        ENV_HELP,
        EVALUATION_SEED,
        count,
        episode_returns,
        fitting,
        make_environments,
        run,
    )
    from a2c_compiled.export.on_device.runtime import Learner
else:  # the copies beside this file
    import play_policy
    from play_policy import ENV_HELP, EVALUATION_SEED, count, episode_returns, fitting, make_environments, run
    from runtime import Learner

Rollout = Dict[str, np.ndarray]

FINAL_LR = 0.1
"""The learning rate at the end of training, as a fraction of the first learning rate."""
EVALUATION_INTERVAL = 10
"""Number of training steps between two evaluations of the greedy policy."""
NEAR = 0.8
"""The greedy policy is evaluated once the mean return of training episodes is at least ``solved_return - NEAR * abs(solved_return)``."""
EVALUATION_TRIALS = ((EVALUATION_SEED + 200, 10), (EVALUATION_SEED, 100), (EVALUATION_SEED + 100, 100))
"""First seed and number of episodes of each part of an evaluation.

The first part has few episodes, so a policy that fails the first part costs little time. The other two parts have different seeds,
because a policy may reach the required return on one set of 100 episodes by chance.
"""
PROGRESS_INTERVAL = 50
"""Number of training steps between two lines of output."""
RECENT_EPISODES = 100
"""Number of training episodes in the mean return that is printed and compared with ``NEAR``."""


def learn(
    learner: Learner,
    env_id: str,
    num_envs: int,
    num_steps: int,
    total_steps: int,
    solved_return: float,
    seed: int,
    reward_scale: float = 1.0,
    before_first_update: Callable[[], None] = lambda: None,
) -> Dict[str, Any]:
    """Trains ``learner`` until its greedy policy reaches ``solved_return`` or ``total_steps`` are used.

    The learning rate falls linearly over ``total_steps``, from its first value to ``FINAL_LR`` times its first value.

    Args:
        learner: learner to train, changed in place.
        env_id: name of a gymnasium environment.
        num_envs: number of parallel environments.
        num_steps: steps of each environment for one training step.
        total_steps: largest number of steps of all environments together.
        solved_return: mean return that the greedy policy must reach in every part of an evaluation.
        seed: seed of the environments.
        reward_scale: the learner learns from rewards times this number; all returns are those of the environment.
        before_first_update: called once, when the first rollout is complete and the learner is still unchanged.

    Returns:
        ``return``: mean return of the trained greedy policy over the first set of 100 episodes. ``steps``: number of environment steps.
        ``seconds``: duration. ``solved``: whether the greedy policy reached ``solved_return`` in both sets of 100 episodes.
    """
    started, first_lr = time.perf_counter(), learner.lr
    updates = max(1, total_steps // (num_envs * num_steps))
    returns: List[float] = []
    for update, (rollout, ended) in enumerate(rollouts(learner, env_id, num_envs, num_steps, seed, reward_scale), 1):
        if update == 1:
            before_first_update()
        learner.lr = first_lr * (FINAL_LR + (1.0 - FINAL_LR) * (1.0 - (update - 1) / updates))
        learner.step(rollout)
        returns = (returns + ended)[-RECENT_EPISODES:]
        mean_return = np.mean(returns) if returns else -np.inf
        if update % PROGRESS_INTERVAL == 0:
            print(f"{update * num_envs * num_steps:>9,} steps, {time.perf_counter() - started:.1f} s, return {mean_return:.1f}")
        is_near = update % EVALUATION_INTERVAL == 0 and mean_return >= solved_return - NEAR * abs(solved_return)
        is_solved = is_near and all(greedy_return(learner, env_id, *trial) >= solved_return for trial in EVALUATION_TRIALS)
        if is_solved or update == updates:
            break
    first, second = (greedy_return(learner, env_id, *trial) for trial in EVALUATION_TRIALS[1:])
    return {
        "return": first,
        "steps": update * num_envs * num_steps,
        "seconds": round(time.perf_counter() - started, 1),
        "solved": min(first, second) >= solved_return,
    }


def rollouts(
    learner: Learner, env_id: str, num_envs: int, num_steps: int, seed: int, reward_scale: float = 1.0
) -> Iterator[Tuple[Rollout, List[float]]]:
    """Yields rollouts without end, each with the returns of the episodes that ended in this rollout.

    A rollout has, for each name in ``learner.rollout_entries``, an array ``[num_steps, num_envs, ...]``. Its rewards are those of the
    environments times ``reward_scale``. Environments that spend a step on
    each reset need a training step with ``mask``, which is False at these steps.

    Raises:
        ValueError: the training step is for rollouts ``[N, T, ...]``, or the environments have another autoreset mode, or spend a step
            on each reset and the training step has no ``mask``.
    """
    if learner.time_dim != 0:
        raise ValueError("graph: expected a training step for rollouts [T, N, ...], got one for [N, T, ...]")
    # With SAME_STEP, the step that ends an episode also resets its environment. The last observation of the episode is in info.
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    envs = make_environments(env_id, num_envs, seed, vectorization_mode="sync", vector_kwargs=mode)
    spends_steps = envs.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP
    if not spends_steps and envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise ValueError(f"env: expected autoreset mode SAME_STEP or NEXT_STEP, got {envs.metadata.get('autoreset_mode')}")
    if spends_steps and "mask" not in learner.rollout_entries:
        raise ValueError(
            f"graph: expected a training step with the input mask, because {env_id} spends a step on each reset, got none"
        )
    observation, _ = envs.reset(seed=seed)
    act = fitting(learner.act, env_id)
    running, done = np.zeros(num_envs), np.zeros(num_envs, dtype=bool)
    while True:
        steps: Dict[str, List[np.ndarray]] = {name: [] for name in learner.rollout_entries}
        ended: List[float] = []
        for _ in range(num_steps):
            output = act(observation)
            next_observation, reward, terminated, truncated, info = envs.step(output.environment_action)
            counted = ~done if spends_steps else np.ones(num_envs, dtype=bool)
            done = terminated | truncated
            entries = {
                **output._asdict(),
                "observation": observation,
                "reward": reward * reward_scale,
                "next_observation": with_final_observations(next_observation, info),
                "done": done,
                "terminated": terminated,
                "mask": counted,
            }
            for name, arrays in steps.items():
                arrays.append(entries[name])
            running += reward
            ended += running[done].tolist()
            running[done] = 0.0
            observation = next_observation
        yield {name: np.stack(arrays) for name, arrays in steps.items()}, ended


def with_final_observations(observation: np.ndarray, info: Dict[str, Any]) -> np.ndarray:
    """Returns the last observation of each episode that ended, and ``observation`` for all other environments.

    If an episode ended, ``observation`` holds the first observation of the following episode.
    """
    if "final_obs" not in info:
        return observation
    observation, ended = observation.copy(), info["_final_obs"]
    observation[ended] = np.stack(list(info["final_obs"][ended]))
    return observation


def greedy_return(learner: Learner, env_id: str, seed: int, episodes: int) -> float:
    """Returns the mean return of the greedy policy over ``episodes`` episodes."""
    return float(np.mean(episode_returns(lambda observation: learner.act(observation, greedy=True), env_id, episodes, seed)))


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", help="exported training step (.onnx), with the files of its policy and state beside it")
    parser.add_argument("--env", default="CartPole-v1", help=ENV_HELP)
    parser.add_argument("--num-envs", type=count, default=64, help="number of parallel environments (default: %(default)s)")
    parser.add_argument(
        "--num-steps", type=count, default=16, help="steps of each environment for one training step (default: %(default)s)"
    )
    parser.add_argument(
        "--total-steps",
        type=count,
        default=1_000_000,
        help="largest number of steps of all environments together (default: %(default)s)",
    )
    parser.add_argument(
        "--solved-return",
        type=float,
        default=475.0,
        help="mean return at which the greedy policy counts as solved (default: %(default)s)",
    )
    parser.add_argument(
        "--reward-scale",
        type=positive,
        default=1.0,
        metavar="FACTOR",
        help="learn from rewards times this number, as a run with normalised rewards did (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=play_policy.seed, default=0, help="seed of environments and noise (default: %(default)s)"
    )
    parser.add_argument(
        "--out", default="learned.npz", help="file for the learner's state; training continues from it (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin from the exported state, and replace the file of --out")
    parser.add_argument("--threads", type=count, default=1, help="number of threads of onnxruntime (default: %(default)s)")
    return parser


def positive(text: str) -> float:
    """Returns the positive, finite number in ``text``. Raises argparse's error for any other text."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


class StoppedError(BaseException):  # no Exception, which environments may catch
    """A signal to end training arrived. The first argument is its number."""


def stop(number: int, frame: Any) -> None:
    """Handles a signal to end training."""
    raise StoppedError(number)


def main() -> None:
    """Runs the command line."""
    arguments = parser().parse_args()
    if ":" in arguments.env:
        sys.path.append(os.getcwd())  # the module of --env may be in the current folder
    learner = Learner.load(arguments.graph, threads=arguments.threads, seed=arguments.seed)
    if os.path.exists(arguments.out) and not arguments.overwrite:
        try:
            learner.load_state(arguments.out)
        except ValueError as error:
            raise ValueError(f"{error}; --overwrite begins anew, --out names another file") from error
        print(f"continues from the state in {arguments.out}; --overwrite begins from the exported state")
    is_learning = False

    def begin() -> None:
        """Saves the state before training: environments that cannot be used change no file, and an invalid --out fails here."""
        nonlocal is_learning
        learner.save_state(arguments.out)
        is_learning = True

    sizes = (arguments.num_envs, arguments.num_steps, arguments.total_steps)
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        options = (arguments.solved_return, arguments.seed, arguments.reward_scale)
        result = learn(learner, arguments.env, *sizes, *options, before_first_update=begin)
    except StoppedError as error:
        saved = f"{arguments.out} holds the state of the learner so far" if is_learning else "nothing was learned"
        print(f"stopped; {saved}", file=sys.stderr)
        sys.exit(128 + error.args[0])
    finally:
        if is_learning:
            learner.save_state(arguments.out)
    print(json.dumps(result))


if __name__ == "__main__":
    run(main)
