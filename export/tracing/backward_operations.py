"""Backward operations in terms of forward operations, because exporters translate few backward operations."""

from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import SymInt, Tensor
from torch.nn import functional

from a2c_compiled._torch_internals import aten_operator, decompositions, outside_of_tracing


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

    - ``grad_input``: the transposed convolution of ``grad_output`` with ``weight``; of a transposed convolution, the plain convolution.
    - ``grad_weight``: the convolution of ``input`` with ``grad_output`` as the weight; of a transposed convolution, the reverse.
    - ``grad_bias``: the sum of ``grad_output`` over all dimensions except the channels.
    """
    convolution = torch.ops.aten.convolution.default
    grad_input = grad_weight = grad_bias = None
    axes = range(len(stride))
    # The larger of the two images: a convolution reads it, and a transposed convolution writes it.
    large, small = (grad_output, input) if transposed else (input, grad_output)
    if output_mask[0]:
        # The forward convolution reads no entries of the larger image after the last position of the kernel. Their gradient is 0.
        reached = [
            (small.size(2 + i) - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.size(2 + i) - 1) + 1 for i in axes
        ]
        left_over = [0 if transposed else large.size(2 + i) - reached[i] for i in axes]
        grad_input = convolution(grad_output, weight, None, stride, padding, dilation, not transposed, left_over, groups)
        for i in axes if transposed else ():  # output_padding larger than the stride adds positions
            grad_input = grad_input.narrow(2 + i, 0, input.size(2 + i))
    if output_mask[1]:
        # Batch and channels change places, because grad_weight sums over the batch.
        images, kernel = large.transpose(0, 1), small.transpose(0, 1)
        if groups > 1:  # [groups * channels, N, ...] to [channels, groups * N, ...]
            images = images.unflatten(0, (groups, large.size(1) // groups)).transpose(0, 1).flatten(1, 2)
        grad_weight = convolution(images, kernel, None, dilation, padding, stride, False, [0 for _ in axes], groups)
        for i in axes:  # with a stride, this convolution can have more positions than the weight has entries
            grad_weight = grad_weight.narrow(2 + i, 0, weight.size(2 + i))
        grad_weight = grad_weight.transpose(0, 1)
    if output_mask[2]:
        grad_bias = grad_output.sum([0, *(2 + i for i in axes)])
    return grad_input, grad_weight, grad_bias


def _per_axis_backward(grad_output: Tensor, input: Tensor, forwards: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Returns the gradient of an operation that is linear along each of the last dimensions, one after the other.

    Along a dimension of ``n`` entries, the operation multiplies by a constant ``[n, outputs]``, which is what it makes of the ``n`` unit
    vectors. Its backward operation multiplies by the transpose.

    Args:
        grad_output: gradient of the result.
        input: the operand of the operation.
        forwards: for each of the last dimensions of ``input``, the operation along it alone, as a function from ``[n, 1, n]`` to
            ``[n, 1, outputs]``.
    """
    for axis, forward in enumerate(forwards, -len(forwards)):
        with outside_of_tracing():
            unit_vectors = torch.eye(int(input.size(axis)), dtype=torch.float64).unsqueeze(1)
            matrix = forward(unit_vectors).squeeze(1).to(input.device, input.dtype)
        grad_output = (grad_output.transpose(axis, -1) @ matrix.t()).transpose(axis, -1)
    return grad_output


def _avg_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: List[int],
    stride: List[int],
    padding: List[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: Optional[int],
) -> Tensor:
    """Decomposes the backward operations of average pooling into one matrix product for each dimension."""

    def along(axis: int) -> Callable[[Tensor], Tensor]:
        kernel, step, pad = kernel_size[axis], (stride or kernel_size)[axis], padding[axis]
        divisor = None if divisor_override is None else 1  # 1: the sum
        return lambda rows: functional.avg_pool2d(
            rows[..., None], (kernel, 1), (step, 1), (pad, 0), ceil_mode, count_include_pad, divisor
        )[..., 0]

    grad_input = _per_axis_backward(grad_output, input, [along(axis) for axis in range(len(kernel_size))])
    return grad_input if divisor_override is None else grad_input / divisor_override


def _adaptive_avg_pool_backward(axes: int) -> Callable[..., Tensor]:
    """Returns the backward operation of adaptive average pooling over the last ``axes`` dimensions."""

    def backward(grad_output: Tensor, input: Tensor) -> Tensor:
        sizes = [int(size) for size in grad_output.shape[-axes:]]
        return _per_axis_backward(
            grad_output, input, [partial(functional.adaptive_avg_pool1d, output_size=size) for size in sizes]
        )

    return backward


def _pad_backward(mode: str) -> Callable[..., Tensor]:
    """Returns the backward operation of padding: one matrix product for each dimension. ``mode``: see ``torch.nn.functional.pad``."""

    def backward(grad_output: Tensor, input: Tensor, padding: List[int]) -> Tensor:
        pairs = [padding[i : i + 2] for i in range(0, len(padding), 2)]  # the last dimension comes first
        return _per_axis_backward(
            grad_output, input, [partial(functional.pad, pad=pair, mode=mode) for pair in reversed(pairs)]
        )

    return backward


def _max_pool_backward(axes: int) -> Callable[..., Tensor]:
    """Returns the backward operation of max pooling over the last ``axes`` dimensions: adds each gradient where its maximum was."""

    def backward(grad_output: Tensor, input: Tensor, *options_and_indices: Any) -> Tensor:
        flat = input.new_zeros(input.shape).flatten(-axes)
        indices = options_and_indices[-1].flatten(-axes)
        return flat.scatter_add(-1, indices, grad_output.flatten(-axes)).reshape(input.shape)

    return backward


def _weight_norm_backward(
    grad_weight: Tensor, direction: Tensor, magnitude: Tensor, norm: Tensor, dim: int
) -> Tuple[Tensor, Tensor]:
    """Decomposes the backward operation of ``weight = magnitude * direction / norm``, with the norm over all dimensions but ``dim``."""
    others = [axis for axis in range(direction.dim()) if axis != dim % direction.dim()]
    grad_magnitude = (grad_weight * direction).sum(others, keepdim=True) / norm
    return magnitude / norm * (grad_weight - direction * (grad_magnitude / norm)), grad_magnitude


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


def _attention_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    attn_mask: Optional[Tensor] = None,
    scale: Optional[float] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Decomposes the backward operation of ``output = softmax(scale * query @ key.T + attn_mask) @ value``.

    All operands are ``[N, heads, length, features]``.

    As in eager mode, the weights of a row whose mask is ``-inf`` everywhere are 0.
    """
    shared = query.size(1) // key.size(1)  # number of heads of the query for each head of key and value
    key_of_head, value_of_head = (tensor.repeat_interleave(shared, 1) if shared > 1 else tensor for tensor in (key, value))
    scale = query.size(-1) ** -0.5 if scale is None else scale
    scores = query @ key_of_head.transpose(-2, -1) * scale
    if attn_mask is not None:
        scores = scores + attn_mask
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    masked = (scores == float("-inf")).all(-1, keepdim=True)
    weights = scores.softmax(-1).masked_fill(masked, 0.0)
    grad_weights = grad_output @ value_of_head.transpose(-2, -1)
    grad_scores = weights * (grad_weights - (grad_output * output).sum(-1, keepdim=True)) * scale
    grad_key, grad_value = grad_scores.transpose(-2, -1) @ query, weights.transpose(-2, -1) @ grad_output
    if shared > 1:
        grad_key, grad_value = (grad.unflatten(1, (key.size(1), shared)).sum(2) for grad in (grad_key, grad_value))
    return grad_scores @ key_of_head, grad_key, grad_value


_TORCH_DECOMPOSITIONS = decompositions()
_ATTENTION = aten_operator("_scaled_dot_product_flash_attention_for_cpu")
# Own decompositions, by the name of the operator: of those that torch lacks or has in more operations.
_OWN: Dict[str, Callable[..., Any]] = {
    "convolution_backward": _convolution_backward,
    "slice_backward": _slice_backward,
    "avg_pool2d_backward": _avg_pool_backward,
    "avg_pool3d_backward": _avg_pool_backward,
    "_adaptive_avg_pool2d_backward": _adaptive_avg_pool_backward(2),
    "_adaptive_avg_pool3d_backward": _adaptive_avg_pool_backward(3),
    **{f"reflection_pad{axes}d_backward": _pad_backward("reflect") for axes in (1, 2, 3)},
    **{f"replication_pad{axes}d_backward": _pad_backward("replicate") for axes in (1, 2, 3)},
    "adaptive_max_pool2d_backward": _max_pool_backward(2),
    "adaptive_max_pool3d_backward": _max_pool_backward(3),
    "max_pool3d_with_indices_backward": _max_pool_backward(3),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "_weight_norm_interface_backward": _weight_norm_backward,
}
# Decompositions of torch for backward operations, and the own ones. Attention is also decomposed in forward: its fused operator counts as
# one that draws random numbers.
DECOMPOSITIONS: Dict[Any, Callable[..., Any]] = {
    **{
        operation: decomposition
        for operation, decomposition in _TORCH_DECOMPOSITIONS.items()
        if "backward" in str(operation) or operation is _ATTENTION
    },
    **{aten_operator(name): decomposition for name, decomposition in _OWN.items()},
}
