"""A pass over inductor's graphs that moves reshapes in front of elementwise operations."""

from typing import List, Optional, Set, Tuple

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten

RESHAPES = (aten.reshape.default, aten.view.default)
"""The operators of a graph that give a tensor another shape."""

_PRODUCTS = (aten.mm.default, aten.addmm.default)


def compute_on_matrices(graph: Graph) -> None:
    """Changes elementwise operations between matrix products to operate on matrices, on a CPU.

    A linear layer reshapes its input ``[T, N, features]`` to a matrix, and the product to ``[T, N, features]`` again. Inductor computes and
    stores the result of an elementwise operation once for each shape in which it is used: for the product of the next layer, for the
    gradient of a weight, and for the gradient of a bias. Without reshapes between the products, there is one shape::

        reshape(tanh(reshape(product, [T, N, C])), [T * N, C]) = tanh(product)

    Args:
        graph: the graph. It is changed in place.
    """
    for reshape in list(graph.nodes):
        operations = _elementwise_operations(reshape) if _is_input_of_product(reshape) else None
        if operations is not None:
            for node in [node for node in graph.nodes if node in operations]:
                _move_reshape(graph, node, reshape)
            reshape.replace_all_uses_with(_matrix_of(_matrix_of(reshape)))


def _is_input_of_product(node: Node) -> bool:
    """Returns whether ``node`` reshapes a tensor on a CPU to a factor of a matrix product."""
    if node.target not in RESHAPES or not any(user.target in _PRODUCTS for user in node.users):
        return False
    return node.meta["val"].device.type == "cpu"


def _elementwise_operations(reshape: Node) -> Optional[Set[Node]]:
    """Returns the operations that compute the input of ``reshape`` from matrices of its shape that were reshaped.

    Returns None if one of them is not elementwise, or combines tensors of several shapes.
    """
    operations: Set[Node] = set()
    pending = [_matrix_of(reshape)]
    while pending:
        node = pending.pop()
        if node.target in RESHAPES:
            if _shape(_matrix_of(node)) != _shape(reshape):
                return None
        elif node not in operations:
            operands = _tensor_operands(node)
            is_elementwise = torch.Tag.pointwise in getattr(node.target, "tags", ()) and not node.kwargs
            if not is_elementwise or {_shape(operand) for operand in operands} != {_shape(node)}:
                return None
            operations.add(node)
            pending += operands
    return operations


def _move_reshape(graph: Graph, node: Node, like: Node) -> None:
    """Replaces an elementwise operation on reshaped matrices by a reshape of the operation on the matrices.

    Args:
        graph: the graph.
        node: the operation.
        like: a node with the shape of the matrices.
    """
    operands = {reshape: _matrix_of(reshape) for reshape in _tensor_operands(node)}
    sizes = next(iter(operands)).args[1]
    with graph.inserting_before(node):
        matrix = graph.node_copy(node, lambda operand: operands.get(operand, operand))
        reshape = graph.call_function(aten.reshape.default, (matrix, sizes))
    reshape.meta = dict(node.meta)
    matrix.meta["val"] = like.meta["val"].new_empty(like.meta["val"].shape, dtype=node.meta["val"].dtype)
    node.replace_all_uses_with(reshape)
    graph.erase_node(node)


def _matrix_of(reshape: Node) -> Node:
    """Returns the tensor that ``reshape`` gives another shape."""
    return reshape.all_input_nodes[0]


def _tensor_operands(node: Node) -> List[Node]:
    """Returns the operands of ``node`` that have dimensions. Numbers can be combined with any shape."""
    return [operand for operand in node.all_input_nodes if _shape(operand) != ()]


def _shape(node: Node) -> Optional[Tuple[str, ...]]:
    """Returns the sizes of the value of ``node``, empty for a number, None if torch has not recorded the value.

    Sizes are text, because comparing symbols would add conditions on them to the graph.
    """
    value = node.meta.get("val")
    return None if value is None else tuple(map(str, getattr(value, "shape", ())))
