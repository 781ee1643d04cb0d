"""An ONNX model as it is written: names, metadata, and weights beside it where they are too many."""

import glob
import hashlib
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Union

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from a2c_compiled.export.checking.metadata import PREFIX, describe
from a2c_compiled.export.onnx_model.onnxscript_internals import optimize
from a2c_compiled.export.tracing.call import Call

# What protobuf can write in one file, less room for the graph.
LARGEST_FILE = 2**31 - 2**26
_WRAPPER = "module."


def tidy(program: torch.onnx.ONNXProgram, call: Call) -> ir.Model:
    """The model of ``program``, made small and readable.

    Nothing is computed twice or for nothing, and nothing that is not read is an input. Parameters, inputs and dimensions have the names
    that the caller knows; the file says what it is made of.
    """
    _fold(program, call)
    model = program.model
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    graph = model.graph
    for value, name in zip(graph.inputs, call.inputs, strict=True):
        value.name = name  # the exporter calls it something else where it is an output as well
    _name_dimensions(graph, call)
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # where it stood in the code, with the paths of the machine that exported it
        _count_from_the_front(node)
    metadata = describe(call)
    model.producer_name, model.producer_version = "a2c_compiled", metadata[f"{PREFIX}version"]
    model.metadata_props.update(metadata)
    return model


def _fold(program: torch.onnx.ONNXProgram, call: Call) -> None:
    """Compute what is constant, but leave parameters alone, also where they are all zero: they are to be found and replaced."""
    own = dict(call.module.named_parameters())
    held: Dict[str, Optional[ir.TensorProtocol]] = {}
    graph = program.model.graph
    for wrapped in list(graph.initializers):
        name = wrapped.removeprefix(_WRAPPER)
        value = graph.initializers.pop(wrapped)
        value.name = name
        if name in own:  # an input while that lasts
            held[name], value.const_value = value.const_value, None
            graph.inputs.append(value)
        else:
            graph.initializers.add(value)
    optimize(program.model)
    for value in list(graph.inputs):
        if value.name in held:
            graph.inputs.remove(value)
            value.const_value = held[value.name]
            if value.uses() or value.is_graph_output():
                graph.initializers.add(value)


def _name_dimensions(graph: ir.Graph, call: Call) -> None:
    """The axes' own names in place of the symbols that torch.export made up."""
    names: Dict[str, str] = {}
    for value, axes in zip(graph.inputs, call.axes.values(), strict=True):
        for dim, axis in zip(value.shape or (), axes, strict=False):
            if axis is not None and isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names[str(dim.value)] = axis
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _count_from_the_front(node: ir.Node) -> None:
    """An axis that is counted from the end: not every runtime knows that of every operator."""
    axis, data = node.attributes.get("axis"), node.inputs[0] if node.inputs else None
    if axis is not None and axis.as_int() < 0 and data is not None and data.shape is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis.as_int() + len(data.shape))


def _renamed(dim: Union[int, ir.SymbolicDim], names: Mapping[str, str]) -> Union[int, str, None]:
    if not isinstance(dim, ir.SymbolicDim):
        return dim
    return None if dim.value is None else re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(dim.value))


def save(model: ir.Model, temporary: Path, path: Path) -> None:
    """Write ``model`` to ``temporary``, which is to take the place of ``path``; where its weights are too many for it, beside it.

    Their file is named by what is in it, so that an older model keeps its own until it is replaced.
    """
    if sum(tensor.nbytes for tensor in _weights(model)) < LARGEST_FILE:
        ir.save(model, temporary)
        return
    digest = hashlib.sha256()
    for tensor in _weights(model):
        digest.update(tensor.tobytes())
    ir.save(model, temporary, external_data=f"{path.name}.{digest.hexdigest()[:16]}.data")


@contextmanager
def unused_weights_removed(path: Path) -> Iterator[None]:
    """At the end of the block, also of one that fails."""
    try:
        yield
    finally:
        remove_unused_weights(path)


def remove_unused_weights(path: Path) -> None:
    """Delete files of weights beside ``path`` that it does not read, or not any more."""
    model = path.read_bytes() if path.is_file() else b""
    for weights in path.parent.glob(f"{glob.escape(path.name)}.*.data"):
        if weights.name.encode() not in model:
            weights.unlink()


def _weights(model: ir.Model) -> List[ir.TensorProtocol]:
    values = model.graph.initializers.values()
    return [value.const_value for value in values if value.const_value is not None]
