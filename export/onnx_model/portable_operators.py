"""Replaces operators that some runtimes lack or compute wrong, by others with the same result."""

from typing import Optional

import onnx_ir as ir


def make_portable(graph: ir.Graph) -> None:
    """Replaces operators of ``graph`` and its subgraphs.

    - A negative ``axis``, and negative axes of a reduction, become the same axes counted from 0. Some runtimes do not support negative
      axes. In onnxruntime, a reduction of an empty tensor over a negative axis keeps that axis.
    - A Clip of integers with one bound becomes Max or Min. OpenVINO returns 0 for integers without the other bound.
    - ArgMax of int64 becomes ArgMax of float64. onnxruntime up to 1.16 and tract have none of int64.
    """
    for node in list(graph.all_nodes()):
        data = node.inputs[0] if node.inputs else None
        if data is None:
            continue
        if data.shape is not None:
            _make_axes_positive(node, len(data.shape), graph)
        if node.op_type == "Clip" and data.dtype is not None and data.dtype.is_integer():
            _replace_one_sided_clip(node)
        if node.op_type == "ArgMax" and data.dtype == ir.DataType.INT64:
            _widen_input(node, data)


def _make_axes_positive(node: ir.Node, rank: int, graph: ir.Graph) -> None:
    """Counts the axis or the axes of a node from 0. ``rank`` is that of its input. New axes are initializers of ``graph``."""
    axis = node.attributes.get("axis")
    if axis is not None and axis.as_int() < 0:
        node.attributes["axis"] = ir.AttrInt64("axis", axis.as_int() + rank)
    axes: Optional[ir.Value] = node.inputs[1] if node.op_type.startswith("Reduce") and len(node.inputs) > 1 else None
    if axes is not None and axes.const_value is not None and (axes.const_value.numpy() < 0).any():
        name = f"{axes.name}.of_{rank}"
        if name not in graph.initializers:
            positive = ir.tensor(axes.const_value.numpy() % rank, name=name)
            graph.register_initializer(ir.Value(name=name, const_value=positive, shape=axes.shape, type=axes.type))
        node.replace_input_with(1, graph.initializers[name])


def _replace_one_sided_clip(node: ir.Node) -> None:
    """Makes a Clip with one bound a Max or a Min."""
    low, high = [*node.inputs[1:], None, None][:2]
    if (low is None) == (high is None):
        return
    node.op_type = "Min" if low is None else "Max"
    node.resize_inputs(2)
    node.replace_input_with(1, high if low is None else low)


def _widen_input(node: ir.Node, data: ir.Value) -> None:
    """Inserts a Cast to float64 before a node."""
    wide = ir.Value(name=f"{node.name}.float64", shape=data.shape, type=ir.TensorType(ir.DataType.DOUBLE))
    cast = ir.Node("", "Cast", [data], [ir.AttrInt64("to", ir.DataType.DOUBLE.value)], outputs=[wide], name=f"{node.name}.cast")
    assert node.graph is not None
    node.graph.insert_before(node, cast)
    node.replace_input_with(0, wide)
