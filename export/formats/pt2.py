"""Export to a program of torch.export, which torch runs without the module's code."""

import io
import json
from pathlib import Path
from typing import Callable, Dict

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled.export.checking.digests import write_digests
from a2c_compiled.export.checking.metadata import METADATA, describe
from a2c_compiled.export.checking.reference_cases import record_cases
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.tracing.call import Call, DynamicAxes, ExampleInputs
from a2c_compiled.export.tracing.error_hints import explained
from a2c_compiled.export.tracing.program import by_name, exported_program, exporting_without_logs
from a2c_compiled.export.tracing.scan_doubling import DECOMPOSITIONS

ENDING = ".pt2"
COMPILED_ENDING = ".aot.pt2"
"""Ending of the file names of programs that AOTInductor compiled."""


def export_pt2(module: nn.Module, example_inputs: ExampleInputs, path: AnyPath, dynamic_axes: DynamicAxes = ("T", "N")) -> Path:
    """Writes ``module`` as a program of ``torch.export``, with reference outputs at several shapes beside it.

    >>> export_pt2(policy, {"observation": observation}, "policy.pt2", ("N",))
    >>> torch.export.load("policy.pt2").module()(observation=observation)["action"]

    The file needs only torch, of the version that wrote it or a newer one. The program takes the inputs by keyword or in order. In a
    keyword, ``__`` replaces the dots of a parameter's name. The program returns a dict of outputs by name.

    Args:
        module: module to export, as in :func:`~a2c_compiled.export.export_onnx`.
        example_inputs: tensors in the shapes and dtypes that ``forward`` accepts, by argument name or in the order of the arguments.
        path: path of the file, ending in ``.pt2``.
        dynamic_axes: names of the dimensions that may vary in size, as in :func:`~a2c_compiled.export.export_onnx`.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
        ExportError: (a RuntimeError) the module cannot be exported; the message says what prevents it, where, and what to do.
    """

    def write(program: ExportedProgram, metadata: Dict[str, str], temporary: Path) -> None:
        content = io.BytesIO()  # if the disk is full, torch's own writer of files ends the process
        torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
        temporary.write_bytes(content.getvalue())

    return write_program(module, example_inputs, path, dynamic_axes, ENDING, write, load_pt2)


def load_pt2(path: Path) -> Callable[..., Dict[str, Tensor]]:
    """Loads the program in a file of :func:`export_pt2` as a function that takes tensors by input name."""
    with exporting_without_logs():
        return by_name(torch.export.load(path).module())


def write_program(
    module: nn.Module,
    example_inputs: ExampleInputs,
    path: AnyPath,
    dynamic_axes: DynamicAxes,
    ending: str,
    write: Callable[[ExportedProgram, Dict[str, str], Path], None],
    load: Callable[[Path], Callable[..., Dict[str, Tensor]]],
) -> Path:
    """Exports ``module`` as a program and lets ``write`` save it with its metadata. Stores reference outputs beside the file.

    The file, which ``load`` loads, must run on every reference input.

    Raises:
        ValueError: ``path`` does not end in ``ending``.
    """
    path = as_path("path", path)
    # The longer ending first, because it ends in the shorter one.
    actual_ending = next((known for known in (COMPILED_ENDING, ENDING) if str(path).endswith(known)), None)
    if actual_ending != ending:
        raise ValueError(f"path: expected a name ending in {ending}, got {path}")
    call = Call(module, example_inputs, dynamic_axes)
    with atomic_file(path) as temporary:
        with exporting_without_logs(), explained(call, path.name), torch.no_grad():
            program = exported_program(call).run_decompositions(DECOMPOSITIONS)
            _remove_stack_traces(program)
            write(program, describe(call), temporary)
        record_cases(call, path, load(temporary))
    write_digests(path)
    return path


def _remove_stack_traces(program: ExportedProgram) -> None:
    """Removes the stack trace of each operation, because it contains file paths of the exporting machine."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


FORMAT = Format("pt2", ENDING, export_pt2, load_pt2)
