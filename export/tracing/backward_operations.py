"""Backward operations in terms of forward operations, because exporters translate few backward operations."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import SymInt, Tensor

from a2c_compiled._torch_internals import decompositions
from a2c_compiled.export.tracing.errors import ExportError


def _convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Optional[List[int]],
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    transposed: bool,
    output_padding: List[int],
    groups: int,
    output_mask: List[bool],
) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """Decomposes ``aten.convolution_backward`` into two convolutions and a sum.

    - ``grad_input``: the transposed convolution of ``grad_output`` with ``weight``.
    - ``grad_weight``: the convolution of ``input`` with ``grad_output`` as the weight.
    - ``grad_bias``: the sum of ``grad_output`` over all dimensions except the channels.
    """
    if transposed or groups != 1:
        operation = "aten.convolution_backward"
        raise ExportError(
            f"{operation}: expected a plain convolution, with groups=1 and not transposed, to compute its gradient. Change the layer,"
            " or freeze it and all layers before it with requires_grad_(False)",
            operation,
        )
    convolution = torch.ops.aten.convolution.default
    grad_input = grad_weight = grad_bias = None
    axes = range(len(stride))
    if output_mask[0]:
        # The forward convolution reads no input entries after the last position of the kernel. Their gradient is 0.
        reached = [
            (grad_output.size(2 + i) - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.size(2 + i) - 1) + 1
            for i in axes
        ]
        left_over = [input.size(2 + i) - reached[i] for i in axes]
        grad_input = convolution(grad_output, weight, None, stride, padding, dilation, True, left_over, 1)
    if output_mask[1]:
        # Batch and channels change places, because grad_weight sums over the batch.
        swapped = input.transpose(0, 1), grad_output.transpose(0, 1)
        grad_weight = convolution(*swapped, None, dilation, padding, stride, False, [0 for _ in axes], 1)
        for i in axes:  # with a stride, this convolution can have more positions than the weight has entries
            grad_weight = grad_weight.narrow(2 + i, 0, weight.size(2 + i))
        grad_weight = grad_weight.transpose(0, 1)
    if output_mask[2]:
        grad_bias = grad_output.sum([0, *(2 + i for i in axes)])
    return grad_input, grad_weight, grad_bias


def _slice_backward(grad_output: Tensor, input_sizes: List[Any], dim: int, start: int, end: int, step: int) -> Tensor:
    """Concatenates zeros, ``grad_output`` and zeros. For steps other than 1, uses torch's own decomposition.

    Exporters translate the concatenation to one node. torch's own decomposition writes into zeros: many nodes after translation.
    """
    if step != 1:
        return _TORCH_DECOMPOSITIONS[torch.ops.aten.slice_backward.default](grad_output, input_sizes, dim, start, end, step)
    pieces = []
    for length in (start, input_sizes[dim] - start - grad_output.size(dim)):
        if isinstance(length, SymInt) or length > 0:  # a symbolic length may be 0, which gives an empty piece
            sizes = list(grad_output.shape)
            sizes[dim] = length
            pieces.append(grad_output.new_zeros(sizes))
    before = pieces[:1] if isinstance(start, SymInt) or start > 0 else []
    return torch.cat([*before, grad_output, *pieces[len(before) :]], dim)


_TORCH_DECOMPOSITIONS = decompositions()
# Decompositions of backward operations: torch's own, and the functions of this file in place of two of them.
BACKWARD: Dict[Any, Callable[..., Any]] = {
    **{operation: decomposition for operation, decomposition in _TORCH_DECOMPOSITIONS.items() if "backward" in str(operation)},
    torch.ops.aten.convolution_backward.default: _convolution_backward,
    torch.ops.aten.slice_backward.default: _slice_backward,
}
