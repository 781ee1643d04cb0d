"""torch.optim's functional forms as pure functions of (parameters, gradients, state, learning rate)."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Tuple

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from a2c_compiled._exporting import is_exporting

Slots = Dict[str, List[Tensor]]
"""For each kind of state, one tensor per parameter."""


@dataclass(frozen=True)
class OptimizerRule:
    """An update rule of torch.optim, in place on lists of tensors, with what it needs to be called.

    Attributes:
        function: torch's own.
        defaults: its options.
        slots: the kinds of state that it keeps, given its options.
        lists: what it takes after parameters and gradients, from the state and the counts of steps.
        fixed: what it takes by name that is no option here.
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
        lambda slots, steps: [slots["exp_avg"], slots["exp_avg_sq"], [], _exact(steps)],
        {"foreach": False, "fused": False, "amsgrad": False, "maximize": False, "capturable": False},
    )


def _exact(steps: List[Tensor]) -> List[Tensor]:
    """Adam's counts of updates, whose powers are to be those of float64: in float32 1 - 0.999 has four digits left.

    Eagerly torch reads them on the host as numbers, unless another thread compiles or exports, which its one flag for all threads says.
    In host memory and of float64 they are the same numbers then. In an exported graph they are tensors in any case.
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
        # A buffer of zeros is torch's first step: momentum * 0 + gradient.
        lambda slots, steps: [[*slots.get("momentum_buffer", [None] * len(steps))]],
        {"dampening": 0.0, "maximize": False, "foreach": False, "fused": False},
    ),
    # alpha and eps as A2C has used them since its first implementations.
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


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("momentum", "alpha", "eps", "weight_decay"):
        if name in options and not options[name] >= 0:
            raise ValueError(f"{name}: expected a number from 0 up, got {options[name]}")
    betas = options.get("betas", (0.0, 0.0))
    if not (isinstance(betas, (tuple, list)) and len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise ValueError(f"betas: expected two numbers from 0 to below 1, got {betas}")
    if options.get("nesterov") and not options["momentum"]:
        raise ValueError("nesterov: expected a momentum above 0 with it, got 0")


class FunctionalOptimizer:
    """One of torch.optim's optimizers without its object: new parameters and state out, nothing written in place.

    Args:
        name: ``"sgd"``, ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
        options: of that optimizer, by torch.optim's names: ``weight_decay`` for all; ``momentum`` and ``nesterov`` for SGD; ``alpha``,
            ``eps``, ``momentum`` and ``centered`` for RMSprop; ``betas`` and ``eps`` for Adam and AdamW. ``eps`` is 1e-5 by default.

    Raises:
        ValueError: there is no optimizer of that name, or an option is out of range.
        TypeError: it has no such option.
    """

    def __init__(self, name: str, **options: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(
                f"optimizer: expected a name, got {type(name).__name__}; with one of your own, compile the loss and step it"
            )
        if name not in RULES:
            raise ValueError(f"optimizer: expected one of {', '.join(map(repr, RULES))}, got {name!r}")
        self.name = name
        for option in options:
            if option not in self.rule.defaults:
                raise TypeError(f"{option}: expected one of {name}'s options {', '.join(self.rule.defaults)}, got {option!r}")
        self.options = {**self.rule.defaults, **options}
        _check_options(self.options)
        self.slots = self.rule.slots(self.options)

    @property
    def rule(self) -> OptimizerRule:
        """What updates; looked up, because functions in it do not pickle."""
        return RULES[self.name]

    def init(self, params: List[Tensor]) -> Slots:
        """The state before the first step."""
        return {slot: [torch.zeros_like(param) for param in params] for slot in self.slots}

    def update(
        self, params: List[Tensor], grads: List[Tensor], slots: Slots, step: Tensor, lr: Tensor
    ) -> Tuple[List[Tensor], Slots, Tensor]:
        """New parameters, state and step count. ``step`` and ``lr`` are 0-d tensors."""
        new_params = [param.detach().clone() for param in params]
        new_slots = {slot: [tensor.clone() for tensor in tensors] for slot, tensors in slots.items()}
        steps = [step.clone() for _ in params]  # torch counts them one by one, in place
        named = dict(self.options)
        if "betas" in named:
            named["beta1"], named["beta2"] = named.pop("betas")
        self.rule.function(new_params, grads, *self.rule.lists(new_slots, steps), **self.rule.fixed, **named, lr=lr)
        return new_params, new_slots, step + 1
