"""onnxscript's optimizer without its tolerance: the private names that this takes, and what is done without them."""

import copy
import functools
import warnings
from typing import Any, Optional, Tuple

import onnx_ir as ir
import onnxscript
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter

from a2c_compiled._torch_internals import tracing_lock

_ROUNDS = 2  # as onnxscript's own


def optimize(model: ir.Model) -> None:
    """Compute what is constant in ``model``, and simplify it, exactly.

    onnxscript's own ``optimize`` has a tolerance, with which it drops "+ 1e-8" for "+ 0", and "* 0.99999" for "* 1". Where its rules do
    not show theirs, constants alone are folded.
    """
    rules = _exact_rules()
    with tracing_lock():  # a rule keeps what it matches in itself
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
    """Copies of onnxscript's rules, in which a number matches itself alone."""
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
            f"a2c_compiled: onnxscript {onnxscript.__version__} hides its rules' tolerance ({error}); ONNX files are larger, and slower",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return tuple(rules)
