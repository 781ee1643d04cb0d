"""Runs modules of JavaScript in a process of node, for tests of the web page and those that compare ``runtime.js`` with ``runtime.py``."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, List, Optional

import numpy as np

ROOT = Path(__file__).parents[2] / ".node"
"""The folder into which ``make test-web`` installs packages of npm."""
PACKAGES = ("onnxruntime-node", "onnxruntime-web/wasm")
PLAYWRIGHT = "playwright-core"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The program Chromium, or None."""


def missing(*packages: str, chromium: bool = False) -> Optional[str]:
    """Returns what tests with these packages of npm lack and how to install it, or None."""
    if shutil.which("node") is None:
        return "node is not installed: install version 20.19 or later from https://nodejs.org, then run make test-web"
    names = [package.split("/")[0] for package in packages]
    lacking = [name for name in names if not (ROOT / "node_modules" / name).is_dir()]
    if lacking:
        return f"{', '.join(lacking)}: not installed; run make test-web, which installs it with npm"
    if chromium and CHROMIUM is None:
        return (
            "Chromium is not installed: install it, in Debian and Ubuntu with apt-get install chromium, then run make test-web"
        )
    return None


class JavaScriptError(Exception):
    """An error in node. Attributes: ``name``, the class of the error, and ``message``."""

    def __init__(self, name: str, message: str, stack: str) -> None:
        super().__init__(stack)
        self.name, self.message = name, message


class JavaScript:
    """A process of node with a module, ``runtime.js`` or another, and a package of onnxruntime.

    A Policy or Learner of JavaScript is wrapped as :class:`Wrapped`.
    """

    def __init__(self, script: Path, package: str = "") -> None:
        command = ["node", str(Path(__file__).with_name("runtime_in_node.mjs")), str(script), package]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT if package else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def load(self, kind: str, path: Any, **options: Any) -> "Wrapped":
        """Returns ``await Policy.load(path, options)``, or that of Learner."""
        return self._answer(object=kind, method="load", values=[str(path), options])

    def run(self, body: str, *values: Any) -> Any:
        """Returns what a function body returns. It reads ``runtime``, the module, ``onnxruntime`` and ``values``."""
        return self._answer(object=body, method="run", values=list(values))

    def _answer(self, **request: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(_encoded(request)) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        if "error" in answer:
            raise JavaScriptError(*answer["error"])
        return self._decoded(answer.get("value"))

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decoded(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        if "array" in value:
            dtype, shape, text = value["array"]
            return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)
        if "bytes" in value:
            return base64.b64decode(value["bytes"])
        if "object" in value:
            return Wrapped(self, value["object"])
        return {key: self._decoded(entry) for key, entry in value.items()}

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


class Wrapped:
    """A Policy or Learner of JavaScript. Methods take and return numpy arrays."""

    def __init__(self, process: JavaScript, number: int) -> None:
        self._process, self._number = process, number

    def call(self, method: str, *values: Any) -> Any:
        """Returns the result of a method, or the value of a property."""
        return self._process._answer(object=self._number, method=method, values=list(values))

    def set(self, name: str, value: Any) -> None:
        """Assigns a property, and reads it."""
        self._process._answer(object=self._number, method=name, values=[value], set=True)


def _encoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encoded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries: List[Any] = [_encoded(entry) for entry in value]
        return entries
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        return {"array": [value.dtype.name, value.shape, base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()]}
    return value
