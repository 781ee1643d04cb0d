"""Stable-Baselines3 (SB3): computes its advantages with a kernel of this library, and converts its models to losses and policies."""

from a2c_compiled._extras import needs

with needs(__name__, "peers"):
    from a2c_compiled.integrations.stable_baselines3.model_conversion import FromSB3, from_sb3
    from a2c_compiled.integrations.stable_baselines3.rollout_buffer import accelerate, restore

__all__ = ["FromSB3", "accelerate", "from_sb3", "restore"]
