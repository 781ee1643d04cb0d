"""Modules that are exported: policies, losses and the training step, each from tensors to tensors."""
