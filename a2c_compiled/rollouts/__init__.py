"""Experience: rollouts collected from environments, step by step or as one graph. Needs gymnasium."""

from a2c_compiled.rollouts.collector import RolloutCollector

__all__ = ["RolloutCollector"]
