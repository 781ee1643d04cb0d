"""Export to ONNX."""

import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Mapping, Optional, Sequence, Union, overload

import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from torch import nn

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled._kinds import described, flag, integer
from a2c_compiled.export.checking import onnx_file
from a2c_compiled.export.checking.digests import write_digests
from a2c_compiled.export.checking.metadata import PREFIX, Names
from a2c_compiled.export.checking.reference_cases import record_cases, summary
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.onnx_model.attention import ATTENTION
from a2c_compiled.export.onnx_model.float64 import TRANSLATIONS
from a2c_compiled.export.onnx_model.model_file import save, tidy, unused_weights_removed
from a2c_compiled.export.onnx_model.onnx_scan import SCANS
from a2c_compiled.export.onnx_model.random_numbers import RANDOM
from a2c_compiled.export.tracing.call import Call, DynamicAxes, ExampleInputs
from a2c_compiled.export.tracing.error_hints import explained
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.export.tracing.program import exported_program, exporting_without_logs

OLDEST_OPSET = 18


@overload
def export_onnx(
    module: nn.Module,
    example_inputs: ExampleInputs,
    path: AnyPath,
    dynamic_axes: DynamicAxes = ...,
    opset: int = ...,
    output_names: Optional[Sequence[str]] = ...,
    ir_version: Optional[int] = ...,
    input_names: Optional[Sequence[str]] = ...,
    keep_unread_inputs: bool = ...,
    metadata: Optional[Mapping[str, str]] = ...,
) -> Path: ...


@overload
def export_onnx(module: nn.Module, example_inputs: ExampleInputs, path: BinaryIO, *args: Any, **options: Any) -> None: ...


def export_onnx(
    module: nn.Module,
    example_inputs: ExampleInputs,
    path: Union[AnyPath, BinaryIO],
    dynamic_axes: DynamicAxes = ("T", "N"),
    opset: int = OLDEST_OPSET,
    output_names: Optional[Sequence[str]] = None,
    ir_version: Optional[int] = None,
    input_names: Optional[Sequence[str]] = None,
    keep_unread_inputs: bool = False,
    metadata: Optional[Mapping[str, str]] = None,
) -> Optional[Path]:
    """Writes ``module`` as an ONNX file that stock onnxruntime runs, with reference outputs at several shapes beside it.

    >>> export_onnx(loss, {"observation": ..., "action": ..., ...}, "loss.onnx")
    >>> verify("loss.onnx")

    - The graph's inputs have the names of ``forward``'s arguments. The outputs have the field names of the result. The parameters have
      their names in ``module.state_dict()``; one with the name of an input or output is renamed, see the metadata. An argument that the
      module does not read is not an input of the graph, unless ``keep_unread_inputs``.
    - The module is exported in evaluation mode.
    - Metadata in the file describes the module, see :mod:`a2c_compiled.export.checking.metadata`.
    - Before the file replaces an older one, it must pass the full checks of ``onnx.checker``, and run in onnxruntime on every reference
      input. If the installed onnxruntime does not know the opset, the file is written with a warning that it was not run.
    - Weights of about 2 GB or more do not fit in an ONNX file. They are written to ``<path>.<digest>.data``.

    Args:
        module: an estimator, a loss, a policy of :mod:`a2c_compiled.export`, or another module from tensors to tensors around them.
        example_inputs: tensors in the shapes and dtypes that ``forward`` accepts, by argument name or in the order of the arguments.
            Arguments without an example keep their defaults. One row, such as a single observation ``[1, ...]``, is enough; the reference
            outputs are then those of equal rows.
        path: path of the file. Or a binary file object, such as ``io.BytesIO()``, to which the graph alone is written, without reference
            outputs; it must be smaller than 2 GB.
        dynamic_axes: names of the dimensions that may vary in size. A sequence names the leading dimensions of every input. A mapping has,
            for each input, the names of its dimensions, with None for a fixed one. Dimensions of the same name have the same size.
        opset: ONNX operator version, 18 or later. The installed onnxruntime may support fewer versions than onnx.
        output_names: names of the outputs, instead of the field names of the result.
        ir_version: version of the ONNX file format. None: the lowest that ``opset`` needs (8 for opset 18), because an onnxruntime refuses
            files of a newer version than its own.
        input_names: names of the inputs, one for each example, in the order of ``forward``'s arguments. None: the names of the arguments.
            ``dynamic_axes`` has the names of the arguments. ``runtime.Policy`` runs a policy with such names too.
        keep_unread_inputs: True: an argument that the module does not read is an input too, because some programs always pass it.
        metadata: further metadata of the file, strings by name.

    Returns:
        ``path``, or None for a file object.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
        ExportError: (a RuntimeError) the module cannot be exported; the message says what prevents it, where, and what to do.
    """
    if not isinstance(path, (str, os.PathLike)):
        options = (dynamic_axes, opset, output_names, ir_version, input_names, keep_unread_inputs, metadata)
        _write_to(path, module, example_inputs, *options)
        return None
    opset = integer("opset", opset)
    newest_opset = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest_opset:
        raise ValueError(
            f"opset: expected {OLDEST_OPSET} to {newest_opset}, the newest that the installed onnx supports, got {opset}"
        )
    ir_version = _checked_ir_version(ir_version, opset)
    path = as_path("path", path)
    keep_unread_inputs, own_metadata = flag("keep_unread_inputs", keep_unread_inputs), _checked_metadata(metadata)
    call = Call(module, example_inputs, dynamic_axes)
    with unused_weights_removed(path), atomic_file(path) as temporary:
        names = _names(call, input_names, output_names)
        with exporting_without_logs(), explained(call, "ONNX"):
            program = torch.onnx.export(
                exported_program(call),
                opset_version=opset,
                custom_translation_table={**TRANSLATIONS, **ATTENTION, **RANDOM, **SCANS},
                dynamo=True,
                verbose=False,
                optimize=False,
            )
            assert program is not None
            # If the conversion to a newer version fails, the exporter keeps the older version and only logs the failure.
            written = program.model.opset_imports[""]
            if written != opset:
                raise ExportError(f"opset: expected {written}, which torch writes for this module, got {opset}")
            model = tidy(program, call, names, keep_unread_inputs)
        model.ir_version = ir_version
        model.metadata_props.update(own_metadata)
        save(model, temporary, path)
        onnx.checker.check_model(temporary, full_check=True)
        inputs = _checked_input_names(temporary, names)
        with explained(call, "ONNX"):
            run = _loaded(temporary, path)
        in_file = {name: own for name, own in names.inputs.items() if own in inputs}
        record_cases(call, path, run, in_file, list(names.outputs.values()))
    write_digests(path)
    return path


def _write_to(file: Any, *arguments: Any) -> None:
    """Exports to a temporary file with the other arguments of :func:`export_onnx`, and writes the graph to ``file``.

    Raises:
        TypeError: ``file`` has no method ``write``.
        ExportError: the weights do not fit in the graph.
    """
    if not hasattr(file, "write"):
        raise TypeError(f"path: expected a path or a binary file object, got {described(file)}")
    module, example_inputs, *others = arguments
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(module, example_inputs, Path(folder) / "graph.onnx", *others)
        if list(path.parent.glob("*.data")):
            raise ExportError("path: expected a path, since the weights of 2 GB or more need a second file, got a file object")
        file.write(path.read_bytes())


def _checked_metadata(metadata: Optional[Mapping[str, str]]) -> Dict[str, str]:
    """Returns the metadata of the caller. Raises TypeError or ValueError unless they are strings by names without this package's prefix."""
    if not isinstance(metadata, (Mapping, type(None))):
        raise TypeError(f"metadata: expected a mapping of names to strings, got {described(metadata)}")
    entries = dict(metadata or {})
    for name, text in entries.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"metadata: expected strings by name, got {described(text)} for {name!r}")
        if name.startswith(PREFIX):
            raise ValueError(f"metadata: expected names without the prefix {PREFIX!r} of this package's own, got {name!r}")
    return entries


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


def _names(call: Call, inputs: Optional[Sequence[str]], outputs: Optional[Sequence[str]]) -> Names:
    """Returns the names of the file's inputs and outputs: the requested ones, or the names of the arguments and the fields of the result.

    Raises:
        ValueError: the number of names is wrong, or two names are equal, or a name is also the name of an input.
    """
    arguments, fields = list(call.inputs), list(call.eager(call.inputs))
    own_inputs = arguments if inputs is None else list(inputs)
    own_outputs = fields if outputs is None else list(outputs)
    for what, own, of, kind in (("input", own_inputs, arguments, "inputs"), ("output", own_outputs, fields, "outputs")):
        if len(own) != len(of):
            raise ValueError(f"{what}_names: expected {len(of)} names for the {kind} {of}, got {own}")
    if len(set(own_inputs)) < len(own_inputs):
        raise ValueError(f"input_names: expected names that differ from each other, got {own_inputs}")
    if len({*own_outputs, *own_inputs}) < len(own_outputs) + len(own_inputs):
        raise ValueError(f"output_names: expected names that differ from each other and from {own_inputs}, got {own_outputs}")
    return Names(dict(zip(arguments, own_inputs, strict=True)), dict(zip(fields, own_outputs, strict=True)), {})


def _checked_input_names(path: Path, names: Names) -> List[str]:
    """Returns the names of the inputs in a file.

    Raises ExportError unless inputs and outputs have their names, and no weight has the name of an input: that weight would be the default
    value of the input.
    """
    graph = onnx.load(path, load_external_data=False).graph
    found, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    inputs, expected = list(names.inputs.values()), list(names.outputs.values())
    weights = {value.name for value in graph.initializer}
    if [name for name in inputs if name in found] != found or not weights.isdisjoint(found):
        raise ExportError(f"{path.name}: expected inputs among {inputs}, none of them a weight, got {found}")
    if outputs != expected:
        raise ExportError(f"{path.name}: expected outputs {expected}, got {outputs}")
    return found


def _loaded(file: Path, path: Path) -> Optional[Callable[..., Any]]:
    """Returns the model in ``file`` as a function. Returns None, with a warning, if onnxruntime does not know the opset.

    Raises:
        ExportError: onnxruntime does not load the model, for example because it has no kernel for an operator in the dtype of the model.
    """
    try:
        return onnx_file.as_function(onnx_file.cpu_session(file))
    except Exception as error:
        if not onnx_file.knows_opset(file):
            warnings.warn(
                f"a2c_compiled: {path} was not run: onnxruntime {onnxruntime.__version__} does not support its opset. Test the file with"
                " the runtime that will run it",
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        if not isinstance(error, NoKernel):
            raise ExportError(f"onnxruntime does not load the exported file ({summary(error)})") from error
        operator = re.search(r"implementation for (\w+)", str(error))
        name = operator[1] if operator else str(error)
        remedy = (
            "Export with opset=21 or less"
            if name.startswith(("Random", "Multinomial"))
            else "If the module is float64 or half precision, export it in float32"
        )
        raise ExportError(
            f"{name}: onnxruntime has no CPU kernel for this operator in this dtype and opset. {remedy}", name
        ) from error


FORMAT = Format("onnx", ".onnx", export_onnx, onnx_file.load, onnx_file.checks, options=("opset",), has_runtime=True)
