"""Turns a module into a graph of operations with named inputs and outputs."""
