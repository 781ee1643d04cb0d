"""Shapes, input data, timing, results, and the description of the machine."""
