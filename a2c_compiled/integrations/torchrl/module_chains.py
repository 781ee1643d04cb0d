"""Converts sequences of TensorDictModules to one module that takes and returns tensors.

The module can be compiled, scripted and exported if the modules inside it can.
"""

import operator
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule, TensorDictSequential
from tensordict.nn.utils import biased_softplus, mappings
from tensordict.utils import unravel_key
from torch import fx, nn
from torchrl.modules import MLP

from a2c_compiled import distributions
from a2c_compiled.integrations.torchrl.shared_networks import has_hooks

Key = Union[str, Tuple[str, ...]]


class RawScale(NamedTuple):
    """The parameters of a normal distribution before the scale is mapped.

    Attributes:
        node: computes locations and raw scales, concatenated in the last dimension.
        scale_mapping: name of the function that maps raw scales to scales.
        scale_lb: lower bound of the scales.
        dim: dimension of the action; None if it cannot be read from the modules.
    """

    node: fx.Node
    scale_mapping: str
    scale_lb: float
    dim: Optional[int]


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the modules of nested TensorDictSequentials, in order.

    Raises:
        TypeError: a TensorDictSequential has hooks, or a ``forward`` that is set on the instance.
    """
    if not isinstance(module, TensorDictSequential):
        yield module
        return
    if has_hooks(module):
        raise TypeError(f"{type(module).__name__}: expected a sequence without hooks, got one with hooks or its own forward")
    children: Any = module.module
    inner = children.values() if isinstance(children, nn.ModuleDict) else children
    for child in inner:
        yield from leaves(child)


class Chain:
    """Builds an fx graph from TensorDictModules that run in order.

    Args:
        keys: keys of the entries that are the observation. With one key the observation is a tensor, with several a tuple of tensors.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.graph = fx.Graph()
        self.modules: Dict[str, nn.Module] = {}
        self.widths: Dict[Key, Optional[int]] = {}
        self.raw_scales: Dict[Tuple[Key, Key], RawScale] = {}
        observation = self.graph.placeholder("observation")
        self.nodes: Dict[Key, fx.Node] = {keys[0]: observation}
        if len(keys) > 1:
            self.nodes = {key: self.graph.call_function(operator.getitem, (observation, i)) for i, key in enumerate(keys)}

    def node(self, key: Any) -> fx.Node:
        """Returns the node that computes the entry ``key``.

        Raises:
            ValueError: no earlier module writes the entry.
        """
        key = unravel_key(key)
        if key not in self.nodes:
            raise ValueError(f"actor_network: expected an earlier module that writes the entry {key!r}, got none")
        return self.nodes[key]

    def width(self, key: Any) -> Optional[int]:
        """Returns the size of the last dimension of the entry ``key``, or None if the module that writes the entry has no such size."""
        return self.widths.get(unravel_key(key))

    def run(self, module: nn.Module) -> None:
        """Adds to the graph a module that reads its ``in_keys`` and writes its ``out_keys``.

        Raises:
            TypeError: the module is not a plain TensorDictModule, or has hooks.
            ValueError: an entry that the module reads is missing, or its mapping or shape of the scale is not supported.
        """
        if not isinstance(module, TensorDictModule) or type(module).forward is not TensorDictModule.forward:
            raise TypeError(f"actor_network, critic_network: expected TensorDictModules, got {type(module).__name__}")
        if has_hooks(module) or not isinstance(module.module, nn.Module):
            raise TypeError(
                f"actor_network, critic_network: expected TensorDictModules of nn.Modules, without hooks, got {module}"
            )
        if module._kwargs is not None or module.method is not None or module.out_keys != module.out_keys_source:
            raise TypeError(f"actor_network, critic_network: expected no options but in_keys and out_keys, got {module}")
        arguments = [self.node(key) for key in module.in_keys]
        out_keys = [unravel_key(key) for key in module.out_keys]
        may_map_scales = len(arguments) == 1 and len(out_keys) == 2
        if may_map_scales and self._run_without_mapping(module.module, arguments[0], module.in_keys[0], out_keys):
            return
        self._run(module.module, arguments, out_keys)

    def _run(self, module: nn.Module, arguments: List[fx.Node], out_keys: List[Key]) -> None:
        """Adds a call of ``module``, and the entries that it writes."""
        result = self._call(module, arguments)
        for i, key in enumerate(out_keys):
            self.nodes[key] = result if len(out_keys) == 1 else self.graph.call_function(operator.getitem, (result, i))
            self.widths[key] = _width(module) if len(out_keys) == 1 else None

    def _run_without_mapping(self, module: nn.Module, argument: fx.Node, in_key: Key, out_keys: List[Key]) -> bool:
        """Adds a module that ends in a mapping of scales, without the mapping: this library's distributions map the scales themselves.

        Returns False if the module does not end in such a mapping.
        """
        last = module[-1] if type(module) is nn.Sequential else module
        if not isinstance(last, (NormalParamExtractor, AddStateIndependentNormalScale)):
            return False
        name = _mapping_name(last.scale_mapping)
        dim = self.width(in_key)
        if type(module) is nn.Sequential and len(module) > 1:
            before = module[0] if len(module) == 2 else module[:-1]
            argument, dim = self._call(before, [argument]), _width(before)
        if isinstance(last, AddStateIndependentNormalScale):
            dim = last.state_independent_scale.numel()
            if last.state_independent_scale.shape != (dim,):
                raise ValueError(f"scale_shape: expected one dimension, got {list(last.state_independent_scale.shape)}")
            scale = distributions.AddStateIndependentNormalScale(dim)
            scale.state_independent_scale = last.state_independent_scale
            argument = self._call(scale, [argument])
        else:
            dim = None if dim is None else dim // 2
        self.raw_scales[out_keys[0], out_keys[1]] = RawScale(argument, name, float(last.scale_lb), dim)
        return True

    def _call(self, module: nn.Module, arguments: List[fx.Node]) -> fx.Node:
        """Adds a node that calls ``module``."""
        name = f"module_{len(self.modules)}"
        # TorchScript cannot compile the ``*inputs`` of an MLP. With one input, an MLP runs its layers in order.
        self.modules[name] = nn.Sequential(*module.children()) if type(module) is MLP and len(arguments) == 1 else module
        return self.graph.call_module(name, tuple(arguments))

    def concatenated(self, nodes: Sequence[fx.Node]) -> fx.Node:
        """Returns a node that concatenates entries in the last dimension, in the dtype of the first entry."""
        if len(nodes) == 1:
            return nodes[0]
        converted = [nodes[0], *(self.graph.call_method("type_as", (node, nodes[0])) for node in nodes[1:])]
        return self.graph.call_function(torch.cat, (converted, -1))

    def module(self, output: fx.Node) -> nn.Module:
        """Returns a module that maps the observation to ``output``."""
        self.graph.output(output)
        graph_module = fx.GraphModule(self.modules, self.graph)
        graph_module.graph.eliminate_dead_code()
        graph_module.delete_all_unused_submodules()
        graph_module.recompile()
        # Three nodes (placeholder, module, output): the graph only calls one module, so return this module.
        return next(graph_module.children()) if len(graph_module.graph.nodes) == 3 else graph_module


def _width(module: nn.Module) -> Optional[int]:
    """Returns ``out_features`` of the module, or of the last layer that has this attribute; None if no layer has it."""
    out_features: Any = getattr(module, "out_features", None)
    if isinstance(out_features, int):
        return out_features
    if isinstance(module, nn.Sequential):
        return next((width for width in map(_width, reversed(list(module))) if width is not None), None)
    return None


def _mapping_name(mapping: Any) -> str:
    """Returns this library's name of a mapping of scales, which tensordict stores as a name or as a function.

    Raises:
        ValueError: this library has no such mapping.
    """
    mapping = mappings(mapping) if isinstance(mapping, str) else mapping
    # This library's biased softplus has tensordict's default min_val, 0.01.
    if isinstance(mapping, biased_softplus) and mapping.min_val == 0.01:
        bias = float(nn.functional.softplus(torch.tensor(mapping.bias, dtype=torch.float64))) + mapping.min_val
        return f"biased_softplus_{round(bias, 5)}"  # tensordict rounds the shift to float32
    for name, ours in (("softplus", "softplus"), ("exp", "exp"), ("relu", "relu"), ("none", "identity")):
        if mapping is mappings(name):
            return ours
    raise ValueError(f"scale_mapping: expected biased_softplus, softplus, exp, relu or none, got {mapping}")
