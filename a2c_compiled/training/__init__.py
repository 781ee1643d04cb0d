"""From a loss to a trained policy: rollouts, the training step, the loop around it.

The training step needs torch alone; what steps environments needs the extra ``train`` and is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from a2c_compiled.training.config import TrainConfig
from a2c_compiled.training.rollout import Rollout
from a2c_compiled.training.train_step import TrainMetrics, TrainState, TrainStep

if TYPE_CHECKING:
    from a2c_compiled.training.collector import RolloutCollector
    from a2c_compiled.training.trainer import TrainResult, train

__all__ = [
    "Rollout",
    "RolloutCollector",
    "TrainConfig",
    "TrainMetrics",
    "TrainResult",
    "TrainState",
    "TrainStep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "RolloutCollector":
        from a2c_compiled.training import collector

        return collector.RolloutCollector
    if name in ("TrainResult", "train"):
        from a2c_compiled.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
