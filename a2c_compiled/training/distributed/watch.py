"""Finds the processes that this process waits for, names them, and ends this process if they do not come."""

import atexit
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Optional

import torch.distributed as dist
from tqdm import tqdm

from a2c_compiled.training.interruption import StopRequest

NOTICE_SECONDS = 30.0
"""A process that has waited this long for other processes names them on stderr."""

_BEAT_SECONDS = 1.0
"""How often a process writes to the store that it runs."""

_BEATS = 5
"""A process, or the store, is silent after this number of beats without a sign of it."""


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
