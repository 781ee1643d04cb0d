"""A trained run in a folder: ``config.json``, ``model.safetensors``, ``optimizer.safetensors`` and ``progress.csv``."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Dict, List, Tuple

import safetensors.torch
from torch import Tensor

from a2c_compiled._files import written_whole
from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.config import TrainConfig
from a2c_compiled.training.train_step import TrainStep
from a2c_compiled.training.trainer import TrainResult, make_loss


def save_run(folder: Path, config: TrainConfig, result: TrainResult) -> None:
    """Write what :func:`load_run` and a plot need, each file whole or not at all."""
    with written_whole(folder / "config.json") as path:
        path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    with written_whole(folder / "model.safetensors") as path:
        safetensors.torch.save_file({name: p.detach().contiguous() for name, p in result.loss.named_parameters()}, path)
    with written_whole(folder / "optimizer.safetensors") as path:
        safetensors.torch.save_file(_optimizer_state(result.step), path)
    with written_whole(folder / "progress.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(result.history[0]))
        writer.writeheader()
        writer.writerows(result.history)


def load_run(folder: Path) -> Tuple[TrainConfig, A2CLoss]:
    """The configuration of a run, and its loss with the trained networks.

    Raises:
        ValueError: a file of the run is missing, unreadable or of another version.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"run: expected a folder that training wrote, found no {folder / name}")
    try:
        fields = json.loads((folder / "config.json").read_text())
        config = TrainConfig(**{**fields, "hidden": tuple(fields["hidden"])})
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
    except Exception as error:
        raise ValueError(f"run: {folder} is not readable ({error})") from error
    loss = make_loss(config)
    expected = {name: tuple(parameter.shape) for name, parameter in loss.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise ValueError(f"run: {folder / 'model.safetensors'} does not hold the networks that config.json describes")
    loss.load_state_dict(tensors, strict=False)
    return config, loss


def load_step(folder: Path) -> Tuple[TrainConfig, TrainStep]:
    """The configuration of a run, and its training step as training left it: networks, optimizer state and learning rate.

    Raises:
        ValueError: as :func:`load_run`.
    """
    config, loss = load_run(folder)
    step = TrainStep(loss, config.optimizer, config.lr, config.max_grad_norm, compile=False)
    file = folder / "optimizer.safetensors"
    if not file.is_file():
        raise ValueError(f"run: expected a folder that training wrote, found no {file}")
    try:
        step.load_state_dict({**step.state_dict(), **safetensors.torch.load_file(file)})
    except Exception as error:
        raise ValueError(
            f"run: {file} does not hold the state of the optimizer that config.json describes ({error})"
        ) from error
    return config, step


def _optimizer_state(step: TrainStep) -> Dict[str, Tensor]:
    """What a training step holds beside its loss."""
    return {name: tensor.contiguous() for name, tensor in step.state_dict().items() if not name.startswith("loss.")}


def load_progress(folder: Path) -> Dict[str, List[float]]:
    """Columns of ``progress.csv``."""
    with (folder / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}
