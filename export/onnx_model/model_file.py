"""The ONNX model as written to a file: names, metadata, and weights in a second file if they are too large."""

import glob
import hashlib
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Union

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from a2c_compiled.export.checking.metadata import PREFIX, Names, describe
from a2c_compiled.export.onnx_model.faster_forms import use_faster_forms
from a2c_compiled.export.onnx_model.names import assign_names
from a2c_compiled.export.onnx_model.onnxscript_internals import optimize
from a2c_compiled.export.onnx_model.portable_operators import make_portable
from a2c_compiled.export.tracing.call import Call

# Weights of this many bytes or more go into a second file: protobuf's limit for a file is 2 GiB, and the graph needs room too.
MAX_WEIGHT_BYTES = 2**31 - 2**26
# Prefix of the parameter names in an exported program: tracing.program wraps the module, as its attribute ``module``.
_WRAPPER = "module."


def tidy(program: torch.onnx.ONNXProgram, call: Call, names: Names, keep_unread_inputs: bool) -> ir.Model:
    """Returns the model of ``program``, simplified and with readable names.

    - Replaces operators that some runtimes lack or compute wrong.
    - Removes repeated and unused operations, and inputs that nothing reads, unless ``keep_unread_inputs``.
    - Gives parameters and dimensions their names in ``call``, and inputs and outputs their ``names``.
    - Adds the metadata of :func:`~a2c_compiled.export.checking.metadata.describe`.
    """
    model = program.model
    _name_values_in_subgraphs(model.graph)
    weights = _fold_constants(program, call)
    use_faster_forms(model.graph)
    make_portable(model.graph)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    graph = model.graph
    renamed = assign_names(graph, list(names.inputs.values()), list(names.outputs.values()), weights)
    _name_dimensions(graph, call)
    for value in list(graph.inputs):
        if not keep_unread_inputs and not value.uses():
            graph.inputs.remove(value)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with file paths of the exporting machine
    for value in graph.initializers.values():
        if not value.is_graph_output():
            value.shape = value.type = None  # its tensor has them; tools that replace the tensor do not change them
    metadata = describe(call, names._replace(weights=renamed))
    model.producer_name, model.producer_version = "a2c_compiled", metadata[f"{PREFIX}version"]
    model.metadata_props.update(metadata)
    return model


def _fold_constants(program: torch.onnx.ONNXProgram, call: Call) -> Dict[ir.Value, str]:
    """Folds constants, but keeps every parameter as an initializer, even one that is all zeros: programs replace parameters in the file.

    Returns the names of the module's parameters and buffers. The values keep the exporter's names, because a name may also be the name of
    an input or output.
    """
    parameters = dict(call.module.named_parameters())
    graph = program.model.graph
    weights = {value: name.removeprefix(_WRAPPER) for name, value in graph.initializers.items() if name.startswith(_WRAPPER)}
    held: Dict[ir.Value, Optional[ir.TensorProtocol]] = {}
    for value, name in weights.items():
        if name in parameters:  # becomes an input until the end of this function, because inputs are not folded
            held[value], value.const_value = value.const_value, None
            del graph.initializers[str(value.name)]
            graph.inputs.append(value)
    optimize(program.model)
    for value, number in held.items():
        graph.inputs.remove(value)
        value.const_value = number
        if value.uses() or value.is_graph_output():
            graph.initializers.add(value)
    return weights


def _name_dimensions(graph: ir.Graph, call: Call) -> None:
    """Replaces the symbols that torch.export chose for sizes by the names of the dimensions."""
    names: Dict[str, str] = {}
    for value, axes in zip(graph.inputs, call.axes.values(), strict=True):
        for dim, axis in zip(value.shape or (), axes, strict=False):
            if axis is not None and isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names[str(dim.value)] = axis
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _name_values_in_subgraphs(graph: ir.Graph) -> None:
    """Gives every value in a subgraph a name that no other value of the model has.

    Strict shape inference confuses equal names, and constants of subgraphs become initializers of the model.
    """
    for node in graph:
        count = 0
        for subgraph in _subgraphs(node):
            for value in (*subgraph.inputs, *(output for inner in subgraph for output in inner.outputs)):
                value.name = f"{node.name}.{count}"
                count += 1


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yields the subgraphs of ``node``, such as the branches of an If, and those of the nodes in them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            subgraph = attribute.as_graph()
            yield subgraph
            for inner in subgraph:
                yield from _subgraphs(inner)


def _renamed(dim: Union[int, ir.SymbolicDim], names: Mapping[str, str]) -> Union[int, str, None]:
    """Returns a size with its symbols replaced by ``names``; None if the size has no name. A size may be an expression of symbols."""
    if not isinstance(dim, ir.SymbolicDim):
        return dim
    return None if dim.value is None else re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(dim.value))


def save(model: ir.Model, temporary: Path, path: Path) -> None:
    """Writes ``model`` to ``temporary``, which later replaces ``path``. Weights that are too large go into a second file.

    The second file has a hash of the weights in its name, so it does not overwrite the weights of an older model at ``path``.
    """
    if sum(tensor.nbytes for tensor in _weights(model)) < MAX_WEIGHT_BYTES:
        ir.save(model, temporary)
        return
    digest = hashlib.sha256()
    for tensor in _weights(model):
        digest.update(tensor.tobytes())
    ir.save(model, temporary, external_data=f"{path.name}.{digest.hexdigest()[:16]}.data")


@contextmanager
def unused_weights_removed(path: Path) -> Iterator[None]:
    """Calls :func:`remove_unused_weights` when the block ends, even if the block raises."""
    try:
        yield
    finally:
        remove_unused_weights(path)


def remove_unused_weights(path: Path) -> None:
    """Deletes files of weights beside ``path`` that the model in ``path`` does not refer to."""
    model = path.read_bytes() if path.is_file() else b""
    for weights in path.parent.glob(f"{glob.escape(path.name)}.*.data"):
        if weights.name.encode() not in model:
            weights.unlink()


def _weights(model: ir.Model) -> List[ir.TensorProtocol]:
    """Returns the values of all initializers that have one."""
    values = model.graph.initializers.values()
    return [value.const_value for value in values if value.const_value is not None]
