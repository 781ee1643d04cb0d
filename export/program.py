"""A module as torch.export sees it: what ONNX files, .pt2 files and AOTInductor packages are made of."""

import torch
from torch.export import Dim, ExportedProgram

from a2c_compiled.export.call import Call


def exported_program(call: Call) -> ExportedProgram:
    """The module of ``call`` with its inputs in order and its outputs as a tuple, for any size of the dimensions that may vary."""
    dims = {axis: Dim(axis) for axis in call.axis_names}
    shapes = tuple({i: dims[axis] for i, axis in enumerate(axes) if axis is not None} for axes in call.axes.values())
    arguments = tuple(call.inputs.values())
    with torch.no_grad():
        return torch.export.export(call.positional(), arguments, dynamic_shapes=(shapes,), strict=False)
