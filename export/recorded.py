"""Eager's answers at several shapes, kept beside an exported file: what the file is held against, wherever it is.

``policy.onnx`` has ``policy.onnx.cases.npz``: arrays ``<case>/inputs/<name>`` and ``<case>/outputs/<name>``, or
``<case>/random/<name>`` for an output that is another one at every call. Inputs that are the same in all cases are
``every case/inputs/<name>``. A case is named after its sizes and what is extreme about it.
"""

from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from a2c_compiled._files import written_whole
from a2c_compiled.export.call import Call

# Sizes of the dimensions that may vary, the first two of them; none is an example's by chance alone.
_SIZES: Sequence[Tuple[int, int]] = ((1, 1), (67, 5), (1, 7), (11, 1), (3, 2), (128, 19))
_EXTREME_SIZES = (9, 4)
_FURTHER_SIZE = 3
_ENDS = ("done", "terminated")
# What is multiplied for large numbers, which drive logits, values and advantages to extremes.
_SCALED = ("observation", "next_observation", "reward", "state_value", "next_state_value")
_SCALE = 100.0
_EVERY_CASE = "every case"
# A file that is larger than this after two cases gets no more of them: large networks answer with all their parameters.
_LARGE = 2**25


class Case(NamedTuple):
    """One call: inputs, and what eager answered, that which it answers every time apart from that which is random."""

    inputs: Dict[str, np.ndarray]
    outputs: Dict[str, np.ndarray]
    random: Dict[str, np.ndarray]


def cases_path(path: Path) -> Path:
    """Where the cases of an exported file are."""
    return path.with_name(f"{path.name}.cases.npz")


def record_cases(call: Call, path: Path) -> None:
    """Ask eager at several shapes other than the example's, and keep its answers for ``path``."""
    same = {name for name, axes in call.axes.items() if not any(axes)}
    arrays = {f"{_EVERY_CASE}/inputs/{name}": call.inputs[name].cpu().numpy() for name in same}
    for i, (label, inputs) in enumerate(_varied(call)):
        if i >= 2 and sum(array.nbytes for array in arrays.values()) > _LARGE:
            break
        outputs, again = _ask(call, label, inputs), _ask(call, label, inputs)
        arrays |= {f"{label}/inputs/{name}": tensor.cpu().numpy() for name, tensor in inputs.items() if name not in same}
        for name, tensor in outputs.items():
            kind = "outputs" if _equal(tensor, again[name]) else "random"
            arrays[f"{label}/{kind}/{name}"] = tensor.cpu().numpy()
    with written_whole(cases_path(path)) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def _varied(call: Call) -> Iterator[Tuple[str, Dict[str, Tensor]]]:
    """Inputs of several sizes, then extreme ones, each with a name for the case."""
    generator = torch.Generator().manual_seed(0)

    def resized(first: Tuple[int, int]) -> Tuple[str, Dict[str, Tensor]]:
        sizes = dict(zip(call.axis_names, [*first, *[_FURTHER_SIZE] * len(call.axis_names)], strict=False))
        label = " ".join(f"{axis}={size}" for axis, size in sizes.items()) or "fixed sizes"
        return label, call.resized(sizes, generator)

    yield from dict(resized(first) for first in _SIZES).items()
    label, inputs = resized(_EXTREME_SIZES)
    ends = [name for name in _ENDS if name in inputs]
    if ends:
        yield f"{label}, every step ends", {**inputs, **{name: torch.ones_like(inputs[name]) for name in ends}}
        yield f"{label}, no step ends", {**inputs, **{name: torch.zeros_like(inputs[name]) for name in ends}}
    scaled = [name for name in _SCALED if name in inputs and inputs[name].is_floating_point()]
    if scaled:
        yield f"{label}, large numbers", {**inputs, **{name: _SCALE * inputs[name] for name in scaled}}


def _ask(call: Call, label: str, inputs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    try:
        return call.eager(inputs)
    except Exception as error:
        raise ValueError(
            f"dynamic_axes: the module does not run at sizes {label}; name those leading dimensions that may vary ({error})"
        ) from error


def load_cases(path: Path) -> Dict[str, Case]:
    """The cases of an exported file, by name.

    Raises:
        ValueError: there are none, or their file is unreadable.
    """
    cases: Dict[str, Case] = {}
    try:
        # Opened here, since np.load leaves a file open that it cannot read.
        with cases_path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                label, kind, name = key.split("/", 2)
                getattr(cases.setdefault(label, Case({}, {}, {})), kind)[name] = arrays[key]
    except FileNotFoundError:
        raise ValueError(f"{path}: expected {cases_path(path).name} beside it, which export writes, found none") from None
    except Exception as error:
        raise ValueError(f"{cases_path(path)}: not readable ({error})") from error
    same = cases.pop(_EVERY_CASE, Case({}, {}, {}))
    if not cases:
        raise ValueError(f"{cases_path(path)}: expected at least one case, found none")
    return {label: case._replace(inputs={**same.inputs, **case.inputs}) for label, case in cases.items()}


def _equal(one: Tensor, other: Tensor) -> bool:
    return np.array_equal(one.cpu().numpy(), other.cpu().numpy(), equal_nan=True)
