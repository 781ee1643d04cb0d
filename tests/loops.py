"""Many small cases in one test."""

import functools
import inspect

import pytest
import torch

PARAM = type(pytest.param())


def loop_over(names, cases):
    """Like ``pytest.mark.parametrize(names, cases)``, but one test runs all cases, with the seed 0 before each.

    pytest spends some 10 ms on each test. This decorator is for tests that take less than that. The error of a case that fails names the
    case in a note. Several of these decorators on one test run every combination of their cases. The cases share the fixtures of the test.

    Args:
        names: the name of an argument, or a list of names.
        cases: values for the argument, or tuples of values for the arguments. They have no marks.
    """
    names = [names] if isinstance(names, str) else names

    def arguments(case):
        if isinstance(case, PARAM):
            assert not case.marks, f"loop_over runs every case: expected no marks, got {case.marks}"
            case = case.values
        elif len(names) == 1:
            case = (case,)
        return dict(zip(names, case, strict=True))

    cases = [arguments(case) for case in cases]

    def decorate(test):
        @functools.wraps(test)
        def run_all(**others):
            for case in cases:
                torch.manual_seed(0)
                try:
                    test(**others, **case)
                except BaseException as error:
                    error.add_note(f"The case: {case}")
                    raise

        parameters = inspect.signature(test).parameters.values()
        run_all.__signature__ = inspect.Signature([parameter for parameter in parameters if parameter.name not in names])
        return run_all

    return decorate
