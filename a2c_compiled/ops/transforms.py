"""Preparation of an operator's arguments for vmap and for dynamo."""

from typing import Any, Sequence, Tuple

from torch import Tensor


def batch_first(size: int, in_dims: Sequence[Any], tensors: Sequence[Tensor], num_coefficients: int = 0) -> Tuple[Tensor, ...]:
    """Returns ``tensors`` with vmap's dimension first, all expanded to the shape of the last tensor.

    The dimension of time is negative, so it stays valid. A zero-dimensional coefficient without a vmap dimension stays unchanged.

    Args:
        size: the size of vmap's dimension.
        in_dims: vmap's dimension in each tensor, or None.
        tensors: the operands, coefficients first.
        num_coefficients: the number of coefficients among ``tensors``.
    """
    reference, reference_dim = tensors[-1], in_dims[len(tensors) - 1]
    shape = (size, *(reference.shape if reference_dim is None else reference.movedim(reference_dim, 0).shape[1:]))
    batched = []
    for i, (tensor, in_dim) in enumerate(zip(tensors, in_dims, strict=False)):
        if i < num_coefficients and in_dim is None and tensor.dim() == 0:
            batched.append(tensor)
            continue
        moved = tensor.unsqueeze(0) if in_dim is None else tensor.movedim(in_dim, 0)
        # Align the other dimensions at the end, as broadcasting does.
        missing_dims = [1] * (len(shape) - moved.dim())
        batched.append(moved.reshape(moved.size(0), *missing_dims, *moved.shape[1:]).expand(shape))
    return tuple(batched)


def vmap_out_dims(num_outputs: int) -> Any:
    """Returns vmap's ``out_dims`` for outputs whose batch dimension is dimension 0."""
    return 0 if num_outputs == 1 else (0,) * num_outputs


def fresh_views(tensors: Sequence[Tensor]) -> Tuple[Tensor, ...]:
    """Returns a new view of each tensor, for an ``autograd.Function`` that dynamo traces.

    Dynamo does not detect that the inputs of ``torch.func.grad`` require gradients, and would leave out the backward pass. Dynamo does
    detect that views of these inputs require gradients. Dynamo also rejects calls that pass one tensor twice, as the functions pass
    ``done`` if ``terminated`` is None.
    """
    return tuple([tensor.view_as(tensor) for tensor in tensors])
