"""The extras of the package, such as ``train``, and the error if a package of an extra is not installed."""

import importlib.util
from contextlib import contextmanager
from typing import Iterator, Tuple

PACKAGES = {"train": ("gymnasium", "safetensors", "tqdm", "matplotlib"), "export": ("onnx", "onnxscript", "onnxruntime")}
"""Packages that the command line looks for before it starts a command, by the extra that installs them."""


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed. The message has the command that installs the extra."""


@contextmanager
def needs(module: str, *extras: str) -> Iterator[None]:
    """Context around the imports of ``module``, which needs ``extras``.

    Raises:
        MissingExtraError: an imported package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # A MissingExtraError comes from a module that ``module`` imports, and names the extras of that one.
        if isinstance(error, MissingExtraError) or error.name is None or error.name.startswith("a2c_compiled"):
            raise
        raise MissingExtraError(_message(error.name, module, extras), name=error.name, path=error.path) from None


def check_installed(*extras: str) -> None:
    """Raises MissingExtraError with every missing package if a package of ``extras`` is not installed."""
    missing = [name for extra in extras for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(_message(", ".join(missing), "this command", extras), name=missing[0])


def _message(missing: str, purpose: str, extras: Tuple[str, ...]) -> str:
    return f"expected {missing} to be installed for {purpose}: pip install 'a2c-compiled[{','.join(extras)}]'"
