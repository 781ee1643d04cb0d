"""Names in exports that are also needed where the extra ``export`` is not installed."""

from typing import NamedTuple

from torch import Tensor

GRAPHS = POLICY, POLICY_SAMPLED, LOSS, ESTIMATOR, TRAIN_STEP = "policy", "policy_sampled", "loss", "estimator", "train_step"
"""The graphs that are exported of a training run. Their files have these names."""

FORMATS = ("onnx", "torchscript", "pt2", "aot")
"""The formats. ``a2c_compiled.export.formats`` has a module of each name, with its record."""


class GreedyAction(NamedTuple):
    """Output of a policy that takes the greedy action."""

    action: Tensor
