"""mypy sees the types of the whole package, also of the folders that are linked into it: a wrong call fails `make check`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RIGHT = """
from pathlib import Path
from a2c_compiled import A2CLoss, export
from a2c_compiled.benchmarks.measure import timing

loss: A2CLoss = A2CLoss().make_value_estimator("gae")
report: export.Report = export.verify(Path("policy.onnx"))
seconds: float = timing.time_call(lambda: None, samples=3).median
"""
# mypy has to report every line that is marked, one for each way to import a module.
WRONG = """
from a2c_compiled import A2CLoss, export
from a2c_compiled.benchmarks.measure import timing
from a2c_compiled.export.on_device import runtime

export.verify(1, 2, 3, nonsense=4)  # wrong
timing.time_call("no function")  # wrong
runtime.Policy(nonsense=4)  # wrong
A2CLoss(nonsense=4)  # wrong
seconds: str = timing.time_call(lambda: None).median  # wrong
"""


@pytest.mark.slow
def test_mypy_reports_wrong_calls_and_accepts_right_ones(tmp_path):
    pytest.importorskip("mypy", reason="mypy checks types in the development environment")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "pyproject.toml",
        str(tmp_path / "right.py"),
        str(tmp_path / "wrong.py"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = re.findall(r"^(.+?):(\d+): error", done.stdout, re.MULTILINE)
    planted = {number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}
    assert {Path(file).name for file, _ in errors} == {"wrong.py"}, done.stdout + done.stderr
    assert {int(number) for _, number in errors} == planted, done.stdout
