"""The whole way once: train, export, check, deploy, time, and say how it went."""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch

from a2c_compiled import export
from a2c_compiled._export_names import POLICY, TRAIN_STEP
from a2c_compiled._files import written_whole
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
GOAL = goal_of(TrainConfig.env) or 0.0


class DemoError(Exception):
    """Something the demo is to show did not come true."""


class Findings(NamedTuple):
    """What the demo found out, by seed where it is a dict.

    Attributes:
        results: of training in torch.
        deployed: mean return of the exported policy, where torch is not installed.
        learnt: what ``learn_policy.py`` said of learning from scratch, where torch is not installed.
        reports: on every file.
        timings: of one update.
    """

    results: Dict[int, TrainResult]
    deployed: Dict[int, float]
    learnt: Dict[int, Dict[str, Any]]
    reports: List[export.Report]
    timings: List["StepTiming"]


class StepTiming(NamedTuple):
    """One update eager, compiled and in onnxruntime, and the seconds that compiling took."""

    shape: str
    eager: Timing
    compiled: Timing
    exported: Timing
    compile_seconds: float


def run_demo(out: Path, seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """Train CartPole-v1 for each seed, export and check everything, learn it again without torch, and leave a report in ``out``.

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
        config = TrainConfig(seed=seed, compile=True)
        results[seed] = train(config, folder=out / f"seed_{seed}")
        print(f"   seed {seed}: {describe(results[seed])}")
    plot_runs([out / f"seed_{seed}" for seed in seeds], out / "learning_curve.png")

    print("\n2. Exporting, and checking each file against eager: everything of the first seed, the policies of the others")
    reports: List[export.Report] = []
    for seed in seeds:
        wanted = jobs() if seed == seeds[0] else [Job(POLICY, "onnx")]
        for exported in export_run(results[seed].step, TrainConfig.env, out / f"seed_{seed}", wanted):
            reports.append(exported.report)
            print("   " + summary(exported.report))

    with tempfile.TemporaryDirectory() as folder:
        python = make_bare_environment(Path(folder))
        print(f"\n3. Playing {EPISODES} episodes with the exported policies, where torch is not installed")
        deployed = {seed: play_exported(python, out / f"seed_{seed}" / "policy.onnx") for seed in seeds}
        for seed in seeds:
            print(f"   seed {seed}: {deployed[seed]:.1f} in onnxruntime, {results[seed].greedy_return:.1f} in torch")

        print("\n4. Learning it from scratch with the exported training step, where torch is not installed")
        learnt = {}
        for seed in seeds:
            learnt[seed] = learn_exported(python, out / f"seed_{seed}" / "from_scratch", seed)
            print(
                "   seed {}: greedy return {return:.1f} after {steps:,} steps in {seconds:.1f} s".format(seed, **learnt[seed])
            )

    print("\n5. One training step: eager, compiled, and exported in onnxruntime")
    timings = time_steps(((5, 8), (16, 64), (128, 64)))
    for line in timing_table(timings):
        print("   " + line)

    findings = Findings(results, deployed, learnt, reports, timings)
    report_path = out / "report.md"
    seconds = time.perf_counter() - started
    with written_whole(report_path) as temporary:
        temporary.write_text(report_text(findings, seconds))
    print(f"\nDone in {seconds:.0f} s. Report, picture and files: {out}/")
    failures = failed_claims(findings)
    if failures:
        raise DemoError("; ".join(failures))
    return report_path


def describe(result: TrainResult) -> str:
    """One line on a training run."""
    return f"greedy return {result.greedy_return:.1f} after {result.steps:,} steps in {result.seconds:.1f} s"


def summary(report: export.Report) -> str:
    """One line on a file."""
    verdict = f"equal to eager in {len(report.cases)} cases" if report.passed else "DIFFERS FROM EAGER"
    return f"{report.path.name:<24} {report.size / 1024:7.0f} KB  largest error {report.worst:.1e}  {verdict}"


def play_exported(python: Path, policy: Path) -> float:
    """Mean return of an exported policy in another environment of Python."""
    options = ["--env", TrainConfig.env, "--episodes", str(EPISODES), "--seed", str(EVALUATION_SEED)]
    returns = _run(python, policy.with_name("play_policy.py"), policy, *options)
    return sum(returns) / len(returns)


def learn_exported(python: Path, folder: Path, seed: int) -> Dict[str, Any]:
    """Learn with new networks in another environment of Python, by a training step that is exported to ``folder``."""
    config = TrainConfig(seed=seed, device="cpu")
    seed_everything(seed)
    step = make_step(config, make_loss(config), compile=False)
    path = next(export_run(step, config.env, folder, [Job(TRAIN_STEP, "onnx")])).report.path
    options = ["--env", config.env, "--seed", str(seed), "--out", str(folder / "learned.npz")]
    return _run(python, folder / "learn_policy.py", path, *options)


def _run(python: Path, script: Path, *arguments: Any) -> Any:
    """What a script says last, which is JSON."""
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True)
    if done.returncode:
        last_words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DemoError(f"{script.name} failed: {last_words[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_steps(shapes: Sequence[Tuple[int, int]]) -> List[StepTiming]:
    """One update at each number of steps and environments, on random data, from the same start in every mode."""
    start = TrainStep(make_loss(TrainConfig(device="cpu")), compile=False)
    with tempfile.TemporaryDirectory() as folder:
        path = export.export_train_step(start, random_rollout(4, 3), Path(folder) / "train_step.onnx")
        return [time_step(start, path, *shape) for shape in shapes]


def time_step(start: TrainStep, exported: Path, num_steps: int, num_envs: int) -> StepTiming:
    """Each mode is held against eager before it is timed."""
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
    """Data of CartPole's shapes with ends anywhere."""
    generator = torch.Generator().manual_seed(0)
    shape = (num_steps, num_envs)
    observations = torch.randn(2, *shape, 4, generator=generator)
    done = torch.rand(shape, generator=generator) < 0.1
    terminated = done & (torch.rand(shape, generator=generator) < 0.5)
    action = torch.randint(2, shape, generator=generator)
    return Rollout(observations[0], action, torch.ones(shape), observations[1], done, terminated)


def timing_table(timings: Sequence[StepTiming]) -> List[str]:
    """Markdown rows: medians, with the lowest and highest fifth."""
    rows = [
        "| envs x steps | eager, ms | compiled, ms | onnxruntime, ms | eager / compiled | eager / onnxruntime | compiling, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in timings:
        modes = (one.eager, one.compiled, one.exported)
        cells = [f"{t.median * 1e3:.2f} ({t.low * 1e3:.2f}-{t.high * 1e3:.2f})" for t in modes]
        ratios = [f"{one.eager.median / t.median:.1f}" for t in modes[1:]]
        rows.append(f"| {one.shape} | {' | '.join(cells + ratios)} | {one.compile_seconds:.1f} |")
    return rows


def failed_claims(findings: Findings) -> List[str]:
    """What the demo claims and did not come true."""
    results, deployed = findings.results, findings.deployed
    failures = [
        f"seed {seed} reached only {result.greedy_return:.1f}"
        for seed, result in results.items()
        if result.greedy_return < GOAL
    ]
    failures += [f"{report.path} differs from eager" for report in findings.reports if not report.passed]
    failures += [
        f"seed {seed} returns {deployed[seed]:.1f} in onnxruntime, not {result.greedy_return:.1f}"
        for seed, result in results.items()
        if deployed[seed] != result.greedy_return
    ]
    failures += [
        f"seed {seed} reached only {learnt['return']:.1f} without torch"
        for seed, learnt in findings.learnt.items()
        if not learnt["solved"]
    ]
    return failures


def report_text(findings: Findings, seconds: float) -> str:
    """The one-page report."""
    failures = failed_claims(findings)
    lines = [
        f"# A2C on {TrainConfig.env}",
        "",
        "Everything below came true." if not failures else f"**Failed: {'; '.join(failures)}.**",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {seconds:.0f} s in all.",
        "",
        "## Training",
        "",
        f"Greedy return, mean of {EPISODES} episodes ({GOAL:g} is solved). Seconds include compiling.",
        "",
        "| seed | in torch | exported, in onnxruntime alone | environment steps | seconds |",
        "|---|---|---|---|---|",
        *(
            f"| {seed} | {result.greedy_return:.1f} | {findings.deployed[seed]:.1f} | {result.steps:,} | {result.seconds:.1f} |"
            for seed, result in findings.results.items()
        ),
        "",
        "![learning curves](learning_curve.png)",
        "",
        "## Learning from scratch where torch is not installed",
        "",
        "New networks, acting and learning through exported graphs in onnxruntime; numpy and gymnasium are all there is beside it.",
        "",
        "| seed | greedy return | environment steps | seconds |",
        "|---|---|---|---|",
        *(
            "| {} | {return:.1f} | {steps:,} | {seconds:.1f} |".format(seed, **learnt)
            for seed, learnt in findings.learnt.items()
        ),
        "",
        "## Exported files against eager",
        "",
        "Largest error of any output, in cases none of which is the example's; relative to the output's largest magnitude, at least 1, or"
        " to what an update changes.",
        "",
        "| file | KB | cases | largest error | |",
        "|---|---|---|---|---|",
        *(
            f"| {'/'.join(report.path.parts[-2:])} | {report.size / 1024:.0f} | {len(report.cases)} | {report.worst:.1e} |"
            f" {'equal' if report.passed else '**differs**'} |"
            for report in findings.reports
        ),
        "",
        "Play a policy where only numpy, onnxruntime and gymnasium are installed: `python play_policy.py policy.onnx`; learn on:"
        " `python learn_policy.py train_step.onnx`.",
        "",
        "## One training step",
        "",
        "Forward, backward, clipping and RMSprop; medians of 30 samples, lowest and highest fifth in brackets.",
        "",
        *timing_table(findings.timings),
        "",
    ]
    return "\n".join(lines)
