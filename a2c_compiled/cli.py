"""The command ``a2c-compiled``."""

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Collection, Dict, List, Optional, Sequence

from a2c_compiled._export_names import FORMATS, GRAPHS, POLICY, TRAIN_STEP

if TYPE_CHECKING:
    from a2c_compiled.training import TrainConfig

EPILOG = """examples:
  a2c-compiled train --preset cartpole --seed 1 --out runs/cartpole
  a2c-compiled train --resume --out runs/cartpole
  torchrun --nproc-per-node 2 -m a2c_compiled.cli train --out runs/two
  a2c-compiled eval runs/cartpole --video cartpole.gif
  a2c-compiled plot runs/cartpole runs/other --smooth 10
  a2c-compiled export runs/cartpole
  a2c-compiled verify runs/cartpole/export
  a2c-compiled demo
  a2c-compiled bench --quick
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; the exit status is 0, 1 where a check failed, or 2 with one line on what was wrong."""
    given = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser(given[0] if given else "").parse_args(given)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("a2c-compiled: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        print(f"a2c-compiled: {message[0]}", file=sys.stderr)
        return 2


def _parser(command: str) -> argparse.ArgumentParser:
    """Reads all commands. Some have options that only their extras can describe, which they get where they are the ``command``."""
    parser = argparse.ArgumentParser(
        prog="a2c-compiled",
        description="Train A2C with a compiled update, export what it learnt to ONNX and TorchScript, and check the files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train on a gymnasium environment",
        description="Train on a gymnasium environment until it is solved, and leave configuration, weights, progress and a picture.",
    )
    if command == "train":
        _add_train_options(train)
    train.set_defaults(run=_train)

    evaluation = commands.add_parser(
        "eval",
        help="play episodes with a trained run",
        description="Play episodes with the policy of a run, finished or running, and print what they returned.",
    )
    if command == "eval":
        _add_eval_options(evaluation)
    evaluation.set_defaults(run=_eval)

    plot = commands.add_parser(
        "plot",
        help="draw learning curves of runs",
        description="Draw what runs, finished or running, have recorded. Those that differ in nothing but the seed are one line, their"
        " mean, in a band from the lowest to the highest, or between the quartiles of five or more, as far as the shortest of them goes;"
        " from there the longer ones are a thin line each.",
    )
    plot.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders that 'train' wrote")
    plot.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture, .png, .svg or .pdf (default: RUN/learning_curve.png; of several runs learning_curves.png)",
    )
    plot.add_argument("--x", choices=("steps", "seconds"), default="steps", help="what runs along (default: %(default)s)")
    plot.add_argument("--smooth", type=int, default=1, metavar="N", help="draw means of N rows (default: %(default)s)")
    plot.set_defaults(run=_plot)

    export = commands.add_parser(
        "export",
        help="export a trained run",
        description="Export policy, loss, estimator and training step of a run, with what a device without torch needs to use them and to"
        " learn on, and check every file against eager. Exit status 1 if one differs.",
    )
    export.add_argument("folder", type=Path, metavar="RUN", help="folder that 'train' wrote")
    export.add_argument("--out", type=Path, metavar="DIR", help="folder for the files (default: RUN/export)")
    export.add_argument(
        "--format",
        type=_choices(FORMATS),
        default=["onnx", "torchscript"],
        metavar="F[,F]",
        help=f"{_one_of(FORMATS, 'onnx,torchscript')}; aot is compiled for this machine and takes some 10 s a graph",
    )
    export.add_argument("--graph", type=_choices(GRAPHS), default=list(GRAPHS), metavar="G[,G]", help=_one_of(GRAPHS))
    export.add_argument(
        "--opset", type=int, default=18, metavar="N", help="version of the ONNX operators, 18 or later (default: 18)"
    )
    export.set_defaults(run=_export)

    verify = commands.add_parser(
        "verify",
        help="check exported files against eager",
        description="Run exported files at shapes other than the example's and on extreme data, and print the largest error of each output."
        " Exit status 1 if one is out of tolerance.",
    )
    verify.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="exported files, or folders of them")
    verify.add_argument("--json", action="store_true", help="print one JSON document instead")
    verify.set_defaults(run=_verify)

    demo = commands.add_parser(
        "demo",
        help="the whole way once, in a few minutes",
        description="Train CartPole-v1 with three seeds, export and check everything, play the exported policies with onnxruntime"
        " alone, time eager against compiled, and write a report.",
    )
    _add_out(demo, "runs/demo", "for all of it")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="time everything, against the libraries you may use today",
        description="Time estimators, loss, update and policy, eager, compiled and exported, against torchrl, Stable-Baselines3 and"
        " numba where they are installed (pip install 'a2c-compiled[peers]'). Every answer is checked before it is timed. Leaves"
        " results.json, report.md and pictures. Exit status 1 if a mode of this library fails or answers wrong.",
    )
    if command == "bench":
        _add_bench_options(bench)
    bench.set_defaults(run=_bench)
    return parser


def _add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    parser.add_argument("--out", type=Path, default=Path(default), metavar="DIR", help=f"folder {what} (default: %(default)s)")


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    """Where the run goes, how it begins, and an option for each field of TrainConfig; a field that is not given is left out."""
    _need("train")
    from a2c_compiled.training import TrainConfig
    from a2c_compiled.training.presets import PRESETS

    _add_out(parser, "runs/train", "of the run")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --out, with its options, bit for bit as if it had never stopped; begin where there is none",
    )
    again.add_argument("--overwrite", action="store_true", help="begin anew where --out holds a run")
    parser.add_argument(
        "--preset", choices=PRESETS, help="options that are tuned for an environment; those given here go before them"
    )
    kinds = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind = kinds[field.name]
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        options: Dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{field.metadata['help']} (default: {'none' if default is None else default})",
        }
        if kind in (bool, Optional[bool]):
            options["action"] = argparse.BooleanOptionalAction
        elif kind == typing.Tuple[int, ...]:
            options |= {"type": int, "nargs": "+", "metavar": "N"}
        else:
            plain = {Optional[float]: float, Optional[str]: str}.get(kind, kind)
            read = plain if plain is kind else _or_none(plain)
            options |= {"type": read, "metavar": {int: "N", float: "X", str: "NAME"}[plain]}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _add_eval_options(parser: argparse.ArgumentParser) -> None:
    _need("train")
    from a2c_compiled.training.evaluation import EVALUATION_SEED

    parser.add_argument("folder", type=Path, metavar="RUN", help="folder that 'train' wrote")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=EVALUATION_SEED,
        metavar="N",
        help="of environments and sampled actions (default: %(default)s)",
    )
    parser.add_argument("--sampled", action="store_true", help="sample actions instead of taking the most probable ones")
    parser.add_argument(
        "--video",
        type=Path,
        metavar="FILE",
        help="film an episode: .gif, .mp4 (takes the extra environments), or .png for eight frames of it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def _add_bench_options(parser: argparse.ArgumentParser) -> None:
    _need("train", "export")
    from a2c_compiled.benchmarks.run import SUBJECTS

    parser.add_argument(
        "--quick", action="store_true", help="few shapes and samples: under two minutes instead of five or more"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of torch on the CPU; more only on cores that nothing else uses (default: 1)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where the data is; a GPU also gets the shapes of large simulators (default: a GPU if any)",
    )
    parser.add_argument("--subject", type=_choices(SUBJECTS), default=list(SUBJECTS), metavar="S[,S]", help=_one_of(SUBJECTS))
    _add_out(parser, "runs/bench", "for all of it")


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return None if text == "none" else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number or none, got {text!r}") from None

    return parse


def _train(arguments: argparse.Namespace) -> int:
    from a2c_compiled.training import train
    from a2c_compiled.training.plots import plot_runs

    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"out: expected a folder, got a file, {arguments.out}")
    config = _train_config(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)  # fails before training, not after
    result = train(config, folder=arguments.out, resume=arguments.resume)
    if not result.is_first:
        return 0
    if result.interrupted:
        command = "a2c-compiled" if "WORLD_SIZE" not in os.environ else "torchrun ... -m a2c_compiled.cli"
        print(
            f"a2c-compiled: ended by {result.interrupted} after {result.steps:,} steps;"
            f" {command} train --resume --out {arguments.out} goes on",
            file=sys.stderr,
        )
        return 130 if result.interrupted == "SIGINT" else 143
    plot_runs([arguments.out], arguments.out / "learning_curve.png")
    print(
        f"greedy return {result.greedy_return:.1f} after {result.steps:,} steps in {result.seconds:.1f} s; run in {arguments.out}/"
    )
    return 0


def _train_config(arguments: argparse.Namespace) -> "TrainConfig":
    """The options given, before those of the preset, before the defaults; of a run that is resumed, its own."""
    from a2c_compiled.training import TrainConfig
    from a2c_compiled.training.checkpoint import has_checkpoint
    from a2c_compiled.training.config import load_config
    from a2c_compiled.training.distributed import restarts
    from a2c_compiled.training.presets import PRESETS

    names = [field.name for field in dataclasses.fields(TrainConfig)]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    if "hidden" in given:
        given["hidden"] = tuple(given["hidden"])
    asked = {**PRESETS.get(arguments.preset, {}), **given}
    resume = arguments.resume or restarts() > 0  # torchrun starts us as it did before
    if has_checkpoint(arguments.out) and not (resume or arguments.overwrite):
        raise ValueError(f"out: expected a folder without a run, or --resume or --overwrite, got {arguments.out}")
    if resume and (arguments.out / "config.json").is_file():  # which is there before the first checkpoint
        return dataclasses.replace(load_config(arguments.out), **asked)
    return TrainConfig(**asked)


def _eval(arguments: argparse.Namespace) -> int:
    import torch

    from a2c_compiled.training.evaluation import NetworkPolicy, play, summary
    from a2c_compiled.training.run_folder import load_run

    config, loss = load_run(arguments.folder)
    policy = NetworkPolicy(loss, arguments.sampled)
    torch.manual_seed(arguments.seed)
    if arguments.video is not None:
        from a2c_compiled.training.video import film_episode

        film_episode(policy, config.env, arguments.video, arguments.seed, frame_stack=config.frame_stack)
    episodes = play(policy, config.env, arguments.episodes, arguments.seed, frame_stack=config.frame_stack)
    numbers = summary(episodes)
    if arguments.json:
        about = {"env": config.env, "episodes": arguments.episodes, "seed": arguments.seed, "sampled": arguments.sampled}
        print(
            json.dumps(
                {**about, **numbers, "returns": episodes.returns.tolist(), "lengths": episodes.lengths.tolist()}, indent=2
            )
        )
        return 0
    print(f"{config.env}, {arguments.episodes} episodes, {'sampled' if arguments.sampled else 'greedy'} policy")
    print(f"{'':<8}" + "".join(f"{name:>10}" for name in numbers["return"]))
    for name, row in numbers.items():
        print(f"{name:<8}" + "".join(f"{value:>10.1f}" for value in row.values()))
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    _need("train")
    from a2c_compiled.training.plots import plot_runs

    alone = len(arguments.folders) == 1
    out = arguments.out or (arguments.folders[0] / "learning_curve.png" if alone else Path("learning_curves.png"))
    plot_runs(arguments.folders, out, arguments.x, arguments.smooth)
    print(out)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    _need("train", "export")
    from tqdm import tqdm

    from a2c_compiled.export.run import Job, export_run, jobs
    from a2c_compiled.training.run_folder import load_step

    config, step = load_step(arguments.folder)
    out = arguments.out or arguments.folder / "export"
    wanted = jobs(arguments.graph, arguments.format)
    print(f"{'file':<24}{'KB':>8}{'seconds':>9}{'largest error':>15}  against eager")
    failed = []
    with tqdm(total=len(wanted), unit="graph", disable=None, leave=False) as bar:
        bar.set_description(wanted[0].file)
        for report, seconds, done in export_run(step, config.env, out, wanted, arguments.opset):
            verdict = f"equal in {len(report.cases)} cases" if report.passed else "DIFFERS"
            bar.write(f"{report.path.name:<24}{report.size / 1024:>8.0f}{seconds:>9.1f}{report.worst:>15.1e}  {verdict}")
            failed += [] if report.passed else [report]
            if done:
                bar.update()
                bar.set_description(wanted[bar.n].file if bar.n < len(wanted) else "")
    for report in failed:
        print(report)
    if Job(POLICY, "onnx") in wanted:
        print(f"play it with onnxruntime alone: python {out}/play_policy.py {out}/policy.onnx --env {config.env}")
    if Job(TRAIN_STEP, "onnx") in wanted:
        print(f"learn on with onnxruntime alone: python {out}/learn_policy.py {out}/train_step.onnx --env {config.env}")
    return 1 if failed else 0


def _verify(arguments: argparse.Namespace) -> int:
    _need("export")
    from a2c_compiled.export.checking.verify import verify
    from a2c_compiled.export.formats import ENDINGS, format_of

    paths: List[Path] = []
    for path in arguments.paths:
        found = sorted(filter(format_of, path.rglob("*"))) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"PATH: expected files ending in {', '.join(ENDINGS)} in {path}, found none")
        paths += found
    files: List[Dict[str, Any]] = []
    for path in paths:
        try:
            report = verify(path)
        except ValueError as error:  # the others are to be heard of all the same
            files.append({"path": str(path), "passed": False, "error": str(error)})
            print(f"a2c-compiled: {error}", file=sys.stderr)
        else:
            files.append(report.as_json())
            if not arguments.json:
                print(report, flush=True)
    passed = all(file["passed"] for file in files)
    if arguments.json:
        print(json.dumps({"passed": passed, "files": files}, indent=2))
    if any("error" in file for file in files):
        return 2
    return 0 if passed else 1


def _demo(arguments: argparse.Namespace) -> int:
    _need("train", "export")
    from a2c_compiled.demo.demo import DemoError, run_demo

    try:
        run_demo(arguments.out)
    except DemoError as failure:
        print(f"a2c-compiled: {failure}", file=sys.stderr)
        return 1
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    import torch

    from a2c_compiled.benchmarks.measure.shapes import full, quick
    from a2c_compiled.benchmarks.report.tables import ours_not_timed
    from a2c_compiled.benchmarks.run import run

    if arguments.threads < 1:
        raise ValueError(f"threads: expected at least 1, got {arguments.threads}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, since torch finds no GPU here, got cuda")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    plan = quick(device) if arguments.quick else full(device)
    measured = run(plan, arguments.out, arguments.subject, arguments.threads)
    print(f"{measured.seconds:.0f} s; report, pictures and results: {arguments.out}/")
    wrong = ours_not_timed(measured.rows)
    for line in wrong:
        print(f"a2c-compiled: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _need(*extras: str) -> None:
    """Raise ValueError where the packages of an extra are not installed."""
    packages = {"train": ("gymnasium", "safetensors", "tqdm", "matplotlib"), "export": ("onnx", "onnxscript", "onnxruntime")}
    for extra in extras:
        missing = [package for package in packages[extra] if importlib.util.find_spec(package) is None]
        if missing:
            raise ValueError(f"this command needs {', '.join(missing)}: pip install 'a2c-compiled[{extra}]'")


def _choices(allowed: Collection[str]) -> Callable[[str], List[str]]:
    def parse(text: str) -> List[str]:
        names = list(dict.fromkeys(text.replace("-", "_").split(",")))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"expected {_one_of(allowed)}, got {name.replace('_', '-')!r}")
        return names

    return parse


def _one_of(names: Collection[str], default: str = "all") -> str:
    return f"any of {', '.join(names).replace('_', '-')}, with commas between (default: {default})"


if __name__ == "__main__":
    sys.exit(main())
