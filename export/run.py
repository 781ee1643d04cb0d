"""Everything that is worth exporting of a trained loss, in one go."""

import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence

from a2c_compiled._files import copied_whole
from a2c_compiled.environments import make_environments
from a2c_compiled.export.checking.verify import Report, verify
from a2c_compiled.export.formats.aot import AOT, PT2, export_aot, export_pt2
from a2c_compiled.export.formats.onnx import OLDEST_OPSET, export_onnx
from a2c_compiled.export.formats.torchscript import export_torchscript
from a2c_compiled.export.graphs.policies_and_losses import Graph, graphs_of
from a2c_compiled.export.graphs.update_graph import RUNTIME, TrainStepGraph, acting_path, export_train_step
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.update import Rollout, TrainStep

GRAPHS = ("policy", "policy_sampled", "loss", "estimator", "train_step")
FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "pt2": PT2, "aot": AOT}
"""Endings of their files."""
SCRIPTS = ("play_policy.py", "learn_policy.py")
"""What is placed beside ONNX files to use them, with the runtime."""


class Exported(NamedTuple):
    """What :func:`~a2c_compiled.export.checking.verify` found in a file, the seconds that writing it took, and whether it ends its job."""

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
        return f"{self.graph}{FORMATS[self.format]}"


def jobs(graphs: Sequence[str] = GRAPHS, formats: Sequence[str] = tuple(FORMATS)) -> List[Job]:
    """All of them, but that TorchScript has no gradients inside a graph, hence no training step."""
    every = [Job(graph, format) for graph in graphs for format in formats]
    return [job for job in every if job != ("train_step", "torchscript")]


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
    if any(job.graph == "train_step" for job in wanted):
        update = TrainStepGraph(step, rollout)
        graphs["train_step"] = Graph(update, update.example_inputs, update.dynamic_axes)
    if any(job.format == "onnx" for job in wanted):
        for script in (RUNTIME, *map(RUNTIME.with_name, SCRIPTS)):
            copied_whole(script, folder)
    for job in wanted:
        started = time.perf_counter()
        path = folder / job.file
        files = [path]
        if job == ("train_step", "onnx"):
            export_train_step(step, rollout, path, opset)
            files.append(acting_path(path))
        elif job.format == "onnx":
            export_onnx(*graphs[job.graph][:2], path, graphs[job.graph].dynamic_axes, opset)
        else:
            _EXPORTERS[job.format](*graphs[job.graph][:2], path, graphs[job.graph].dynamic_axes)
        seconds = time.perf_counter() - started
        for file in files:
            yield Exported(verify(file), seconds / len(files), file == files[-1])


_EXPORTERS: Dict[str, Callable[..., Path]] = {"torchscript": export_torchscript, "pt2": export_pt2, "aot": export_aot}


def example_rollout(step: TrainStep, env_id: str) -> Rollout:
    """A few steps of a few environments."""
    envs = make_environments(env_id, 8)
    rollout = RolloutCollector(envs, step.loss, 16, seed=0).collect()
    envs.close()
    return rollout
