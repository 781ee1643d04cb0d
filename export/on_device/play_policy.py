"""Plays an exported policy. Needs numpy, onnxruntime and gymnasium, but not torch.

Starts a number of environments, and prints the undiscounted return of the first episode in each as a JSON list, and their mean on
stderr. The export of a2c_compiled copies this file beside a policy, together with ``runtime.py``. No other file of a2c_compiled is
needed.
"""

import argparse
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, List, TypeVar, Union

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

if TYPE_CHECKING or __package__:
    from a2c_compiled.export.on_device.runtime import Policy, PolicyOutput
else:
    from runtime import Policy, PolicyOutput  # the copy beside this file

Act = Callable[[np.ndarray], Union[np.ndarray, PolicyOutput]]
"""Maps a batch of observations to actions, or to the output of a sampled policy."""

Output = TypeVar("Output")

EVALUATION_SEED = 10_000
"""Seed of the environments in which policies are compared."""


def play(policy_path: str, env_id: str, episodes: int, seed: int) -> List[float]:
    """Returns the return of the first episode in each of ``episodes`` environments, played by an exported policy.

    ``seed`` is the seed of the environments and of the noise of a sampled policy.
    """
    policy = Policy.load(policy_path, seed=seed)  # each environment counts its first episode, so memory is never reset
    return episode_returns(policy.act, env_id, episodes, seed)


def episode_returns(act: Act, env_id: str, episodes: int, seed: int) -> List[float]:
    """Returns the undiscounted return of the first episode in each of ``episodes`` environments."""
    act = fitting(act, env_id)
    envs = make_environments(env_id, episodes, seed)
    observation, _ = envs.reset(seed=seed)
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        result = act(observation)
        action = result.environment_action if isinstance(result, PolicyOutput) else result
        observation, reward, terminated, truncated, _ = envs.step(action)
        returns[running] += reward[running]
        running &= ~(terminated | truncated)
    envs.close()
    return returns.tolist()


def fitting(act: Callable[[np.ndarray], Output], env_id: str) -> Callable[[np.ndarray], Output]:
    """Returns ``act``, whose errors about observations of ``env_id`` then name this environment and the option that selects another."""

    def explained(observation: np.ndarray) -> Output:
        try:
            return act(observation)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"env: expected an environment with the observations of the policy, got {env_id} ({error}); --env selects another"
            ) from error

    return explained


def make_environments(env_id: str, num_envs: int, seed: int = 0, **options: Any) -> VectorEnv:
    """Makes ``num_envs`` environments.

    Args:
        env_id: name of a gymnasium environment; or ``"envpool:NAME"``; or ``"module:X"``, where ``X`` is a subclass of ``gymnasium.Env``,
            a function of ``num_envs`` and ``seed`` that returns a ``VectorEnv``, or the name of an environment that the module registers.
        num_envs: number of environments.
        seed: seed that envpool and a function get.
        options: options of ``gymnasium.make_vec`` for environments in gymnasium's registry. Of a class, only ``vector_kwargs`` is used.

    Raises:
        ValueError: ``X`` is of another kind, the function returns something else, or there is no ``X``.
    """
    module, _, name = env_id.rpartition(":")
    if module == "envpool":
        return importlib.import_module(module).make_gymnasium(name, num_envs=num_envs, seed=seed)
    own: Any = getattr(importlib.import_module(module), name, None) if module else None
    if own is None:
        if env_id.startswith("MinAtar/") and env_id not in gymnasium.registry:
            importlib.import_module("minatar.gym").register_envs()
        try:
            return gymnasium.make_vec(env_id, num_envs, **options)
        except gymnasium.error.UnregisteredEnv as error:
            of_module = (
                f" in module {module}, or an environment of this name that the module registers" if module else " in gymnasium"
            )
            raise ValueError(f"env: expected {name}{of_module}, got {env_id} ({error})") from error
    if isinstance(own, type) and issubclass(own, gymnasium.Env):
        return SyncVectorEnv([own] * num_envs, **options.get("vector_kwargs", {}))
    envs = None if isinstance(own, type) or not callable(own) else own(num_envs, seed)
    if not isinstance(envs, VectorEnv):
        got = type(own if envs is None else envs).__name__
        raise ValueError(f"env: expected a gymnasium.Env class or a function that returns a VectorEnv, got {env_id}: {got}")
    return envs


ENV_HELP = (
    "name of a gymnasium environment; envpool:NAME for one of envpool; or module:X, where X is a gymnasium.Env class, a function of"
    " num_envs and seed that returns a VectorEnv, or a name that the module registers (default: %(default)s)"
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", help="exported policy (.onnx)")
    parser.add_argument("--env", default="CartPole-v1", help=ENV_HELP)
    parser.add_argument(
        "--episodes", type=count, default=100, help="number of episodes, one for each environment (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=seed, default=EVALUATION_SEED, help="seed of environments and noise (default: %(default)s)"
    )
    return parser


def count(text: str) -> int:
    """Parses an option that is an integer of at least 1. Raises argparse.ArgumentTypeError for another one."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """Parses a seed, an integer from 0 to below 2 ** 32. Raises argparse.ArgumentTypeError for another one."""
    if not text.strip().isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to below 2 ** 32, got {text!r}")
    return int(text)


def run(main: Callable[[], None]) -> None:
    """Runs a program, and ends the process. An error becomes one line on stderr, with the exit status 2."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # environments raise errors of many types
        message = (str(error).strip() or "no message").splitlines()[0]
        own = isinstance(error, (ValueError, TypeError, OSError))
        print(f"{os.path.basename(sys.argv[0])}: {message if own else f'{type(error).__name__}: {message}'}", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """Runs the command line."""
    arguments = parser().parse_args()
    if ":" in arguments.env:
        sys.path.append(os.getcwd())  # the module of --env may be in the current folder
    returns = play(arguments.policy, arguments.env, arguments.episodes, arguments.seed)
    print(json.dumps(returns))
    print(f"mean return: {np.mean(returns):.6g}", file=sys.stderr)  # stdout has the list alone, for programs


if __name__ == "__main__":
    run(main)
