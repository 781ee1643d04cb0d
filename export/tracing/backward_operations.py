"""Backward operations in terms of forward ones: exporters translate few of them as they are."""

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
    """Two convolutions: the gradient with the weight turned round, and the input with the gradient for a weight."""
    if transposed or groups != 1:
        operation = "aten.convolution_backward"
        raise ExportError(
            f"{operation}: expected a plain convolution, with groups=1 and not transposed, to differentiate. Make it so, or"
            " freeze it with requires_grad_(False) together with all that comes before it",
            operation,
        )
    convolution = torch.ops.aten.convolution.default
    of_input = of_weight = of_bias = None
    axes = range(len(stride))
    if output_mask[0]:
        # What the stride left over at the far end took part in nothing.
        reached = [
            (grad_output.size(2 + i) - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.size(2 + i) - 1) + 1
            for i in axes
        ]
        left_over = [input.size(2 + i) - reached[i] for i in axes]
        of_input = convolution(grad_output, weight, None, stride, padding, dilation, True, left_over, 1)
    if output_mask[1]:
        swapped = input.transpose(0, 1), grad_output.transpose(0, 1)
        of_weight = convolution(*swapped, None, dilation, padding, stride, False, [0 for _ in axes], 1)
        for i in axes:
            of_weight = of_weight.narrow(2 + i, 0, weight.size(2 + i))
        of_weight = of_weight.transpose(0, 1)
    if output_mask[2]:
        of_bias = grad_output.sum([0, *(2 + i for i in axes)])
    return of_input, of_weight, of_bias


def _slice_backward(grad_output: Tensor, input_sizes: List[Any], dim: int, start: int, end: int, step: int) -> Tensor:
    """Zeros before and behind: exporters make one node of it, where they make many of writing into zeros."""
    if step != 1:
        return _ALL[torch.ops.aten.slice_backward.default](grad_output, input_sizes, dim, start, end, step)
    pieces = []
    for length in (start, input_sizes[dim] - start - grad_output.size(dim)):
        if isinstance(length, SymInt) or length > 0:
            sizes = list(grad_output.shape)
            sizes[dim] = length
            pieces.append(grad_output.new_zeros(sizes))
    before = pieces[:1] if isinstance(start, SymInt) or start > 0 else []
    return torch.cat([*before, grad_output, *pieces[len(before) :]], dim)


_ALL = decompositions()
# Every backward that torch knows to write in other operations; exporters translate few of them.
BACKWARD: Dict[Any, Callable[..., Any]] = {
    **{operation: decomposition for operation, decomposition in _ALL.items() if "backward" in str(operation)},
    torch.ops.aten.convolution_backward.default: _convolution_backward,
    torch.ops.aten.slice_backward.default: _slice_backward,
}
