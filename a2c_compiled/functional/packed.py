"""Sequences of different lengths end to end, without padding. TorchScript."""

import torch
from torch import Tensor


def sequence_ends(cu_seqlens: Tensor, like: Tensor, dim: int) -> Tensor:
    """Bool, true at the last step of each sequence along ``dim`` of ``like``, broadcastable to it.

    Raises:
        ValueError, TypeError: ``cu_seqlens`` is no vector of integers on the device of ``like``.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens: expected a tensor, got {type(cu_seqlens)}")
    if cu_seqlens.dtype != torch.int32 and cu_seqlens.dtype != torch.int64:
        raise TypeError(f"cu_seqlens: expected dtype torch.int32 or torch.int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1:
        raise ValueError(f"cu_seqlens: expected one dimension, got shape {list(cu_seqlens.shape)}")
    if cu_seqlens.device != like.device:
        raise ValueError(f"cu_seqlens: expected the device of the data, {like.device}, got {cu_seqlens.device}")
    length = like.size(dim)
    # Where a sequence begins, the one before it ended a step earlier. Before the first there is none.
    begins = torch.zeros(length + 1, dtype=torch.bool, device=like.device)
    most = torch.full([], length, dtype=torch.int64, device=like.device)  # a tensor, since ONNX's Clip takes no size
    ends = begins.index_fill(0, torch.minimum(cu_seqlens.long().clamp_min(0), most), True)[1:]
    shape = [1] * like.dim()
    shape[dim] = length
    return ends.reshape(shape)
