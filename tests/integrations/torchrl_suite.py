"""TorchRL's own tests of its value functions and losses, without and with ``accelerate()``: every one is to end as it ends without.

    git clone https://github.com/pytorch/rl && python tests/integrations/torchrl_suite.py rl

The checkout is to fit the torchrl that is installed; 0.14.1 has no tag, and the commit ae9719f1 (22 August 2026) fits it. Prints how the
tests ended, how many calls were served, and why others were not; exit status 1 if a test ended otherwise. Two minutes on one core. Where
``transformers`` is not installed (``pip install transformers``), TorchRL skips 1,800 of the 4,658 tests. Not collected by pytest, for which
this file is also the plugin that accelerates and writes down outcomes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

SUITES = (
    "test/objectives/test_values.py",
    "test/objectives/test_ppo.py",
    "test/objectives/test_loss_module.py",
    "test/compile/test_compile_value.py",
)
OUTCOMES, ACCELERATED = "A2C_COMPILED_OUTCOMES", "A2C_COMPILED_ACCELERATED"

_outcomes = {}
_acceleration = None


def pytest_configure(config):
    global _acceleration
    if os.environ.get(ACCELERATED):
        from a2c_compiled.integrations.torchrl import accelerate

        _acceleration = accelerate()  # before the tests import anything by name, and for as long as they run


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.nodeid] = f"x{report.outcome}" if hasattr(report, "wasxfail") else report.outcome


def pytest_sessionfinish(session):
    result = {"outcomes": _outcomes}
    if _acceleration is not None:
        result |= {"calls": _acceleration.calls, "fallbacks": _acceleration.fallbacks}
    Path(os.environ[OUTCOMES]).write_text(json.dumps(result))


def run(checkout, suites, accelerated):
    """Outcomes of all tests by their ids, and what was counted."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        environment = {**os.environ, OUTCOMES: str(file), "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        environment["PYTHONSAFEPATH"] = "1"  # otherwise the checkout's torchrl/ hides the installed torchrl
        environment.pop(ACCELERATED, None)
        if accelerated:
            environment[ACCELERATED] = "1"
        options = ["-q", "-p", "torchrl_suite", "-p", "no:cacheprovider", "-p", "no:xdist"]
        log = Path(folder) / "log"
        with log.open("w") as output:
            subprocess.run(
                [sys.executable, "-m", "pytest", *options, *suites], cwd=checkout, env=environment, stdout=output, stderr=output
            )
        if not file.exists():
            sys.exit(f"pytest did not run:\n{log.read_text()[-4000:]}")
        return json.loads(file.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of github.com/pytorch/rl")
    parser.add_argument("suites", nargs="*", default=SUITES, help="files or tests in it, in place of all")
    arguments = parser.parse_args()
    without, accelerated = (run(arguments.checkout, arguments.suites, accelerated) for accelerated in (False, True))
    for name, result in (("torchrl", without), ("accelerated", accelerated)):
        print(
            f"{name:12s}",
            ", ".join(f"{count} {outcome}" for outcome, count in Counter(result["outcomes"].values()).most_common()),
        )
    print(f"served: {accelerated['calls']} calls")
    for reason, count in sorted(accelerated["fallbacks"].items(), key=lambda item: -item[1]):
        print(f"left to torchrl: {count:6d}  {reason}")
    ids = sorted({*without["outcomes"], *accelerated["outcomes"]})
    changed = [one for one in ids if without["outcomes"].get(one) != accelerated["outcomes"].get(one)]
    for one in changed:
        print(f"{one}: {without['outcomes'].get(one)} without, {accelerated['outcomes'].get(one)} with accelerate()")
    if changed or not accelerated["calls"]:
        sys.exit(1)
    print("every test ends as it does without accelerate()")


if __name__ == "__main__":
    main()
