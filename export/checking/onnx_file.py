"""An ONNX file, run and checked without this package's own runtime."""

from pathlib import Path
from typing import Callable, Dict, Mapping

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from a2c_compiled.export.checking.comparison import PASSED, compared, summary
from a2c_compiled.export.checking.reference_cases import Case

# More than the reference evaluator convolves in a second.
_MANY_NUMBERS = 2**18


def load(path: Path) -> Callable[..., Dict[str, np.ndarray]]:
    """A file in onnxruntime on the CPU, once ``onnx.checker`` and strict shape inference find no fault with it."""
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path, load_external_data=False)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    session = started(path)
    names = [output.name for output in session.get_outputs()]

    def run(**inputs: Tensor) -> Dict[str, np.ndarray]:
        missing = sorted(set(inputs) - {value.name for value in session.get_inputs()})
        if missing:
            raise ValueError(f"expected inputs {list(inputs)}, got none for {missing}")
        return dict(zip(names, session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()}), strict=True))

    return run


def started(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said in the error
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def checks(path: Path, cases: Mapping[str, Case]) -> Dict[str, str]:
    """What a file that :func:`load` took has passed, and how the reference evaluator's answers compare."""
    passed = dict.fromkeys(("onnx.checker", "strict shape inference"), PASSED)
    return {**passed, "reference evaluator": _held_against_reference(path, cases)}


def _held_against_reference(path: Path, cases: Mapping[str, Case]) -> str:
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
        return f"not run: {summary(error)}"
    wrong = [name for name, error in compared(smallest, answers).items() if not error.passed]
    return f"differs in {', '.join(wrong)}" if wrong else PASSED
