"""The A2C update as ONNX files, with all that learning needs where there is no torch."""

import copy
import shutil
from pathlib import Path
from typing import Union

import numpy as np
import torch

from a2c_compiled._files import atomic_files
from a2c_compiled.export.formats.onnx import OLDEST_OPSET, export_onnx
from a2c_compiled.export.graphs.policies import ActingPolicy
from a2c_compiled.export.graphs.update_graph import TrainStepGraph
from a2c_compiled.export.on_device import RUNTIME, runtime
from a2c_compiled.export.onnx_model.model_file import remove_unused_weights
from a2c_compiled.update import Rollout, TrainStep


def export_train_step(step: TrainStep, example_rollout: Rollout, path: Union[str, Path], opset: int = OLDEST_OPSET) -> Path:
    """Write the update as an ONNX file, and beside it all that learning needs where there is no torch.

    >>> export_train_step(step, rollout, "train_step.onnx")
    >>> learner = runtime.Learner.load("train_step.onnx")  # numpy and onnxruntime alone, from here on
    >>> learner.act(observation), learner.step({"observation": ..., "action": ..., ...})

    ``train_step.onnx`` is a :class:`~a2c_compiled.export.TrainStepGraph`, ``train_step.policy.onnx`` an
    :class:`~a2c_compiled.export.ActingPolicy`, ``train_step.state.npz`` the state of ``step`` and its learning rate, and ``runtime.py`` a
    copy of :mod:`a2c_compiled.export.on_device.runtime`. Steps and environments may be of any number, 1 included.

    Args:
        step: with the parameters and the optimizer state to start from; eager or compiled.
        example_rollout: ``[T, N, ...]``, real data, for which T and N are at least 2.
        path: of the first file, ending in ``.onnx``.
        opset: as in :func:`~a2c_compiled.export.export_onnx`.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is unfit; the message names it.
        ExportError: the update cannot be exported; the message says what stands in the way.
    """
    if not isinstance(step, TrainStep):
        raise TypeError(f"step: expected a TrainStep, got {type(step).__name__}")
    if not isinstance(example_rollout, Rollout):
        raise TypeError(f"example_rollout: expected a Rollout, got {type(example_rollout).__name__}")
    if not isinstance(example_rollout.observation, torch.Tensor):
        raise TypeError(
            "example_rollout: expected an observation that is one tensor, which graphs take, got"
            f" {type(example_rollout.observation).__name__}"
        )
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: expected a name ending in .onnx, got {path}")
    step = copy.deepcopy(step).cpu()  # where exported files are checked
    rollout = Rollout(*(None if entry is None else entry.cpu() for entry in example_rollout))  # type: ignore[arg-type]
    update = TrainStepGraph(step, rollout)
    acting = ActingPolicy(step.loss, update.state_names, rollout.observation.flatten(0, 1))
    with atomic_files(path.parent) as folder:
        export_onnx(update, update.example_inputs, folder / path.name, update.dynamic_axes, opset)
        export_onnx(acting, acting.example_inputs, acting_path(folder / path.name), acting.dynamic_axes, opset)
        state = {name: update.example_inputs[name].numpy() for name in update.state_names}
        np.savez(
            (folder / path.name).with_suffix(runtime.STATE_ENDING), allow_pickle=False, **state, lr=step.lr.double().numpy()
        )
        shutil.copy(RUNTIME, folder)
    for written in (path, acting_path(path)):
        remove_unused_weights(written)
    return path


def acting_path(path: Path) -> Path:
    """Where the policy of an exported training step is."""
    return path.with_suffix(runtime.POLICY_ENDING)
