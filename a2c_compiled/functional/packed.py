"""Packed sequences: several sequences along one time dimension, without padding. TorchScript compiles this file."""

import torch
from torch import Tensor

from a2c_compiled._kinds import check_tensor


def sequence_ends(cu_seqlens: Tensor, like: Tensor, dim: int) -> Tensor:
    """Returns a bool tensor that is True at the last step of each sequence along ``dim`` and broadcasts to ``like``.

    Raises:
        ValueError: ``cu_seqlens`` does not have one dimension, or is not on the device of ``like``.
        TypeError: ``cu_seqlens`` is not a tensor of int32 or int64.
    """
    check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype != torch.int32 and cu_seqlens.dtype != torch.int64:
        raise TypeError(f"cu_seqlens: expected dtype torch.int32 or torch.int64, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1:
        raise ValueError(f"cu_seqlens: expected one dimension, got shape {list(cu_seqlens.shape)}")
    if cu_seqlens.device != like.device:
        raise ValueError(f"cu_seqlens: expected the device of the data, {like.device}, got {cu_seqlens.device}")
    length = like.size(dim)
    # A sequence ends one step before the next sequence starts: mark the entries of cu_seqlens among 0 ... T, then drop position 0.
    starts = torch.zeros(length + 1, dtype=torch.bool, device=like.device)
    # A tensor, because ONNX's Clip does not accept a symbolic size as its bound.
    largest = torch.full([], length, dtype=torch.int64, device=like.device)
    ends = starts.index_fill(0, torch.minimum(cu_seqlens.long().clamp_min(0), largest), True)[1:]
    shape = [1] * like.dim()
    shape[dim] = length
    return ends.reshape(shape)
