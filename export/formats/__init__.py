"""How it is written: one module for each format."""
