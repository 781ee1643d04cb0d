"""What processes that train together tell each other."""

import contextlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, TypeVar

import torch
import torch.distributed as dist

from a2c_compiled.training.distributed.watch import Watch
from a2c_compiled.training.interruption import StopRequest

Value = TypeVar("Value")

BUSY_SECONDS = 10.0
"""How often the process with rank 0 tells the others that it still works, while they wait for it."""

_BUSY = 2.0
"""The answer of the first process while it still works, see :meth:`Processes.of_first`."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together. The defaults describe a single process without torchrun.

    Attributes:
        rank: rank of this process.
        world_size: number of processes.
        local_rank: rank of this process on its machine, which is also the index of its GPU.
        restarts: number of times that torchrun restarted the processes.
        timeout: seconds that this process waits for others.
        watch: what finds the processes that this one waits for; None without a store, or for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0
    timeout: float = 300.0
    watch: Optional[Watch] = field(default=None, compare=False)

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
        return bool(self._sum(float(flag)))

    def of_first(self, flag: bool) -> bool:
        """Returns the ``flag`` of the process with rank 0. All processes must call this method.

        The others may call it long before. The process with rank 0 calls :meth:`keep_waiting` until it calls this method.
        """
        answer = _BUSY
        while answer == _BUSY:
            answer = self._sum(float(flag and self.is_first))
        return bool(answer)

    def keep_waiting(self) -> None:
        """Lets the others go on waiting in :meth:`of_first`. Only the process with rank 0 calls this method, every ``BUSY_SECONDS``."""
        if self.world_size > 1:
            self._sum(_BUSY)

    def _sum(self, value: float) -> float:
        """Returns the sum of the ``value`` of each process."""
        if self.world_size == 1:
            return value
        with self.watched():
            total = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
            self.arrive()
            dist.all_reduce(total)
            return float(total)

    def arrive(self) -> None:
        """Says that this process has reached its next collective operation, see :class:`Watch`."""
        if self.watch is not None:
            self.watch.arrive()

    def remember_checkpoint(self, folder: Path, updates: int) -> None:
        """Makes the last message of a process name the checkpoint after ``updates`` training steps."""
        if self.watch is not None:
            self.watch.checkpoint = f"the last checkpoint is kept: after {updates:,} training steps, in {folder}"

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
        with self.watched():
            self.arrive()
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
    def watched(self, stop: Optional[StopRequest] = None) -> Iterator[None]:
        """Context in which this process may wait for others. It names the others after ``NOTICE_SECONDS``, and ends after ``timeout``.

        If the wait cannot be interrupted, it ends the process with exit status 2.

        Args:
            stop: requests to end training. A request ends the process at once if a process that is waited for shows no sign of life.

        Raises:
            RuntimeError: communication failed, because another process has ended or did not answer in time.
        """
        with contextlib.nullcontext() if self.watch is None else self.watch.active(stop):
            try:
                yield
            except RuntimeError as error:
                if self.world_size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                    reason = (self.watch and self.watch.reason()) or "another process has ended, so this process ends"
                    raise RuntimeError(
                        f"{reason}; {self.watch.checkpoint if self.watch else 'the last checkpoint is kept'}"
                    ) from error
                raise
