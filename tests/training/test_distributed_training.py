"""Training in two processes under torchrun: what they learn is what one learns from all environments; deaths and restarts.

Run by torchrun, this file is what each of the processes does.
"""

import contextlib
import functools
import io
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from kill_and_resume import tensors, updates

from a2c_compiled import A2CLoss, distributions, estimators
from a2c_compiled.cli import main
from a2c_compiled.networks.for_spaces import mlp
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training import TrainConfig, train
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.trainer import Trainer
from a2c_compiled.update import Rollout

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built in")

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


# Loops of one's own, over torch's wrappers


def own_loss(across_processes):
    torch.manual_seed(0)
    actor, critic = mlp(4, (8,), 2, 1.0), mlp(4, (8,), 1, 1.0)
    estimator = estimators.GAE(average_gae=True, across_processes=across_processes)
    return A2CLoss(actor, critic, distributions.Categorical(2), estimator)


def own_rollouts(of):
    """Three rollouts of the environments ``of``, a slice."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        observation, next_observation = torch.randn(2, STEPS, ENVS, 4, generator=generator)
        reward = torch.randn(STEPS, ENVS, generator=generator)
        action, done = torch.randint(2, (2, STEPS, ENVS), generator=generator)
        rollout = {"observation": observation, "action": action, "reward": reward, "next_observation": next_observation}
        yield {name: x[:, of] for name, x in {**rollout, "done": done.bool(), "terminated": done.bool()}.items()}


def learn(loss, rollouts):
    """Of ``loss``, or what wraps it."""
    optimizer = torch.optim.RMSprop(loss.parameters(), lr=1e-2)
    for rollout in rollouts:
        losses = loss(**rollout)
        (losses.loss_objective + losses.loss_critic + losses.loss_entropy).backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def data_parallel(rollouts):
    from torch.nn.parallel import DistributedDataParallel

    loss = own_loss(across_processes=True)
    learn(DistributedDataParallel(loss), rollouts)
    return parameters_of(loss)


def fully_sharded(rollouts):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    loss = own_loss(across_processes=True)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fully_shard(loss.actor_network, mesh=mesh)
    fully_shard(loss.critic_network, mesh=mesh)
    learn(loss, rollouts)
    assert any(parameter.to_local().numel() < parameter.numel() for parameter in loss.parameters())
    return {name: parameter.full_tensor() for name, parameter in parameters_of(loss).items()}


# What each process does


def rollouts_collected():
    """The list to which every rollout is added from now on, as it comes from the environments."""
    collected, original = [], RolloutCollector.collect

    def collect(self):
        rollout = original(self)
        collected.append(rollout._asdict())
        return rollout

    RolloutCollector.collect = collect
    return collected


def together(folder):
    """All that takes two processes that live; each leaves what it has seen in ``folder``."""
    rank = int(os.environ["RANK"])
    opened = []
    sys.addaudithook(lambda event, about: opened.append(about) if event == "open" else None)
    report, collected = {}, rollouts_collected()
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
    half = slice(rank * ENVS // 2, (rank + 1) * ENVS // 2)
    report["data_parallel"] = data_parallel(own_rollouts(half))
    report["fully_sharded"] = fully_sharded(own_rollouts(half))
    torch.save(report, folder / f"{rank}.pt")
    return 0


def dying(folder, when, seconds=0.0):
    """The command ``train``, of which the second process dies before an update, the first time that it is started.

    The first one is busy elsewhere for some ``seconds`` then, so that its machine hears of the death before it does.
    """
    original = Trainer.update

    def update(self):
        if (self.processes.restarts, self.updates) == (0, int(when)):
            if self.processes.rank == 1:
                os._exit(3)
            time.sleep(float(seconds))
        return original(self)

    Trainer.update = update
    options = ["--num-envs", str(ENVS), "--num-steps", str(STEPS), "--total-steps", str(UPDATES * ENVS * STEPS)]
    options += ["--solved-return", "inf", "--log-interval", "3", "--checkpoint-seconds", "0", "--hidden", "8"]
    return main(["train", "--out", str(folder), "--no-compile", "--device", "cpu", *options])


def torchrun(*arguments, restarts=0):
    """Two processes; their exit status, and what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return ended.returncode, ended.stdout + ended.stderr


def torchrun_on_two_machines(*arguments, restarts=0):
    """A process on each, both here; their exit statuses, and what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
    ]
    command += ["--rdzv-endpoint", endpoint, "--max-restarts", str(restarts), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    machines = [subprocess.Popen(command, env=environment, **out) for _ in range(2)]
    try:
        said = [machine.communicate(timeout=300)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return [machine.returncode for machine in machines], "".join(said)


# Two processes that live


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all their runs."""
    folder = tmp_path_factory.mktemp("runs")
    train(config(), progress=False, folder=folder / "alone")
    status, said = torchrun(__file__, "together", folder)
    assert status == 0, said
    return folder


@pytest.fixture(scope="module")
def ranks(runs):
    """What each of them has seen."""
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
    assert (first != second).any(-1).all(), "from environments of their own"


def joint(one, two):
    """Rollouts of each as one of all environments."""
    return Rollout(**{name: None if x is None else torch.cat((x, two[name]), 1) for name, x in one.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_they_learn_what_one_process_learns_from_the_environments_of_both(ranks, kind, monkeypatch):
    trainer = Trainer(config(**KINDS[kind]))
    begun = {name: parameter.clone() for name, parameter in parameters_of(trainer.loss).items()}
    pairs = list(zip(*(rank[kind]["rollouts"] for rank in ranks), strict=True))
    if kind == "normalized":
        assert any(one["mask"].sum() != two["mask"].sum() for one, two in pairs)
    monkeypatch.setattr(trainer.collector, "collect", (joint(*pair) for pair in pairs).__next__)
    for _ in pairs:
        trainer.update()
    learnt = parameters_of(trainer.loss)
    assert all((learnt[name] != parameter).any() for name, parameter in begun.items())
    assert_equal(ranks[0][kind]["parameters"], learnt, rtol=1e-5, atol=1e-5)
    assert_equal(ranks[0][kind]["buffers"], dict(trainer.loss.named_buffers()), rtol=1e-5, atol=1e-5)


def test_they_learn_to_balance_the_pole(ranks):
    returns = ranks[0]["learning"]
    assert returns == ranks[1]["learning"], "of the episodes of both"
    assert returns[0] < 40
    assert returns[-1] > 100


def test_one_process_writes_for_both(runs, ranks):
    names = [{Path(path).name for path in rank["written"]} for rank in ranks]
    assert "progress.csv" in names[0]
    assert {name.split(".")[1] for name in names[1]} == {"rank_1"}, "but its own part of the checkpoints"
    assert load_progress(runs / "torch")["updates"] == [3, 6, 9, 12]


@pytest.mark.parametrize("wrapped", ["data_parallel", "fully_sharded"])
def test_torchs_wrappers_learn_what_one_process_learns(ranks, wrapped):
    loss = own_loss(across_processes=False)
    begun = {name: parameter.clone() for name, parameter in parameters_of(loss).items()}
    learn(loss, own_rollouts(slice(None)))
    assert all((parameters_of(loss)[name] != parameter).any() for name, parameter in begun.items())
    for rank in ranks:
        assert_equal(rank[wrapped], parameters_of(loss), rtol=1e-5, atol=1e-5)


# Other numbers of processes


def test_a_run_of_one_process_goes_on_in_two(ranks):
    for rank in ranks:
        assert rank["resumed"]["steps"] == 2 * UPDATES * ENVS * STEPS
        (message,) = rank["resumed"]["warnings"]
        assert (
            message
            == "the run goes on with new episodes (env: its state was not saved, or was saved with another number of processes)"
        )


def test_a_run_of_two_processes_goes_on_in_one(runs, tmp_path):
    folder = shutil.copytree(runs / "torch", tmp_path / "run")
    with pytest.warns(
        RuntimeWarning,
        match="goes on with new episodes .env: its state was not saved, or was saved with another number of processes",
    ):
        result = train(config(total_steps=2 * UPDATES * ENVS * STEPS), progress=False, folder=folder, resume=True)
    assert result.step.step_count == 2 * UPDATES
    assert [row["updates"] for row in result.history] == [15, 18, 21, 24]


def test_environments_that_cannot_be_shared_out_are_refused(runs, ranks):
    for rank in ranks:
        assert rank["refused"] == (2, "a2c-compiled: num_envs: expected a multiple of the 2 processes, got 7\n")
    assert not any((runs / "refused").iterdir())


def test_a_folder_that_one_process_alone_sees_is_refused(runs, ranks):
    for i, rank in enumerate(ranks):
        expected = (
            f"out: expected a folder that all processes share, got {runs / f'seen_by_{i}'},"
            " where only some processes find a checkpoint"
        )
        assert rank["not_shared"] == expected


# Deaths


def test_a_process_that_dies_ends_the_run(tmp_path):
    status, said = torchrun(__file__, "dying", tmp_path, 7)
    assert status != 0
    assert "failed (exitcode: 3) local_rank: 1" in said
    assert "a2c-compiled: another process has ended, so this process ends; the last checkpoint is kept" in said
    assert updates(tmp_path) == 6
    assert load_progress(tmp_path)["updates"] == [3, 6]


def test_torchrun_starts_them_anew_and_they_go_on_from_the_last_checkpoint(runs, tmp_path):
    status, said = torchrun(__file__, "dying", tmp_path, 7, restarts=1)
    assert status == 0, said
    bit_for_bit(tensors(tmp_path), tensors(runs / "torch"))
    assert load_progress(tmp_path)["updates"] == [3, 6, 9, 12]


def test_machines_that_count_restarts_differently_meet_each_other_again(runs, tmp_path):
    """The machine of the process that lives starts it anew because the other one waits, which torchrun does not count."""
    statuses, said = torchrun_on_two_machines(__file__, "dying", tmp_path, 7, 5.0, restarts=1)
    assert statuses == [0, 0], said
    bit_for_bit(tensors(tmp_path), tensors(runs / "torch"))
    assert load_progress(tmp_path)["updates"] == [3, 6, 9, 12]


if __name__ == "__main__":
    what, out, *more = sys.argv[1:]
    sys.exit({"together": together, "dying": dying}[what](Path(out), *more))
