"""Faster replacements for methods of TorchRL's losses and value estimators that call the networks."""

from typing import Any, Callable, Optional, Tuple, Union

import torch
from tensordict import TensorDict
from tensordict.nn import skip_existing
from torch import Tensor

from a2c_compiled._torch_internals import dispatch_is_plain
from a2c_compiled.integrations.torchrl.shared_networks import are_views, holds_same_tensors, plain_network

Count = Callable[[Optional[str]], None]


def call_value_nets(original: Callable[..., Any], count: Count) -> Callable[..., Any]:
    """Returns the replacement for ``ValueEstimatorBase._call_value_nets``.

    The replacement calls the value network once on the stacked observations and next observations. TorchRL maps the network over a stack of
    TensorDicts and parameters with ``vmap``.
    """

    def replacement(
        self: Any,
        data: Any,
        params: Any,
        next_params: Any,
        single_call: Any,
        value_key: Any,
        detach_next: bool,
        vmap_randomness: str = "error",
        *,
        value_net: Any = None,
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return original(
                self, data, params, next_params, single_call, value_key, detach_next, vmap_randomness, value_net=value_net
            )
        chunked = self.value_chunk_size is not None or self.num_chunks is not None
        result: Union[Tuple[Any, Tensor], str] = "shifted or chunked values"
        if not single_call and not chunked:
            result = _values(self, data, params, next_params, value_key, self.value_network if value_net is None else value_net)
        if isinstance(result, str):
            count(f"value network: {result}")
            return original(
                self, data, params, next_params, single_call, value_key, detach_next, vmap_randomness, value_net=value_net
            )
        count(None)
        data, values = result
        value, next_value = values.unbind(0)
        data.set(value_key, value)
        data.set(("next", value_key), next_value)
        if detach_next:
            next_value = next_value.detach()
        return value, next_value, None  # the third result is a mask of valid values; None: all are valid

    return replacement


def _values(
    estimator: Any, data: Any, params: Any, next_params: Any, value_key: Any, value_net: Any
) -> Union[Tuple[Any, Tensor], str]:
    """Returns the data, and the values ``[2, ...]`` of observations and next observations.

    In the returned data, NaN in next observations is replaced as in TorchRL. If TorchRL must compute the values, returns the reason.
    """
    plain = plain_network(value_net)
    if plain is None or value_net.out_keys[0] != value_key or skip_existing():
        return "not a network of supported layers from one entry to one entry"
    if type(data) is not TensorDict or not dispatch_is_plain():
        return "not a TensorDict of plain tensors, or a mode or transform is active"
    network, key = plain
    data = estimator._sanitize_next_obs_nan(data, value_net.in_keys)
    next_data = data.get("next", None)
    if type(next_data) is not TensorDict:
        return "not a TensorDict of plain tensors, or a mode or transform is active"
    observation, next_observation = data.get(key, None), next_data.get(key, None)
    if type(observation) is not Tensor or type(next_observation) is not Tensor:
        return "not a TensorDict of plain tensors, or a mode or transform is active"
    has_value, has_next_value = (entries.get(value_key, None) is not None for entries in (data, next_data))
    if _kind(observation) != _kind(next_observation) or has_value != has_next_value:
        return "next observations of another shape, dtype or device, or a value for only one of both"
    if params is None and next_params is None:
        values = network(torch.stack([observation, next_observation]))
    elif not (are_views(params, value_net) and are_views(next_params, value_net)):
        return "parameters other than those of the value network"
    elif observation.requires_grad or next_observation.requires_grad:
        return "observations that require grad"
    else:
        with torch.no_grad():  # the parameters are detached, so there is no gradient
            values = network(torch.stack([observation, next_observation]))
    if values.shape[1 : 1 + data.batch_dims] != data.batch_size:
        return "values without the batch shape of the data"
    return data, values


def _kind(tensor: Tensor) -> Tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def without_parameter_swap(original: Callable[..., Any], network: str) -> Callable[..., Any]:
    """Returns the replacement for a method of a loss that swaps parameters into a network while it runs.

    The replacement skips the swap if the network already holds these parameters.
    """

    def replacement(self: Any, *arguments: Any, **named: Any) -> Any:
        if (
            torch.compiler.is_dynamo_compiling()
            or not self._functional
            or not holds_same_tensors(getattr(self, network), getattr(self, f"{network}_params"))
        ):
            return original(self, *arguments, **named)
        self.__dict__["_functional"] = False
        try:
            return original(self, *arguments, **named)
        finally:
            self.__dict__["_functional"] = True

    return replacement
