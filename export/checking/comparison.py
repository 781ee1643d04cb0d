"""Compares the outputs of an exported file with the reference outputs of eager mode."""

from typing import Any, Dict, Mapping, NamedTuple, Optional

import numpy as np

from a2c_compiled.export.checking.reference_cases import Case
from a2c_compiled.export.checking.rounding import difference, within_rounding
from a2c_compiled.export.tracing.call import NEW

# These tolerances are for files without stored rounding errors, which an earlier version wrote; else see checking/rounding.py.
# Tolerance of the relative error in OutputError, by dtype. In other dtypes, such as integers, outputs must be equal.
# The tolerance is far above the rounding error of one operation: an advantage sums, over an episode, the rounding errors of values
# that are much larger than the advantage.
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 3e-4, np.dtype(np.float16): 5e-3}
# The same for the new state of a training step. It is larger, because an optimizer amplifies small gradients and their rounding errors.
# The norm of the change counts as at least SMALLEST_CHANGE times the norm of the state, because the state itself is rounded.
TOLERANCE_OF_CHANGE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 2e-3}
SMALLEST_CHANGE = 1e-4
# Tolerance for the score of an action that is rounded in another way than in eager mode. Where tanh saturates, arctanh amplifies that
# rounding error up to 5e5 times.
TOLERANCE_OF_SCORE = 5e-2
PASSED = "passed"


class OutputError(NamedTuple):
    """Largest error of one output over all cases. Both numbers are infinite if the shape or dtype is wrong.

    Attributes:
        absolute: largest absolute error.
        relative: largest absolute error, divided by the larger of 1 and the largest magnitude in the output. For the new state of a
            training step (``new.<name>``): norm of the error, divided by the norm of the change that the training step makes.
        passed: True if shape, dtype and values are right, within the tolerance, in every case.
    """

    absolute: float
    relative: float
    passed: bool

    def as_json(self) -> Dict[str, Any]:
        """Returns the fields by name, with None for an infinite error, since JSON has no infinity."""
        return {name: None if value == float("inf") else value for name, value in self._asdict().items()}


_WRONG_SHAPE_OR_DTYPE = OutputError(float("inf"), float("inf"), False)


def compared(cases: Mapping[str, Case], answers: Mapping[str, Mapping[str, np.ndarray]]) -> Dict[str, OutputError]:
    """Returns the error of each output, by name, over all cases. A random output is listed only if its shape or dtype is wrong.

    Args:
        cases: reference cases by label.
        answers: for each label, the outputs of the file by name.
    """
    errors: Dict[str, OutputError] = {}
    for label, answer in answers.items():
        for name, expected in cases[label].outputs.items():
            before = cases[label].inputs.get(name.removeprefix(NEW)) if name.startswith(NEW) else None
            error = _error(answer[name], expected, before)
            if name in cases[label].errors:
                if error is not _WRONG_SHAPE_OR_DTYPE:
                    error = error._replace(passed=within_rounding(answer[name], expected, cases[label].errors[name], before))
                errors[name] = _worst(errors.get(name), error)
                continue
            scored = name.replace("log_prob", "action")
            if scored != name and scored in cases[label].outputs and not error.passed:
                error = _score_error(answer[name], expected, answer[scored], cases[label].outputs[scored], error)
            errors[name] = _worst(errors.get(name), error)
        for name, drawn in cases[label].random.items():
            if answer[name].shape != drawn.shape or answer[name].dtype != drawn.dtype:
                errors[name] = _WRONG_SHAPE_OR_DTYPE
    return errors


def _error(actual: np.ndarray, expected: np.ndarray, before: Optional[np.ndarray]) -> OutputError:
    """Returns the error of one output. ``before`` is the old state if the output is new state, else None."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return _WRONG_SHAPE_OR_DTYPE
    if not expected.size:
        return OutputError(0.0, 0.0, True)
    absolute = float(difference(actual, expected).max())
    magnitude = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    if before is None:
        relative = absolute / magnitude
        return OutputError(absolute, relative, relative <= TOLERANCE.get(expected.dtype, 0.0))
    change = max(_distance(expected, before), SMALLEST_CHANGE * _distance(expected, np.zeros_like(expected)))
    relative = (
        _distance(actual, expected) / change if change else absolute
    )  # the change is 0 only if the state is 0 and stays 0
    return OutputError(absolute, relative, relative <= TOLERANCE_OF_CHANGE.get(expected.dtype, 0.0))


def _score_error(
    actual: np.ndarray, expected: np.ndarray, action: np.ndarray, expected_action: np.ndarray, error: OutputError
) -> OutputError:
    """Returns ``error``, the error of the scores ``actual``, passed if it is due to the rounding of the actions that are scored."""
    if action.shape != expected_action.shape or actual.shape != expected.shape:
        return error
    same = (action == expected_action).reshape(*actual.shape, -1).all(-1)
    exact = _error(actual[same], expected[same], None)
    return error._replace(passed=exact.passed and error.relative <= TOLERANCE_OF_SCORE)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the 2-norm of the difference, or infinity if it is not finite."""
    length = float(np.linalg.norm((one.astype(np.float64) - other.astype(np.float64)).ravel()))
    return length if np.isfinite(length) else float("inf")


def _worst(one: Optional[OutputError], other: OutputError) -> OutputError:
    """Returns the larger errors of two cases. Passed if both cases passed. ``one`` is None if there is only one case yet."""
    if one is None:
        return other
    return OutputError(max(one.absolute, other.absolute), max(one.relative, other.relative), one.passed and other.passed)
