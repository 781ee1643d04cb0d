"""Networks that need no TensorDict: what they are made of, and whose parameters they hold."""

from typing import Any, Iterator, Optional, Tuple

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams
from torch import Tensor, nn
from torchrl.modules import MLP, ValueOperator

from a2c_compiled._torch_internals import is_hooked

_CONTAINERS = (nn.Sequential, MLP)
# Each maps the last dimension, or every element, and takes any number of leading ones.
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
    """The network inside a TensorDictModule and the key that it reads, where nothing else happens around it or in it.

    It maps one tensor to one tensor by layers that take any number of leading dimensions, without hooks and without randomness.
    """
    if type(module) not in (TensorDictModule, ValueOperator) or is_watched(module):
        return None
    if module._kwargs is not None or module.method is not None or module.method_kwargs or module._get_kwargs:
        return None
    if len(module.in_keys) != 1 or len(module.out_keys) != 1 or module.out_keys != module.out_keys_source:
        return None
    return (module.module, module.in_keys[0]) if _takes_any_batch(module.module) else None


def _takes_any_batch(module: Any) -> bool:
    kind = type(module)
    if kind in _LAYERS:
        return not is_watched(module)
    return kind in _CONTAINERS and not is_watched(module) and all(map(_takes_any_batch, module._modules.values()))


def is_watched(module: nn.Module) -> bool:
    """Whether anything but ``forward`` of its class happens when it is called."""
    return "forward" in module.__dict__ or is_hooked(module)


def are_own(module: nn.Module, params: Any) -> bool:
    """Whether ``params`` are the very parameters and buffers that ``module`` holds, so that to put them there changes nothing."""
    if type(params) is not TensorDictParams:
        return False
    given = {**params._parameters, **params._buffers}
    own = dict(_named_tensors(module, ""))
    return len(own) == len(given) and all(given.get(name) is tensor for name, tensor in own.items())


def _named_tensors(module: nn.Module, prefix: str) -> Iterator[Tuple[str, Tensor]]:
    """Parameters and buffers, also those that have several names."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield f"{prefix}{name}", tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_tensors(child, f"{prefix}{name}.")


def are_views(params: Optional[TensorDictBase], module: nn.Module) -> bool:
    """Whether ``params`` are the parameters of ``module``, detached but not copied."""
    if params is None:
        return False
    own = {name: tensor for name, tensor in (*module._parameters.items(), *module._buffers.items()) if tensor is not None}
    children = {name: child for name, child in module._modules.items() if child is not None and not _holds_none(child)}
    # More than the module has as its own is what was put there in the place of a parameter.
    return (
        all(name in own or name in module._modules for name in params.keys())  # noqa: SIM118 - no dict
        and all(_is_view(params.get(name, None), tensor) for name, tensor in own.items())
        and all(are_views(params.get(name, None), child) for name, child in children.items())
    )


def _holds_none(module: nn.Module) -> bool:
    return not module._parameters and not module._buffers and not module._modules


def _is_view(tensor: Any, of: Tensor) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.data_ptr() == of.data_ptr()
        and tensor.shape == of.shape
        and tensor.stride() == of.stride()
        and tensor.dtype == of.dtype
        and tensor.device == of.device
        and not tensor.requires_grad
    )
