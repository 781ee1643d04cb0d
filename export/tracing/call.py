"""How a module is called for export: named tensors in, named tensors out."""

import copy
import inspect
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

ExampleInputs = Union[Mapping[str, Tensor], Sequence[Tensor]]
DynamicAxes = Union[Sequence[str], Mapping[str, Sequence[Optional[str]]]]

NEW = "new."
"""What the name of an output has before that of the input whose place it takes."""


class InputsByName(nn.Module):
    """A module that takes tensors under names that Python's arguments cannot have, such as a parameter's, and returns a dict of tensors.

    Its ``forward`` may compute gradients.

    Attributes:
        source: the module that it is made of, which is no submodule: what it computes with are its inputs.
        input_names: of its inputs, in order.
    """

    source: nn.Module
    input_names: List[str]

    def __init__(self, source: nn.Module, input_names: Sequence[str]) -> None:
        super().__init__()
        self.__dict__["source"] = source
        self.input_names = list(input_names)

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        """From all inputs, by keyword, to all outputs."""
        raise NotImplementedError

    def varied(self, inputs: Dict[str, Tensor], generator: torch.Generator) -> Dict[str, Tensor]:
        """``inputs`` with other numbers in those whose sizes do not vary, for a file to be held against eager with."""
        return inputs


class Call:
    """A module as it is now, in evaluation mode, with example inputs by name, and which of their dimensions may vary.

    It is a copy: torch swaps parameters and attaches hooks while it exports, and the caller's own may train meanwhile in another thread.

    Args:
        module: whose ``forward`` returns a tensor, a tuple or a NamedTuple of tensors and Nones.
        example_inputs: by the names of ``forward``'s arguments, or in their order.
        dynamic_axes: names of the leading dimensions of every input, or of the dimensions of each (None: fixed). Dimensions of one name
            are of one size.

    Raises:
        TypeError: an input is no tensor.
        ValueError: an argument is unknown, or one that has dynamic axes has no example, or a dimension that may vary is smaller than 2
            in the example (it would be taken for fixed) or of two sizes.
    """

    def __init__(self, module: nn.Module, example_inputs: ExampleInputs, dynamic_axes: DynamicAxes) -> None:
        names = module.input_names if isinstance(module, InputsByName) else list(inspect.signature(module.forward).parameters)
        if isinstance(example_inputs, Tensor):
            raise TypeError("example_inputs: expected a mapping of names to tensors or a sequence of tensors, got a tensor")
        if not isinstance(example_inputs, Mapping):
            if len(example_inputs) > len(names):
                raise ValueError(f"example_inputs: expected at most {len(names)} for {names}, got {len(example_inputs)}")
            example_inputs = dict(zip(names, example_inputs, strict=False))
        for name, tensor in example_inputs.items():
            if name not in names:
                raise ValueError(f"example_inputs: expected names among {names}, got {name!r}")
            if not isinstance(tensor, Tensor):
                raise TypeError(f"example_inputs: expected a tensor for {name}, got {type(tensor).__name__}")
            if tensor.dtype == torch.bfloat16:
                raise TypeError(f"example_inputs: expected a dtype that numpy has for {name}, got {tensor.dtype}")
        for name in dynamic_axes if isinstance(dynamic_axes, Mapping) else ():
            if name not in example_inputs:
                raise ValueError(f"dynamic_axes: expected names among {list(example_inputs)}, got {name!r}")
        self.module = copy.deepcopy(module).eval()
        # Copies, since one tensor in two places would be exported as one input; contiguous, since AOTInductor takes no other strides later.
        self.inputs = {
            name: example_inputs[name].detach().clone(memory_format=torch.contiguous_format)
            for name in names
            if name in example_inputs
        }
        self.axes: Dict[str, List[Optional[str]]] = {}
        for name, tensor in self.inputs.items():
            given = dynamic_axes.get(name, ()) if isinstance(dynamic_axes, Mapping) else dynamic_axes
            self.axes[name] = list(given)[: tensor.dim()]
        self.sizes = self._checked_sizes()

    @property
    def source(self) -> nn.Module:
        """The module itself; of one that takes inputs by name, what that was made of."""
        return self.module.source if isinstance(self.module, InputsByName) else self.module

    def _checked_sizes(self) -> Dict[str, int]:
        """Of each dimension that may vary, in the order in which they first occur."""
        sizes: Dict[str, int] = {}
        for name, axes in self.axes.items():
            for dim, axis in enumerate(axes):
                if axis is None:
                    continue
                size = self.inputs[name].size(dim)
                if size < 2:
                    raise ValueError(f"example_inputs: expected dimension {dim} ({axis}) of {name} to be 2 or more, got {size}")
                if sizes.setdefault(axis, size) != size:
                    raise ValueError(
                        f"example_inputs: expected {sizes[axis]} for dimension {dim} ({axis}) of {name}, got {size}"
                    )
        return sizes

    @property
    def axis_names(self) -> List[str]:
        """Names of the dimensions that may vary."""
        return list(self.sizes)

    def resized(self, sizes: Mapping[str, int], generator: torch.Generator) -> Dict[str, Tensor]:
        """Inputs of other sizes, made of entries of the example, the same ones of each input: what is valid there is valid here."""
        picks = {axis: torch.randint(size, (sizes[axis],), generator=generator) for axis, size in self.sizes.items()}
        inputs: Dict[str, Tensor] = {}
        for name, tensor in self.inputs.items():
            for dim, axis in enumerate(self.axes[name]):
                if axis is not None:
                    tensor = tensor.index_select(dim, picks[axis].to(tensor.device))
            inputs[name] = tensor
        return inputs

    @torch.no_grad()
    def eager(self, inputs: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """What the module answers, by the names of its outputs."""
        return named_outputs(self.module(**inputs))


def named_outputs(result: Any) -> Dict[str, Tensor]:
    """The tensors of a result, by field for a NamedTuple, else ``output``, ``output_1``, ...; Nones are left out."""
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, dict):
        return result
    fields: Tuple[str, ...] = getattr(result, "_fields", ())
    names = fields or [f"output_{i}" if i else "output" for i in range(len(result))]
    return {name: value for name, value in zip(names, result, strict=True) if value is not None}
