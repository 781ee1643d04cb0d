"""Reference outputs: the outputs of eager mode at several shapes, stored beside an exported file, for comparison on any machine.

``policy.onnx`` has ``policy.onnx.cases.npz``, with these arrays:

- ``<case>/inputs/<name>``: an input.
- ``<case>/outputs/<name>``: an output.
- ``<case>/random/<name>``: an output that differs between calls, because the module draws random numbers.
- ``every case/inputs/<name>``: an input that is the same in all cases.

The name of a case states its sizes and what is extreme about its data.
"""

from pathlib import Path
from typing import Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from torch import Tensor

from a2c_compiled._files import atomic_file
from a2c_compiled.export.tracing.call import Call, InputsByName
from a2c_compiled.export.tracing.errors import ExportError

# Sizes of the first two dimensions that may vary. The sizes of the example are unlikely to be among them.
_SIZES: Sequence[Tuple[int, int]] = ((1, 1), (67, 5), (1, 7), (11, 1), (3, 2), (128, 19))
_SIZES_WITH_EXTREME_DATA = (9, 4)
# Size of every further dimension that may vary.
_FURTHER_SIZE = 3
# Inputs that are multiplied by _SCALE in the case of large numbers. The factor drives logits, values and advantages to extremes.
_SCALED = ("observation", "next_observation", "reward", "state_value", "next_state_value")
_SCALE = 100.0
_EVERY_CASE = "every case"
# Case number _MIN_CASES + 1 and later ones are left out once the arrays take more bytes than _MAX_BYTES: the training step of a large
# network returns all parameters.
_MIN_CASES = 2
_MAX_BYTES = 2**25


class Case(NamedTuple):
    """One reference case: the inputs of a call, and the outputs of eager mode.

    Attributes:
        inputs: arrays by input name.
        outputs: outputs that are the same in every call, by name.
        random: outputs that depend on random numbers, by name.
    """

    inputs: Dict[str, np.ndarray]
    outputs: Dict[str, np.ndarray]
    random: Dict[str, np.ndarray]


def cases_path(path: Path) -> Path:
    """Returns the path of the reference cases of an exported file."""
    return path.with_name(f"{path.name}.cases.npz")


def record_cases(
    call: Call, path: Path, input_names: Optional[Mapping[str, str]] = None, output_names: Optional[Sequence[str]] = None
) -> None:
    """Computes the outputs of eager mode at several shapes other than the example's, and stores them beside ``path``.

    Args:
        call: module and example inputs.
        path: path of the exported file.
        input_names: names of the inputs that the file has, by their names in ``call``. None: all inputs of ``call``, with their names.
        output_names: names of the file's outputs. None: the names that the module returns.

    Raises:
        ValueError: the module does not run at these shapes.
        ExportError: the outputs depend on earlier calls.
    """
    generator = torch.Generator().manual_seed(0)
    same = {name: tensor for name, tensor in call.inputs.items() if not any(call.axes[name])}
    if isinstance(call.module, InputsByName):
        same = {name: tensor for name, tensor in call.module.varied(call.inputs, generator).items() if name in same}
    arrays = {f"{_EVERY_CASE}/inputs/{name}": tensor.cpu().numpy() for name, tensor in same.items()}
    for i, (label, inputs) in enumerate(_varied(call, same, generator)):
        if i >= _MIN_CASES and sum(array.nbytes for array in arrays.values()) > _MAX_BYTES:
            break
        others = {name: tensor for name, tensor in inputs.items() if tensor is not same.get(name)}
        arrays |= {f"{label}/inputs/{name}": tensor.cpu().numpy() for name, tensor in others.items()}
        outputs, random = _eager_outputs(call, label, inputs)
        for name, (own_name, tensor) in zip(output_names or outputs, outputs.items(), strict=True):
            arrays[f"{label}/{'random' if own_name in random else 'outputs'}/{name}"] = tensor.cpu().numpy()
    if input_names is not None:
        arrays = {own: array for key, array in arrays.items() if (own := _renamed(key, input_names))}
    with atomic_file(cases_path(path)) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def _renamed(key: str, input_names: Mapping[str, str]) -> Optional[str]:
    """Returns the key of an array with the name of the input in the file; None if the file lacks the input."""
    label, kind, name = key.split("/", 2)
    if kind != "inputs":
        return key
    return f"{label}/{kind}/{input_names[name]}" if name in input_names else None


def _varied(call: Call, same: Dict[str, Tensor], generator: torch.Generator) -> Iterator[Tuple[str, Dict[str, Tensor]]]:
    """Yields pairs of a case name and inputs: several sizes first, then extreme data.

    ``same`` holds the inputs without dimensions that may vary in size.
    """

    def resized(first: Tuple[int, int]) -> Tuple[str, Dict[str, Tensor]]:
        """Returns the name and the inputs of a case. ``first``: sizes of the first two dimensions that may vary."""
        sizes = dict(zip(call.axis_names, [*first, *[_FURTHER_SIZE] * len(call.axis_names)], strict=False))
        label = " ".join(f"{axis}={size}" for axis, size in sizes.items()) or "fixed sizes"
        return label, {**call.resized(sizes, generator), **same}

    # The dict drops repeated names: with fewer than two dimensions that may vary, several entries of _SIZES give the same sizes.
    yield from dict(resized(first) for first in _SIZES).items()
    label, inputs = resized(_SIZES_WITH_EXTREME_DATA)
    if any(tensor is not call.inputs[name] for name, tensor in same.items()):
        yield f"{label}, as exported", {**inputs, **{name: call.inputs[name] for name in same}}
    for what, flags in _flags(inputs, generator):
        yield f"{label}, {what}", {**inputs, **flags}
    scaled = [name for name in _SCALED if name in inputs and inputs[name].is_floating_point()]
    if scaled:
        yield f"{label}, large numbers", {**inputs, **{name: _SCALE * inputs[name] for name in scaled}}


def _flags(inputs: Dict[str, Tensor], generator: torch.Generator) -> Iterator[Tuple[str, Dict[str, Tensor]]]:
    """Yields pairs of a name and flags: other ends of episodes, and another mask. Only inputs of dtype bool are flags."""
    inputs = {name: tensor for name, tensor in inputs.items() if tensor.dtype == torch.bool}

    def some(name: str) -> Tensor:
        """Returns random flags in the shape of an input. Each is True with probability 0.4."""
        return torch.rand(inputs[name].shape, generator=generator).to(inputs[name].device) < 0.4

    if "done" in inputs:
        done, all_done = some("done"), torch.ones_like(inputs["done"])
        terminated = {"terminated": inputs["terminated"]} if "terminated" in inputs else {}
        yield "some steps end", {"done": done, **{name: done & some(name) for name in terminated}}
        yield "every step ends", {"done": all_done, **dict.fromkeys(terminated, all_done)}
        yield "every step is cut short", {"done": all_done, **dict.fromkeys(terminated, ~all_done)}
        yield "no step ends", {"done": ~all_done, **dict.fromkeys(terminated, ~all_done)}
    if "mask" in inputs:
        yield "some steps count", {"mask": some("mask")}


def _eager_outputs(call: Call, label: str, inputs: Dict[str, Tensor]) -> Tuple[Dict[str, Tensor], Set[str]]:
    """Returns the outputs of eager mode, and the names of the outputs that depend on random numbers."""
    try:
        first, repeated, reseeded = (_seeded(call, inputs, seed) for seed in (0, 0, 1))
    except Exception as error:
        raise ValueError(
            f"dynamic_axes: the module does not run at sizes {label}; name those leading dimensions that may vary ({error})"
        ) from error
    for name, tensor in first.items():
        if not _equal(tensor, repeated[name]):
            raise ExportError(
                f"{type(call.module).__name__} cannot be exported: two calls with the same inputs and random seed return different {name},"
                " so the module keeps state between calls, which a graph cannot do"
            )
    return first, {name for name, tensor in first.items() if not _equal(tensor, reseeded[name])}


def _seeded(call: Call, inputs: Dict[str, Tensor], seed: int) -> Dict[str, Tensor]:
    """Returns the outputs of eager mode under a random seed. The caller's random state is unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return call.eager(inputs)


def load_cases(path: Path) -> Dict[str, Case]:
    """Returns the reference cases of an exported file, by name.

    Raises:
        ValueError: the file has no reference cases, or they cannot be read.
    """
    cases: Dict[str, Case] = {}
    try:
        # Opened here, because np.load does not close a file that it cannot read.
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
    """Returns whether two tensors are equal. NaN equals NaN."""
    return np.array_equal(one.cpu().numpy(), other.cpu().numpy(), equal_nan=True)
