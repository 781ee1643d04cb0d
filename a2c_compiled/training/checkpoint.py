"""Checkpoints: all that a run's future depends on, as safetensors and JSON, in place whole or not at all.

``checkpoint.json`` names the update of the checkpoint that counts; its tensors are in ``checkpoints/<update>/``: ``training.safetensors``
with what all processes share, ``rank_<r>.safetensors`` with what is each process's own. They are written first and ``checkpoint.json``
last, in one renaming: a process that is killed in between leaves the checkpoint before.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Dict, NamedTuple

import safetensors.torch
import torch
from torch import nn

from a2c_compiled._files import written_whole
from a2c_compiled._tensor_groups import Tensors
from a2c_compiled.training.distributed import Processes

VERSION = 1


class Checkpoint(NamedTuple):
    """What was saved.

    Attributes:
        training: tensors that all processes share: the training step's, and the moments of the rewards.
        own: tensors of this process; empty where it had none, because there were fewer processes then.
        facts: counters and the like, plain JSON.
    """

    training: Tensors
    own: Tensors
    facts: Dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, processes: Processes) -> None:
    """Write a checkpoint, and remove the one before once it is in place. All processes call it together.

    Raises:
        OSError: it cannot be written, a full disk for one; the checkpoint before stays.
    """
    place = folder / "checkpoints" / str(checkpoint.facts["updates"])
    try:
        with processes.together():
            _write(place / f"rank_{processes.rank}.safetensors", checkpoint.own)
            if processes.is_first:
                _write(place / "training.safetensors", checkpoint.training)
        if processes.is_first:
            facts = {"version": VERSION, "world_size": processes.world_size, **checkpoint.facts}
            with written_whole(folder / "checkpoint.json") as path:
                path.write_text(json.dumps(facts) + "\n")
    finally:
        if processes.is_first:
            _remove_others(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one to go on from."""
    return (folder / "checkpoint.json").is_file()


def remove_checkpoints(folder: Path) -> None:
    """Make room for another run."""
    (folder / "checkpoint.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def load_checkpoint(folder: Path, rank: int = 0) -> Checkpoint:
    """The checkpoint that counts, on the CPU.

    Raises:
        ValueError: there is none, or it is not readable.
    """
    if not has_checkpoint(folder):
        raise ValueError(f"run: expected a folder that training wrote, found no {folder / 'checkpoint.json'}")
    try:
        facts = json.loads((folder / "checkpoint.json").read_text())
        if facts["version"] != VERSION:
            raise ValueError(f"it is of version {facts['version']}, and this is version {VERSION}")
        place = folder / "checkpoints" / str(facts["updates"])
        own = safetensors.torch.load_file(place / f"rank_{rank}.safetensors") if rank < facts["world_size"] else {}
        return Checkpoint(safetensors.torch.load_file(place / "training.safetensors"), own, facts)
    except Exception as error:  # a file that anything may have happened to
        raise ValueError(f"run: the checkpoint in {folder} is not readable ({error})") from error


def load_tensors(module: nn.Module, tensors: Tensors, folder: Path) -> None:
    """Load a module's state from the checkpoint in ``folder``.

    Raises:
        ValueError: it is of another module.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"run: the checkpoint in {folder} does not hold what config.json describes ({error})") from error


def _write(path: Path, tensors: Tensors) -> None:
    with written_whole(path) as temporary:
        # Tensors may share memory, or lie in it with gaps: the format knows neither.
        copies = {name: x.detach().cpu().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
        temporary.write_bytes(safetensors.torch.save(copies))


def _remove_others(folder: Path) -> None:
    """What does not count: earlier checkpoints, one that could not be finished, and what a killed process has left."""
    counts = str(json.loads((folder / "checkpoint.json").read_text())["updates"]) if has_checkpoint(folder) else None
    for place in folder.glob("checkpoints/*"):
        if place.name != counts:
            shutil.rmtree(place, ignore_errors=True)
    for left in (left for name in (".checkpoint.*", ".config.*", ".progress.*") for left in folder.glob(name)):
        left.unlink(missing_ok=True)


def random_state(device: torch.device) -> Tensors:
    """Where torch's generators are."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Tensors, device: torch.device) -> None:
    """Put torch's generators back."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
