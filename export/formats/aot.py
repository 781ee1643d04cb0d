"""Export to a package that AOTInductor compiles ahead of time."""

from pathlib import Path
from typing import Callable, Dict

from torch import Tensor, nn
from torch.export import ExportedProgram

from a2c_compiled._files import AnyPath
from a2c_compiled._torch_internals import ahead_of_time
from a2c_compiled.export.formats.pt2 import COMPILED_ENDING, write_program
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.tracing.call import DynamicAxes, ExampleInputs
from a2c_compiled.export.tracing.program import by_name, exporting_without_logs
from a2c_compiled.update.compilation import portable_options


def export_aot(module: nn.Module, example_inputs: ExampleInputs, path: AnyPath, dynamic_axes: DynamicAxes = ("T", "N")) -> Path:
    """Compiles ``module`` ahead of time with AOTInductor, and writes the package with reference outputs at several shapes beside it.

    >>> export_aot(policy, {"observation": observation}, "policy.aot.pt2", ("N",))
    >>> torch._inductor.aoti_load_package("policy.aot.pt2")(observation=observation)["action"]

    The package holds machine code for the processor or GPU on which it was made. It needs only torch or libtorch of the same version, and
    nothing is compiled when it runs. Call the package like the program of :func:`~a2c_compiled.export.export_pt2`.

    - On a CPU, the code is optimised as with :func:`~a2c_compiled.compile_options`, without operators of this library. There,
      ``tanh`` of float32 has errors of up to 6.1 units in the last place.
    - Compiling needs a C++ compiler and takes about 10 s.
    - Inputs must be contiguous and have the dtypes of the example inputs. Other inputs give wrong results without an error, unless the
      environment variable ``AOTI_RUNTIME_CHECK_INPUTS=1`` is set.
    - On a machine without a C++ compiler, torch cannot detect the features of the processor and logs that the file is outdated. Ignore
      this message.

    Args:
        module: module to export, as in :func:`~a2c_compiled.export.export_onnx`.
        example_inputs: tensors in the shapes and dtypes that ``forward`` accepts, by argument name or in the order of the arguments.
        path: path of the package, ending in ``.aot.pt2``.
        dynamic_axes: names of the dimensions that may vary in size, as in :func:`~a2c_compiled.export.export_onnx`.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
        ExportError: (a RuntimeError) the module cannot be exported or compiled; the message says what prevents it, where, and what to do.
    """

    def write(program: ExportedProgram, metadata: Dict[str, str], temporary: Path) -> None:
        compile_package, _ = ahead_of_time()
        compile_package(
            program,
            package_path=str(temporary),
            # check_lowerbound: AOTInductor records a lower bound of 2 for every size that may vary, although the program accepts 1.
            # With AOTI_RUNTIME_CHECK_INPUTS=1 the package would refuse smaller sizes.
            inductor_configs={
                "aot_inductor.metadata": metadata,
                "aot_inductor.check_lowerbound": False,
                **portable_options(),
            },
        )

    return write_program(module, example_inputs, path, dynamic_axes, COMPILED_ENDING, write, load_aot)


def load_aot(path: Path) -> Callable[..., Dict[str, Tensor]]:
    """Loads the package of :func:`export_aot` as a function that takes tensors by input name."""
    with exporting_without_logs():
        _, load_package = ahead_of_time()
        return by_name(load_package(str(path)))


FORMAT = Format("aot", COMPILED_ENDING, export_aot, load_aot)
