"""Compares the outputs of an exported file with the reference outputs of eager mode."""

from typing import Any, Dict, Mapping, NamedTuple, Optional

import numpy as np

from a2c_compiled.export.checking.reference_cases import Case
from a2c_compiled.export.tracing.call import NEW

# Largest error, divided by the larger of 1 and the largest magnitude in the output. Integers must be equal.
# The tolerance is far above the rounding error of one operation: an advantage sums, over an episode, the rounding errors of values
# that are much larger than the advantage.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 3e-4, np.dtype(np.float16): 5e-3}
# For the new state of a training step: norm of the error, divided by the norm of the change that the training step makes.
# An optimizer amplifies small gradients, and their rounding errors with them.
# The change counts as at least SMALLEST_CHANGE times the norm of the state, because the state itself is rounded.
TOLERANCE_OF_CHANGE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 2e-3}
SMALLEST_CHANGE = 1e-4
PASSED = "passed"


class OutputError(NamedTuple):
    """Largest error of one output over all cases.

    Attributes:
        absolute: largest absolute error.
        relative: largest absolute error, divided by the larger of 1 and the largest magnitude in the output. For the new state of a
            training step (``new.<name>``): norm of the error, divided by the norm of the change that the training step makes.
        passed: True if the output is within tolerance in every case.
    """

    absolute: float
    relative: float
    passed: bool

    def as_json(self) -> Dict[str, Any]:
        """Returns the fields by name, with None for an infinite error, since JSON has no infinity."""
        return {name: None if value == float("inf") else value for name, value in self._asdict().items()}


_DIFFERENT_KIND = OutputError(float("inf"), float("inf"), False)
"""The error of an output whose shape or dtype is wrong."""


def compared(cases: Mapping[str, Case], answers: Mapping[str, Mapping[str, np.ndarray]]) -> Dict[str, OutputError]:
    """Returns the error of each output, by name, over all cases.

    Args:
        cases: reference cases by label.
        answers: for each label, the outputs of the file by name.
    """
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
    """Returns the error of one output. ``before`` is the old state if the output is new state, else None."""
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
    """Returns the 2-norm of the difference, or infinity if it is not finite."""
    length = float(np.linalg.norm((one.astype(np.float64) - other.astype(np.float64)).ravel()))
    return length if np.isfinite(length) else float("inf")


def _largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest absolute difference. Equal infinities and two NaNs have difference 0; any other non-finite pair has infinity."""
    wide_one, wide_other = one.astype(np.float64), other.astype(np.float64)
    same = (wide_one == wide_other) | (np.isnan(wide_one) & np.isnan(wide_other))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(wide_one - wide_other))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())


def _worst(one: Optional[OutputError], other: OutputError) -> OutputError:
    if one is None:
        return other
    return OutputError(max(one.absolute, other.absolute), max(one.relative, other.relative), one.passed and other.passed)


def summary(error: Exception) -> str:
    """Returns the first line of an error's message, or the name of its class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
