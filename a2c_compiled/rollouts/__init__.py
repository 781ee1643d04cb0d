"""Collection of rollouts from environments, step by step or as one graph. Requires gymnasium."""

from a2c_compiled._extras import needs

with needs(__name__, "train"):
    from a2c_compiled.rollouts.collector import RolloutCollector

__all__ = ["RolloutCollector"]
