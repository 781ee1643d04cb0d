"""The optimizers of torch.optim as pure functions of parameters, gradients, optimizer state and learning rate."""

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Tuple

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from a2c_compiled._exporting import is_exporting
from a2c_compiled._hyperparameters import NOT_NEGATIVE, Range
from a2c_compiled._kinds import described, flag

Slots = Dict[str, List[Tensor]]
"""Optimizer state, by the name that torch.optim uses (``"square_avg"``, ...): one tensor per parameter, of its shape and dtype."""


@dataclass(frozen=True)
class OptimizerRule:
    """A functional optimizer of torch.optim and how to call it.

    Attributes:
        function: torch's function, which updates lists of tensors in place.
        defaults: the options of the optimizer with their default values.
        slots: a function that returns the names of the optimizer state for given options.
        lists: a function that returns the positional arguments after parameters and gradients, given optimizer state and step counts.
        fixed: keyword arguments of ``function`` that are not options of this library.
    """

    function: Callable[..., None]
    defaults: Mapping[str, Any]
    slots: Callable[[Mapping[str, Any]], Tuple[str, ...]]
    lists: Callable[[Slots, List[Tensor]], List[List[Any]]]
    fixed: Mapping[str, Any]


def _rmsprop_slots(options: Mapping[str, Any]) -> Tuple[str, ...]:
    return (
        "square_avg",
        *(("momentum_buffer",) if options["momentum"] else ()),
        *(("grad_avg",) if options["centered"] else ()),
    )


def _adam_rule(function: Callable[..., None], weight_decay: float) -> OptimizerRule:
    return OptimizerRule(
        function,
        {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": weight_decay},
        lambda options: ("exp_avg", "exp_avg_sq"),
        lambda slots, steps: [slots["exp_avg"], slots["exp_avg_sq"], [], _adam_step_counts(steps)],
        {"foreach": False, "fused": False, "amsgrad": False, "maximize": False, "capturable": False},
    )


def _adam_step_counts(steps: List[Tensor]) -> List[Tensor]:
    """Returns the step counts for torch's Adam, so that it computes ``beta ** step`` in float64 in eager mode and in exported graphs.

    In float32, 1 - 0.999 has only four correct digits.

    - Under torch.compile, the counts are unchanged.
    - In an exported graph, they are float64 tensors.
    - In eager mode, torch reads the counts on the host as Python numbers, unless its flag for compilation is set. Another thread that
      compiles or exports sets this flag for all threads. Float64 tensors in host memory give the same results in both cases.
    """
    if torch.compiler.is_dynamo_compiling():
        return steps
    if is_exporting():
        return [step.double() for step in steps]
    return [torch.tensor(count, dtype=torch.float64, device="cpu") for count in [steps[0].item()] * len(steps)]


RULES: Dict[str, OptimizerRule] = {
    "sgd": OptimizerRule(
        sgd,
        {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        lambda options: ("momentum_buffer",) if options["momentum"] else (),
        # A buffer of zeros gives torch's first step: momentum * 0 + gradient.
        lambda slots, steps: [[*slots.get("momentum_buffer", [None] * len(steps))]],
        {"dampening": 0.0, "maximize": False, "foreach": False, "fused": False},
    ),
    # alpha and eps are the usual values for A2C.
    "rmsprop": OptimizerRule(
        rmsprop,
        {"alpha": 0.99, "eps": 1e-5, "momentum": 0.0, "centered": False, "weight_decay": 0.0},
        _rmsprop_slots,
        lambda slots, steps: [slots["square_avg"], slots.get("grad_avg", []), slots.get("momentum_buffer", []), steps],
        {"foreach": False, "maximize": False, "differentiable": False, "capturable": False, "has_complex": False},
    ),
    "adam": _adam_rule(adam, 0.0),
    "adamw": _adam_rule(adamw, 1e-2),
}


def _checked(options: Mapping[str, Any]) -> Dict[str, Any]:
    """Returns the options as Python numbers and bools. Raises ValueError if one is out of range, TypeError if it is of a wrong type."""
    checked: Dict[str, Any] = {}
    for name, value in options.items():
        if name in ("nesterov", "centered"):
            checked[name] = flag(name, value)
        elif name == "betas":
            if not isinstance(value, (tuple, list)):
                raise TypeError(f"betas: expected two numbers, got {described(value)}")
            if len(value) != 2:
                raise ValueError(f"betas: expected two numbers from 0 to below 1, got {value}")
            checked[name] = tuple(_BELOW_1.number(name, beta) for beta in value)
        else:
            checked[name] = NOT_NEGATIVE.number(name, value)
    if checked.get("nesterov") and not checked["momentum"]:
        raise ValueError("nesterov: expected a momentum above 0 with nesterov=True, got momentum 0")
    return checked


_BELOW_1 = Range("two numbers from 0 to below 1", 0.0, math.nextafter(1.0, 0.0))


class FunctionalOptimizer:
    """An optimizer of torch.optim as a pure function: it returns new parameters and new optimizer state, and writes nothing in place.

    Args:
        name: ``"sgd"``, ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
        options: options of the optimizer, with torch.optim's names and these defaults:

            - SGD: ``momentum=0``, ``nesterov=False``, ``weight_decay=0``.
            - RMSprop: ``alpha=0.99``, ``eps=1e-5``, ``momentum=0``, ``centered=False``, ``weight_decay=0``.
            - Adam: ``betas=(0.9, 0.999)``, ``eps=1e-5``, ``weight_decay=0``.
            - AdamW: as Adam, with ``weight_decay=0.01``.

    Raises:
        ValueError: the name is unknown, or an option is out of range.
        TypeError: ``name`` is not a string, the optimizer has no such option, or an option has a wrong type.
    """

    def __init__(self, name: str, **options: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(
                f"optimizer: expected a name, got {described(name)}; to use an optimizer object, compile the loss and"
                " write the training loop yourself"
            )
        if name not in RULES:
            raise ValueError(f"optimizer: expected one of {', '.join(map(repr, RULES))}, got {name!r}")
        self.name = name
        for option in options:
            if option not in self.rule.defaults:
                remedy = "; the learning rate is lr" if option == "learning_rate" else ""
                expected = f"one of {name}'s options {', '.join(self.rule.defaults)}"
                raise TypeError(f"{option}: expected {expected}, got {option!r}{remedy}")
        self.options = _checked({**self.rule.defaults, **options})
        self.slots = self.rule.slots(self.options)

    @property
    def rule(self) -> OptimizerRule:
        """The update rule. It is looked up by name, because its functions cannot be pickled."""
        return RULES[self.name]

    def init(self, params: List[Tensor]) -> Slots:
        """Returns the optimizer state before the first step: for each name of the state, one tensor of zeros per parameter."""
        return {slot: [torch.zeros_like(param) for param in params] for slot in self.slots}

    def update(
        self, params: List[Tensor], grads: List[Tensor], slots: Slots, step: Tensor, lr: Tensor
    ) -> Tuple[List[Tensor], Slots, Tensor]:
        """Computes one optimizer step.

        Args:
            params: current parameters.
            grads: one gradient per parameter, with the parameter's shape.
            slots: optimizer state.
            step: 0-d, float32: number of steps before this one.
            lr: 0-d, floating point: learning rate.

        Returns:
            New parameters, new optimizer state and ``step + 1``.
        """
        new_params = [param.detach().clone() for param in params]
        new_slots = {slot: [tensor.clone() for tensor in tensors] for slot, tensors in slots.items()}
        steps = [step.clone() for _ in params]  # torch increments one count per parameter, in place
        named = dict(self.options)
        if "betas" in named:
            named["beta1"], named["beta2"] = named.pop("betas")
        self.rule.function(new_params, grads, *self.rule.lists(new_slots, steps), **self.rule.fixed, **named, lr=lr)
        return new_params, new_slots, step + 1
