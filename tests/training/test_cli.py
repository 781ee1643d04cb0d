"""The command line from training to verified files, its errors, and the parts of the demo."""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import gymnasium
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from a2c_compiled import export
from a2c_compiled.benchmarks.measure.timing import Timing
from a2c_compiled.cli import _learn_command, _rounded, main
from a2c_compiled.demo import demo
from a2c_compiled.demo.demo import DemoError
from a2c_compiled.export import run as export_run_module
from a2c_compiled.export.checking.comparison import OutputError
from a2c_compiled.export.checking.verify import Report
from a2c_compiled.export.on_device import WEB, learn_policy, play_policy
from a2c_compiled.export.web_page import ONNXRUNTIME
from a2c_compiled.training import TrainConfig, Trainer, TrainResult
from a2c_compiled.training.evaluation import EVALUATION_SEED, evaluate, greedy_policy
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.run_folder import load_reward_scale, load_run
from a2c_compiled.update import Rollout, TrainStep

TINY = ("--no-compile", "--num-envs", "4", "--num-steps", "5", "--total-steps", "200", "--hidden", "8")


def run(*arguments):
    """Exit status of the command; argparse's own exits count as that."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def one_line_on_stderr(capsys):
    """The error message of a command that failed, which has to be one line."""
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("a2c-compiled: ")
    return lines[0]


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run("train", *TINY, "--out", folder, "--seed", 3) == 0
    return folder


# Tests of the run in every graph and format that it is exported to by default.
exporting = pytest.mark.xdist_group("cli_export")


@pytest.fixture(scope="module")
def exported_run(trained_run, tmp_path_factory):
    """The default export of a run: its folder and the output of the command."""
    folder = tmp_path_factory.mktemp("export") / "files"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run("export", trained_run, "--out", folder) == 0
    return folder, output.getvalue()


@pytest.fixture(scope="module")
def scripted_run(trained_run):
    """A run with policy and estimator exported to TorchScript."""
    assert run("export", trained_run, "--format", "torchscript", "--graph", "policy,estimator") == 0
    return trained_run


@pytest.fixture
def scripted(scripted_run, tmp_path):
    """A copy of the exported files, for tests that change them."""
    return shutil.copytree(scripted_run / "export", tmp_path / "export")


# From training to verified files


def test_a_run_leaves_a_checkpoint_progress_and_a_picture(trained_run, tmp_path, capsys):
    assert {path.name for path in trained_run.iterdir()} >= {
        "config.json",
        "checkpoint.json",
        "checkpoints",
        "progress.csv",
        "learning_curve.png",
    }
    config, loss = load_run(trained_run)
    assert config == TrainConfig(seed=3, num_envs=4, num_steps=5, total_steps=200, hidden=(8,), compile=False), (
        "options that are not given are the defaults"
    )
    assert load_progress(trained_run)["steps"][-1] == 200
    assert run("train", *TINY, "--out", tmp_path / "again", "--seed", 3) == 0
    decision, _, out = capsys.readouterr().out.partition("\n")
    assert decision == "training runs in eager mode (as chosen; --compile compiles, which is faster for long runs)"
    greedy = evaluate(greedy_policy(loss), "CartPole-v1").mean()
    assert out.startswith(f"mean episode return of the greedy policy: {_rounded(greedy)}, after 200 environment steps in ")
    assert out.strip().endswith(f"run in {tmp_path / 'again'}{os.sep}".replace(os.sep, "/"))


def test_a_return_is_printed_with_three_digits_or_more():
    numbers = {
        480.5: "480.5",
        12345.6: "12345.6",
        -82.31: "-82.3",
        9.254: "9.25",
        0.8123: "0.812",
        0.0: "0.000",
        math.nan: "nan",
    }
    assert [_rounded(number) for number in numbers] == [*numbers.values()]


@pytest.mark.slow
@exporting
def test_a_trained_run_is_exported_and_verified(exported_run, capsys):
    out, output = exported_run
    header, *rows, play, learn = output.splitlines()
    models = {job.file for job in export_run_module.jobs(formats=["onnx", "torchscript"])}
    models.add("train_step.policy.onnx")
    beside = {"train_step.state.npz", "runtime.py", "play_policy.py", "learn_policy.py"}
    endings = "cases.npz", "sha256"
    assert {path.name for path in out.iterdir()} == beside | {f"{model}.{end}" for model in models for end in endings} | models
    assert "train_step.onnx" in models
    assert "train_step.pt" not in models, "TorchScript has no gradients inside a graph"
    assert header.split() == ["file", "KB", "seconds", "largest", "error", "comparison", "with", "eager", "mode"]
    assert {row.split()[0] for row in rows} == models
    assert all("equal in" in row for row in rows)
    assert play.endswith(f"python {out}/play_policy.py {out}/policy.onnx --env CartPole-v1")
    assert learn.endswith(f"python {out}/learn_policy.py {out}/train_step.onnx --env CartPole-v1 --num-envs 4 --num-steps 5")
    assert run("verify", out, "--json") == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["passed"]
    assert {Path(file["path"]).name for file in verified["files"]} == models
    for file in verified["files"]:
        assert file["passed"]
        assert file["size"] == Path(file["path"]).stat().st_size
        assert set(file["checks"].values()) <= {"passed"}


@pytest.mark.slow
def test_programs_of_torch_export_are_exported_and_verified(trained_run, tmp_path, capsys):
    assert run("export", trained_run, "--out", tmp_path, "--format", "pt2", "--graph", "policy,train-step") == 0
    assert capsys.readouterr().out.count("equal in") == 2
    assert run("verify", tmp_path) == 0
    assert {path.name for path in tmp_path.glob("*.pt2")} == {"policy.pt2", "train_step.pt2"}


def test_a_training_step_in_torchscript_alone_is_an_error(trained_run, tmp_path, capsys):
    arguments = ("--format", "torchscript", "--graph", "train-step")
    assert run("export", trained_run, "--out", tmp_path / "files", *arguments) == 2
    assert "format: expected onnx, pt2 or aot for the training step" in one_line_on_stderr(capsys)
    assert not (tmp_path / "files").exists()


@pytest.mark.slow
@exporting
def test_an_exported_training_step_has_the_optimizer_state_of_the_run(exported_run):
    state = np.load(exported_run[0] / "train_step.state.npz")
    assert state["step_count"] == 10
    assert state["lr"] == pytest.approx(0.19 * TrainConfig.lr), "the learning rate at the end of training"
    assert all(state[name].any() for name in state.files if name.startswith("square_avg"))


def test_a_graph_that_is_named_twice_is_exported_once(trained_run, tmp_path, capsys):
    assert run("export", trained_run, "--out", tmp_path, "--format", "torchscript", "--graph", "policy,policy") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.slow
def test_continuous_actions_are_exported_and_verified(tmp_path, capsys):
    assert run("train", *TINY, "--env", "Pendulum-v1", "--solved-return", "none", "--out", tmp_path) == 0
    assert run("export", tmp_path, "--format", "torchscript", "--graph", "loss,policy_sampled") == 0
    assert run("verify", tmp_path / "export") == 0


def test_only_the_chosen_graphs_and_formats_are_exported(scripted_run):
    assert {path.name for path in (scripted_run / "export").glob("*.pt")} == {"policy.pt", "estimator.pt"}
    assert not list((scripted_run / "export").glob("*.onnx"))


@pytest.mark.slow
def test_the_opset_may_be_chosen(trained_run, tmp_path):
    assert run("export", trained_run, "--out", tmp_path, "--format", "onnx", "--graph", "policy", "--opset", "20") == 0
    assert onnx.load(tmp_path / "policy.onnx").opset_import[0].version == 20


def test_single_files_are_verified(scripted, capsys):
    assert run("verify", scripted / "policy.pt", scripted / "estimator.pt") == 0
    assert capsys.readouterr().out.count("equal to eager") == 2


def test_files_in_subfolders_are_verified(scripted, tmp_path, capsys):
    assert run("verify", tmp_path) == 0
    assert capsys.readouterr().out.count("equal to eager") == 2


def test_a_file_that_differs_is_exit_status_1(scripted, capsys):
    cases = scripted / "estimator.pt.cases.npz"
    with np.load(cases) as loaded:
        arrays = {key: loaded[key] + (0.5 if key.endswith("outputs/advantage") else 0) for key in loaded.files}
    arrays = {key: x if "inputs" not in key else np.load(cases)[key] for key, x in arrays.items()}
    np.savez(cases, **arrays)
    assert run("verify", scripted) == 1
    out = capsys.readouterr().out
    assert "estimator.pt: DIFFERS FROM EAGER in 11 cases" in out
    assert "policy.pt: equal to eager" in out, "the other files are reported too"


def test_an_export_that_differs_is_exit_status_1(trained_run, tmp_path, monkeypatch, capsys):
    real_verify = export.verify
    wrong = {"action": OutputError(1.0, 1.0, False)}
    monkeypatch.setattr(export_run_module, "verify", lambda path: real_verify(path)._replace(outputs=wrong))
    assert run("export", trained_run, "--out", tmp_path, "--format", "torchscript", "--graph", "policy") == 1
    out = capsys.readouterr().out
    assert "DIFFERS" in out.splitlines()[1]
    assert "policy.pt: DIFFERS FROM EAGER in 6 cases" in out, "the message names the file and the cases"


# Help


def test_help_shows_the_commands_and_examples(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    for command in ("train", "export", "verify", "demo"):
        assert f"\n    {command} " in text
        assert f"\n  a2c-compiled {command}" in text


def test_help_of_train_has_an_option_for_every_field_of_its_configuration(capsys):
    assert run("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    assert text.count("(default: ") == len(dataclasses.fields(TrainConfig)) + 1
    assert "(default: CartPole-v1)" in text


def python(*arguments, code):
    """Runs ``code`` in another process; returns its output to stdout and stderr."""
    command = [sys.executable, *arguments, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.slow
def test_verify_ends_a_file_that_runs_for_ever(scripted, tmp_path, capsys):
    class Plus(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1.0

    path = export.export_onnx(Plus(), {"x": torch.zeros(2, 3)}, tmp_path / "endless.onnx", ())
    model = onnx.load(path)
    item = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["go"], ["go_on"]), onnx.helper.make_node("Cos", ["v"], ["w"])],
        "body",
        [item("i", 7, []), item("go", 9, []), item("v", 1, [2, 3])],
        [item("go_on", 9, []), item("w", 1, [2, 3])],
    )
    turns = onnx.helper.make_tensor("turns", 7, [], [2**62])
    last = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.extend([turns, onnx.helper.make_tensor("yes", 9, [], [True])])
    model.graph.node.append(onnx.helper.make_node("Loop", ["turns", "yes", "before"], [last], body=body))
    onnx.save(model, path)
    assert run("verify", path, scripted / "estimator.pt", "--no-check", "--timeout", "20") == 2
    output, errors = capsys.readouterr()
    assert errors == f"a2c-compiled: {path}: expected to finish within 20 s, got no result\n"
    assert "estimator.pt: equal to eager in" in output
    assert run("verify", path, "--timeout", "0") == 2
    assert ", got '0'" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"a2c-compiled {version('a2c_compiled')}\n"


def test_help_of_train_needs_no_docstrings(capsys):
    output, _ = python("-OO", code="from a2c_compiled.cli import main; main(['train', '--help'])")
    assert run("train", "--help") == 0
    assert output.split() == capsys.readouterr().out.split()


@pytest.mark.slow
def test_each_command_needs_only_its_own_extras(scripted):
    code = f"""
        import sys

        EXPORT, TRAIN = ("onnx", "onnxscript", "onnxruntime"), ("gymnasium", "safetensors", "tqdm", "matplotlib")
        sys.modules.update(dict.fromkeys(EXPORT + TRAIN))
        import a2c_compiled, a2c_compiled.losses, a2c_compiled.recurrent, a2c_compiled.update
        from a2c_compiled.cli import main

        def help(*command):
            try:
                main([*command, "--help"])
            except SystemExit as stop:
                assert stop.code == 0

        help()
        assert not any(name.startswith(f"a2c_compiled.{{part}}") for part in ("training", "environments") for name in sys.modules)
        help("export")
        assert "a2c_compiled.export" not in sys.modules
        for name in EXPORT:
            del sys.modules[name]
        assert main(["verify", {str(scripted)!r}]) == 0
        assert main(["train"]) == 2
    """
    output, errors = python(code=code)
    text = " ".join(output.split())
    assert "play episodes with a trained policy" in text
    assert "any of onnx, torchscript, pt2, aot, separated by commas" in text
    assert "any of policy, policy-sampled, loss, estimator, train-step, separated by commas" in text
    assert text.count("equal to eager") == 2
    assert "expected gymnasium, safetensors, tqdm, matplotlib to be installed" in errors


@pytest.mark.parametrize("command", ["export", "verify", "demo"])
def test_every_command_has_help(command, capsys):
    assert run(command, "--help") == 0
    assert f"usage: a2c-compiled {command}" in capsys.readouterr().out


def test_options_set_the_fields_of_the_configuration(tmp_path):
    changes = {"average_gae": True, "solved_return": None, "optimizer": "sgd", "gamma": 0.5, "hidden": (8, 4)}
    options = ("--average-gae", "--solved-return", "none", "--optimizer", "sgd", "--gamma", "0.5", "--hidden", "8", "4")
    assert run("train", *TINY, *options, "--out", tmp_path) == 0
    fields = json.loads((tmp_path / "config.json").read_text())
    assert {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items() if name in changes} == changes


@pytest.mark.parametrize(("text", "threads"), [("1", 1), ("none", None)])
def test_the_threads_are_a_number_or_none(text, threads, tmp_path, monkeypatch):
    set_threads = []
    monkeypatch.setattr(torch, "set_num_threads", set_threads.append)
    assert run("train", *TINY, "--threads", text, "--out", tmp_path / "run") == 0
    assert load_run(tmp_path / "run")[0].threads == threads
    assert set_threads == [threads] * (threads is not None)


@pytest.mark.parametrize("switched_off", ["--entropy-coef", "--critic-coef"])
def test_a_loss_may_be_switched_off(switched_off, tmp_path):
    assert run("train", *TINY, switched_off, "0", "--out", tmp_path) == 0
    assert (tmp_path / "learning_curve.png").is_file()


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--env", "Nothing-v0"), "env: expected an environment that gymnasium can make here, got 'Nothing-v0'"),
        (("train", "--num-envs", "0"), "num_envs: expected at least 1, got 0"),
        (("train", "--hidden", "8", "0"), "hidden: expected widths of at least 1, got (8, 0)"),
        (("train", "--hidden", str(2**63)), f"hidden: expected widths of 64 bits, got ({2**63},)"),
        (("train", "--threads", str(2**31)), f"threads: expected a number below 2 ** 31 or none, got {2**31}"),
        (("train", "--gamma", "1.5"), "gamma: expected a number from 0 to 1"),
        (("train", "--optimizer", "lion"), "optimizer: expected one of 'sgd', 'rmsprop', 'adam', 'adamw', got 'lion'"),
        (("train", "--seed", "-1"), "seed: expected a number from 0 to below 2 ** 32, got -1"),
        (("eval", "none", "--seed", "-1"), "seed: expected a number from 0 to below 2 ** 63, got -1"),
        (("eval", "none", "--seed", str(2**63)), f"seed: expected a number from 0 to below 2 ** 63, got {2**63}"),
        (("export", "none"), f"run: expected a folder that training wrote, found no {Path('none') / 'config.json'}"),
        (("verify", "none.onnx"), "path: expected an exported file, found nothing at none.onnx"),
        (("verify", "."), "PATH: expected files ending in .onnx, .pt, .pt2, .aot.pt2 in ., found none"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_one_line_and_exit_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert message in one_line_on_stderr(capsys)


def test_only_the_first_line_of_an_error_is_printed(monkeypatch, capsys):
    def fail(out):
        raise RuntimeError("the first line\nand a long trace")

    monkeypatch.setattr(demo, "run_demo", fail)
    assert run("demo") == 2
    assert one_line_on_stderr(capsys) == "a2c-compiled: the first line"


def test_an_error_without_a_message_prints_its_name(monkeypatch, capsys):
    def fail(out):
        raise RuntimeError

    monkeypatch.setattr(demo, "run_demo", fail)
    assert run("demo") == 2
    assert one_line_on_stderr(capsys) == "a2c-compiled: RuntimeError"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e20", "x", ""])
def test_a_timeout_that_no_clock_counts_is_refused(text, capsys):
    assert run("verify", "none.onnx", "--timeout", text) == 2
    assert f"--timeout: expected a positive number of seconds up to 9.22337e+09, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OverflowError, MemoryError])
def test_numbers_that_do_not_fit_are_an_error_in_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_demo", lambda out: (_ for _ in ()).throw(error("too large")))
    assert run("demo") == 2
    assert one_line_on_stderr(capsys) == "a2c-compiled: too large"
    assert run("train", "--frame-stack", "99999999999999999999") == 2
    assert one_line_on_stderr(capsys) == "a2c-compiled: frame_stack: expected an integer of 64 bits, got 99999999999999999999"


def test_a_null_byte_in_an_argument_is_an_error(capsys):
    assert run("train", "--out", "runs\0") == 2
    assert one_line_on_stderr(capsys) == "a2c-compiled: arguments: expected text without null bytes, got one"


def test_an_interrupt_is_exit_status_130(monkeypatch, capsys):
    def interrupt(out):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupt)
    assert run("demo") == 130
    assert one_line_on_stderr(capsys) == "a2c-compiled: interrupted"


@pytest.mark.slow
def test_a_web_page_is_exported_with_the_settings_of_the_run(trained_run, tmp_path, capsys):
    packaged = tmp_path / "onnxruntime-web" / "dist"
    packaged.mkdir(parents=True)
    for name in ONNXRUNTIME:
        (packaged / name).write_text("")
    out = tmp_path / "page"
    options = ("--format", "onnx", "--graph", "train-step", "--web", "--ort", tmp_path)
    assert run("export", trained_run, "--out", out, *options) == 0
    assert f"python -m http.server --directory {out}, then open http://localhost:8000" in capsys.readouterr().out
    page = json.loads((out / "page.json").read_text())
    sizes = {"num_steps": 5, "num_envs": 4, "solved_return": 475.0, "reward_scale": 1.0}
    assert page == {"environment": "CartPole-v1", "learner": "train_step.onnx", **sizes}
    assert {file.name for file in WEB} < {path.name for path in out.iterdir()}
    assert run("verify", out) == 0


def test_a_web_page_multiplies_rewards_as_the_run_did(tmp_path):
    config = TrainConfig(num_envs=4, num_steps=5, total_steps=200, hidden=(8,), compile=False, normalize_rewards=True)
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    scale = load_reward_scale(tmp_path / "run", config)
    assert 1.0 / scale == trainer.reward_scale.deviation.item() != 1.0
    reward, done = torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.bool)
    torch.testing.assert_close(trainer.reward_scale.scale(reward, done), scale * reward, rtol=0.1, atol=0.0)
    assert load_reward_scale(tmp_path / "run", dataclasses.replace(config, normalize_rewards=False)) == 1.0


def test_the_command_that_continues_learning_has_the_options_of_the_run(tmp_path):
    command = _learn_command(tmp_path, TrainConfig(), 475.0, 1.0)
    assert command == f"{tmp_path}/learn_policy.py {tmp_path}/train_step.onnx --env CartPole-v1"
    config = TrainConfig(env="Pendulum-v1", num_envs=32, num_steps=8)
    command = _learn_command(tmp_path, config, None, 0.25).split(" ")
    learning = learn_policy.parser().parse_args(command[1:])
    assert (learning.env, learning.num_envs, learning.num_steps) == ("Pendulum-v1", 32, 8)
    assert (learning.solved_return, learning.reward_scale) == (math.inf, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--web", "--env", "CartPole-v0"),
            "env: expected one that the web page has, CartPole-v1, Acrobot-v1, Pendulum-v1, got 'CartPole-v0'",
        ),
        (("--web", "--format", "torchscript"), "web: expected the format onnx and the graph train-step"),
        (
            ("--web", "--graph", "policy,loss"),
            "train-step, with which the page learns, got --format onnx,torchscript --graph policy,loss",
        ),
        (("--web", "--ort", "nowhere"), "ort: expected the npm package onnxruntime-web with ort.wasm.min.mjs, "),
        (("--ort", "nowhere"), "ort: expected --web, whose page needs onnxruntime-web, got --ort nowhere alone"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.filterwarnings("ignore:.*CartPole-v0 is out of date:DeprecationWarning")
def test_a_web_page_that_cannot_be_is_refused_before_anything_is_written(options, message, trained_run, tmp_path, capsys):
    assert run("export", trained_run, "--out", tmp_path / "files", *options) == 2
    assert message in one_line_on_stderr(capsys)
    assert not (tmp_path / "files").exists()


def test_an_opset_below_the_lowest_is_an_error(trained_run, tmp_path, capsys):
    assert run("export", trained_run, "--out", tmp_path, "--opset", "17") == 2
    assert "opset: expected 18 to" in one_line_on_stderr(capsys)


def test_a_file_without_its_reference_cases_is_an_error(scripted, capsys):
    (scripted / "policy.pt.cases.npz").unlink()
    assert run("verify", scripted / "policy.pt") == 2
    assert "expected policy.pt.cases.npz beside it" in one_line_on_stderr(capsys)


def test_a_file_that_cannot_be_read_does_not_stop_the_verification_of_others(scripted, capsys):
    (scripted / "estimator.pt").write_text("no module")
    assert run("verify", scripted) == 2
    assert "estimator.pt that was exported, got one with another SHA-256" in capsys.readouterr().err
    (scripted / "estimator.pt.sha256").unlink()
    assert run("verify", scripted) == 2
    captured = capsys.readouterr()
    assert "policy.pt: equal to eager" in captured.out
    assert "estimator.pt: does not run" in captured.err
    assert run("verify", scripted, "--json") == 2
    files = json.loads(capsys.readouterr().out)["files"]
    assert {Path(file["path"]).name: file["passed"] for file in files} == {"estimator.pt": False, "policy.pt": True}
    assert "does not run" in files[0]["error"]


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("a2c_compiled.training.train", lambda *arguments, **options: pytest.fail("trained"))
    assert run("train", *TINY, "--out", tmp_path / "file" / "run") == 2
    assert "file" in one_line_on_stderr(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("trian",), "invalid choice: 'trian'"),
        (("train", "--lr", "fast"), "argument --lr: invalid float value: 'fast'"),
        (("train", "--num-envs", "1.5"), "argument --num-envs: invalid int value: '1.5'"),
        (("train", "--solved-return", "soon"), "argument --solved-return: expected a number or none, got 'soon'"),
        (("train", "--learning-rate", "1"), "unrecognized arguments: --learning-rate 1"),
        (("export",), "the following arguments are required: RUN"),
        (("export", "run", "--graph", "policy,value"), "argument --graph: expected any of policy, policy-sampled, loss"),
        (("export", "run", "--format", "tensorrt"), "argument --format: expected any of onnx, torchscript"),
        (("export", "run", "--opset", "new"), "argument --opset: invalid int value: 'new'"),
        (("verify",), "the following arguments are required: PATH"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_arguments_that_cannot_be_read_are_exit_status_2(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


# The demo


def result(greedy_return, steps=1000):
    return TrainResult(None, None, [], greedy_return, steps, 1.5)


def report(passed=True, name="seed_0/loss.onnx"):
    return Report(Path(name), 2048, ["T=3 N=2"], {"loss_critic": OutputError(1e-6, 1e-7, passed)}, [], {})


TIMING = demo.StepTiming("8 x 5", Timing(4e-3, 3e-3, 5e-3), Timing(1e-3, 0.9e-3, 1.1e-3), Timing(5e-4, 4e-4, 6e-4), 12.34)


def findings(results, passed=True, deployed=None, solved=True):
    """Findings of a demo; ``deployed`` are the returns in onnxruntime by seed, by default those in torch."""
    learned = {seed: {"return": 480.0 if solved else 9.0, "steps": 2000, "seconds": 3.5, "solved": solved} for seed in results}
    deployed = {seed: one.greedy_return for seed, one in results.items()} if deployed is None else deployed
    return demo.Findings(results, deployed, learned, [report(), report(passed)], [TIMING])


def test_a_demo_without_failures_has_no_failed_checks():
    assert demo.failed_checks(findings({0: result(475.0), 1: result(500.0)})) == []


@pytest.mark.parametrize(
    ("demo_findings", "failure"),
    [
        (findings({0: result(500.0), 1: result(474.9)}), "seed 1: expected a mean episode return of at least 475, got 474.9"),
        (findings({0: result(500.0)}, passed=False), f"{Path('seed_0/loss.onnx')}: differs from eager mode"),
        (
            findings({0: result(500.0)}, deployed={0: 499.5}),
            "seed 0: expected the mean episode return 500.0 in onnxruntime, got 499.5",
        ),
        (
            findings({0: result(500.0)}, solved=False),
            "seed 0: expected to solve CartPole-v1 without torch, got a mean episode return of 9.0",
        ),
    ],
    ids=["unsolved", "differs", "plays_differently", "unsolved_without_torch"],
)
def test_a_failed_check_is_reported(demo_findings, failure):
    assert demo.failed_checks(demo_findings) == [failure]
    text = demo.report_text(demo_findings, 80.0)
    assert f"**Failed: {failure}.**" in text
    assert "All checks passed." not in text


def test_the_report_has_returns_errors_and_timings():
    text = demo.report_text(findings({0: result(480.5, 123_456)}), 81.6)
    lines = text.splitlines()
    assert "All checks passed." in lines
    assert "| 0 | 480.5 | 480.5 | 123,456 | 1.5 |" in lines
    assert "| 0 | 480.0 | 2,000 | 3.5 |" in lines
    assert "| seed_0/loss.onnx | 2 | 1 | 1.0e-07 | equal |" in lines
    assert f"torch {torch.__version__}" in text
    assert "82 s in total" in text
    for row in demo.timing_table([TIMING]):
        assert row in lines


def test_the_table_of_timings_is_in_milliseconds():
    header, rule, row = demo.timing_table([TIMING])
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row == "| 8 x 5 | 4.00 (3.00-5.00) | 1.00 (0.90-1.10) | 0.50 (0.40-0.60) | 4.0 | 8.0 | 12.3 |"


def test_a_training_run_is_described_in_one_line():
    assert demo.describe(result(480.5, 123_456)) == (
        "mean episode return of the greedy policy: 480.5, after 123,456 environment steps in 1.5 s"
    )


def test_the_demos_data_is_a_rollout():
    rollout = demo.random_rollout(5, 8)
    assert isinstance(rollout, Rollout)
    assert rollout.observation.shape == (5, 8, 4)
    assert (rollout.terminated <= rollout.done).all()
    assert rollout.done.any()
    assert torch.equal(rollout.observation, demo.random_rollout(5, 8).observation)


def step_of(folder):
    _, loss = load_run(folder)
    return TrainStep(loss, compile=False)


def test_the_example_rollout_for_the_export_comes_from_the_environment(trained_run):
    rollout, action_space = export_run_module.example_rollout(step_of(trained_run), "CartPole-v1")
    assert action_space == gymnasium.spaces.Discrete(2)
    assert rollout.reward.shape == (16, 8)
    assert set(rollout.action.unique().tolist()) == {0, 1}


@pytest.mark.slow
def test_an_exported_policy_gets_the_same_returns_as_in_torch(trained_run, tmp_path, monkeypatch):
    step = step_of(trained_run)
    monkeypatch.setattr(demo, "EPISODES", 7)
    (exported,) = export_run_module.export_run(step, "CartPole-v1", tmp_path, [export_run_module.Job("policy", "onnx")])
    path = exported.report.path
    expected = evaluate(greedy_policy(step.loss), "CartPole-v1", 7, EVALUATION_SEED)
    assert demo.play_exported(sys.executable, path) == expected.mean()
    assert play_policy.play(str(path), "CartPole-v1", 7, EVALUATION_SEED) == expected.tolist()
    path.write_text("no graph")
    with pytest.raises(DemoError, match=r"play_policy\.py failed: .*policy\.onnx"):
        demo.play_exported(sys.executable, path)


def test_play_policy_registers_minatars_games(monkeypatch):
    pytest.importorskip("minatar")
    for name in [name for name in gymnasium.registry if name.startswith("MinAtar/")]:
        monkeypatch.delitem(gymnasium.registry, name)
    for _ in range(2):
        envs = play_policy.make_environments("MinAtar/Breakout-v1", 2)
        assert envs.reset(seed=0)[0].shape == (2, 10, 10, 4)
        envs.close()


def test_a_demo_that_fails_is_exit_status_1(monkeypatch, tmp_path, capsys):
    def fail(out):
        raise DemoError(f"seed 1 reached only 3.0, see {out.name}")

    monkeypatch.setattr(demo, "run_demo", fail)
    assert run("demo", "--out", tmp_path / "here") == 1
    assert one_line_on_stderr(capsys) == "a2c-compiled: seed 1 reached only 3.0, see here"


def test_a_demo_that_succeeds_is_exit_status_0(monkeypatch, tmp_path):
    folders = []
    monkeypatch.setattr(demo, "run_demo", folders.append)
    assert run("demo", "--out", tmp_path) == 0
    assert folders == [tmp_path]
