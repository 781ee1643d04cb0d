"""Training in two processes: they learn what one process learns from the environments of both; deaths and restarts under torchrun.

torchrun runs this file in each of its processes.
"""

import contextlib
import functools
import io
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from kill_and_resume import Running, environment_of_programs, tensors, updates

from a2c_compiled import A2CLoss, distributions, estimators
from a2c_compiled.cli import main
from a2c_compiled.networks.for_spaces import mlp
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training import TrainConfig, train
from a2c_compiled.training import trainer as training_loop
from a2c_compiled.training.distributed.processes import Processes
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.trainer import Trainer
from a2c_compiled.update import Rollout

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built in"),
    pytest.mark.slow,
    pytest.mark.xdist_group("processes"),
]

UPDATES, ENVS, STEPS = 12, 8, 6

KINDS = {
    "torch": {},
    "standardized": {"average_gae": True, "optimizer": "adam"},
    "normalized": {  # a step is spent on each reset, so that processes have different numbers of steps that count
        "vectorization": "gymnasium",
        "average_gae": True,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
}


def config(**changes):
    tiny = {"num_envs": ENVS, "num_steps": STEPS, "total_steps": UPDATES * ENVS * STEPS, "hidden": (8,), "compile": False}
    return TrainConfig(**{**tiny, "device": "cpu", "solved_return": math.inf, "log_interval": 3, **changes})


LEARNING = {"num_envs": 32, "num_steps": 16, "total_steps": 60_000, "hidden": (32,), "log_interval": 10}


def parameters_of(module):
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


# Training loops without Trainer, with torch's wrappers


def small_loss(across_processes):
    torch.manual_seed(0)
    actor, critic = mlp(4, (8,), 2, 1.0), mlp(4, (8,), 1, 1.0)
    estimator = estimators.GAE(average_gae=True, across_processes=across_processes)
    return A2CLoss(actor, critic, distributions.Categorical(2), estimator)


def random_rollouts(environments):
    """Yields three rollouts of the slice ``environments`` of all environments."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        observation, next_observation = torch.randn(2, STEPS, ENVS, 4, generator=generator)
        reward = torch.randn(STEPS, ENVS, generator=generator)
        action, done = torch.randint(2, (2, STEPS, ENVS), generator=generator)
        rollout = {"observation": observation, "action": action, "reward": reward, "next_observation": next_observation}
        yield {name: x[:, environments] for name, x in {**rollout, "done": done.bool(), "terminated": done.bool()}.items()}


def learn(loss, rollouts):
    """Trains ``loss``, or the wrapper of a loss, with one step for each rollout."""
    optimizer = torch.optim.RMSprop(loss.parameters(), lr=1e-2)
    for rollout in rollouts:
        losses = loss(**rollout)
        (losses.loss_objective + losses.loss_critic + losses.loss_entropy).backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def data_parallel(rollouts):
    from torch.nn.parallel import DistributedDataParallel

    loss = small_loss(across_processes=True)
    learn(DistributedDataParallel(loss), rollouts)
    return parameters_of(loss)


def fully_sharded(rollouts):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    loss = small_loss(across_processes=True)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fully_shard(loss.actor_network, mesh=mesh)
    fully_shard(loss.critic_network, mesh=mesh)
    learn(loss, rollouts)
    assert any(parameter.to_local().numel() < parameter.numel() for parameter in loss.parameters())
    return {name: parameter.full_tensor() for name, parameter in parameters_of(loss).items()}


# The programs of a process


def record_rollouts():
    """Returns the list to which every rollout is added from now on, before its rewards are scaled."""
    collected, original = [], RolloutCollector.collect

    def collect(self):
        rollout = original(self)
        collected.append(rollout._asdict())
        return rollout

    RolloutCollector.collect = collect
    return collected


def join(rank, store):
    """Makes this process one of two that train together, with the variables that torchrun would set."""
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in torchrun.items()})
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)


def evaluate_slowly():
    """Trains with evaluations during which the first process often tells the other one that it still works."""
    told, original = [], Processes.keep_waiting
    training_loop.BUSY_SECONDS, before = 0.0, training_loop.BUSY_SECONDS
    Processes.keep_waiting = lambda self: [told.append(self.rank), original(self)]
    history = train(config(solved_return=60.0), progress=False).history
    training_loop.BUSY_SECONDS, Processes.keep_waiting = before, original
    return {"told": told, "history": [{name: row[name] for name in ("updates", "return", "loss_critic")} for row in history]}


def train_and_report(folder, rank):
    """Runs everything that needs two living processes; saves what this one observed in ``folder``."""
    join(rank, folder / "store")
    opened = []
    sys.addaudithook(lambda event, about: opened.append(about) if event == "open" else None)
    report, collected = {}, record_rollouts()
    for name, options in KINDS.items():
        collected.clear()
        loss = train(config(**options), progress=False, folder=folder / name).loss
        report[name] = {"parameters": parameters_of(loss), "buffers": dict(loss.named_buffers()), "rollouts": [*collected]}
    writes = os.O_WRONLY | os.O_RDWR
    report["written"] = [str(path) for path, _, flags in opened if flags & writes and str(folder) in str(path)]
    report["learning"] = [row["return"] for row in train(config(**LEARNING), progress=False).history]
    with warnings.catch_warnings(record=True) as caught:
        resumed = train(config(total_steps=UPDATES * ENVS * STEPS * 2), progress=False, folder=folder / "alone", resume=True)
    report["resumed"] = {"steps": resumed.steps, "warnings": [str(warning.message) for warning in caught]}
    with contextlib.redirect_stderr(io.StringIO()) as said:
        report["refused"] = main(["train", "--out", str(folder / "refused"), "--num-envs", "7"]), said.getvalue()
    seen = folder / f"seen_by_{rank}"
    if rank == 0:
        shutil.copytree(folder / "alone", seen)
    try:
        train(config(), progress=False, folder=seen, resume=True)
    except ValueError as error:
        report["not_shared"] = str(error)
    try:
        Trainer(config(lr=(0.001, 0.002)[rank]))
    except ValueError as error:
        report["unequal"] = str(error)
    report["evaluated"] = evaluate_slowly()
    half = slice(rank * ENVS // 2, (rank + 1) * ENVS // 2)
    report["data_parallel"] = data_parallel(random_rollouts(half))
    report["fully_sharded"] = fully_sharded(random_rollouts(half))
    torch.save(report, folder / f"{rank}.pt")
    return 0


COMMAND = ["--no-compile", "--device", "cpu", "--num-envs", str(ENVS), "--num-steps", str(STEPS), "--hidden", "8"]
COMMAND += ["--total-steps", str(UPDATES * ENVS * STEPS), "--solved-return", "inf", "--log-interval", "3"]
COMMAND += ["--checkpoint-seconds", "0"]


def resume(folder, rank):
    """The command ``train --resume``."""
    join(rank, folder.with_suffix(".store"))
    return main(["train", "--resume", "--out", str(folder), *COMMAND])


def dying(folder, seconds, *moments):
    """The command ``train``. At its start number i, the second process dies before training step ``moments[i]``.

    The first process then sleeps for ``seconds``, so that its machine learns of the death before the process does.
    """
    original = Trainer.update

    def update(self):
        if self.processes.restarts < len(moments) and self.updates == int(moments[self.processes.restarts]):
            if self.processes.rank == 1:
                os._exit(3)
            time.sleep(float(seconds))
        return original(self)

    Trainer.update = update
    return main(["train", "--out", str(folder), *COMMAND])


def torchrun(options, *arguments, machines=1):
    """Runs ``dying`` under one torchrun for each machine; returns their exit statuses and their output."""
    command = [sys.executable, "-m", "torch.distributed.run", *options.split(), __file__, *map(str, arguments)]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment_of_programs()}
    running = [subprocess.Popen(command, **out) for _ in range(machines)]
    try:
        output = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], "".join(output)


# Two processes without deaths


def in_two_processes(folder, program):
    """Runs ``program(folder, rank)`` in two processes."""
    ranks = [Running(folder.with_suffix(f".{rank}.log"), program, folder, rank) for rank in range(2)]
    for process in ranks:
        process.assert_success()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs of ``train_and_report``."""
    folder = tmp_path_factory.mktemp("runs")
    train(config(), progress=False, folder=folder / "alone")
    in_two_processes(folder, train_and_report)
    return folder


@pytest.fixture(scope="module")
def ranks(runs):
    """The report of each process."""
    return [torch.load(runs / f"{rank}.pt") for rank in range(2)]


def assert_equal(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(actual[name], x, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


bit_for_bit = functools.partial(assert_equal, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_have_the_same_networks(ranks, kind):
    bit_for_bit(ranks[0][kind]["parameters"], ranks[1][kind]["parameters"])
    bit_for_bit(ranks[0][kind]["buffers"], ranks[1][kind]["buffers"])
    first, second = (rank[kind]["rollouts"][0]["observation"] for rank in ranks)
    assert (first != second).any(-1).all(), "the processes have different environments"


def joint(one, two):
    """Joins the rollouts of both processes to one of all environments."""
    return Rollout(**{name: None if x is None else torch.cat((x, two[name]), 1) for name, x in one.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_process_learns_from_the_environments_of_both(ranks, kind, monkeypatch):
    trainer = Trainer(config(**KINDS[kind]))
    initial = {name: parameter.clone() for name, parameter in parameters_of(trainer.loss).items()}
    pairs = list(zip(*(rank[kind]["rollouts"] for rank in ranks), strict=True))
    if kind == "normalized":
        assert any(one["mask"].sum() != two["mask"].sum() for one, two in pairs)
    monkeypatch.setattr(trainer.collector, "collect", (joint(*pair) for pair in pairs).__next__)
    for _ in pairs:
        trainer.update()
    learned = parameters_of(trainer.loss)
    assert all((learned[name] != parameter).any() for name, parameter in initial.items())
    assert_equal(ranks[0][kind]["parameters"], learned, rtol=1e-5, atol=1e-5)
    assert_equal(ranks[0][kind]["buffers"], dict(trainer.loss.named_buffers()), rtol=1e-5, atol=1e-5)


def test_two_processes_learn_to_balance_the_pole(ranks):
    returns = ranks[0]["learning"]
    assert returns == ranks[1]["learning"], "both processes log the episodes of both"
    assert returns[0] < 40
    assert returns[-1] > 100


def test_the_first_process_alone_writes_the_shared_files(runs, ranks):
    names = [{Path(path).name for path in rank["written"]} for rank in ranks]
    assert "progress.csv" in names[0]
    assert {name.split(".")[1] for name in names[1]} == {"rank_1"}, "the second process writes only its part of the checkpoints"
    assert load_progress(runs / "torch")["updates"] == [3, 6, 9, 12]


@pytest.mark.parametrize("wrapped", ["data_parallel", "fully_sharded"])
def test_data_parallel_and_fully_sharded_losses_learn_what_one_process_learns(ranks, wrapped):
    loss = small_loss(across_processes=False)
    initial = {name: parameter.clone() for name, parameter in parameters_of(loss).items()}
    learn(loss, random_rollouts(slice(None)))
    assert all((parameters_of(loss)[name] != parameter).any() for name, parameter in initial.items())
    for rank in ranks:
        assert_equal(rank[wrapped], parameters_of(loss), rtol=1e-5, atol=1e-5)


def test_the_others_wait_while_the_first_process_evaluates_the_policy(ranks):
    assert ranks[0]["evaluated"]["history"] == ranks[1]["evaluated"]["history"]
    assert set(ranks[0]["evaluated"]["told"]) == {0}
    assert ranks[1]["evaluated"]["told"] == []


# A change of the number of processes


NEW_EPISODES = (
    "the run goes on with new episodes (env: its state was not saved, since it cannot be restored or an episode had more than"
    " 100,000 steps, or was saved with another number of processes)"
)


def test_a_run_of_one_process_resumes_in_two(ranks):
    for rank in ranks:
        assert rank["resumed"] == {"steps": 2 * UPDATES * ENVS * STEPS, "warnings": [NEW_EPISODES]}


def test_a_run_of_two_processes_resumes_in_one(runs, tmp_path):
    folder = shutil.copytree(runs / "torch", tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=re.escape(NEW_EPISODES)):
        result = train(config(total_steps=2 * UPDATES * ENVS * STEPS), progress=False, folder=folder, resume=True)
    assert result.step.step_count == 2 * UPDATES
    assert [row["updates"] for row in result.history] == [15, 18, 21, 24]


def test_a_number_of_environments_that_processes_cannot_divide_is_refused(runs, ranks):
    for rank in ranks:
        assert rank["refused"] == (2, "a2c-compiled: num_envs: expected a multiple of the 2 processes, got 7\n")
    assert not (runs / "refused").exists()


def test_a_folder_that_only_one_process_sees_is_refused(runs, ranks):
    for i, rank in enumerate(ranks):
        expected = (
            f"out: expected a folder that all processes share, got {runs / f'seen_by_{i}'},"
            " where only some processes find a checkpoint"
        )
        assert rank["not_shared"] == expected
        assert rank["unequal"] == "lr: expected the same in all processes, got 0.001 in rank 0 and 0.002 in rank 1"


# Deaths


def assert_same_run(folder, expected):
    bit_for_bit(tensors(folder), tensors(expected))
    assert load_progress(folder)["updates"] == [3, 6, 9, 12]


def test_torchrun_restarts_dead_processes_once_from_the_last_checkpoint_and_a_second_death_ends_the_run(runs, tmp_path):
    folder = tmp_path / "run"
    (status,), output = torchrun("--standalone --nproc-per-node 2 --max-restarts 1", folder, 0, 7, 10)
    assert status != 0
    assert "failed (exitcode: 3) local_rank: 1" in output
    assert "a2c-compiled: another process has ended, so this process ends; the last checkpoint is kept" in output
    assert updates(folder) == 9
    assert load_progress(folder)["updates"] == [3, 6, 9]
    in_two_processes(folder, resume)
    assert_same_run(folder, runs / "torch")


def test_machines_that_count_restarts_differently_train_together_again(runs, tmp_path):
    """The first machine restarts its process because the second machine waits, and torchrun does not count that restart."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    options = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint {endpoint} --max-restarts 1"
    statuses, output = torchrun(options, tmp_path, 5, 7, machines=2)
    assert statuses == [0, 0], output
    assert_same_run(tmp_path, runs / "torch")


if __name__ == "__main__":
    out, *more = sys.argv[1:]
    sys.exit(dying(Path(out), *more))
