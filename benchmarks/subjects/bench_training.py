"""Training end to end on CartPole-v1: environment steps a second, and the time until it is solved, beside Stable-Baselines3's A2C.

``python -m a2c_compiled.benchmarks.subjects.bench_training`` writes a report.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch

from a2c_compiled import Rollout
from a2c_compiled._files import written_whole
from a2c_compiled.benchmarks.measure.machine import in_words, machine, versions
from a2c_compiled.benchmarks.measure.timing import Timing, time_interleaved
from a2c_compiled.benchmarks.report.tables import Table
from a2c_compiled.environments import CartPole
from a2c_compiled.training import TrainConfig
from a2c_compiled.training.evaluation import evaluate
from a2c_compiled.training.trainer import Trainer

PACKAGES = ("a2c-compiled", "torch", "numpy", "gymnasium", "stable-baselines3")
ENV = TrainConfig.env
GOAL = 475.0
STEPS = 16
SB3_CHECK = 5000  # environment steps between two looks at SB3's greedy policy


class Speed(NamedTuple):
    """Of one way to train, with so many environments.

    Attributes:
        name: of the way.
        num_envs: environments side by side.
        whole: a rollout and the update from it.
        rollout: the rollout alone.
        steps: environment steps of each.
    """

    name: str
    num_envs: int
    whole: Timing
    rollout: Timing
    steps: int


def speeds(num_envs: int, device: str, samples: int, compiling: bool = True) -> List[Speed]:
    """Each way's rollouts are held against CartPole's own dynamics before it is timed."""
    ways: Dict[str, Callable[[], Trainer]] = {"in torch, eager": lambda: _trainer(num_envs, device, compile=False)}
    if compiling:
        ways["in torch, compiled"] = lambda: _trainer(num_envs, device, compile=True)
        ways["gymnasium's vectorised, compiled"] = lambda: _trainer(num_envs, device, compile=True, vectorization="gymnasium")
    trainers = {name: make() for name, make in ways.items()}
    functions: Dict[str, Callable[[], object]] = {}
    for name, trainer in trainers.items():
        check_rollout(trainer.update()[0])
        functions[f"{name}: whole"] = _awaited(trainer.update, device)
        functions[f"{name}: rollout"] = _awaited(trainer.collector.collect, device)
    if device == "cpu" and num_envs <= 64:
        learner = _sb3(num_envs, STEPS)
        functions["Stable-Baselines3: whole"] = lambda: learner.learn(num_envs * STEPS, reset_num_timesteps=False)
    timed = time_interleaved(functions, samples, 0.05, 6.0)
    names = dict.fromkeys(name.rpartition(": ")[0] for name in functions)
    nothing = Timing(float("nan"), float("nan"), float("nan"))
    return [
        Speed(name, num_envs, timed[f"{name}: whole"], timed.get(f"{name}: rollout", nothing), num_envs * STEPS)
        for name in names
    ]


def check_rollout(rollout: Rollout) -> None:
    """Raise AssertionError unless each step follows from CartPole's dynamics, and ends where they say so."""
    counted = torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask
    observation, action = rollout.observation[counted].double().cpu(), rollout.action[counted].cpu()
    expected, reward, terminated = CartPole(1, dtype=torch.float64).advance(observation, action)
    torch.testing.assert_close(rollout.next_observation[counted].double().cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(rollout.terminated[counted].cpu(), terminated)
    assert torch.equal(rollout.reward[counted].double().cpu(), reward)


def solve(seed: int, cache: Optional[Path] = None) -> Dict[str, float]:
    """Train in a new process until it is solved; compiled where ``cache`` says where compiled code is kept, which seconds include."""
    options = ["--solve", str(seed)]
    if cache is None:
        return _in_new_process(options, dict(os.environ))
    return _in_new_process([*options, "--compile"], {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)})


def solve_sb3(seed: int) -> Dict[str, float]:
    """Stable-Baselines3's A2C with its defaults on 8 environments, in a new process; seconds are those of learning, without looks."""
    return _in_new_process(["--solve-sb3", str(seed)], dict(os.environ))


def _in_new_process(options: List[str], environment: Dict[str, str]) -> Dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "a2c_compiled.benchmarks.subjects.bench_training",
        "--threads",
        str(torch.get_num_threads()),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(options)} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _solved(seed: int, compile: Optional[bool]) -> Dict[str, float]:
    result = Trainer(TrainConfig(seed=seed, compile=compile)).run(progress=False)
    return {"seed": seed, "return": result.greedy_return, "steps": result.steps, "seconds": result.seconds}


def _solved_by_sb3(seed: int) -> Dict[str, float]:
    learner = _sb3(8, 5, seed)
    seconds, greedy = 0.0, 0.0
    while greedy < GOAL and learner.num_timesteps < 1_000_000:
        started = time.perf_counter()
        learner.learn(SB3_CHECK, reset_num_timesteps=False)
        seconds += time.perf_counter() - started
        greedy = float(evaluate(lambda observation: learner.predict(observation, deterministic=True)[0], ENV).mean())
    return {"seed": seed, "return": greedy, "steps": learner.num_timesteps, "seconds": seconds}


def _sb3(num_envs: int, num_steps: int, seed: int = 0) -> Any:
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    return A2C("MlpPolicy", make_vec_env(ENV, num_envs, seed), n_steps=num_steps, seed=seed, device="cpu")


def _trainer(num_envs: int, device: str, **options: Any) -> Trainer:
    return Trainer(TrainConfig(num_envs=num_envs, num_steps=STEPS, device=device, **options))


def _awaited(function: Callable[[], object], device: str) -> Callable[[], object]:
    """``function`` until the device has finished."""

    def call() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def speed_table(measured: Sequence[Speed]) -> Table:
    """Environment steps a second, updates included."""
    header = ["environments", "way", "steps a second", "a rollout and its update, ms", "the rollout alone, ms"]
    lines = [
        [
            f"{speed.num_envs:,}",
            speed.name,
            f"{speed.steps / speed.whole.median:,.0f}",
            f"{speed.whole.median * 1e3:.2f} ({speed.whole.low * 1e3:.2f}-{speed.whole.high * 1e3:.2f})",
            "" if speed.rollout.median != speed.rollout.median else f"{speed.rollout.median * 1e3:.2f}",
        ]
        for speed in measured
    ]
    return Table(f"CartPole-v1, rollouts of {STEPS} steps, updates included", header, lines, [])


def solve_table(runs: Dict[str, List[Dict[str, float]]]) -> Table:
    """How long it takes until the greedy policy returns 475 over 100 episodes."""
    header = ["", "solved", "seconds: median", "lowest", "highest", "environment steps, median"]
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
    return Table(f"Until the greedy policy returns {GOAL:g} over 100 episodes", header, lines, [])


def measure(out: Path, num_envs: Sequence[int], seeds: int, device: str, samples: int, compiling: bool = True) -> None:
    """Measure all of it, and write ``training.md`` and ``training.json``."""
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
    with written_whole(out / "training.json") as path:
        document = {"machine": described, "versions": packages, "speeds": [speed._asdict() for speed in measured], "runs": runs}
        path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    lines = [
        "# Training CartPole-v1",
        "",
        in_words(described, packages),
        "",
        "Rollouts were held against CartPole's equations in float64 before they were timed. Medians, lowest and highest fifth in brackets.",
        "The default preset's seconds hold all but importing: compiling (which runs as short as this do not, unless told to), learning,"
        f" and looking at the greedy policy, the last time over two sets of 100 episodes. Stable-Baselines3's hold learning alone: its"
        f" greedy policy is looked at every {SB3_CHECK:,} steps, the clock stands meanwhile, and one set of 100 is enough.",
        "",
        speed_table(measured).markdown(),
        *([solve_table(runs).markdown()] if runs else []),
    ]
    with written_whole(out / "training.md") as path:
        path.write_text("\n".join(lines))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench_training"))
    parser.add_argument("--num-envs", type=int, nargs="*", default=[8, 64, 1024, 4096])
    parser.add_argument("--seeds", type=int, default=5, help="of the runs until it is solved; 0 leaves them out")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--eager", action="store_true", help="time nothing that compiles first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--solve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--solve-sb3", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.solve is not None or arguments.solve_sb3 is not None:
        run = (
            _solved(arguments.solve, arguments.compile) if arguments.solve is not None else _solved_by_sb3(arguments.solve_sb3)
        )
        print(json.dumps(run))
        return 0
    measure(arguments.out, arguments.num_envs, arguments.seeds, arguments.device, arguments.samples, not arguments.eager)
    return 0


if __name__ == "__main__":
    sys.exit(main())
