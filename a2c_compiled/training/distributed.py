"""Training in several processes that torchrun starts, with ``torch.distributed``."""

import atexit
import functools
import os
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Dict, Iterator, List, Optional, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes that train together. The defaults describe a single process without torchrun.

    Attributes:
        rank: rank of this process.
        world_size: number of processes.
        local_rank: rank of this process on its machine, which is also the index of its GPU.
        restarts: number of times that torchrun restarted the processes.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0. Only rank 0 writes the shared files and the log."""
        return self.rank == 0

    @property
    def group(self) -> Optional[dist.ProcessGroup]:
        """Process group of all processes; None for a single process."""
        return dist.group.WORLD if self.world_size > 1 else None

    def any(self, flag: bool) -> bool:
        """Returns whether ``flag`` is true in any process. All processes must call this method."""
        if self.world_size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        count = torch.tensor(float(flag), device=device)
        dist.all_reduce(count)
        return bool(count)

    def gathered(self, values: List[float]) -> List[float]:
        """Returns the values of all processes, interleaved: the first value of each rank, then the second of each rank, and so on.

        All processes must call this method.
        """
        if self.world_size == 1:
            return values
        return [value for turn in zip_longest(*self._of_all(values)) for value in turn if value is not None]

    def _of_all(self, value: Value) -> List[Value]:
        """Returns the ``value`` of each process, by rank."""
        parts: List[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return parts

    def check_equal(self, options: Dict[str, Any]) -> None:
        """Raises an error in all processes if their ``options`` differ. All processes must call this method.

        Raises:
            ValueError: an option of a process differs from that of the process with rank 0.
        """
        if self.world_size == 1:
            return
        parts = self._of_all(options)
        for rank, other in enumerate(parts):
            for name, value in other.items():
                if value != parts[0].get(name):
                    raise ValueError(
                        f"{name}: expected the same in all processes, got {parts[0].get(name)!r} in rank 0 and {value!r} in rank {rank}"
                    )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raises OSError in all processes if the block raises OSError in one process. All processes must enter the block.

        Raises:
            OSError: the block raised OSError in this or another process.
        """
        failure: Optional[OSError] = None
        try:
            yield
        except OSError as error:
            failure = error
        failed = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise OSError("another process could not write its part of the checkpoint")

    @contextmanager
    def reporting_ended_processes(self) -> Iterator[None]:
        """Replaces an error of communication in the block by a RuntimeError with the message that another process has ended.

        Raises:
            RuntimeError: communication failed because another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise RuntimeError("another process has ended, so this process ends; the last checkpoint is kept") from error
            raise


def started_processes(device: torch.device) -> Processes:
    """Returns the processes that torchrun started, after joining them with NCCL for a GPU or gloo for a CPU.

    Without torchrun, returns a single process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sets this variable
        return Processes()
    rank, world_size, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    processes = Processes(rank, world_size, local_rank, restarts())
    if world_size == 1:
        return processes
    store = _lasting_store()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(local_rank)
        # The store still has the addresses of processes that have ended, so each restart uses keys with a prefix of its own.
        prefix_store = None if store is None else dist.PrefixStore(f"a2c_compiled/{processes.restarts}", store)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=prefix_store, rank=rank, world_size=world_size
        )
        atexit.register(_end_gloo)
    processes.any(False)  # a barrier: every process has read the count of restarts before it changes
    if processes.is_first and store is not None and store.add(_JOINED, 0) == processes.restarts:
        store.add(_JOINED, 1)  # a later restart counts this start
    return processes


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


def _lasting_store() -> Optional[dist.Store]:
    """Returns the store that torchrun keeps across restarts; None if there is no such store or only one process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("WORLD_SIZE") == "1":
        return None
    store, _, _ = next(dist.rendezvous("env://"))
    return store
