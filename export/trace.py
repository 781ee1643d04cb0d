"""A module with the gradients that it computes written out as operations, for exporters that know no autograd."""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple
from unittest import mock

import torch
from torch import SymInt, Tensor, fx, nn
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.optim import adam
from torch.overrides import TorchFunctionMode

from a2c_compiled.export.errors import ExportError


def with_gradients_written_out(
    module: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[str, Sequence[Optional[str]]]
) -> nn.Module:
    """``module``, which takes ``inputs`` by keyword, as a graph of forward operations that does the same.

    Dimensions named in ``axes`` may have any size in it. Those of different names must be of different sizes in ``inputs``: equal sizes are
    taken for one and the same.

    Raises:
        ExportError: an operation draws random numbers, or writes into what the module keeps.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [_fake(mode, tensor, axes[name]) for name, tensor in inputs.items()]
    names: List[str] = []

    def function(*tensors: Tensor) -> List[Tensor]:
        outputs = module(**dict(zip(inputs, tensors, strict=True)))
        names[:] = outputs
        return list(outputs.values())

    with _as_exported(), _NumbersStayTensors(), mode:
        graph = make_fx(function, decomposition_table=_DECOMPOSITIONS, _allow_non_fake_inputs=True)(*fakes)
    _check(graph)
    return _Graph(graph, list(inputs), names)


class _Graph(nn.Module):
    """A graph under the names of its inputs and outputs."""

    def __init__(self, graph: fx.GraphModule, inputs: List[str], outputs: List[str]) -> None:
        super().__init__()
        self.graph, self.inputs, self.outputs = graph, inputs, outputs

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        return dict(zip(self.outputs, self.graph(*(inputs[name] for name in self.inputs)), strict=True))


def _fake(mode: FakeTensorMode, tensor: Tensor, axes: Sequence[Optional[str]]) -> Tensor:
    named = [axis is not None for axis in axes] + [False] * (tensor.dim() - len(axes))
    sizes = [DimDynamic.DUCK if may_vary else DimDynamic.STATIC for may_vary in named]
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


@contextmanager
def _as_exported() -> Iterator[None]:
    """As torch.export runs code: fused operators become their definitions, and optimizers read no tensor on the host.

    Adam's count of updates is a Python number in eager mode, whose powers are those of float64: in float32 1 - 0.999 has four digits left.
    """
    with (
        mock.patch.object(torch.compiler, "_is_compiling_flag", True),
        mock.patch.object(torch.compiler, "_is_exporting_flag", True),
        mock.patch.object(adam, "_get_value", Tensor.double),
    ):
        yield


class _NumbersStayTensors(TorchFunctionMode):
    """Step sizes that are tensors: torch.optim passes them as numbers, which would be read while the graph is made."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.addcdiv_ and isinstance(kwargs.get("value"), Tensor):
            param, numerator, denominator = args
            return param.add_(_as_number(kwargs["value"], param) * numerator / denominator)
        if func is Tensor.add_ and isinstance(kwargs.get("alpha"), Tensor):
            param, direction = args
            return param.add_(_as_number(kwargs["alpha"], param) * direction)
        return func(*args, **kwargs)


def _as_number(tensor: Tensor, operand: Tensor) -> Tensor:
    """A 0-d tensor in the operand's precision, in which a kernel computes with a number."""
    return tensor.to(operand.dtype)


def _convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: Optional[List[int]],
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    transposed: bool,
    output_padding: List[int],
    groups: int,
    output_mask: List[bool],
) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """Two convolutions: the gradient with the weight turned round, and the input with the gradient for a weight."""
    if transposed or groups != 1:
        raise ExportError(
            "aten.convolution_backward: expected a plain convolution, with groups=1 and not transposed, to differentiate"
        )
    convolution = torch.ops.aten.convolution.default
    of_input = of_weight = of_bias = None
    axes = range(len(stride))
    if output_mask[0]:
        # What the stride left over at the far end took part in nothing.
        reached = [
            (grad_output.size(2 + i) - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.size(2 + i) - 1) + 1
            for i in axes
        ]
        left_over = [input.size(2 + i) - reached[i] for i in axes]
        of_input = convolution(grad_output, weight, None, stride, padding, dilation, True, left_over, 1)
    if output_mask[1]:
        swapped = input.transpose(0, 1), grad_output.transpose(0, 1)
        of_weight = convolution(*swapped, None, dilation, padding, stride, False, [0 for _ in axes], 1)
        for i in axes:
            of_weight = of_weight.narrow(2 + i, 0, weight.size(2 + i))
        of_weight = of_weight.transpose(0, 1)
    if output_mask[2]:
        of_bias = grad_output.sum([0, *(2 + i for i in axes)])
    return of_input, of_weight, of_bias


def _slice_backward(grad_output: Tensor, input_sizes: List[Any], dim: int, start: int, end: int, step: int) -> Tensor:
    """Zeros before and behind: exporters make one node of it, where they make many of writing into zeros."""
    if step != 1:
        return decomposition_table[torch.ops.aten.slice_backward.default](grad_output, input_sizes, dim, start, end, step)
    pieces = []
    for length in (start, input_sizes[dim] - start - grad_output.size(dim)):
        if isinstance(length, SymInt) or length > 0:
            sizes = list(grad_output.shape)
            sizes[dim] = length
            pieces.append(grad_output.new_zeros(sizes))
    before = pieces[:1] if isinstance(start, SymInt) or start > 0 else []
    return torch.cat([*before, grad_output, *pieces[len(before) :]], dim)


# Every backward that torch knows to write in other operations; exporters translate few of them.
_DECOMPOSITIONS: Dict[Any, Callable[..., Any]] = {
    **{operation: decomposition for operation, decomposition in decomposition_table.items() if "backward" in str(operation)},
    torch.ops.aten.convolution_backward.default: _convolution_backward,
    torch.ops.aten.slice_backward.default: _slice_backward,
}


def _check(graph: fx.GraphModule) -> None:
    kept = {node for node in graph.graph.nodes if node.op == "get_attr"}
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        operation = str(node.target).removesuffix(".default")
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise ExportError(f"{operation}: draws random numbers inside the graph", operation)
        if node.target._schema.is_mutable and node.args and node.args[0] in kept:
            raise ExportError(f"{operation}: writes into a buffer of the module, which a graph cannot keep", operation)
