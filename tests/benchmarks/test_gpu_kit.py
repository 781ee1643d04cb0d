"""The folder for a bare machine with a GPU, tested on the CPU: its preparation, its steps, its results."""

import json
import os
import subprocess
import sys
import tarfile

import pytest

from a2c_compiled.benchmarks.gpu import first, prepare, smoke

# Python imports it at the start of every step. The machine lacks these packages, and their import takes seconds.
SITECUSTOMIZE = """
import sys
sys.modules.update(dict.fromkeys(("torchrl", "tensordict", "stable_baselines3", "numba")))
"""


@pytest.mark.slow
def test_every_step_runs_from_the_folder_alone_and_its_results_are_packed(tmp_path, monkeypatch):
    # Other tests build the C++ kernels, and compile.
    for name, value in (("CC", "false"), ("CXX", "false"), ("OMP_NUM_THREADS", "1"), ("TORCHDYNAMO_DISABLE", "1")):
        monkeypatch.setenv(name, value)
    kit = tmp_path / "kit"
    prepare.prepare(kit, packages=())
    (kit / "peers").mkdir()
    (kit / "peers" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    command = [sys.executable, str(kit / "first.py"), "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    with tarfile.open(tmp_path / "results.tgz") as archive:
        archive.extractall(tmp_path / "results", filter="data")
    results = tmp_path / "results"
    names = [step.name for step in first.steps("cpu", results)]
    assert {path.name for path in results.glob("*.log")} == {f"{name}.log" for name in names}
    smoked = json.loads((results / "smoke.json").read_text())
    assert len(smoked["checks"]) == len(smoke.ESTIMATORS) * len(smoke.CHECKS)
    assert all(check["right"] for check in smoked["checks"])
    assert smoked["times"]
    for name in ("bench", "update"):
        assert json.loads((results / name / "results.json").read_text())["rows"]
    assert json.loads((results / "training" / "training.json").read_text())["speeds"]
    # README.md promises at most nine minutes.
    assert sum(step.seconds for step in first.steps("cuda", results)) <= 540


@pytest.mark.slow
def test_a_step_that_fails_or_hangs_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    (tmp_path / "works.py").write_text("print('has run')\n")
    monkeypatch.chdir(tmp_path)
    steps = [first.Step("fails", 60, ["no_such_module"]), first.Step("hangs", 2, ["hangs"]), first.Step("works", 60, ["works"])]
    monkeypatch.setattr(first, "steps", lambda device, out: steps)
    assert first.main(["--device", "cuda", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    for name, status in (("fails", 1), ("hangs", 124), ("works", 0)):
        assert f"=== {name}: exit status {status}," in printed
    with tarfile.open(tmp_path / "results.tgz") as archive:
        assert archive.extractfile("./works.log").read() == b"has run\n"
        assert b"no_such_module" in archive.extractfile("./fails.log").read()


def test_an_unknown_step_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        first.main(["--out", str(tmp_path), "smoke", "nonsense"])
    assert "step: expected any of smoke, bench, tests, update, training, got 'nonsense'" in capsys.readouterr().err


def test_a_wrong_result_is_counted_and_is_exit_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smoke, "error_of", lambda estimator, check, device: 1.0 if check == smoke.CHECKS[0] else 0.0)
    assert smoke.main(["--device", "cpu", "--shapes", "0", "--out", str(tmp_path / "smoke.json")]) == 1
    printed = capsys.readouterr().out
    assert f"checks: {len(smoke.ESTIMATORS) * (len(smoke.CHECKS) - 1)} right, {len(smoke.ESTIMATORS)} wrong" in printed
    assert f"WRONG {smoke.ESTIMATORS[0].name} (8, 5) [T, N]" in printed


def test_a_folder_without_a_checkout_of_rl_triton_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rl_triton: expected a checkout with a folder src/rl_triton, got"):
        prepare.prepare(tmp_path / "kit", packages=(), rl_triton=tmp_path)
    assert not (tmp_path / "kit").exists()


@pytest.mark.slow
def test_instructions_are_counted_without_a_gpu():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "a2c_compiled.benchmarks.gpu.instructions", "gae", "--shapes", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    executed = float(line.partition(" launch 0: ")[2].split()[0])
    assert 20 < executed < 200, line
