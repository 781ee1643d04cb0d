"""Copied beside exported files: numpy, onnxruntime and gymnasium alone, nothing else of this package."""

from pathlib import Path

RUNTIME = Path(__file__).with_name("runtime.py")
"""What a device needs beside numpy and onnxruntime."""
SCRIPTS = (RUNTIME.with_name("play_policy.py"), RUNTIME.with_name("learn_policy.py"))
"""What plays and learns with it."""
