"""Trains the presets of ``a2c-compiled train --preset`` with several seeds and reports their returns and training times.

``python -m a2c_compiled.benchmarks.subjects.bench_presets`` trains all presets and writes ``presets.md``, ``presets.json`` and
``presets.png``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence

import torch

from a2c_compiled._files import atomic_file
from a2c_compiled.benchmarks.measure.machine import in_words, machine, versions
from a2c_compiled.benchmarks.report.tables import Table
from a2c_compiled.environments import goal_of
from a2c_compiled.training import TrainConfig, train
from a2c_compiled.training.plots import plot_returns
from a2c_compiled.training.presets import PRESETS

PACKAGES = ("a2c-compiled", "torch", "numpy", "gymnasium", "box2d", "mujoco", "minatar")

HOW_TO_READ = """\
- A run ends as soon as the mean return of the greedy policy reaches the goal on two sets of 100 episodes, or after the preset's
  `total_steps`. "greedy return" is the mean over the first set, with the networks at the end of the run.
- The goal is the preset's `solved_return`, or gymnasium's `reward_threshold` if the preset sets none.
- Seconds are the wall time of a run: compiling, rollouts, updates and evaluations of the greedy policy. Presets with at least two
  million `total_steps` are compiled. The first seed starts with an empty compile cache; the other seeds reuse its compiled code.
- "steps/s" counts environment steps per second, updates included: the median over the lines of a run's log, then over the seeds."""


class PresetRun(NamedTuple):
    """The result of one training run.

    Attributes:
        preset: name of the preset.
        seed: seed of the run.
        greedy_return: mean return of the greedy policy over 100 episodes at the end.
        steps: environment steps taken.
        seconds: wall time, including compiling and evaluations.
        steps_per_second: median over the lines of the run's log.
    """

    preset: str
    seed: int
    greedy_return: float
    steps: int
    seconds: float
    steps_per_second: float


def run_preset(name: str, seed: int, folder: Path, presets: Mapping[str, Mapping[str, Any]] = PRESETS) -> PresetRun:
    """Trains one preset and returns the result.

    Args:
        name: key of ``presets``.
        seed: seed of the run.
        folder: folder of the run.
        presets: training options by preset name.
    """
    result = train(TrainConfig(**{**presets[name], "seed": seed}), progress=sys.stderr.isatty(), folder=folder)
    speed = statistics.median(row["steps_per_second"] for row in result.history)
    return PresetRun(name, seed, result.greedy_return, result.steps, result.seconds, speed)


def measure(names: Sequence[str], seeds: int, out: Path, presets: Mapping[str, Mapping[str, Any]] = PRESETS) -> List[PresetRun]:
    """Trains each preset with several seeds, and writes ``presets.md``, ``presets.json`` and ``presets.png`` to ``out``.

    Args:
        names: presets to train, keys of ``presets``.
        seeds: number of runs per preset; the seeds are 1, 2, ...
        out: the output folder. The folders of the runs are temporary.
        presets: training options by preset name.

    Returns:
        The result of every run.
    """
    runs: List[PresetRun] = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = []
        for name in names:
            with _empty_compile_cache():
                for seed in range(1, seeds + 1):
                    folders.append(Path(temporary) / f"{name}_{seed}")
                    runs.append(run_preset(name, seed, folders[-1], presets))
                    print(*runs[-1], flush=True)
        plot_returns(folders, out / "presets.png")
    document = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(PACKAGES),
        "runs": [run._asdict() for run in runs],
    }
    with atomic_file(out / "presets.json") as path:
        path.write_text(json.dumps(document, indent=1) + "\n")
    with atomic_file(out / "presets.md") as path:
        path.write_text(markdown(document, table(runs, presets)))
    return runs


def table(runs: Sequence[PresetRun], presets: Mapping[str, Mapping[str, Any]] = PRESETS) -> Table:
    """Returns a table of ``runs`` with one line per preset. ``presets``: training options by preset name."""
    groups: Dict[str, List[PresetRun]] = {}
    for run in runs:
        groups.setdefault(run.preset, []).append(run)
    header = [
        "preset",
        "environment",
        "goal",
        "seeds solved",
        "greedy return, mean (lowest to highest)",
        "environment steps, median",
        "seconds, median",
        "seconds, first seed",
        "steps/s, median",
    ]
    lines = []
    for name, group in groups.items():
        config = TrainConfig(**presets[name])
        goal = goal_of(config.env, config.solved_return)
        returns = [run.greedy_return for run in group]
        solved = "" if goal is None else f"{sum(value >= goal for value in returns)} of {len(group)}"
        lines.append(
            [
                f"`{name}`",
                config.environment,
                "" if goal is None else f"{goal:g}",
                solved,
                f"{statistics.mean(returns):.1f} ({min(returns):.1f} to {max(returns):.1f})",
                f"{statistics.median(run.steps for run in group):,.0f}",
                f"{statistics.median(run.seconds for run in group):.0f}",
                f"{group[0].seconds:.0f}",
                f"{statistics.median(run.steps_per_second for run in group):,.0f}",
            ]
        )
    return Table("Presets", header, lines, [])


def markdown(document: Mapping[str, Any], presets: Table) -> str:
    """Returns the report in Markdown.

    Args:
        document: "machine" and "versions" of the run.
        presets: the table of the presets.
    """
    return "\n".join(
        [
            "# Presets",
            "",
            in_words(document["machine"], document["versions"]),
            "",
            HOW_TO_READ,
            "",
            presets.markdown(),
            "The figure shows the mean return of the last 100 training episodes, whose actions are sampled, against environment steps.",
            "Line: mean over the seeds. Band: lowest to highest seed; quartiles with five or more seeds. Dashed: the greedy policy's goal.",
            "",
            "![return against environment steps, one panel per preset](presets.png)",
            "",
        ]
    )


@contextmanager
def _empty_compile_cache() -> Iterator[None]:
    """Gives torch.compile an empty cache on disk in the block, and clears its cache in memory before the block."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    torch.compiler.reset()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"preset to train: any of {', '.join(PRESETS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of runs per preset (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/presets"), metavar="DIR", help="output folder (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="torch CPU threads (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in PRESETS:
            parser.error(f"NAME: expected any of {', '.join(PRESETS)}, got {name!r}")
    for option in ("seeds", "threads"):
        if getattr(arguments, option) < 1:
            parser.error(f"{option}: expected at least 1, got {getattr(arguments, option)}")
    torch.set_num_threads(arguments.threads)
    measure(arguments.names or list(PRESETS), arguments.seeds, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
