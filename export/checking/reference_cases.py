"""Reference outputs: the outputs of eager mode at several shapes, stored beside an exported file, for comparison on any machine.

``policy.onnx`` has ``policy.onnx.cases.npz``, with these arrays:

- ``<case>/inputs/<name>``: an input.
- ``<case>/outputs/<name>``: an output.
- ``<case>/errors/<name>``: how far rounding errors move each element of that output, as powers of two in int16, see
  :mod:`a2c_compiled.export.checking.rounding`. Files that an earlier version wrote have none.
- ``<case>/random/<name>``: an output that depends on random numbers, from one call.
- ``<case>/samples/<name>``: that output from many calls, ``[calls, elements]``, see :mod:`a2c_compiled.export.checking.randomness`. Only
  one case has them, and none in a file that an earlier version wrote.
- ``every case/inputs/<name>``: an input that is the same in all cases.

The name of a case states its sizes and what is extreme about its data.
"""

from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from torch import Tensor

from a2c_compiled._files import atomic_file
from a2c_compiled.export.checking.randomness import random_outputs, samples
from a2c_compiled.export.checking.rounding import RoundingErrors
from a2c_compiled.export.on_device.runtime import read_arrays
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
        errors: errors of ``outputs`` by name, from :class:`~a2c_compiled.export.checking.rounding.RoundingErrors`.
        samples: samples of ``random`` by name, from :func:`~a2c_compiled.export.checking.randomness.samples`.
    """

    inputs: Dict[str, np.ndarray]
    outputs: Dict[str, np.ndarray]
    random: Dict[str, np.ndarray]
    errors: Dict[str, np.ndarray]
    samples: Dict[str, np.ndarray]

    @classmethod
    def empty(cls) -> "Case":
        """Returns a case without arrays."""
        return cls(*({} for _ in cls._fields))


def cases_path(path: Path) -> Path:
    """Returns the path of the reference cases of an exported file."""
    return path.with_name(f"{path.name}.cases.npz")


def record_cases(
    call: Call,
    path: Path,
    run: Optional[Callable[..., Any]],
    input_names: Optional[Mapping[str, str]] = None,
    output_names: Optional[Sequence[str]] = None,
) -> None:
    """Computes the outputs of eager mode at several shapes other than the example's, runs the file there, and stores them beside ``path``.

    Args:
        call: module and example inputs.
        path: path of the exported file.
        run: the file, as a function of tensors by input name, which must run in every case. None: the file is not run.
        input_names: names of the inputs that the file has, by their names in ``call``. None: all inputs of ``call``, with their names.
        output_names: names of the file's outputs. None: the names that the module returns.

    Raises:
        ValueError: the module does not run at these shapes.
        ExportError: the outputs depend on earlier calls, or the file does not run in a case.
    """
    generator = torch.Generator().manual_seed(0)
    same = {name: tensor for name, tensor in call.inputs.items() if not any(call.axes[name])}
    if isinstance(call.module, InputsByName):
        same = {name: tensor for name, tensor in call.module.varied(call.inputs, generator).items() if name in same}
    in_file = dict(zip(call.inputs, call.inputs, strict=True)) if input_names is None else input_names
    arrays = {f"{_EVERY_CASE}/inputs/{in_file[name]}": same[name].cpu().numpy() for name in same if name in in_file}
    errors = RoundingErrors(call)
    cases: List[_Recorded] = []
    for i, (label, inputs) in enumerate(_varied(call, same, generator)):
        if i >= _MIN_CASES and sum(array.nbytes for array in arrays.values()) > _MAX_BYTES:
            break
        read = {own: inputs[name].cpu() for name, own in in_file.items()}
        arrays |= {
            f"{label}/inputs/{in_file[name]}": read[in_file[name]].numpy()
            for name in in_file
            if inputs[name] is not same.get(name)
        }
        outputs, random = _eager_outputs(call, label, inputs)
        names = dict(zip(outputs, output_names or outputs, strict=True))
        certain = {name: tensor for name, tensor in outputs.items() if name not in random}
        for own_name, tensor in outputs.items():
            arrays[f"{label}/{'random' if own_name in random else 'outputs'}/{names[own_name]}"] = tensor.cpu().numpy()
        with torch.random.fork_rng():
            arrays |= {f"{label}/errors/{names[name]}": error for name, error in errors.of(inputs, certain).items()}
        if run is not None:
            _run_once(call, run, label, read)
        cases.append(_Recorded(label, inputs, random, names))
    small = sorted(cases, key=lambda case: sum(tensor.numel() for tensor in case.inputs.values()))
    # The second smallest case: several rows, and still fast. A module with two cases is large.
    chosen = small[1 if len(small) > _MIN_CASES else 0]
    if chosen.random:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = samples(lambda: call.eager(chosen.inputs), chosen.random)
        arrays |= {f"{chosen.label}/samples/{chosen.names[name]}": rows for name, rows in drawn.items()}
    with atomic_file(cases_path(path)) as temporary:
        np.savez_compressed(temporary, **arrays)


class _Recorded(NamedTuple):
    """A case that is recorded: its inputs, the names of its random outputs, and the file's name for each output."""

    label: str
    inputs: Dict[str, Tensor]
    random: Set[str]
    names: Dict[str, str]


@torch.no_grad()
def _run_once(call: Call, run: Callable[..., Any], label: str, inputs: Dict[str, Tensor]) -> None:
    """Runs an exported file on the inputs of a case. Raises ExportError if it does not run."""
    with torch.random.fork_rng():
        try:
            run(**inputs)
        except Exception as error:
            raise ExportError(
                f"{type(call.module).__name__} cannot be exported: eager mode runs at sizes {label}, but the exported file does not"
                f" ({summary(error)}). Write the module in other operations, or export to another format"
            ) from error


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
    scaled = [name for name in inputs if name.partition(".")[0] in _SCALED and inputs[name].is_floating_point()]
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
        first, repeated = (_seeded(call, inputs) for _ in range(2))
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
    return first, random_outputs(lambda: _seeded(call, inputs))


def _seeded(call: Call, inputs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Returns the outputs of eager mode under a fixed random seed. The caller's random state is unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return call.eager(inputs)


def load_cases(path: Path) -> Dict[str, Case]:
    """Returns the reference cases of an exported file, by name.

    Raises:
        ValueError: the file has no reference cases, or they cannot be read.
    """
    if not cases_path(path).is_file():
        raise ValueError(f"{path}: expected {cases_path(path).name} beside it, which export writes, found none")
    cases: Dict[str, Case] = {}
    for key, array in read_arrays(cases_path(path)).items():
        label, kind, name = [*key.split("/", 2), "", ""][:3]
        if kind not in Case._fields:
            raise ValueError(f"{cases_path(path)}: expected arrays of reference cases, got one with the name {key!r}")
        getattr(cases.setdefault(label, Case.empty()), kind)[name] = array
    same = cases.pop(_EVERY_CASE, Case.empty())
    if not cases:
        raise ValueError(f"{cases_path(path)}: expected at least one case, found none")
    # Earlier versions tested for randomness with two seeds. In some cases of a random output, both may have given the same.
    for name in {name for case in cases.values() for name in case.random}:
        for case in cases.values():
            if name in case.outputs:
                case.random[name] = case.outputs.pop(name)
    return {label: case._replace(inputs={**same.inputs, **case.inputs}) for label, case in cases.items()}


def summary(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors are equal. NaN equals NaN."""
    return np.array_equal(one.cpu().numpy(), other.cpu().numpy(), equal_nan=True)
