"""The command line of the library: ``a2c-compiled``."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import typing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Collection, Dict, List, Optional, Sequence

from a2c_compiled._export_names import FORMATS, GRAPHS, POLICY, TRAIN_STEP
from a2c_compiled._extras import MissingExtraError, check_installed

if TYPE_CHECKING:
    from a2c_compiled.training import TrainConfig

EPILOG = """examples:
  a2c-compiled train --preset cartpole --seed 1 --out runs/cartpole
  a2c-compiled train --resume --out runs/cartpole
  torchrun --nproc-per-node 2 -m a2c_compiled.cli train --out runs/two
  a2c-compiled eval runs/cartpole --video cartpole.gif
  a2c-compiled plot runs/cartpole runs/other --smooth 10
  a2c-compiled export runs/cartpole
  a2c-compiled export runs/cartpole --format onnx --web --ort node_modules
  a2c-compiled verify runs/cartpole/export
  a2c-compiled demo
  a2c-compiled bench --quick
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        argv: command and options. None: ``sys.argv`` without the program name.

    Returns:
        0: success. 1: a check failed. 2: an error, described on stderr. 130: interrupted.
        143: ``train`` stopped because of SIGTERM, or of a signal to another process; 129: of SIGHUP. 141: the reader of the output has
        ended.
    """
    words = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):
        # If it was closed, the next open file would get its number, and the messages of C++ libraries.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        if any("\0" in word for word in words):
            raise ValueError("arguments: expected text without null bytes, got one")
        arguments = _parser(words[0] if words else "").parse_args(words)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        _end_without_ctrl_c(argv)
        _say("interrupted")
        return 130
    except BrokenPipeError:  # the program that read the output has ended
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python writes what is left to it when it exits
        return 141
    except (ValueError, TypeError, RuntimeError, OSError, OverflowError, MemoryError, MissingExtraError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        _say(message[0])
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            with contextlib.suppress(ImportError):  # the error may be that a package is missing
                from a2c_compiled.training.distributed.watch import tell_torchrun

                tell_torchrun(message[0])
        return 2
    finally:
        _end_without_ctrl_c(argv)


def _end_without_ctrl_c(argv: Optional[Sequence[str]]) -> None:
    """Ignores further Ctrl-C if the command is the whole process, which ends now: Python would print a traceback of its own end."""
    if argv is None:
        with contextlib.suppress(ValueError):  # in a thread other than the main one
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say(message: str) -> None:
    """Prints ``message`` on stderr, if it can be written to."""
    with contextlib.suppress(OSError, ValueError):
        print(f"a2c-compiled: {message}", file=sys.stderr)


def _parser(command: str) -> argparse.ArgumentParser:
    """Returns the parser of all commands.

    The options of some commands are read from modules that need optional packages. These options are added only for the command
    ``command``.
    """
    parser = argparse.ArgumentParser(
        prog="a2c-compiled",
        description="Train an A2C agent with a compiled training step, export it to ONNX and TorchScript, and check the exported files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('a2c_compiled')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train an agent on a gymnasium environment",
        description="Train an agent on a gymnasium environment until it is solved or --total-steps are taken. Write the configuration,"
        " checkpoints, a CSV log and a plot of the learning curve to the folder --out.",
    )
    if command == "train":
        _add_train_options(train)
    train.set_defaults(run=_train)

    evaluation = commands.add_parser(
        "eval",
        help="play episodes with a trained policy",
        description="Play episodes with the policy of a run, and print statistics of their returns and lengths. The run may be finished"
        " or still running.",
    )
    if command == "eval":
        _add_eval_options(evaluation)
    evaluation.set_defaults(run=_eval)

    plot = commands.add_parser(
        "plot",
        help="plot the learning curves of runs",
        description="Plot the learning curves of runs, finished or still running. Runs that differ only in the seed are drawn as one"
        " line, their mean, in a band from the lowest to the highest run. With five runs or more, the band lies between the quartiles."
        " Line and band end where the shortest of these runs ends; after that point, each longer run is a thin line.",
    )
    plot.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folder of a run, written by 'train'")
    plot.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="image file: .png, .svg or .pdf (default: RUN/learning_curve.png for one run, learning_curves.png for several)",
    )
    plot.add_argument(
        "--x",
        choices=("steps", "seconds"),
        default="steps",
        help="horizontal axis: environment steps or wall-clock seconds (default: %(default)s)",
    )
    plot.add_argument(
        "--smooth", type=int, default=1, metavar="N", help="plot moving averages of N rows of the log (default: %(default)s)"
    )
    plot.set_defaults(run=_plot)

    export = commands.add_parser(
        "export",
        help="export a trained run",
        description="Export the policy, the loss, the value estimator and the training step of a run, and compare every file with eager"
        " mode. With ONNX files, also write the Python scripts that act and learn on a device without torch. The exit status is 1 if a"
        " file differs from eager mode.",
    )
    export.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, written by 'train'")
    export.add_argument("--out", type=Path, metavar="DIR", help="folder for the files (default: RUN/export)")
    export.add_argument(
        "--format",
        type=_choices(FORMATS),
        default=["onnx", "torchscript"],
        metavar="F[,F]",
        help=f"file formats: {_one_of(FORMATS, 'onnx,torchscript')}; aot compiles for this machine, about 10 seconds per graph",
    )
    export.add_argument(
        "--graph", type=_choices(GRAPHS), default=list(GRAPHS), metavar="G[,G]", help=f"graphs to export: {_one_of(GRAPHS)}"
    )
    export.add_argument(
        "--opset", type=int, default=18, metavar="N", help="ONNX operator set version, 18 or later (default: 18)"
    )
    export.add_argument(
        "--web",
        action="store_true",
        help="also write a web page in which the exported training step acts and learns, for environments that the page has; needs the"
        " format onnx and the graph train-step",
    )
    export.add_argument(
        "--ort",
        type=Path,
        metavar="DIR",
        help="with --web: the npm package onnxruntime-web, or a folder with node_modules, from which the page's copy comes (default: the"
        " export prints the npm command)",
    )
    _add_env(export)
    export.set_defaults(run=_export)

    verify = commands.add_parser(
        "verify",
        help="compare exported files with eager mode",
        description="Run exported files at other shapes than those of the export, and on extreme values. Compare the outputs with the"
        " reference outputs of eager mode that are stored beside each file, and print the largest error of each output. The exit status"
        " is 1 if an error exceeds its tolerance, and 2 if a file cannot be run.",
    )
    verify.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="exported file, or folder with exported files")
    verify.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    verify.add_argument(
        "--timeout",
        type=_positive_seconds,
        metavar="X",
        help="give each file a process of its own and X seconds: a file from someone else may run for ever",
    )
    verify.add_argument(
        "--no-check", action="store_true", help="also run files that differ from the digest (.sha256) that the export stored"
    )
    verify.set_defaults(run=_verify)

    demo = commands.add_parser(
        "demo",
        help="train, export, check and time CartPole-v1, in a few minutes",
        description="Train CartPole-v1 with three seeds. Export all graphs of the first seed and the policies of the others, and compare"
        " the files with eager mode. Then play and learn with the exported files where torch is not installed, measure the time of a"
        " training step in eager mode, compiled and exported, and write a report.",
    )
    _add_out(demo, "runs/demo", "for the report and all files")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="measure the speed, and compare it with other libraries",
        description="Measure the time of estimators, loss, training step and policy in eager mode, compiled and exported. Compare with"
        " TorchRL, Stable-Baselines3 and numba where they are installed (pip install 'a2c-compiled[peers]'). Every result is checked"
        " before its time is measured. Write results.json, report.md and plots to the folder --out. The exit status is 1 if a mode of this"
        " library fails or returns a wrong result.",
    )
    if command == "bench":
        _add_bench_options(bench)
    bench.set_defaults(run=_bench)
    return parser


def _add_out(parser: argparse.ArgumentParser, default: str, purpose: str) -> None:
    """Adds the option --out for a folder; ``purpose`` completes the help text "folder ..."."""
    parser.add_argument(
        "--out", type=Path, default=Path(default), metavar="DIR", help=f"folder {purpose} (default: %(default)s)"
    )


def _add_env(parser: argparse.ArgumentParser) -> None:
    """Adds --env and --trust-environment for a command that reads the folder of a run."""
    parser.add_argument(
        "--env", metavar="NAME", help="name of the environment, as for 'train' (default: the name in the run's config.json)"
    )
    _add_trust(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-environment",
        action="store_true",
        help="import the module that the run's config.json names, and so run its code; without this option, such a run needs --env",
    )


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    """Adds --out, --resume, --overwrite, --preset, and one option for each field of TrainConfig.

    A field whose option is not used is absent from the parsed arguments, so that presets and the options of a resumed run apply.
    """
    check_installed("train")
    from a2c_compiled.training import TrainConfig
    from a2c_compiled.training.presets import PRESETS

    _add_out(parser, "runs/train", "of the run")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out from its last checkpoint, with the options of that run. The result is identical to the result of an"
        " uninterrupted run, except that environments that cannot be restored exactly start new episodes, with a warning. Without a"
        " checkpoint, a new run starts",
    )
    start.add_argument("--overwrite", action="store_true", help="start a new run even if --out contains one")
    parser.add_argument(
        "--preset", choices=PRESETS, help="tuned options for an environment; options on the command line override them"
    )
    _add_trust(parser)
    types = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        field_type = types[field.name]
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        options: Dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{field.metadata['help']} (default: {'none' if default is None else default})",
        }
        if field_type in (bool, Optional[bool]):
            options["action"] = argparse.BooleanOptionalAction
        elif field_type == typing.Tuple[int, ...]:
            options |= {"type": int, "nargs": "+", "metavar": "N"}
        else:
            # Optional[X] is parsed as X, or as the word none.
            value_type = {Optional[float]: float, Optional[int]: int, Optional[str]: str}.get(field_type, field_type)
            parse = value_type if value_type is field_type else _or_none(value_type)
            options |= {"type": parse, "metavar": {int: "N", float: "X", str: "NAME"}[value_type]}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _add_eval_options(parser: argparse.ArgumentParser) -> None:
    check_installed("train")
    from a2c_compiled.training.evaluation import EVALUATION_SEED

    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, written by 'train'")
    parser.add_argument(
        "--episodes", type=int, default=100, metavar="N", help="number of episodes to play (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=EVALUATION_SEED,
        metavar="N",
        help="random seed of environments and sampled actions (default: %(default)s)",
    )
    _add_env(parser)
    parser.add_argument("--sampled", action="store_true", help="sample actions instead of taking the most probable ones")
    parser.add_argument(
        "--video",
        type=Path,
        metavar="FILE",
        help="record one episode: .gif, .mp4 (needs the extra 'environments'), or .png (up to eight frames in one picture)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def _add_bench_options(parser: argparse.ArgumentParser) -> None:
    check_installed("train", "export")
    from a2c_compiled.benchmarks.run import SUBJECTS

    parser.add_argument(
        "--quick", action="store_true", help="use few shapes and samples: about two minutes instead of ten or more"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="number of CPU threads of torch; use more than 1 only on idle cores (default: 1)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="device of the data; cuda adds the shapes of large simulators (default: cuda if torch finds a GPU, else cpu)",
    )
    parser.add_argument(
        "--subject",
        type=_choices(SUBJECTS),
        default=list(SUBJECTS),
        metavar="S[,S]",
        help=f"parts to measure: {_one_of(SUBJECTS)}",
    )
    _add_out(parser, "runs/bench", "for the report and all files")


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns a parser of option values that maps ``none`` to None and applies ``kind`` to any other text."""

    def parse(text: str) -> Any:
        try:
            return None if text == "none" else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number or none, got {text!r}") from None

    return parse


def _train(arguments: argparse.Namespace) -> int:
    from a2c_compiled.training import train
    from a2c_compiled.training.construction import compile_decision
    from a2c_compiled.training.plots import plot_runs

    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {arguments.out}")
    config = _train_config(arguments)
    _import_from_here(config.env)
    is_new_folder = not arguments.out.exists()
    arguments.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be created fails here, before training
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # training goes on if nothing reads the output
            if arguments.resume and not (arguments.out / "config.json").is_file():
                print(f"starts a new run, because {arguments.out} contains none", flush=True)
            print(f"training {compile_decision(config)}", flush=True)
    try:
        result = train(config, folder=arguments.out, resume=arguments.resume)
    except BaseException:
        if is_new_folder:
            with contextlib.suppress(OSError):  # a folder with files stays
                arguments.out.rmdir()
        raise
    if not result.is_first:  # only the process with rank 0 prints
        return 0
    if result.interrupted:
        command = "a2c-compiled" if "WORLD_SIZE" not in os.environ else "torchrun ... -m a2c_compiled.cli"
        _say(
            f"stopped by {result.interrupted} after {result.steps:,} environment steps;"
            f" to continue: {command} train --resume --out {arguments.out}{_env_option(config)}"
        )
        # As a shell does: 128 and the number of the signal.
        return 128 + getattr(signal, result.interrupted, signal.SIGTERM)
    plot_runs([arguments.out], arguments.out / "learning_curve.png")
    print(
        f"mean episode return of the greedy policy: {_rounded(result.greedy_return)}, after {result.steps:,} environment steps"
        f" in {result.seconds:.1f} s; run in {arguments.out}/"
    )
    return 0


def _train_config(arguments: argparse.Namespace) -> "TrainConfig":
    """Returns the configuration of the run.

    Options on the command line override the preset, and the preset overrides the defaults. For a resumed run, the options of that run
    take the place of the defaults.
    """
    from a2c_compiled.training import TrainConfig
    from a2c_compiled.training.checkpoint import has_checkpoint
    from a2c_compiled.training.config import load_config, with_environment
    from a2c_compiled.training.distributed.starting import restarts
    from a2c_compiled.training.presets import PRESETS

    names = [field.name for field in dataclasses.fields(TrainConfig)]
    on_command_line = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    if "hidden" in on_command_line:
        on_command_line["hidden"] = tuple(on_command_line["hidden"])
    options = {**PRESETS.get(arguments.preset, {}), **on_command_line}
    resume = (
        arguments.resume or restarts() > 0
    )  # torchrun restarts a process with its original command line, which may lack --resume
    if has_checkpoint(arguments.out) and not (resume or arguments.overwrite):
        raise ValueError(
            f"out: expected a folder without a run, got {arguments.out}, which contains one;"
            " --resume continues it, --overwrite starts a new one"
        )
    if resume and (arguments.out / "config.json").is_file():  # exists before the first checkpoint
        before = with_environment(load_config(arguments.out), options.get("env"), arguments.trust_environment)
        return dataclasses.replace(before, **options)
    return TrainConfig(**options)


def _eval(arguments: argparse.Namespace) -> int:
    import torch

    from a2c_compiled._hyperparameters import check_seed
    from a2c_compiled.training.evaluation import NetworkPolicy, play, summary
    from a2c_compiled.training.run_folder import load_run

    check_seed("seed", arguments.seed)
    config, loss = load_run(arguments.folder, _environment_of(arguments))
    policy = NetworkPolicy(loss, arguments.sampled)
    torch.manual_seed(arguments.seed)
    if arguments.video is not None:
        from a2c_compiled.training.video import film_episode

        film_episode(policy, config.environment, arguments.video, arguments.seed, frame_stack=config.frame_stack)
    episodes = play(policy, config.environment, arguments.episodes, arguments.seed, frame_stack=config.frame_stack)
    numbers = summary(episodes)
    if arguments.json:
        options = {"env": config.env, "episodes": arguments.episodes, "seed": arguments.seed, "sampled": arguments.sampled}
        print(
            json.dumps(
                {**options, **numbers, "returns": episodes.returns.tolist(), "lengths": episodes.lengths.tolist()}, indent=2
            )
        )
        return 0
    print(f"{config.env}, {arguments.episodes} episodes, {'sampled' if arguments.sampled else 'greedy'} policy")
    print(f"{'':<8}" + "".join(f"{statistic:>10}" for statistic in numbers["return"]))
    for name, row in numbers.items():
        print(f"{name:<8}" + "".join(f"{_rounded(value):>10}" for value in row.values()))
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    check_installed("train")
    from a2c_compiled.training.plots import plot_runs

    is_single = len(arguments.folders) == 1
    out = arguments.out or (arguments.folders[0] / "learning_curve.png" if is_single else Path("learning_curves.png"))
    plot_runs(arguments.folders, out, arguments.x, arguments.smooth)
    print(out)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    check_installed("train", "export")
    from tqdm import tqdm

    from a2c_compiled.environments import goal_of
    from a2c_compiled.export.run import Job, export_run, jobs
    from a2c_compiled.export.web_page import check_page, instructions, write_page
    from a2c_compiled.training.run_folder import load_reward_scale, load_step

    if arguments.ort is not None and not arguments.web:
        raise ValueError(f"ort: expected --web, whose page needs onnxruntime-web, got --ort {arguments.ort} alone")
    config, step = load_step(arguments.folder, _environment_of(arguments))
    # A run that goes on training replaces its checkpoint during the export, so all that the export reads of it is read here.
    goal, reward_scale = goal_of(config.env, config.solved_return), load_reward_scale(arguments.folder, config)
    out = arguments.out or arguments.folder / "export"
    wanted = jobs(arguments.graph, arguments.format)
    if arguments.web:  # before anything is written
        check_page(config.environment, config.frame_stack, arguments.ort)
        if Job(TRAIN_STEP, "onnx") not in wanted:
            got = f"--format {','.join(arguments.format)} --graph {','.join(arguments.graph)}".replace("_", "-")
            raise ValueError(f"web: expected the format onnx and the graph train-step, with which the page learns, got {got}")
    print(f"{'file':<24}{'KB':>8}{'seconds':>9}{'largest error':>15}  comparison with eager mode")
    failed = []
    with tqdm(total=len(wanted), unit="graph", disable=None, leave=False) as bar:
        bar.set_description(wanted[0].file)
        for report, seconds, done in export_run(step, config.environment, out, wanted, arguments.opset, config.frame_stack):
            verdict = f"equal in {len(report.cases)} cases" if report.passed else "DIFFERS"
            bar.write(f"{report.path.name:<24}{report.size / 1024:>8.0f}{seconds:>9.1f}{report.worst:>15.1e}  {verdict}")
            if not report.passed:
                failed.append(report)
            if done:
                bar.update()
                bar.set_description(wanted[bar.n].file if bar.n < len(wanted) else "")
    for report in failed:
        print(report)
    why_not = _why_scripts_cannot_run(config)
    if why_not is not None and any(job.format == "onnx" for job in wanted):
        print(f"play_policy.py and learn_policy.py cannot run {config.env}: {why_not}")
    if Job(POLICY, "onnx") in wanted and why_not is None:
        print(f"to play the policy without torch: python {out}/play_policy.py {out}/policy.onnx --env {config.env}")
    if Job(TRAIN_STEP, "onnx") in wanted and why_not is None:
        print(f"to continue learning without torch: python {_learn_command(out, config, goal, reward_scale)}")
    if arguments.web:
        write_page(out, config.environment, config.num_steps, config.num_envs, goal, reward_scale, arguments.ort)
        print(instructions(out))
    return 1 if failed else 0


def _environment_of(arguments: argparse.Namespace) -> str:
    """Returns the name of the environment for a command that reads the folder of a run, if it may be imported."""
    from a2c_compiled.training.config import load_config, with_environment

    config = with_environment(load_config(arguments.folder), arguments.env, arguments.trust_environment)
    _import_from_here(config.env)
    return config.environment


def _import_from_here(env: Optional[str]) -> None:
    """Makes modules in the current folder importable, after all others, if ``env`` names a module."""
    from a2c_compiled.environments.source import module_of

    if env is not None and module_of(env) and not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _rounded(number: float) -> str:
    """Returns a number with one decimal, or more for three significant digits: 480.5, 9.25, 0.812."""
    decimals = 1 if abs(number) >= 10 else 2 if abs(number) >= 1 else 3
    return f"{number:.{decimals}f}"


def _env_option(config: "TrainConfig") -> str:
    """Returns the option with which a command may import the environment of a run; empty if nothing has to be imported."""
    from a2c_compiled.environments.source import module_of

    return f" --env {config.env}" if module_of(config.environment) else ""


def _why_scripts_cannot_run(config: "TrainConfig") -> Optional[str]:
    """Returns why ``play_policy.py`` and ``learn_policy.py`` cannot make the environments of a run; None if they can."""
    from a2c_compiled.environments import GymnasiumEnvironments, make_environments
    from a2c_compiled.environments.source import is_function, is_tensor_class, resolved

    source = resolved(config.environment)
    if config.frame_stack > 1 and not config.environment.startswith("ALE/"):  # Atari's own version stacks frames
        return "they stack no frames"
    if is_tensor_class(source):
        return "they run no environments in torch"
    if is_function(source):
        envs = make_environments(source, 8)  # as many as the export has made
        envs.close()
        if not isinstance(envs, GymnasiumEnvironments):
            return "they run only vector environments of gymnasium"
    return None


def _learn_command(out: Path, config: "TrainConfig", goal: Optional[float], reward_scale: float) -> str:
    """Returns the arguments of Python with which ``learn_policy.py`` in ``out`` continues learning as the run did."""
    from a2c_compiled.export.on_device import learn_policy

    options = {
        "num_envs": config.num_envs,
        "num_steps": config.num_steps,
        "solved_return": math.inf if goal is None else goal,
        "reward_scale": reward_scale,
    }
    defaults = vars(learn_policy.parser().parse_args([""]))
    given = "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.items() if value != defaults[name])
    return f"{out}/learn_policy.py {out}/train_step.onnx --env {config.env}{given}"


def _verify(arguments: argparse.Namespace) -> int:
    check_installed("export")
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
            if arguments.timeout is not None:
                files.append(_verified_in_time(path, arguments))
                continue
            report = verify(path, not arguments.no_check)
        except ValueError as error:  # one file that cannot be run must not hide the results of the others
            files.append({"path": str(path), "passed": False, "error": str(error)})
            _say(str(error))
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


def _verified_in_time(path: Path, arguments: argparse.Namespace) -> Dict[str, Any]:
    """Verifies a file in a process of its own, which ends after ``--timeout`` seconds. Returns the file's entry of the JSON document.

    Raises:
        ValueError: the file cannot be run, or the process has not finished in time.
    """
    options = [*(["--json"] if arguments.json else []), *(["--no-check"] if arguments.no_check else [])]
    command = [sys.executable, "-m", "a2c_compiled.cli", "verify", *options, str(path)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=arguments.timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path}: expected to finish within {arguments.timeout:g} s, got no result") from None
    if process.returncode not in (0, 1):
        reason = process.stderr.strip().splitlines() or [f"status {process.returncode}"]
        raise ValueError(f"{path}: expected a file that can be run, got {reason[-1].removeprefix('a2c-compiled: ')}")
    if arguments.json:
        return dict(json.loads(process.stdout)["files"][0])
    print(process.stdout, end="", flush=True)
    return {"path": str(path), "passed": process.returncode == 0}


def _demo(arguments: argparse.Namespace) -> int:
    check_installed("train", "export")
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
    from a2c_compiled.benchmarks.report.tables import own_failures
    from a2c_compiled.benchmarks.run import run

    if arguments.threads < 1:
        raise ValueError(f"threads: expected at least 1, got {arguments.threads}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu, since torch finds no GPU here, got cuda")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    plan = quick(device) if arguments.quick else full(device)
    measured = run(plan, arguments.out, arguments.subject, arguments.threads)
    print(f"finished in {measured.seconds:.0f} s; report, plots and results: {arguments.out}/")
    failures = own_failures(measured.rows)
    for line in failures:
        _say(line)
    return 1 if failures else 0


def _positive_seconds(text: str) -> float:
    """Parses a positive number of seconds. Raises argparse.ArgumentTypeError for another text."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= threading.TIMEOUT_MAX:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a positive number of seconds up to {threading.TIMEOUT_MAX:g}, got {text!r}")


def _choices(allowed: Collection[str]) -> Callable[[str], List[str]]:
    """Returns a parser of names separated by commas. A name may contain ``-`` for ``_``; a repeated name counts once."""

    def parse(text: str) -> List[str]:
        names = list(dict.fromkeys(text.replace("-", "_").split(",")))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"expected {_one_of(allowed)}, got {name.replace('_', '-')!r}")
        return names

    return parse


def _one_of(names: Collection[str], default: str = "all") -> str:
    """Returns the part of a help text that lists ``names``."""
    return f"any of {', '.join(names).replace('_', '-')}, separated by commas (default: {default})"


if __name__ == "__main__":
    sys.exit(main())
