"""Exports a module with torch.export, as the source of ONNX files, .pt2 files and AOTInductor packages."""

import copy
import inspect
import logging
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from a2c_compiled._exporting import exporting, in_exporting_thread
from a2c_compiled._torch_internals import check_sizes
from a2c_compiled.export.tracing.call import Call, InputsByName, argument_name, named_outputs
from a2c_compiled.export.tracing.gradients import with_gradients_written_out

_SILENCED_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch._subclasses.fake_tensor")
"""Prefixes of the loggers whose messages do not concern the user of an export."""


def exported_program(call: Call) -> ExportedProgram:
    """Returns the exported program of ``call``, which runs for any size of the dimensions that may vary.

    The program returns a dict of outputs by name. :func:`argument_name` makes the names of the arguments from the input names.
    """
    dims = {axis: Dim(axis) for axis in call.axis_names}
    shapes: Dict[str, Any] = {
        argument_name(name): {i: dims[axis] for i, axis in enumerate(axes) if axis is not None} or None
        for name, axes in call.axes.items()
    }
    arguments = {argument_name(name): tensor for name, tensor in call.inputs.items()}
    with torch.no_grad():
        return torch.export.export(_WithSignature(call), (), arguments, dynamic_shapes=shapes, strict=False)


def by_name(program: Callable[..., Dict[str, Tensor]]) -> Callable[..., Dict[str, Tensor]]:
    """Wraps ``program`` so that its keywords are the input names, dots included."""
    return lambda **inputs: program(**{argument_name(name): tensor for name, tensor in inputs.items()})


class _WithSignature(nn.Module):
    """The module of a call, with a Python signature made of the input names."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        written_out = isinstance(call.module, InputsByName)
        self.module = with_gradients_written_out(call) if written_out else _unshared(call.module)
        names = list(call.inputs)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(argument_name(name), kind) for name in names])

        def forward(*args: Tensor, **kwargs: Tensor) -> Dict[str, Tensor]:
            inputs = dict(zip(names, signature.bind(*args, **kwargs).arguments.values(), strict=True))
            _equate(inputs, call)
            return named_outputs(self.module(**(inputs if written_out else call.arguments(inputs))))

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


def _unshared(module: nn.Module) -> nn.Module:
    """Returns a copy of the module tree in which each module has one place. The parameters are shared with the original.

    If a module has two places, torch patches every module of the process while it traces, in all threads.
    """
    own = copy.copy(module)
    own.__dict__ = {name: copy.copy(value) if type(value) in (dict, list) else value for name, value in vars(module).items()}
    for name, child in own._modules.items():
        own._modules[name] = None if child is None else _unshared(child)
    return own


def _equate(inputs: Dict[str, Tensor], call: Call) -> None:
    """Asserts to torch that dimensions of the same name have the same size.

    Call this before the module runs. Otherwise torch.export derives guards (conditions) without this fact, and rejects sizes.
    """
    sizes: Dict[str, int] = {}
    for name, axes in call.axes.items():
        for dim, axis in enumerate(axes):
            if axis is not None:
                size = inputs[name].size(dim)
                check_sizes(size == sizes.setdefault(axis, size))


class _WhileExporting(type):
    """Makes a class the base of every other class in the exporting thread, and of none elsewhere."""

    def __subclasscheck__(cls, subclass: type) -> bool:
        return in_exporting_thread()


class _AnyWarning(Warning, metaclass=_WhileExporting):
    """The category of a warning filter: matches every warning of the exporting thread, and none of other threads."""


def _is_shown(record: logging.LogRecord) -> bool:
    """The log filter: False for records of ``_SILENCED_LOGGERS`` from an exporting thread, which are then not shown."""
    return not (record.name.startswith(_SILENCED_LOGGERS) and in_exporting_thread())


@contextmanager
def exporting_without_logs() -> Iterator[None]:
    """Marks this thread as exporting, and silences messages that do not concern the user.

    These are messages about packages that are not installed, torch's own deprecations, attributes that are empty lists, and errors that are
    also raised. Messages of other threads are not silenced.
    """
    with exporting():
        # Warning filters belong to the process. These filters only apply to an exporting thread, so they are never removed. Restoring the
        # earlier filters would race with other threads that set and restore filters.
        warnings.simplefilter("ignore", _AnyWarning)
        for logger in map(logging.getLogger, _SILENCED_LOGGERS):
            for handler in _handlers(logger):
                handler.addFilter(_is_shown)
        yield


def _handlers(logger: Optional[logging.Logger]) -> Iterator[logging.Handler]:
    """Yields the handlers that receive a logger's records.

    A filter on the logger itself would not apply to records of its child loggers.
    """
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None
    if logging.lastResort is not None:
        yield logging.lastResort
