"""TorchRL: its value functions and losses by this library's kernels, and its losses as losses of this library."""

from a2c_compiled.integrations.torchrl.acceleration import accelerate, restore
from a2c_compiled.integrations.torchrl.loss_conversion import from_torchrl

__all__ = ["accelerate", "from_torchrl", "restore"]
