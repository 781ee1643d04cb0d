"""Export to TorchScript."""

import json
import re
import sys
from contextlib import contextmanager
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Dict, Iterator

import torch
from torch import Tensor, nn

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled.export.checking.digests import write_digests
from a2c_compiled.export.checking.metadata import METADATA, describe
from a2c_compiled.export.checking.reference_cases import record_cases
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.tracing.call import Call, DynamicAxes, ExampleInputs, argument_name, named_outputs
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.export.tracing.program import by_name, exporting_without_logs

# Parts of the messages of TorchScript's compiler: an attribute that it cannot read, and a line of code of the failing module.
_ATTRIBUTE = re.compile(r"Module '(\w+)' has no attribute '(\w+)' \(This (function|attribute) exists")
_LINE_OF_CODE = re.compile(r'File "([^"]+)", line (\d+)\n(?:.*\n)*?(.*)\n *~+(?: <--- HERE)?$', re.MULTILINE)


@contextmanager
def without_deprecation_warnings() -> Iterator[None]:
    """Silences torch's warnings in the block: TorchScript is deprecated, and each of its functions warns.

    Raises:
        RuntimeError: torch has no TorchScript for this version of Python.
    """
    if sys.version_info >= (3, 14):
        raise RuntimeError("TorchScript: torch has none from Python 3.14 on; use export_pt2, export_aot or export_onnx")
    with exporting_without_logs():
        yield


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """Calls ``torch.jit.script`` without deprecation warnings."""
    with without_deprecation_warnings():
        return torch.jit.script(module)


def load(path: Path) -> torch.jit.ScriptModule:
    """Calls ``torch.jit.load``, to the CPU, without deprecation warnings."""
    with without_deprecation_warnings():
        return torch.jit.load(str(path), map_location="cpu")


def export_torchscript(
    module: nn.Module, example_inputs: ExampleInputs, path: AnyPath, dynamic_axes: DynamicAxes = ("T", "N")
) -> Path:
    """Writes ``module`` as a TorchScript file, with reference outputs at several shapes beside it.

    The file needs no operator of this package. It loads with ``torch.jit.load`` in Python and C++ where only torch is installed, and it is
    differentiable there. It accepts inputs of any shape that the module accepts. The module is saved in evaluation mode.

    A policy or a loss whose observation is a tuple or a mapping of tensors is traced with the example inputs. Its file has one argument for
    each tensor, such as ``observation__0``, and returns a dict of tensors.

    Args:
        module: an estimator, a loss, a policy of :mod:`a2c_compiled.export`, or another module around them that
            TorchScript compiles.
        example_inputs: tensors in the shapes and dtypes that ``forward`` accepts, by argument name or in the order of the arguments.
        path: path of the file.
        dynamic_axes: names of the dimensions whose size the reference outputs vary, as in :func:`~a2c_compiled.export.export_onnx`.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is invalid, or a part of the module cannot be expressed in TorchScript; the message names it.
        ExportError: (a RuntimeError) TorchScript cannot compile the module; the message says what, where, and what to do.
        RuntimeError: torch has no TorchScript for this version of Python.
    """
    path = as_path("path", path)
    call = Call(module, example_inputs, dynamic_axes)
    with atomic_file(path) as temporary:
        with without_deprecation_warnings():
            # To memory first: if the disk is full, torch's own writer of files ends the process.
            content = _scripted(call).save_to_buffer(_extra_files={METADATA: json.dumps(describe(call))})
        temporary.write_bytes(content)
        record_cases(call, path, by_name(load(temporary)))
    write_digests(path)
    return path


def _scripted(call: Call) -> torch.jit.ScriptModule:
    """Compiles the module of ``call`` with TorchScript, and runs it once. Turns an error of either into an ExportError.

    A module with the attribute ``is_traced``, or with an argument that is a tuple or a mapping, is traced with the example inputs.
    """
    name = type(call.module).__name__
    is_traced = call.has_parts or getattr(call.module, "is_traced", False)
    try:
        scripted = _traced(call) if is_traced else script(call.module)
    except TypeError:
        raise  # raised on purpose by modules that TorchScript cannot express; the message says so
    except Exception as error:
        raise ExportError(
            f"{name} cannot be exported to TorchScript: {_reason(str(error).strip())}. Write that part in the Python"
            " subset that TorchScript compiles, or export with export_onnx or export_pt2"
        ) from error
    expected = list(call.eager(call.inputs))
    try:
        with torch.no_grad():
            outputs = list(named_outputs(by_name(scripted)(**call.inputs)))
    except Exception as error:
        raise ExportError(
            f"{name} cannot be exported to TorchScript: its code compiles but does not run ({str(error).strip().splitlines()[-1]})."
            " Export with export_onnx or export_pt2"
        ) from error
    if outputs != expected:
        raise ExportError(f"{name} cannot be exported to TorchScript: expected outputs {expected}, got {outputs}")
    return scripted


@torch.no_grad()
def _traced(call: Call) -> torch.jit.ScriptModule:
    """Traces the module of ``call``. The result returns a dict of outputs by name, because a trace has no NamedTuples."""
    prepare = getattr(call.module, "__prepare_scriptable__", None)  # torch.jit.script calls it too
    module: Any = call.module if prepare is None else prepare()
    forward = module.forward

    def of_tensors(*inputs: Tensor) -> Dict[str, Tensor]:
        return named_outputs(forward(**call.arguments(dict(zip(call.inputs, inputs, strict=True)))))

    parameters = [Parameter(argument_name(name), Parameter.POSITIONAL_OR_KEYWORD) for name in call.inputs]
    of_tensors.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    module.forward = of_tensors
    try:
        # strict=False allows a dict as output.
        traced = torch.jit.trace(module, tuple(call.inputs.values()), check_trace=False, strict=False)
    finally:
        module.forward = forward
    in_python = [node.pyname() for node in traced.inlined_graph.nodes() if node.kind() == "prim::PythonOp"]
    if in_python:
        raise RuntimeError(f"a module whose arguments are not all tensors is traced, and a trace cannot hold {in_python[0]}")
    return traced


def _reason(text: str) -> str:
    """Returns the message of TorchScript's compiler in one line, with the line of code if the message has one."""
    attribute = _ATTRIBUTE.match(text)
    if attribute:
        kind = {"function": "a function", "attribute": "an attribute"}[attribute[3]]
        reason = f"{attribute[1]}.{attribute[2]} is {kind} that TorchScript cannot read"
    elif "Can't redefine method" in text:
        reason = "an earlier export of this class failed in this process; the message of that export states the reason"
    else:
        reason = text.partition("\n")[0].rstrip(":.")
    places = [place for place in _LINE_OF_CODE.findall(text) if "/torch/" not in place[0]]
    if places:
        file, number, code = places[0]  # the innermost frame comes first
        reason += f' ("{code.strip()}", {file.rpartition("/")[2]}:{number})'
    return reason


# The file is differentiable, but it cannot hold a training step, whose graph computes gradients itself.
FORMAT = Format("torchscript", ".pt", export_torchscript, lambda path: by_name(load(path)), has_gradients=False)
