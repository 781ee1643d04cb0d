"""Names of parameters for ``torch.func.functional_call`` on networks that share modules or parameters."""

from typing import Dict

from torch import nn


def parameter_names_by_location(module: nn.Module) -> Dict[str, str]:
    """Maps a full name of each place that holds a parameter to the parameter's first name in ``named_parameters``.

    A place is an attribute of a submodule. A submodule that is registered under several names has one place for each of its parameters. A
    parameter that two submodules hold has two places.

    Pass a tensor for each of these names to ``functional_call(..., tie_weights=False)``. With ``tie_weights=True``, torch swaps a place
    once for each name that leads to it, and then restores the passed tensor instead of the parameter.
    """
    names: Dict[int, str] = {}
    places: Dict[str, str] = {}
    for prefix, submodule in module.named_modules():
        for name, parameter in submodule.named_parameters(prefix, recurse=False, remove_duplicate=False):
            places[name] = names.setdefault(id(parameter), name)
    return places
