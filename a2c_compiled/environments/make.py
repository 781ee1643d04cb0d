"""Creates environments from a name, a class or a function."""

import functools
import importlib
import math
import os
from typing import Any, Optional, Union

import gymnasium
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import described, integer
from a2c_compiled.environments import minatar
from a2c_compiled.environments.cartpole import CartPole
from a2c_compiled.environments.checked import Checked, check_call
from a2c_compiled.environments.envpool import EnvPool, is_pool, make_envpool
from a2c_compiled.environments.pendulum import Pendulum
from a2c_compiled.environments.protocol import Environments
from a2c_compiled.environments.replay import Replayable
from a2c_compiled.environments.source import (
    EnvironmentFunction,
    EnvironmentSource,
    is_environment_class,
    is_function,
    is_registered,
    is_tensor_class,
    module_of,
    resolved,
)
from a2c_compiled.environments.tensor import TensorEnvironments
from a2c_compiled.environments.vector import AsVector, GymnasiumEnvironments
from a2c_compiled.environments.workers import ignore_ctrl_c, starting_workers

IN_TORCH: dict[str, type[TensorEnvironments]] = {"CartPole-v1": CartPole, "Pendulum-v1": Pendulum}
"""By the name of a gymnasium environment, the class that implements the environment in torch."""

VECTORIZATIONS = ("auto", "torch", "gymnasium", "sync", "async")
"""How environments can run together, see :func:`make_environments`."""

ATARI, MINATAR = "ALE", "MinAtar"

AUTORESETS = {"same_step": AutoresetMode.SAME_STEP, "next_step": AutoresetMode.NEXT_STEP}
"""When environments reset after the end of an episode, see :func:`make_environments`."""


def make_environments(
    env_id: EnvironmentSource,
    num_envs: int,
    device: torch.device | str = "cpu",
    vectorization: str = "auto",
    frame_stack: int = 1,
    seed: int = 0,
    autoreset: str = "same_step",
) -> Environments:
    """Creates ``num_envs`` environments that are stepped together.

    Args:
        env_id: name of a gymnasium environment, ``"envpool:NAME"``, a class, a function, or ``"module:X"``, see ``EnvironmentSource``.
        num_envs: number of environments.
        device: device of observations, rewards and flags.
        vectorization: how the environments run together:

            * ``"torch"``: written in torch, on the device;
            * ``"gymnasium"``: gymnasium's own vectorised version;
            * ``"sync"``: one after the other, in this process;
            * ``"async"``: each in a process of its own;
            * ``"auto"``: the first of torch, gymnasium and sync that exists for this environment and ``frame_stack``. Environments of a
              function and of envpool accept only this value.
        frame_stack: number of successive observations that form one observation, the current one last. Values above 1 need ``"auto"``,
            ``"sync"`` or ``"async"``; Atari games also accept ``"gymnasium"``. Environments written in torch, of a function and of
            envpool accept only 1.
        seed: seed that a function and envpool get. The other environments get a seed from ``reset`` alone.
        autoreset: when environments with ``"sync"`` and ``"async"`` reset: ``"same_step"``: in the step that ends an episode;
            ``"next_step"``: in a step of its own, so that the observation after each step is the observation of the following step.
            With ``"same_step"``, other environments reset as they do, with ``"next_step"`` they must spend a step on the reset.

    Raises:
        ValueError: the environment, ``vectorization`` or ``autoreset`` is unknown, the environment does not exist with this
            ``vectorization``, ``frame_stack`` and ``autoreset``, ``num_envs`` or ``frame_stack`` is less than 1, or a function returns
            another number of environments, or environments on another device.
        TypeError: ``env_id`` is of another kind, ``num_envs``, ``frame_stack`` or ``seed`` is not an integer, or a function does not
            return environments.
        RuntimeError: a worker process of ``"async"`` ended before it had made its environment.
    """
    num_envs, frame_stack = positive_int("num_envs", num_envs), positive_int("frame_stack", frame_stack)
    seed = integer("seed", seed)
    _check_choice("vectorization", vectorization, VECTORIZATIONS)
    _check_choice("autoreset", autoreset, tuple(AUTORESETS))
    source = resolved(env_id)
    in_torch = source if is_tensor_class(source) else IN_TORCH.get(source) if isinstance(source, str) else None
    if vectorization == "torch" and in_torch is None:
        raise ValueError(f"vectorization: expected env to be one of {', '.join(IN_TORCH)} with 'torch', got {env_id!r}")
    if vectorization == "torch" or is_tensor_class(source):
        _check_only("vectorization", vectorization, ("auto", "torch"), "environments written in torch")
        _check_only("frame_stack", frame_stack, (1,), "environments written in torch")
    if in_torch is not None and vectorization in ("auto", "torch") and frame_stack == 1:
        _check_only("autoreset", autoreset, ("same_step",), "environments written in torch")
        return in_torch(num_envs, device)
    envs = (
        _made_by(source, num_envs, seed, vectorization, frame_stack)
        if is_function(source)
        else make_vector(source, num_envs, vectorization, frame_stack, seed, autoreset)
    )
    mode = envs.metadata.get("autoreset_mode") if isinstance(envs, VectorEnv) else None
    if autoreset == "next_step" and mode != AutoresetMode.NEXT_STEP:
        raise ValueError(f"autoreset: expected 'same_step' with environments that reset in mode {mode}, got 'next_step'")
    if isinstance(envs, VectorEnv):
        return GymnasiumEnvironments(envs, device)
    if envs.device != torch.device(device):
        raise ValueError(
            f"env: expected environments on {device}, the device of the networks, got environments on {envs.device}"
        )
    return envs


def make_vector(
    env_id: EnvironmentSource,
    num_envs: int,
    vectorization: str = "auto",
    frame_stack: int = 1,
    seed: int = 0,
    autoreset: str = "same_step",
    **options: Any,
) -> VectorEnv:
    """Creates a gymnasium vector environment with ``num_envs`` copies of an environment.

    Args:
        env_id: name of a gymnasium environment. As everywhere in gymnasium, ``"module:Name-v0"`` imports ``module`` and makes
            ``"Name-v0"``. ``"MinAtar/..."`` and ``"ALE/..."`` (Atari) need no module. Atari games return grey images of 84 x 84 pixels,
            and repeat each action for four frames. Or another ``EnvironmentSource``. Environments that are not gymnasium's, such as
            those written in torch, are adapted for evaluations: final observations are missing.
        num_envs: number of copies.
        vectorization: ``"gymnasium"``: gymnasium's own vectorised version; ``"sync"``: one after the other, in this process;
            ``"async"``: each in a process of its own; ``"auto"``: gymnasium's own version if there is one, else ``"sync"``.
            Environments of a function, of envpool and written in torch accept only ``"auto"``.
        frame_stack: number of successive observations that form one observation, in a new first dimension; 1 adds no dimension.
            gymnasium's own vectorised versions accept only 1, except Atari's, which always has the dimension. Environments of a
            function, of envpool and written in torch accept only 1.
        seed: seed that a function and envpool get. The other environments get a seed from ``reset`` alone.
        autoreset: when environments with ``"sync"`` and ``"async"`` reset, see :func:`make_environments`. Others reset as they do.
        options: options of the environment, passed to ``gymnasium.make_vec``, ``envpool.make_gymnasium`` or the class. A function and
            environments written in torch accept none.

    Raises:
        TypeError: ``env_id`` is of another kind, or a number is not an integer.
        ValueError: a number is less than 1, ``vectorization`` is unknown, or the environment cannot be made here with these arguments.
        RuntimeError: a worker process of ``"async"`` ended before it had made its environment.
    """
    _check_choice("vectorization", vectorization, tuple(name for name in VECTORIZATIONS if name != "torch"))
    _check_choice("autoreset", autoreset, tuple(AUTORESETS))
    num_envs, frame_stack = positive_int("num_envs", num_envs), positive_int("frame_stack", frame_stack)
    seed = integer("seed", seed)
    source = resolved(env_id)
    if is_environment_class(source):
        _check_only("vectorization", vectorization, ("auto", "sync", "async"), "a class of single environments")
        arguments = ", ".join(options) if options else "no arguments"
        check_call(source, f"a gymnasium.Env class whose constructor needs {arguments}", **options)
        make = functools.partial(_made_of_class, source, frame_stack, options, os.getpid())
        vector_class = AsyncVectorEnv if vectorization == "async" else SyncVectorEnv
        with starting_workers():
            return vector_class([make] * num_envs, autoreset_mode=AUTORESETS[autoreset])
    if is_registered(source):
        return _made_by_gymnasium(source, num_envs, vectorization, frame_stack, AUTORESETS[autoreset], options)
    if isinstance(source, str):
        _check_only("vectorization", vectorization, ("auto",), "envpool's environments")
        _check_only("frame_stack", frame_stack, (1,), "envpool's environments, which stack frames themselves")
        return make_envpool(source.rpartition(":")[2], num_envs, seed, **options)
    if options:
        raise ValueError(f"options: expected none for environments of a function or in torch, got {', '.join(options)}")
    if is_function(source):
        envs = _made_by(source, num_envs, seed, vectorization, frame_stack)
        return envs if isinstance(envs, VectorEnv) else AsVector(envs)
    return AsVector(make_environments(source, num_envs, "cpu", vectorization, frame_stack))


def _made_by(
    function: EnvironmentFunction, num_envs: int, seed: int, vectorization: str, frame_stack: int
) -> Union[VectorEnv, Environments]:
    """Calls ``function``, and checks what it returns. A pool of envpool's is wrapped, so that resets seed it."""
    _check_only("vectorization", vectorization, ("auto",), "environments that a function makes")
    _check_only("frame_stack", frame_stack, (1,), "environments that a function makes")
    of_class = "a gymnasium.Env class, a TensorEnvironments class or " if isinstance(function, type) else ""
    check_call(function, f"{of_class}a function of num_envs and seed", num_envs, seed)
    envs = function(num_envs, seed)
    if not isinstance(envs, (VectorEnv, Environments)):
        raise TypeError(f"env: expected a function that returns a gymnasium VectorEnv or Environments, got {described(envs)}")
    if envs.num_envs != num_envs:
        raise ValueError(f"env: expected {num_envs} environments from the function, got {envs.num_envs}")
    return EnvPool(functools.partial(function, num_envs), envs, seed) if is_pool(envs) else envs


def _made_of_class(env_class: type[gymnasium.Env], frame_stack: int, options: dict[str, Any], main_process: int) -> Replayable:
    """Makes one environment of a class, as :func:`_wrapped` describes."""
    return _wrapped(env_class(**options), frame_stack, main_process)


def _made_by_gymnasium(
    env_id: str, num_envs: int, vectorization: str, frame_stack: int, autoreset: AutoresetMode, options: dict[str, Any]
) -> VectorEnv:
    """Makes environments of gymnasium's registry. Arguments: see :func:`make_vector`."""
    name = env_id.rpartition(":")[2]
    try:
        _register(name)
        spec = gymnasium.spec(name)
        is_atari, has_own_version = spec.namespace == ATARI, spec.vector_entry_point is not None
        can_stack = frame_stack == 1 or is_atari
        if vectorization == "gymnasium" or (vectorization == "auto" and has_own_version and can_stack):
            if not can_stack:
                raise ValueError(f"frame_stack: expected 1 with vectorization 'gymnasium', got {frame_stack}")
            if is_atari:
                options.setdefault("stack_num", frame_stack)
            return gymnasium.make_vec(name, num_envs, vectorization_mode="vector_entry_point", **options)
        mode = "async" if vectorization == "async" else "sync"
        if is_atari:
            options.setdefault("frameskip", 1)  # AtariPreprocessing skips frames
        kwargs = {"autoreset_mode": autoreset}
        wrappers = [functools.partial(_wrapped, frame_stack=frame_stack, main_process=os.getpid())]
        with starting_workers():
            return gymnasium.make_vec(
                name, num_envs, vectorization_mode=mode, vector_kwargs=kwargs, wrappers=wrappers, **options
            )
    except (gymnasium.error.Error, ImportError) as error:
        expected = "an environment that gymnasium can make here"
        if module_of(env_id) and isinstance(error, gymnasium.error.UnregisteredEnv):
            expected = f"{name} in module {module_of(env_id)}, or an environment of this name that the module registers"
        raise ValueError(f"env: expected {expected}, got {env_id!r} ({error})") from error


def _register(name: str) -> None:
    """Registers the games of MinAtar or Atari with gymnasium if ``name`` begins with their namespace."""
    namespace, slash, _ = name.partition("/")
    if namespace == MINATAR and slash:
        minatar.register()
    elif namespace == ATARI and slash:
        gymnasium.register_envs(importlib.import_module("ale_py"))


def _wrapped(env: gymnasium.Env, frame_stack: int, main_process: int) -> Replayable:
    """Wraps ``env`` in preprocessing and frame stacking, and in :class:`Replayable` as the outermost wrapper.

    Processes other than ``main_process`` then ignore Ctrl-C.
    """
    if os.getpid() != main_process:
        ignore_ctrl_c()
    namespace = None if env.spec is None else env.spec.namespace
    if namespace == ATARI:
        env = AtariPreprocessing(env)
    elif namespace == MINATAR:
        env = minatar.SeededMinAtar(env)
    if frame_stack > 1:
        env = FrameStackObservation(Checked(env), frame_stack)
    return Replayable(env)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_only(name: str, value: Any, allowed: tuple[Any, ...], environments: str) -> None:
    """Raises ValueError unless ``allowed`` contains the option's ``value``; ``environments`` describes those with this limit."""
    if value not in allowed:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, allowed))} with {environments}, got {value!r}")


def goal_of(env_id: Optional[EnvironmentSource], solved_return: Optional[float] = None) -> Optional[float]:
    """Returns the return of the greedy policy at which an environment counts as solved.

    Args:
        env_id: what the environments are made from, see ``EnvironmentSource``; None if it is not known. Nothing is imported.
        solved_return: the return, if the user has set one. None selects gymnasium's reward threshold of the environment.

    Returns:
        The return. None if ``solved_return`` is infinite or NaN, or if ``solved_return`` is None and gymnasium has no threshold.
    """
    if solved_return is None:
        spec = gymnasium.registry.get(env_id.rpartition(":")[2]) if isinstance(env_id, str) else None
        solved_return = None if spec is None else spec.reward_threshold
    return solved_return if solved_return is None or math.isfinite(solved_return) else None
