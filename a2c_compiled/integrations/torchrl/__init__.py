"""TorchRL: computes its value functions and losses with this library's kernels, and converts its losses to losses of this library."""

from a2c_compiled._extras import needs

with needs(__name__, "peers"):
    from a2c_compiled.integrations.torchrl.acceleration import accelerate, restore
    from a2c_compiled.integrations.torchrl.loss_conversion import from_torchrl

__all__ = ["accelerate", "from_torchrl", "restore"]
