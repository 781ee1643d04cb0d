"""Action distributions as tensor mathematics: fast in eager mode, whole under compile, scriptable, exportable."""

from a2c_compiled.distributions.base import Distribution as Distribution
from a2c_compiled.distributions.bernoulli import Bernoulli as Bernoulli
from a2c_compiled.distributions.beta import Beta as Beta
from a2c_compiled.distributions.categorical import Categorical as Categorical
from a2c_compiled.distributions.categorical import OneHotCategorical as OneHotCategorical
from a2c_compiled.distributions.composite import Composite as Composite
from a2c_compiled.distributions.delta import Delta as Delta
from a2c_compiled.distributions.delta import TanhDelta as TanhDelta
from a2c_compiled.distributions.masked_categorical import MaskedCategorical as MaskedCategorical
from a2c_compiled.distributions.masked_categorical import MaskedOneHotCategorical as MaskedOneHotCategorical
from a2c_compiled.distributions.multi_categorical import MultiCategorical as MultiCategorical
from a2c_compiled.distributions.normal import AddStateIndependentNormalScale as AddStateIndependentNormalScale
from a2c_compiled.distributions.normal import Normal as Normal
from a2c_compiled.distributions.ordinal import OneHotOrdinal as OneHotOrdinal
from a2c_compiled.distributions.ordinal import Ordinal as Ordinal
from a2c_compiled.distributions.tanh_normal import TanhNormal as TanhNormal
from a2c_compiled.distributions.torch_distribution import TorchDistribution as TorchDistribution
from a2c_compiled.distributions.truncated_normal import TruncatedNormal as TruncatedNormal
