"""What the process is prepared with: threads of torch, and the decision about compiling."""

import os
import warnings

import pytest
import torch

from a2c_compiled.training import TrainConfig
from a2c_compiled.training.config import COMPILE_FROM_STEPS
from a2c_compiled.training.construction import available_cpus, compile_decision, compiles, use_threads


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/hidden\n", {"cpu.max": "100000 100000\n"}, 1),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "400000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 4),
        ("4:memory:/a\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("0::/\n", {"cpu.max": "not a number\n"}, 8),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
    ],
)
def test_available_cpus_follow_affinity_and_control_groups(tmp_path, own, files, expected):
    write(tmp_path / "own", own)
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    assert available_cpus(tmp_path / "cgroup", tmp_path / "own") == expected
    assert available_cpus(tmp_path / "nothing", tmp_path / "nothing") == 8


def test_more_threads_than_cpus_are_warned_about(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    try:
        with pytest.warns(
            RuntimeWarning, match=r"^torch has 3 threads, but this process may use [12] CPUs, .* use --threads [12]"
        ):
            use_threads(3)
        assert torch.get_num_threads() == 3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            use_threads(1)
            use_threads(None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "starts", "names"),
    [
        ({}, "runs in eager mode (1,000,000 total steps are fewer than 2,000,000;", "--compile"),
        (
            {"total_steps": COMPILE_FROM_STEPS},
            "compiles, which takes up to half a minute (2,000,000 total steps are at",
            "--no-compile",
        ),
        ({"compile": True}, "compiles, which takes up to half a minute (as chosen;", "--no-compile"),
        ({"compile": False, "total_steps": COMPILE_FROM_STEPS}, "runs in eager mode (as chosen;", "--compile"),
    ],
)
def test_one_line_says_whether_a_run_compiles_and_how_to_choose(options, starts, names):
    config = TrainConfig(device="cpu", **options)
    text = compile_decision(config)
    assert text.startswith(starts)
    assert f"; {names} " in text
    assert text.startswith("compiles") == compiles(config)
    assert "\n" not in text
