"""Export to ONNX."""

import logging
import re
from pathlib import Path
from typing import List, Optional, Sequence, Union

import onnx
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from torch import nn

from a2c_compiled._files import atomic_file
from a2c_compiled._kinds import integer
from a2c_compiled.export.checking import onnx_file
from a2c_compiled.export.checking.reference_cases import record_cases
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.onnx_model.float64 import TRANSLATIONS
from a2c_compiled.export.onnx_model.model_file import save, tidy, unused_weights_removed
from a2c_compiled.export.onnx_model.onnx_scan import SCANS
from a2c_compiled.export.tracing.call import Call, DynamicAxes, ExampleInputs
from a2c_compiled.export.tracing.error_hints import explained
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.export.tracing.program import exported_program, exporting_without_logs

OLDEST_OPSET = 18


def export_onnx(
    module: nn.Module,
    example_inputs: ExampleInputs,
    path: Union[str, Path],
    dynamic_axes: DynamicAxes = ("T", "N"),
    opset: int = OLDEST_OPSET,
    output_names: Optional[Sequence[str]] = None,
    ir_version: Optional[int] = None,
) -> Path:
    """Writes ``module`` as an ONNX file that stock onnxruntime runs, with reference outputs at several shapes beside it.

    >>> export_onnx(loss, {"observation": ..., "action": ..., ...}, "loss.onnx")
    >>> verify("loss.onnx")

    - The graph's inputs have the names of ``forward``'s arguments. The outputs have the field names of the result. The parameters have
      their names in ``module.state_dict()``. An argument that the module does not read is not an input of the graph.
    - The module is exported in evaluation mode.
    - Metadata in the file describes the module, see :mod:`a2c_compiled.export.checking.metadata`.
    - Before the file replaces an older one, it must pass the full checks of ``onnx.checker``, and onnxruntime must not report an operator
      without a kernel.
    - Weights of about 2 GB or more do not fit in an ONNX file. They are written to ``<path>.<digest>.data``.

    Args:
        module: an estimator, a loss, a policy of :mod:`a2c_compiled.export`, or another module from tensors to tensors around them.
        example_inputs: tensors in the shapes and dtypes that ``forward`` accepts, by argument name or in the order of the arguments.
            Arguments without an example keep their defaults.
        path: path of the file.
        dynamic_axes: names of the dimensions that may vary in size. A sequence names the leading dimensions of every input. A mapping has,
            for each input, the names of its dimensions, with None for a fixed one. Dimensions of the same name have the same size.
        opset: ONNX operator version, 18 or later. The installed onnxruntime may support fewer versions than onnx.
        output_names: names of the outputs, instead of the field names of the result.
        ir_version: version of the ONNX file format. None: the lowest that ``opset`` needs (8 for opset 18), because an onnxruntime refuses
            files of a newer version than its own.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
        ExportError: (a RuntimeError) the module cannot be exported; the message says what prevents it, where, and what to do.
    """
    opset = integer("opset", opset)
    newest_opset = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest_opset:
        raise ValueError(
            f"opset: expected {OLDEST_OPSET} to {newest_opset}, the newest that the installed onnx supports, got {opset}"
        )
    ir_version = _checked_ir_version(ir_version, opset)
    path = Path(path)
    call = Call(module, example_inputs, dynamic_axes)
    with unused_weights_removed(path), atomic_file(path) as temporary:
        names = _output_names(call, output_names)
        with exporting_without_logs(), explained(call, "ONNX"):
            program = torch.onnx.export(
                exported_program(call),
                opset_version=opset,
                custom_translation_table={**TRANSLATIONS, **SCANS},
                dynamo=True,
                verbose=False,
                optimize=False,
            )
            assert program is not None
            # If the conversion to a newer version fails, the exporter keeps the older version and only logs the failure.
            written = program.model.opset_imports[""]
            if written != opset:
                raise ExportError(f"opset: expected {written}, which torch writes for this module, got {opset}")
            model = tidy(program, call, names)
        model.ir_version = ir_version
        save(model, temporary, path)
        onnx.checker.check_model(temporary, full_check=True)
        inputs = _checked_input_names(temporary, list(call.inputs), names)
        with explained(call, "ONNX"):
            _check_kernels(temporary)
        record_cases(call, path, inputs, names)
    return path


def _checked_ir_version(ir_version: Optional[int], opset: int) -> int:
    """Returns ``ir_version``; None: the lowest that ``opset`` allows. Raises ValueError if it is lower, or unknown to onnx."""
    lowest = int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))
    version = lowest if ir_version is None else integer("ir_version", ir_version)
    if not lowest <= version <= onnx.IR_VERSION:
        raise ValueError(
            f"ir_version: expected {lowest}, which opset {opset} needs, to {onnx.IR_VERSION}, the newest of the installed onnx,"
            f" got {version}"
        )
    return version


def _output_names(call: Call, requested: Optional[Sequence[str]]) -> List[str]:
    """Returns the names of the file's outputs: ``requested``, or the field names of the result.

    Raises:
        ValueError: the number of names is wrong, or two names are equal, or a name is also the name of an input.
    """
    fields = list(call.eager(call.inputs))
    names = list(requested or fields)
    if len(names) != len(fields):
        raise ValueError(f"output_names: expected {len(fields)} names for the outputs {fields}, got {names}")
    if len({*names, *call.inputs}) < len(names) + len(call.inputs):
        raise ValueError(f"output_names: expected names that differ from each other and from {list(call.inputs)}, got {names}")
    return names


def _checked_input_names(path: Path, inputs: List[str], outputs: List[str]) -> List[str]:
    """Returns the names of the inputs in a file.

    Raises ExportError unless they are among ``inputs``, the outputs have the names ``outputs``, and no weight has the name of an input,
    which would make the weight the default value of the input.
    """
    graph = onnx.load(path, load_external_data=False).graph
    found = [value.name for value in graph.input]
    weights = {value.name for value in graph.initializer}
    if [name for name in inputs if name in found] != found or not weights.isdisjoint(found):
        raise ExportError(f"{path.name}: expected inputs among {inputs}, none of them a weight, got {found}")
    if [value.name for value in graph.output] != outputs:
        raise ExportError(f"{path.name}: expected outputs {outputs}, got {[value.name for value in graph.output]}")
    return found


def _check_kernels(path: Path) -> None:
    """Raises ExportError if onnxruntime supports an operator, but has no kernel for the dtype in the file."""
    try:
        onnx_file.cpu_session(path)
    except NoKernel as error:
        operator = re.search(r"implementation for (\w+)", str(error))
        name = operator[1] if operator else str(error)
        raise ExportError(
            f"{name}: onnxruntime has no CPU kernel for this operator in this dtype. If the module is float64 or half precision,"
            " export it in float32",
            name,
        ) from error
    except Exception as error:  # for example an opset that only a newer onnxruntime supports
        logging.getLogger(__name__).debug("onnxruntime does not load %s: %s", path, error)


FORMAT = Format("onnx", ".onnx", export_onnx, onnx_file.load, onnx_file.checks, options=("opset",), has_runtime=True)
