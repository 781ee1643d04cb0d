"""Vectorised environments: gymnasium's, which resume exactly, and those written in torch."""

import functools
import os
import signal
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor

from a2c_compiled.environments import (
    CartPole,
    Environments,
    EnvironmentState,
    GymnasiumEnvironments,
    Pendulum,
    gymnasium_internals,
    make_environments,
    make_vector,
    observation_tensor,
)
from a2c_compiled.environments.replay import CannotResume, Replayable

BEFORE, AFTER = 70, 90


def some_actions(envs, steps, seed=0):
    """Random actions for ``envs``, one tensor a step."""
    generator = torch.Generator().manual_seed(seed)
    space, size = envs.action_space, (steps, envs.num_envs)
    if isinstance(space, spaces.Discrete):
        return list(torch.randint(int(space.n), size, generator=generator))
    return list(2 * torch.rand(*size, *space.shape, generator=generator) - 1)


def leaves(step):
    """All tensors of a step, or of an observation, in order."""
    if step is None or isinstance(step, Tensor):
        return [step]
    return [leaf for part in step for leaf in leaves(part)]


def same(mine, others):
    """Whether steps are the same, bit for bit."""
    pairs = zip(leaves(mine), leaves(others), strict=True)
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def opened():
    """Make environments that are closed after the test."""
    made = []

    def open_one(make, *args, **options):
        envs = make(*args, **options)
        envs = envs if isinstance(envs, Environments) else GymnasiumEnvironments(envs)
        made.append(envs)
        return envs

    yield open_one
    for envs in made:
        envs.close()


class TwoParts(gymnasium.Env):
    """An image and a vector; writes into what it returned before, and ends every few steps at random."""

    observation_space = spaces.Dict(
        {"picture": spaces.Box(0, 255, (4, 4, 2), np.uint8), "place": spaces.Box(-9.0, 9.0, (3,), np.float64)}
    )
    action_space = spaces.Discrete(3)

    def __init__(self):
        self.seen = {"picture": np.zeros((4, 4, 2), np.uint8), "place": np.zeros(3)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen["place"][:] = self.np_random.random(3)
        self.seen["picture"][:] = 0
        return self.seen, {}

    def step(self, action):
        self.seen["picture"][:] += np.uint8(action + 1)
        self.seen["place"][:] += self.draw()
        return self.seen, float(action), bool(self.np_random.random() < 0.3), False, {}

    def draw(self):
        return self.np_random.random(3)


class OwnChance(TwoParts):
    """Draws from a generator that is not ``np_random``, so that no seed resets it."""

    chance = np.random.default_rng(0)

    def draw(self):
        return self.chance.random(3)


class PairOfActions(TwoParts):
    """An environment whose actions are tuples."""

    action_space = spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))])

    def step(self, action):
        return super().step(action[0])


def two_parts(mode=AutoresetMode.SAME_STEP, kind=TwoParts, vector=SyncVectorEnv, n=3):
    return vector([lambda: Replayable(kind())] * n, autoreset_mode=mode)


# Resumed


RESUMED = {
    "cartpole": functools.partial(make_vector, "CartPole-v1", 3, "sync"),
    "cartpole_native": functools.partial(make_vector, "CartPole-v1", 3, "gymnasium"),
    "cartpole_frames": functools.partial(make_vector, "CartPole-v1", 3, frame_stack=3),
    "pendulum": functools.partial(make_vector, "Pendulum-v1", 3, "sync", max_episode_steps=40),
    "acrobot": functools.partial(make_vector, "Acrobot-v1", 3, "sync", max_episode_steps=40),
    "acrobot_async": functools.partial(make_vector, "Acrobot-v1", 2, "async", max_episode_steps=40),
    "lunar_lander": functools.partial(make_vector, "LunarLander-v3", 3),
    "mujoco": functools.partial(make_vector, "InvertedPendulum-v5", 3),
    "minatar": functools.partial(make_vector, "MinAtar/Breakout-v1", 3),
    "minatar_asterix": functools.partial(make_vector, "MinAtar/Asterix-v1", 3),
    "minatar_frames": functools.partial(make_vector, "MinAtar/Breakout-v1", 3, frame_stack=2),
    "two_parts": two_parts,
    "two_parts_next_step": functools.partial(two_parts, AutoresetMode.NEXT_STEP),
    "cartpole_torch": functools.partial(CartPole, 3),
    "pendulum_torch": functools.partial(Pendulum, 3),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("async" in name)) for name in RESUMED])
def test_resumed_environments_take_the_same_steps(opened, name):
    envs = opened(RESUMED[name])
    envs.reset(seed=7)
    actions = some_actions(envs, BEFORE + AFTER)
    for action in actions[:BEFORE]:
        seen = envs.step(action).observation
    state = envs.state_dict()
    expected = [envs.step(action) for action in actions[BEFORE:]]
    assert all(isinstance(value, Tensor) for value in state.values())

    resumed = opened(RESUMED[name])
    assert same(resumed.load_state_dict(state), seen)
    again = resumed.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    steps = [resumed.step(action) for action in actions[BEFORE:]]
    assert all(same(*both) for both in zip(steps, expected, strict=True))
    ends = sum(step.terminated.sum() + step.truncated.sum() for step in expected)
    assert ends >= 2 or name == "pendulum_torch", "steps after the end of an episode are compared too"


@pytest.mark.parametrize("steps", range(8))
def test_environments_resume_at_every_step_of_short_episodes(opened, steps):
    """Also directly after the last step, when the reset is still due."""
    make = functools.partial(make_vector, "CartPole-v1", 3, "gymnasium", max_episode_steps=3)
    for make_one in (make, functools.partial(two_parts, AutoresetMode.NEXT_STEP)):
        envs, resumed = opened(make_one), opened(make_one)
        envs.reset(seed=1)
        actions = some_actions(envs, steps + 20)
        for action in actions[:steps]:
            envs.step(action)
        resumed.load_state_dict(envs.state_dict())
        assert all(same(envs.step(action), resumed.step(action)) for action in actions[steps:])


def test_resumed_environments_are_resumed_again_after_a_reset_without_a_seed(opened):
    envs = opened(RESUMED["cartpole"])
    envs.reset(seed=3)
    for action in some_actions(envs, 5):
        envs.step(action)
    envs.reset()
    for _ in range(2):
        resumed = opened(RESUMED["cartpole"])
        resumed.load_state_dict(envs.state_dict())
        envs, before = resumed, envs
        assert all(same(before.step(action), envs.step(action)) for action in some_actions(envs, 30))


def test_an_action_tensor_may_be_overwritten_after_the_step(opened):
    envs, resumed = opened(RESUMED["pendulum"]), opened(RESUMED["pendulum"])
    envs.reset(seed=3)
    reused = torch.zeros(3, 1)
    for action in some_actions(envs, 10):
        step = envs.step(reused.copy_(action))
    assert same(resumed.load_state_dict(envs.state_dict()), step.observation)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SyncVectorEnv([TwoParts] * 2, autoreset_mode=AutoresetMode.SAME_STEP),
        lambda: RecordEpisodeStatistics(two_parts()),
        pytest.param(lambda: two_parts(AutoresetMode.NEXT_STEP, vector=AsyncVectorEnv, n=1), marks=pytest.mark.slow),
    ],
    ids=["not_replayable", "wrapped", "in_processes_next_step"],
)
def test_environments_with_other_state_cannot_be_resumed(opened, make):
    envs = opened(make)
    envs.reset(seed=0)
    with pytest.raises(CannotResume, match=r"env: expected environments that make_vector made .*cannot be resumed exactly"):
        envs.state_dict()
    envs.step(torch.zeros(envs.num_envs, dtype=torch.int64))


def test_actions_of_several_arrays_cannot_be_replayed():
    envs = GymnasiumEnvironments(two_parts(kind=PairOfActions))
    envs.reset(seed=0)
    envs.envs.step(envs.envs.action_space.sample())
    with pytest.raises(CannotResume, match="with actions of one array"):
        envs.state_dict()


def test_episodes_with_too_many_steps_are_not_resumed_until_they_end(opened, monkeypatch):
    monkeypatch.setattr("a2c_compiled.environments.replay.MAX_REPLAYED_STEPS", 10)
    envs, actions = opened(make_vector, "Pendulum-v1", 2, "sync", max_episode_steps=13), torch.zeros(2, 1)
    envs.reset(seed=0)
    for steps in range(1, 20):
        envs.step(actions)
        if 10 < steps < 13:
            with pytest.raises(CannotResume, match=r"^env: expected episodes of at most 10 steps, got a longer one"):
                envs.state_dict()
        else:
            assert envs.state_dict()["actions"].shape[0] == 2 * (steps % 13)


def test_randomness_that_does_not_come_from_np_random_is_an_error(opened):
    make = functools.partial(two_parts, kind=OwnChance)
    envs, resumed = opened(make), opened(make)
    envs.reset(seed=0)
    for action in some_actions(envs, 5):
        envs.step(action)
    with pytest.raises(CannotResume, match="env: expected the replay to end with the saved observation"):
        resumed.load_state_dict(envs.state_dict())
    resumed.reset()
    resumed.step(some_actions(envs, 1)[0])


def test_a_random_number_drawn_outside_of_a_step_is_an_error(opened):
    """Also if the observations do not show it."""
    envs, resumed = opened(two_parts), opened(two_parts)
    envs.reset(seed=0)
    envs.step(torch.zeros(3, dtype=torch.int64))
    envs.envs.envs[1].unwrapped.np_random.random()
    with pytest.raises(CannotResume, match="all randomness to come from np_random"):
        resumed.load_state_dict(envs.state_dict())


@pytest.mark.parametrize("others", [functools.partial(two_parts, n=2), functools.partial(CartPole, 3)], ids=["fewer", "torch"])
@pytest.mark.parametrize("name", ["two_parts", "cartpole_native"])
def test_the_state_of_other_environments_is_refused(opened, name, others):
    envs, others = opened(RESUMED[name]), opened(others)
    others.reset(seed=0)
    with pytest.raises(CannotResume, match="env: expected the saved state of 3 environments"):
        envs.load_state_dict(others.state_dict())


@pytest.mark.parametrize("name", ["cartpole", "cartpole_torch"])
def test_there_is_no_state_before_the_first_reset(opened, name):
    with pytest.raises(RuntimeError, match=r"expected reset\(\) before state_dict\(\)"):
        opened(RESUMED[name]).state_dict()


# Observations


@pytest.mark.parametrize("copies", [True, False])
def test_the_last_observation_of_an_episode_is_the_one_that_ended_it(opened, copies):
    """In each part of the observation, although the environment overwrites the arrays that it returned."""
    make = functools.partial(
        SyncVectorEnv, [lambda: Replayable(TwoParts())] * 3, copy=copies, autoreset_mode=AutoresetMode.SAME_STEP
    )
    envs = opened(make)
    picture, place = envs.reset(seed=0)
    assert (picture.dtype, place.dtype) == (torch.uint8, torch.float32)
    taken = torch.zeros(3, dtype=torch.int64)
    ends = 0
    for action in some_actions(envs, 60):
        step = envs.step(action)
        done = step.terminated | step.truncated
        taken = taken + action + 1
        last_picture, last_place = step.observation if step.final_observation is None else step.final_observation
        assert torch.equal(last_picture[:, 0, 0, 0].long(), taken % 256)
        assert (last_place > place).all()
        picture, place = step.observation
        taken = taken.masked_fill(done, 0)
        assert torch.equal(picture[:, 0, 0, 0].long(), taken % 256)
        assert (place[done] < 1).all()
        ends += done.sum()
    assert ends > 6


def test_frames_are_stacked_within_each_episode(opened):
    envs = opened(make_vector, "CartPole-v1", 2, frame_stack=3)
    before = envs.reset(seed=0)
    assert before.shape == (2, 3, 4)
    assert torch.equal(before[:, 0], before[:, 2])
    for action in some_actions(envs, 60):
        step = envs.step(action)
        done = step.terminated | step.truncated
        final = step.observation if step.final_observation is None else step.final_observation
        assert torch.equal(final[:, :2], before[:, 1:])
        before = step.observation
        assert torch.equal(before[done, 0], before[done, 2])
    assert tuple(envs.observation_space.shape) == (3, 4)


@pytest.mark.parametrize("game", ["Breakout", "Freeway", "SpaceInvaders"])
def test_minatar_observations_are_bool_images(opened, game):
    envs = opened(make_environments, f"MinAtar/{game}-v1", 2)
    again = opened(make_environments, f"MinAtar/{game}-v1", 2)
    observation = envs.reset(seed=4)
    assert observation.dtype == torch.bool
    assert observation.shape[:3] == (2, 10, 10)
    assert torch.equal(again.reset(seed=4), observation)
    assert all(same(envs.step(action), again.step(action)) for action in some_actions(envs, 30))


def test_a_dict_or_tuple_observation_becomes_a_tuple_of_tensors_in_its_order():
    batch = {"b": np.ones((2, 3)), "a": np.zeros(2, np.int64)}
    first, second = observation_tensor(batch)
    assert (first.dtype, second.dtype, tuple(second.shape)) == (torch.float32, torch.int64, (2,))
    batch["b"][:] = 5
    assert (first == 1).all()
    assert isinstance(observation_tensor((np.ones(2),)), tuple)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals as a terminal sends them")
@pytest.mark.slow
def test_processes_of_environments_ignore_ctrl_c(opened):
    before = signal.getsignal(signal.SIGINT)
    envs = opened(make_environments, "CartPole-v1", 2, "cpu", "async")
    envs.reset(seed=0)
    for process in envs.envs.processes:
        os.kill(process.pid, signal.SIGINT)
    assert envs.step(torch.zeros(2, dtype=torch.int64)).reward.tolist() == [1.0, 1.0]
    assert signal.getsignal(signal.SIGINT) is before


# By name


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("CartPole-v1", 2), CartPole),
        (("Pendulum-v1", 2, "cpu", "torch"), Pendulum),
        (("CartPole-v1", 2, "cpu", "auto", 2), SyncVectorEnv),
        (("Acrobot-v1", 2), SyncVectorEnv),
        pytest.param(("CartPole-v1", 1, "cpu", "async"), AsyncVectorEnv, marks=pytest.mark.slow),
        (("CartPole-v1", 2, "cpu", "gymnasium"), gymnasium.envs.classic_control.cartpole.CartPoleVectorEnv),
    ],
    ids=str,
)
def test_vectorization_chooses_the_class_of_the_environments(opened, arguments, kind):
    envs = opened(make_environments, *arguments)
    assert type(getattr(envs, "envs", envs)) is kind
    assert isinstance(envs, Environments)
    assert envs.num_envs == arguments[1]
    assert len(envs.reset(seed=0)) == arguments[1]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("Nowhere-v0", 2), {}, "env: expected an environment that gymnasium can make here, got 'Nowhere-v0'"),
        (("MinAtar/Chess-v1", 2), {}, "env: expected an environment that gymnasium can make here, got 'MinAtar/Chess-v1'"),
        (("CartPole-v1", 2), {"vectorization": "fast"}, "vectorization: expected one of 'auto', 'torch', .* got 'fast'"),
        (("Acrobot-v1", 2), {"vectorization": "torch"}, "vectorization: expected env to be one of CartPole-v1, Pendulum-v1"),
        (("Acrobot-v1", 2), {"vectorization": "gymnasium"}, "env: expected an environment that gymnasium can make here"),
        (("CartPole-v1", 2), {"frame_stack": 0}, "frame_stack: expected at least 1, got 0"),
        (
            ("CartPole-v1", 2),
            {"vectorization": "torch", "frame_stack": 2},
            "frame_stack: expected 1 with environments written in torch, got 2",
        ),
        (
            ("CartPole-v1", 2),
            {"vectorization": "gymnasium", "frame_stack": 2},
            "frame_stack: expected 1 with vectorization 'gymnasium'",
        ),
        (("CartPole-v1", 0), {}, "num_envs: expected at least 1, got 0"),
        (("Acrobot-v1", 0), {}, "num_envs: expected at least 1, got 0"),
    ],
)
def test_an_environment_that_cannot_be_made_is_an_error(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make_environments(*arguments, **options)


def test_an_environment_may_come_with_the_module_that_registers_it(opened, tmp_path, monkeypatch):
    (tmp_path / "longer_cartpole.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Longer-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv', max_episode_steps=700)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    envs = opened(make_environments, "longer_cartpole:Longer-v0", 2)
    assert envs.reset(seed=0).shape == (2, 4)
    assert envs.envs.envs[0].spec.max_episode_steps == 700
    gymnasium.registry.pop("Longer-v0")


# Written in torch


def gymnasium_environment(env_id):
    env = gymnasium.make(env_id).unwrapped
    env.reset()
    return env


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_cartpole_in_torch_moves_as_gymnasiums_cartpole(dtype, tolerance):
    envs, env = CartPole(8, dtype=dtype), gymnasium_environment("CartPole-v1")
    envs.reset(seed=0)
    physics = [row.double().numpy() for row in envs.state.physics]
    ends = 0
    for action in some_actions(envs, 60):
        step = envs.step(action)
        for i in range(8):
            env.state, env.steps_beyond_terminated = tuple(physics[i]), None
            seen, reward, terminated, _, _ = env.step(int(action[i]))
            torch.testing.assert_close(step.final_observation[i].double(), torch.tensor(env.state), rtol=0, atol=tolerance)
            np.testing.assert_allclose(step.final_observation[i].float().numpy(), seen, atol=tolerance, rtol=1e-6)
            assert (float(step.reward[i]), bool(step.terminated[i])) == (reward, terminated)
            physics[i] = np.array(env.state) if not terminated else envs.state.physics[i].double().numpy()
            ends += terminated
    assert ends > 8
    env.close()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_pendulum_in_torch_moves_as_gymnasiums_pendulum(dtype, tolerance):
    envs, env = Pendulum(8, dtype=dtype), gymnasium_environment("Pendulum-v1")
    envs.reset(seed=0)
    physics = [row.double().numpy() for row in envs.state.physics]
    for action in some_actions(envs, 60):
        step = envs.step(3 * action)  # larger than the maximum torque in some steps
        for i in range(8):
            env.state = physics[i]
            seen, reward, _, _, _ = env.step(3 * action[i].double().numpy())
            np.testing.assert_allclose(envs.state.physics[i].double().numpy(), env.state, rtol=0, atol=tolerance)
            np.testing.assert_allclose(step.observation[i].double().numpy(), seen, atol=max(tolerance, 1e-6), rtol=1e-6)
            np.testing.assert_allclose(float(step.reward[i]), reward, rtol=0, atol=tolerance)
            physics[i] = env.state if dtype == torch.float64 else envs.state.physics[i].double().numpy()
    env.close()


@pytest.mark.parametrize(("kind", "limit"), [(CartPole, 500), (Pendulum, 200)])
def test_episodes_in_torch_are_truncated_at_their_time_limit(kind, limit):
    assert gymnasium.spec(f"{kind.__name__}-v1").max_episode_steps == limit
    envs = kind(3)
    envs.reset(seed=0)
    envs.state = EnvironmentState(torch.zeros_like(envs.state.physics), torch.tensor([limit - 1, limit - 2, 0]))
    steps = [envs.step(action) for action in some_actions(envs, 3)]
    assert [step.truncated.tolist() for step in steps] == [[True, False, False], [False, True, False], [False] * 3]
    assert not any(step.terminated.any() for step in steps)
    assert envs.state.steps.tolist() == [2, 1, 3]
    same_as_seen = [(step.final_observation == step.observation).all(-1).tolist() for step in steps]
    assert same_as_seen == [[False, True, True], [True, False, True], [True] * 3]


def test_an_episode_that_terminates_at_its_time_limit_is_not_truncated():
    envs = CartPole(1)
    envs.reset(seed=0)
    envs.state = EnvironmentState(torch.tensor([[3.0, 0.0, 0.0, 0.0]]), torch.tensor([499]))
    step = envs.step(torch.tensor([1]))
    assert (step.terminated.item(), step.truncated.item(), envs.state.steps.item()) == (True, False, 0)
    assert (step.observation.abs() <= 0.05).all()
    assert step.final_observation[0, 0] == 3


@pytest.mark.parametrize(
    ("kind", "lowest", "highest"), [(CartPole, [-0.05] * 4, [0.05] * 4), (Pendulum, [-np.pi, -1], [np.pi, 1])]
)
def test_first_states_in_torch_fill_their_range(kind, lowest, highest):
    envs = kind(20_000, dtype=torch.float64)
    envs.reset(seed=0)
    low, high = envs.state.physics.min(0).values, envs.state.physics.max(0).values
    span = torch.tensor(highest).double() - torch.tensor(lowest)
    assert (low >= torch.tensor(lowest)).all()
    assert (high <= torch.tensor(highest)).all()
    assert (high - low > 0.999 * span).all()


@pytest.mark.parametrize("kind", [CartPole, Pendulum])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_environments_in_torch_follow_their_seed(kind, dtype):
    envs = kind(2, dtype=dtype)
    actions = some_actions(envs, 80)

    def lived(seed):
        return [envs.reset(seed=seed), *(envs.step(action) for action in actions)]

    first, again, other = lived(1), lived(1), lived(2)
    assert all(same(*both) for both in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(envs.reset(), envs.reset())
    assert {part.dtype for part in leaves(first[-1][:-1])} == {dtype, torch.bool}
    assert envs.observation_space.contains(first[0][0].float().numpy())


def test_a_step_in_torch_does_not_overwrite_earlier_observations():
    envs = CartPole(2)
    observation = envs.reset(seed=0)
    before = observation.clone()
    for action in some_actions(envs, 3):
        envs.step(action)
    assert torch.equal(observation, before)


def test_a_step_in_torch_before_the_first_reset_is_an_error():
    with pytest.raises(RuntimeError, match=r"expected reset\(\) before the first step\(\)"):
        CartPole(1).step(torch.zeros(1, dtype=torch.int64))


@pytest.mark.slow
def test_transitions_compile_as_one_graph():
    envs = CartPole(4)
    envs.reset(seed=0)
    transition = torch.compile(envs.transition, fullgraph=True)
    for action in some_actions(envs, 30):
        noise = envs.draw()
        state, step = transition(envs.state, action, noise)
        expected_state, expected = envs.transition(envs.state, action, noise)
        for mine, other in zip(leaves((state, step[:-1])), leaves((expected_state, expected[:-1])), strict=True):
            torch.testing.assert_close(mine, other)
        envs.state = expected_state


@pytest.mark.parametrize("vectorization", ["sync", "gymnasium"])
def test_a_gymnasium_version_with_other_private_names_is_not_resumed(vectorization, monkeypatch):
    envs = GymnasiumEnvironments(make_vector("CartPole-v1", 2, vectorization))
    envs.reset(seed=0)
    state = envs.state_dict()
    if vectorization == "sync":
        del envs.envs._autoreset_envs
    else:
        monkeypatch.setitem(gymnasium_internals._CARTPOLE, "steps", "elsewhere")
        with pytest.raises(CannotResume, match="elsewhere"):
            envs.state_dict()
    with pytest.raises(CannotResume, match=r"elsewhere|_autoreset_envs"):
        envs.load_state_dict(state)
