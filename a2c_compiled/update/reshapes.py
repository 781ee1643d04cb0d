"""A pass over inductor's graphs that moves reshapes in front of elementwise operations."""

from typing import Dict, List, Optional, Tuple

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten

_RESHAPES = (aten.reshape.default, aten.view.default)
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
    unused: List[Node] = []
    for reshape in list(graph.nodes):
        if _is_input_of_product(reshape) and _is_elementwise_on(reshape.args[0], _shape(reshape), {}):
            _move_reshapes(graph, reshape.args[0], reshape, unused)
            reshape.replace_all_uses_with(_matrix_of(reshape.args[0]))
    for node in reversed(unused):
        graph.erase_node(node)


def _is_input_of_product(node: Node) -> bool:
    """Returns whether ``node`` reshapes a tensor on a CPU to a factor of a matrix product."""
    if node.target not in _RESHAPES or not any(user.target in _PRODUCTS for user in node.users):
        return False
    return node.meta["val"].device.type == "cpu"


def _is_elementwise_on(node: Node, shape: Optional[Tuple[str, ...]], known: Dict[Node, bool]) -> bool:
    """Returns whether ``node`` is computed by elementwise operations alone from tensors of shape ``shape`` that were reshaped.

    Args:
        node: a node with the same number of elements as ``shape``.
        shape: from :func:`_shape`.
        known: results for other nodes.
    """
    if node not in known:
        if node.target in _RESHAPES:
            known[node] = _shape(_matrix_of(node)) == shape
        else:
            is_elementwise = torch.Tag.pointwise in getattr(node.target, "tags", ()) and not node.kwargs
            operands = _tensor_operands(node)
            known[node] = (
                is_elementwise
                and bool(operands)
                and all(_shape(x) == _shape(node) and _is_elementwise_on(x, shape, known) for x in operands)
            )
    return known[node]


def _move_reshapes(graph: Graph, node: Node, like: Node, unused: List[Node]) -> None:
    """Replaces ``node`` by a reshape of the same computation on matrices, see :func:`_is_elementwise_on`.

    Args:
        graph: the graph.
        node: the node.
        like: a node with the shape of the matrices.
        unused: gets the nodes that are replaced, operands first.
    """
    if node.target in _RESHAPES:
        return
    for operand in _tensor_operands(node):
        _move_reshapes(graph, operand, like, unused)
    operands = {reshape: _matrix_of(reshape) for reshape in _tensor_operands(node)}
    sizes = next(iter(operands)).args[1]
    with graph.inserting_before(node):
        matrix = graph.node_copy(node, lambda operand: operands.get(operand, operand))
        reshape = graph.call_function(aten.reshape.default, (matrix, sizes))
    reshape.meta = dict(node.meta)
    matrix.meta["val"] = like.meta["val"].new_empty(like.meta["val"].shape, dtype=node.meta["val"].dtype)
    node.replace_all_uses_with(reshape)
    unused.append(node)


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
