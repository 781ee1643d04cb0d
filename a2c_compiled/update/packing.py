"""Small tensors as parts of one tensor: an operation on small tensors takes about as long for all of them together as for one."""

from typing import Any, Dict, List, Sequence

import torch
from torch import Tensor

LARGEST = 1 << 14
"""Number of elements up to which tensors are joined. To copy a larger tensor takes longer than an operation of its own."""


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the elements of all tensors, one tensor after the other, ``[elements]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def parted(elements: Tensor, like: Sequence[Tensor]) -> List[Tensor]:
    """Returns the tensors whose elements :func:`joined` has joined, with the shapes of ``like``."""
    parts = elements.split([tensor.numel() for tensor in like])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


class Packing:
    """Joins lists of tensors into shorter lists, and takes them apart again.

    Contiguous tensors of at most :data:`LARGEST` elements are joined, if they have the same dtype and device. Each other tensor stays as it
    is. Under torch.compile no tensors are joined: inductor makes one kernel of operations on many tensors, without the copies.

    Args:
        like: tensors with the shapes, dtypes, devices and strides of all lists.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self.like = like
        groups: Dict[Any, List[int]] = {}
        compiling = torch.compiler.is_dynamo_compiling()
        for i, tensor in enumerate(like):
            is_joined = not compiling and tensor.numel() <= LARGEST and tensor.is_contiguous()
            groups.setdefault((tensor.dtype, tensor.device) if is_joined else i, []).append(i)
        self.groups = list(groups.values())

    def packed(self, tensors: Sequence[Tensor]) -> List[Tensor]:
        """Returns one tensor for each group: the joined tensors, or the only one."""
        return [tensors[group[0]] if len(group) == 1 else joined([tensors[i] for i in group]) for group in self.groups]

    def unpacked(self, packed: Sequence[Tensor]) -> List[Tensor]:
        """Returns the tensors from which :meth:`packed` has made ``packed``."""
        tensors: Dict[int, Tensor] = {}
        for group, tensor in zip(self.groups, packed, strict=True):
            parts = [tensor] if len(group) == 1 else parted(tensor, [self.like[i] for i in group])
            tensors.update(zip(group, parts, strict=True))
        return [tensors[i] for i in range(len(self.like))]
