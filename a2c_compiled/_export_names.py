"""Names of exported graphs and formats. Importing them does not need the ``export`` extra."""

from typing import NamedTuple

from torch import Tensor

POLICY, POLICY_SAMPLED, LOSS, ESTIMATOR, TRAIN_STEP = "policy", "policy_sampled", "loss", "estimator", "train_step"
GRAPHS = (POLICY, POLICY_SAMPLED, LOSS, ESTIMATOR, TRAIN_STEP)
"""The graphs that a training run exports. Their files have these names."""

FORMATS = ("onnx", "torchscript", "pt2", "aot")
"""The export formats. ``a2c_compiled.export.formats`` has a module with each of these names."""


class GreedyAction(NamedTuple):
    """Output of an exported greedy policy.

    Attributes:
        action: the mode of the action distribution.
    """

    action: Tensor


class SampledAction(NamedTuple):
    """Output of an exported policy that samples its actions.

    Attributes:
        action: the action that the noise selects.
        log_prob: log-probability of the action.
        state_value: the critic's value of the observation.
    """

    action: Tensor
    log_prob: Tensor
    state_value: Tensor


class SampledEnvironmentAction(NamedTuple):
    """Output of an exported policy that samples its actions, for an environment whose actions can differ from the distribution's.

    Attributes:
        action, log_prob, state_value: as in :class:`SampledAction`.
        environment_action: the action for the environment, see :class:`~a2c_compiled.environments.EnvironmentAction`.
    """

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    environment_action: Tensor


class RecurrentAction(NamedTuple):
    """Output of an exported greedy policy with memory.

    Attributes:
        action: the mode of the action distribution.
        next_hidden: the hidden state after the step.
    """

    action: Tensor
    next_hidden: Tensor
