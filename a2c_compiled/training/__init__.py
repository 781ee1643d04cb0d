"""Training on gymnasium environments: trainer, options, presets, checkpoints, logs, plots. Requires the extra ``train``."""

from a2c_compiled._extras import needs

with needs(__name__, "train"):
    from a2c_compiled.training.config import TrainConfig
    from a2c_compiled.training.trainer import Trainer, TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "Trainer", "train"]
