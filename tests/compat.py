"""Runs the suite in fresh environments, with other versions of the packages than ``constraints.txt`` has: ``make compat``.

::

    make compat                                          # every leg, with the tests of `make test`
    make compat LEG=newest TESTS='tests/ops -m "not slow"'
    make compat LEG=lowest PYTHON=python3.12             # another Python

A leg is a set of versions, see ``LEGS``. Its environment is made in ``.compat/``, and made again when the leg's versions change. The last
lines are a row of the table in ``docs/versions.md`` for each leg. The exit status is 1 unless every test passed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = ("export", "train", "environments", "peers", "dev")
SHOWN = ("torch", "triton", "numpy", "onnx", "onnxruntime", "gymnasium", "stable-baselines3", "torchrl")
"""The packages whose versions a row of the table has."""


def requirements() -> List[Requirement]:
    """Returns the requirements of this platform in pyproject.toml: of the package, and of the extras that the suite needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    found = map(Requirement, lines)
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


def lower_bound(requirement: Requirement) -> str:
    """Returns the version after ``>=``. Raises ValueError unless there is exactly one."""
    bounds = [part.version for part in requirement.specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement}: expected one lower bound, got {len(bounds)}")
    return bounds[0]


def lowest() -> List[str]:
    """Returns constraints: the lowest version of every package that pyproject.toml names."""
    return [f"{requirement.name}=={lower_bound(requirement)}" for requirement in requirements()]


def highest() -> List[str]:
    """Returns constraints: the torch of constraints.txt."""
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]


def newest() -> List[str]:
    """Returns constraints: none."""
    return []


LEGS: Dict[str, Callable[[], List[str]]] = {"lowest": lowest, "highest": highest, "newest": newest}
"""The constraints of each leg. pip installs the newest versions that agree with them and with pyproject.toml.

lowest: every package at its lower bound. highest: the torch of ``constraints.txt``, everything else as new as possible. newest: everything
as new as possible.
"""


class Result(NamedTuple):
    """What a run of a leg took and found."""

    leg: str
    versions: Dict[str, str]
    passed: int
    failed: int
    skipped: int
    minutes: float
    status: int

    def row(self) -> str:
        """Returns the row of the table in docs/versions.md."""
        found = f"{self.passed:,} passed, {self.failed:,} failed, {self.skipped:,} skipped"
        return " | ".join(("", self.leg, *self.versions.values(), found, f"{self.minutes:.0f} min", "")).strip()


def run(command: Sequence[object]) -> int:
    """Runs a command in the checkout and returns its exit status."""
    return subprocess.run(list(map(str, command)), cwd=ROOT, check=False).returncode


def environment(leg: str, interpreter: str, folder: Path) -> Path:
    """Makes the environment of a leg, unless it is there with the same constraints. Returns its Python.

    Raises:
        RuntimeError: the versions do not resolve, or cannot be installed.
    """
    python, ready, constraints = folder / "bin" / "python", folder / "ready.txt", folder / "constraints.txt"
    wanted = "\n".join([interpreter, *LEGS[leg](), *map(str, requirements())])
    if ready.is_file() and ready.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    if run([interpreter, "-m", "venv", folder]):
        raise RuntimeError(f"{leg}: {interpreter} cannot make an environment")
    constraints.write_text("\n".join(LEGS[leg]()))
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    if run([*install, "--constraint", constraints, "--editable", f".[{','.join(EXTRAS)}]"]):
        raise RuntimeError(f"{leg}: expected versions that can be installed, see {constraints}")
    ready.write_text(wanted)
    print(f"{leg}: installed in {time.monotonic() - started:.0f} s", flush=True)
    return python


def versions(python: Path) -> Dict[str, str]:
    """Returns the versions in an environment: of Python and of the packages in ``SHOWN``."""
    code = f"""
import importlib.metadata, json, platform
found = {{distribution.name.lower().replace("_", "-"): distribution.version for distribution in importlib.metadata.distributions()}}
found["onnxruntime"] = found.get("onnxruntime", found.get("onnxruntime-gpu", "none"))
print(json.dumps({{"python": platform.python_version(), **{{name: found.get(name, "none") for name in {SHOWN}}}}}))
"""
    return dict(json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout))


def tested(leg: str, interpreter: str, arguments: Sequence[str]) -> Result:
    """Runs the tests that ``arguments`` select in the environment of a leg."""
    version = subprocess.run(
        [interpreter, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"], capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = ROOT / ".compat" / f"{leg}-{version}"
    python, report = environment(leg, interpreter, folder), folder / "report.xml"
    report.unlink(missing_ok=True)
    print(f"{leg}: {' '.join(f'{name} {version}' for name, version in versions(python).items())}", flush=True)
    started = time.monotonic()
    status = run([python, "-m", "pytest", *arguments, f"--junit-xml={report}"])
    minutes = (time.monotonic() - started) / 60
    if not report.is_file():
        raise RuntimeError(f"{leg}: expected a report of pytest, got none; its exit status is {status}")
    counts = [{name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
              for suite in ElementTree.parse(report).iter("testsuite")]  # fmt: skip
    tests, failures, errors, skipped = (sum(count[name] for count in counts) for name in counts[0])
    failed = failures + errors
    return Result(leg, versions(python), tests - failed - skipped, failed, skipped, minutes, status)


def main() -> int:
    """Runs the chosen legs and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("legs", nargs="*", metavar="LEG", help=f"any of {', '.join(LEGS)} (default: all)")
    parser.add_argument("--python", default=sys.executable, help="the Python of the environments (default: this one)")
    own, pytest_arguments = sys.argv[1:], []
    if "--" in own:
        own, pytest_arguments = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    unknown = [leg for leg in options.legs if leg not in LEGS]
    if unknown:
        parser.error(f"LEG: expected any of {', '.join(LEGS)}, got {', '.join(unknown)}")
    results = [tested(leg, options.python, pytest_arguments) for leg in options.legs or LEGS]
    print(f"\n| leg | python | {' | '.join(SHOWN)} | found | took |")
    for result in results:
        print(result.row())
    return 0 if all(result.status == 0 for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
