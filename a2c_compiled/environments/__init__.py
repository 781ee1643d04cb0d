"""Batches of environments whose observations and rewards are tensors: gymnasium's, envpool's, and some in torch that run on the device.

:class:`Environments` is the interface that rollouts use.
"""

from a2c_compiled._extras import needs

with needs(__name__, "train"):
    from a2c_compiled._environment_action import EnvironmentAction
    from a2c_compiled.environments.cartpole import CartPole
    from a2c_compiled.environments.make import goal_of, make_environments, make_vector
    from a2c_compiled.environments.pendulum import Pendulum
    from a2c_compiled.environments.protocol import Environments, EnvironmentStep, Observation
    from a2c_compiled.environments.replay import CannotResume, Replayable
    from a2c_compiled.environments.source import EnvironmentFunction, EnvironmentSource
    from a2c_compiled.environments.tensor import EnvironmentState, TensorEnvironments
    from a2c_compiled.environments.vector import GymnasiumEnvironments, observation_tensor

__all__ = [
    "CannotResume",
    "CartPole",
    "EnvironmentAction",
    "EnvironmentFunction",
    "EnvironmentSource",
    "EnvironmentState",
    "EnvironmentStep",
    "Environments",
    "GymnasiumEnvironments",
    "Observation",
    "Pendulum",
    "Replayable",
    "TensorEnvironments",
    "goal_of",
    "make_environments",
    "make_vector",
    "observation_tensor",
]
