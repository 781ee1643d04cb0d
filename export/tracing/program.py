"""A module as torch.export sees it: what ONNX files, .pt2 files and AOTInductor packages are made of."""

import copy
import inspect
import logging
import warnings
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from a2c_compiled._exporting import exporting, in_exporting_thread
from a2c_compiled._torch_internals import check
from a2c_compiled.export.tracing.call import Call, InputsByName, named_outputs
from a2c_compiled.export.tracing.gradients import with_gradients_written_out

_REMARKS = ("torch.onnx", "onnxscript", "onnx_ir", "torch._subclasses.fake_tensor")
"""Loggers of these names and below speak of what is no concern of the exporter's."""


def exported_program(call: Call) -> ExportedProgram:
    """The module of ``call``, for any size of the dimensions that may vary, with a dict of outputs by name for a result.

    Its arguments have the names that :func:`argument_name` makes of those of the inputs.
    """
    dims = {axis: Dim(axis) for axis in call.axis_names}
    shapes: Dict[str, Any] = {
        argument_name(name): {i: dims[axis] for i, axis in enumerate(axes) if axis is not None} or None
        for name, axes in call.axes.items()
    }
    arguments = {argument_name(name): tensor for name, tensor in call.inputs.items()}
    with torch.no_grad():
        return torch.export.export(_WithSignature(call), (), arguments, dynamic_shapes=shapes, strict=False)


def argument_name(input_name: str) -> str:
    """A parameter's name with ``__`` for the dots in it, which Python's arguments cannot have."""
    return input_name.replace(".", "__")


class _WithSignature(nn.Module):
    """The module of a call, with its inputs for arguments."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.module = with_gradients_written_out(call) if isinstance(call.module, InputsByName) else _unshared(call.module)
        names = list(call.inputs)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(argument_name(name), kind) for name in names])

        def forward(*args: Tensor, **kwargs: Tensor) -> Dict[str, Tensor]:
            inputs = dict(zip(names, signature.bind(*args, **kwargs).arguments.values(), strict=True))
            _equate(inputs, call)
            return named_outputs(self.module(**inputs))

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


def _unshared(module: nn.Module) -> nn.Module:
    """The same parameters, in modules that are each in one place.

    Where a module has two places, torch puts stand-ins in the way of every module of the process while it traces, in all threads.
    """
    own = copy.copy(module)
    own.__dict__ = {name: copy.copy(value) if type(value) in (dict, list) else value for name, value in vars(module).items()}
    for name, child in own._modules.items():
        own._modules[name] = None if child is None else _unshared(child)
    return own


def _equate(inputs: Dict[str, Tensor], call: Call) -> None:
    """Dimensions of one name are of one size: said first, or torch.export, which finds out last, forbids sizes by what it met before."""
    sizes: Dict[str, int] = {}
    for name, axes in call.axes.items():
        for dim, axis in enumerate(axes):
            if axis is not None:
                size = inputs[name].size(dim)
                check(size == sizes.setdefault(axis, size))


class _WhileExporting(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        return in_exporting_thread()


class _AnyWarning(Warning, metaclass=_WhileExporting):
    """Every warning that the exporting thread gives, and none of any other: what a filter is asked to ignore."""


def _is_heard(record: logging.LogRecord) -> bool:
    return not (record.name.startswith(_REMARKS) and in_exporting_thread())


@contextmanager
def exporting_without_logs() -> Iterator[None]:
    """This thread exports, without remarks on packages that are not installed, on torch's own deprecations, on attributes that are empty
    lists, and on errors that are raised as well. What other threads say is heard."""
    with exporting():
        # Filters of the process, which stay and apply to the exporting thread alone: what was set would have to be put back, while other
        # threads set and put back the same.
        warnings.simplefilter("ignore", _AnyWarning)
        for logger in map(logging.getLogger, _REMARKS):
            for handler in _handlers(logger):
                handler.addFilter(_is_heard)
        yield


def _handlers(logger: Optional[logging.Logger]) -> Iterator[logging.Handler]:
    """What a logger's records end in; a filter of the logger itself would not see those of the ones below it."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None
    if logging.lastResort is not None:
        yield logging.lastResort
