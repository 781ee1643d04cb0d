"""Exports the training step as ONNX files, with the state and the runtime needed to train without torch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from a2c_compiled._files import AnyPath, as_path, atomic_files
from a2c_compiled.export.checking.digests import write_digests
from a2c_compiled.export.formats.onnx import OLDEST_OPSET, export_onnx
from a2c_compiled.export.graphs.policies import ActingPolicy, flattened
from a2c_compiled.export.graphs.update_graph import TrainStepGraph
from a2c_compiled.export.on_device import RUNTIME, runtime
from a2c_compiled.export.onnx_model.model_file import remove_unused_weights
from a2c_compiled.export.tracing.call import copied
from a2c_compiled.update import Rollout, TrainStep
from a2c_compiled.update.rollout import check_rollout, mapped


def export_train_step(
    step: TrainStep, example_rollout: Rollout, path: AnyPath, opset: int = OLDEST_OPSET, action_space: Any = None
) -> Path:
    """Writes a training step as an ONNX file, and beside it everything that is needed to continue training without torch.

    >>> export_train_step(step, rollout, "train_step.onnx")
    >>> learner = runtime.Learner.load("train_step.onnx")  # from here on, only numpy and onnxruntime are needed
    >>> learner.act(observation), learner.step({"observation": ..., "action": ..., ...})

    The files, in the folder of ``path``:

    - ``train_step.onnx``: a :class:`~a2c_compiled.export.TrainStepGraph`.
    - ``train_step.policy.onnx``: an :class:`~a2c_compiled.export.ActingPolicy`.
    - ``train_step.state.npz``: the parameters, the optimizer state and the learning rate.
    - ``train_step.onnx.sha256``: digests of these files, see :mod:`a2c_compiled.export.checking.digests`.
    - ``runtime.py``: a copy of :mod:`a2c_compiled.export.on_device.runtime`.
    - ``*.cases.npz``: the reference outputs of the two ONNX files.

    The exported graphs accept any number of steps and environments, including 1. If the networks have a recurrent layer whose cell is not
    :class:`~a2c_compiled.recurrent.MinGRU`, the number of steps is the example's.

    Args:
        step: training step with the parameters and the optimizer state to start from, eager or compiled. It is not changed.
        example_rollout: real data, ``[T, N, ...]``, or ``[N, T, ...]`` if the ``time_dim`` of the value estimator is the second dimension.
            T and N are at least 1. Dtypes: see :class:`~a2c_compiled.update.Rollout`.
        path: path of the first file, ending in ``.onnx``.
        opset: ONNX operator version, see :func:`~a2c_compiled.export.export_onnx`.
        action_space: gymnasium's action space of one environment, so that ``learner.act(observation).environment_action`` is in the space.
            None: the environment takes the distribution's actions.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
        ExportError: the training step cannot be exported; the message says what prevents it.
    """
    if not isinstance(step, TrainStep):
        raise TypeError(f"step: expected a TrainStep, got {type(step).__name__}")
    if not isinstance(example_rollout, Rollout):
        raise TypeError(f"example_rollout: expected a Rollout, got {type(example_rollout).__name__}")
    check_rollout(example_rollout)
    path = as_path("path", path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: expected a name ending in .onnx, got {path}")
    step = copied(step).cpu()  # exported files are verified on the CPU
    rollout = Rollout(*(mapped(torch.Tensor.cpu, entry) for entry in example_rollout))
    update = TrainStepGraph(step, rollout)
    acting = ActingPolicy(step.loss, update.state_names, flattened(rollout.observation), action_space)
    with atomic_files(path.parent) as folder:
        export_onnx(update, update.example_inputs, folder / path.name, update.dynamic_axes, opset)
        export_onnx(acting, acting.example_inputs, acting_path(folder / path.name), acting.dynamic_axes, opset)
        state = {name: update.example_inputs[name].numpy() for name in update.state_names}
        np.savez((folder / path.name).with_suffix(runtime.STATE_ENDING), **state, lr=step.lr.double().numpy())
        shutil.copy(RUNTIME, folder)
        own = folder / path.name
        write_digests(own, acting_path(own), own.with_suffix(runtime.STATE_ENDING))
    for written in (path, acting_path(path)):
        remove_unused_weights(written)
    return path


def acting_path(path: Path) -> Path:
    """Returns the path of the policy that is exported with the training step at ``path``."""
    return path.with_suffix(runtime.POLICY_ENDING)
