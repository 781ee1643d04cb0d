"""A2C (advantage actor-critic) as plain tensors: estimators, loss and training step that compile whole and export."""

from a2c_compiled import distributions, estimators, functional
from a2c_compiled.losses import A2CLoss, A2CLosses
from a2c_compiled.update import Rollout, TrainStep
from a2c_compiled.update.compilation import compile_options

__version__ = "0.1.0"

__all__ = ["A2CLoss", "A2CLosses", "Rollout", "TrainStep", "compile_options", "distributions", "estimators", "functional"]
