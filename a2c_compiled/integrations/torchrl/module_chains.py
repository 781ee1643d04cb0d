"""Chains of TensorDict modules as one module of tensors, which compiles, scripts and exports where the modules inside do."""

import operator
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule, TensorDictSequential
from tensordict.nn.utils import biased_softplus, mappings
from tensordict.utils import unravel_key
from torch import fx, nn
from torchrl.modules import MLP

from a2c_compiled import distributions
from a2c_compiled.integrations.torchrl.shared_networks import is_watched

Key = Union[str, Tuple[str, ...]]


class RawScale(NamedTuple):
    """Locations and raw scales side by side, and how the scales are to be mapped."""

    node: fx.Node
    scale_mapping: str
    scale_lb: float
    dim: Optional[int]


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of a chain of chains, in order."""
    if not isinstance(module, TensorDictSequential):
        yield module
        return
    if is_watched(module):
        raise TypeError(f"{type(module).__name__}: expected a chain without hooks")
    chain: Any = module.module
    inner = chain.values() if isinstance(chain, nn.ModuleDict) else chain
    for child in inner:
        yield from leaves(child)


class Chain:
    """Modules that are run in order on entries of a TensorDict, as a graph.

    Args:
        keys: of the observations; one is a tensor, several are a tuple of tensors.
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
        """The entry ``key`` so far."""
        key = unravel_key(key)
        if key not in self.nodes:
            raise ValueError(f"actor_network: expected an entry {key!r} that a module before it writes as it is")
        return self.nodes[key]

    def width(self, key: Any) -> Optional[int]:
        """The last dimension of the entry ``key``, where its module says it."""
        return self.widths.get(unravel_key(key))

    def run(self, module: nn.Module) -> None:
        """What the module writes, from what it reads."""
        if not isinstance(module, TensorDictModule) or type(module).forward is not TensorDictModule.forward:
            raise TypeError(f"actor_network, critic_network: expected TensorDictModules, got {type(module).__name__}")
        if is_watched(module) or not isinstance(module.module, nn.Module):
            raise TypeError(f"actor_network, critic_network: expected modules without hooks, got {module}")
        if module._kwargs is not None or module.method is not None or module.out_keys != module.out_keys_source:
            raise TypeError(f"actor_network, critic_network: expected in_keys and out_keys and no more, got {module}")
        arguments = [self.node(key) for key in module.in_keys]
        out_keys = [unravel_key(key) for key in module.out_keys]
        if (
            len(arguments) != 1
            or len(out_keys) != 2
            or not self._run_raw(module.module, arguments[0], module.in_keys[0], out_keys)
        ):
            self._run(module.module, arguments, out_keys)

    def _run(self, module: nn.Module, arguments: List[fx.Node], out_keys: List[Key]) -> None:
        result = self._call(module, arguments)
        for i, key in enumerate(out_keys):
            self.nodes[key] = result if len(out_keys) == 1 else self.graph.call_function(operator.getitem, (result, i))
            self.widths[key] = _width(module) if len(out_keys) == 1 else None

    def _run_raw(self, module: nn.Module, argument: fx.Node, in_key: Key, out_keys: List[Key]) -> bool:
        """Locations and scales without what maps the scales, which distributions here do themselves."""
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
        name = f"module_{len(self.modules)}"
        # Of one input an MLP is its layers in order, but TorchScript cannot read its ``*inputs``.
        self.modules[name] = nn.Sequential(*module.children()) if type(module) is MLP and len(arguments) == 1 else module
        return self.graph.call_module(name, tuple(arguments))

    def side_by_side(self, nodes: Sequence[fx.Node]) -> fx.Node:
        """The entries in one tensor, in the dtype of the first."""
        if len(nodes) == 1:
            return nodes[0]
        same = [nodes[0], *(self.graph.call_method("type_as", (node, nodes[0])) for node in nodes[1:])]
        return self.graph.call_function(torch.cat, (same, -1))

    def module(self, output: fx.Node) -> nn.Module:
        """From the observation to ``output``."""
        self.graph.output(output)
        made = fx.GraphModule(self.modules, self.graph)
        made.graph.eliminate_dead_code()
        made.delete_all_unused_submodules()
        made.recompile()
        # Placeholder, module, output: the module itself.
        return next(made.children()) if len(made.graph.nodes) == 3 else made


def _width(module: nn.Module) -> Optional[int]:
    """The last dimension of what a module returns, where its last layer that has one says it."""
    out_features: Any = getattr(module, "out_features", None)
    if isinstance(out_features, int):
        return out_features
    if isinstance(module, nn.Sequential):
        return next((width for width in map(_width, reversed(list(module))) if width is not None), None)
    return None


def _mapping_name(mapping: Any) -> str:
    """This library's name of a mapping of scales, which TorchRL keeps as a name or as the function."""
    mapping = mappings(mapping) if isinstance(mapping, str) else mapping
    if isinstance(mapping, biased_softplus) and mapping.min_val == 0.01:
        bias = float(nn.functional.softplus(torch.tensor(mapping.bias, dtype=torch.float64))) + mapping.min_val
        return f"biased_softplus_{round(bias, 5)}"  # TorchRL rounds the shift to float32
    for name, ours in (("softplus", "softplus"), ("exp", "exp"), ("relu", "relu"), ("none", "identity")):
        if mapping is mappings(name):
            return ours
    raise ValueError(f"scale_mapping: expected biased_softplus, softplus, exp, relu or none, got {mapping}")
