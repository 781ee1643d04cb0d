"""Export to what torch runs without the module's code: programs of torch.export, and packages that AOTInductor compiled."""

import json
from pathlib import Path
from typing import Callable, Dict, Union

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from a2c_compiled._files import written_whole
from a2c_compiled._torch_internals import ahead_of_time
from a2c_compiled.export.checking.metadata import METADATA, describe
from a2c_compiled.export.checking.reference_cases import record_cases
from a2c_compiled.export.tracing.call import Call, DynamicAxes, ExampleInputs
from a2c_compiled.export.tracing.error_hints import explained
from a2c_compiled.export.tracing.program import argument_name, exported_program, quiet
from a2c_compiled.export.tracing.scan_doubling import DECOMPOSITIONS

PT2, AOT = ".pt2", ".aot.pt2"


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
    path = _with_ending(path, PT2)

    def write(program: ExportedProgram, metadata: Dict[str, str], temporary: Path) -> None:
        torch.export.save(program, temporary, extra_files={METADATA: json.dumps(metadata)})

    return _export(module, example_inputs, path, dynamic_axes, write)


def export_aot(
    module: nn.Module, example_inputs: ExampleInputs, path: Union[str, Path], dynamic_axes: DynamicAxes = ("T", "N")
) -> Path:
    """Compile ``module`` ahead of time with AOTInductor, and write the package and eager's answers at several shapes beside it.

    >>> export_aot(policy, {"observation": observation}, "policy.aot.pt2", ("N",))
    >>> torch._inductor.aoti_load_package("policy.aot.pt2")(observation=observation)["action"]

    The package is machine code for the processor or GPU that it was made on, and needs torch or libtorch of the same version alone:
    nothing is compiled where it runs. (Without a compiler to ask what the processor can do, torch logs that the file is outdated; it is
    not.) It is called as a program of :func:`export_pt2` is. Needs a C++ compiler; takes some 20 s.

    Inputs are to be contiguous and of the example's dtypes: what is not gives wrong answers and no error, unless the environment has
    ``AOTI_RUNTIME_CHECK_INPUTS=1``.

    Args:
        module, example_inputs, dynamic_axes: as of :func:`~a2c_compiled.export.export_onnx`.
        path: of the package, ending in ``.aot.pt2``.

    Returns:
        ``path``.

    Raises:
        As :func:`export_pt2`.
    """
    path = _with_ending(path, AOT)

    def write(program: ExportedProgram, metadata: Dict[str, str], temporary: Path) -> None:
        ahead_of_time()[0](
            program,
            package_path=str(temporary),
            # The bound is 2, whatever sizes the program takes; it is asked about with AOTI_RUNTIME_CHECK_INPUTS alone.
            inductor_configs={"aot_inductor.metadata": metadata, "aot_inductor.check_lowerbound": False},
        )

    return _export(module, example_inputs, path, dynamic_axes, write)


def load_pt2(path: Path) -> Callable[..., Dict[str, Tensor]]:
    """The program in a file of :func:`export_pt2`, with the inputs' own names for keywords."""
    with quiet():
        return _by_name(torch.export.load(path).module())


def load_aot(path: Path) -> Callable[..., Dict[str, Tensor]]:
    """The package of :func:`export_aot`, with the inputs' own names for keywords."""
    with quiet():
        return _by_name(ahead_of_time()[1](str(path)))


def _by_name(program: Callable[..., Dict[str, Tensor]]) -> Callable[..., Dict[str, Tensor]]:
    return lambda **inputs: program(**{argument_name(name): tensor for name, tensor in inputs.items()})


def _with_ending(path: Union[str, Path], ending: str) -> Path:
    if not str(path).endswith(ending) or (ending == PT2 and str(path).endswith(AOT)):
        raise ValueError(f"path: expected a name ending in {ending}, got {path}")
    return Path(path)


def _export(
    module: nn.Module,
    example_inputs: ExampleInputs,
    path: Path,
    dynamic_axes: DynamicAxes,
    write: Callable[[ExportedProgram, Dict[str, str], Path], None],
) -> Path:
    call = Call(module, example_inputs, dynamic_axes)
    with written_whole(path) as temporary:
        with quiet(), explained(call, path.name), torch.no_grad():
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
