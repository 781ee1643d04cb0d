"""Writes a web page in which an exported training step acts and learns, beside the files of the training step."""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from a2c_compiled._files import AnyPath, as_path, atomic_files
from a2c_compiled._hyperparameters import Range, positive_int
from a2c_compiled._kinds import described
from a2c_compiled.export.checking.digests import digests_path
from a2c_compiled.export.on_device import JAVASCRIPT, WEB, runtime
from a2c_compiled.export.update_files import acting_path


class Spaces(NamedTuple):
    """Observations and actions of an environment.

    Attributes:
        observation: number of entries of an observation.
        is_discrete: whether the action is one of several choices. Otherwise it is a vector of one number.
    """

    observation: int
    is_discrete: bool


ENVIRONMENTS = {"CartPole-v1": Spaces(4, True), "Acrobot-v1": Spaces(6, True), "Pendulum-v1": Spaces(3, False)}
"""The environments that ``environments.js`` has."""
ENTRIES = ("observation", "action", "reward", "next_observation", "done", "terminated", "log_prob", "state_value", "mask")
"""The entries of a rollout that the page collects."""
SETTINGS = "page.json"
"""The file from which the page reads the name of its environment, and the other settings."""
ONNXRUNTIME_FOLDER = "ort"
ONNXRUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of onnxruntime-web that the page loads: the build for WebAssembly alone."""

# JSON has no infinity.
_FINITE = Range("a finite number or None", -sys.float_info.max, sys.float_info.max)
_POSITIVE = Range("a positive finite number", 0.0, sys.float_info.max, open_below=True)


def write_page(
    folder: AnyPath,
    env_id: str,
    num_steps: int = 16,
    num_envs: int = 64,
    solved_return: Optional[float] = None,
    reward_scale: float = 1.0,
    ort: Optional[AnyPath] = None,
    learner: str = "train_step.onnx",
) -> Path:
    """Writes a web page in which an exported training step acts and learns in an environment, from the state that was exported.

    >>> export_train_step(step, rollout, "site/train_step.onnx")
    >>> write_page("site", "CartPole-v1", solved_return=475, ort="node_modules")

    The page has no other dependency than onnxruntime-web. Any host of static files serves the folder. See ``docs/web_page.md``.

    Args:
        folder: folder with the exported training step. The page is written there.
        env_id: name of the environment, a key of ``ENVIRONMENTS``.
        num_steps: steps of each environment in one rollout, at least 1.
        num_envs: number of parallel environments at the start, at least 1. The page can change it.
        solved_return: mean return of the greedy policy at which the environment counts as solved. None: there is none.
        reward_scale: positive number by which the page multiplies the rewards before it learns from them.
        ort: folder of the npm package onnxruntime-web, or a folder with ``node_modules``. Three of its files are copied to
            ``folder/ort``. None: nothing is copied.
        learner: file name of the training step in ``folder``.

    Returns:
        Path of ``index.html``.

    Raises:
        TypeError, ValueError: an argument is invalid, the training step is not for this environment, or the page cannot collect the
            rollouts that it needs. The message names the argument. Nothing is written.
        FileNotFoundError: a file of the training step is missing.
    """
    folder = as_path("folder", folder)
    check_page(env_id, ort=ort)
    if not isinstance(learner, str):
        raise TypeError(f"learner: expected a file name, got {described(learner)}")
    if Path(learner).name != learner:
        raise ValueError(f"learner: expected the name of a file in {folder}, got {learner!r}")
    settings = {
        "environment": env_id,
        "learner": learner,
        "num_steps": positive_int("num_steps", num_steps),
        "num_envs": positive_int("num_envs", num_envs),
        "solved_return": None if solved_return is None else _FINITE.number("solved_return", solved_return),
        "reward_scale": _POSITIVE.number("reward_scale", reward_scale),
    }
    _check_learner(folder / learner, env_id)
    if ort is not None:
        source = onnxruntime_web(ort)
        with atomic_files(folder / ONNXRUNTIME_FOLDER) as temporary:
            for name in ONNXRUNTIME:
                shutil.copyfile(source / name, temporary / name)
    with atomic_files(folder) as temporary:
        for file in (*WEB, *JAVASCRIPT):
            shutil.copyfile(file, temporary / file.name)
        (temporary / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    return folder / "index.html"


def check_page(env_id: str, frame_stack: int = 1, ort: Optional[AnyPath] = None) -> None:
    """Checks what can be checked of a page before its training step is exported.

    Raises:
        ValueError: the page does not have the environment, an observation is several frames, or ``ort`` lacks onnxruntime-web.
        TypeError: ``ort`` is not a path.
    """
    if not isinstance(env_id, str) or env_id not in ENVIRONMENTS:
        raise ValueError(f"env: expected one that the web page has, {', '.join(ENVIRONMENTS)}, got {described(env_id)}")
    if frame_stack != 1:
        raise ValueError(f"frame_stack: expected 1, as in the web page, got {frame_stack}")
    if ort is not None:
        onnxruntime_web(ort)


def onnxruntime_web(folder: AnyPath) -> Path:
    """Returns the folder with the files ``ONNXRUNTIME``.

    Args:
        folder: this folder itself, the npm package onnxruntime-web, a folder with this package, or one with ``node_modules``.

    Raises:
        ValueError: the files are in none of these places.
    """
    folder = as_path("ort", folder)
    for place in ("", "dist", "onnxruntime-web/dist", "node_modules/onnxruntime-web/dist"):
        if all((folder / place / name).is_file() for name in ONNXRUNTIME):
            return folder / place
    raise ValueError(
        f"ort: expected the npm package onnxruntime-web with {', '.join(ONNXRUNTIME)} in its dist, or a folder with the package in"
        f" node_modules, got {folder}, which lacks them"
    )


def _check_learner(path: Path, env_id: str) -> None:
    """Raises ValueError unless the page can act and learn with the training step at ``path`` in ``env_id``."""
    learner = runtime.Learner.load(path)
    others = [entry for entry in learner.rollout_entries if entry not in ENTRIES]
    if others:
        raise ValueError(
            f"learner: expected a training step that reads only {', '.join(ENTRIES)}, got one that reads {', '.join(others)}"
        )
    if learner.time_dim != 0:
        raise ValueError("learner: expected a training step for rollouts [T, N, ...], got one for [N, T, ...]")
    if learner.hidden(1).size:
        raise ValueError(f"learner: expected a policy without memory, got {path.name}, whose policy has a hidden state")
    spaces = ENVIRONMENTS[env_id]
    try:
        action = learner.act(np.zeros((1, spaces.observation), np.float32)).environment_action
    except (ValueError, TypeError) as error:
        raise ValueError(f"learner: expected one for the observations of {env_id}, got {path.name} ({error})") from error
    is_discrete = action.ndim == 1 and np.issubdtype(action.dtype, np.integer)
    if not is_discrete if spaces.is_discrete else (action.shape != (1, 1) or not np.issubdtype(action.dtype, np.floating)):
        expected = "a choice" if spaces.is_discrete else "a vector of one number"
        raise ValueError(
            f"learner: expected actions of {env_id}, each {expected}, got {action.dtype} of shape {list(action.shape[1:])}"
        )


def downloads(folder: Path) -> Dict[str, Path]:
    """Returns the files that a browser loads from the folder of a page, by their addresses below it."""
    graph = folder / json.loads((folder / SETTINGS).read_text())["learner"]
    learner = (graph, digests_path(graph), acting_path(graph), graph.with_suffix(runtime.STATE_ENDING))
    names = [file.name for file in (*WEB, JAVASCRIPT[0])] + [SETTINGS, *(file.name for file in learner)]
    return {name: folder / name for name in [*names, *(f"{ONNXRUNTIME_FOLDER}/{name}" for name in ONNXRUNTIME)]}


def has_onnxruntime(folder: Path) -> bool:
    """Returns whether the folder of a page has the files of onnxruntime-web."""
    return all((folder / ONNXRUNTIME_FOLDER / name).is_file() for name in ONNXRUNTIME)


def download_sizes(folder: Path) -> Tuple[int, int]:
    """Returns the number of bytes that a browser downloads for a page, as they are and compressed with gzip."""
    contents = [file.read_bytes() for file in downloads(folder).values()]
    return sum(map(len, contents)), sum(len(gzip.compress(content, 6)) for content in contents)


def instructions(folder: Path) -> str:
    """Returns what to do with the page in ``folder``: how to serve it, or what it lacks."""
    served = f"to learn in a web page: python -m http.server --directory {folder}, then open http://localhost:8000"
    if not has_onnxruntime(folder):
        ort, dist = folder / ONNXRUNTIME_FOLDER, "node_modules/onnxruntime-web/dist"
        return (
            "the web page needs onnxruntime-web, which --ort copies; or: npm install onnxruntime-web@1"
            f" && mkdir -p {ort} && cp {' '.join(f'{dist}/{name}' for name in ONNXRUNTIME)} {ort}\n{served}"
        )
    plain, compressed = download_sizes(folder)
    return f"{served}; a browser downloads {plain / 1e6:.1f} MB, or {compressed / 1e6:.1f} MB if the host compresses"
