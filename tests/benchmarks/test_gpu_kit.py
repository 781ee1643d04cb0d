"""The folder for a bare machine with a GPU, tested on the CPU: its preparation, its steps, its results."""

import json
import os
import subprocess
import sys
import tarfile

import oracle
import pytest
import torch

from a2c_compiled.benchmarks.contenders import estimator_peers
from a2c_compiled.benchmarks.gpu import first, prepare, smoke
from a2c_compiled.benchmarks.measure import data, shapes
from a2c_compiled.benchmarks.measure.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.measure.harness import relative_error

STEP = ("state_value", "next_state_value", "reward", "done", "terminated")

# Python imports it at the start of every step. The machine lacks these packages, and their import takes seconds.
SITECUSTOMIZE = """
import sys
sys.modules.update(dict.fromkeys(("torchrl", "tensordict", "stable_baselines3", "numba")))
"""

# Stand-ins for peer libraries, which need a GPU: plain loops with the arguments that the libraries document.
PEERS = {
    "rl_games": {
        "triton_kernels.py": """
import torch

# [T, N, 1], [T, N, 1], [T, N], [N, 1], [N]. dones[t]: whether an episode ended before step t.
def compute_gae(rewards, values, dones, last_values, last_dones, gamma, tau):
    advantages, advantage = torch.zeros_like(rewards), torch.zeros_like(last_values)
    for t in reversed(range(len(rewards))):
        last = t == len(rewards) - 1
        goes_on = 1 - (last_dones if last else dones[t + 1]).unsqueeze(1)
        delta = rewards[t] + gamma * goes_on * (last_values if last else values[t + 1]) - values[t]
        advantages[t] = advantage = delta + gamma * tau * goes_on * advantage
    return advantages
"""
    },
    "pufferlib": {
        "_C.py": """
import ctypes

precision_bytes = 4

# Addresses of float32 arrays [rows, steps]. Rewards are clamped. The last step gets no advantage.
def puff_advantage(values, rewards, dones, importance, advantages, rows, steps, gamma, lmbda, rho_clip, c_clip):
    addresses = (values, rewards, dones, importance, advantages)
    arrays = [(ctypes.c_float * (rows * steps)).from_address(address) for address in addresses]
    for row in range(rows):
        value, reward, done, ratio = ([*array[row * steps : (row + 1) * steps]] for array in arrays[:4])
        advantage = 0.0
        for t in reversed(range(steps - 1)):
            goes_on = 1 - done[t + 1]
            delta = max(-1.0, min(1.0, reward[t + 1])) + gamma * goes_on * value[t + 1] - value[t]
            advantage = min(ratio[t], rho_clip) * delta + gamma * lmbda * min(ratio[t], c_clip) * goes_on * advantage
            arrays[4][row * steps + t] = advantage
"""
    },
}


def peer_folder(checkout, package):
    """A checkout of a peer library, with a file that benchmarks do not need."""
    folder = checkout / "src" / package
    folder.mkdir(parents=True)
    for name, text in {"__init__.py": "", "picture.png": "", **PEERS[package]}.items():
        (folder / name).write_text(text)
    return checkout


@pytest.mark.slow
def test_every_step_runs_from_the_folder_alone_and_its_results_are_packed(tmp_path, monkeypatch):
    # Other tests build the C++ kernels, and compile.
    for name, value in (("CC", "false"), ("CXX", "false"), ("OMP_NUM_THREADS", "1"), ("TORCHDYNAMO_DISABLE", "1")):
        monkeypatch.setenv(name, value)
    kit = tmp_path / "kit"
    prepare.prepare(kit, packages=(), peers={"rl_games": peer_folder(tmp_path / "checkout", "rl_games")})
    assert {path.name for path in (kit / "peers" / "rl_games").iterdir()} == {"__init__.py", "triton_kernels.py"}
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
    failures = {entry["contender"]: entry.get("failure") for entry in smoked["peers"]}
    assert failures["GAE"] is None
    assert failures["rl_games"] is None
    assert failures["rl-triton"] == "ModuleNotFoundError: No module named 'rl_triton'"
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


def test_a_machine_without_a_compiler_is_reported(monkeypatch):
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(first.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    (sentence,) = first.missing_for_triton()
    assert sentence.startswith("missing: Python's headers (/nowhere/Python.h)")
    monkeypatch.delenv("CC")
    monkeypatch.setattr(first.shutil, "which", lambda name: None)
    assert first.missing_for_triton()[0].startswith("missing: a C compiler")


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rl-triton", "peer rl-triton: expected a checkout with a folder rl_triton or src/rl_triton, got "),
        ("nonsense", "peer: expected one of rl-triton, PufferLib, rl_games, jax, got nonsense"),
    ],
)
def test_a_peer_without_its_package_is_refused(name, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        prepare.prepare(tmp_path / "kit", packages=(), peers={name: tmp_path})
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize("time_last", [False, True])
@pytest.mark.parametrize("name", ["rl_games", "PufferLib"])
def test_a_peer_called_as_its_users_call_it_agrees_with_gae(name, time_last, tmp_path, monkeypatch):
    package = estimator_peers.GPU_PEERS[name].package
    monkeypatch.syspath_prepend(peer_folder(tmp_path, package) / "src")
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    steps = data.steps((5, 12), torch.device("cpu"))
    computation = estimator_peers.Computation("GAE", (), steps, None, time_last)
    contender = estimator_peers.gpu_peers(computation, shapes.quick(torch.device("cpu")))[name]()
    result = contender.to_result(contender.call())
    whole = oracle.generalized_advantage_estimate(GAMMA, LMBDA, *(steps[key] for key in STEP))
    without_last = oracle.generalized_advantage_estimate(GAMMA, LMBDA, *(steps[key][:-1] for key in STEP))
    expected = without_last[:1] if name == "PufferLib" else whole
    in_layout = [tensor.t() if time_last or name == "PufferLib" else tensor for tensor in expected]
    assert relative_error(result, in_layout) < 1e-5
    assert contender.expected is None or relative_error(contender.expected, in_layout) < 1e-5


@pytest.mark.slow
def test_instructions_are_counted_without_a_gpu(tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    module, table = "a2c_compiled.benchmarks.gpu.instructions", tmp_path / "table.md"
    command = [sys.executable, "-m", module, "gae", "--shapes", "1", "--out", str(table)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    executed = float(line.partition(" launch 0: ")[2].split()[0])
    assert 20 < executed < 200, line
    # The thread has 8 steps of 3 float32 values and 2 flags. It requests most of them before it reads one.
    requested = int(line.partition(" bytes requested, 0 ahead")[0].split()[-1])
    assert 56 < requested <= 112, line
    assert table.read_text().splitlines()[-1].startswith(f"| gae | [T, N] | 32768 x 8 | 0 | {executed} |")
