"""Replaces the gradient computation inside a module by ordinary forward operations, for exporters that have no autograd."""

import re
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from a2c_compiled._exporting import exporting
from a2c_compiled._torch_internals import OPERATOR, argument_writes, export_flags, symbolic_tracing
from a2c_compiled.export.tracing.backward_operations import DECOMPOSITIONS
from a2c_compiled.export.tracing.call import Call
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.export.tracing.recurrent_cells import CELLS

# While a graph is traced, the dimensions that may vary have these sizes, one each. The sizes differ, because torch treats equal sizes as
# one symbol.
# If the module's code compares sizes, the module is also traced with _OTHER_SIZES, smaller and much larger: the operations must be equal.
_SIZES = (5, 7, 11, 13)
_OTHER_SIZES = ((2, 3, 4, 6), (100_003, 100_019, 100_043, 100_049))


def with_gradients_written_out(call: Call) -> nn.Module:
    """Returns a graph of forward operations with the outputs of the module of ``call``, for any size of the dimensions that may vary.

    Raises:
        ExportError: an operation draws random numbers or writes to a buffer or parameter, or the operations depend on the sizes.
    """
    traced = _traced(call, _SIZES)
    _check_operations(traced.graph, call.source)
    for sizes in _OTHER_SIZES if traced.guards else ():
        if _operations(_traced(call, sizes).graph) != _operations(traced.graph):
            raise ExportError(
                f"the module's operations depend on the sizes ({' and '.join(traced.guards)}). A graph must have the same operations for"
                " all sizes. Rewrite the code so that it does not read a size"
            )
    return _Graph(traced.graph, list(call.inputs), traced.outputs)


class _Traced(NamedTuple):
    """The operations of one call of a module, recorded with fake tensors.

    Attributes:
        graph: the operations; takes the inputs in order and returns a list of outputs.
        outputs: names of the outputs, in order.
        guards: conditions on the sizes that the module's code tested. For sizes that violate a condition, the operations may differ.
    """

    graph: fx.GraphModule
    outputs: List[str]
    guards: List[str]


def _traced(call: Call, sizes: Sequence[int]) -> _Traced:
    """Records the operations of ``call``, with ``sizes`` for the dimensions that may vary. Backward operations are decomposed."""
    tracing = symbolic_tracing()
    shape_env = tracing.ShapeEnv()
    mode = tracing.FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    size_of = dict(zip(call.axis_names, sizes, strict=False))
    fakes = [_fake(mode, tensor, call.axes[name], size_of) for name, tensor in call.inputs.items()]
    outputs: List[str] = []

    def function(*tensors: Tensor) -> List[Tensor]:
        named = call.module(**call.arguments(dict(zip(call.inputs, tensors, strict=True))))
        outputs[:] = named
        return list(named.values())

    axis_of = {  # the name of the dimension for each of torch's symbols
        str(size): axis
        for name, fake in zip(call.inputs, fakes, strict=True)
        for size, axis in zip(fake.shape, call.axes[name], strict=False)
        if axis is not None
    }
    with exporting(), export_flags(), _NumbersStayTensors(), mode, tracing.enable_python_dispatcher():
        graph = tracing.make_fx(function, decomposition_table=DECOMPOSITIONS, _allow_non_fake_inputs=True)(*fakes)
    sizes_left = {str(size) for fake in fakes for size in fake.shape}
    if not sizes_left.issuperset(axis_of):
        return _Traced(graph, outputs, [])  # a dimension was fixed to one size; torch.export raises the error later
    guards = [re.sub(r"\w+", lambda word: axis_of.get(word[0], word[0]), str(guard.expr)) for guard in shape_env.guards]
    return _Traced(graph, outputs, list(dict.fromkeys(guards)))


def _operations(graph: fx.GraphModule) -> List[str]:
    """Returns the names of the operations, in order."""
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


class _Graph(nn.Module):
    """Runs a graph with named inputs and outputs."""

    def __init__(self, graph: fx.GraphModule, inputs: List[str], outputs: List[str]) -> None:
        super().__init__()
        self.graph, self.inputs, self.outputs = graph, inputs, outputs

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        return dict(zip(self.outputs, self.graph(*(inputs[name] for name in self.inputs)), strict=True))


def _fake(mode: Any, tensor: Tensor, axes: Sequence[Optional[str]], size_of: Mapping[str, int]) -> Tensor:
    """Returns a tensor without data, in the shape and dtype of ``tensor``, but with the sizes in ``size_of`` for its named dimensions.

    These dimensions may vary in size.
    """
    names = [*axes, *[None] * (tensor.dim() - len(axes))]
    tracing = symbolic_tracing()
    with tracing.FakeTensorMode():
        shape = [size if axis is None else size_of[axis] for axis, size in zip(names, tensor.shape, strict=True)]
        empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    dynamic = [tracing.DimDynamic.STATIC if axis is None else tracing.DimDynamic.DUCK for axis in names]
    return mode.from_tensor(empty, symbolic_context=tracing.StatelessSymbolicContext(dynamic_sizes=dynamic))


class _NumbersStayTensors(TorchFunctionMode):
    """Keeps step sizes of optimizers as tensors, and sizes of recurrent cells symbolic.

    torch.optim passes a step size as the number ``alpha`` or ``value``, so tracing would read the value of the tensor.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CELLS:
            return CELLS[func](*args, **kwargs)
        if func is Tensor.addcdiv_ and isinstance(kwargs.get("value"), Tensor):
            param, numerator, denominator = args
            return param.add_(_cast_like(kwargs["value"], param) * numerator / denominator)
        if func is Tensor.add_ and isinstance(kwargs.get("alpha"), Tensor):
            param, direction = args
            return param.add_(_cast_like(kwargs["alpha"], param) * direction)
        return func(*args, **kwargs)


def _cast_like(tensor: Tensor, operand: Tensor) -> Tensor:
    """Casts a 0-d tensor to the dtype of the operand. A kernel computes with a Python number in this dtype."""
    return tensor.to(operand.dtype)


def _check_operations(graph: fx.GraphModule, source: nn.Module) -> None:
    """Raises ExportError if the graph draws random numbers, writes to a buffer or parameter of the module, or calls torch's LSTM kernel."""
    buffers = {id(buffer): name for name, buffer in source.named_buffers()}
    # Nodes whose value is a stored tensor of the module, or a view of one.
    stored = {node: getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OPERATOR):
            continue
        operation = str(node.target).removesuffix(".default")
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise ExportError(
                f"{operation}: draws random numbers inside the graph. Call .eval() on the module that does this, or remove it; random"
                " numbers must be an input",
                operation,
            )
        if operation.startswith("aten.mkldnn_rnn_layer"):
            raise ExportError(
                f"{operation}: no file has the gradient of this kernel, which nn.LSTM calls. Use nn.GRU, or nn.LSTMCell in a loop over the"
                " steps",
                operation,
            )
        for value, writes in _shared(node):
            if value not in stored:
                continue
            if not writes:
                stored[node] = stored[value]  # a view
                continue
            name = buffers.get(id(stored[value]))
            target = "a buffer or parameter" if name is None else f"the buffer {name}"
            raise ExportError(
                f"{operation}: writes to {target}, which a graph cannot update. Call .eval() on the module that does this, if that"
                " stops the writes, as for nn.BatchNorm and spectral_norm, or replace it: nn.LayerNorm and nn.GroupNorm keep no statistics",
                operation,
            )


def _shared(node: fx.Node) -> Iterator[Tuple[fx.Node, bool]]:
    """Yields each argument whose memory the result of ``node`` shares, with True if ``node`` writes to that memory."""
    for i, (name, writes) in enumerate(argument_writes(node.target)):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(name)
        if writes is not None and isinstance(value, fx.Node):
            yield value, writes
