"""From a loss to a trained policy: rollouts, the training step, the loop around it."""

from a2c_compiled.training.rollout import Rollout
from a2c_compiled.training.train_step import TrainMetrics, TrainState, TrainStep

__all__ = ["Rollout", "TrainMetrics", "TrainState", "TrainStep"]
