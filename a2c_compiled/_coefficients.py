"""Hyperparameters that live in a module: saved with it, moved with it, changeable while it trains."""

from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn


class CoefficientModule(nn.Module):
    """A module whose own buffers are hyperparameters.

    A number is kept as a 0-d float64 tensor and keeps that precision when the module is converted to another dtype: 0.99 in bfloat16
    is 0.988. Assigning a number to such an attribute (``module.gamma = 0.9``) writes into the tensor, so that neither a compiled graph
    nor an optimizer over the module has to be made again.
    """

    def register_coefficient(self, name: str, value: Optional[Union[float, Tensor]], optional: bool = False) -> None:
        """Register ``value`` under ``name``; where ``optional``, None switches off what it belongs to."""
        is_bool = isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
        if is_bool or (not isinstance(value, (int, float, Tensor)) and not (optional and value is None)):
            raise TypeError(f"{name}: expected a number or a tensor, got {value!r}")
        if isinstance(value, (int, float)):
            value = torch.tensor(float(value), dtype=torch.float64)
        elif value is not None and not value.is_floating_point():
            value = value.double()  # a fraction assigned later would be cut to an integer
        self.register_buffer(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        buffers = self.__dict__.get("_buffers", {})
        if name in buffers and isinstance(value, (int, float)) and not isinstance(value, bool):
            if buffers[name] is not None:
                with torch.no_grad():
                    buffers[name].fill_(value)
                return
            value = torch.tensor(float(value), dtype=torch.float64)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CoefficientModule":
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and not buffer.is_meta}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self.get_buffer(name).device)
        return self
