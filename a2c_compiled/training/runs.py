"""A run in a folder, trained or in training: ``config.json``, ``checkpoint.json`` with its tensors, and ``progress.csv``."""

from pathlib import Path
from typing import Tuple

from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.checkpoint import load_checkpoint
from a2c_compiled.training.config import TrainConfig, load_config
from a2c_compiled.training.train_step import TrainStep
from a2c_compiled.training.trainer import make_loss, make_step


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
    try:
        step.load_state_dict(checkpoint.training)
    except RuntimeError as error:
        raise ValueError(f"run: the checkpoint in {folder} does not hold what config.json describes ({error})") from error
    return config, step
