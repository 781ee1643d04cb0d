"""Makes TorchRL and Stable-Baselines3 faster with one call, and converts their losses and models to losses of this library.

Each subpackage needs the library that it is named after.
"""
