"""The watch names the processes that are waited for, with a store that the tests write to; signals reach it while the main thread waits."""

import ctypes
import json
import signal
import threading
import time

import pytest

from a2c_compiled.cli import main
from a2c_compiled.training.distributed import watch
from a2c_compiled.training.distributed.processes import Processes
from a2c_compiled.training.distributed.watch import Watch
from a2c_compiled.training.interruption import StopRequest, stop_requests

BEAT = 0.05


class Store:
    """The store of three processes, of which the watch is one. A store that does not answer blocks until the test ends."""

    def __init__(self):
        self.texts, self.answers = {}, threading.Event()
        self.answers.set()

    def set(self, key, text):
        self.answers.wait(10)
        self.texts[key] = text

    def check(self, keys):
        return all(key in self.texts for key in keys)

    def multi_get(self, keys):
        return [self.texts[key].encode() for key in keys]


class Scene:
    """A watch of rank 0 on host ``a``. Rank 1 is on ``a`` too, rank 2 is on ``b``. What the watch says and how it ends is recorded."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(watch, "_BEAT_SECONDS", BEAT)
        monkeypatch.setattr(watch, "NOTICE_SECONDS", 10 * BEAT)
        monkeypatch.setattr(watch.socket, "gethostname", lambda: "a")
        self.said, self.statuses, self.store, self.alive = [], [], Store(), {1: 0, 2: 0}
        monkeypatch.setattr(watch, "_say", self.said.append)
        monkeypatch.setattr(watch.os, "_exit", self.exit)
        self.watch = Watch(self.store, 0, 3)
        self.ended = threading.Event()
        self.peers = threading.Thread(target=self.beat)
        self.peers.start()
        self.until(lambda: len(self.watch._peers) == 2)

    def exit(self, status):
        self.statuses.append(status)
        self.watch._closed.set()

    def beat(self):
        """Writes the counts of the ranks that are alive: their arrivals are the values of ``alive``."""
        beats = 0
        while not self.ended.wait(BEAT / 2):
            beats += 1
            for rank, arrivals in dict(self.alive).items():
                self.store.texts[str(rank)] = f"{arrivals} {beats} {'ab'[rank - 1]}"

    def until(self, condition):
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < 10
            time.sleep(BEAT)

    def until_missing(self, names):
        self.until(lambda: (self.watch.reason() or "").endswith(f"for {names}"))

    def close(self):
        self.store.answers.set()
        self.ended.set()
        self.peers.join()
        self.watch.close()


@pytest.fixture
def scene(monkeypatch):
    made = Scene(monkeypatch)
    yield made
    made.close()


def test_a_process_that_has_not_come_as_far_is_named(scene):
    scene.until(lambda: scene.watch._waited > 10 * BEAT and scene.watch.reason() is None)  # all are at the same point
    scene.watch.arrive()
    scene.until_missing("rank 1 on a (alive, but not as far) and rank 2 on b (alive, but not as far)")
    scene.alive[1] = 1
    scene.until_missing("rank 2 on b (alive, but not as far)")
    scene.alive[2] = 1
    scene.until(lambda: scene.watch.reason() is None)


def test_a_process_without_a_sign_of_life_is_named(scene):
    del scene.alive[2]
    scene.until_missing("rank 2 on b (no sign of life)")
    scene.alive[2] = 0
    scene.until(lambda: scene.watch.reason() is None)
    scene.alive.clear()
    scene.until_missing("rank 1 on a (no sign of life) and rank 2 on b (no sign of life)")


def test_without_an_answer_of_the_store_the_processes_of_other_hosts_are_named(scene, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "b")
    scene.store.answers.clear()
    scene.until_missing("rank 2 on b (no sign of life); the store on b does not answer")


def test_a_wait_is_said_once_and_ended_at_the_timeout(scene, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    scene.watch.timeout = 40 * BEAT
    del scene.alive[2]
    time.sleep(20 * BEAT)
    assert scene.said == [], "outside of the context, this process waits for no other"
    scene.watch.checkpoint = "the last checkpoint is kept"
    with scene.watch.active():
        scene.until(lambda: scene.statuses)
    assert scene.statuses == [2]
    notice, last = scene.said
    assert notice.startswith("rank 0 on a has waited since ")
    assert notice.endswith("for rank 2 on b (no sign of life); it ends after 2 s (--process-timeout)")
    assert last.endswith("for rank 2 on b (no sign of life); the last checkpoint is kept")
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == last


def test_a_request_to_end_is_obeyed_at_once_only_if_a_process_is_silent(scene):
    stop = StopRequest()
    stop.received = "SIGTERM"
    scene.watch.arrive()
    with scene.watch.active(stop):
        scene.until(lambda: scene.said)
        assert scene.statuses == [], "the others are alive, and will end with this process"
        del scene.alive[1]
        scene.until(lambda: scene.statuses)
    assert scene.statuses == [143]
    assert scene.said[-1].startswith("stopped by SIGTERM; rank 0 on a has waited since ")
    assert scene.said[-1].endswith("; there is no checkpoint")


def test_an_error_of_communication_names_the_missing_process(scene, monkeypatch):
    processes = Processes(world_size=3, watch=scene.watch)
    with (
        pytest.raises(RuntimeError, match="another process has ended, so this process ends; there is no checkpoint"),
        processes.watched(),
    ):
        raise RuntimeError("gloo: connection closed")
    del scene.alive[2]
    scene.until_missing("rank 2 on b (no sign of life)")
    monkeypatch.setattr(scene.watch, "_depth", 1)  # the wait has begun before
    with pytest.raises(RuntimeError, match=r"for rank 2 on b \(no sign of life\); there is no checkpoint"), processes.watched():
        raise RuntimeError("gloo: timed out")
    with pytest.raises(RuntimeError, match="another error"), processes.watched():
        raise RuntimeError("another error")


def test_another_thread_learns_of_a_signal_while_the_main_thread_cannot_handle_it():
    seen, waits = [], threading.Event()

    def send(stop):
        waits.wait()
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # which does not interrupt the main thread
        start = time.monotonic()
        while not seen and time.monotonic() - start < 1:
            if stop.sent():
                seen.append((stop.sent(), stop.received))

    before = signal.set_wakeup_fd(-1)
    with stop_requests() as stop:
        thread = threading.Thread(target=send, args=(stop,))
        thread.start()
        usleep = ctypes.CDLL(None).usleep
        waits.set()
        usleep(900_000)
        thread.join()
        assert seen == [("SIGTERM", None)]
        assert stop.received == "SIGTERM"
    assert signal.set_wakeup_fd(before) == -1, "the block leaves the setting of before"


def test_torchrun_is_told_the_message_of_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["train", "--out", str(tmp_path / "run"), "--num-envs", "0"]) == 2
    message = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert capsys.readouterr().err == f"a2c-compiled: {message}\n"
