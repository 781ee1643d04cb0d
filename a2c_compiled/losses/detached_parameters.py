"""Rewrites a critic so that the critic reads some parameters detached.

TorchScript needs the rewritten critic, because TorchScript has no ``torch.func.functional_call``.
"""

from typing import List

from torch import fx, nn


class _ParameterTracer(fx.Tracer):
    """Traces only into the modules that own one of ``parameters``, so that each use of such a parameter becomes a node of the graph."""

    def __init__(self, parameters: List[str]) -> None:
        super().__init__()
        self.owners = {name.rpartition(".")[0] for name in parameters}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Returns False for a module that owns one of the parameters or contains such a module. All others stay whole."""
        return not any(f"{owner}.".startswith(f"{module_qualified_name}.") for owner in self.owners)


def detach_parameters(network: nn.Module, parameters: List[str]) -> nn.Module:
    """Traces ``network``. The result shares the parameters of ``network`` and detaches those named in ``parameters`` at each use.

    Raises:
        TypeError: torch.fx cannot trace ``network``.
    """
    try:
        graph = _ParameterTracer(parameters).trace(network)
    except Exception as error:
        raise TypeError(
            "critic_network: expected a network that torch.fx can trace, because TorchScript must detach the parameters that the critic"
            f" shares with actor_network (separate_losses=True), got {type(network).__name__}"
        ) from error
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.target in parameters:
            with graph.inserting_after(node):
                detached = graph.call_method("detach", (node,))
            node.replace_all_uses_with(detached, delete_user_cb=lambda user, kept=detached: user is not kept)
    return fx.GraphModule(network, graph)
