"""Measures training on CartPole-v1, also with Stable-Baselines3's A2C: environment steps per second, and the time until it is solved.

``python -m a2c_compiled.benchmarks.subjects.bench_training`` writes ``training.md`` and ``training.json``. ``a2c-compiled bench`` measures
a rollout and its update in torch alone.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from a2c_compiled import Rollout
from a2c_compiled._files import atomic_file
from a2c_compiled.benchmarks.contenders.modes import COMPILED, EAGER
from a2c_compiled.benchmarks.measure.harness import Case, Contender, Make, PreparedCase
from a2c_compiled.benchmarks.measure.machine import in_words, machine, versions
from a2c_compiled.benchmarks.measure.process import run_module
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.measure.timing import Timing, time_interleaved
from a2c_compiled.benchmarks.report.tables import Table
from a2c_compiled.environments import CartPole
from a2c_compiled.training import TrainConfig
from a2c_compiled.training.evaluation import evaluate
from a2c_compiled.training.trainer import Trainer

PACKAGES = ("a2c-compiled", "torch", "numpy", "gymnasium", "stable-baselines3")
ENV = TrainConfig().environment
GOAL = 475.0
STEPS = 16
SB3_EVALUATION_INTERVAL = 5000  # environment steps between two evaluations of SB3's greedy policy


def cases(plan: Plan) -> List[Case]:
    """Returns one case per shape: a rollout and its update, eager and compiled."""
    return [_case(shape, plan) for shape in plan.trainings]


def _case(shape: Shape, plan: Plan) -> Case:
    num_envs, num_steps = shape

    def make(compile: bool) -> Contender:
        trainer = _trainer(num_envs, plan.device.type, num_steps, compile=compile)

        def check(result: Any) -> List[Tensor]:
            check_rollout(result[0])
            return []

        return Contender(trainer.update, check)

    contenders: Dict[str, Make] = {EAGER: lambda: make(False), **({COMPILED: lambda: make(True)} if plan.compiling else {})}
    return Case("Training on CartPole-v1", "whole", "[T, N]", shape, lambda: PreparedCase([], contenders))


class Speed(NamedTuple):
    """The speed of one implementation with one number of environments.

    Attributes:
        name: name of the implementation.
        num_envs: number of environments.
        whole: time of a rollout and its update.
        rollout: time of the rollout alone; NaN if not measured.
        steps: environment steps per rollout.
    """

    name: str
    num_envs: int
    whole: Timing
    rollout: Timing
    steps: int


def speeds(num_envs: int, device: str, samples: int, compiling: bool = True) -> List[Speed]:
    """Times every implementation, after :func:`check_rollout` has checked its first rollout, except for Stable-Baselines3.

    Args:
        num_envs: number of environments.
        device: "cpu" or "cuda". Stable-Baselines3 is timed only on the CPU and with at most 64 environments.
        samples: largest number of samples per implementation.
        compiling: whether compiled training is timed too.
    """
    implementations: Dict[str, Callable[[], Trainer]] = {"in torch, eager": lambda: _trainer(num_envs, device, compile=False)}
    if compiling:
        implementations["in torch, compiled"] = lambda: _trainer(num_envs, device, compile=True)
        implementations["gymnasium's vectorised, compiled"] = lambda: _trainer(
            num_envs, device, compile=True, vectorization="gymnasium"
        )
    trainers = {name: make() for name, make in implementations.items()}
    functions: Dict[str, Callable[[], object]] = {}
    for name, trainer in trainers.items():
        check_rollout(trainer.update()[0])
        functions[f"{name}: whole"] = _synchronized(trainer.update, device)
        functions[f"{name}: rollout"] = _synchronized(trainer.collector.collect, device)
    if device == "cpu" and num_envs <= 64:
        learner = _sb3(num_envs, STEPS)
        functions["Stable-Baselines3: whole"] = lambda: learner.learn(num_envs * STEPS, reset_num_timesteps=False)
    timed = time_interleaved(functions, samples, sample_seconds=0.05, budget_seconds=6.0)
    names = dict.fromkeys(name.rpartition(": ")[0] for name in functions)
    not_measured = Timing(float("nan"), float("nan"), float("nan"))
    return [
        Speed(name, num_envs, timed[f"{name}: whole"], timed.get(f"{name}: rollout", not_measured), num_envs * STEPS)
        for name in names
    ]


def check_rollout(rollout: Rollout) -> None:
    """Compares the steps of ``rollout`` with CartPole's dynamics in float64.

    Raises:
        AssertionError: a next observation, reward or terminated flag differs.
    """
    counted = torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask
    observation, action = rollout.observation[counted].double().cpu(), rollout.action[counted].cpu()
    next_observation = every_next_observation(rollout)[counted].double().cpu()
    expected, reward, terminated = CartPole(1, dtype=torch.float64).advance(observation, action)
    torch.testing.assert_close(next_observation, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(rollout.terminated[counted].cpu(), terminated)
    assert torch.equal(rollout.reward[counted].double().cpu(), reward)


def every_next_observation(rollout: Rollout) -> Tensor:
    """Returns the next observation of each step, ``[T, N, ...]``, also if ``rollout`` has that of the last step alone."""
    if rollout.next_observation.size(0) == rollout.observation.size(0):
        return rollout.next_observation
    return torch.cat([rollout.observation[1:], rollout.next_observation])


def solve(seed: int, cache: Optional[Path] = None) -> Dict[str, float]:
    """Trains the default preset in a new process until CartPole-v1 is solved or training ends.

    Args:
        seed: seed of the run.
        cache: folder of compiled code; training is then compiled. None keeps the default of ``TrainConfig``: eager mode on a CPU.

    Returns:
        "seed", "return" of the greedy policy, environment "steps", and wall time "seconds", which include compiling and evaluations.
    """
    options = ["--solve", str(seed)]
    if cache is None:
        return _in_new_process(options, dict(os.environ))
    return _in_new_process([*options, "--compile"], {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)})


def solve_sb3(seed: int) -> Dict[str, float]:
    """Trains Stable-Baselines3's A2C with its defaults, 8 environments and rollouts of 5 steps in a new process.

    Training ends when CartPole-v1 is solved, or after a million environment steps.

    Args:
        seed: seed of the run.

    Returns:
        The same entries as :func:`solve`, but "seconds" counts only learning, without evaluations.
    """
    return _in_new_process(["--solve-sb3", str(seed)], dict(os.environ))


def _in_new_process(options: List[str], environment: Dict[str, str]) -> Dict[str, float]:
    """Runs this file's command line with ``options`` in a new process, and returns the JSON of its last line of output."""
    options = ["--threads", str(torch.get_num_threads()), *options]
    return json.loads(run_module("a2c_compiled.benchmarks.subjects.bench_training", options, environment).splitlines()[-1])


def _trained_run(seed: int, compile: Optional[bool]) -> Dict[str, float]:
    """Trains the default preset in this process; returns the entries of :func:`solve`."""
    result = Trainer(TrainConfig(seed=seed, compile=compile)).run(progress=False)
    return {"seed": seed, "return": result.greedy_return, "steps": result.steps, "seconds": result.seconds}


def _trained_sb3_run(seed: int) -> Dict[str, float]:
    """Trains Stable-Baselines3's A2C in this process; returns the entries of :func:`solve_sb3`."""
    learner = _sb3(8, 5, seed)
    seconds, greedy = 0.0, 0.0
    while greedy < GOAL and learner.num_timesteps < 1_000_000:
        started = time.perf_counter()
        learner.learn(SB3_EVALUATION_INTERVAL, reset_num_timesteps=False)
        seconds += time.perf_counter() - started
        greedy = float(evaluate(lambda observation: learner.predict(observation, deterministic=True)[0], ENV).mean())
    return {"seed": seed, "return": greedy, "steps": learner.num_timesteps, "seconds": seconds}


def _sb3(num_envs: int, num_steps: int, seed: int = 0) -> Any:
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    return A2C("MlpPolicy", make_vec_env(ENV, num_envs, seed), n_steps=num_steps, seed=seed, device="cpu")


def _trainer(num_envs: int, device: str, num_steps: int = STEPS, **options: Any) -> Trainer:
    return Trainer(TrainConfig(num_envs=num_envs, num_steps=num_steps, device=device, **options))


def _synchronized(function: Callable[[], object], device: str) -> Callable[[], object]:
    """Returns a function that calls ``function`` and waits for the GPU."""

    def call() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def speed_table(measured: Sequence[Speed]) -> Table:
    """Returns the table of :func:`speeds`: environment steps per second, updates included."""
    header = [
        "environments",
        "implementation",
        "environment steps/s",
        "rollout + update, ms (20th-80th percentile)",
        "rollout alone, ms",
    ]
    lines = [
        [
            f"{speed.num_envs:,}",
            speed.name,
            f"{speed.steps / speed.whole.median:,.0f}",
            f"{speed.whole.median * 1e3:.2f} ({speed.whole.low * 1e3:.2f}-{speed.whole.high * 1e3:.2f})",
            "" if math.isnan(speed.rollout.median) else f"{speed.rollout.median * 1e3:.2f}",
        ]
        for speed in measured
    ]
    return Table(f"Training speed on CartPole-v1, rollouts of {STEPS} steps, updates included", header, lines, [])


def solve_table(runs: Dict[str, List[Dict[str, float]]]) -> Table:
    """Returns the table of the time until the greedy policy's mean return reaches 475 over 100 episodes.

    Args:
        runs: results of :func:`solve` and :func:`solve_sb3` by implementation.
    """
    header = [
        "implementation",
        "seeds solved",
        "seconds, median",
        "seconds, lowest",
        "seconds, highest",
        "environment steps, median",
    ]
    lines = []
    for name, group in runs.items():
        seconds, steps = (sorted(run[key] for run in group) for key in ("seconds", "steps"))
        solved = sum(run["return"] >= GOAL for run in group)
        middle = len(group) // 2
        lines.append(
            [
                name,
                f"{solved} of {len(group)}",
                f"{seconds[middle]:.1f}",
                f"{seconds[0]:.1f}",
                f"{seconds[-1]:.1f}",
                f"{steps[middle]:,.0f}",
            ]
        )
    return Table(
        f"Training time until the greedy policy's mean return over 100 episodes is at least {GOAL:g}", header, lines, []
    )


def measure(out: Path, num_envs: Sequence[int], seeds: int, device: str, samples: int, compiling: bool = True) -> None:
    """Measures speed and training time, prints both tables, and writes ``training.md`` and ``training.json`` to ``out``.

    Args:
        out: the output folder.
        num_envs: numbers of environments for the speed.
        seeds: number of training runs per implementation; 0 skips them.
        device: "cpu" or "cuda", for the speed. Stable-Baselines3 is measured only if the device is "cpu".
        samples: largest number of samples per implementation, for the speed.
        compiling: whether the speed of compiled training is measured too.
    """
    measured = [speed for n in num_envs for speed in speeds(n, device, samples, compiling)]
    print(speed_table(measured).plain(), flush=True)
    runs: Dict[str, List[Dict[str, float]]] = {}
    if seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs["default preset"] = [solve(seed) for seed in range(seeds)]
            runs["default preset, compiled, nothing on disk before"] = [solve(0, Path(folder))]
            runs["default preset, compiled, code on disk"] = [solve(seed, Path(folder)) for seed in range(seeds)]
        if device == "cpu":
            runs["Stable-Baselines3 A2C, its defaults"] = [solve_sb3(seed) for seed in range(seeds)]
        print(solve_table(runs).plain(), flush=True)
    described, packages = machine(torch.device(device)), versions(PACKAGES)
    with atomic_file(out / "training.json") as path:
        document = {"machine": described, "versions": packages, "speeds": [speed._asdict() for speed in measured], "runs": runs}
        path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    lines = [
        "# Training CartPole-v1",
        "",
        in_words(described, packages),
        "",
        "Speed: this library's rollouts were compared with CartPole's equations in float64 before timing. Times are medians.",
        "Training time: the default preset's seconds include compiling, rollouts, updates and evaluations of the greedy policy, but not"
        f' imports; a run is solved when two sets of 100 episodes reach the goal. On a CPU, only the rows marked "compiled" compile.'
        f" Stable-Baselines3's seconds exclude evaluations, every {SB3_EVALUATION_INTERVAL:,} environment steps; one set of 100 episodes"
        " suffices.",
        "",
        speed_table(measured).markdown(),
        *([solve_table(runs).markdown()] if runs else []),
    ]
    with atomic_file(out / "training.md") as path:
        path.write_text("\n".join(lines))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench_training"), help="folder for the results (default: runs/bench_training)"
    )
    parser.add_argument(
        "--num-envs",
        type=int,
        nargs="*",
        default=[8, 64, 1024, 4096],
        help="numbers of environments to time (default: 8 64 1024 4096)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="training runs per implementation until CartPole is solved; 0 skips them (default: 5)",
    )
    parser.add_argument("--samples", type=int, default=20, help="timed samples per implementation (default: 20)")
    parser.add_argument("--eager", action="store_true", help="skip compiled training")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the timed training (default: cpu)")
    parser.add_argument("--solve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--solve-sb3", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.solve is not None or arguments.solve_sb3 is not None:
        run = (
            _trained_run(arguments.solve, arguments.compile)
            if arguments.solve is not None
            else _trained_sb3_run(arguments.solve_sb3)
        )
        print(json.dumps(run))
        return 0
    measure(arguments.out, arguments.num_envs, arguments.seeds, arguments.device, arguments.samples, not arguments.eager)
    return 0


if __name__ == "__main__":
    sys.exit(main())
