"""A file's answers against eager's."""

from typing import Any, Dict, Mapping, NamedTuple, Optional

import numpy as np

from a2c_compiled.export.checking.reference_cases import Case
from a2c_compiled.export.tracing.call import NEW

# Largest error relative to the largest magnitude in the output, or to 1 if that is larger; whole numbers are to be equal. Far more than one
# operation rounds, because an advantage adds up, over an episode, the rounding of values many times its size.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 3e-4, np.dtype(np.float16): 5e-3}
# What an update makes new is measured by how far it moved, the length of the error over that of the change: of a few small gradients an
# optimizer makes much, and of their rounding. But the change is taken for no less than this part of the whole, which is rounded too.
TOLERANCE_OF_CHANGE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 2e-3}
SMALLEST_CHANGE = 1e-4
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


def compared(cases: Mapping[str, Case], answers: Mapping[str, Mapping[str, np.ndarray]]) -> Dict[str, OutputError]:
    """Errors of every output, over all cases."""
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


def _worst(one: Optional[OutputError], other: OutputError) -> OutputError:
    if one is None:
        return other
    return OutputError(max(one.absolute, other.absolute), max(one.relative, other.relative), one.passed and other.passed)


def summary(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
