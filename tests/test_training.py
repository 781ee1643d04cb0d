"""Rollouts from environments, networks for their spaces, evaluation, the training loop, and what a run leaves behind."""

import csv
import dataclasses
import functools
import json
import math
import shutil
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, training
from a2c_compiled.training import Rollout, RolloutCollector, TrainConfig, train
from a2c_compiled.training.environments import make_environments, observation_tensor
from a2c_compiled.training.networks import distribution_for, make_networks, mlp
from a2c_compiled.training.evaluation import EVALUATION_SEED, evaluate, greedy_policy
from a2c_compiled.training.plots import plot_learning_curves
from a2c_compiled.training.runs import load_progress, load_run, load_step, save_run
from a2c_compiled.training.trainer import make_loss, seed_everything

STEPS, ENVS, LIMIT = 30, 3, 9


# Environments side by side


def native(**options):
    """CartPole's own vectorised version, which spends a step on the reset; episodes are cut after LIMIT steps."""
    return gymnasium.make_vec("CartPole-v1", ENVS, max_episode_steps=LIMIT, **options)


def side_by_side(mode, env_id="CartPole-v1", limit=LIMIT, **options):
    kwargs = {"autoreset_mode": mode, **options}
    return gymnasium.make_vec(env_id, ENVS, vectorization_mode="sync", vector_kwargs=kwargs, max_episode_steps=limit)


ENVIRONMENTS = {
    "native": native,
    "same_step": functools.partial(side_by_side, AutoresetMode.SAME_STEP),
    "next_step": functools.partial(side_by_side, AutoresetMode.NEXT_STEP),
}


@pytest.fixture
def open_envs():
    """Make environments that are closed after the test."""
    made = []

    def make(name, **options):
        made.append(ENVIRONMENTS[name](**options))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


def cartpole_loss(deterministic=False, **options):
    """Over small networks; the deterministic policy pushes to where the pole leans."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor, critic = mlp(4, (8,), 2, 1.0), mlp(4, (8,), 1, 1.0)
    if deterministic:
        actor = nn.Linear(4, 2, bias=False)
        nn.init.zeros_(actor.weight)
        actor.weight.data[1, 2:] = 1e6
    return A2CLoss(actor, critic, distributions.Categorical(2), **options)


def joined(rollouts):
    """Several rollouts as one, one after the other in time."""
    columns = zip(*rollouts, strict=True)
    return Rollout(*(None if column[0] is None else torch.cat(column) for column in columns))


# The collector


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_rollout_is_time_first_and_of_the_types_that_the_loss_takes(open_envs, name):
    rollout = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0).collect()
    kinds = {
        "observation": ((STEPS, ENVS, 4), torch.float32),
        "action": ((STEPS, ENVS), torch.int64),
        "reward": ((STEPS, ENVS), torch.float32),
        "next_observation": ((STEPS, ENVS, 4), torch.float32),
        "done": ((STEPS, ENVS), torch.bool),
        "terminated": ((STEPS, ENVS), torch.bool),
    }
    if name != "same_step":
        kinds["mask"] = ((STEPS, ENVS), torch.bool)
    assert {key: (tuple(x.shape), x.dtype) for key, x in rollout._asdict().items() if x is not None} == kinds
    losses = cartpole_loss()(**{key: x for key, x in rollout._asdict().items() if x is not None})
    assert all(value.isfinite() for value in losses if value is not None)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_each_step_begins_where_the_one_before_ended(open_envs, name):
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    rollout = joined([collector.collect(), collector.collect()])
    same = (rollout.next_observation[:-1] == rollout.observation[1:]).all(-1)
    if name == "same_step":
        assert torch.equal(same, ~rollout.done[:-1]), "the next episode's first observation follows its end"
    else:
        assert same.all(), "a step of its own leads from an episode's end to the next episode"
    assert rollout.done.sum() > 2 * ENVS


@pytest.mark.parametrize("name", ["native", "next_step"])
def test_the_mask_leaves_out_the_steps_spent_on_resets(open_envs, name):
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    rollout = joined([collector.collect() for _ in range(3)])
    assert rollout.mask[0].all()
    assert torch.equal(rollout.mask[1:], ~rollout.done[:-1]), "across the seams between rollouts too"
    resets = ~rollout.mask
    assert resets.sum() > ENVS
    assert not rollout.reward[resets].any()
    assert not rollout.done[resets].any()
    assert (rollout.next_observation[resets].abs() <= 0.05).all(), "where CartPole's episodes begin"


def replayed(seed, actions, limit=LIMIT):
    """The steps that one environment takes with ``actions``, reset when an episode ends."""
    env = gymnasium.make("CartPole-v1", max_episode_steps=limit)
    observation, _ = env.reset(seed=seed)
    steps = []
    for action in actions:
        next_observation, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, reward, next_observation, terminated or truncated, terminated))
        observation = env.reset()[0] if terminated or truncated else next_observation
    env.close()
    return [torch.as_tensor(np.stack(column)) for column in zip(*steps, strict=True)]


@pytest.mark.parametrize("name", ["same_step", "next_step"])
def test_what_counts_is_what_each_environment_does_alone(open_envs, name):
    rollout = RolloutCollector(open_envs(name), cartpole_loss(), 4 * STEPS, seed=5).collect()
    counted = torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask
    cut = rollout.done & ~rollout.terminated
    assert cut.any()
    for i in range(ENVS):
        mine = [column[:, i][counted[:, i]] for column in rollout[:6]]
        for field, actual, expected in zip(Rollout._fields, mine, replayed(5 + i, mine[1].numpy()), strict=False):
            assert torch.equal(actual, expected.to(actual.dtype)), field


def test_both_ways_of_resetting_give_the_same_episodes(open_envs):
    episodes = {}
    for name in ("same_step", "next_step"):
        loss = cartpole_loss(deterministic=True)
        rollout = RolloutCollector(open_envs(name, limit=40), loss, 200, seed=1).collect()
        mask = torch.ones_like(rollout.done) if rollout.mask is None else rollout.mask
        episodes[name] = [[column[:, i][mask[:, i]] for column in rollout[:6]] for i in range(ENVS)]
    for one, other in zip(*episodes.values(), strict=True):
        count = min(len(one[0]), len(other[0]))
        assert one[4][:count].sum() > 2
        for field, x, y in zip(Rollout._fields, one, other, strict=False):
            assert torch.equal(x[:count], y[:count]), field


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_truncated_episode_bootstraps_from_its_own_last_observation(open_envs, name):
    gamma = 0.9
    loss = cartpole_loss(value_estimator=estimators.TD0Estimator(gamma))
    rollout = RolloutCollector(open_envs(name, **({} if name == "native" else {"limit": 4})), loss, STEPS, seed=0).collect()
    cut = rollout.done & ~rollout.terminated
    assert cut.sum() >= ENVS
    following = torch.cat([rollout.observation[1:], rollout.observation[:1]])
    assert not rollout.terminated[cut].any()
    if name == "same_step":
        assert (rollout.next_observation[cut] != following[cut]).any(-1).all(), "not where the next episode begins"
    with torch.no_grad():
        values, next_values = (loss.critic_network(x).squeeze(-1) for x in (rollout.observation, rollout.next_observation))
        target = loss.value_estimator(values, next_values, rollout.reward, rollout.done, rollout.terminated).value_target
    torch.testing.assert_close(target[cut], 1.0 + gamma * next_values[cut])
    # Its pole has moved on by one step's velocity: CartPole's own dynamics, position + 0.02 velocity.
    moved = rollout.observation[cut][:, 0] + 0.02 * rollout.observation[cut][:, 1]
    torch.testing.assert_close(rollout.next_observation[cut][:, 0], moved)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_two_short_rollouts_are_one_long_one(open_envs, name):
    torch.manual_seed(0)
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS // 2, seed=0)
    first = collector.collect()
    returns = list(collector.returns)
    short = joined([first, collector.collect()])
    returns += collector.returns
    torch.manual_seed(0)
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    long = collector.collect()
    for field, x, y in zip(Rollout._fields, short, long, strict=True):
        assert (x is y is None) or torch.equal(x, y), field
    assert collector.returns == returns


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_returns_are_the_sums_of_rewards_of_the_episodes_that_ended(open_envs, name):
    collector = RolloutCollector(open_envs(name), cartpole_loss(), STEPS, seed=0)
    rollouts, recorded = [], []
    for _ in range(3):
        rollouts.append(collector.collect())
        recorded.append(list(collector.returns))
    running, expected = [0.0] * ENVS, []
    for rollout in rollouts:
        ended = []
        for t in range(STEPS):
            for i in range(ENVS):
                running[i] += float(rollout.reward[t, i])
                if rollout.done[t, i]:
                    ended.append(running[i])
                    running[i] = 0.0
        expected.append(ended)
    assert recorded == expected
    assert len(recorded[0]) >= ENVS
    assert max(map(max, recorded)) == LIMIT


def test_what_the_policy_and_critic_said_is_recorded_where_the_loss_needs_it(open_envs):
    for options, fields in (
        ({}, set()),
        ({"value_estimator": "VTrace"}, {"log_prob"}),
        ({"clip_value": 0.2}, {"state_value"}),
        ({"value_estimator": "VTrace", "clip_value": 0.2}, {"log_prob", "state_value"}),
    ):
        loss = cartpole_loss(**options)
        rollout = RolloutCollector(open_envs("same_step"), loss, STEPS, seed=0).collect()
        assert {name for name in ("log_prob", "state_value") if getattr(rollout, name) is not None} == fields
        with torch.no_grad():
            log_prob = loss.distribution.log_prob(loss.actor_network(rollout.observation), rollout.action)
            state_value = loss.critic_network(rollout.observation).squeeze(-1)
        if "log_prob" in fields:
            torch.testing.assert_close(rollout.log_prob, log_prob)
        if "state_value" in fields:
            torch.testing.assert_close(rollout.state_value, state_value)
        assert not any(x.requires_grad for x in rollout if x is not None)


def test_actions_follow_the_policy(open_envs):
    loss = cartpole_loss(deterministic=True)
    rollout = RolloutCollector(open_envs("native"), loss, STEPS, seed=0).collect()
    assert torch.equal(rollout.action, loss.distribution.mode(loss.actor_network(rollout.observation)))
    assert 0 < rollout.action.float().mean() < 1


def test_environments_that_do_not_reset_themselves_are_refused():
    envs = side_by_side(AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match=r"expected autoreset mode SAME_STEP or NEXT_STEP, got .*DISABLED"):
        RolloutCollector(envs, cartpole_loss(), STEPS)
    envs.close()


def test_environments_may_write_into_what_they_returned(open_envs):
    torch.manual_seed(0)
    expected = RolloutCollector(open_envs("same_step"), cartpole_loss(), STEPS, seed=0).collect()
    torch.manual_seed(0)
    actual = RolloutCollector(open_envs("same_step", copy=False), cartpole_loss(), STEPS, seed=0).collect()
    assert torch.equal(actual.observation, expected.observation)
    assert torch.equal(actual.next_observation, expected.next_observation)


# Spaces


@pytest.mark.parametrize(
    ("given", "expected"),
    [("float64", torch.float32), ("float32", torch.float32), ("uint8", torch.uint8), ("int64", torch.int64)],
)
def test_observations_keep_their_type_but_float64(given, expected):
    observation = np.arange(6, dtype=given).reshape(2, 3)
    tensor = observation_tensor(observation)
    assert tensor.dtype == expected
    assert tensor.tolist() == observation.tolist()
    observation[0, 0] = 7
    assert tensor[0, 0] == 0


def box(low, high, shape, dtype=np.float32):
    return gymnasium.spaces.Box(np.full(shape, low, dtype), np.full(shape, high, dtype), dtype=dtype)


@pytest.mark.parametrize(
    ("space", "kind", "num_params"),
    [
        (gymnasium.spaces.Discrete(5), distributions.Categorical, 5),
        (box(-1.0, 1.0, (3,)), distributions.TanhNormal, 6),
        (box(-np.inf, np.inf, (3,)), distributions.Normal, 6),
        (box(0.0, np.inf, (2,)), distributions.Normal, 4),
    ],
    ids=str,
)
def test_the_distribution_fits_the_actions(space, kind, num_params):
    distribution = distribution_for(space)
    assert type(distribution) is kind
    assert distribution.num_params == num_params
    action = distribution.sample(torch.zeros(100, num_params))
    assert space.contains(action[0].numpy() if action.dim() > 1 else int(action[0])) or kind is distributions.Normal


def test_bounded_actions_stay_within_each_dimensions_own_bounds():
    space = gymnasium.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([1.0, 5.0], np.float32))
    action = distribution_for(space).sample(3 * torch.randn(1000, 4))
    low, high = action.min(0).values, action.max(0).values
    assert (low >= torch.tensor([-2.0, 0.0])).all()
    assert (high <= torch.tensor([1.0, 5.0])).all()
    assert (high - low > torch.tensor([2.9, 4.9])).all()


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Discrete(3, start=1),
        box(-1.0, 1.0, (2, 2)),
    ],
    ids=str,
)
def test_actions_without_a_distribution_are_refused(space):
    with pytest.raises(ValueError, match="env: expected actions that are choices counted from 0 or vectors"):
        distribution_for(space)


class Spaces:
    """As much of environments as its networks depend on."""

    def __init__(self, observations, actions):
        self.observation_space, self.action_space = observations, actions


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_networks_fit_the_spaces(dtype):
    envs = Spaces(box(-np.inf, np.inf, (7,), dtype), box(-1.0, 1.0, (3,)))
    actor, critic, distribution = make_networks(envs, (16, 8))
    observation = observation_tensor(np.ones((5, 2, 7), dtype))
    assert actor(observation).shape == (5, 2, distribution.num_params) == (5, 2, 6)
    assert critic(observation).shape == (5, 2, 1)
    assert [layer.out_features for layer in actor if isinstance(layer, nn.Linear)] == [16, 8, 6]


@pytest.mark.parametrize(
    "space",
    [gymnasium.spaces.Discrete(4), box(0.0, 1.0, (2, 2)), box(0, 255, (8,), np.uint8), gymnasium.spaces.Dict({})],
    ids=["choice", "matrix", "bytes", "dict"],
)
def test_observations_without_a_network_are_refused(space):
    with pytest.raises(ValueError, match="env: expected observations that are vectors of float32 or float64"):
        make_networks(Spaces(space, gymnasium.spaces.Discrete(2)), (8,))


def test_layers_begin_orthogonal_and_the_policy_near_uniform():
    network = mlp(4, (32,), 3, 0.01)
    weight = network[0].weight.detach()
    torch.testing.assert_close(weight.T @ weight, 2.0 * torch.eye(4))
    assert not network[0].bias.any()
    assert (network(torch.randn(100, 4)).softmax(-1) - 1 / 3).abs().max() < 0.05
    assert [type(layer) for layer in mlp(4, (), 3, 1.0)] == [nn.Linear], "no hidden layers are a linear map"


@pytest.mark.parametrize("env_id", ["Nothing-v0", "not an id", "no_such_module:Nothing-v0"])
def test_an_unknown_environment_is_named(env_id):
    with pytest.raises(ValueError, match=f"env: expected an environment that gymnasium can make here, got '{env_id}'"):
        make_environments(env_id, 2)


def test_an_environment_may_come_with_the_module_that_registers_it(tmp_path, monkeypatch):
    (tmp_path / "my_environments.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('MyCartPole-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    envs = make_environments("my_environments:MyCartPole-v0", 2)
    assert (envs.num_envs, envs.spec.max_episode_steps) == (2, 7)
    envs.close()
    del sys.modules["my_environments"], gymnasium.registry["MyCartPole-v0"]


@pytest.mark.parametrize(
    ("env_id", "mode"), [("CartPole-v1", AutoresetMode.NEXT_STEP), ("Pendulum-v1", AutoresetMode.SAME_STEP)]
)
def test_environments_reset_themselves(env_id, mode):
    envs = make_environments(env_id, 3)
    assert (envs.num_envs, envs.metadata["autoreset_mode"]) == (3, mode)
    envs.close()


# Evaluation


def push(direction):
    return lambda observation: np.full(len(observation), direction)


def lean(observation):
    """Push where the pole leans: it stays up for a while."""
    return (observation[:, 2] > 0).astype(np.int64)


def test_evaluation_is_the_mean_of_first_episodes():
    returns = evaluate(push(0), "CartPole-v1", episodes=20)
    assert returns.shape == (20,)
    assert ((returns >= 8) & (returns <= 10)).all(), "pushing one way only ends an episode in 8 to 10 steps"
    assert (evaluate(lean, "CartPole-v1", episodes=5) > 20).all()


def test_evaluation_is_the_same_for_a_seed():
    assert np.array_equal(evaluate(lean, "CartPole-v1", 5), evaluate(lean, "CartPole-v1", 5, EVALUATION_SEED))
    assert not np.array_equal(evaluate(lean, "CartPole-v1", 5), evaluate(lean, "CartPole-v1", 5, EVALUATION_SEED + 1))


def test_evaluation_counts_the_first_episode_of_each_environment():
    envs = make_environments("CartPole-v1", 8)
    observation, _ = envs.reset(seed=1)
    lengths = np.zeros(8, dtype=int)
    for t in range(1, 501):
        observation, _, terminated, truncated, _ = envs.step(lean(observation))
        lengths[(lengths == 0) & (terminated | truncated)] = t
    envs.close()
    assert len(set(lengths.tolist())) > 2
    assert evaluate(lean, "CartPole-v1", episodes=8, seed=1).tolist() == lengths.tolist()


def test_evaluation_adds_up_rewards():
    longest = evaluate(lambda observation: np.zeros((len(observation), 1), np.float32), "Pendulum-v1", episodes=2)
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=EVALUATION_SEED)
    alone = sum(env.step(np.zeros(1, np.float32))[1] for _ in range(200))
    env.close()
    assert longest[0] == pytest.approx(alone)


def test_the_greedy_policy_takes_the_mode():
    loss = cartpole_loss()
    observation = np.random.default_rng(0).normal(size=(50, 4))
    action = greedy_policy(loss)(observation)
    expected = loss.actor_network(torch.from_numpy(observation).float()).argmax(-1)
    assert np.array_equal(action, expected.numpy())
    assert len(set(action.tolist())) == 2


# Training


def config(**changes):
    """A few updates that take a moment."""
    tiny = {"num_envs": 4, "num_steps": 5, "total_steps": 100, "hidden": (8,), "compile": False, "solved_return": None}
    return TrainConfig(**{**tiny, **changes})


@pytest.fixture(scope="module")
def trained():
    return train(config(), progress=False)


def parameters(result):
    return {name: parameter.detach() for name, parameter in result.loss.named_parameters()}


def test_training_is_the_same_for_a_seed(trained):
    again, other = train(config(), progress=False), train(config(seed=1), progress=False)
    for name, parameter in parameters(trained).items():
        assert torch.equal(parameters(again)[name], parameter), name
    assert any(not torch.equal(parameters(other)[name], parameter) for name, parameter in parameters(trained).items())
    for row, expected in zip(again.history, trained.history, strict=True):
        assert {**row, "seconds": 0} == pytest.approx({**expected, "seconds": 0}, nan_ok=True)
    assert again.greedy_return == trained.greedy_return


def test_training_changes_every_parameter(trained):
    seed_everything(0)
    for name, parameter in make_loss(config()).named_parameters():
        assert not torch.equal(parameters(trained)[name], parameter.detach()), name


def test_history_has_a_row_for_each_update(trained):
    columns = ["steps", "seconds", "return", "loss_objective", "loss_critic", "entropy", "loss_entropy", "grad_norm"]
    assert [list(row) for row in trained.history] == [columns] * 5
    assert [row["steps"] for row in trained.history] == [20, 40, 60, 80, 100]
    assert trained.steps == 100
    seconds = [row["seconds"] for row in trained.history]
    assert seconds == sorted(seconds)
    assert trained.seconds >= seconds[-1] > 0
    for row in trained.history:
        assert 0 < row["entropy"] <= math.log(2) + 1e-6
        assert row["loss_entropy"] == pytest.approx(-0.01 * row["entropy"])


def test_the_return_is_the_mean_of_the_last_hundred_episodes():
    result = train(config(total_steps=20 * 300), progress=False)
    assert math.isnan(result.history[0]["return"]), "no episode has ended yet"
    seed_everything(0)
    loss = make_loss(config())
    step = training.TrainStep(loss, "rmsprop", config().lr, 0.5, compile=False)
    envs = make_environments("CartPole-v1", 4)
    collector = RolloutCollector(envs, loss, 5, seed=0)
    returns = []
    for update in range(300):
        step.lr = config().lr * (1.0 - 0.9 * update / 300)
        step(collector.collect())
        returns += collector.returns
    envs.close()
    assert len(returns) > 100
    assert result.history[-1]["return"] == pytest.approx(sum(returns[-100:]) / 100)


def test_the_greedy_return_is_that_of_the_networks_returned(trained):
    assert trained.greedy_return == evaluate(greedy_policy(trained.loss), "CartPole-v1").mean()


def test_the_learning_rate_falls_to_a_tenth(trained):
    # The last of five updates is made with what 0.8 of the way leaves.
    assert float(trained.step.lr) == pytest.approx(config().lr * (1 - 0.9 * 4 / 5))


def test_training_stops_when_the_environment_is_solved():
    result = train(config(total_steps=100_000, solved_return=8.0), progress=False)
    assert result.steps == 200, "it is asked at every tenth update"
    assert result.greedy_return >= 8.0


def test_training_goes_on_while_the_greedy_policy_falls_short():
    result = train(config(total_steps=400, solved_return=501.0), progress=False)
    assert result.steps == 400


def test_total_steps_are_not_exceeded():
    assert train(config(total_steps=119), progress=False).steps == 100
    assert train(config(total_steps=1), progress=False).steps == 20, "at least one update"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Nothing-v0"}, "env: expected an environment that gymnasium can make here, got 'Nothing-v0'"),
        ({"optimizer": "lion"}, "optimizer: expected one of .*, got 'lion'"),
        ({"lr": -1.0}, "lr: expected a number from 0 up"),
        ({"gamma": 1.5}, "gamma: expected a number from 0 to 1"),
        ({"lmbda": -0.5}, "lmbda: expected a number from 0 to 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm: expected a positive number"),
        ({"num_envs": 0}, "num_envs: expected at least 1, got 0"),
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"total_steps": -5}, "total_steps: expected at least 1, got -5"),
        ({"hidden": (8, 0)}, r"hidden: expected widths of at least 1, got \(8, 0\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unfit_option_is_named(changes, message):
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


def test_continuous_actions_are_trained_within_their_bounds():
    result = train(config(env="Pendulum-v1"), progress=False)
    assert isinstance(result.loss.distribution, distributions.TanhNormal)
    assert -2000 < result.greedy_return < 0
    envs = make_environments("Pendulum-v1", ENVS)
    rollout = RolloutCollector(envs, result.loss, 250, seed=0).collect()
    envs.close()
    assert rollout.action.shape == (250, ENVS, 1)
    assert (rollout.action.abs() <= 2.0).all()
    assert rollout.action.abs().max() > 1.0
    assert rollout.done.nonzero()[:, 0].unique().tolist() == [199], "Pendulum's episodes are cut after 200 steps"
    assert not rollout.terminated.any()
    assert rollout.mask is None


def test_progress_is_shown_where_asked_for(capsys):
    train(config(total_steps=40), progress=False)
    assert capsys.readouterr().err == ""
    train(config(total_steps=40), progress=True)
    assert "seed 0" in capsys.readouterr().err


def test_what_training_offers_is_imported_when_asked_for():
    assert set(training.__all__) >= {"Rollout", "RolloutCollector", "TrainConfig", "TrainResult", "TrainStep", "train"}
    for name in training.__all__:
        assert getattr(training, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        training.trian  # noqa: B018


# Runs


@pytest.fixture
def run(trained, tmp_path):
    save_run(tmp_path / "run", config(), trained)
    return tmp_path / "run"


def test_a_run_is_loaded_as_it_was_saved(run, trained):
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "progress.csv",
    ]
    loaded_config, loss = load_run(run)
    assert loaded_config == config()
    loaded = dict(loss.named_parameters())
    assert loaded.keys() == parameters(trained).keys()
    for name, parameter in parameters(trained).items():
        assert torch.equal(loaded[name], parameter), name
    assert evaluate(greedy_policy(loss), "CartPole-v1").mean() == trained.greedy_return


def test_a_step_goes_on_where_training_left_it(run, trained):
    loaded_config, step = load_step(run)
    assert loaded_config == config()
    assert step.state_dict().keys() == trained.step.state_dict().keys()
    for name, tensor in trained.step.state_dict().items():
        assert torch.equal(step.state_dict()[name], tensor), name
    assert step.step_count > 0


@pytest.mark.parametrize(
    "spoil", [lambda file: file.unlink(), lambda file: file.write_text("no tensors")], ids=["missing", "text"]
)
def test_a_spoilt_optimizer_file_is_named(run, spoil):
    spoil(run / "optimizer.safetensors")
    load_run(run)
    with pytest.raises(ValueError, match=r"run: .*optimizer\.safetensors"):
        load_step(run)


def test_a_run_says_how_it_went(run, trained):
    progress = load_progress(run)
    assert list(progress) == list(trained.history[0])
    for name, column in progress.items():
        assert column == pytest.approx([row[name] for row in trained.history], nan_ok=True)
    with (run / "progress.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + len(trained.history)


def test_the_configuration_of_a_run_is_plain_json(run):
    fields = json.loads((run / "config.json").read_text())
    assert fields == {**dataclasses.asdict(config()), "hidden": [8]}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_of_a_run_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"run: expected a folder that training wrote, found no .*{name}"):
        load_run(run)


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"run: expected a folder that training wrote, found no .*none.config\.json"):
        load_run(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"hidden": [8], "unheard_of": 1}'),
        ("config.json", '{"env": "CartPole-v1"}'),
        ("config.json", '{"hidden": [8], "num_envs": 0}'),
        ("model.safetensors", ""),
        ("model.safetensors", "text, not tensors"),
    ],
)
def test_an_unreadable_file_of_a_run_is_an_error(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=r"run: .* is not readable"):
        load_run(run)


def test_weights_of_other_networks_are_refused(run):
    fields = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**fields, "hidden": [16]}))
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold the networks that config\.json describes"):
        load_run(run)


def test_a_truncated_file_of_weights_is_refused(run):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is not readable"):
        load_run(run)


def test_a_run_takes_the_place_of_an_older_one(run, trained):
    shutil.copy(run / "config.json", run / "model.safetensors")
    save_run(run, config(), trained)
    assert load_run(run)[0] == config()


# Pictures


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "without", [(), ("entropy",), ("loss_critic", "entropy")], ids=["all_columns", "no_entropy", "no_critic"]
)
@pytest.mark.parametrize("goal", [None, 475.0])
def test_learning_curves_are_drawn(tmp_path, without, goal):
    columns = {
        "return": [math.nan, 20.0, 30.0],
        "entropy": [0.6, 0.5, 0.4],
        "loss_critic": [9.0, 5.0, 2.0],
        "grad_norm": [1.0] * 3,
    }
    progress = {"steps": [10.0, 20.0, 30.0], **{name: column for name, column in columns.items() if name not in without}}
    path = tmp_path / "pictures" / "curves.png"
    plot_learning_curves({"seed 0": progress, "seed 1": progress}, path, "A2C", goal)
    assert is_png(path)
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


def test_what_is_zero_or_unknown_throughout_is_drawn_too(tmp_path):
    progress = {"steps": [10.0], "return": [math.nan], "entropy": [0.5], "loss_critic": [0.0], "grad_norm": [math.nan]}
    plot_learning_curves({"seed 0": progress}, tmp_path / "curves.png", "A2C")
    assert is_png(tmp_path / "curves.png")


def test_drawing_leaves_the_callers_backend_alone():
    matplotlib = pytest.importorskip("matplotlib")
    before = matplotlib.rcParams._get("backend")
    import importlib

    from a2c_compiled.training import plots

    importlib.reload(plots)
    assert matplotlib.rcParams._get("backend") == before


def test_an_interrupted_training_returns_what_was_learnt(monkeypatch):
    collect, calls = RolloutCollector.collect, []

    def third_time_interrupted(self):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return collect(self)

    monkeypatch.setattr(RolloutCollector, "collect", third_time_interrupted)
    result = train(TrainConfig(num_envs=4, num_steps=5, total_steps=200, hidden=(8,), compile=False), progress=False)
    assert result.interrupted
    assert result.steps == 40
    assert len(result.history) == 2
