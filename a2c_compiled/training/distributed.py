"""Training in several processes under torchrun, on ``torch.distributed``."""

import functools
import os
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Iterator, List, Optional

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """The processes that train together; one alone where nothing else was started.

    Attributes:
        rank: which of them this is.
        world_size: how many there are.
        local_rank: which it is on its machine; it takes that GPU.
        restarts: how often torchrun has started them anew.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def group(self) -> Optional[dist.ProcessGroup]:
        """What their tensors are reduced over; None for one alone."""
        return dist.group.WORLD if self.world_size > 1 else None

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any of them; all call it together."""
        if self.world_size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        raised = torch.tensor(float(flag), device=device)
        dist.all_reduce(raised)
        return bool(raised)

    def gathered(self, values: List[float]) -> List[float]:
        """Those of all of them, one of each in turn; all call it together."""
        if self.world_size == 1:
            return values
        parts: List[List[float]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(parts, values)
        return [value for turn in zip_longest(*parts) for value in turn if value is not None]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that has succeeded once it has in all of them.

        Raises:
            OSError: it failed here, or in another.
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
            raise OSError("another process could not write its part")

    @contextmanager
    def noticing_deaths(self) -> Iterator[None]:
        """A block in which all of them work together.

        Raises:
            RuntimeError: another one is gone, as what joins them has it.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise RuntimeError("another process has ended, so this one does; the last checkpoint is there") from error
            raise


def started_processes(device: torch.device) -> Processes:
    """The processes that torchrun has started, joined by NCCL where they train on GPUs, else by gloo."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Processes()
    rank, world_size, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    processes = Processes(rank, world_size, local_rank, restarts())
    if world_size == 1:
        return processes
    store = _lasting_store()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(local_rank)
        # Addresses that earlier processes left in the store lead nowhere: each start has a corner of its own.
        corner = None if store is None else dist.PrefixStore(f"a2c_compiled/{processes.restarts}", store)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=corner, rank=rank, world_size=world_size)
    processes.any(False)  # all are here, and have asked for the count before
    if processes.is_first and store is not None and store.add(_JOINED, 0) == processes.restarts:
        store.add(_JOINED, 1)  # those who are started anew know that these were together
    return processes


_JOINED = "a2c_compiled/joined"


@functools.cache
def restarts() -> int:
    """How often torchrun has started these processes anew since they first were together, the same in all; 0 without torchrun.

    To be asked before they join: it is remembered.
    """
    store = _lasting_store()
    # torchrun's count is each machine's own: it leaves out the starts because of another machine, and those before a machine came.
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if store is None else store.add(_JOINED, 0)


def _lasting_store() -> Optional[dist.Store]:
    """The store that torchrun keeps while it starts processes anew; None where it keeps none, or there is one process alone."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("WORLD_SIZE") == "1":
        return None
    store, _, _ = next(dist.rendezvous("env://"))
    return store
