"""Worker processes of asynchronous environments: Ctrl-C, and workers that end."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback

import gymnasium
import numpy as np
import pytest
import torch

from a2c_compiled.environments import make_environments

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="no signals as a terminal sends them"),
    pytest.mark.usefixtures("terminal_signals"),
]

SLOW = 1.0
"""An action that takes longer than a test may."""


class Own(gymnasium.Env):
    """An environment that waits, ends its process or raises an error, as the action says."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Box(-9.0, 9.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if action == SLOW:
            time.sleep(600)
        if action == 2.0:
            os._exit(3)
        if action == 3.0:
            raise FileNotFoundError("map.json")
        return np.zeros(1, np.float32), 1.0, False, False, {}


class EndsWhenMade(Own):
    """Ends the worker process that makes it."""

    def __init__(self):
        if multiprocessing.parent_process() is not None:
            os._exit(4)


class Interrupts(Own):
    """Sends Ctrl-C to the main process, which makes it, too, to learn its spaces."""

    def __init__(self):
        if multiprocessing.parent_process() is None:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def envs():
    made = make_environments(Own, 2, vectorization="async")
    made.reset(seed=0)
    yield made
    for process in made.envs.processes:
        process.kill()
    made.close()


def actions(*values):
    return torch.tensor(values).unsqueeze(1)


def ended(envs):
    return all(process.exitcode is not None for process in envs.envs.processes)


def interrupted_step(envs, times):
    """Takes a step that does not end, and sends this process SIGINT ``times`` times, 10 ms apart."""
    timers = [threading.Timer(0.3 + 0.01 * i, os.kill, (os.getpid(), signal.SIGINT)) for i in range(times)]
    for timer in timers:
        timer.start()
    try:
        envs.step(actions(0.0, SLOW))
    finally:
        for timer in timers:
            timer.join()


def variables(error):
    """The variables of all calls in the traceback of an error."""
    return [value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values()]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_during_a_step_ends_the_workers_without_waiting_for_them(envs, times):
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted_step(envs, times)
    envs.close()
    assert time.monotonic() - started < 30
    assert ended(envs)


def test_ctrl_c_while_workers_start_takes_effect_when_they_have_started():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make_environments(Interrupts, 2, vectorization="async")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_worker_that_ended_is_named(envs):
    os.kill(envs.envs.processes[1].pid, signal.SIGKILL)
    envs.envs.processes[1].join()
    message = r"^env: expected every worker process to run, got worker 1 with exit status -9$"
    with pytest.raises(RuntimeError, match=message) as raised:
        envs.step(actions(0.0, 0.0))
    envs.close()
    assert ended(envs)
    assert not any(isinstance(value, memoryview) for value in variables(raised.value.__cause__))


def test_a_worker_that_ends_during_a_step_is_named(envs):
    with pytest.raises(RuntimeError, match=r"^env: expected every worker process to run, got worker 0 with exit status 3$"):
        envs.step(actions(2.0, 0.0))
    assert ended(envs)


@pytest.mark.filterwarnings("ignore:.*Worker|.*Traceback|.*Raising the last")
def test_an_error_of_an_environment_is_raised_unchanged(envs):
    with pytest.raises(FileNotFoundError, match=r"^map\.json$"):
        envs.step(actions(0.0, 3.0))
    assert envs.envs.processes[0].is_alive()
    envs.close()


def test_a_worker_that_cannot_make_its_environment_is_an_error():
    with pytest.raises(RuntimeError, match=r"^env: expected every worker process to make its environment, got one that ended"):
        make_environments(EndsWhenMade, 2, vectorization="async")
