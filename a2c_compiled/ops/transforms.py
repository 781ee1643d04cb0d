"""What function transforms ask of the operators' arguments."""

from typing import Any, Sequence, Tuple

from torch import Tensor


def batch_first(size: int, in_dims: Sequence[Any], tensors: Sequence[Tensor], num_coefficients: int = 0) -> Tuple[Tensor, ...]:
    """Every tensor with vmap's dimension in front, in the shape of the last one; ``dim`` counts from the end and stays.

    But a zero-dimensional coefficient that has no such dimension is left as it is; coefficients come first.
    """
    reference, reference_dim = tensors[-1], in_dims[len(tensors) - 1]
    shape = (size, *(reference.shape if reference_dim is None else reference.movedim(reference_dim, 0).shape[1:]))
    batched = []
    for i, (tensor, in_dim) in enumerate(zip(tensors, in_dims, strict=False)):
        if i < num_coefficients and in_dim is None and tensor.dim() == 0:
            batched.append(tensor)
            continue
        front = tensor.unsqueeze(0) if in_dim is None else tensor.movedim(in_dim, 0)
        batched.append(front.reshape(front.size(0), *[1] * (len(shape) - front.dim()), *front.shape[1:]).expand(shape))
    return tuple(batched)


def seen_by_dynamo(tensors: Sequence[Tensor]) -> Tuple[Tensor, ...]:
    """The same, as an autograd.Function that dynamo traces takes them.

    Dynamo does not see that torch.func.grad has its own inputs require gradients, and would leave out the backward; it sees it in
    whatever is computed from them. And it wants no tensor twice, as ``done`` is without ``terminated``.
    """
    return tuple([tensor.view_as(tensor) for tensor in tensors])
