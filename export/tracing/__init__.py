"""From a module to a graph of operations with named inputs and outputs."""
