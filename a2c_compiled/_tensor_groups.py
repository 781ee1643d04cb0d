"""Several groups of named tensors in one flat dict, as a safetensors file holds them."""

from typing import Dict, Optional

from torch import Tensor

Tensors = Dict[str, Tensor]


def prefixed(**groups: Optional[Tensors]) -> Tensors:
    """Groups of tensors as one, under ``group.name``."""
    return {f"{group}.{name}": x for group, tensors in groups.items() for name, x in (tensors or {}).items()}


def group_of(tensors: Tensors, group: str) -> Tensors:
    """One group of :func:`prefixed`."""
    return {name.removeprefix(f"{group}."): x for name, x in tensors.items() if name.startswith(f"{group}.")}
