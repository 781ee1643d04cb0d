"""The training loop, and the run that it leaves in a folder."""

import csv
import dataclasses
import importlib
import json
import math
import shutil
import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from a2c_compiled import TrainStep, distributions
from a2c_compiled.environments import make_environments, observation_tensor
from a2c_compiled.networks.for_spaces import distribution_for, mlp
from a2c_compiled.networks.observation_norm import ObservationNorm
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training import TrainConfig, train
from a2c_compiled.training.construction import compiles, make_loss, seed_everything
from a2c_compiled.training.evaluation import EVALUATION_SEED, evaluate, greedy_policy
from a2c_compiled.training.log import load_progress
from a2c_compiled.training.run_folder import load_run, load_step
from a2c_compiled.training.trainer import Trainer


def config(**changes):
    """A configuration of five small updates."""
    tiny = {"num_envs": 4, "num_steps": 5, "total_steps": 100, "hidden": (8,), "compile": False, "solved_return": math.inf}
    return TrainConfig(**{**tiny, "log_interval": 2, **changes})


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """The result of training, and the folder of the run."""
    folder = tmp_path_factory.mktemp("training") / "run"
    return train(config(), progress=False, folder=folder), folder


@pytest.fixture
def trained(trained_run):
    return trained_run[0]


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of the run, for tests that change it."""
    return shutil.copytree(trained_run[1], tmp_path / "run")


# The loop


def parameters(result):
    return {name: parameter.detach() for name, parameter in result.loss.named_parameters()}


def test_training_is_the_same_for_a_seed(trained):
    again, other = train(config(), progress=False), train(config(seed=1), progress=False)
    for name, parameter in parameters(trained).items():
        assert torch.equal(parameters(again)[name], parameter), name
    assert any(not torch.equal(parameters(other)[name], parameter) for name, parameter in parameters(trained).items())
    no_time = {"seconds": 0, "steps_per_second": 0}
    for row, expected in zip(again.history, trained.history, strict=True):
        assert {**row, **no_time} == pytest.approx({**expected, **no_time}, nan_ok=True)
    assert again.greedy_return == trained.greedy_return


def test_training_changes_every_parameter(trained):
    seed_everything(0)
    for name, parameter in make_loss(config()).named_parameters():
        assert not torch.equal(parameters(trained)[name], parameter.detach()), name


def test_history_has_a_row_each_log_interval_and_at_the_end(trained):
    columns = ["steps", "updates", "seconds", "steps_per_second", "return", "episode_length", "episodes"]
    columns += ["loss_objective", "loss_critic", "entropy", "loss_entropy", "grad_norm", "lr", "skipped"]
    greedy = ["greedy_return", "greedy_return_std", "greedy_episodes"]
    assert [list(row) for row in trained.history] == [columns, columns, columns + greedy]
    assert [row["updates"] for row in trained.history] == [2, 4, 5]
    assert [row["steps"] for row in trained.history] == [40, 80, 100]
    assert trained.steps == 100
    seconds = [0.0] + [row["seconds"] for row in trained.history]
    assert seconds == sorted(seconds)
    assert trained.seconds >= seconds[-1]
    for i, (row, steps) in enumerate(zip(trained.history, (40, 40, 20), strict=True)):
        assert row["steps_per_second"] == pytest.approx(steps / (seconds[i + 1] - seconds[i]))
        assert 0 < row["entropy"] <= math.log(2) + 1e-6
        assert row["loss_entropy"] == pytest.approx(-0.01 * row["entropy"])
        assert row["skipped"] == 0


def test_returns_are_means_of_the_last_hundred_episodes():
    result = train(config(total_steps=20 * 160, log_interval=80), progress=False)
    assert math.isnan(train(config(total_steps=20), progress=False).history[0]["return"]), "no episode has ended yet"
    seed_everything(0)
    loss = make_loss(config())
    step = TrainStep(loss, "rmsprop", config().lr, 0.5, compile=False)
    seed_everything(0)
    collector = RolloutCollector(make_environments("CartPole-v1", 4), loss, 5, seed=0)
    returns, lengths = [], []
    for update in range(160):
        step.lr = config().lr * (0.1 + 0.9 * (1.0 - update / 160))
        step(collector.collect())
        for column, ended in zip((returns, lengths), collector.episodes.take(), strict=True):
            column += ended
    assert len(returns) > 100
    assert returns == lengths, "CartPole's reward is 1 a step"
    for name in ("return", "episode_length"):
        assert result.history[-1][name] == pytest.approx(sum(returns[-100:]) / 100)
    assert [row["updates"] for row in result.history] == [80, 160]
    assert result.history[-1]["episodes"] == len(returns), "every episode is counted once"


def test_the_greedy_return_is_that_of_the_returned_networks(trained):
    returns = evaluate(greedy_policy(trained.loss), "CartPole-v1")
    assert trained.greedy_return == returns.mean()
    last = trained.history[-1]
    assert (last["greedy_return"], last["greedy_return_std"], last["greedy_episodes"]) == (returns.mean(), returns.std(), 100)


def test_every_evaluation_of_the_greedy_policy_is_in_the_log(tmp_path):
    result = train(config(solved_return=60.0, total_steps=400, log_interval=4), progress=False, folder=tmp_path)
    progress = load_progress(tmp_path)
    assert progress["steps"] == [row["steps"] for row in result.history]
    assert progress["greedy_episodes"] == [10.0] * 4 + [100.0], "the end of training evaluates in any case"
    for row, written in zip(result.history, progress["greedy_return"], strict=True):
        assert row.get("greedy_return", math.nan) == pytest.approx(written, nan_ok=True)


@pytest.mark.parametrize("final_lr", [0.1, 1.0, 0.0])
def test_the_learning_rate_falls_to_final_lr_of_its_start(final_lr):
    result = train(config(final_lr=final_lr), progress=False)
    # The last of five updates is made with what 0.8 of the way leaves.
    expected = config().lr * (1 - (1 - final_lr) * 4 / 5)
    assert float(result.step.lr) == pytest.approx(expected)
    assert result.history[-1]["lr"] == pytest.approx(expected)


def test_training_stops_when_the_environment_is_solved():
    result = train(config(total_steps=100_000, solved_return=8.0, log_interval=10), progress=False)
    assert result.steps == 200, "the greedy policy is evaluated when a log row is written"
    assert result.greedy_return >= 8.0


def test_training_goes_on_while_the_greedy_policy_falls_short(monkeypatch):
    """It must reach the goal in 100 episodes, which are played only if 10 episodes reached it."""
    asked, answers = [], iter([17.9, 18.1, 18.1, 17.9, 17.9])

    def fall_short(self, seed=0, episodes=100):
        asked.append(episodes)
        return next(answers)

    monkeypatch.setattr(Trainer, "greedy_return", fall_short)
    result = train(config(total_steps=600, solved_return=18.0, log_interval=10), progress=False)
    assert result.steps == 600
    assert asked == [10, 10, 100, 100, 100], "the end of training evaluates in any case"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="device: expected cpu, since torch finds no GPU here, got 'cuda'"):
        train(config(device="cuda"), progress=False)


def test_evaluations_of_the_greedy_policy_have_different_seeds(monkeypatch):
    starts = []

    def look(self, seed=EVALUATION_SEED, episodes=100):
        starts.append(set(range(seed, seed + episodes)))
        return 20.0

    monkeypatch.setattr(Trainer, "greedy_return", look)
    train(config(solved_return=18.0, log_interval=2), progress=False)
    assert [len(seeds) for seeds in starts] == [10, 100, 100, 100]
    assert len(set.union(*starts[:3])) == 210
    assert starts[-1] == starts[1], "the last evaluation has the seeds of every other run"


@pytest.mark.parametrize(("options", "expected"), [({}, False), ({"total_steps": 2_000_000}, True), ({"compile": True}, True)])
def test_short_runs_are_compiled_only_on_request(options, expected):
    assert compiles(TrainConfig(device="cpu", **options)) is expected


def test_total_steps_are_not_exceeded():
    assert train(config(total_steps=119), progress=False).steps == 100
    assert train(config(total_steps=1), progress=False).steps == 20, "at least one update"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Nothing-v0"}, "env: expected an environment that gymnasium can make here, got 'Nothing-v0'"),
        ({"optimizer": "lion"}, "optimizer: expected one of .*, got 'lion'"),
        ({"lr": -1.0}, "lr: expected a number of at least 0"),
        ({"gamma": 1.5}, "gamma: expected a number from 0 to 1"),
        ({"lmbda": -0.5}, "lmbda: expected a number from 0 to 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: expected a positive number"),
        ({"num_envs": 0}, "num_envs: expected at least 1, got 0"),
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"total_steps": -5}, "total_steps: expected at least 1, got -5"),
        ({"hidden": (8, 0)}, r"hidden: expected widths of at least 1, got \(8, 0\)"),
        ({"seed": -1}, "seed: expected a number from 0 to below 2 .. 32, got -1"),
        ({"solved_return": math.nan}, "solved_return: expected a number or none, got nan"),
        ({"device": "abacus"}, "device: expected auto or a torch device .*, got 'abacus'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_invalid_option_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        train(config(**changes), progress=False)


@pytest.mark.parametrize(
    "changes",
    [{"entropy_coef": 0.0}, {"critic_coef": 0.0}, {"average_gae": True}, {"optimizer": "adam"}, {"hidden": ()}],
    ids=lambda changes: next(iter(changes)),
)
def test_options_reach_the_loss_and_the_step(changes):
    result = train(config(**changes), progress=False)
    assert result.loss.value_estimator.average_gae is changes.get("average_gae", False)
    assert result.step.optimizer.name == changes.get("optimizer", "rmsprop")
    assert ("entropy" in result.history[0]) == ("entropy_coef" not in changes)
    assert (result.history[-1]["loss_critic"] == 0.0) == ("critic_coef" in changes)
    assert all(math.isfinite(row["grad_norm"]) for row in result.history)


def test_training_with_minibatches_equals_training_without(trained):
    pieces = train(config(minibatches=2), progress=False)
    for name, parameter in parameters(trained).items():
        torch.testing.assert_close(parameters(pieces)[name], parameter, rtol=1e-4, atol=1e-5, msg=name)
    with pytest.raises(ValueError, match="minibatches: expected a number that divides the 4 environments, got 3"):
        train(config(minibatches=3), progress=False)


def test_networks_may_run_in_half_precision(trained):
    half = train(config(autocast="bfloat16"), progress=False)
    assert half.step.autocast is torch.bfloat16
    differences = [(parameters(half)[name] - x).abs().max() for name, x in parameters(trained).items()]
    assert 0 < max(differences) < 0.1
    assert all(x.dtype == torch.float32 for x in parameters(half).values())


@pytest.mark.parametrize("vectorization", ["torch", "gymnasium", "sync"])
def test_observations_are_normalised_by_the_moments_of_all_observations(vectorization):
    trainer = Trainer(config(normalize_observations=True, vectorization=vectorization))
    norms = [module for module in trainer.loss.modules() if isinstance(module, ObservationNorm)]
    assert len(norms) == 1, "actor and critic share it"
    seen, rollouts = [], 0
    for _ in range(10):
        rollout, _ = trainer.update()
        seen.append(rollout.observation[torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask])
        rollouts += rollout.reward.numel()
    seen = torch.cat(seen).double()
    assert (len(seen) < rollouts) == (vectorization == "gymnasium"), "where a reset takes a step, it is left out"
    torch.testing.assert_close(norms[0].mean, seen.mean(0))
    torch.testing.assert_close(norms[0].var, seen.var(0, correction=0))
    trainer.collector.envs.close()


def test_rewards_are_divided_by_the_deviation_of_returns():
    trainers, rollouts = [], []
    for asked in (False, True):
        trainers.append(Trainer(config(env="Pendulum-v1", normalize_rewards=asked)))
        rollouts.append(trainers[-1].update()[0])
    rollout, other = rollouts
    running, returns = torch.zeros(4), []
    for reward in rollout.reward:
        running = reward + 0.99 * running
        returns.append(running)
    deviation = torch.stack(returns).std(correction=0)
    torch.testing.assert_close(other.reward, (rollout.reward / deviation).clamp(-10, 10), rtol=1e-4, atol=1e-5)
    plain, scaled = (trainer.collector.episodes.running for trainer in trainers)
    assert torch.equal(plain, scaled), "what is logged is not scaled"


def test_continuous_actions_are_trained_within_their_bounds():
    result = train(config(env="Pendulum-v1"), progress=False)
    assert isinstance(result.loss.distribution, distributions.Beta)
    assert -2000 < result.greedy_return < 0
    rollout = RolloutCollector(make_environments("Pendulum-v1", 3), result.loss, 250, seed=0).collect()
    assert rollout.action.shape == (250, 3, 1)
    assert (rollout.action.abs() <= 2.0).all()
    assert rollout.action.abs().max() > 1.0
    assert rollout.done.nonzero()[:, 0].unique().tolist() == [199], "Pendulum's episodes are cut after 200 steps"
    assert not rollout.terminated.any()
    assert rollout.mask is None


def test_progress_is_shown_on_request(capsys, tmp_path):
    train(config(total_steps=40), progress=False)
    assert capsys.readouterr().err == ""
    train(config(total_steps=40), progress=True, folder=tmp_path / "my_run")
    assert "my_run: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("training", {"TrainConfig", "TrainResult", "Trainer", "train"}),
        ("rollouts", {"RolloutCollector"}),
        (
            "environments",
            {"TensorEnvironments", "GymnasiumEnvironments", "CartPole", "Pendulum", "make_environments", "make_vector"},
        ),
        ("update", {"Rollout", "TrainMetrics", "TrainState", "TrainStep", "keep_freed_memory"}),
    ],
)
def test_packages_export_their_public_names(package, names):
    module = importlib.import_module(f"a2c_compiled.{package}")
    assert set(module.__all__) >= names
    assert all(getattr(module, name).__name__ == name for name in names)


# Networks and observations


@pytest.mark.parametrize(
    ("given", "expected"),
    [("float64", torch.float32), ("float32", torch.float32), ("uint8", torch.uint8), ("int64", torch.int64)],
)
def test_observations_keep_their_dtype_except_float64(given, expected):
    observation = np.arange(6, dtype=given).reshape(2, 3)
    tensor = observation_tensor(observation)
    assert tensor.dtype == expected
    assert tensor.tolist() == observation.tolist()
    observation[0, 0] = 7
    assert tensor[0, 0] == 0


def test_bounded_actions_stay_within_each_dimensions_own_bounds():
    space = gymnasium.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 5.0], np.float32))
    action = distribution_for(space).sample(3 * torch.randn(1000, 4))
    low, high = action.min(0).values, action.max(0).values
    assert (low >= torch.tensor([-2.0, 0.0])).all()
    assert (high <= torch.tensor([1.0, 5.0])).all()
    assert (high - low > torch.tensor([2.9, 4.9])).all()


def test_layers_are_initialised_orthogonal_and_the_policy_near_uniform():
    network = mlp(4, (32,), 3, 0.01)
    weight = network[0].weight.detach()
    torch.testing.assert_close(weight.T @ weight, 2.0 * torch.eye(4))
    assert not network[0].bias.any()
    assert (network(torch.randn(100, 4)).softmax(-1) - 1 / 3).abs().max() < 0.05
    assert [type(layer) for layer in mlp(4, (), 3, 1.0)] == [nn.Linear], "no hidden layers are a linear map"


# Runs


def test_a_run_is_loaded_as_it_was_saved(run, trained):
    names = {"config.json", "checkpoint.json", "checkpoints", "progress.csv", "run.lock"}
    assert {path.name for path in run.iterdir()} - {"tensorboard"} == names
    assert sorted(str(path.relative_to(run)) for path in run.glob("checkpoints/*/*")) == [
        "checkpoints/5/rank_0.safetensors",
        "checkpoints/5/training.safetensors",
    ]
    loaded_config, loss = load_run(run)
    assert loaded_config == config()
    loaded = dict(loss.named_parameters())
    assert loaded.keys() == parameters(trained).keys()
    for name, parameter in parameters(trained).items():
        assert torch.equal(loaded[name], parameter), name
    assert evaluate(greedy_policy(loss), "CartPole-v1").mean() == trained.greedy_return


def test_a_loaded_training_step_has_the_state_at_the_end_of_training(run, trained):
    loaded_config, step = load_step(run)
    assert loaded_config == config()
    assert step.state_dict().keys() == trained.step.state_dict().keys()
    for name, tensor in trained.step.state_dict().items():
        assert torch.equal(step.state_dict()[name], tensor), name
    assert step.step_count == 5


def test_the_progress_of_a_run_equals_its_history(run, trained):
    progress = load_progress(run)
    assert list(progress) == list(trained.history[-1]), "the last row has every column"
    for name, column in progress.items():
        assert column == pytest.approx([row.get(name, math.nan) for row in trained.history], nan_ok=True)
    with (run / "progress.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + len(trained.history)


def test_the_configuration_of_a_run_is_json(run):
    fields = json.loads((run / "config.json").read_text())
    assert {**fields, "hidden": (8,)} == dataclasses.asdict(config())


@pytest.mark.parametrize("name", ["config.json", "checkpoint.json"])
def test_a_missing_file_of_a_run_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"run: expected a folder that training wrote, found no .*{name}"):
        load_run(run)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"run: expected a folder that training wrote, found no .*none.config\.json"):
        load_run(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"hidden": [8], "unheard_of": 1}', '{"env": "CartPole-v1"}', '{"hidden": [8], "num_envs": 0}'],
)
def test_an_unreadable_configuration_is_an_error(run, content):
    (run / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"run: .*config\.json is not readable"):
        load_run(run)


def test_weights_of_other_networks_are_refused(run):
    fields = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**fields, "hidden": [16]}))
    with pytest.raises(ValueError, match=r"run: the checkpoint in .* does not match its config\.json"):
        load_run(run)


@pytest.mark.slow
def test_a_training_step_on_a_cpu_keeps_freed_memory_and_a_loss_does_not():
    code = """
        from a2c_compiled.training import TrainConfig
        from a2c_compiled.training.construction import make_loss, make_step
        from a2c_compiled.update import keep_freed_memory
        config = TrainConfig(device="cpu")
        loss = make_loss(config)
        assert keep_freed_memory.cache_info().currsize == 0
        make_step(config, loss, compile=False)
        assert keep_freed_memory.cache_info().currsize == 1
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
