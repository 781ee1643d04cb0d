"""Files that are copied beside exported files. They import numpy, onnxruntime and gymnasium, but nothing else of this package."""

from pathlib import Path

RUNTIME = Path(__file__).with_name("runtime.py")
"""The file that a device needs besides numpy and onnxruntime."""
SCRIPTS = (RUNTIME.with_name("play_policy.py"), RUNTIME.with_name("learn_policy.py"))
"""Scripts that play and learn with the runtime."""
JAVASCRIPT = (RUNTIME.with_suffix(".js"), RUNTIME.with_suffix(".d.ts"))
"""The runtime for web pages and node, and its types. They need onnxruntime-web or onnxruntime-node."""
WEB = tuple(sorted(file for file in RUNTIME.with_name("web").glob("*") if file.suffix in (".html", ".css", ".js")))
"""The web page in which an exported training step acts and learns. It needs the runtime for web pages and onnxruntime-web."""
