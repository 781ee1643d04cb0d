"""Everything that is worth exporting of a trained loss, in one go."""

import time
from pathlib import Path
from typing import Iterator, List, NamedTuple, Sequence

from a2c_compiled._export_names import GRAPHS, TRAIN_STEP
from a2c_compiled._files import copy_atomically
from a2c_compiled.environments import make_environments
from a2c_compiled.export.checking.verify import Report, verify
from a2c_compiled.export.formats import FORMATS
from a2c_compiled.export.formats.onnx import OLDEST_OPSET
from a2c_compiled.export.graphs.examples import Graph, graphs_of
from a2c_compiled.export.graphs.update_graph import TrainStepGraph
from a2c_compiled.export.on_device import RUNTIME, SCRIPTS
from a2c_compiled.export.update_files import acting_path, export_train_step
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.update import Rollout, TrainStep


class Exported(NamedTuple):
    """What :func:`~a2c_compiled.export.verify` found in a file, the seconds that writing it took, and whether it ends its job."""

    report: Report
    seconds: float
    ends_job: bool


class Job(NamedTuple):
    """A graph to write in a format."""

    graph: str
    format: str

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.graph}{FORMATS[self.format].ending}"


def jobs(graphs: Sequence[str] = GRAPHS, formats: Sequence[str] = tuple(FORMATS)) -> List[Job]:
    """All of them, but the training step only in formats that have gradients inside a graph.

    Raises:
        ValueError: none is left.
    """
    able = [name for name, format in FORMATS.items() if format.has_gradients]
    found = [Job(graph, format) for graph in graphs for format in formats if graph != TRAIN_STEP or format in able]
    if not found:
        raise ValueError(
            f"format: expected {', '.join(able[:-1])} or {able[-1]} for the training step, since the graphs of {', '.join(formats)} have no"
            " gradients inside"
        )
    return found


def export_run(
    step: TrainStep, env_id: str, folder: Path, wanted: Sequence[Job], opset: int = OLDEST_OPSET
) -> Iterator[Exported]:
    """Write graphs of a loss and of the step that trains it into ``folder``, and verify each file.

    Examples are real steps of the environment. The runtime and scripts that play and learn with it are placed beside ONNX files.

    Args:
        step: as it is now; it is moved to the CPU, where exported files are checked.
        env_id: of a gymnasium environment.
        folder: for the files.
        wanted: of :func:`jobs`.
        opset: of ONNX files.

    Yields:
        File by file; the training step in ONNX is two, itself and the policy with its parameters for inputs.
    """
    step.cpu()
    rollout = example_rollout(step, env_id)
    graphs = graphs_of(step.loss, rollout)
    if any(job.graph == TRAIN_STEP for job in wanted):
        update = TrainStepGraph(step, rollout)
        graphs[TRAIN_STEP] = Graph(update, update.example_inputs, update.dynamic_axes)
    if any(FORMATS[job.format].has_runtime for job in wanted):
        for script in (RUNTIME, *SCRIPTS):
            copy_atomically(script, folder)
    for job in wanted:
        started = time.perf_counter()
        path, format, graph = folder / job.file, FORMATS[job.format], graphs[job.graph]
        files = [path]
        if job.graph == TRAIN_STEP and format.has_runtime:
            export_train_step(step, rollout, path, opset)
            files.append(acting_path(path))
        else:
            options = {name: value for name, value in {"opset": opset}.items() if name in format.options}
            format.export(graph.module, graph.example_inputs, path, graph.dynamic_axes, **options)
        seconds = time.perf_counter() - started
        for file in files:
            yield Exported(verify(file), seconds / len(files), file == files[-1])


def example_rollout(step: TrainStep, env_id: str) -> Rollout:
    """A few steps of a few environments."""
    envs = make_environments(env_id, 8)
    rollout = RolloutCollector(envs, step.loss, 16, seed=0).collect()
    envs.close()
    return rollout
