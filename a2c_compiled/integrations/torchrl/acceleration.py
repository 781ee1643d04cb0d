"""Replaces functions and methods of TorchRL with faster ones, and restores them."""

import sys
from collections import deque
from functools import wraps
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torchrl.objectives import A2CLoss
from torchrl.objectives.value import functional
from torchrl.objectives.value.advantages import ValueEstimatorBase

from a2c_compiled.integrations.patching import Acceleration, Place, Replacement
from a2c_compiled.integrations.torchrl.objectives import call_value_nets, without_parameter_swap
from a2c_compiled.integrations.torchrl.value_functions import SERVED, ResultOrReason

Function = Callable[..., Any]


def accelerate() -> Acceleration:
    """Replaces TorchRL's value functions, and parts of its estimators and its A2C loss, with faster code of this library.

    >>> with accelerate() as acceleration:
    ...     loss(batch)["loss_objective"].backward()
    >>> acceleration.calls, acceleration.fallbacks

    - Functions of ``torchrl.objectives.value.functional``: one kernel for the forward pass and one for the backward pass, instead of a
      Python loop or a convolution. The functions are also replaced in modules that imported them by name before this call.
    - Value network of every estimator: one call for observations and next observations, instead of ``vmap`` over TensorDicts. One
      call requires a network of layers that accept any number of leading dimensions.
    - ``A2CLoss``: networks that already hold the loss's parameters are called without swapping the parameters first.

    Results and gradients equal TorchRL's within rounding. Results differ where TorchRL's are wrong: gradients with respect to gamma in the
    vectorised functions, gamma = 0, NaN after the end of an episode, and sums in half precision.

    For calls that this library does not support, TorchRL's function runs, and the call counts in ``fallbacks``. Calls that torch.compile
    traces are not counted; in them, TorchRL's vectorised functions and network calls are not replaced.

    Returns:
        :class:`~a2c_compiled.integrations.patching.Acceleration`, which counts from now on. Calls may be nested and repeated. TorchRL's
        functions are restored when the ``with`` block of every call has ended, or by :func:`restore`.
    """
    return _replacement.begin()


def restore() -> None:
    """Ends every acceleration and restores TorchRL's functions."""
    _replacement.end_all()


class _ReplacementInAllModules(Replacement):
    """A replacement that also replaces functions in every module that has imported them by name."""

    def begin(self) -> Acceleration:
        if not self._active:
            self._functions = dict(_METHODS)
            self._functions.update({(module, name): _FUNCTIONS.__getitem__ for module, name, _ in _references(_FUNCTIONS)})
        return super().begin()

    def _restore_attributes(self) -> None:
        super()._restore_attributes()
        for module, name, function in _references(_ORIGINALS):  # modules that imported a replacement while it was active
            setattr(module, name, _ORIGINALS[function])


def _references(functions: Dict[Function, Function]) -> Iterator[Tuple[ModuleType, str, Function]]:
    """Yields the module, the name and the function for each name in an imported module that refers to one of ``functions``.

    Searches a module again only if its number of names has changed, because a search of all modules takes tens of milliseconds.
    """
    wanted, searched_for = set(map(id, functions)), set(map(id, (*_FUNCTIONS, *_ORIGINALS)))
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            variables = vars(module)
            size, names = _searched.get(id(module), (-1, []))
            if size != len(variables) or module is sys.modules.get("__main__"):  # at a prompt, names are assigned again
                names = [name for name, value in list(variables.items()) if id(value) in searched_for]
                _searched[id(module)] = len(variables), names
            for name in names:
                if id(variables.get(name)) in wanted:
                    yield module, name, variables[name]


def _function(name: str, compute: Callable[..., ResultOrReason]) -> Function:
    """Returns the replacement for TorchRL's function ``name``: calls ``compute``, or TorchRL's function if ``compute`` returns a reason."""
    original = getattr(functional, name)
    vectorized = name.startswith("vec_")

    @wraps(original)
    def replacement(*arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            result = "TorchRL's vectorised function is traced" if vectorized else compute(*arguments, **named)
            return original(*arguments, **named) if isinstance(result, str) else result
        result = compute(*arguments, **named)
        if isinstance(result, str):
            _count(f"{name}: {result}")
            return original(*arguments, **named)
        _count(None)
        return result

    return replacement


def _count(reason: Optional[str]) -> None:
    """Counts a call, see :meth:`~a2c_compiled.integrations.patching.Replacement.count`."""
    _replacement.count(reason)


_replacement = _ReplacementInAllModules({})
_FUNCTIONS: Dict[Function, Function] = {getattr(functional, name): _function(name, compute) for name, compute in SERVED.items()}
_ORIGINALS = {replacement: original for original, replacement in _FUNCTIONS.items()}
_searched: Dict[int, Tuple[int, List[str]]] = {}
"""By the id of a module: its number of names when it was last searched, and the names that referred to one of the functions."""
_METHODS: Dict[Place, Callable[[Any], Any]] = {
    (ValueEstimatorBase, "_call_value_nets"): lambda original: call_value_nets(original, _count),
    (A2CLoss, "_log_probs"): lambda original: without_parameter_swap(original, "actor_network"),
    (A2CLoss, "loss_critic"): lambda original: without_parameter_swap(original, "critic_network"),
}

deque(_references({}), maxlen=0)  # the search of all modules takes place here, not in the first call of accelerate()
