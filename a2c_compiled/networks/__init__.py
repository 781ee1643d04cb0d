"""Networks for the observation and action spaces of an environment, normalisation of observations, and :class:`BatchApply`.

All except :class:`BatchApply` need gymnasium.
"""

from a2c_compiled.networks.batch_apply import BatchApply

__all__ = ["BatchApply"]
