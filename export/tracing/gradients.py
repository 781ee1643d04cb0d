"""A module with the gradients that it computes written out as operations, for exporters that know no autograd."""

import re
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from a2c_compiled._exporting import exporting
from a2c_compiled._torch_internals import OPERATOR, aliases, as_torch_exports, symbolic_tracing
from a2c_compiled.export.tracing.backward_operations import BACKWARD
from a2c_compiled.export.tracing.call import Call
from a2c_compiled.export.tracing.errors import ExportError

# Of the dimensions that may vary, while a graph is made: different ones, since equal ones would be taken for the same. The others are tried
# where code asks for sizes: the graph has to be the same for all.
_SIZES = (5, 7, 11, 13)
_OTHER_SIZES = ((2, 3, 4, 6), (100_003, 100_019, 100_043, 100_049))


def with_gradients_written_out(call: Call) -> nn.Module:
    """The module of ``call`` as a graph of forward operations that does the same, for any size of the dimensions that may vary.

    Raises:
        ExportError: an operation draws random numbers, writes into what the module keeps, or is another one for other sizes.
    """
    traced = _traced(call, _SIZES)
    _check(traced.graph, call.source)
    for sizes in _OTHER_SIZES if traced.guards else ():
        if _operations(_traced(call, sizes).graph) != _operations(traced.graph):
            raise ExportError(
                f"its code is another one for other sizes ({' and '.join(traced.guards)}), and a graph has one for all. Write that part so"
                " that it does not ask for the size"
            )
    return _Graph(traced.graph, list(call.inputs), traced.outputs)


class _Traced(NamedTuple):
    """A graph, the names of its outputs, and what it takes for granted of the sizes."""

    graph: fx.GraphModule
    outputs: List[str]
    guards: List[str]


def _traced(call: Call, sizes: Sequence[int]) -> _Traced:
    tracing = symbolic_tracing()
    shapes = tracing.ShapeEnv()
    mode = tracing.FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    size_of = dict(zip(call.axis_names, sizes, strict=False))
    fakes = [_fake(mode, tensor, call.axes[name], size_of) for name, tensor in call.inputs.items()]
    outputs: List[str] = []

    def function(*tensors: Tensor) -> List[Tensor]:
        named = call.module(**dict(zip(call.inputs, tensors, strict=True)))
        outputs[:] = named
        return list(named.values())

    axis_of = {
        str(size): axis
        for name, fake in zip(call.inputs, fakes, strict=True)
        for size, axis in zip(fake.shape, call.axes[name], strict=False)
        if axis is not None
    }
    with exporting(), as_torch_exports(), _NumbersStayTensors(), mode:
        graph = tracing.make_fx(function, decomposition_table=BACKWARD, _allow_non_fake_inputs=True)(*fakes)
    free = {str(size) for fake in fakes for size in fake.shape}
    if not free.issuperset(axis_of):
        return _Traced(graph, outputs, [])  # torch.export refuses it, since one size is the only one
    guards = [re.sub(r"\w+", lambda word: axis_of.get(word[0], word[0]), str(guard.expr)) for guard in shapes.guards]
    return _Traced(graph, outputs, list(dict.fromkeys(guards)))


def _operations(graph: fx.GraphModule) -> List[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


class _Graph(nn.Module):
    """A graph under the names of its inputs and outputs."""

    def __init__(self, graph: fx.GraphModule, inputs: List[str], outputs: List[str]) -> None:
        super().__init__()
        self.graph, self.inputs, self.outputs = graph, inputs, outputs

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        return dict(zip(self.outputs, self.graph(*(inputs[name] for name in self.inputs)), strict=True))


def _fake(mode: Any, tensor: Tensor, axes: Sequence[Optional[str]], size_of: Mapping[str, int]) -> Tensor:
    """A tensor without data like ``tensor``, whose named dimensions have the sizes given and may have any."""
    names = [*axes, *[None] * (tensor.dim() - len(axes))]
    tracing = symbolic_tracing()
    with tracing.FakeTensorMode():
        shape = [size if axis is None else size_of[axis] for axis, size in zip(names, tensor.shape, strict=True)]
        empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    dynamic = [tracing.DimDynamic.STATIC if axis is None else tracing.DimDynamic.DUCK for axis in names]
    return mode.from_tensor(empty, symbolic_context=tracing.StatelessSymbolicContext(dynamic_sizes=dynamic))


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


def _check(graph: fx.GraphModule, source: nn.Module) -> None:
    """Raise ExportError where the graph does what a graph cannot."""
    buffers = {id(buffer): name for name, buffer in source.named_buffers()}
    kept = {node: getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OPERATOR):
            continue
        operation = str(node.target).removesuffix(".default")
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise ExportError(
                f"{operation}: draws random numbers inside the graph. Call .eval() on that module, or remove it; what is random has to"
                " be an input",
                operation,
            )
        for value, writes in _shared(node):
            if value not in kept:
                continue
            if not writes:
                kept[node] = kept[value]  # a view
                continue
            buffer = buffers.get(id(kept[value]), "it keeps")
            raise ExportError(
                f"{operation}: writes into the buffer {buffer}, which a graph cannot keep. Call .eval() on that module if it then leaves"
                " the buffer alone, as nn.BatchNorm does, or do without: nn.LayerNorm and nn.GroupNorm keep no statistics",
                operation,
            )


def _shared(node: fx.Node) -> Iterator[Tuple[fx.Node, bool]]:
    """The nodes whose memory a node's result shares, and whether it writes there."""
    for i, (name, writes) in enumerate(aliases(node.target)):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(name)
        if writes is not None and isinstance(value, fx.Node):
            yield value, writes
