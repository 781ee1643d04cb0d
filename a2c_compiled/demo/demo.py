"""Trains CartPole-v1, exports and checks it, acts and learns without torch, measures a training step, and writes a report."""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch

from a2c_compiled import export
from a2c_compiled._export_names import POLICY, TRAIN_STEP
from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled.benchmarks.measure.timing import Timing, time_call
from a2c_compiled.demo.bare_environment import make_bare_environment
from a2c_compiled.environments import goal_of
from a2c_compiled.export.on_device.runtime import Learner
from a2c_compiled.export.run import Job, export_run, jobs
from a2c_compiled.training import TrainConfig, TrainResult
from a2c_compiled.training.construction import make_loss, make_step, seed_everything
from a2c_compiled.training.evaluation import EVALUATION_SEED
from a2c_compiled.training.plots import plot_runs
from a2c_compiled.training.trainer import train
from a2c_compiled.update import Rollout, TrainStep

EPISODES = 100
"""Number of episodes that each exported policy plays."""

GOAL = goal_of(TrainConfig.env) or 0.0
"""Mean episode return at which the environment counts as solved."""


class DemoError(Exception):
    """The demo has an unexpected result: a seed did not solve the environment, an exported file differs from torch, or a script failed."""


class Findings(NamedTuple):
    """The results of the demo.

    Attributes:
        results: by seed, the result of training with torch.
        deployed: by seed, the mean episode return of the exported policy in a Python without torch.
        learnt: by seed, the last JSON line that ``learn_policy.py`` printed after training from scratch in a Python without torch.
        reports: the comparison of each exported file with eager mode.
        timings: the duration of a training step, for several sizes of rollout.
    """

    results: Dict[int, TrainResult]
    deployed: Dict[int, float]
    learnt: Dict[int, Dict[str, Any]]
    reports: List[export.Report]
    timings: List["StepTiming"]


class StepTiming(NamedTuple):
    """The duration of one training step in eager mode, compiled and in onnxruntime, for a rollout of size ``shape``.

    ``compile_seconds`` is the duration of the first compiled call.
    """

    shape: str
    eager: Timing
    compiled: Timing
    exported: Timing
    compile_seconds: float


def run_demo(out: AnyPath, seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """Trains CartPole-v1 for each seed, exports and checks the results, learns again without torch, and writes a report.

    Args:
        out: folder for the report and all files.
        seeds: seeds of the training runs. All graphs of the first seed are exported, and the policy of each other seed.

    Returns:
        Path of the report.

    Raises:
        DemoError: a seed did not solve the environment with or without torch, a file differs from eager mode, an exported policy has
            another return than the policy in torch, or a script failed.
    """
    started, out = time.perf_counter(), as_path("out", out)
    out.mkdir(parents=True, exist_ok=True)

    print(
        f"1. Training {TrainConfig.env} with the compiled training step, seeds {', '.join(map(str, seeds))}."
        f" The environment is solved at a mean episode return of {GOAL:g}."
    )
    results: Dict[int, TrainResult] = {}
    for seed in seeds:
        config = TrainConfig(seed=seed, compile=True)
        results[seed] = train(config, folder=out / f"seed_{seed}")
        print(f"   seed {seed}: {describe(results[seed])}")
    plot_runs([out / f"seed_{seed}" for seed in seeds], out / "learning_curve.png")

    print(
        "\n2. Exporting all graphs of the first seed and the policies of the others, and comparing each file with eager mode."
    )
    reports: List[export.Report] = []
    for seed in seeds:
        wanted = jobs() if seed == seeds[0] else [Job(POLICY, "onnx")]
        for exported in export_run(results[seed].step, TrainConfig().environment, out / f"seed_{seed}", wanted):
            reports.append(exported.report)
            print("   " + summary(exported.report))

    with tempfile.TemporaryDirectory() as folder:
        python = make_bare_environment(Path(folder))
        print(f"\n3. Playing {EPISODES} episodes with each exported policy in a Python without torch.")
        deployed = {seed: play_exported(python, out / f"seed_{seed}" / "policy.onnx") for seed in seeds}
        for seed in seeds:
            print(
                f"   seed {seed}: mean episode return {deployed[seed]:.1f} in onnxruntime,"
                f" {results[seed].greedy_return:.1f} in torch"
            )

        print("\n4. Learning from scratch with the exported training step in a Python without torch.")
        learnt = {}
        for seed in seeds:
            learnt[seed] = learn_exported(python, out / f"seed_{seed}" / "from_scratch", seed)
            print(
                "   seed {}: mean episode return of the greedy policy: {return:.1f}, after {steps:,} environment steps"
                " in {seconds:.1f} s".format(seed, **learnt[seed])
            )

    print(
        "\n5. Measuring one training step in eager mode, compiled, and exported in onnxruntime."
        " Median, with the 20th and 80th percentile in brackets."
    )
    timings = time_steps(((5, 8), (16, 64), (128, 64)))
    for line in timing_table(timings):
        print("   " + line)

    findings = Findings(results, deployed, learnt, reports, timings)
    report_path = out / "report.md"
    seconds = time.perf_counter() - started
    with atomic_file(report_path) as temporary:
        temporary.write_text(report_text(findings, seconds))
    print(f"\nThe demo took {seconds:.0f} s. The report, the learning curves and all files are in {out}/")
    failures = failed_checks(findings)
    if failures:
        raise DemoError("; ".join(failures))
    return report_path


def describe(result: TrainResult) -> str:
    """Returns one line about a training run."""
    return (
        f"mean episode return of the greedy policy: {result.greedy_return:.1f}, after {result.steps:,} environment steps"
        f" in {result.seconds:.1f} s"
    )


def summary(report: export.Report) -> str:
    """Returns one line about an exported file."""
    verdict = (
        f"equal to eager mode within tolerance in {len(report.cases)} cases" if report.passed else "DIFFERS FROM EAGER MODE"
    )
    return f"{report.path.name:<24} {report.size / 1024:7.0f} KB  largest relative error {report.worst:.1e}  {verdict}"


def play_exported(python: Path, policy: Path) -> float:
    """Plays :data:`EPISODES` episodes with an exported policy and the interpreter ``python``. Returns their mean return."""
    options = ["--env", TrainConfig.env, "--episodes", str(EPISODES), "--seed", str(EVALUATION_SEED)]
    returns = _run(python, policy.with_name("play_policy.py"), policy, *options)
    return sum(returns) / len(returns)


def learn_exported(python: Path, folder: Path, seed: int) -> Dict[str, Any]:
    """Exports a training step with new networks to ``folder``, and trains the networks with the interpreter ``python``.

    Returns:
        The last JSON line that ``learn_policy.py`` printed: ``return``, ``steps``, ``seconds``, ``solved``.
    """
    config = TrainConfig(seed=seed, device="cpu")
    seed_everything(seed)
    step = make_step(config, make_loss(config), compile=False)
    path = next(export_run(step, config.environment, folder, [Job(TRAIN_STEP, "onnx")])).report.path
    options = ["--env", config.environment, "--seed", str(seed), "--out", str(folder / "learned.npz")]
    return _run(python, folder / "learn_policy.py", path, *options)


def _run(python: Path, script: Path, *arguments: Any) -> Any:
    """Runs a script and returns the JSON value in the last line that the script prints.

    Raises:
        DemoError: the exit status of the script is not 0.
    """
    process = subprocess.run([python, script, *arguments], capture_output=True, text=True)
    if process.returncode:
        error_lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise DemoError(f"{script.name} failed: {error_lines[-1]}")
    return json.loads(process.stdout.splitlines()[-1])


def time_steps(shapes: Sequence[Tuple[int, int]]) -> List[StepTiming]:
    """Measures one training step on random rollouts of each shape ``(steps, environments)``. All modes start from equal parameters."""
    start = TrainStep(make_loss(TrainConfig(device="cpu")), compile=False)
    with tempfile.TemporaryDirectory() as folder:
        path = export.export_train_step(start, random_rollout(4, 3), Path(folder) / "train_step.onnx")
        return [time_step(start, path, *shape) for shape in shapes]


def time_step(start: TrainStep, exported: Path, num_steps: int, num_envs: int) -> StepTiming:
    """Measures one training step in each mode, after comparing the metrics of each mode with the metrics of eager mode.

    Raises:
        AssertionError: the metrics differ.
    """
    rollout = random_rollout(num_steps, num_envs)
    eager, compiled = (TrainStep(make_loss(TrainConfig(device="cpu")), compile=mode, dynamic=False) for mode in (False, True))
    for step in (eager, compiled):
        step.load_state_dict(start.state_dict())
    learner = Learner.load(exported, threads=torch.get_num_threads())
    arrays = {name: getattr(rollout, name).numpy() for name in learner.rollout_entries}
    begin = time.perf_counter()
    compiled_metrics = compiled(rollout)
    compile_seconds = time.perf_counter() - begin
    expected = eager(rollout)
    torch.testing.assert_close(compiled_metrics, expected, rtol=1e-4, atol=1e-5)
    for name, value in learner.step(arrays).items():
        torch.testing.assert_close(value, float(getattr(expected, name)), rtol=1e-4, atol=1e-5)
    return StepTiming(
        f"{num_envs} x {num_steps}",
        time_call(lambda: eager(rollout)),
        time_call(lambda: compiled(rollout)),
        time_call(lambda: learner.step(arrays)),
        compile_seconds,
    )


def random_rollout(num_steps: int, num_envs: int) -> Rollout:
    """Returns random data with the shapes of CartPole. Episodes end at random steps."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_steps, num_envs)
    observations = torch.randn(2, *shape, 4, generator=generator)
    done = torch.rand(shape, generator=generator) < 0.1
    terminated = done & (torch.rand(shape, generator=generator) < 0.5)
    action = torch.randint(2, shape, generator=generator)
    return Rollout(observations[0], action, torch.ones(shape), observations[1], done, terminated)


def timing_table(timings: Sequence[StepTiming]) -> List[str]:
    """Returns Markdown rows with the median duration of each mode, and the 20th and 80th percentile in brackets."""
    rows = [
        "| environments x steps | eager, ms | compiled, ms | onnxruntime, ms | eager / compiled | eager / onnxruntime | compilation, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for timing in timings:
        modes = (timing.eager, timing.compiled, timing.exported)
        cells = [f"{t.median * 1e3:.2f} ({t.low * 1e3:.2f}-{t.high * 1e3:.2f})" for t in modes]
        ratios = [f"{timing.eager.median / t.median:.1f}" for t in modes[1:]]
        rows.append(f"| {timing.shape} | {' | '.join(cells + ratios)} | {timing.compile_seconds:.1f} |")
    return rows


def failed_checks(findings: Findings) -> List[str]:
    """Returns one line for each unexpected result."""
    results, deployed = findings.results, findings.deployed
    failures = [
        f"seed {seed}: expected a mean episode return of at least {GOAL:g}, got {result.greedy_return:.1f}"
        for seed, result in results.items()
        if result.greedy_return < GOAL
    ]
    failures += [f"{report.path}: differs from eager mode" for report in findings.reports if not report.passed]
    failures += [
        f"seed {seed}: expected the mean episode return {result.greedy_return:.1f} in onnxruntime, got {deployed[seed]:.1f}"
        for seed, result in results.items()
        if deployed[seed] != result.greedy_return
    ]
    failures += [
        f"seed {seed}: expected to solve {TrainConfig.env} without torch, got a mean episode return of {learnt['return']:.1f}"
        for seed, learnt in findings.learnt.items()
        if not learnt["solved"]
    ]
    return failures


def report_text(findings: Findings, seconds: float) -> str:
    """Returns the report in Markdown, one page long."""
    failures = failed_checks(findings)
    lines = [
        f"# A2C on {TrainConfig.env}",
        "",
        "All checks passed." if not failures else f"**Failed: {'; '.join(failures)}.**",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {seconds:.0f} s in total.",
        "",
        "## Training",
        "",
        f"Mean episode return of the greedy policy over {EPISODES} episodes. The environment is solved at {GOAL:g}."
        " The seconds of training include compilation.",
        "",
        "| seed | in torch | exported, in onnxruntime without torch | environment steps | seconds |",
        "|---|---|---|---|---|",
        *(
            f"| {seed} | {result.greedy_return:.1f} | {findings.deployed[seed]:.1f} | {result.steps:,} | {result.seconds:.1f} |"
            for seed, result in findings.results.items()
        ),
        "",
        "![learning curves](learning_curve.png)",
        "",
        "## Learning from scratch without torch",
        "",
        "New networks act and learn with exported graphs in onnxruntime. Only onnxruntime, numpy and gymnasium are installed.",
        "",
        "| seed | mean episode return | environment steps | seconds |",
        "|---|---|---|---|",
        *(
            "| {} | {return:.1f} | {steps:,} | {seconds:.1f} |".format(seed, **learnt)
            for seed, learnt in findings.learnt.items()
        ),
        "",
        "## Exported files compared with eager mode",
        "",
        "Each file runs on inputs other than the example of the export. The table shows the largest error of all outputs. The error of an"
        " output is relative to its largest magnitude or 1, whichever is larger. The error of a new parameter or optimizer state is"
        " relative to the size of its change.",
        "",
        "| file | KB | cases | largest error | |",
        "|---|---|---|---|---|",
        *(
            f"| {'/'.join(report.path.parts[-2:])} | {report.size / 1024:.0f} | {len(report.cases)} | {report.worst:.1e} |"
            f" {'equal' if report.passed else '**differs**'} |"
            for report in findings.reports
        ),
        "",
        "These commands need only numpy, onnxruntime and gymnasium. Play with a policy: `python play_policy.py policy.onnx`."
        " Continue learning: `python learn_policy.py train_step.onnx`.",
        "",
        "## One training step",
        "",
        "Loss, gradient, clipping and RMSprop. Median of 30 samples; 20th and 80th percentile in brackets.",
        "",
        *timing_table(findings.timings),
        "",
    ]
    return "\n".join(lines)
