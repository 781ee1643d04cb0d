"""Training in several processes that torchrun starts, with ``torch.distributed``."""

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from a2c_compiled.training.interruption import StopRequest

Value = TypeVar("Value")

NOTICE_SECONDS = 30.0
"""A process that has waited this long for other processes names them on stderr."""

BUSY_SECONDS = 10.0
"""How often the process with rank 0 tells the others that it still works, while they wait for it."""

_BEAT_SECONDS = 1.0
"""How often a process writes to the store that it runs."""

_BEATS = 5
"""A process, or the store, is silent after this number of beats without a sign of it."""

_BUSY = 2.0
"""The answer of the first process while it still works, see :meth:`Processes.of_first`."""


class _Peer(NamedTuple):
    """What another process last wrote to the store: ``text``, first read at the time ``since``."""

    text: str
    since: float

    @property
    def arrivals(self) -> int:
        return int(self.text.split(" ", 2)[0])

    @property
    def host(self) -> str:
        return self.text.split(" ", 2)[2]


class Watch:
    """Finds the processes that this process waits for, names them, and ends this process if they do not come.

    Each process counts its arrivals: it arrives before each training step and before each other collective operation. A thread writes the
    count to the store, together with a number that grows at each beat. While this process makes no arrival, the thread also reads what the
    others wrote. A process is missing if its count is lower than that of this process, or if its text does not change. If the store does
    not answer, all processes on other hosts are missing.

    A second thread acts on this, and never waits for the store. Both work with any backend, because they do not use it. The main thread
    may be inside a function of C++ that waits for the network and cannot be interrupted; only the end of the process then ends the wait.

    Args:
        store: the store, over a connection that nothing else uses.
        rank: rank of this process.
        world_size: number of processes.

    Attributes:
        timeout: seconds after which this process no longer waits.
        checkpoint: text about the last checkpoint, for the last message.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.timeout = 300.0
        self.checkpoint = "there is no checkpoint"
        self._store, self._rank, self._world_size = store, rank, world_size
        self._host = socket.gethostname()
        self._beat = max(_BEAT_SECONDS, world_size / 100)  # many processes read many texts
        self._arrivals, self._arrived = 0, time.monotonic()
        self._peers: Dict[int, _Peer] = {}
        self._read = 0.0  # time of the last reading
        self._asked: Optional[float] = None  # time of a request that the store has not answered
        self._depth = 0
        self._stop: Optional[StopRequest] = None
        self._told = -1  # number of arrivals at the last notice
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=task, daemon=True) for task in (self._exchange, self._act)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the threads, unless one of them waits for the store. Python may abort a process that exits before they end."""
        self._closed.set()
        for thread in self._threads:
            thread.join(0.1 if self._store_is_silent else 10.0)

    def arrive(self) -> None:
        """Says that this process has reached its next collective operation."""
        self._arrived = time.monotonic()
        self._arrivals += 1

    @contextmanager
    def active(self, stop: Optional[StopRequest] = None) -> Iterator[None]:
        """Context in which this process may wait for others. Outside of it, nothing is printed or ended.

        Args:
            stop: requests to end training, which are obeyed at once if a process that is waited for is silent.
        """
        before, self._stop = self._stop, self._stop if stop is None else stop
        if self._depth == 0:
            self._arrived = time.monotonic()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._stop = before

    def reason(self) -> Optional[str]:
        """Returns a text that names the missing processes; None if no process is missing."""
        missing = self._missing()
        if not missing:
            return None
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - self._waited))
        return f"rank {self._rank} on {self._host} has waited since {since} for {self._described(missing)}"

    @property
    def _waited(self) -> float:
        """Seconds since the last arrival of this process."""
        return time.monotonic() - self._arrived

    @property
    def _store_is_silent(self) -> bool:
        asked = self._asked
        return asked is not None and time.monotonic() - asked > _BEATS * self._beat

    def _missing(self) -> Dict[int, bool]:
        """Returns the ranks of the missing processes, and whether each is silent."""
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        if self._waited < _BEATS * self._beat:
            return {}
        if self._store_is_silent:
            elsewhere = [rank for rank in others if rank not in self._peers or self._peers[rank].host != self._host]
            return dict.fromkeys(elsewhere or others, True)
        if self._read - self._arrived < 2 * self._beat:  # what was read may have been written before this arrival
            return {}
        missing: Dict[int, bool] = {}
        for rank in others:
            peer = self._peers.get(rank)
            silent = peer is None or self._read - peer.since > _BEATS * self._beat
            if peer is None or silent or peer.arrivals < self._arrivals:
                missing[rank] = silent
        return missing

    def _described(self, missing: Dict[int, bool]) -> str:
        """Returns the names of the missing processes, by host."""
        groups: Dict[str, List[str]] = {}
        for rank, silent in missing.items():
            host = self._peers[rank].host if rank in self._peers else "an unknown host"
            groups.setdefault(f"{host} ({'no sign of life' if silent else 'alive, but not as far'})", []).append(str(rank))
        named = [f"rank{'s' * (len(ranks) > 1)} {', '.join(ranks)} on {host}" for host, ranks in groups.items()]
        silent_store = f"; the store on {os.environ.get('MASTER_ADDR')} does not answer" if self._store_is_silent else ""
        return " and ".join(named) + silent_store

    def _exchange(self) -> None:
        """Writes to the store at each beat. Reads from it too while this process makes no arrival. The store may block or fail."""
        beats = 0
        while True:
            beats += 1
            self._asked = time.monotonic()
            try:
                self._store.set(str(self._rank), f"{self._arrivals} {beats} {self._host}")
                if self._waited > 2 * self._beat or len(self._peers) < self._world_size - 1:
                    self._read_peers()
            except RuntimeError:  # the connection is lost, and the store counts as silent from now on
                return
            self._asked = None
            if self._closed.wait(self._beat):
                return

    def _read_peers(self) -> None:
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        there = [rank for rank in others if rank in self._peers or self._store.check([str(rank)])]
        texts = self._store.multi_get([str(rank) for rank in there]) if there else []
        now = time.monotonic()
        for rank, text in zip(there, texts, strict=True):
            if rank not in self._peers or self._peers[rank].text != text.decode():
                self._peers[rank] = _Peer(text.decode(), now)
        self._read = now

    def _act(self) -> None:
        """Names the missing processes, and ends this process when it has waited for too long or has to stop."""
        while not self._closed.wait(self._beat / 4):
            reason = self.reason() if self._depth > 0 else None
            if reason is None:
                continue
            stopped = self._stop.sent() if self._stop is not None else None
            if stopped is not None and any(self._missing().values()):
                self._end(f"stopped by {stopped}; {reason}; {self.checkpoint}", 128 + getattr(signal, stopped))
            # gloo raises an error at the timeout, after which the process ends in order. NCCL does not.
            if self._waited > self.timeout + _BEATS * self._beat:
                self._end(f"{reason}; {self.checkpoint}", 2)
            if self._waited > NOTICE_SECONDS and self._told != self._arrivals:
                self._told = self._arrivals
                _say(f"{reason}; it ends after {self.timeout:g} s (--process-timeout)")

    def _end(self, message: str, status: int) -> None:
        """Ends this process from a thread other than the main one."""
        if self._closed.is_set() or self._depth == 0:
            return
        _say(message)
        tell_torchrun(message)
        for child in multiprocessing.active_children():
            child.terminate()
        os._exit(status)


def _say(message: str) -> None:
    """Prints ``message`` on stderr, above the progress bar."""
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(f"a2c-compiled: {message}", file=sys.stderr)
        sys.stderr.flush()


def tell_torchrun(message: str) -> None:
    """Makes torchrun name ``message`` as the error of this process, if torchrun started it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is not None:
        with contextlib.suppress(OSError), open(path, "w") as file:
            json.dump({"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}, file)


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
