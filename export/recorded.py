"""Eager's answers at several shapes, kept beside an exported file: what the file is held against, wherever it is.

``policy.onnx`` has ``policy.onnx.cases.npz``: arrays ``<case>/inputs/<name>`` and ``<case>/outputs/<name>``.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from a2c_compiled._files import written_whole
from a2c_compiled.export.call import Call

# Sizes of the dimensions that may vary, the first two of them; none is an example's by chance alone.
_SIZES: Sequence[Tuple[int, int]] = ((1, 1), (1, 7), (11, 1), (3, 2), (67, 5), (128, 19))
_FURTHER_SIZE = 3


class Case(NamedTuple):
    """One call: inputs, and what eager answered."""

    inputs: Dict[str, np.ndarray]
    outputs: Dict[str, np.ndarray]


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
        for kind, tensors in (("inputs", inputs), ("outputs", call.eager(inputs))):
            arrays |= {f"{i}/{kind}/{name}": tensor.cpu().numpy() for name, tensor in tensors.items()}
    with written_whole(cases_path(path)) as temporary:
        np.savez_compressed(temporary, **arrays)


def load_cases(path: Path) -> List[Case]:
    """The cases of an exported file.

    Raises:
        ValueError: there are none, or their file is unreadable.
    """
    try:
        with np.load(cases_path(path), allow_pickle=False) as arrays:
            loaded = {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise ValueError(f"{path}: expected {cases_path(path).name} beside it, which export writes, found none") from None
    except Exception as error:
        raise ValueError(f"{cases_path(path)}: not readable ({error})") from error
    cases: Dict[int, Case] = {}
    for key, array in loaded.items():
        i, kind, name = key.split("/", 2)
        case = cases.setdefault(int(i), Case({}, {}))
        (case.inputs if kind == "inputs" else case.outputs)[name] = array
    return list(cases.values())
