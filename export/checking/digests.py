"""SHA-256 digests of exported files. ``policy.onnx`` has ``policy.onnx.sha256``, which ``sha256sum -c`` also reads.

A file shows by its digest that it is damaged, or that it does not belong to the files of the same export beside it.
"""

import glob
import hashlib
from pathlib import Path

from a2c_compiled._files import atomic_file


def digests_path(path: Path) -> Path:
    """Returns the path of the digests of an exported file."""
    return path.with_name(f"{path.name}.sha256")


def write_digests(path: Path, *others: Path) -> None:
    """Stores the digests of an exported file, of the files with its weights, and of ``others`` in the same folder."""
    files = [path, *sorted(path.parent.glob(f"{glob.escape(path.name)}.*.data")), *others]
    with atomic_file(digests_path(path)) as temporary:
        temporary.write_text("".join(f"{_digest(file)}  {file.name}\n" for file in files))


def check_digests(path: Path) -> None:
    """Checks the stored digests of an exported file. Without digests, there is nothing to check.

    Raises:
        ValueError: a file is not the one that was exported.
    """
    # on_device/runtime.py repeats this, because it cannot import the package.
    stored = digests_path(path)
    for line in stored.read_text(errors="replace").splitlines() if stored.is_file() else ():
        digest, _, name = line.partition("  ")
        file = path.parent / Path(name).name
        if file.is_file() and _digest(file) != digest:
            raise ValueError(
                f"path: expected the {file} that was exported, got one with another SHA-256 than in {stored.name}"
                " (pass check=False if the file was changed on purpose)"
            )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
