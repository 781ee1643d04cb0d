"""How a module is called for export: tensors by name in, tensors by name out."""

import copy
import inspect
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from a2c_compiled._kinds import described
from a2c_compiled._torch_internals import uncompiled
from a2c_compiled.export.tracing.errors import ExportError

Input = Union[Tensor, Tuple[Any, ...], Mapping[str, Any]]
"""An argument of a module: a tensor, or a tuple or mapping of such inputs."""
ExampleInputs = Union[Mapping[str, Any], Sequence[Any]]
DynamicAxes = Union[Sequence[Optional[str]], Mapping[str, Sequence[Optional[str]]]]

_Module = TypeVar("_Module", bound=nn.Module)

NEW = "new."
"""Prefix of the name of an output that replaces the input of that name."""


class InputsByName(nn.Module):
    """A module whose inputs have names that Python arguments cannot have, such as ``actor_network.0.weight``. Returns a dict of tensors.

    Its ``forward`` may compute gradients.

    Attributes:
        source: the module that ``forward`` runs. It is not a submodule, because its parameters are passed as inputs.
        input_names: names of the inputs, in order.
    """

    source: nn.Module
    input_names: List[str]

    def __init__(self, source: nn.Module, input_names: Sequence[str]) -> None:
        super().__init__()
        self.__dict__["source"] = source
        self.input_names = list(input_names)

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        """Returns all outputs by name. Takes all inputs by keyword."""
        raise NotImplementedError

    def varied(self, inputs: Dict[str, Tensor], generator: torch.Generator) -> Dict[str, Tensor]:
        """Returns ``inputs`` with other values for the inputs without dimensions that may vary in size.

        Most reference cases use these values. This base class returns ``inputs`` unchanged.
        """
        return inputs


class Call:
    """A copy of a module in evaluation mode, with example inputs by name and the names of the dimensions that may vary in size.

    The module is copied because torch swaps parameters and attaches hooks during an export, and another thread may train the original.

    A graph has only tensors as inputs. For an argument that is a tuple or a mapping, each of its tensors is an input. The names of these
    inputs are ``<argument>.<index>`` or ``<argument>.<key>``.

    Args:
        module: module whose ``forward`` returns a tensor, a dict of tensors, or a tuple or NamedTuple of tensors and Nones.
        example_inputs: tensors by the names of ``forward``'s arguments, or in the order of the arguments. In place of a tensor, a tuple or
            a mapping of tensors.
        dynamic_axes: names of the dimensions that may vary in size. A sequence names the leading dimensions of every input. A mapping has
            the names for each argument or input, with None for a fixed dimension. Dimensions of the same name have the same size.

    Attributes:
        module: the copy.
        inputs: copies of the example tensors by name, in the order of ``forward``'s arguments.
        has_parts: whether an argument is a tuple or a mapping.
        axes: for each input, the names of its leading dimensions, with None for a fixed dimension.
        sizes: size in the example of each dimension that may vary, by the name of the dimension.

    Raises:
        ExportError: torch cannot copy the module.
        TypeError: an input is not a tensor, or is bfloat16, which numpy does not support; or ``example_inputs`` is a tensor itself.
        ValueError: an example is for no argument; or a tuple or mapping is empty, or a key is no identifier; or two inputs have the same
            :func:`argument_name`; or dynamic axes are given for an argument without an example; or a dimension that may vary has size 0 in
            the example, or different sizes in two inputs.
    """

    def __init__(self, module: nn.Module, example_inputs: ExampleInputs, dynamic_axes: DynamicAxes) -> None:
        module = uncompiled(module)
        names = module.input_names if isinstance(module, InputsByName) else list(inspect.signature(module.forward).parameters)
        if isinstance(example_inputs, Tensor):
            raise TypeError("example_inputs: expected a mapping of names to tensors or a sequence of tensors, got a tensor")
        if not isinstance(example_inputs, (Mapping, Sequence)) or isinstance(example_inputs, str):
            raise TypeError(
                "example_inputs: expected a mapping of names to tensors or a sequence of tensors,"
                f" got {described(example_inputs)}"
            )
        if not isinstance(example_inputs, Mapping):
            if len(example_inputs) > len(names):
                raise ValueError(f"example_inputs: expected at most {len(names)} for {names}, got {len(example_inputs)}")
            example_inputs = dict(zip(names, example_inputs, strict=False))
        for name in example_inputs:
            if name not in names:
                raise ValueError(f"example_inputs: expected names among {names}, got {name!r}")
        self._examples = {name: example_inputs[name] for name in names if name in example_inputs}
        parts = {name: tensors_of(name, example) for name, example in self._examples.items()}
        tensors = {part: tensor for of_argument in parts.values() for part, tensor in of_argument.items()}
        self.has_parts = list(tensors) != list(parts)
        _check_argument_names(tensors)
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"example_inputs: expected a torch.Tensor for {name}, got {described(tensor)}")
            if tensor.dtype == torch.bfloat16:
                raise TypeError(f"example_inputs: expected a dtype that numpy supports for {name}, got {tensor.dtype}")
        for name in dynamic_axes if isinstance(dynamic_axes, Mapping) else ():
            if name not in {**parts, **tensors}:
                raise ValueError(f"dynamic_axes: expected names among {[*{**parts, **tensors}]}, got {name!r}")
        self.module = _with_plain_parts(copied(module).eval())
        # Copied, because torch exports a tensor that is given twice as one input. Contiguous, because an AOTInductor package accepts no
        # other strides later.
        self.inputs = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        self.axes: Dict[str, List[Optional[str]]] = {}
        for argument, of_argument in parts.items():
            for name, tensor in of_argument.items():
                axes = (
                    dynamic_axes.get(name, dynamic_axes.get(argument, ()))
                    if isinstance(dynamic_axes, Mapping)
                    else dynamic_axes
                )
                self.axes[name] = list(axes)[: tensor.dim()]
        self.sizes = self._checked_sizes()
        # torch would take a size of 1 for fixed, so such an example is doubled.
        single = [axis for axis, size in self.sizes.items() if size == 1]
        for name, axes in self.axes.items():
            for dim, axis in enumerate(axes):
                if axis in single:
                    self.inputs[name] = self.inputs[name].repeat_interleave(2, dim)
        self.sizes |= dict.fromkeys(single, 2)

    def arguments(self, inputs: Mapping[str, Tensor]) -> Dict[str, Any]:
        """Returns the arguments of ``module``, made of tensors by input name."""
        return {name: with_tensors(name, example, inputs) for name, example in self._examples.items()}

    @property
    def source(self) -> nn.Module:
        """The exported module, or its ``source`` if it is an :class:`InputsByName`."""
        return self.module.source if isinstance(self.module, InputsByName) else self.module

    def _checked_sizes(self) -> Dict[str, int]:
        """Returns the example's size of each dimension that may vary, in the order of first use."""
        sizes: Dict[str, int] = {}
        for name, axes in self.axes.items():
            for dim, axis in enumerate(axes):
                if axis is None:
                    continue
                size = self.inputs[name].size(dim)
                if size < 1:
                    raise ValueError(f"example_inputs: expected dimension {dim} ({axis}) of {name} to be 1 or more, got {size}")
                if sizes.setdefault(axis, size) != size:
                    raise ValueError(
                        f"example_inputs: expected {sizes[axis]} for dimension {dim} ({axis}) of {name}, got {size}"
                    )
        return sizes

    @property
    def axis_names(self) -> List[str]:
        """Names of the dimensions that may vary in size."""
        return list(self.sizes)

    def resized(self, sizes: Mapping[str, int], generator: torch.Generator) -> Dict[str, Tensor]:
        """Returns inputs of other sizes, made of randomly chosen entries of the example.

        All inputs use the same indices for a dimension, so combinations that are valid in the example stay valid.
        """
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
        """Returns the outputs of the module in eager mode, by name, without gradients: an output may be a parameter."""
        return {name: tensor.detach() for name, tensor in named_outputs(self.module(**self.arguments(inputs))).items()}


def argument_name(input_name: str) -> str:
    """Replaces the dots in a parameter's name by ``__``, because Python arguments cannot have dots."""
    return input_name.replace(".", "__")


def _check_argument_names(names: Iterable[str]) -> None:
    """Raises ValueError if :func:`argument_name` makes the same name of two input names."""
    input_of: Dict[str, str] = {}
    for name in names:
        other = input_of.setdefault(argument_name(name), name)
        if other != name:
            raise ValueError(
                f"example_inputs: expected names that differ as names of arguments, got {other!r} and {name!r}, which are both"
                f" {argument_name(name)}"
            )


def tensors_of(name: str, value: Any) -> Dict[str, Any]:
    """Returns ``{name: value}``; for a tuple or mapping, its entries by name: ``<name>.<index>`` or ``<name>.<key>``.

    Raises:
        ValueError: a tuple or mapping is empty, or a key is no identifier.
    """
    if not isinstance(value, (tuple, Mapping)):
        return {name: value}
    if not value:
        raise ValueError(f"example_inputs: expected at least one tensor for {name}, got an empty {type(value).__name__}")
    entries = value if isinstance(value, Mapping) else dict(zip(map(str, range(len(value))), value, strict=True))
    for key in entries:
        if isinstance(value, Mapping) and not (isinstance(key, str) and key.isidentifier()):
            raise ValueError(f"example_inputs: expected identifiers as keys of {name}, got {key!r}")
    return {part: tensor for key, entry in entries.items() for part, tensor in tensors_of(f"{name}.{key}", entry).items()}


def tensors_in(value: Any) -> List[Tensor]:
    """Returns the tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for entry in entries for tensor in tensors_in(entry)]


def with_tensors(name: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns ``value`` with the entries of ``tensors``, named as by :func:`tensors_of`, in place of its tensors."""
    if isinstance(value, Mapping):
        return {key: with_tensors(f"{name}.{key}", entry, tensors) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(with_tensors(f"{name}.{i}", entry, tensors) for i, entry in enumerate(value))
    return tensors[name]


def copied(module: _Module) -> _Module:
    """Returns a copy of ``module``. Raises ExportError if torch cannot copy it.

    torch does not copy computed tensors, such as the weight that ``torch.nn.utils.weight_norm`` stores. The copy has their values.
    """
    parts = [*module.modules(), *(module.source.modules() if isinstance(module, InputsByName) else ())]
    stored = [value for part in parts for value in vars(part).values() if isinstance(value, Tensor)]
    try:
        return copy.deepcopy(module, {id(value): value.detach().clone() for value in stored if not value.is_leaf})
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be exported: copying the module fails ({str(error).strip().splitlines()[0]}). Store no"
            " lists of computed tensors in the module, and no objects that copy.deepcopy refuses"
        ) from error


def _with_plain_parts(module: nn.Module) -> nn.Module:
    """Returns ``module``, with a plain parameter in place of each parametrization, such as a weight norm, and of each pruned weight.

    In evaluation mode, the weight that a parametrization computes is constant. Replaces results of ``torch.compile`` by the modules that
    it was given.
    """
    for part in list(module.modules()):
        part._modules.update({name: uncompiled(child) for name, child in part._modules.items() if child is not None})
        if parametrize.is_parametrized(part):
            weights = {name: getattr(part, name) for name in part.parametrizations}  # type: ignore[union-attr]
            # torch.nn.utils.parametrize.remove_parametrizations would change the class, which the original module shares.
            part.__class__ = type(part).__bases__[0]
            del part.parametrizations
            for name, weight in weights.items():
                part.register_parameter(name, nn.Parameter(weight.detach(), weight.requires_grad))
        for name, value in list(vars(part).items()):
            if not isinstance(value, Tensor):
                continue
            # The older kinds: a hook computes the weight before each call.
            if hasattr(part, f"{name}_g") and hasattr(part, f"{name}_v"):
                nn.utils.remove_weight_norm(part, name)
            elif hasattr(part, f"{name}_orig") and hasattr(part, f"{name}_u"):
                nn.utils.remove_spectral_norm(part, name)
            elif hasattr(part, f"{name}_orig") and hasattr(part, f"{name}_mask"):
                prune.remove(part, name)
    return module


def named_outputs(result: Any) -> Dict[str, Tensor]:
    """Returns the tensors of a result by name. A dict is returned unchanged; Nones in a tuple are dropped.

    The names are the fields of a NamedTuple, or else ``output``, ``output_1``, ...
    """
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, dict):
        return result
    fields: Tuple[str, ...] = getattr(result, "_fields", ())
    names = fields or [f"output_{i}" if i else "output" for i in range(len(result))]
    return {name: value for name, value in zip(names, result, strict=True) if value is not None}
