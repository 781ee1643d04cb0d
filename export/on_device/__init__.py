"""Copied beside exported files: numpy, onnxruntime and gymnasium alone, nothing else of this package."""
