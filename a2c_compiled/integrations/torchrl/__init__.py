"""TorchRL: its value functions and losses by this library's kernels."""

from a2c_compiled.integrations.torchrl.acceleration import accelerate, restore

__all__ = ["accelerate", "restore"]
