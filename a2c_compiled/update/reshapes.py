"""A pass over inductor's graphs that moves reshapes in front of elementwise operations."""

from typing import Dict, List, Tuple

import torch
from torch import Tensor
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


def _is_elementwise_on(node: Node, shape: Tuple[str, ...], known: Dict[Node, bool]) -> bool:
    """Returns whether ``node`` is computed by elementwise operations alone from tensors of shape ``shape`` that were reshaped.

    Args:
        node: a node with the same number of elements as ``shape``.
        shape: from :func:`_shape`.
        known: results for other nodes.
    """
    if node not in known:
        if node.target in _RESHAPES:
            known[node] = _shape(node.args[0]) == shape
        else:
            is_elementwise = torch.Tag.pointwise in getattr(node.target, "tags", ()) and not node.kwargs
            operands = [operand for operand in node.all_input_nodes if not _is_number(operand)]
            known[node] = is_elementwise and all(
                _shape(operand) == _shape(node) and _is_elementwise_on(operand, shape, known) for operand in operands
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
    for operand in node.all_input_nodes:
        if not _is_number(operand):
            _move_reshapes(graph, operand, like, unused)
    reshapes = [operand for operand in node.all_input_nodes if not _is_number(operand)]
    with graph.inserting_before(node):
        matrix = graph.node_copy(node, lambda operand: operand if _is_number(operand) else _matrix_of(operand))
        reshape = graph.call_function(aten.reshape.default, (matrix, reshapes[0].args[1]))
    reshape.meta = dict(node.meta)
    matrix.meta["val"] = like.meta["val"].new_empty(like.meta["val"].shape, dtype=node.meta["val"].dtype)
    node.replace_all_uses_with(reshape)
    unused.append(node)


def _matrix_of(reshape: Node) -> Node:
    """Returns the tensor that ``reshape`` gives another shape."""
    return reshape.all_input_nodes[0]


def _is_number(node: Node) -> bool:
    """Returns whether the value of ``node`` has no dimensions, so that it can be combined with any shape."""
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.dim() == 0


def _shape(node: Node) -> Tuple[str, ...]:
    """Returns the sizes of the value of ``node``, as text: comparing symbols would add conditions on them to the graph."""
    return tuple(map(str, node.meta["val"].shape))
