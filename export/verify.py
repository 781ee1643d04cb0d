"""Exported files against eager."""

import warnings
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Union

import numpy as np
import onnx
import onnxruntime
import torch

from a2c_compiled.export.call import named_outputs
from a2c_compiled.export.recorded import load_cases

Runner = Callable[[Dict[str, np.ndarray]], Dict[str, np.ndarray]]

# Largest error relative to the largest magnitude in the output, or to 1 if that is larger; whole numbers are to be equal. Far more than one
# operation rounds, because an advantage adds up, over an episode, the rounding of values many times its size.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-4, np.dtype(np.float16): 5e-3}


class OutputError(NamedTuple):
    """Largest error of an output over all cases, absolute, and relative to the largest magnitude of the output (at least 1)."""

    absolute: float
    relative: float
    passed: bool


_DIFFERENT_KIND = OutputError(float("inf"), float("inf"), False)
"""Of an output of another shape or dtype."""


class Report(NamedTuple):
    """What :func:`verify` found.

    Attributes:
        path: of the file.
        shapes: of the first input, case by case.
        outputs: errors by output.
        random: outputs that are others at every call, like the entropy that a loss estimates from samples. Of these shape and dtype
            alone are compared.
    """

    path: Path
    shapes: List[List[int]]
    outputs: Dict[str, OutputError]
    random: List[str]

    @property
    def passed(self) -> bool:
        """Whether every output is within tolerance."""
        return all(error.passed for error in self.outputs.values())

    def __str__(self) -> str:
        """A line for the file and one for each output."""
        lines = [f"{self.path}: {'equal to eager' if self.passed else 'DIFFERS FROM EAGER'} at {len(self.shapes)} shapes"]
        for name, error in self.outputs.items():
            lines.append(
                f"  {name:<20} absolute {error.absolute:8.1e}  relative {error.relative:8.1e}{'' if error.passed else '  !'}"
            )
        lines += [f"  {name:<20} random: shape and dtype alone compared" for name in self.random]
        return "\n".join(lines)


def verify(path: Union[str, Path]) -> Report:
    """Run an exported file at shapes other than the example's, and hold it against what eager answered when it was exported.

    ONNX files run in onnxruntime on the CPU, after a full ``onnx.checker`` check; TorchScript files in torch.

    Args:
        path: of a ``.onnx`` or ``.pt`` file with its ``.cases.npz`` beside it.

    Raises:
        ValueError: the file is missing, of another kind, unreadable, or without its cases, or its inputs or outputs are other ones.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: expected an exported file, found nothing at {path}")
    runners = {".onnx": _onnx_runner, ".pt": _torchscript_runner}
    if path.suffix not in runners:
        raise ValueError(f"path: expected a file ending in {' or '.join(runners)}, got {path}")
    cases = load_cases(path)
    try:
        run = runners[path.suffix](path)
        answers = [run(case.inputs) for case in cases]
    except Exception as error:
        raise ValueError(f"{path}: does not run ({error})") from error
    errors: Dict[str, OutputError] = {}
    for case, answer in zip(cases, answers, strict=True):
        if sorted(answer) != sorted({**case.outputs, **case.random}):
            raise ValueError(f"{path}: expected outputs {[*case.outputs, *case.random]}, got {list(answer)}")
        for name, expected in case.outputs.items():
            errors[name] = _worst(errors.get(name), _error(answer[name], expected))
        for name, drawn in case.random.items():
            if answer[name].shape != drawn.shape or answer[name].dtype != drawn.dtype:
                errors[name] = _DIFFERENT_KIND
    random = sorted({name for case in cases for name in case.random})
    return Report(path, [list(next(iter(case.inputs.values())).shape) for case in cases], errors, random)


def _error(actual: np.ndarray, expected: np.ndarray) -> OutputError:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return _DIFFERENT_KIND
    if not expected.size:
        return OutputError(0.0, 0.0, True)
    wide_actual, wide_expected = actual.astype(np.float64), expected.astype(np.float64)
    same = (wide_actual == wide_expected) | (np.isnan(wide_actual) & np.isnan(wide_expected))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(wide_actual - wide_expected))
    absolute = float(np.nan_to_num(difference, nan=np.inf).max())
    finite = np.abs(wide_expected[np.isfinite(wide_expected)])
    relative = absolute / max(1.0, float(finite.max(initial=0.0)))
    return OutputError(absolute, relative, relative <= TOLERANCE.get(expected.dtype, 0.0))


def _worst(one: OutputError | None, other: OutputError) -> OutputError:
    if one is None:
        return other
    return OutputError(max(one.absolute, other.absolute), max(one.relative, other.relative), one.passed and other.passed)


def _onnx_runner(path: Path) -> Runner:
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    read = {value.name for value in session.get_inputs()}

    def run(inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        feed = {name: array for name, array in inputs.items() if name in read}
        return dict(zip(names, session.run(None, feed), strict=True))

    return run


def _torchscript_runner(path: Path) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu")

    @torch.no_grad()
    def run(inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        result = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in named_outputs(result).items()}

    return run
