"""The whole way once: train, export, check, deploy, time, and say how it went."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import torch

from a2c_compiled import export
from a2c_compiled._files import written_whole
from a2c_compiled.export.run import export_run
from a2c_compiled.timing import Timing, time_call
from a2c_compiled.training import Rollout, TrainConfig, TrainResult, TrainStep
from a2c_compiled.training.evaluation import EVALUATION_SEED
from a2c_compiled.training.plots import plot_learning_curves
from a2c_compiled.training.runs import load_progress, save_run
from a2c_compiled.training.trainer import make_loss, train

EPISODES = 100


class DemoError(Exception):
    """Something the demo is to show did not come true."""


def run_demo(out: Path, seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """Train CartPole-v1 for each seed, export and check everything, and leave pictures and a report in ``out``.

    Returns:
        Path of the report.

    Raises:
        DemoError: a seed was not solved, a file differs from eager, or the exported policy plays differently.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    print(f"1. Training {TrainConfig.env} with the compiled step, seeds {', '.join(map(str, seeds))}")
    results: Dict[int, TrainResult] = {}
    for seed in seeds:
        config = TrainConfig(seed=seed)
        results[seed] = train(config)
        save_run(out / f"seed_{seed}", config, results[seed])
        print(f"   seed {seed}: {describe(results[seed])}")
    curves = {f"seed {seed}": load_progress(out / f"seed_{seed}") for seed in seeds}
    plot_learning_curves(curves, out / "learning_curve.png", f"A2C on {TrainConfig.env}", TrainConfig.solved_return)

    print("\n2. Exporting policies and loss, and checking each file against eager")
    reports: List[export.Report] = []
    for seed in seeds:
        reports += export_run(results[seed].loss, TrainConfig.env, out / f"seed_{seed}")
    for report in reports:
        print("   " + str(report).replace("\n", "\n   "))

    print(f"\n3. Playing {EPISODES} episodes with the exported policy, by onnxruntime alone")
    deployed = {seed: play_exported(out / f"seed_{seed}" / "policy.onnx") for seed in seeds}
    for seed in seeds:
        print(f"   seed {seed}: {deployed[seed]:.1f} in onnxruntime, {results[seed].greedy_return:.1f} in torch")

    print("\n4. One training step, eager against compiled")
    timings = [time_step(num_steps, num_envs) for num_steps, num_envs in ((5, 8), (16, 64), (128, 64))]
    for line in timing_table(timings):
        print("   " + line)

    report_path = out / "report.md"
    seconds = time.perf_counter() - started
    with written_whole(report_path) as temporary:
        temporary.write_text(report_text(results, reports, deployed, timings, seconds))
    print(f"\nDone in {seconds:.0f} s. Report, picture and files: {out}/")
    failures = failed_claims(results, reports, deployed)
    if failures:
        raise DemoError("; ".join(failures))
    return report_path


def describe(result: TrainResult) -> str:
    """One line on a training run."""
    return f"greedy return {result.greedy_return:.1f} after {result.steps:,} steps in {result.seconds:.1f} s"


def play_exported(policy: Path) -> float:
    """Mean return of an exported policy, in a process that never imports torch."""
    script = policy.with_name("play_policy.py")
    options = ["--env", TrainConfig.env, "--episodes", str(EPISODES), "--seed", str(EVALUATION_SEED)]
    played = subprocess.run([sys.executable, script, policy, *options], capture_output=True, text=True)
    if played.returncode:
        last_words = played.stderr.strip().splitlines() or [f"exit status {played.returncode}"]
        raise DemoError(f"{script.name} failed: {last_words[-1]}")
    returns = json.loads(played.stdout)
    return sum(returns) / len(returns)


def time_step(num_steps: int, num_envs: int) -> Tuple[str, Timing, Timing, float]:
    """Shape, eager and compiled time of a training step on random data, and the seconds that compiling took."""
    rollout = random_rollout(num_steps, num_envs)
    eager = TrainStep(make_loss(TrainConfig(device="cpu")), compile=False)
    compiled = TrainStep(make_loss(TrainConfig(device="cpu")), compile=True, dynamic=False)
    compiled.load_state_dict(eager.state_dict())
    start = time.perf_counter()
    compiled_metrics = compiled(rollout)
    compile_seconds = time.perf_counter() - start
    torch.testing.assert_close(compiled_metrics, eager(rollout), rtol=1e-4, atol=1e-5)
    return (
        f"{num_envs} x {num_steps}",
        time_call(lambda: eager(rollout)),
        time_call(lambda: compiled(rollout)),
        compile_seconds,
    )


def random_rollout(num_steps: int, num_envs: int) -> Rollout:
    """Data of CartPole's shapes with ends anywhere."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_steps, num_envs)
    observations = torch.randn(2, *shape, 4, generator=generator)
    done = torch.rand(shape, generator=generator) < 0.1
    terminated = done & (torch.rand(shape, generator=generator) < 0.5)
    action = torch.randint(2, shape, generator=generator)
    return Rollout(observations[0], action, torch.ones(shape), observations[1], done, terminated)


def timing_table(timings: Sequence[Tuple[str, Timing, Timing, float]]) -> List[str]:
    """Markdown rows: medians, with the lowest and highest fifth."""
    rows = ["| envs x steps | eager, ms | compiled, ms | eager / compiled | compiling, s |", "|---|---|---|---|---|"]
    for shape, eager, compiled, seconds in timings:
        cells = [f"{t.median * 1e3:.2f} ({t.low * 1e3:.2f}-{t.high * 1e3:.2f})" for t in (eager, compiled)]
        rows.append(f"| {shape} | {cells[0]} | {cells[1]} | {eager.median / compiled.median:.1f} | {seconds:.1f} |")
    return rows


def failed_claims(results: Dict[int, TrainResult], reports: Sequence["export.Report"], deployed: Dict[int, float]) -> List[str]:
    """What the demo claims and did not come true."""
    goal = TrainConfig.solved_return or 0.0
    failures = [
        f"seed {seed} reached only {result.greedy_return:.1f}"
        for seed, result in results.items()
        if result.greedy_return < goal
    ]
    failures += [f"{report.path} differs from eager" for report in reports if not report.passed]
    failures += [
        f"seed {seed} returns {deployed[seed]:.1f} in onnxruntime, not {result.greedy_return:.1f}"
        for seed, result in results.items()
        if deployed[seed] != result.greedy_return
    ]
    return failures


def worst_errors(reports: Sequence["export.Report"]) -> Dict[Tuple[str, str], Tuple[float, float]]:
    """Absolute and relative error by file name and output, the largest of all folders."""
    worst: Dict[Tuple[str, str], Tuple[float, float]] = {}
    for report in reports:
        for output, error in report.outputs.items():
            absolute, relative = worst.get((report.path.name, output), (0.0, 0.0))
            worst[report.path.name, output] = (max(absolute, error.absolute), max(relative, error.relative))
    return worst


def report_text(
    results: Dict[int, TrainResult],
    reports: Sequence["export.Report"],
    deployed: Dict[int, float],
    timings: Sequence[Tuple[str, Timing, Timing, float]],
    seconds: float,
) -> str:
    """The one-page report."""
    failures = failed_claims(results, reports, deployed)
    lines = [
        f"# A2C on {TrainConfig.env}",
        "",
        "Everything below came true." if not failures else f"**Failed: {'; '.join(failures)}.**",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {seconds:.0f} s in all.",
        "",
        "## Training",
        "",
        f"Greedy return, mean of {EPISODES} episodes ({TrainConfig.solved_return:g} is solved). Seconds include compiling.",
        "",
        "| seed | in torch | exported, in onnxruntime alone | environment steps | seconds |",
        "|---|---|---|---|---|",
        *(
            f"| {seed} | {result.greedy_return:.1f} | {deployed[seed]:.1f} | {result.steps:,} | {result.seconds:.1f} |"
            for seed, result in results.items()
        ),
        "",
        "![learning curves](learning_curve.png)",
        "",
        "## Exported files against eager",
        "",
        "Largest error over all seeds and several shapes, none of them the example's; relative to the largest magnitude, at least 1.",
        "",
        "| file | output | absolute | relative |",
        "|---|---|---|---|",
        *(
            f"| {file} | {output} | {absolute:.1e} | {relative:.1e} |"
            for (file, output), (absolute, relative) in worst_errors(reports).items()
        ),
        "",
        "Play a policy where only numpy, onnxruntime and gymnasium are installed: `python play_policy.py policy.onnx`.",
        "",
        "## One training step, eager against compiled",
        "",
        "Forward, backward, clipping and RMSprop; medians of 30 samples, lowest and highest fifth in brackets.",
        "",
        *timing_table(timings),
        "",
    ]
    return "\n".join(lines)
