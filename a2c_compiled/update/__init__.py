"""One optimizer step of A2C, which needs torch alone: the rollout it learns from, the step, its optimizers and its compilation."""

from a2c_compiled.kernels.cpu_scan import keep_freed_memory
from a2c_compiled.update.rollout import Rollout
from a2c_compiled.update.train_step import TrainMetrics, TrainState, TrainStep

__all__ = ["Rollout", "TrainMetrics", "TrainState", "TrainStep", "keep_freed_memory"]
