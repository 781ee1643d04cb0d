"""Training on two hosts: network namespaces that a pair of virtual network devices joins. The link between them can be cut.

torchrun runs this file in each of its processes.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kill_and_resume import environment_of_programs, tensors, updates

from a2c_compiled.cli import main
from a2c_compiled.training.distributed import watch
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hosts")]

ADDRESSES = {"one": "10.77.0.1", "two": "10.77.0.2"}
UPDATES, ENVS, STEPS = 40, 8, 6
OPTIONS = ["--no-compile", "--device", "cpu", "--num-envs", str(ENVS), "--num-steps", str(STEPS), "--hidden", "8"]
OPTIONS += ["--solved-return", "inf", "--log-interval", "1", "--checkpoint-seconds", "0", "--threads", "1"]


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def why_there_are_no_hosts():
    """Why this machine cannot have network namespaces; an empty text if it can."""
    if not torch.distributed.is_available():
        return "torch.distributed is not built in"
    missing = [program for program in ("ip", "unshare") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} (iproute2, util-linux) are not installed"
    name = f"a2c-{os.getpid()}-try"
    made = ip("netns", "add", name, check=False)
    ip("netns", "delete", name, check=False)
    return f"network namespaces cannot be made: {made.stderr.strip()}" if made.returncode else ""


class Hosts:
    """Two hosts, ``one`` and ``two``. Host ``one`` has the endpoint of the rendezvous."""

    def __init__(self):
        self.prefix = f"a2c-{os.getpid()}-"
        self.running = []
        try:
            for host in ADDRESSES:
                ip("netns", "add", self.prefix + host)
            devices = [f"v{os.getpid()}{host}" for host in ADDRESSES]
            ip("link", "add", devices[0], "type", "veth", "peer", "name", devices[1])
            for (host, address), device in zip(ADDRESSES.items(), devices, strict=True):
                ip("link", "set", device, "netns", self.prefix + host, "name", "eth0")
                for words in (
                    ("address", "add", f"{address}/24", "dev", "eth0"),
                    ("link", "set", "eth0", "up"),
                    ("link", "set", "lo", "up"),
                ):
                    ip("-n", self.prefix + host, *words)
        except BaseException:
            self.close()
            raise

    def close(self):
        self.kill()
        for host in ADDRESSES:
            ip("netns", "delete", self.prefix + host, check=False)  # with its end of the link, and so the other end

    def kill(self):
        """Kills all processes of both hosts."""
        for host in ADDRESSES:
            for pid in self.pids(host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.running:
            process.terminate()  # which reaches those outside of the hosts
            process.wait(60)

    def link(self, state):
        """Cuts the link (``down``) or restores it (``up``)."""
        ip("-n", self.prefix + "one", "link", "set", "eth0", state)

    def start(self, host, torchrun, log, *arguments):
        """Starts torchrun on a host; its output goes to the file ``log``."""
        rendezvous = f"--node-rank {list(ADDRESSES).index(host)} --master-addr {ADDRESSES['one']} --master-port 29500"
        if ":" in torchrun:  # the number of hosts may change
            rendezvous = f"--rdzv-backend c10d --rdzv-endpoint {ADDRESSES['one']}:29500 --local-addr {ADDRESSES[host]}"
            rendezvous += f" --rdzv-conf is_host={int(host == 'one')},last_call_timeout=2"
        command = [sys.executable, "-m", "torch.distributed.run", *torchrun.split(), *rendezvous.split(), __file__]
        inside = [
            "ip",
            "netns",
            "exec",
            self.prefix + host,
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {host}; exec "$@"',
            "sh",
        ]
        environment = {**environment_of_programs(), "GLOO_SOCKET_IFNAME": "eth0"}
        with log.open("a") as file:
            process = subprocess.Popen(
                [*inside, *command, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        self.running.append(process)
        return process

    def start_alone(self, torchrun, log, *arguments):
        """Starts torchrun on this machine, outside of both hosts."""
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            *torchrun.split(),
            __file__,
            *map(str, arguments),
        ]
        with log.open("a") as file:
            self.running.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment_of_programs()))
        return self.running[-1]

    def pids(self, host):
        """The processes of a host."""
        return [int(pid) for pid in ip("netns", "pids", self.prefix + host, check=False).stdout.split()]


def world_size(folder):
    """The number of processes that wrote the checkpoint."""
    return json.loads((folder / "checkpoint.json").read_text())["world_size"]


def until(condition, seconds=120.0):
    """Waits until ``condition()`` is true; returns its value and the seconds that it took."""
    start = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - start < seconds, "it did not happen in time"
        time.sleep(0.05)
    return value, time.monotonic() - start


def program(folder, updates_of_run, seconds, *options):
    """The command ``train``, with short times for the notice. Each update takes at least ``seconds``."""
    watch.NOTICE_SECONDS, watch._BEAT_SECONDS = 2.0, 0.2
    original = Trainer.update

    def update(self):
        time.sleep(float(seconds))
        return original(self)

    Trainer.update = update
    steps = int(updates_of_run) * ENVS * STEPS
    return main(["train", "--out", folder, "--total-steps", str(steps), *OPTIONS, *options])


@pytest.fixture
def hosts():
    reason = why_there_are_no_hosts()
    if reason:
        pytest.skip(reason)
    made = Hosts()
    yield made
    made.close()


class Job:
    """One training on both hosts: a run folder and the output of each host."""

    def __init__(self, hosts, folder, torchrun, *arguments):
        self.hosts, self.folder, self.torchrun, self.arguments = hosts, folder, torchrun, arguments
        self.logs = {host: folder.with_suffix(f".{host}.log") for host in ADDRESSES}
        self.processes = {host: self.start(host) for host in ADDRESSES}

    def start(self, host):
        return self.hosts.start(host, self.torchrun, self.logs[host], self.folder, *self.arguments)

    def said(self, host, pattern):
        """The match of a line that the host has printed; None if there is none."""
        return re.search(pattern, self.logs[host].read_text())

    def output(self, *hosts):
        """What the hosts have printed; by default, both."""
        return "".join(self.logs[host].read_text() for host in hosts or ADDRESSES)

    def until_said(self, host, pattern, seconds=60.0):
        """Waits for a line; returns the seconds that it took."""
        return until(lambda: self.said(host, pattern), seconds)[1]

    def until_trained(self, count):
        """Waits until the checkpoint is that of ``count`` training steps or more."""
        until(lambda: updates(self.folder) >= count)

    def workers(self, host):
        """The processes of a host that train."""
        found = []
        for pid in self.hosts.pids(host):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if "torch.distributed.run" not in words and __file__ in words:
                    found.append(pid)
        return found


FIXED = "--nnodes 2 --nproc-per-node 1"


def test_two_hosts_end_with_the_tensors_of_two_processes_of_one_host_though_their_link_was_cut_for_a_while(hosts, tmp_path):
    alone = hosts.start_alone("--nproc-per-node 2", tmp_path / "alone.log", tmp_path / "alone", UPDATES, 0)
    job = Job(hosts, tmp_path / "run", FIXED, UPDATES, 0.1)
    job.until_trained(5)
    hosts.link("down")
    job.until_said(
        "one",
        r"a2c-compiled: rank 0 on one has waited since \d\d:\d\d:\d\d for rank 1 on two \(no sign of life\); it ends after 300 s",
    )
    job.until_said(
        "two",
        r"rank 1 on two has waited since .* for rank 0 on one \(no sign of life\); the store on 10\.77\.0\.1 does not answer",
    )
    before = updates(job.folder)
    time.sleep(2)
    assert updates(job.folder) == before < UPDATES, "no process goes on alone"
    hosts.link("up")
    assert [process.wait(120) for process in (alone, *job.processes.values())] == [0, 0, 0], job.output()
    assert updates(job.folder) == UPDATES
    expected, actual = tensors(tmp_path / "alone"), tensors(job.folder)
    assert actual.keys() == expected.keys()
    assert [name for name, x in expected.items() if not torch.equal(actual[name], x)] == []


def test_a_link_that_stays_cut_ends_both_hosts_with_the_names_of_those_they_waited_for(hosts, tmp_path):
    job = Job(hosts, tmp_path / "run", FIXED, 1000, 0.1, "--process-timeout", "6")
    job.until_trained(5)
    hosts.link("down")
    _, seconds = until(lambda: not job.workers("one") and not job.workers("two"), 30)
    assert 4 < seconds < 20
    kept = f"the last checkpoint is kept: after {updates(job.folder)} training steps, in {job.folder}"
    for host, other in (("one", "rank 1 on two"), ("two", "rank 0 on one")):
        assert job.processes[host].wait(30) == 1
        assert job.said(host, rf"a2c-compiled: rank \d on {host} has waited since .* for {other} \(no sign of life\).*; {kept}")
        assert job.said(host, r"exitcode  : 2 "), "the exit status of the process, as torchrun prints it"
        assert job.said(host, rf"traceback : rank \d on {host} has waited"), "torchrun repeats the line"
        assert "a2c_compiled/" not in job.output(host), "there is no traceback of this library"
    resumed = hosts.start_alone("--nproc-per-node 1", tmp_path / "resumed.log", job.folder, UPDATES, 0, "--resume")
    assert resumed.wait(120) == 0, (tmp_path / "resumed.log").read_text()
    assert updates(job.folder) == UPDATES


def test_sigterm_ends_both_hosts_at_once_while_their_link_is_cut(hosts, tmp_path):
    job = Job(hosts, tmp_path / "run", FIXED, 1000, 0.1)
    job.until_trained(5)
    hosts.link("down")
    time.sleep(2)
    for host in ADDRESSES:
        for pid in hosts.pids(host):
            os.kill(pid, signal.SIGTERM)
    _, seconds = until(lambda: not job.workers("one") and not job.workers("two"), 30)
    assert seconds < 5
    kept = f"the last checkpoint is kept: after {updates(job.folder)} training steps, in {job.folder}"
    for host, other in (("one", "rank 1 on two"), ("two", "rank 0 on one")):
        assert job.processes[host].wait(30) == 1
        assert job.said(
            host, rf"a2c-compiled: stopped by SIGTERM; rank \d on {host} has waited since .* for {other} .*; {kept}"
        )


def test_torchrun_goes_on_with_the_host_that_is_left_and_with_a_host_that_comes_back(hosts, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1"
    )  # otherwise a host that comes back does not learn the new address
    elastic = "--nnodes 1:2 --nproc-per-node 1 --max-restarts 3"
    job = Job(hosts, tmp_path / "run", elastic, 10_000, 0.1, "--process-timeout", "6", "--resume")
    job.until_trained(5)
    hosts.link("down")
    for pid in hosts.pids("two"):
        os.kill(pid, signal.SIGKILL)
    job.until_trained(updates(job.folder) + 3)
    assert world_size(job.folder) == 1
    hosts.link("up")
    job.processes["two"] = job.start("two")
    until(lambda: world_size(job.folder) == 2)
    job.until_trained(updates(job.folder) + 3)
    for process in job.processes.values():
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in job.processes.values()] == [1, 1], job.output()
    last = updates(job.folder)
    assert job.said("one", f"stopped by SIGTERM after {last * ENVS * STEPS:,} environment steps")
    assert load_progress(job.folder)["updates"] == list(range(1, last + 1)), "no row is missing or twice there"


def test_a_restart_goes_on_without_the_option_resume(hosts, tmp_path):
    job = Job(hosts, tmp_path / "run", "--nnodes 1:2 --nproc-per-node 1 --max-restarts 1", 30, 0.1, "--process-timeout", "6")
    job.until_trained(5)
    hosts.link("down")
    for pid in hosts.pids("two"):
        os.kill(pid, signal.SIGKILL)
    assert job.processes["one"].wait(120) == 0, job.output()
    assert load_progress(job.folder)["updates"] == list(range(1, 31))
    assert world_size(job.folder) == 1


if __name__ == "__main__":
    sys.exit(program(*sys.argv[1:]))
