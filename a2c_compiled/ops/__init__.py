"""Operators: registration, gradient, fake tensors, vmap and the choice of a backend. No mathematics, no device code."""

from a2c_compiled.ops.eager_fast_path import direct
from a2c_compiled.ops.fused import fused_scan
from a2c_compiled.ops.linear_scan import linear_scan

__all__ = ["direct", "fused_scan", "linear_scan"]
