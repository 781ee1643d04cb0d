"""The A2C training step: loss, gradient, clipping and optimizer in one call. This package depends on torch only."""

from a2c_compiled.kernels.cpu_scan import keep_freed_memory
from a2c_compiled.update.rollout import Rollout
from a2c_compiled.update.train_step import TrainMetrics, TrainState, TrainStep

__all__ = ["Rollout", "TrainMetrics", "TrainState", "TrainStep", "keep_freed_memory"]
