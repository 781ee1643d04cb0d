"""Stable-Baselines3: its advantages by this library's kernel, its models as losses and exportable policies of this library."""

from a2c_compiled.integrations.stable_baselines3.rollout_buffer import accelerate, restore

__all__ = ["accelerate", "restore"]
