"""What stands in for what in TorchRL, and the calls that put it there and back."""

import sys
from functools import wraps
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
from torchrl.objectives import A2CLoss
from torchrl.objectives.value import functional
from torchrl.objectives.value.advantages import ValueEstimatorBase

from a2c_compiled.integrations.patching import Acceleration, Place, Replacement
from a2c_compiled.integrations.torchrl.objectives import call_value_nets, in_place
from a2c_compiled.integrations.torchrl.value_functions import SERVED, Served

Function = Callable[..., Any]


def accelerate() -> Acceleration:
    """Have TorchRL's value functions, estimators and losses run on this library's kernels.

    >>> with accelerate() as acceleration:
    ...     loss(batch)["loss_objective"].backward()
    >>> acceleration.calls, acceleration.fallbacks

    - The functions of ``torchrl.objectives.value.functional``, by whatever name a module has imported them until now: one kernel forward
      and one backward, in place of a Python loop or a convolution.
    - The value network of every estimator: one call on both observations in place of ``vmap`` over TensorDicts, where the network is made
      of layers that take any number of leading dimensions.
    - ``A2CLoss``: networks that hold the loss's own parameters are called as they are.

    Results and gradients are TorchRL's to rounding, but right where TorchRL's are not: gradients to gamma of the vectorised functions,
    gamma = 0, NaN beyond the end of an episode, sums in half precision. Whatever is not served is left to TorchRL's own function and
    counted; nothing is counted in code that torch.compile traces, where the vectorised functions are TorchRL's own.

    Returns:
        :class:`~a2c_compiled.integrations.patching.Acceleration`, which counts from here on. Requests may be nested and repeated:
        everything is put back when the ``with`` block of each has ended, or with :func:`restore`.
    """
    return _replacement.begin()


def restore() -> None:
    """Put everything back, whoever asked for it."""
    _replacement.end_all()


class _Everywhere(Replacement):
    """As its base class, with functions that modules have imported by name."""

    def begin(self) -> Acceleration:
        if not self._open:
            self._functions = dict(_METHODS)
            self._functions.update({(module, name): _FUNCTIONS.__getitem__ for module, name, _ in _holders(_FUNCTIONS)})
        return super().begin()

    def _put_back(self) -> None:
        super()._put_back()
        for module, name, function in _holders(_ORIGINALS):  # who has imported a replacement in the meantime
            setattr(module, name, _ORIGINALS[function])


def _holders(functions: Dict[Function, Function]) -> Iterator[Tuple[ModuleType, str, Function]]:
    """Where in all modules one of ``functions`` stands: the module, the name there, and the function."""
    found = {id(function): function for function in functions}
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if id(value) in found:
                    yield module, name, value


def _function(name: str, serve: Callable[..., Served]) -> Function:
    original = getattr(functional, name)
    vectorized = name.startswith("vec_")

    @wraps(original)
    def replacement(*arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            found = "which form is traced is TorchRL's choice" if vectorized else serve(*arguments, **named)
            return original(*arguments, **named) if isinstance(found, str) else found
        found = serve(*arguments, **named)
        if isinstance(found, str):
            _count(f"{name}: {found}")
            return original(*arguments, **named)
        _count(None)
        return found

    return replacement


def _count(reason: Optional[str]) -> None:
    _replacement.count(reason)


_replacement = _Everywhere({})
_FUNCTIONS: Dict[Function, Function] = {getattr(functional, name): _function(name, serve) for name, serve in SERVED.items()}
_ORIGINALS = {replacement: original for original, replacement in _FUNCTIONS.items()}
_METHODS: Dict[Place, Callable[[Any], Any]] = {
    (ValueEstimatorBase, "_call_value_nets"): lambda original: call_value_nets(original, _count),
    (A2CLoss, "_log_probs"): lambda original: in_place(original, "actor_network"),
    (A2CLoss, "loss_critic"): lambda original: in_place(original, "critic_network"),
}
