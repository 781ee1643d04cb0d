"""Everything that is worth exporting of a trained loss, in one go."""

import shutil
from pathlib import Path
from typing import Iterator, Sequence

from a2c_compiled.export import play_policy
from a2c_compiled.export.graphs import graphs_of
from a2c_compiled.export.onnx import OLDEST_OPSET, export_onnx
from a2c_compiled.export.torchscript import export_torchscript
from a2c_compiled.export.verify import Report, verify
from a2c_compiled.losses import A2CLoss
from a2c_compiled.training import Rollout, RolloutCollector
from a2c_compiled.training.environments import make_environments

GRAPHS = ("policy", "policy_sampled", "loss", "estimator")
FORMATS = ("onnx", "torchscript")


def export_run(
    loss: A2CLoss,
    env_id: str,
    folder: Path,
    graphs: Sequence[str] = GRAPHS,
    formats: Sequence[str] = FORMATS,
    opset: int = OLDEST_OPSET,
) -> Iterator[Report]:
    """Write the graphs of ``loss`` into ``folder``, with a script that plays the ONNX policy beside them, and verify each file.

    Examples are real steps of the environment. The loss is moved to the CPU, where exported files are checked.

    Yields:
        What :func:`~a2c_compiled.export.verify` found, file by file.
    """
    loss.cpu()
    available = graphs_of(loss, example_rollout(loss, env_id))
    for name in graphs:
        graph = available[name]
        arguments = (graph.module, graph.example_inputs)
        if "onnx" in formats:
            yield verify(export_onnx(*arguments, folder / f"{name}.onnx", graph.dynamic_axes, opset))
        if "torchscript" in formats:
            yield verify(export_torchscript(*arguments, folder / f"{name}.pt", graph.dynamic_axes))
    if "policy" in graphs and "onnx" in formats:
        shutil.copy(play_policy.__file__, folder / "play_policy.py")


def example_rollout(loss: A2CLoss, env_id: str) -> Rollout:
    """A few steps of a few environments."""
    envs = make_environments(env_id, 8)
    rollout = RolloutCollector(envs, loss, 16, seed=0).collect()
    envs.close()
    return rollout
