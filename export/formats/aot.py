"""Export to a package that AOTInductor compiled ahead of time."""

from pathlib import Path
from typing import Callable, Dict, Union

from torch import Tensor, nn
from torch.export import ExportedProgram

from a2c_compiled._torch_internals import ahead_of_time
from a2c_compiled.export.formats.pt2 import COMPILED_ENDING, by_name, write_program
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.tracing.call import DynamicAxes, ExampleInputs
from a2c_compiled.export.tracing.program import exporting_without_logs


def export_aot(
    module: nn.Module, example_inputs: ExampleInputs, path: Union[str, Path], dynamic_axes: DynamicAxes = ("T", "N")
) -> Path:
    """Compile ``module`` ahead of time with AOTInductor, and write the package and eager's answers at several shapes beside it.

    >>> export_aot(policy, {"observation": observation}, "policy.aot.pt2", ("N",))
    >>> torch._inductor.aoti_load_package("policy.aot.pt2")(observation=observation)["action"]

    The package is machine code for the processor or GPU that it was made on, and needs torch or libtorch of the same version alone:
    nothing is compiled where it runs. (Without a compiler to ask what the processor can do, torch logs that the file is outdated; it is
    not.) It is called as a program of :func:`~a2c_compiled.export.export_pt2` is. Needs a C++ compiler; takes some 10 s.

    Inputs are to be contiguous and of the example's dtypes: what is not gives wrong answers and no error, unless the environment has
    ``AOTI_RUNTIME_CHECK_INPUTS=1``.

    Args:
        module, example_inputs, dynamic_axes: as of :func:`~a2c_compiled.export.export_onnx`.
        path: of the package, ending in ``.aot.pt2``.

    Returns:
        ``path``.

    Raises:
        As :func:`~a2c_compiled.export.export_pt2`.
    """

    def write(program: ExportedProgram, metadata: Dict[str, str], temporary: Path) -> None:
        ahead_of_time()[0](
            program,
            package_path=str(temporary),
            # The bound is 2, whatever sizes the program takes; it is asked about with AOTI_RUNTIME_CHECK_INPUTS alone.
            inductor_configs={"aot_inductor.metadata": metadata, "aot_inductor.check_lowerbound": False},
        )

    return write_program(module, example_inputs, path, dynamic_axes, COMPILED_ENDING, write)


def load_aot(path: Path) -> Callable[..., Dict[str, Tensor]]:
    """The package of :func:`export_aot`, with the inputs' own names for keywords."""
    with exporting_without_logs():
        return by_name(ahead_of_time()[1](str(path)))


FORMAT = Format("aot", COMPILED_ENDING, export_aot, load_aot)
