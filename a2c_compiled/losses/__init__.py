"""The A2C loss as a module (:class:`A2CLoss`) and as a function of tensors (:func:`a2c_loss`)."""

from a2c_compiled.losses.a2c import A2CLosses, a2c_loss
from a2c_compiled.losses.advantage_norm import AdvantageNorm, PercentileNorm, RunningNorm
from a2c_compiled.losses.module import A2CLoss
from a2c_compiled.losses.value_norm import PopArt

__all__ = ["A2CLoss", "A2CLosses", "AdvantageNorm", "PercentileNorm", "PopArt", "RunningNorm", "a2c_loss"]
