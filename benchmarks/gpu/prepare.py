"""Prepares a folder with everything that first.py needs on a machine with a GPU: ``python -m a2c_compiled.benchmarks.gpu.prepare``.

Run this script in a checkout. The script builds the project's wheel and downloads the missing packages, so the GPU machine needs no
network and no compiler.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from a2c_compiled.benchmarks.contenders.estimator_peers import GPU_PEERS

ROOT = Path(__file__).resolve().parents[2]
# Files and folders from which sdist and wheel are built.
SOURCES = (
    *("a2c_compiled", "export", "benchmarks", "examples"),
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
)
# Packages that the benchmarks need and that README.md does not expect on the machine.
PACKAGES = ("gymnasium", "cloudpickle", "farama-notifications", "typing-extensions")
PYTHON = "3.12"
# Versions of glibc in the platform names of wheels. pip accepts only the platforms that are listed.
_GLIBC = ("2_39", "2_35", "2_34", "2_31", "2_28", "2_27", "2_24", "2_17")


def prepare(out: Path, packages: Sequence[str] = PACKAGES, peers: Optional[Mapping[str, Path]] = None) -> None:
    """Deletes the folder ``out`` and creates it again.

    Args:
        out: the folder.
        packages: packages to download for the machine's Python version.
        peers: checkouts of peer libraries, by a name in ``GPU_PEERS``. Their packages are copied as they are: a package with compiled code
            must be built, for the machine's Python version. None: no peers.

    Raises:
        ValueError: this is not a checkout of the project, a peer is unknown, or its folder does not contain its package.
        RuntimeError: pip failed.
    """
    if not (ROOT / "tests" / "kernels" / "test_gpu.py").is_file():
        raise ValueError(f"project: expected a checkout with its tests, got {ROOT}")
    found = {name: _package_folder(name, checkout) for name, checkout in (peers or {}).items()}
    shutil.rmtree(out, ignore_errors=True)
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    build_wheel(wheels)
    if packages:
        platforms = [f"--platform=manylinux_{version}_x86_64" for version in _GLIBC]
        _pip("download", "--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *platforms,
             f"--constraint={ROOT / 'constraints.txt'}", f"--dest={wheels}", *packages)  # fmt: skip
    shutil.copytree(ROOT / "tests", out / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", out)
    shutil.copy(Path(__file__).with_name("first.py"), out)
    for name, folder in found.items():
        shutil.copytree(folder, out / "peers" / GPU_PEERS[name].package, ignore=_all_but_code)


def _package_folder(name: str, checkout: Path) -> Path:
    """Returns the folder of a peer's package in a checkout. Raises ValueError if there is none."""
    if name not in GPU_PEERS:
        raise ValueError(f"peer: expected one of {', '.join(GPU_PEERS)}, got {name}")
    package = GPU_PEERS[name].package
    for folder in (checkout / package, checkout / "src" / package):
        if folder.is_dir():
            return folder
    raise ValueError(f"peer {name}: expected a checkout with a folder {package} or src/{package}, got {checkout}")


def _all_but_code(folder: str, names: List[str]) -> List[str]:
    """Returns the entries of ``folder`` that are neither folders nor importable: peers ship assets of hundreds of megabytes."""
    return [name for name in names if not ((Path(folder) / name).is_dir() or name.endswith((".py", ".so")))]


def build_wheel(folder: Path) -> Path:
    """Builds the project's wheel in ``folder`` and returns its path.

    The build uses a copy of the sources, so the wheel does not contain the output of earlier builds.
    """
    with tempfile.TemporaryDirectory() as copied:
        copy = copy_sources(Path(copied) / "sources")
        _pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(copy))
    (wheel,) = folder.glob("a2c_compiled-*.whl")
    return wheel


def copy_sources(folder: Path) -> Path:
    """Copies the sources of the wheel to ``folder``, without bytecode and compiled extensions. Symbolic links stay links."""
    folder.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def _pip(*arguments: str) -> None:
    """Runs pip. Raises RuntimeError with the end of its output if pip fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"pip {arguments[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / ".gpu",
        metavar="DIR",
        help="output folder; deleted first (default: .gpu in the checkout)",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=CHECKOUT",
        help=f"peer library to benchmark too, with the folder of its sources: any of {', '.join(GPU_PEERS)}",
    )
    arguments = parser.parse_args(argv)
    peers: Dict[str, Path] = {}
    for argument in arguments.peer:
        name, separator, checkout = argument.partition("=")
        if not separator:
            parser.error(f"--peer: expected NAME=CHECKOUT, got {argument}")
        peers[name] = Path(checkout)
    prepare(arguments.out, peers=peers)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB. On the GPU machine, run: python3 {arguments.out.name}/first.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
