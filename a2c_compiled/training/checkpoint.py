"""Checkpoints: the complete state of a training run, as safetensors and JSON files that are written atomically.

* ``checkpoint.json``: counters. Its field ``updates`` is the name of the folder with the current checkpoint's tensors.
* ``checkpoints/<updates>/training.safetensors``: tensors that all processes share.
* ``checkpoints/<updates>/rank_<r>.safetensors``: tensors of the process with rank ``r``.

Saving replaces ``checkpoint.json`` last, by renaming a file. If a process is killed before, the previous checkpoint stays valid.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Dict, NamedTuple

import safetensors.torch
import torch
from torch import nn

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled._hyperparameters import ANY, Range
from a2c_compiled.rollouts.tensor_groups import Tensors
from a2c_compiled.training.distributed.processes import Processes

VERSION = 1
_SECONDS = Range("a number of seconds from 0 to 1e9", 0.0, 1e9)


class Checkpoint(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        training: tensors that all processes share: the training step's state, and the running moments for the reward scale.
        own: tensors of this process: environments, hidden states, reward scale, random generators. Empty if fewer processes
            wrote the checkpoint, so that the checkpoint has no file for this rank.
        facts: counters, seconds, and recent episode returns and lengths, as JSON values.
    """

    training: Tensors
    own: Tensors
    facts: Dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, processes: Processes) -> None:
    """Writes a checkpoint, then removes the previous one. All processes must call this function.

    Raises:
        OSError: this or another process cannot write its part, for example because the disk is full. The previous checkpoint stays
            valid.
    """
    tensors_folder = folder / "checkpoints" / str(checkpoint.facts["updates"])
    try:
        with processes.together():
            _write(tensors_folder / f"rank_{processes.rank}.safetensors", checkpoint.own)
            if processes.is_first:
                _write(tensors_folder / "training.safetensors", checkpoint.training)
        if processes.is_first:
            facts = {"version": VERSION, "world_size": processes.world_size, **checkpoint.facts}
            with atomic_file(folder / "checkpoint.json") as path:
                path.write_text(json.dumps(facts) + "\n")
    finally:
        if processes.is_first:
            _remove_others(folder)


def has_checkpoint(folder: AnyPath) -> bool:
    """Returns whether ``folder`` has a checkpoint."""
    return (as_path("folder", folder) / "checkpoint.json").is_file()


def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints from ``folder``."""
    (folder / "checkpoint.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def load_checkpoint(folder: AnyPath, rank: int = 0) -> Checkpoint:
    """Reads the current checkpoint in ``folder``; its tensors are on the CPU.

    Args:
        folder: folder of the run.
        rank: rank of the process whose own tensors are read.

    Raises:
        ValueError: ``folder`` has no checkpoint, or the checkpoint is not readable or of another version.
        TypeError: ``folder`` is not a path.
    """
    folder = as_path("folder", folder)
    if not has_checkpoint(folder):
        raise ValueError(f"run: expected a folder that training wrote, found no {folder / 'checkpoint.json'}")
    try:
        facts = json.loads((folder / "checkpoint.json").read_text())
        if facts["version"] != VERSION:
            raise ValueError(f"version: expected {VERSION}, got {facts['version']}")
        tensors_folder = folder / "checkpoints" / str(facts["updates"])
        has_own = rank < facts["world_size"]
        own = safetensors.torch.load_file(tensors_folder / f"rank_{rank}.safetensors") if has_own else {}
        return Checkpoint(safetensors.torch.load_file(tensors_folder / "training.safetensors"), own, facts)
    except Exception as error:  # a damaged file may raise any error
        raise ValueError(f"run: the checkpoint in {folder} is not readable ({error})") from error


def check_counters(facts: Dict[str, Any], folder: Path) -> None:
    """Checks the facts that a trainer saves, see :class:`Checkpoint`.

    Raises:
        ValueError: one of ``updates``, ``episodes``, ``seconds``, ``returns`` and ``lengths`` is missing, of another kind or out of range.
    """
    try:
        for name in ("updates", "episodes"):
            if not isinstance(facts[name], int) or not 0 <= facts[name] < 2**63:
                raise ValueError(f"{name}: expected an integer of at least 0, got {facts[name]!r}")
        _SECONDS.number("seconds", facts["seconds"])
        for name in ("returns", "lengths"):
            for value in facts[name]:
                ANY.number(name, value)
    except KeyError as error:
        raise ValueError(f"run: expected {error} in {folder / 'checkpoint.json'}, found no such entry") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"run: the checkpoint in {folder} is not readable ({error})") from error


def load_tensors(module: nn.Module, tensors: Tensors, folder: Path) -> None:
    """Loads the state of a module.

    Args:
        module: module to load into.
        tensors: the module's state dict.
        folder: folder of the checkpoint, for the error message.

    Raises:
        ValueError: names or shapes do not match the module.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"run: the checkpoint in {folder} does not match its config.json ({error})") from error


def _write(path: Path, tensors: Tensors) -> None:
    """Writes ``tensors`` to a safetensors file, atomically."""
    with atomic_file(path) as temporary:
        # safetensors accepts neither tensors that share memory nor tensors with gaps.
        copies = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
        temporary.write_bytes(safetensors.torch.save(copies))


def _remove_others(folder: Path) -> None:
    """Removes earlier and unfinished checkpoints, and temporary files of killed processes."""
    current = str(json.loads((folder / "checkpoint.json").read_text())["updates"]) if has_checkpoint(folder) else None
    for tensors_folder in folder.glob("checkpoints/*"):
        if tensors_folder.name != current:
            shutil.rmtree(tensors_folder, ignore_errors=True)
    for pattern in (".checkpoint.*", ".config.*", ".progress.*", ".run.*"):
        for temporary in folder.glob(pattern):
            temporary.unlink(missing_ok=True)


def random_state(device: torch.device) -> Tensors:
    """Returns the states of torch's random generators as uint8 tensors: for the CPU, and for ``device`` if it is a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Tensors, device: torch.device) -> None:
    """Restores the states that :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
