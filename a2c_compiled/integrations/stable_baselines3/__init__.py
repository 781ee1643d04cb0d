"""Stable-Baselines3: its advantages by this library's kernel, its models as losses and exportable policies of this library."""

from a2c_compiled.integrations.stable_baselines3.model_conversion import FromSB3, from_sb3
from a2c_compiled.integrations.stable_baselines3.rollout_buffer import accelerate, restore

__all__ = ["FromSB3", "accelerate", "from_sb3", "restore"]
