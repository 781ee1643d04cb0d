"""Eager's answers beside every exported file, and the file held against them."""
