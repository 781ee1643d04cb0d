"""Where a module keeps its parameters, for ``torch.func.functional_call`` on networks that share modules."""

from typing import Dict

from torch import nn


def parameter_places(module: nn.Module) -> Dict[str, str]:
    """One name of each place that holds a parameter, and under it the parameter's own name, its first in ``named_parameters``.

    A shared submodule is one place with several names; a parameter that two submodules hold has two places. Values for exactly these
    names go to ``functional_call(..., tie_weights=False)``: with ``tie_weights=True`` torch swaps a place once for every name that
    leads to it, and leaves the given tensor there instead of the parameter.
    """
    names: Dict[int, str] = {}
    places: Dict[str, str] = {}
    for prefix, submodule in module.named_modules():
        for name, parameter in submodule.named_parameters(prefix, recurse=False, remove_duplicate=False):
            places[name] = names.setdefault(id(parameter), name)
    return places
