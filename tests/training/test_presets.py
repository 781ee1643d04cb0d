"""The presets train in their environments; their benchmark writes a table, a JSON file and a picture."""

import dataclasses
import json
import math

import pytest
import torch

from a2c_compiled import cli
from a2c_compiled.benchmarks.subjects import bench_presets as benchmark
from a2c_compiled.benchmarks.subjects.bench_presets import PresetRun
from a2c_compiled.environments import goal_of
from a2c_compiled.training import TrainConfig
from a2c_compiled.training.presets import PRESETS
from a2c_compiled.training.trainer import Trainer

PACKAGES = {"lunarlander": "Box2D", "invertedpendulum": "mujoco", "breakout": "minatar"}
TINY = {"env": "CartPole-v1", "num_envs": 4, "num_steps": 8, "total_steps": 64, "log_interval": 1, "compile": False}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_learns_in_its_environment(name):
    pytest.importorskip(PACKAGES.get(name, "gymnasium"))
    config = TrainConfig(**{**PRESETS[name], "num_envs": 4, "num_steps": 8, "compile": False})
    assert goal_of(config.env, config.solved_return) is not None, "training may end before total_steps"
    trainer = Trainer(config)
    before = [parameter.clone() for parameter in trainer.loss.parameters()]
    for _ in range(2):
        rollout, metrics = trainer.update()
    trainer.collector.envs.close()
    assert rollout.reward.shape == (8, 4)
    assert math.isfinite(metrics.loss_critic)
    assert metrics.grad_norm > 0
    for old, new in zip(before, trainer.loss.parameters(), strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_no_option_that_equals_the_default(name):
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    assert PRESETS[name].keys() <= defaults.keys()
    assert not {field for field, value in PRESETS[name].items() if value == defaults[field]}


@pytest.mark.parametrize(("given", "expected"), [([], "preset"), (["--lr", "0.125", "--hidden", "8", "4"], "given")])
def test_given_options_take_precedence_over_the_preset(tmp_path, given, expected):
    """The preset takes precedence over the defaults."""
    arguments = cli._parser("train").parse_args(["train", "--preset", "breakout", "--out", str(tmp_path / "run"), *given])
    config = cli._train_config(arguments)
    options = PRESETS["breakout"] if expected == "preset" else {**PRESETS["breakout"], "lr": 0.125, "hidden": (8, 4)}
    assert config == TrainConfig(**options)


# The benchmark


def test_the_benchmark_writes_a_table_a_json_file_and_a_picture(tmp_path):
    presets = {"tiny": {**TINY, "solved_return": 1.0}, "hopeless": {**TINY, "solved_return": 1e6}}
    runs = benchmark.measure(["tiny", "hopeless"], 2, tmp_path / "out", presets)
    assert [(run.preset, run.seed) for run in runs] == [("tiny", 1), ("tiny", 2), ("hopeless", 1), ("hopeless", 2)]
    assert [run.steps for run in runs[2:]] == [64, 64]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"presets.md", "presets.json", "presets.png"}
    assert (tmp_path / "out" / "presets.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    document = json.loads((tmp_path / "out" / "presets.json").read_text())
    assert [PresetRun(**run) for run in document["runs"]] == runs
    text = (tmp_path / "out" / "presets.md").read_text()
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split(" | ")[1:4] for line in lines] == [["CartPole-v1", "1", "2 of 2"], ["CartPole-v1", "1e+06", "0 of 2"]]


def test_the_table_has_means_and_medians():
    values = ((400.0, 3000, 9.0, 5e4), (500.0, 1000, 2.0, 7e4), (480.0, 2000, 4.0, 6e4))
    runs = [PresetRun("cartpole", seed, *row) for seed, row in enumerate(values, 1)]
    (line,) = benchmark.table(runs).lines
    assert line == ["`cartpole`", "CartPole-v1", "475", "2 of 3", "460.0 (400.0 to 500.0)", "2,000", "4", "9", "60,000"]


def test_the_benchmark_runs_the_named_presets(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(benchmark, "measure", lambda *arguments: asked.append(arguments))
    assert benchmark.main(["acrobot", "cartpole", "--seeds", "2", "--out", str(tmp_path)]) == 0
    assert benchmark.main([]) == 0
    assert [arguments[:2] for arguments in asked] == [(["acrobot", "cartpole"], 2), (list(PRESETS), 3)]
    for wrong, message in ((["tetris"], "got 'tetris'"), (["--seeds", "0"], "seeds: expected at least 1, got 0")):
        with pytest.raises(SystemExit):
            benchmark.main(wrong)
        assert message in capsys.readouterr().err
