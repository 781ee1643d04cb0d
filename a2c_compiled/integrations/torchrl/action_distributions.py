"""TorchRL's action distributions as those of this library, and the entries of the actor's output that they read."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from tensordict.nn import ProbabilisticTensorDictModule
from tensordict.utils import unravel_key
from torch import Tensor, fx
from torchrl.modules import distributions as theirs

from a2c_compiled import distributions as ours
from a2c_compiled.integrations.torchrl.module_chains import Chain

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # none in effect, as where TorchRL is given scales

# By class: ours, the distribution's parameters, and the options that both have.
_CHOICES: Dict[Any, Tuple[Callable[[int], ours.Distribution], Tuple[str, ...]]] = {
    torch.distributions.Categorical: (ours.Categorical, ("logits",)),
    torch.distributions.OneHotCategorical: (ours.OneHotCategorical, ("logits",)),
    theirs.OneHotCategorical: (ours.OneHotCategorical, ("logits",)),
    theirs.MaskedCategorical: (ours.MaskedCategorical, ("logits", "mask")),
    theirs.MaskedOneHotCategorical: (ours.MaskedOneHotCategorical, ("logits", "mask")),
    theirs.Ordinal: (ours.Ordinal, ("scores",)),
    theirs.OneHotOrdinal: (ours.OneHotOrdinal, ("scores",)),
}
_VECTORS: Dict[Any, Tuple[Callable[..., ours.Distribution], Tuple[str, ...]]] = {
    theirs.IndependentNormal: (ours.Normal, ()),
    theirs.TanhNormal: (ours.TanhNormal, ("tanh_loc", "upscale", "low", "high")),
    theirs.TruncatedNormal: (ours.TruncatedNormal, ("tanh_loc", "upscale", "low", "high")),
}
# Options that change nothing: what a vector of actions has anyway, and how torchrl guards against overflow or draws samples.
_WITHOUT_EFFECT: Dict[str, Tuple[Any, ...]] = {
    "event_dim": (1,),
    "event_dims": (1, None),
    "safe_tanh": (True, False),
    "validate_args": (True, False, None),
    "neg_inf": (float("-inf"),),
    "padding_value": (None,),
    "use_cross_entropy": (True, False),
}
# Options of any value: of samples' gradients; and those that IndependentNormal takes but, when it is made, does not use.
_ANY_VALUE = ("grad_method", "tanh_loc", "upscale")


def converted(
    module: ProbabilisticTensorDictModule, chain: Chain, num_params: Optional[int]
) -> Tuple[ours.Distribution, fx.Node]:
    """The distribution of ``module``, and the parameters that it takes from the entries of ``chain``.

    Raises:
        TypeError: there is no such distribution here.
        ValueError: an option or a parameter is none that it has, or ``num_params`` is missing.
    """
    kind, options = module.distribution_class, dict(module.distribution_kwargs)
    keys = {name: unravel_key(key) for name, key in zip(module.dist_keys, module.in_keys, strict=True)}
    if kind in _CHOICES:
        make_choice, names = _CHOICES[kind]
        _check(kind, keys, names, options, ())
        nodes = [chain.node(keys[name]) for name in names]
        n = chain.width(keys[names[0]]) if num_params is None else num_params
        return make_choice(_known(n)), chain.side_by_side(nodes)
    if kind not in _VECTORS:
        known = ", ".join(sorted({one.__name__ for one in (*_CHOICES, *_VECTORS)}))
        raise TypeError(f"distribution_class: expected one of {known}, got {getattr(kind, '__name__', kind)}")
    make, allowed = _VECTORS[kind]
    _check(kind, keys, ("loc", "scale"), options, allowed)
    given = {name: _plain(options[name]) for name in allowed if name in options}
    raw = chain.raw_scales.get((keys["loc"], keys["scale"]))
    if raw is not None:
        dim = raw.dim if num_params is None else num_params
        return make(_known(dim), scale_mapping=raw.scale_mapping, scale_lb=raw.scale_lb, **given), raw.node
    dim = num_params if num_params is not None else chain.width(keys["loc"])
    params = chain.side_by_side([chain.node(keys["loc"]), chain.node(keys["scale"])])
    return make(_known(dim), scale_mapping="identity", scale_lb=_SMALLEST_SCALE, **given), params


def _check(kind: Any, keys: Dict[str, Any], names: Tuple[str, ...], options: Dict[str, Any], allowed: Tuple[str, ...]) -> None:
    if set(keys) != set(names):
        raise ValueError(f"in_keys: expected {list(names)} for {kind.__name__}, got {list(keys)}")
    refused: List[str] = []
    for name, value in options.items():
        if (
            name not in allowed
            and name not in _ANY_VALUE
            and (name not in _WITHOUT_EFFECT or value not in _WITHOUT_EFFECT[name])
        ):
            refused.append(f"{name}={value!r}")
    if refused:
        raise ValueError(
            f"distribution_kwargs: expected options of {kind.__name__} that are here too, got {', '.join(refused)}"
        )


def _known(size: Optional[int]) -> int:
    if size is None:
        raise ValueError(
            "size: expected the number of actions or their dimension, which the actor's last layer does not say, got None"
        )
    return size


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
