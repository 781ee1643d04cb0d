"""Several groups of named tensors in one flat dict, as a safetensors file stores them."""

from typing import Dict, Optional

from torch import Tensor

Tensors = Dict[str, Tensor]


def prefixed(**groups: Optional[Tensors]) -> Tensors:
    """Merges groups of named tensors into one dict with keys ``group.name``. A group that is None adds nothing."""
    return {f"{group}.{name}": x for group, tensors in groups.items() for name, x in (tensors or {}).items()}


def group_of(tensors: Tensors, group: str) -> Tensors:
    """Returns the tensors of one group from a result of :func:`prefixed`, under their own names."""
    return {name.removeprefix(f"{group}."): x for name, x in tensors.items() if name.startswith(f"{group}.")}
