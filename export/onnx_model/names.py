"""Names of the values in an ONNX model."""

from typing import Dict, Iterator, List, Mapping, Sequence, Set

import onnx_ir as ir


def assign_names(
    graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str], weights: Mapping[ir.Value, str]
) -> Dict[str, str]:
    """Gives the inputs, outputs and weights of ``graph`` their names. Other values with one of these names get another name.

    In ONNX, an initializer with the name of an input is the default value of that input. Names must also be unique, so a weight with the
    name of an input or output is renamed.

    Args:
        graph: graph without repeated names. Call this function after all passes, because passes may rename values.
        inputs: a name for each input.
        outputs: a name for each output.
        weights: names of initializers. Other initializers are constants of the graph.

    Returns:
        For each renamed weight, the new name by the name in ``weights``.

    Raises:
        ValueError: the number of names is not that of the inputs or outputs.
    """
    _make_outputs_distinct(graph)
    present = [value for value in weights if value.is_initializer()]
    taken = {*inputs, *outputs, *(weights[value] for value in present)}
    renamed = {
        name: _free(f"{name}.weight", taken) for name in map(weights.__getitem__, present) if name in {*inputs, *outputs}
    }
    named = {**dict(zip(graph.inputs, inputs, strict=True)), **dict(zip(graph.outputs, outputs, strict=True))}
    named |= {value: renamed.get(weights[value], weights[value]) for value in present}
    for value in _values(graph):
        if value not in named and value.name in taken:
            named[value] = _free(str(value.name), taken)
    initializers = list(graph.initializers.values())
    graph.initializers.clear()
    for value, name in named.items():
        value.name = name
    for value in initializers:
        graph.initializers.add(value)
    return renamed


def _make_outputs_distinct(graph: ir.Graph) -> None:
    """Inserts Identity before each output that is an input or an initializer, or that is also an earlier output."""
    seen: List[ir.Value] = []
    for i, value in enumerate(graph.outputs):
        if value in seen or value.producer() is None:
            node = ir.node("Identity", [value])
            node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = (
                f"{value.name}_output_{i}",
                value.shape,
                value.type,
            )
            graph.append(node)
            graph.outputs[i] = node.outputs[0]
        seen.append(value)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields all values of ``graph`` and its subgraphs."""
    for part in (graph, *graph.subgraphs()):
        yield from part.inputs
        yield from part.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _free(name: str, taken: Set[str]) -> str:
    """Returns ``name``, with a number appended if ``taken`` contains it, and adds the result to ``taken``."""
    free = next(option for i in range(len(taken) + 1) if (option := f"{name}_{i}" if i else name) not in taken)
    taken.add(free)
    return free
