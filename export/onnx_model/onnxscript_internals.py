"""Runs onnxscript's optimizer without numeric tolerance. All private names of onnxscript that this package uses are in this file."""

import copy
import functools
import warnings
from typing import Any, Optional, Tuple

import onnx_ir as ir
import onnxscript
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter

from a2c_compiled._torch_internals import tracing_lock

_ROUNDS = 2  # the default of onnxscript's own optimize


def optimize(model: ir.Model) -> None:
    """Folds constants in ``model`` and simplifies it, without changing a number.

    onnxscript's own ``optimize`` compares numbers with a tolerance. It treats ``+ 1e-8`` as ``+ 0`` and ``* 0.99999`` as ``* 1``, and drops
    both operations. If the tolerance of onnxscript's rules is not accessible, no rules are applied.
    """
    rules = _exact_rules()
    with tracing_lock():  # rules store their matches in themselves, so two threads cannot share them
        optimizer.inline(model)
        for _ in range(_ROUNDS):
            optimizer.fold_constants(model, onnx_shape_inference=True)
            if rules is not None:
                rewriter.rewrite(model, rules)
        for tidying in (
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        ):
            tidying(model)


@functools.cache
def _exact_rules() -> Optional[Tuple[Any, ...]]:
    """Returns copies of onnxscript's rules with tolerance 0. Returns None, with a warning, if the tolerance is not accessible."""
    try:
        rules: Any = copy.deepcopy(rewriter._DEFAULT_REWRITE_RULES)
        numbers = [
            value for rule in rules for node in rule._target_pattern for value in node.inputs if hasattr(value, "_rel_tol")
        ]
        for number in numbers:
            number._rel_tol, number._abs_tol = 0.0, 0.0
        if not numbers:
            raise AttributeError("_rel_tol")
    except (AttributeError, TypeError) as error:
        warnings.warn(
            f"a2c_compiled: onnxscript {onnxscript.__version__} hides its rules' tolerance ({error}), so the rules are not used; ONNX"
            " files are larger and slower",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return tuple(rules)
