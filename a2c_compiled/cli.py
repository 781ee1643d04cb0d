"""The command ``a2c-compiled``."""

import argparse
import dataclasses
import importlib.util
import json
import re
import sys
import typing
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

EPILOG = """examples:
  a2c-compiled train --env CartPole-v1 --seed 1 --out runs/cartpole
  a2c-compiled export runs/cartpole
  a2c-compiled verify runs/cartpole/export
  a2c-compiled demo
  a2c-compiled bench --quick
"""

# Said here once more, so that the command describes itself where the extras are not installed.
GRAPHS = ("policy", "policy-sampled", "loss", "estimator", "train-step")
FORMATS = ("onnx", "torchscript", "pt2", "aot")
SUBJECTS = ("estimators", "sweep", "packed", "loss", "update", "policy", "integrations")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command; the exit status is 0, 1 where a check failed, or 2 with one line on what was wrong."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("a2c-compiled: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        print(f"a2c-compiled: {message[0]}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
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
    train.add_argument(
        "--out", type=Path, default=Path("runs/train"), metavar="DIR", help="folder of the run (default: %(default)s)"
    )
    _add_train_options(train)
    train.set_defaults(run=_train)

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
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder for all of it (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="time everything, against the libraries you may use today",
        description="Time estimators, loss, update and policy, eager, compiled and exported, against torchrl, Stable-Baselines3 and"
        " numba where they are installed (pip install 'a2c-compiled[peers]'). Every answer is checked before it is timed. Leaves"
        " results.json, report.md and pictures. Exit status 1 if a mode of this library fails or answers wrong.",
    )
    bench.add_argument("--quick", action="store_true", help="few shapes and samples: under two minutes instead of five or more")
    bench.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of torch on the CPU; more only on cores that nothing else uses (default: 1)",
    )
    bench.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where the data is; a GPU also gets the shapes of large simulators (default: a GPU if any)",
    )
    bench.add_argument("--subject", type=_choices(SUBJECTS), default=list(SUBJECTS), metavar="S[,S]", help=_one_of(SUBJECTS))
    bench.add_argument(
        "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder for all of it (default: %(default)s)"
    )
    bench.set_defaults(run=_bench)
    return parser


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of TrainConfig, with the line that its docstring has for it."""
    from a2c_compiled.training import TrainConfig

    described = dict(re.findall(r"^ {8}(\w+): (.+?)\.?$", TrainConfig.__doc__ or "", re.MULTILINE))
    kinds = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind = kinds[field.name]
        options: Dict[str, Any] = {"default": field.default, "help": f"{described[field.name]} (default: %(default)s)"}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind == typing.Tuple[int, ...]:
            options |= {"type": int, "nargs": "+", "metavar": "N"}
        elif kind == Optional[float]:
            options |= {"type": _number_or_none, "metavar": "X"}
        else:
            options |= {"type": kind, "metavar": {int: "N", float: "X", str: "NAME"}[kind]}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _number_or_none(text: str) -> Optional[float]:
    try:
        return None if text == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or none, got {text!r}") from None


def _train(arguments: argparse.Namespace) -> int:
    _need("train")
    from a2c_compiled.training import TrainConfig, train
    from a2c_compiled.training.plots import plot_learning_curves
    from a2c_compiled.training.runs import load_progress, save_run

    fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{**fields, "hidden": tuple(fields["hidden"])})
    arguments.out.mkdir(parents=True, exist_ok=True)  # fails before training, not after
    result = train(config)
    save_run(arguments.out, config, result)
    curve = {f"seed {config.seed}": load_progress(arguments.out)}
    plot_learning_curves(curve, arguments.out / "learning_curve.png", f"A2C on {config.env}", config.solved_return)
    print(
        f"greedy return {result.greedy_return:.1f} after {result.steps:,} steps in {result.seconds:.1f} s; run in {arguments.out}/"
    )
    if result.interrupted:
        print("a2c-compiled: interrupted; the run holds what was learnt until then", file=sys.stderr)
        return 130
    return 0


def _export(arguments: argparse.Namespace) -> int:
    _need("train", "export")
    from tqdm import tqdm

    from a2c_compiled.export.run import export_run, jobs
    from a2c_compiled.training.runs import load_step

    config, step = load_step(arguments.folder)
    out = arguments.out or arguments.folder / "export"
    wanted = jobs([graph.replace("-", "_") for graph in arguments.graph], arguments.format)
    if not wanted:
        raise ValueError(
            "format: expected onnx, pt2 or aot for the training step, since TorchScript has no gradients inside a graph"
        )
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
    if "onnx" in arguments.format and "policy" in arguments.graph:
        print(f"play it with onnxruntime alone: python {out}/play_policy.py {out}/policy.onnx --env {config.env}")
    if "onnx" in arguments.format and "train-step" in arguments.graph:
        print(f"learn on with onnxruntime alone: python {out}/learn_policy.py {out}/train_step.onnx --env {config.env}")
    return 1 if failed else 0


def _verify(arguments: argparse.Namespace) -> int:
    _need("export")
    from a2c_compiled.export.verify import ENDINGS, is_exported, verify

    paths: List[Path] = []
    for path in arguments.paths:
        found = sorted(filter(is_exported, path.rglob("*"))) if path.is_dir() else [path]
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
    from a2c_compiled.demo import DemoError, run_demo

    try:
        run_demo(arguments.out)
    except DemoError as failure:
        print(f"a2c-compiled: {failure}", file=sys.stderr)
        return 1
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    _need("train", "export")
    import torch

    from a2c_compiled.benchmarks.report import ours_not_timed
    from a2c_compiled.benchmarks.run import run
    from a2c_compiled.benchmarks.shapes import full, quick

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


def _choices(allowed: Sequence[str]) -> Callable[[str], List[str]]:
    def parse(text: str) -> List[str]:
        names = list(dict.fromkeys(text.replace("_", "-").split(",")))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"expected {_one_of(allowed)}, got {name!r}")
        return names

    return parse


def _one_of(names: Sequence[str], default: str = "all") -> str:
    return f"any of {', '.join(names)}, with commas between (default: {default})"


if __name__ == "__main__":
    sys.exit(main())
