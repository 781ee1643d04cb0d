"""Eager against compiled, and against the peers: ratios in one run, correctness checked before each timing."""
