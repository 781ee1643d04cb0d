"""Exports the graphs of a trained loss and its training step, and verifies each file."""

import time
from typing import Any, Iterator, List, NamedTuple, Sequence, Tuple

from a2c_compiled._export_names import GRAPHS, TRAIN_STEP
from a2c_compiled._files import AnyPath, as_path, copy_atomically
from a2c_compiled.environments import EnvironmentSource, make_environments
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
    """One file that :func:`export_run` wrote.

    Attributes:
        report: the result of :func:`~a2c_compiled.export.verify` for this file.
        seconds: time that writing the file took. If a job writes two files, half of the job's time for each.
        ends_job: True for the last file of a job; the command line then advances its progress bar.
    """

    report: Report
    seconds: float
    ends_job: bool


class Job(NamedTuple):
    """A graph to export, and the format to write it in.

    Attributes:
        graph: name of the graph, one of ``policy``, ``policy_sampled``, ``loss``, ``estimator`` and ``train_step``.
        format: name of the format, a key of ``FORMATS``.
    """

    graph: str
    format: str

    @property
    def file(self) -> str:
        """File name: the name of the graph and the ending of the format."""
        return f"{self.graph}{FORMATS[self.format].ending}"


def jobs(graphs: Sequence[str] = GRAPHS, formats: Sequence[str] = tuple(FORMATS)) -> List[Job]:
    """Returns a job for every pair of a graph and a format, except the training step in formats without gradients.

    Args:
        graphs: names of graphs.
        formats: names of formats.

    Raises:
        ValueError: no pair is left, because the only graph is the training step and no format has gradients.
    """
    with_gradients = [name for name, format in FORMATS.items() if format.has_gradients]
    pairs = [Job(graph, format) for graph in graphs for format in formats if graph != TRAIN_STEP or format in with_gradients]
    if not pairs:
        raise ValueError(
            f"format: expected {', '.join(with_gradients[:-1])} or {with_gradients[-1]} for the training step, got"
            f" {', '.join(formats)}, whose files cannot hold gradients"
        )
    return pairs


def export_run(
    step: TrainStep,
    env_id: EnvironmentSource,
    folder: AnyPath,
    wanted: Sequence[Job],
    opset: int = OLDEST_OPSET,
    frame_stack: int = 1,
) -> Iterator[Exported]:
    """Writes graphs of a loss and its training step to ``folder``, and verifies each file.

    The example inputs are real steps of the environment. For ONNX files, the runtime and the scripts that play and learn with it are copied
    to ``folder``.

    Args:
        step: training step to export, in its present state. It is moved to the CPU, because exported files are verified there.
        env_id: what :func:`~a2c_compiled.environments.make_environments` makes the environments from.
        folder: folder for the files.
        wanted: graphs and formats to write, from :func:`jobs`.
        opset: ONNX operator version. Formats other than ONNX ignore it.
        frame_stack: number of successive frames in one observation.

    Yields:
        One :class:`Exported` for each file. The training step in ONNX has two files: the training step itself, and the policy whose
        parameters are inputs.
    """
    folder = as_path("folder", folder)
    step.cpu()
    rollout, action_space = example_rollout(step, env_id, frame_stack)
    graphs = graphs_of(step.loss, rollout, action_space)
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
            export_train_step(step, rollout, path, opset, action_space)
            files.append(acting_path(path))
        else:
            options = {name: value for name, value in {"opset": opset}.items() if name in format.options}
            format.export(graph.module, graph.example_inputs, path, graph.dynamic_axes, **options)
        seconds = time.perf_counter() - started
        for file in files:
            yield Exported(verify(file), seconds / len(files), file == files[-1])


def example_rollout(step: TrainStep, env_id: EnvironmentSource, frame_stack: int = 1) -> Tuple[Rollout, Any]:
    """Collects a rollout of 16 steps in 8 environments. Returns it, and the action space of the environments."""
    envs = make_environments(env_id, 8, frame_stack=frame_stack)
    rollout = RolloutCollector(envs, step.loss, 16, seed=0).collect()
    envs.close()
    return rollout, envs.action_space
