"""Checks whether a network can be called with tensors instead of TensorDicts, and whether it holds given parameters."""

from typing import Any, Iterator, Optional, Tuple

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams
from torch import Tensor, nn
from torchrl.modules import MLP, ValueOperator

from a2c_compiled._torch_internals import module_has_hooks

_CONTAINERS = (nn.Sequential, MLP)
# Each layer maps the last dimension or single elements, and accepts any number of leading dimensions.
_LAYERS = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Identity,
    nn.Tanh,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Tanhshrink,
)


def plain_network(module: Any) -> Optional[Tuple[nn.Module, Any]]:
    """Returns the network inside a TensorDictModule and the key of its input, or None if the network is not plain.

    A plain network maps one tensor to one tensor. Its layers are deterministic, have no hooks, and accept any number of leading dimensions.
    """
    if type(module) not in (TensorDictModule, ValueOperator) or has_hooks(module):
        return None
    if module._kwargs is not None or module.method is not None or module.method_kwargs or module._get_kwargs:
        return None
    if len(module.in_keys) != 1 or len(module.out_keys) != 1 or module.out_keys != module.out_keys_source:
        return None
    return (module.module, module.in_keys[0]) if _takes_any_batch(module.module) else None


def _takes_any_batch(module: Any) -> bool:
    """Returns whether all layers are in ``_LAYERS`` and have no hooks."""
    kind = type(module)
    if kind in _LAYERS:
        return not has_hooks(module)
    return kind in _CONTAINERS and not has_hooks(module) and all(map(_takes_any_batch, module._modules.values()))


def has_hooks(module: nn.Module) -> bool:
    """Returns whether a call of ``module`` runs hooks, or a ``forward`` that is set on the instance."""
    return "forward" in module.__dict__ or module_has_hooks(module)


def holds_same_tensors(module: nn.Module, params: Any) -> bool:
    """Returns whether ``params`` holds the same tensor objects as ``module``, so that swapping them into ``module`` changes nothing."""
    if type(params) is not TensorDictParams:
        return False
    tensors = {**params._parameters, **params._buffers}
    own = dict(_named_tensors(module, ""))
    return len(own) == len(tensors) and all(tensors.get(name) is tensor for name, tensor in own.items())


def _named_tensors(module: nn.Module, prefix: str) -> Iterator[Tuple[str, Tensor]]:
    """Yields all parameters and buffers by name. A tensor with several names is yielded once per name."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield f"{prefix}{name}", tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_tensors(child, f"{prefix}{name}.")


def are_views(params: Optional[TensorDictBase], module: nn.Module) -> bool:
    """Returns whether ``params`` are the detached parameters and buffers of ``module``, in the same memory."""
    if params is None:
        return False
    own = {name: tensor for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None}
    children = {name: child for name, child in module._modules.items() if child is not None and not _is_empty(child)}
    # A name in params that is no parameter, buffer or submodule was added in place of a parameter.
    return (
        all(name in own or name in module._modules for name in params.keys())  # noqa: SIM118 - no dict
        and all(_is_view(params.get(name, None), tensor) for name, tensor in own.items())
        and all(are_views(params.get(name, None), child) for name, child in children.items())
    )


def _is_empty(module: nn.Module) -> bool:
    """Returns whether ``module`` has no parameters, buffers or submodules."""
    return not module._parameters and not module._buffers and not module._modules


def _is_view(tensor: Any, parameter: Tensor) -> bool:
    """Returns whether ``tensor`` is ``parameter`` in the same memory, without requiring grad."""
    return (
        isinstance(tensor, Tensor)
        and tensor.data_ptr() == parameter.data_ptr()
        and tensor.shape == parameter.shape
        and tensor.stride() == parameter.stride()
        and tensor.dtype == parameter.dtype
        and tensor.device == parameter.device
        and not tensor.requires_grad
    )
