"""The metadata in an exported file: versions, module, input shapes and hyperparameters."""

import json
import math
from typing import Any, Container, Dict, List, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

import a2c_compiled
from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled.distributions import Distribution
from a2c_compiled.export.tracing.call import Call

PREFIX = "a2c_compiled."
"""Prefix of every key of the metadata."""
METADATA = "a2c_compiled.json"
"""Name of the extra file that holds the metadata in ``.pt`` and ``.pt2`` files."""


class Names(NamedTuple):
    """Names in a file by the names in the module.

    Attributes:
        inputs: names of the inputs, by argument.
        outputs: names of the outputs, by field of the result, in order.
        weights: names of the parameters and buffers whose names are others in the file.
    """

    inputs: Dict[str, str]
    outputs: Dict[str, str]
    weights: Dict[str, str]


def describe(call: Call, names: Optional[Names] = None) -> Dict[str, str]:
    """Returns the metadata as a dict of strings. A value that is not a string is written as JSON.

    The keys, each with the prefix ``a2c_compiled.``:

    - ``version``, ``torch_version``: versions of this package and of torch.
    - ``module``: class of the exported module.
    - ``shapes``: shape of each input, with names for the dimensions that may vary in size.
    - ``hyperparameters``: for each :class:`~a2c_compiled._hyperparameters.CoefficientModule` in the module, by path: its class, the
      coefficients that are not inputs, and its options.
    - ``distribution``: the entry of ``hyperparameters`` for the action distribution, repeated. Absent without a distribution.
    - ``noise``: ``{"noise": kind}``, with the distribution's ``noise_kind``. Absent without an input ``noise`` or a ``noise_kind``.
    - ``renamed``: names in the file by the names in the module, of inputs, outputs and parameters whose names differ. Absent if there are
      none.

    JSON has no infinity and no NaN. They are the strings ``"inf"``, ``"-inf"`` and ``"nan"``.
    """
    names = names or Names({name: name for name in call.inputs}, {}, {})
    source = call.source
    parts = {path: part for path, part in source.named_modules() if isinstance(part, CoefficientModule)}
    described: Dict[str, Any] = {
        "version": a2c_compiled.__version__,
        "torch_version": torch.__version__,
        "module": type(call.module).__name__,
        "shapes": {names.inputs[name]: _named_shape(tensor, call.axes[name]) for name, tensor in call.inputs.items()},
        "hyperparameters": {path: _hyperparameters(part, call.inputs) for path, part in parts.items()},
    }
    distribution = next((part for part in parts.values() if isinstance(part, Distribution)), None)
    if distribution is not None:
        described["distribution"] = _hyperparameters(distribution, call.inputs)
        if "noise" in call.inputs and distribution.noise_kind is not None:
            described["noise"] = {"noise": distribution.noise_kind}
    renamed = {kind: {name: own for name, own in entries.items() if name != own} for kind, entries in names._asdict().items()}
    if any(renamed.values()):
        described["renamed"] = renamed
    return {f"{PREFIX}{key}": value if isinstance(value, str) else _json(value) for key, value in described.items()}


def _json(value: Any) -> str:
    """Returns ``value`` as JSON, with a string for each number that JSON lacks."""

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(entry) for key, entry in part.items()}
        if isinstance(part, (list, tuple)):
            return [finite(entry) for entry in part]
        return str(part) if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False)


def _named_shape(tensor: Tensor, axes: List[Optional[str]]) -> List[Union[str, int]]:
    """Returns the shape of ``tensor``, with the name of each dimension that may vary instead of its size."""
    named = [*axes, *[None] * (tensor.dim() - len(axes))]
    return [size if axis is None else axis for size, axis in zip(tensor.shape, named, strict=True)]


def _hyperparameters(module: nn.Module, inputs: Container[str]) -> Dict[str, Any]:
    """Returns the class of a module, its coefficients that are not inputs, and its options.

    The options are the public attributes that are None, bool, int, float or str, and the name and options of an optimizer.
    """
    entries: Dict[str, Any] = {"class": type(module).__name__}
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in inputs:
            entries[name] = buffer.tolist()
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if value is None or isinstance(value, (bool, int, float, str)):
            entries[name] = value
        elif hasattr(value, "options"):  # an optimizer
            entries |= {name: value.name, **value.options}
    return entries
