"""Runs an ONNX file in onnxruntime and checks it with onnx, without this package's ``runtime.py``."""

from pathlib import Path
from typing import Callable, Dict, Mapping, Union

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from a2c_compiled.export.checking.comparison import PASSED, compared
from a2c_compiled.export.checking.reference_cases import Case, summary

# Largest number of input values in the second case. The reference evaluator needs more than a second to convolve this many.
_MAX_INPUT_VALUES = 2**18


def load(path: Path) -> Callable[..., Dict[str, np.ndarray]]:
    """Loads a file in onnxruntime on the CPU, and returns a function that takes tensors by input name.

    Raises the error of onnx if ``onnx.checker`` or strict shape inference rejects the file.
    """
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path, load_external_data=False)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    return as_function(cpu_session(path))


def as_function(session: onnxruntime.InferenceSession) -> Callable[..., Dict[str, np.ndarray]]:
    """Returns a session as a function that takes tensors by input name."""
    names = [output.name for output in session.get_outputs()]

    def run(**inputs: Tensor) -> Dict[str, np.ndarray]:
        missing = sorted(set(inputs) - {value.name for value in session.get_inputs()})
        if missing:
            raise ValueError(f"expected inputs {list(inputs)}, got none for {missing}")
        return dict(zip(names, session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()}), strict=True))

    return run


def cpu_session(model: Union[Path, bytes]) -> onnxruntime.InferenceSession:
    """Returns an onnxruntime session on the CPU. ``model`` is the path of a file, or the content of one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # log fatal errors only: other errors are raised
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def knows_opset(path: Path) -> bool:
    """Returns whether onnxruntime loads a minimal graph of the opset and the IR version of a file."""
    model = onnx.load(path, load_external_data=False)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "identity", values[:1], values[1:])
    minimal = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        cpu_session(minimal.SerializeToString())
    except Exception:
        return False
    return True


def checks(path: Path, cases: Mapping[str, Case]) -> Dict[str, str]:
    """Returns the outcome of each check by name: the checks of :func:`load`, which have passed, and onnx's reference evaluator."""
    passed = dict.fromkeys(("onnx.checker", "strict shape inference"), PASSED)
    return {**passed, "reference evaluator": _reference_evaluator_outcome(path, cases)}


def _reference_evaluator_outcome(path: Path, cases: Mapping[str, Case]) -> str:
    """Compares onnx's reference evaluator with the reference outputs. Returns ``"passed"``, what differs, or why it did not run.

    Runs the smallest case, and the second smallest if it is not large: the reference evaluator runs in Python and is slow.
    """
    sizes = {label: sum(array.size for array in case.inputs.values()) for label, case in cases.items()}
    first, *others = sorted(cases, key=sizes.__getitem__)
    labels = [first, *(label for label in others[:1] if sizes[label] <= _MAX_INPUT_VALUES)]
    smallest = {label: cases[label] for label in labels if not cases[label].random}
    if not smallest:
        return "not run: outputs are random"
    try:
        evaluator = ReferenceEvaluator(str(path))
        answers = {}
        for label, case in smallest.items():
            feed = {name: case.inputs[name] for name in evaluator.input_names}
            with np.errstate(all="ignore"):  # such as log(0) for a probability of 0
                answers[label] = dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))
    except Exception as error:
        return f"not run: {summary(error)}"
    wrong = [name for name, error in compared(smallest, answers).items() if not error.passed]
    return f"differs in {', '.join(wrong)}" if wrong else PASSED
