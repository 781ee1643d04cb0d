"""Converts TorchRL's action distributions to distributions of this library, and finds their parameters in the actor's output."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from tensordict.nn import ProbabilisticTensorDictModule
from tensordict.utils import unravel_key
from torch import Tensor, fx
from torchrl.modules import distributions as theirs

from a2c_compiled import distributions as ours
from a2c_compiled.integrations.torchrl.module_chains import Chain

# So small that it has no effect, because TorchRL has no lower bound for the entry ``scale``.
_MIN_SCALE = torch.finfo(torch.float32).tiny

# By TorchRL's class: this library's class and the names of TorchRL's parameters.
_CHOICES: Dict[Any, Tuple[Callable[[int], ours.Distribution], Tuple[str, ...]]] = {
    torch.distributions.Categorical: (ours.Categorical, ("logits",)),
    torch.distributions.OneHotCategorical: (ours.OneHotCategorical, ("logits",)),
    theirs.OneHotCategorical: (ours.OneHotCategorical, ("logits",)),
    theirs.MaskedCategorical: (ours.MaskedCategorical, ("logits", "mask")),
    theirs.MaskedOneHotCategorical: (ours.MaskedOneHotCategorical, ("logits", "mask")),
    theirs.Ordinal: (ours.Ordinal, ("scores",)),
    theirs.OneHotOrdinal: (ours.OneHotOrdinal, ("scores",)),
}
# By TorchRL's class: this library's class and the names of the options that both have. The parameters are loc and scale.
_VECTORS: Dict[Any, Tuple[Callable[..., ours.Distribution], Tuple[str, ...]]] = {
    theirs.IndependentNormal: (ours.Normal, ()),
    theirs.TanhNormal: (ours.TanhNormal, ("tanh_loc", "upscale", "low", "high")),
    theirs.TruncatedNormal: (ours.TruncatedNormal, ("tanh_loc", "upscale", "low", "high")),
}
# Values of TorchRL's options that have no effect here. The options describe a vector of actions, or how TorchRL samples or avoids overflow.
_WITHOUT_EFFECT: Dict[str, Tuple[Any, ...]] = {
    "event_dim": (1,),
    "event_dims": (1, None),
    "safe_tanh": (True, False),
    "validate_args": (True, False, None),
    "neg_inf": (float("-inf"),),
    "padding_value": (None,),
    "use_cross_entropy": (True, False),
}
# Options that have no effect with any value: the gradient of samples, and options that IndependentNormal accepts but does not use.
_ANY_VALUE = ("grad_method", "tanh_loc", "upscale")


def converted_distribution(
    module: ProbabilisticTensorDictModule, chain: Chain, num_params: Optional[int]
) -> Tuple[ours.Distribution, fx.Node]:
    """Converts the distribution of ``module``.

    Args:
        module: TorchRL's distribution module.
        chain: the modules before ``module``, with the entries that these modules write.
        num_params: number of actions or dimension of the action. None reads the number from the actor's last layer.

    Returns:
        The distribution, and the node of ``chain`` that computes its parameters.

    Raises:
        TypeError: this library has no such distribution.
        ValueError: a parameter or option of the distribution is not supported, or ``num_params`` is None and cannot be read from the
            actor's last layer.
    """
    kind, options = module.distribution_class, dict(module.distribution_kwargs)
    keys = {name: unravel_key(key) for name, key in zip(module.dist_keys, module.in_keys, strict=True)}
    if kind in _CHOICES:
        make_choice, names = _CHOICES[kind]
        _check_supported(kind, keys, names, options, ())
        nodes = [chain.node(keys[name]) for name in names]
        n = chain.width(keys[names[0]]) if num_params is None else num_params
        return make_choice(_required(n)), chain.concatenated(nodes)
    if kind not in _VECTORS:
        supported = ", ".join(sorted({supported_kind.__name__ for supported_kind in (*_CHOICES, *_VECTORS)}))
        raise TypeError(f"distribution_class: expected one of {supported}, got {getattr(kind, '__name__', kind)}")
    make, allowed = _VECTORS[kind]
    _check_supported(kind, keys, ("loc", "scale"), options, allowed)
    shared_options = {name: _plain(options[name]) for name in allowed if name in options}
    raw = chain.raw_scales.get((keys["loc"], keys["scale"]))
    if raw is not None:
        dim = raw.dim if num_params is None else num_params
        return make(_required(dim), scale_mapping=raw.scale_mapping, scale_lb=raw.scale_lb, **shared_options), raw.node
    dim = num_params if num_params is not None else chain.width(keys["loc"])
    params = chain.concatenated([chain.node(keys["loc"]), chain.node(keys["scale"])])
    return make(_required(dim), scale_mapping="identity", scale_lb=_MIN_SCALE, **shared_options), params


def _check_supported(
    kind: Any, keys: Dict[str, Any], names: Tuple[str, ...], options: Dict[str, Any], allowed: Tuple[str, ...]
) -> None:
    """Raises ValueError unless the parameters are ``names`` and each option is ``allowed`` or has no effect."""
    if set(keys) != set(names):
        raise ValueError(f"in_keys: expected {list(names)} for {kind.__name__}, got {list(keys)}")
    refused: List[str] = []
    for name, value in options.items():
        has_no_effect = name in _ANY_VALUE or value in _WITHOUT_EFFECT.get(name, ())
        if name not in allowed and not has_no_effect:
            refused.append(f"{name}={value!r}")
    if refused:
        raise ValueError(
            f"distribution_kwargs: expected options of {kind.__name__} that this library supports, got {', '.join(refused)}"
        )


def _required(size: Optional[int]) -> int:
    """Returns ``size``, or raises ValueError if it is None."""
    if size is None:
        raise ValueError(
            "size: expected the number of actions or their dimension, since the actor's last layer has no such size, got None"
        )
    return size


def _plain(value: Any) -> Any:
    """Converts a tensor to a number or a list."""
    return value.tolist() if isinstance(value, Tensor) else value
