"""Eager's answers at several shapes, kept beside an exported file: what the file is held against, wherever it is.

``policy.onnx`` has ``policy.onnx.cases.npz``: arrays ``<case>/inputs/<name>`` and ``<case>/outputs/<name>``, or
``<case>/random/<name>`` for an output that is another one at every call.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from a2c_compiled._files import written_whole
from a2c_compiled.export.call import Call

# Sizes of the dimensions that may vary, the first two of them; none is an example's by chance alone.
_SIZES: Sequence[Tuple[int, int]] = ((1, 1), (1, 7), (11, 1), (3, 2), (67, 5), (128, 19))
_FURTHER_SIZE = 3


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
    generator = torch.Generator().manual_seed(0)
    arrays: Dict[str, np.ndarray] = {}
    for i, first in enumerate(_SIZES):
        sizes = dict(zip(call.axis_names, [*first, *[_FURTHER_SIZE] * len(call.axis_names)], strict=False))
        inputs = call.resized(sizes, generator)
        try:
            outputs, again = call.eager(inputs), call.eager(inputs)
        except Exception as error:
            raise ValueError(
                f"dynamic_axes: the module does not run at sizes {sizes}; name those leading dimensions that may vary ({error})"
            ) from error
        random = {name for name in outputs if not _same(outputs[name], again[name])}
        arrays |= {f"{i}/inputs/{name}": tensor.cpu().numpy() for name, tensor in inputs.items()}
        for name, tensor in outputs.items():
            arrays[f"{i}/{'random' if name in random else 'outputs'}/{name}"] = tensor.cpu().numpy()
    with written_whole(cases_path(path)) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def load_cases(path: Path) -> List[Case]:
    """The cases of an exported file.

    Raises:
        ValueError: there are none, or their file is unreadable.
    """
    cases: Dict[str, Case] = {}
    try:
        # Opened here, since np.load leaves a file open that it cannot read.
        with cases_path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                i, kind, name = key.split("/", 2)
                getattr(cases.setdefault(i, Case({}, {}, {})), kind)[name] = arrays[key]
    except FileNotFoundError:
        raise ValueError(f"{path}: expected {cases_path(path).name} beside it, which export writes, found none") from None
    except Exception as error:
        raise ValueError(f"{cases_path(path)}: not readable ({error})") from error
    if not cases:
        raise ValueError(f"{cases_path(path)}: expected at least one case, found none")
    return list(cases.values())


def _same(one: Tensor, other: Tensor) -> bool:
    return np.array_equal(one.cpu().numpy(), other.cpu().numpy(), equal_nan=True)
