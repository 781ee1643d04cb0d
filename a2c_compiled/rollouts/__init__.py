"""Collection of rollouts from environments, step by step or as one graph. Requires gymnasium."""

from a2c_compiled.rollouts.collector import RolloutCollector

__all__ = ["RolloutCollector"]
