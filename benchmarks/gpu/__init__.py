"""Checks and benchmarks for fifteen minutes on a machine with a GPU: see README.md in this folder."""
