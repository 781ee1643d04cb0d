"""Compares exported ONNX files with eager mode in other runtimes than the installed onnxruntime.

Make files with ``python tests/export/many_networks.py --formats onnx --keep FOLDER``, then run
``python tests/export/other_runtimes.py RUNTIME FOLDER``. Runs every ``.onnx`` file in the folder on its reference cases, and compares the
outputs with the tolerances of ``verify``. Prints a line for each file that differs or does not run, and the number of equal ones.

Runtimes: ``onnxruntime`` (the version that Python finds), ``openvino``, ``tract``, and ``onnxruntime-web`` and ``onnxruntime-node``, which
node runs; ``--modules`` is the folder ``node_modules`` with them. The packages must be installed.
"""

import argparse
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import onnx

from a2c_compiled.export.checking.comparison import compared
from a2c_compiled.export.checking.reference_cases import load_cases

Run = Callable[[Dict[str, np.ndarray]], Dict[str, np.ndarray]]
"""A loaded file, as a function from inputs to outputs by name."""


def in_onnxruntime(path: Path) -> Run:
    """Loads a file in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def in_openvino(path: Path) -> Run:
    """Loads a file in OpenVINO on the CPU, with float32 arithmetic also on CPUs that have shorter formats."""
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        results = model(inputs)
        # OpenVINO writes bool outputs as bytes, and adds names of its own to an output.
        return {name: results[i] for i, name in enumerate(outputs_of(path))}

    return run


def in_tract(path: Path) -> Run:
    """Loads a file in tract."""
    import tract

    graph = tract.onnx().load(str(path)).into_model().into_runnable()
    names = [value.name for value in onnx.load(path).graph.input]
    int64 = [value.type.tensor_type.elem_type == onnx.TensorProto.INT64 for value in onnx.load(path).graph.output]

    def run(inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        outputs = graph.run([np.ascontiguousarray(inputs[name]) for name in names])
        # tract may return int64 as symbols, which numpy lacks.
        whole = [
            output.convert_to(tract.DatumType.I64) if is_int64 else output
            for output, is_int64 in zip(outputs, int64, strict=True)
        ]
        return {name: output.to_numpy() for name, output in zip(outputs_of(path), whole, strict=True)}

    return run


def outputs_of(path: Path) -> List[str]:
    """Returns the names of a file's outputs."""
    return [value.name for value in onnx.load(path).graph.output]


class Node:
    """A process of node that runs files with a package of onnxruntime.

    Each request and each answer is a line of JSON, in which an array has its dtype, shape and bytes.
    """

    def __init__(self, package: Path) -> None:
        script = Path(__file__).with_name("run_in_node.cjs")
        self._process = subprocess.Popen(
            ["node", str(script), str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, path: Path) -> Run:
        """Loads a file."""
        self._answer({"path": str(path)})
        return lambda inputs: {
            name: np.frombuffer(base64.b64decode(data), dtype).reshape(shape)
            for name, (dtype, shape, data) in self._answer(
                {"inputs": {name: _encoded(x) for name, x in inputs.items()}}
            ).items()
        }

    def _answer(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """Sends a request and returns the answer. Raises RuntimeError with the message of an error in node."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        answer: Dict[str, Any] = json.loads(stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def _encoded(array: np.ndarray) -> List[Any]:
    """Returns dtype, shape and bytes of an array."""
    return [array.dtype.name, array.shape, base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]


IN_PYTHON = {"onnxruntime": in_onnxruntime, "openvino": in_openvino, "tract": in_tract}
IN_NODE = ("onnxruntime-web", "onnxruntime-node")


def outcome(load: Callable[[Path], Run], path: Path) -> str:
    """Returns ``"equal"``, or what differs, or the error."""
    cases = load_cases(path)
    try:
        run = load(path)
        answers = {label: run(case.inputs) for label, case in cases.items()}
    except Exception as error:
        return f"does not run: {' '.join(str(error).split())[:300]}"
    wrong = [f"{name} ({error.relative:.1e})" for name, error in compared(cases, answers).items() if not error.passed]
    return f"differs in {', '.join(wrong)}" if wrong else "equal"


def main() -> int:
    """Runs the files of a folder, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=[*IN_PYTHON, *IN_NODE])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--modules", type=Path, default=Path("node_modules"))
    options = parser.parse_args()
    node = None if options.runtime in IN_PYTHON else Node((options.modules / options.runtime).resolve())
    load = node or IN_PYTHON[options.runtime]
    paths = sorted(path for path in options.folder.rglob("*.onnx") if path.with_name(f"{path.name}.cases.npz").exists())
    equal = 0
    for path in paths:
        found = outcome(load, path)
        equal += found == "equal"
        if found != "equal":
            print(f"{path.relative_to(options.folder)}: {found}", flush=True)
    print(f"{options.runtime}: {equal} of {len(paths)} files are equal to eager mode")
    if node is not None:
        node.close()
    return int(equal < len(paths))


if __name__ == "__main__":
    sys.exit(main())
