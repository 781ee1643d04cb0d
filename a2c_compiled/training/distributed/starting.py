"""Joins the processes that torchrun started, and counts how often it restarted them."""

import atexit
import functools
import os
from datetime import timedelta
from typing import Optional

import torch
import torch.distributed as dist

from a2c_compiled.training.distributed.processes import Processes
from a2c_compiled.training.distributed.watch import Watch


def started_processes(device: torch.device, timeout: float) -> Processes:
    """Returns the processes that torchrun started, after joining them with NCCL for a GPU or gloo for a CPU.

    Without torchrun, returns a single process.

    Args:
        device: device of this process.
        timeout: seconds that a process waits for others.

    Raises:
        RuntimeError: the processes cannot be connected, or another process has ended.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sets this variable
        return Processes()
    rank, world_size, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    store, watch = _lasting_store(), None
    if store is not None:
        store.set_timeout(timedelta(seconds=timeout))
    if world_size > 1:
        if not dist.is_initialized():
            _join(device, rank, world_size, timeout)
        watch = _watch(rank, world_size)
    if watch is not None:
        watch.timeout = timeout
    processes = Processes(rank, world_size, local_rank, restarts(), timeout, watch)
    processes.any(False)  # a barrier: every process has read the count of restarts before it changes
    if processes.is_first and store is not None and store.add(_JOINED, 0) == processes.restarts:
        store.add(_JOINED, 1)  # a later restart counts this start
    return processes


def _join(device: torch.device, rank: int, world_size: int, timeout: float) -> None:
    """Connects the processes."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    store = _lasting_store()
    prefix_store = None if store is None else dist.PrefixStore(_prefix(), store)
    # At its timeout, NCCL ends the process with a traceback. The watch ends it before.
    seconds = timedelta(seconds=timeout + (60 if is_gpu else 0))
    try:
        dist.init_process_group(
            "nccl" if is_gpu else "gloo", store=prefix_store, rank=rank, world_size=world_size, timeout=seconds
        )
    except RuntimeError as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"the {world_size} processes could not be connected ({text})") from error
    atexit.register(_end_gloo)


def _prefix() -> str:
    """Returns the prefix of all keys in the store.

    A store that lasts still has the addresses of processes that have ended, so each restart has a prefix of its own.
    """
    return "a2c_compiled" if _lasting_store() is None else f"a2c_compiled/{restarts()}"


@functools.cache
def _watch(rank: int, world_size: int) -> Optional[Watch]:
    """Returns the watch of this process; None without a store."""
    if "MASTER_ADDR" not in os.environ:
        return None
    store, _, _ = next(dist.rendezvous("env://"))  # a connection of its own, which may block
    return Watch(dist.PrefixStore(f"{_prefix()}/watch", store), rank, world_size)


def _end_gloo() -> None:
    """Ends gloo's threads while the interpreter still runs; torch may abort a process that exits before they end."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


_JOINED = "a2c_compiled/joined"
"""Key in the store: how often the processes have been started and have joined."""


@functools.cache
def restarts() -> int:
    """Returns how often torchrun restarted the processes after they first joined; 0 without torchrun.

    The number is the same in all processes if torchrun keeps a store. Otherwise, it is the number of restarts on this machine. Call this
    function before ``init_process_group``; the result is cached.
    """
    store = _lasting_store()
    # TORCHELASTIC_RESTART_COUNT leaves out restarts that other machines caused, and restarts before this machine joined.
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if store is None else store.add(_JOINED, 0)


@functools.cache
def _lasting_store() -> Optional[dist.Store]:
    """Returns the store that torchrun keeps across restarts; None if there is no such store."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store, _, _ = next(dist.rendezvous("env://"))
    return store
