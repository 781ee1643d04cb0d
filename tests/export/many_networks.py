"""Exports the networks of ``network_cases.py`` as policies, loss and training step, in each format, and verifies every file.

Run ``python tests/export/many_networks.py`` for all of them, which takes about half an hour on one core. ``--only``, ``--graphs``,
``--formats`` and ``--seeds`` choose some, and ``--keep`` keeps the files. Prints a table with a row for each network and a column for each
file: ``equal`` to eager mode, ``refused``, or ``WRONG``; the messages follow the row. Fails if a file is wrong, or if fewer than fifty
networks export completely. ``test_many_networks.py`` exports a few of them.
"""

import argparse
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from network_cases import NETWORKS, Network

from a2c_compiled import TrainStep, distributions, export
from a2c_compiled.export.formats import FORMATS
from a2c_compiled.export.graphs.examples import Graph

GRAPHS = ("policy", "loss", "train_step")
OTHER_GRAPHS = ("policy_sampled", "drawing")
EQUAL, REFUSED, WRONG = "equal", "refused", "WRONG"


class Drawn(NamedTuple):
    """Outputs of :class:`Drawing`."""

    action: Tensor
    params: Tensor


class Drawing(nn.Module):
    """Draws its random numbers in the graph."""

    def __init__(self, actor: nn.Module, distribution: distributions.Distribution) -> None:
        super().__init__()
        self.actor, self.distribution = actor, distribution

    def forward(self, observation: Tensor) -> Drawn:
        params = self.actor(observation)
        return Drawn(self.distribution.sample(params), params)


def graph_of(network: Network, name: str, seed: int = 0) -> Graph:
    """Returns a graph of a network: one of ``GRAPHS`` or ``OTHER_GRAPHS``."""
    loss = network.loss(seed)
    rollout = network.rollout(loss, seed)
    if name == "train_step":
        step = export.TrainStepGraph(TrainStep(loss, compile=False), rollout)
        return Graph(step, step.example_inputs, step.dynamic_axes)
    if name == "drawing" or (name, network.structure) == ("policy", "dict"):
        policy = Drawing if name == "drawing" else export.GreedyPolicy
        return Graph(policy(loss.actor_network, loss.distribution), {"observation": rows(rollout.observation)}, ("N",))
    return export.graphs_of(loss, rollout)[name]


def rows(observation: Any) -> Any:
    """Returns an observation ``[T, N, ...]`` as ``[T * N, ...]``."""
    if isinstance(observation, dict):
        return {name: rows(part) for name, part in observation.items()}
    return tuple(map(rows, observation)) if isinstance(observation, tuple) else observation.flatten(0, 1)


class Outcome(NamedTuple):
    """What became of one file: ``EQUAL``, ``REFUSED`` or ``WRONG``, and the message or report of one that is not equal.

    A refusal is an ExportError, or an error about an argument that states what was expected and what came.
    """

    word: str
    message: str = ""


def outcomes(
    network: Network, folder: Path, graphs: Sequence[str], formats: Sequence[str], seed: int = 0
) -> Iterator[Tuple[str, Outcome]]:
    """Exports graphs of a network to ``folder``, verifies each file, and yields its name and outcome."""
    for file, (name, format) in files(graphs, formats).items():
        try:
            graph = graph_of(network, name, seed)
            report = export.verify(
                FORMATS[format].export(graph.module, graph.example_inputs, folder / file, graph.dynamic_axes)
            )
        except Exception as error:
            refused = isinstance(error, export.ExportError) or re.match(r"[\w.\[\]]+: expected .*, got ", str(error))
            yield file, Outcome(REFUSED if refused else WRONG, f"{type(error).__name__}: {error}")
        else:
            yield file, Outcome(EQUAL) if report.passed else Outcome(WRONG, str(report))


def files(graphs: Sequence[str], formats: Sequence[str]) -> Dict[str, Tuple[str, str]]:
    """Returns graph and format by the name of the file."""
    return {
        f"{graph}{FORMATS[format].ending}": (graph, format)
        for graph in graphs
        for format in formats
        if graph != "train_step" or FORMATS[format].has_gradients
    }


def main() -> int:
    """Exports the networks that the command line chooses, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--graphs", nargs="+", default=GRAPHS, choices=(*GRAPHS, *OTHER_GRAPHS))
    parser.add_argument("--formats", nargs="+", default=["onnx", "torchscript", "pt2"], choices=list(FORMATS))
    parser.add_argument("--keep", type=Path, help="folder for the files, with a folder for each network")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each seed makes other weights and other data")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = list(files(options.graphs, options.formats))
    width = max(map(len, options.only)) + len(" seed 10")
    counts: Dict[str, Counter[str]] = {file: Counter() for file in columns}
    complete = 0

    def row(label: str, cells: Sequence[object], last: str) -> None:
        aligned = [str(cell).rjust(len(file)) for cell, file in zip(cells, columns, strict=True)]
        print("  ".join([label.ljust(width), *aligned, last]), flush=True)

    row("", columns, "seconds")
    runs = [(name, seed) for seed in options.seeds for name in options.only]
    for name, seed in runs:
        started = time.perf_counter()
        label = f"{name} seed {seed}" if len(options.seeds) > 1 else name
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.keep / label if options.keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            found = dict(outcomes(NETWORKS[name], folder, options.graphs, options.formats, seed))
        for file, outcome in found.items():
            counts[file][outcome.word] += 1
        complete += all(outcome.word == EQUAL for outcome in found.values())
        row(label, [outcome.word for outcome in found.values()], f"{time.perf_counter() - started:7.0f}")
        print_messages(found)
    for word in (EQUAL, REFUSED, WRONG):
        row(word, [counts[file][word] for file in columns], "")
    print(f"{complete} of {len(runs)} networks export completely")
    return int(any(count[WRONG] for count in counts.values()) or complete < min(50, len(runs)))


def print_messages(found: Dict[str, Outcome]) -> None:
    """Prints each message once, with the files that it is about."""
    about: Dict[str, List[str]] = {}
    for file, outcome in found.items():
        if outcome.message:
            about.setdefault(outcome.message, []).append(file)
    for message, names in about.items():
        print(f"    {', '.join(names)}: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
