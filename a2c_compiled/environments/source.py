"""What environments are made from: a name, a class or a function."""

import importlib
import sys
from typing import Any, Callable, Optional, TypeGuard, Union

import gymnasium
from gymnasium.vector import VectorEnv

from a2c_compiled._kinds import described
from a2c_compiled.environments.protocol import Environments
from a2c_compiled.environments.tensor import TensorEnvironments

EnvironmentFunction = Callable[[int, int], Union[VectorEnv, Environments]]
"""Makes environments from their number and a seed."""

EnvironmentSource = Union[str, type[gymnasium.Env], type[TensorEnvironments], EnvironmentFunction]
"""What :func:`~a2c_compiled.environments.make_environments` makes environments from:

* the name of a gymnasium environment, such as ``"CartPole-v1"``, or ``"envpool:Pong-v5"`` for an environment of envpool;
* a subclass of ``gymnasium.Env`` whose constructor needs no arguments;
* a subclass of :class:`~a2c_compiled.environments.TensorEnvironments`;
* a function of ``num_envs`` and ``seed`` that returns a gymnasium vector environment with autoreset mode SAME_STEP or NEXT_STEP, or
  :class:`~a2c_compiled.environments.Environments`;
* ``"module:X"``, where ``X`` is such a class or function in ``module``. If the module has no attribute ``X``, importing the module must
  register a gymnasium environment with this name.
"""

ENVPOOL = "envpool"


def resolved(source: Any) -> EnvironmentSource:
    """Returns the class or function that ``"module:X"`` names; returns any other source unchanged.

    Raises:
        ValueError: the module cannot be imported, or its attribute ``X`` is not callable.
        TypeError: ``source`` is neither a name nor callable.
    """
    if not isinstance(source, str):
        if not callable(source):
            raise TypeError(f"env_id: expected a name, a class or a function, got {described(source)}")
        return source
    module, name = module_of(source), source.rpartition(":")[2]
    if not module:
        return source
    try:
        own = getattr(importlib.import_module(module), name, source)
    except ImportError as error:
        # Another module that this one imports may be missing.
        remedy = (
            f"; run the command in the folder of {module}.py, or set PYTHONPATH"
            if getattr(error, "name", None) == module
            else ""
        )
        raise ValueError(f"env: expected a module that can be imported, got {source!r} ({error}){remedy}") from error
    if own is not source and not callable(own):
        raise ValueError(
            f"env: expected a gymnasium.Env class, a TensorEnvironments class or a function of num_envs and seed, got {source!r},"
            f" which is {described(own)}"
        )
    return own


def module_of(env_id: str) -> str:
    """Returns the module that must be imported for ``"module:X"``. Returns an empty string for other names and for envpool's."""
    module = env_id.rpartition(":")[0]
    return "" if module == ENVPOOL else module


def importable_name(source: EnvironmentSource) -> Optional[str]:
    """Returns the name from which another process makes the same environments: ``source`` itself if it is a name, else ``"module:X"``.

    Returns None for a class or function that is not an attribute of an importable module.
    """
    if isinstance(source, str):
        return source
    module, name = getattr(source, "__module__", None), getattr(source, "__qualname__", "")
    is_importable = module != "__main__" and getattr(sys.modules.get(str(module)), name, None) is source
    return f"{module}:{name}" if is_importable else None


def is_registered(source: EnvironmentSource) -> TypeGuard[str]:
    """Returns whether ``source`` is the name of an environment that gymnasium has, not envpool."""
    return isinstance(source, str) and source.rpartition(":")[0] != ENVPOOL


def is_environment_class(source: EnvironmentSource) -> TypeGuard[type[gymnasium.Env]]:
    """Returns whether ``source`` is a class of single environments. envpool's classes derive from both Env and VectorEnv."""
    return isinstance(source, type) and issubclass(source, gymnasium.Env) and not issubclass(source, VectorEnv)


def is_tensor_class(source: EnvironmentSource) -> TypeGuard[type[TensorEnvironments]]:
    """Returns whether ``source`` is a class of environments written in torch."""
    return isinstance(source, type) and issubclass(source, TensorEnvironments)


def is_function(source: EnvironmentSource) -> TypeGuard[EnvironmentFunction]:
    """Returns whether ``source`` is called with the number of environments and a seed."""
    return not (isinstance(source, str) or is_environment_class(source) or is_tensor_class(source))
