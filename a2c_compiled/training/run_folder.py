"""A run in a folder, trained or in training: ``config.json``, ``checkpoint.json`` with its tensors, and ``progress.csv``."""

from pathlib import Path
from typing import Tuple

from a2c_compiled._tensor_groups import group_of
from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.checkpoint import load_checkpoint, load_tensors
from a2c_compiled.training.config import TrainConfig, load_config
from a2c_compiled.training.trainer import make_loss, make_step
from a2c_compiled.update.train_step import TrainStep


def load_run(folder: Path) -> Tuple[TrainConfig, A2CLoss]:
    """The configuration of a run, and its loss with the networks of its last checkpoint.

    Raises:
        ValueError: a file of the run is missing, unreadable or of another version.
    """
    config, step = load_step(folder)
    return config, step.loss


def load_step(folder: Path) -> Tuple[TrainConfig, TrainStep]:
    """The configuration of a run, and its training step as the last checkpoint has it: networks, optimizer state and learning rate.

    Raises:
        ValueError: as :func:`load_run`.
    """
    config = load_config(folder)
    checkpoint = load_checkpoint(folder)
    step = make_step(config, make_loss(config), compile=False)
    load_tensors(step, group_of(checkpoint.training, "step"), folder)
    return config, step
