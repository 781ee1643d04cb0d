"""The folder of a run: its lock, and how to read ``config.json`` and the current checkpoint of a run that is finished or still running."""

import json
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from filelock import FileLock, Timeout

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled.environments import goal_of
from a2c_compiled.losses import A2CLoss
from a2c_compiled.rollouts.reward_scale import RewardScale
from a2c_compiled.rollouts.tensor_groups import group_of
from a2c_compiled.training.checkpoint import load_checkpoint, load_tensors
from a2c_compiled.training.config import TrainConfig, load_config, with_environment
from a2c_compiled.training.construction import make_loss, make_step
from a2c_compiled.training.distributed.processes import Processes
from a2c_compiled.update.train_step import TrainStep

LOCK, HOLDER = "run.lock", "run.holder"
"""The file of the lock, and the file that says which process holds it."""


RESTART_SECONDS = 30.0
"""Longest time that restarted processes wait for the lock."""


class Group(NamedTuple):
    """Runs that differ only in the seed.

    Attributes:
        config: fields of ``config.json`` without the seed. Empty if the folder has no ``config.json``.
        folders: folders of the runs.
    """

    config: Dict[str, Any]
    folders: List[Path]

    @property
    def goal(self) -> Optional[float]:
        """Return at which the environment counts as solved; None if there is none. See :func:`~a2c_compiled.environments.goal_of`."""
        return goal_of(self.config.get("env"), self.config.get("solved_return"))


@contextmanager
def folder_lock(folder: Optional[Path], processes: Processes) -> Iterator[None]:
    """Context in which only the processes of this training write to ``folder``. All processes must enter it.

    The process with rank 0 holds the lock. The operating system releases the lock when that process ends, however it ends.

    Args:
        folder: folder of the run; None: there is nothing to lock.
        processes: the processes that train together.

    Raises:
        ValueError: another training holds the lock.
        OSError: the file of the lock cannot be written.
    """
    if folder is None:
        yield
        return
    # After a restart, a process of another host may still be ending.
    lock = FileLock(folder / LOCK, timeout=min(RESTART_SECONDS, processes.timeout / 2) if processes.restarts else 0)
    held = True
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            with atomic_file(folder / HOLDER) as path:
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        except Timeout:
            held = False
    if processes.any(not held):
        raise ValueError(f"out: expected a folder to which no other training writes, got {folder}, held by {_holder(folder)}")
    try:
        yield
    finally:
        if lock.is_locked:
            (folder / HOLDER).unlink(missing_ok=True)  # the file of the lock stays: removing it could give two processes a lock
            lock.release()


def _holder(folder: Path) -> str:
    """Returns the text of the process that holds the lock."""
    try:
        return (folder / HOLDER).read_text(errors="replace")[:200]
    except OSError:
        return "another process"


def load_run(folder: AnyPath, env: Optional[str] = None, trust_environment: bool = False) -> Tuple[TrainConfig, A2CLoss]:
    """Loads the options of a run, and its loss with the networks of the last checkpoint. Arguments and errors: see :func:`load_step`."""
    config, step = load_step(folder, env, trust_environment)
    return config, step.loss


def load_step(folder: AnyPath, env: Optional[str] = None, trust_environment: bool = False) -> Tuple[TrainConfig, TrainStep]:
    """Loads the options of a run, and its training step with networks, optimizer state and learning rate of the last checkpoint.

    The training step is not compiled.

    Args:
        folder: folder of the run.
        env: name of the environment; None takes the name in ``config.json``.
        trust_environment: whether to import the module that ``config.json`` names.

    Raises:
        ValueError: a file of the run is missing, not readable, or of another version, or this machine lacks the run's environment or
            device; or ``env`` is None, and ``config.json`` has no environment, or names a module that is not trusted.
        TypeError: ``folder`` is not a path.
    """
    folder = as_path("folder", folder)
    config = with_environment(load_config(folder), env, trust_environment)
    checkpoint = load_checkpoint(folder)
    step = make_step(config, make_loss(config), compile=False)
    load_tensors(step, group_of(checkpoint.training, "step"), folder)
    return config, step


def load_reward_scale(folder: AnyPath, config: TrainConfig) -> float:
    """Returns the number by which a run multiplied its last rewards; 1 without ``normalize_rewards``.

    Args:
        folder: folder of the run.
        config: options of the run.

    Raises:
        ValueError: the checkpoint is missing or not readable.
        TypeError: ``folder`` is not a path.
    """
    if not config.normalize_rewards:
        return 1.0
    scale = RewardScale(config.num_envs, config.gamma)
    folder = as_path("folder", folder)
    load_tensors(scale.moments, group_of(load_checkpoint(folder).training, "reward_moments"), folder)
    return 1.0 / scale.deviation.item()


def group_runs(folders: Sequence[AnyPath]) -> List[Group]:
    """Groups runs whose ``config.json`` is equal apart from the seed. A folder without ``config.json`` is a group of its own.

    Raises:
        ValueError: a ``config.json`` is not readable.
        TypeError: ``folders`` is one path, or has an entry that is not a path.
    """
    if isinstance(folders, (str, os.PathLike)):
        raise TypeError(f"folders: expected a sequence of paths, got {folders!r}")
    groups: Dict[str, Group] = {}
    for folder in (as_path("folders", folder) for folder in folders):
        config = _config(folder)
        config.pop("seed", None)
        key = json.dumps(config, sort_keys=True) if config else str(folder)
        groups.setdefault(key, Group(config, [])).folders.append(folder)
    return list(groups.values())


def names_of(groups: Sequence[Group]) -> List[str]:
    """Returns a distinct name for each group.

    The names are the first of these that are distinct and not empty:

    * the options that differ between the groups, if there are at most three;
    * the name of the deepest folder that contains all runs of the group;
    * the path of this folder;
    * the folders of the runs.
    """
    fields = {field for group in groups for field in group.config}
    different = sorted(field for field in fields if len({str(group.config.get(field)) for group in groups}) > 1)
    names: List[str] = []
    if len(different) <= 3:
        names = [
            ", ".join(f"{field}={group.config[field]}" for field in different if field in group.config) for group in groups
        ]
    for name in (lambda folder: folder.name, str):
        if all(names) and len(set(names)) == len(groups):
            break
        names = [name(Path(os.path.commonpath([folder.resolve() for folder in group.folders]))) for group in groups]
    if len(set(names)) < len(groups):
        names = [", ".join(map(str, group.folders)) for group in groups]
    return names


def _config(folder: Path) -> Dict[str, Any]:
    """Reads ``config.json`` without checking its fields. Returns an empty dict if the file is missing."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"run: {file} is not readable ({error})") from error
