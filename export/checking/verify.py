"""Exported files against eager."""

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator

from a2c_compiled.export.checking.reference_cases import Case, load_cases
from a2c_compiled.export.formats import aot, torchscript
from a2c_compiled.export.tracing.call import NEW, named_outputs

Runner = Callable[[Dict[str, np.ndarray]], Dict[str, np.ndarray]]

# Largest error relative to the largest magnitude in the output, or to 1 if that is larger; whole numbers are to be equal. Far more than one
# operation rounds, because an advantage adds up, over an episode, the rounding of values many times its size.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 3e-4, np.dtype(np.float16): 5e-3}
# What an update makes new is measured by how far it moved, the length of the error over that of the change: of a few small gradients an
# optimizer makes much, and of their rounding. But the change is taken for no less than this part of the whole, which is rounded too.
TOLERANCE_OF_CHANGE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 2e-3}
SMALLEST_CHANGE = 1e-4
# More than the reference evaluator convolves in a second.
_MANY_NUMBERS = 2**18
PASSED = "passed"


class OutputError(NamedTuple):
    """Largest error of an output over all cases: absolute, and relative to the largest magnitude of the output (at least 1).

    Of state that an update makes new, the length of the error relative to that of the change that the update makes.
    """

    absolute: float
    relative: float
    passed: bool

    def as_json(self) -> Dict[str, Any]:
        """By name."""
        return {name: None if value == float("inf") else value for name, value in self._asdict().items()}


_DIFFERENT_KIND = OutputError(float("inf"), float("inf"), False)
"""Of an output of another shape or dtype."""


class Report(NamedTuple):
    """What :func:`verify` found.

    Attributes:
        path: of the file.
        size: of the file and what belongs to it, in bytes.
        cases: what it was run on: sizes, and what is extreme about the data.
        outputs: errors by output.
        random: outputs that are others at every call, like the entropy that a loss estimates from samples. Of these shape and dtype
            alone are compared.
        checks: what else an ONNX file was put to, and ``"passed"``, or what it said instead, or ``"not run: ..."`` where that cannot be.
    """

    path: Path
    size: int
    cases: List[str]
    outputs: Dict[str, OutputError]
    random: List[str]
    checks: Dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every output is within tolerance, and every check that could be run passed."""
        checked = all(outcome == PASSED or outcome.startswith("not run") for outcome in self.checks.values())
        return checked and all(error.passed for error in self.outputs.values())

    @property
    def worst(self) -> float:
        """The largest relative error of any output."""
        return max((error.relative for error in self.outputs.values()), default=0.0)

    def __str__(self) -> str:
        """A line for the file, one for each output and one for each check."""
        lines = [f"{self.path}: {'equal to eager' if self.passed else 'DIFFERS FROM EAGER'} in {len(self.cases)} cases"]
        width = max(map(len, [*self.outputs, *self.random, *self.checks]), default=0)
        for name, error in self.outputs.items():
            failed = "" if error.passed else "  !"
            lines.append(f"  {name:<{width}}  absolute {error.absolute:8.1e}  relative {error.relative:8.1e}{failed}")
        lines += [f"  {name:<{width}}  random: shape and dtype alone compared" for name in self.random]
        lines += [f"  {name:<{width}}  {outcome}" for name, outcome in self.checks.items()]
        return "\n".join(lines)

    def as_json(self) -> Dict[str, Any]:
        """The same, of numbers, strings, lists and dicts; an error without bound is None, since JSON has no infinity."""
        fields = {**self._asdict(), "path": str(self.path), "passed": self.passed}
        return {**fields, "outputs": {name: error.as_json() for name, error in self.outputs.items()}}


def verify(path: Union[str, Path]) -> Report:
    """Run an exported file in several cases, and hold it against what eager answered when it was exported.

    The cases are shapes other than the example's, 1 included; steps of which some, all or none end or are cut short, or count; numbers a
    hundred times the example's. An update is tried on the state that it was exported with and on another, some way into training.

    ONNX files run in onnxruntime on the CPU. They are also put to ``onnx.checker`` with full checks and to strict shape inference, and run
    the smallest cases in onnx's reference evaluator. TorchScript files (``.pt``), programs (``.pt2``) and packages (``.aot.pt2``) run in
    torch.

    Args:
        path: of the file, with its ``.cases.npz`` beside it.

    Raises:
        ValueError: the file is missing, of another kind, unreadable, or without its cases, or its inputs or outputs are other ones.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: expected an exported file, found nothing at {path}")
    runner = next((runner for ending, runner in _RUNNERS.items() if path.name.endswith(ending)), None)
    if runner is None:
        raise ValueError(f"path: expected a file ending in {', '.join(_RUNNERS)}, got {path}")
    cases = load_cases(path)
    try:
        run, checks = runner(path)
        answers = {label: run(case.inputs) for label, case in cases.items()}
    except Exception as error:
        raise ValueError(f"{path}: does not run ({_summary(error)})") from error
    for label, case in cases.items():
        if sorted(answers[label]) != sorted({**case.outputs, **case.random}):
            raise ValueError(f"{path}: expected outputs {[*case.outputs, *case.random]}, got {list(answers[label])}")
    if path.suffix == ".onnx":
        checks["reference evaluator"] = _held_against_reference(path, cases)
    random = sorted({name for case in cases.values() for name in case.random})
    return Report(path, _size(path), list(cases), _errors(cases, answers), random, checks)


def is_exported(path: Path) -> bool:
    """Whether ``verify`` knows files of such a name."""
    return path.name.endswith(tuple(_RUNNERS))


def _errors(cases: Dict[str, Case], answers: Dict[str, Dict[str, np.ndarray]]) -> Dict[str, OutputError]:
    errors: Dict[str, OutputError] = {}
    for label, answer in answers.items():
        for name, expected in cases[label].outputs.items():
            before = cases[label].inputs.get(name.removeprefix(NEW)) if name.startswith(NEW) else None
            errors[name] = _worst(errors.get(name), _error(answer[name], expected, before))
        for name, drawn in cases[label].random.items():
            if answer[name].shape != drawn.shape or answer[name].dtype != drawn.dtype:
                errors[name] = _DIFFERENT_KIND
    return errors


def _error(actual: np.ndarray, expected: np.ndarray, before: Optional[np.ndarray]) -> OutputError:
    """Of an output; ``before`` is the state that it takes the place of, if it does."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return _DIFFERENT_KIND
    if not expected.size:
        return OutputError(0.0, 0.0, True)
    absolute = _largest_difference(actual, expected)
    magnitude = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    if before is None:
        relative = absolute / magnitude
        return OutputError(absolute, relative, relative <= TOLERANCE.get(expected.dtype, 0.0))
    moved = max(_distance(expected, before), SMALLEST_CHANGE * _distance(expected, np.zeros_like(expected)))
    relative = _distance(actual, expected) / moved if moved else absolute
    return OutputError(absolute, relative, relative <= TOLERANCE_OF_CHANGE.get(expected.dtype, 0.0))


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Infinite where either is not finite."""
    length = float(np.linalg.norm((one.astype(np.float64) - other.astype(np.float64)).ravel()))
    return length if np.isfinite(length) else float("inf")


def _largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Equal infinities and two NaNs differ by nothing, any other by infinity."""
    wide_one, wide_other = one.astype(np.float64), other.astype(np.float64)
    same = (wide_one == wide_other) | (np.isnan(wide_one) & np.isnan(wide_other))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(wide_one - wide_other))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())


def _worst(one: OutputError | None, other: OutputError) -> OutputError:
    if one is None:
        return other
    return OutputError(max(one.absolute, other.absolute), max(one.relative, other.relative), one.passed and other.passed)


def _onnx_runner(path: Path) -> Tuple[Runner, Dict[str, str]]:
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path, load_external_data=False)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said in the error
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        missing = sorted(set(inputs) - {value.name for value in session.get_inputs()})
        if missing:
            raise ValueError(f"expected inputs {list(inputs)}, got none for {missing}")
        return dict(zip(names, session.run(None, inputs), strict=True))

    return run, {"onnx.checker": PASSED, "strict shape inference": PASSED}


def _held_against_reference(path: Path, cases: Dict[str, Case]) -> str:
    """The reference evaluator's answer in the case of fewest numbers and in the next one, unless that has many: it runs in Python."""
    numbers = {label: sum(array.size for array in case.inputs.values()) for label, case in cases.items()}
    first, *others = sorted(cases, key=numbers.__getitem__)
    chosen = [first, *(label for label in others[:1] if numbers[label] <= _MANY_NUMBERS)]
    smallest = {label: cases[label] for label in chosen if not cases[label].random}
    if not smallest:
        return "not run: outputs are random"
    try:
        evaluator = ReferenceEvaluator(str(path))
        answers = {}
        for label, case in smallest.items():
            feed = {name: case.inputs[name] for name in evaluator.input_names}
            with np.errstate(all="ignore"):  # the logarithm of a probability of 0, for one
                answers[label] = dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))
    except Exception as error:
        return f"not run: {_summary(error)}"
    wrong = [name for name, error in _errors(smallest, answers).items() if not error.passed]
    return f"differs in {', '.join(wrong)}" if wrong else PASSED


def _in_torch(load: Callable[[Path], Callable[..., Any]]) -> Callable[[Path], Tuple[Runner, Dict[str, str]]]:
    def runner(path: Path) -> Tuple[Runner, Dict[str, str]]:
        module = load(path)

        @torch.no_grad()
        def run(inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
            result = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            return {name: tensor.numpy() for name, tensor in named_outputs(result).items()}

        return run, {}

    return runner


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.parent.glob(f"{path.name}.*.data")))


def _summary(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# By the end of a file's name, the longer ends first.
_RUNNERS: Dict[str, Callable[[Path], Tuple[Runner, Dict[str, str]]]] = {
    ".onnx": _onnx_runner,
    ".pt": _in_torch(torchscript.load),
    aot.AOT: _in_torch(aot.load_aot),
    aot.PT2: _in_torch(aot.load_pt2),
}
ENDINGS = tuple(_RUNNERS)
