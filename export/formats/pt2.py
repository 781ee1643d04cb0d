"""Export to a program of torch.export, which torch runs without the module's code."""

import json
from pathlib import Path
from typing import Callable, Dict, Union

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from a2c_compiled._files import atomic_file
from a2c_compiled.export.checking.metadata import METADATA, describe
from a2c_compiled.export.checking.reference_cases import record_cases
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.tracing.call import Call, DynamicAxes, ExampleInputs
from a2c_compiled.export.tracing.error_hints import explained
from a2c_compiled.export.tracing.program import argument_name, exported_program, exporting_without_logs
from a2c_compiled.export.tracing.scan_doubling import DECOMPOSITIONS

ENDING = ".pt2"
COMPILED_ENDING = ".aot.pt2"
"""Of a program that AOTInductor compiled."""


def export_pt2(
    module: nn.Module, example_inputs: ExampleInputs, path: Union[str, Path], dynamic_axes: DynamicAxes = ("T", "N")
) -> Path:
    """Write ``module`` as a program of ``torch.export``, and eager's answers at several shapes beside it.

    >>> export_pt2(policy, {"observation": observation}, "policy.pt2", ("N",))
    >>> torch.export.load("policy.pt2").module()(observation=observation)["action"]

    The file needs torch alone, of the version that wrote it or a newer one. Its program takes the inputs by keyword, with ``__`` for the
    dots in a parameter's name, or in order, and returns a dict by name.

    Args:
        module, example_inputs, dynamic_axes: as of :func:`~a2c_compiled.export.export_onnx`.
        path: of the file, ending in ``.pt2``.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is unfit; the message names it.
        ExportError: the module cannot be exported; the message says what stands in the way, where, and what to do.
    """

    def write(program: ExportedProgram, metadata: Dict[str, str], temporary: Path) -> None:
        torch.export.save(program, temporary, extra_files={METADATA: json.dumps(metadata)})

    return write_program(module, example_inputs, path, dynamic_axes, ENDING, write)


def load_pt2(path: Path) -> Callable[..., Dict[str, Tensor]]:
    """The program in a file of :func:`export_pt2`, with the inputs' own names for keywords."""
    with exporting_without_logs():
        return by_name(torch.export.load(path).module())


def by_name(program: Callable[..., Dict[str, Tensor]]) -> Callable[..., Dict[str, Tensor]]:
    """``program`` with the inputs' own names for keywords."""
    return lambda **inputs: program(**{argument_name(name): tensor for name, tensor in inputs.items()})


def write_program(
    module: nn.Module,
    example_inputs: ExampleInputs,
    path: Union[str, Path],
    dynamic_axes: DynamicAxes,
    ending: str,
    write: Callable[[ExportedProgram, Dict[str, str], Path], None],
) -> Path:
    """Make a program of ``module``, let ``write`` write it with its metadata to a file, and record eager's answers beside it."""
    if next((known for known in (COMPILED_ENDING, ENDING) if str(path).endswith(known)), None) != ending:
        raise ValueError(f"path: expected a name ending in {ending}, got {path}")
    path = Path(path)
    call = Call(module, example_inputs, dynamic_axes)
    with atomic_file(path) as temporary:
        with exporting_without_logs(), explained(call, path.name), torch.no_grad():
            program = exported_program(call).run_decompositions(DECOMPOSITIONS)
            _forget_paths(program)
            write(program, describe(call), temporary)
        record_cases(call, path)
    return path


def _forget_paths(program: ExportedProgram) -> None:
    """Where an operation stood in the code, with the paths of the machine that exported it."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


FORMAT = Format("pt2", ENDING, export_pt2, load_pt2)
