"""A2C (advantage actor-critic) on plain PyTorch tensors.

* :mod:`a2c_compiled.functional`: value estimators as functions (GAE, TD(lambda), V-trace and others). The mathematics is here.
* :mod:`a2c_compiled.estimators`: the same estimators as modules with hyperparameters.
* :mod:`a2c_compiled.distributions`: action distributions as functions of the actor network's output.
* :class:`A2CLoss`: the loss; it returns :class:`A2CLosses`. :class:`ActorCritic`: its networks, over a common trunk.
* :class:`TrainStep`: loss, gradients, clipping and optimizer in one call on a :class:`Rollout`.

Everything runs in eager mode and under ``torch.compile(fullgraph=True)``. Estimators, loss, policy and training step can be exported.
"""

from a2c_compiled import distributions, estimators, functional
from a2c_compiled.losses import A2CLoss, A2CLosses
from a2c_compiled.shared_trunk import ActorCritic
from a2c_compiled.update import Rollout, TrainStep
from a2c_compiled.update.compilation import compile_options

__version__ = "0.1.0"

__all__ = [
    "A2CLoss",
    "A2CLosses",
    "ActorCritic",
    "Rollout",
    "TrainStep",
    "compile_options",
    "distributions",
    "estimators",
    "functional",
]
