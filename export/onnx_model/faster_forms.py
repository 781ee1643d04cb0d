"""Equal computations that runtimes perform faster: products of transposed matrices, and broadcasts of single numbers.

onnxruntime computes a broadcast in runs of equal entries along the last dimensions. If the last dimension has size 1, as in ``[T, 1]``, it
computes one entry after the other, about twenty times slower than over the same entries in one dimension.
"""

from typing import Any, Dict, List, Optional, Sequence

import onnx_ir as ir

# Operators on the entries of their operands, which broadcast.
_ELEMENTWISE = ("Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Sub", "Where")
_FLAT = "faster_forms.flat"


def use_faster_forms(graph: ir.Graph) -> None:
    """Replaces operations of ``graph`` by faster ones. Apart from the order of the sums in a matrix product, no number changes.

    Leaves nodes behind that nothing reads.
    """
    _reorder_products(graph)
    _read_numbers(graph)
    _flatten(graph)


def _reorder_products(graph: ir.Graph) -> None:
    """Replaces ``a.T @ b`` by ``(b.T @ a).T`` if ``b`` has fewer columns than ``a``, because a runtime copies the transposed matrix."""
    for node in list(graph):
        a = _transposed(node.inputs[0]) if node.op_type == "MatMul" else None
        if a is None or a.shape is None or (b := node.inputs[1]) is None or b.shape is None or len(b.shape) != 2:
            continue
        rows, columns = a.shape[1], b.shape[1]
        if isinstance(rows, int) and isinstance(columns, int) and columns < rows:
            b_transposed = _before(node, "Transpose", [b], [columns, b.shape[0]], perm=[1, 0])
            product = _before(node, "MatMul", [b_transposed, a], [columns, rows])
            _become(node, "Transpose", [product], perm=[1, 0])


def _transposed(value: Optional[ir.Value]) -> Optional[ir.Value]:
    """Returns the matrix whose transpose ``value`` is, or None."""
    node = None if value is None else value.producer()
    is_transpose = node is not None and node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]
    return node.inputs[0] if node is not None and is_transpose else None


def _read_numbers(graph: ir.Graph) -> None:
    """Lets operators read a number instead of a tensor with this number in every entry, such as the gradient of a mean."""
    numbers: Dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        operands = [value for value in node.inputs if value is not None]
        known = [numbers.get(value, value if _rank(value) == 0 else None) for value in operands]
        if all(number is value for number, value in zip(known, operands, strict=True)) and node.op_type != "Expand":
            continue
        if node.op_type in ("Expand", "Unsqueeze"):
            if known[0] is not None:
                numbers[node.outputs[0]] = known[0]
        elif node.op_type in (*_ELEMENTWISE, "Neg"):
            if all(number is not None for number in known):
                numbers[node.outputs[0]] = _before(node, node.op_type, known, [], node.outputs[0].dtype)
            elif any(value not in numbers and _same_shape(value, node.outputs[0]) for value in operands):
                for i, number in enumerate(known):
                    if number is not None:
                        node.replace_input_with(i, number)


def _flatten(graph: ir.Graph) -> None:
    """Lets operators on tensors and numbers read the tensors with all their entries in one dimension.

    Operators on the results do the same, as far as all their operands have this form.
    """
    flat: Dict[ir.Value, ir.Value] = {}
    shapes: Dict[str, ir.Value] = {}
    for node in list(graph):
        output = node.outputs[0]
        tensors = [value for value in node.inputs if value is not None and _rank(value) != 0]
        if node.op_type not in _ELEMENTWISE or not tensors or not _may_be_column(output):
            continue
        if len(tensors) == len(node.inputs) and not all(value in flat for value in tensors):
            continue
        if not all(_same_shape(value, output) for value in tensors):
            continue
        for value in tensors:
            if value not in flat:
                flat[value] = _before(node, "Reshape", [value, _every_entry(graph)], [None])
        inputs = [None if value is None else flat.get(value, value) for value in node.inputs]
        flat[output] = _before(node, node.op_type, inputs, [None], output.dtype)
        key = str(output.shape)
        if key not in shapes:
            shapes[key] = _before(node, "Shape", tensors[:1], [_rank(output)], ir.DataType.INT64, start=0)
        _become(node, "Reshape", [flat[output], shapes[key]], allowzero=1)


def _may_be_column(value: ir.Value) -> bool:
    """Returns whether the last of several dimensions may have size 1."""
    return value.shape is not None and len(value.shape) > 1 and (not isinstance(value.shape[-1], int) or value.shape[-1] == 1)


def _every_entry(graph: ir.Graph) -> ir.Value:
    """Returns the shape ``[-1]``, a constant of ``graph``."""
    if _FLAT not in graph.initializers:
        graph.register_initializer(ir.Value(name=_FLAT, const_value=ir.tensor([-1], name=_FLAT)))
    return graph.initializers[_FLAT]


def _rank(value: ir.Value) -> Optional[int]:
    return None if value.shape is None else len(value.shape)


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Returns whether two values have equal shapes, as far as their dimensions are known."""
    return one.shape is not None and one.shape == other.shape and not one.shape.has_unknown_dim()


def _before(
    node: ir.Node,
    operator: str,
    inputs: Sequence[Optional[ir.Value]],
    shape: List[Any],
    dtype: Optional[ir.DataType] = None,
    **attributes: Any,
) -> ir.Value:
    """Inserts an operator before ``node``, and returns its result. The default dtype is that of ``inputs[0]``."""
    new = ir.node(operator, inputs, attributes)
    result, dtype = new.outputs[0], dtype or (inputs[0].dtype if inputs[0] else None)
    result.shape, result.type = ir.Shape(shape), None if dtype is None else ir.TensorType(dtype)
    node.prepend(new)
    return result


def _become(node: ir.Node, operator: str, inputs: Sequence[ir.Value], **attributes: Any) -> None:
    """Makes ``node`` another operator with the same result."""
    node.op_type = operator
    node.resize_inputs(len(inputs))
    for i, value in enumerate(inputs):
        node.replace_input_with(i, value)
    node.attributes.clear()
    node.attributes.update({name: ir.convenience.convert_attribute(name, value) for name, value in attributes.items()})
