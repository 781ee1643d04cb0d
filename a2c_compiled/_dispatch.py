"""Whether PyTorch's dispatcher has anything to do."""

import torch


def _included_keys() -> int:
    return torch._C._dispatch_tls_local_include_set().raw_repr()


_USUAL = _included_keys()


def nothing_watches() -> bool:
    """Whether an operator that is called now goes straight to its kernel: no mode, function transform or trace is to see it.

    Not for code that torch.compile traces.
    """
    return _included_keys() == _USUAL
