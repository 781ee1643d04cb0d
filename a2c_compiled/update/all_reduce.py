"""An all-reduce that can be part of a compiled graph."""

from typing import List, Optional, Sequence

from torch import Tensor

from a2c_compiled._torch_internals import all_reduce_sum
from a2c_compiled.update.packing import joined, parted


def group_name_of(process_group: Optional[object]) -> Optional[str]:
    """Returns the name of a process group; None for None. Unlike the group, its name can be copied, pickled and compiled.

    Raises:
        TypeError: ``process_group`` is not a process group.
    """
    if process_group is None:
        return None
    name = getattr(process_group, "group_name", None)
    if name is None:
        raise TypeError(f"process_group: expected a torch.distributed.ProcessGroup or None, got {type(process_group).__name__}")
    return str(name)


def summed_over_processes(tensors: Sequence[Tensor], group_name: str) -> List[Tensor]:
    """Sums each tensor over the processes of the group, with one all-reduce for all tensors.

    Returns:
        New tensors with the shapes and dtypes of ``tensors``.
    """
    sums = parted(all_reduce_sum(joined(tensors), group_name), tensors)
    return [total.to(tensor.dtype) for total, tensor in zip(sums, tensors, strict=True)]
