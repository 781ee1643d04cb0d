"""Whether PyTorch's dispatcher has anything to do."""

from typing import Set

import torch


def _included_keys() -> int:
    return torch._C._dispatch_tls_local_include_set().raw_repr()


def _usual() -> Set[int]:
    """What is included where nothing is at work, outside and inside inference mode."""
    found = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.add(_included_keys())
    return found


_USUAL = _usual()


def nothing_watches() -> bool:
    """Whether an operator that is called now goes straight to its kernel: no mode, function transform or trace is to see it.

    Not for code that torch.compile traces.
    """
    return _included_keys() in _USUAL
