"""Export to ONNX."""

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple, Union

import onnx
import torch
from torch import Tensor, nn

from a2c_compiled._files import written_whole
from a2c_compiled.export.call import Call, DynamicAxes, ExampleInputs, evaluation_mode, named_outputs
from a2c_compiled.export.onnx_float64 import TRANSLATIONS
from a2c_compiled.export.onnx_scan import SCANS
from a2c_compiled.export.recorded import record_cases

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

    Inputs and outputs of the graph have the names of ``forward``'s arguments and of the fields of its result. The module is exported as it
    is in evaluation mode. The file passes ``onnx.checker`` with full checks before it takes the place of an older one.

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
        RuntimeError: torch cannot export the module; the message says why.
    """
    newest_opset = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest_opset:
        raise ValueError(f"opset: expected {OLDEST_OPSET} to {newest_opset}, the newest that onnx knows here, got {opset}")
    path = Path(path)
    call = Call(module, example_inputs, dynamic_axes)
    dims = {axis: torch.export.Dim(axis) for axis in call.axis_names}
    shapes = tuple({i: dims[axis] for i, axis in enumerate(axes) if axis is not None} for axes in call.axes.values())
    with evaluation_mode(module), written_whole(path) as temporary:
        names = list(output_names or call.eager(call.inputs))
        with _quiet():
            torch.onnx.export(
                _Positional(module, list(call.inputs)),
                tuple(call.inputs.values()),
                temporary,
                input_names=list(call.inputs),
                output_names=names,
                opset_version=opset,
                dynamic_shapes=(shapes,),
                custom_translation_table={**TRANSLATIONS, **SCANS},
                dynamo=True,
                verbose=False,
                external_data=False,
            )
        onnx.checker.check_model(temporary, full_check=True)
        # Where the exporter cannot convert, it leaves the older version and says so in a log.
        written = next(entry.version for entry in onnx.load(temporary).opset_import if not entry.domain)
        if written != opset:
            raise RuntimeError(f"opset: {opset} cannot be made of this module, {written} can")
        record_cases(call, path)
    return path


class _Positional(nn.Module):
    """The module with its inputs in order, and only the outputs that are there."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *inputs: Tensor) -> Tuple[Tensor, ...]:
        return tuple(named_outputs(self.module(**dict(zip(self.names, inputs, strict=True)))).values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not installed and on its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
