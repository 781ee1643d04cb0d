"""Sums over processes inside a graph."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled._torch_internals import sum_over_processes


def group_name_of(process_group: Optional[object]) -> Optional[str]:
    """The name of a group of processes, which unlike the group copies, pickles and compiles.

    Raises:
        TypeError: it is no process group.
    """
    if process_group is None:
        return None
    name = getattr(process_group, "group_name", None)
    if name is None:
        raise TypeError(f"process_group: expected a torch.distributed.ProcessGroup or None, got {type(process_group).__name__}")
    return str(name)


def summed_over_processes(tensors: Sequence[Tensor], group_name: str) -> List[Tensor]:
    """Each tensor's sum over the processes, in one all-reduce of them all."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    sums = sum_over_processes(flat, group_name).split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(sums, tensors, strict=True)]
