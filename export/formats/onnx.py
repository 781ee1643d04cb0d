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
) -> Path:
    """Write ``module`` as an ONNX file that stock onnxruntime runs, and eager's answers at several shapes beside it.

    >>> export_onnx(loss, {"observation": ..., "action": ..., ...}, "loss.onnx")
    >>> verify("loss.onnx")

    Inputs and outputs of the graph have the names of ``forward``'s arguments and of the fields of its result, parameters those of
    ``module.state_dict()``. An argument that the graph does not read is no input of it. The file says what it was made of
    (:mod:`a2c_compiled.export.checking.metadata`). The module is exported as it is in evaluation mode. The file passes ``onnx.checker``
    with full checks, and is loaded by onnxruntime, before it takes the place of an older one.

    Weights of 2 GB and more, which an ONNX file cannot hold, go into a file of their own beside it, ``<path>.<digest>.data``.

    Args:
        module: an estimator, a loss, a policy of :mod:`a2c_compiled.export`, or any module of tensors to tensors around them.
        example_inputs: by the names of ``forward``'s arguments, or in their order; those left out stay None.
        path: of the file.
        dynamic_axes: names of the leading dimensions of every input, which may then have any size, or per input the names of its
            dimensions, None for one that is fixed.
        opset: version of the ONNX operators, 18 or later; onnxruntime may know fewer than onnx.
        output_names: instead of the result's own.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is unfit; the message names it.
        ExportError: (a RuntimeError) the module cannot be exported; the message says what stands in the way, where, and what to do.
    """
    newest_opset = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest_opset:
        raise ValueError(f"opset: expected {OLDEST_OPSET} to {newest_opset}, the newest that onnx knows here, got {opset}")
    path = Path(path)
    call = Call(module, example_inputs, dynamic_axes)
    with unused_weights_removed(path), atomic_file(path) as temporary:
        names = _output_names(call, output_names)
        with exporting_without_logs(), explained(call, "ONNX"):
            program = torch.onnx.export(
                exported_program(call),
                input_names=list(call.inputs),
                output_names=names,
                opset_version=opset,
                custom_translation_table={**TRANSLATIONS, **SCANS},
                dynamo=True,
                verbose=False,
                optimize=False,
            )
        assert program is not None
        # Where the exporter cannot convert, it leaves the older version and says so in a log.
        written = program.model.opset_imports[""]
        if written != opset:
            raise ExportError(f"opset: {opset} cannot be made of this module, {written} can")
        model = tidy(program, call)
        save(model, temporary, path)
        onnx.checker.check_model(temporary, full_check=True)
        with explained(call, "ONNX"):
            _check_kernels(temporary)
        record_cases(call, path, [str(value.name) for value in model.graph.inputs], names)
    return path


def _output_names(call: Call, given: Optional[Sequence[str]]) -> List[str]:
    own = list(call.eager(call.inputs))
    names = list(given or own)
    if len(names) != len(own):
        raise ValueError(f"output_names: expected {len(own)} in place of {own}, got {names}")
    if len({*names, *call.inputs}) < len(names) + len(call.inputs):
        raise ValueError(f"output_names: expected names that differ from each other and from {list(call.inputs)}, got {names}")
    return names


def _check_kernels(path: Path) -> None:
    """Raise ExportError where onnxruntime knows an operator, but not for this dtype."""
    try:
        onnx_file.started(path)
    except NoKernel as error:
        operator = re.search(r"implementation for (\w+)", str(error))
        name = operator[1] if operator else str(error)
        raise ExportError(
            f"{name}: onnxruntime has no kernel for it on the CPU in this precision. Where the module is float64 or half precision, export"
            " it in float32",
            name,
        ) from error
    except Exception as error:  # an opset newer than this onnxruntime; another may know it
        logging.getLogger(__name__).debug("onnxruntime does not load %s: %s", path, error)


FORMAT = Format("onnx", ".onnx", export_onnx, onnx_file.load, onnx_file.checks, options=("opset",), has_runtime=True)
