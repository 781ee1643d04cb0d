"""Action distributions as functions of tensors, for eager mode, ``torch.compile`` without graph breaks, TorchScript and export.

TorchScript cannot compile :class:`TorchDistribution`, and an exported policy cannot sample from such a distribution.

:class:`Distribution` documents the contract of all methods: shapes, dtypes and errors. Each subclass documents its formula, the layout of
``params``, and its action.
"""

from a2c_compiled.distributions.base import Distribution
from a2c_compiled.distributions.bernoulli import Bernoulli
from a2c_compiled.distributions.beta import Beta
from a2c_compiled.distributions.categorical import Categorical, OneHotCategorical
from a2c_compiled.distributions.composite import Composite
from a2c_compiled.distributions.delta import Delta, TanhDelta
from a2c_compiled.distributions.masked_categorical import MaskedCategorical, MaskedOneHotCategorical
from a2c_compiled.distributions.multi_categorical import MultiCategorical
from a2c_compiled.distributions.normal import AddStateIndependentNormalScale, Normal
from a2c_compiled.distributions.ordinal import OneHotOrdinal, Ordinal
from a2c_compiled.distributions.tanh_normal import TanhNormal
from a2c_compiled.distributions.torch_distribution import TorchDistribution
from a2c_compiled.distributions.truncated_normal import TruncatedNormal

__all__ = [
    "AddStateIndependentNormalScale",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Composite",
    "Delta",
    "Distribution",
    "MaskedCategorical",
    "MaskedOneHotCategorical",
    "MultiCategorical",
    "Normal",
    "OneHotCategorical",
    "OneHotOrdinal",
    "Ordinal",
    "TanhDelta",
    "TanhNormal",
    "TorchDistribution",
    "TruncatedNormal",
]
