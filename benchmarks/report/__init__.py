"""Writes results as tables and figures."""
