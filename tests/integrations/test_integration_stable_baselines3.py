"""Stable-Baselines3: rollout buffers accelerated by our kernel, models converted to our losses and policies, compared with its own code."""

import copy
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize
from tolerances import assert_close
from torch import nn

from a2c_compiled import Rollout, TrainStep
from a2c_compiled.integrations.stable_baselines3 import accelerate, from_sb3, restore
from a2c_compiled.integrations.stable_baselines3.observations import preprocessing
from a2c_compiled.kernels import cpu_scan
from a2c_compiled.shared_trunk import trunk_length

BOX = spaces.Box(-1.0, 1.0, (3,))
ORIGINAL = RolloutBuffer.compute_returns_and_advantage
needs_kernel = pytest.mark.skipif(not cpu_scan.is_available(), reason="without the C++ kernels, everything is left to SB3")


@pytest.fixture(autouse=True)
def _original_method_restored():
    yield
    restore()
    assert RolloutBuffer.compute_returns_and_advantage is ORIGINAL


# Rollout buffers


def filled_buffer(num_envs=4, num_steps=9, gamma=0.99, gae_lambda=0.95, kind=RolloutBuffer):
    """A buffer of random steps, a third of which begin an episode, with the last values and flags."""
    observation_space = spaces.Dict({"x": BOX}) if kind is DictRolloutBuffer else BOX
    buffer = kind(num_steps, observation_space, BOX, "cpu", gae_lambda, gamma, num_envs)
    random = np.random.default_rng(0)
    for name in ("rewards", "values"):
        getattr(buffer, name)[:] = random.normal(size=(num_steps, num_envs))
    buffer.episode_starts[:] = random.random((num_steps, num_envs)) < 0.3
    return buffer, torch.randn(num_envs, 1), random.random(num_envs) < 0.5


def results(buffer, last_values, dones):
    buffer.compute_returns_and_advantage(last_values, dones)
    return torch.from_numpy(buffer.advantages), torch.from_numpy(buffer.returns)


def check_equal(case, served=True):
    expected = results(*copy.deepcopy(case))
    with accelerate() as acceleration:
        actual = results(*case)
    for ours, theirs, name in zip(actual, expected, ("advantages", "returns"), strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, torch.float32, name)
    assert acceleration.calls == served
    return acceleration


@needs_kernel
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 1.0), (1, 0)])
def test_advantages_and_returns_equal_sb3s(gamma, gae_lambda):
    for shape in ((8, 5), (1, 1), (3, 1), (1, 40), (33, 17)):
        acceleration = check_equal(filled_buffer(*shape, gamma, gae_lambda))
        assert acceleration.fallbacks == {}


@needs_kernel
def test_buffers_that_inherit_the_method_are_accelerated_and_those_that_override_it_are_not():
    class Adds(RolloutBuffer):
        def compute_returns_and_advantage(self, last_values, dones):
            super().compute_returns_and_advantage(last_values, dones)
            self.advantages += 1.0

    class Own(RolloutBuffer):
        def compute_returns_and_advantage(self, last_values, dones):
            self.advantages += 2.0

    check_equal(filled_buffer(kind=DictRolloutBuffer))
    check_equal(filled_buffer(kind=Adds))
    assert check_equal(filled_buffer(kind=Own), served=False).fallbacks == {}


@needs_kernel
def test_nan_in_an_episode_does_not_reach_the_episode_before_it():
    buffer, last_values, dones = filled_buffer()
    buffer.episode_starts[:] = 0.0
    buffer.episode_starts[4] = 1.0
    buffer.rewards[4:] = np.nan
    with accelerate():
        advantages, returns = results(buffer, last_values, dones)
    assert advantages[:4].isfinite().all()
    assert returns[:4].isfinite().all()
    assert advantages[4:].isnan().all()


def in_float64(case):
    case[0].values = case[0].values.astype(np.float64)


def in_columns(case):
    case[0].rewards = np.asfortranarray(case[0].rewards)


def with_arrays(case):
    case[0].gamma = np.full(4, 0.9, np.float32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (in_float64, "values: not a contiguous float32 array"),
        (in_columns, "rewards: not a contiguous float32 array"),
        (with_arrays, "gamma or gae_lambda is not a number"),
        (lambda case: case.__setitem__(1, case[1].double()), "last_values: not a float32 tensor"),
        (lambda case: case.__setitem__(1, case[1][:1]), "last_values: not a float32 tensor"),
        (lambda case: case.__setitem__(2, case[2].astype(np.float32)), "dones: not a bool array"),
    ],
)
@needs_kernel
def test_input_that_the_kernel_does_not_support_is_left_to_sb3_and_counted(change, reason):
    case = list(filled_buffer())
    change(case)
    acceleration = check_equal(case, served=False)
    ((counted, number),) = acceleration.fallbacks.items()
    assert counted.startswith(reason)
    assert number == 1


def test_without_the_cpp_kernels_everything_is_left_to_sb3(monkeypatch):
    monkeypatch.setattr(cpu_scan, "_extension", None)
    assert check_equal(filled_buffer(), served=False).fallbacks == {"the C++ kernels were not built": 1}


def is_accelerated():
    return RolloutBuffer.compute_returns_and_advantage is not ORIGINAL


def test_the_original_method_is_restored_when_every_block_has_ended():
    with accelerate():
        with accelerate(), pytest.raises(RuntimeError), accelerate():
            raise RuntimeError
        assert is_accelerated()
    assert not is_accelerated()


def test_restore_ends_every_accelerate():
    with accelerate():
        accelerate()
        restore()
        assert not is_accelerated()
        accelerate()
    assert is_accelerated(), "the block that was ended early does not end what came after it"
    restore()
    restore()
    assert not is_accelerated()


@needs_kernel
@pytest.mark.parametrize("algorithm", [A2C, PPO])
def test_learning_uses_the_kernel_and_gives_the_same_parameters(algorithm):
    def learned_parameters():
        model = algorithm("MlpPolicy", "CartPole-v1", n_steps=32, seed=0, device="cpu", **options)
        return torch.nn.utils.parameters_to_vector(model.learn(64).policy.parameters())

    options = {"batch_size": 32, "n_epochs": 1} if algorithm is PPO else {}
    expected = learned_parameters()
    with accelerate() as acceleration:
        assert_close(learned_parameters(), expected, torch.float32)
    assert (acceleration.calls, acceleration.fallbacks) == (2, {})


# Models


class Random(gym.Env):
    """Random observations, and rewards that depend on the action; episodes of ``length`` steps."""

    def __init__(self, observation_space, action_space, length=7):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == self.length, False, {}


def random_model(observation_space=BOX, action_space=BOX, algorithm=A2C, policy="MlpPolicy", num_envs=2, length=7, **options):
    """A model in a random environment, whose greedy actions differ from one observation to the next."""
    env = DummyVecEnv([lambda: Random(observation_space, action_space, length)] * num_envs)
    model = algorithm(policy, env, seed=0, device="cpu", **options)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100.0)
    return model


ACTIONS = {
    "Box": spaces.Box(np.float32([-0.5, -2.0]), np.float32([0.5, 1.0])),
    "Box of two axes": spaces.Box(-1.0, 1.0, (2, 2)),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 4, 3]),
    "MultiBinary": spaces.MultiBinary(3),
}
IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
OBSERVATIONS = {
    "image": IMAGE,
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(4),
    "integers": spaces.Box(-9, 9, (2, 2), np.int64),
}


def samples(space, count=64):
    space.seed(1)
    return np.stack([space.sample() for _ in range(count)])


def exported(policy, observation, folder):
    """Actions of the exported policy in onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    export = pytest.importorskip("a2c_compiled.export")
    inputs = {"observation": torch.from_numpy(observation[:3])}
    path = export.export_onnx(policy, inputs, folder / "policy.onnx", dynamic_axes=("N",))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    actions = session.run(["action"], {"observation": observation})[0]
    from a2c_compiled.export.on_device.runtime import Policy

    np.testing.assert_array_equal(Policy.load(path).act(observation), actions)
    return actions


def check_actions(actual, expected):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    else:
        np.testing.assert_array_equal(actual, expected)
    assert len(np.unique(expected, axis=0)) > 1, "equal actions for all observations would test nothing"


def check_policy(model, observation, folder=None, sb3_observation=None):
    """Compares the policy's actions with ``model.predict``: in eager mode, in TorchScript and, with a ``folder``, in ONNX.

    ``sb3_observation`` is the observation for ``predict`` where it differs from that of the policy.
    """
    policy = from_sb3(model).policy
    expected, _ = model.predict(observation if sb3_observation is None else sb3_observation, deterministic=True)
    with torch.no_grad():
        check_actions(policy(torch.from_numpy(observation)).action.numpy(), expected)
        check_actions(torch.jit.script(policy)(torch.from_numpy(observation)).action.numpy(), expected)
    if folder is not None:
        check_actions(exported(policy, observation, folder), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "algorithm"), [("CartPole-v1", A2C), ("Pendulum-v1", PPO)])
def test_an_exported_policy_acts_as_the_trained_model(env_id, algorithm, tmp_path):
    options = {"n_steps": 128} if algorithm is PPO else {}
    model = algorithm("MlpPolicy", env_id, seed=0, device="cpu", **options).learn(128)
    env, observations = gym.make(env_id), []
    observation, _ = env.reset(seed=1)
    for _ in range(300):
        observations.append(observation)
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    check_policy(model, np.stack(observations), tmp_path)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_policy_for_every_action_space_acts_as_its_model(name):
    check_policy(random_model(action_space=ACTIONS[name]), samples(BOX))


BOXES = {
    "float16": spaces.Box(-0.5, 0.5, (2,), np.float16),
    "float64": spaces.Box(-0.1, 0.3, (2,), np.float64),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_the_actions_of_a_policy_lie_in_a_box_of_any_dtype_and_bounds(name, sampled):
    model, observation = random_model(action_space=BOXES[name]), samples(BOX)
    policy, loss = from_sb3(model, sampled)
    noise = (loss.distribution.noise(loss.actor_network(torch.from_numpy(observation))),) if sampled else ()
    with torch.no_grad():
        action = policy(torch.from_numpy(observation), *noise).action.numpy()
    assert action.dtype == BOXES[name].dtype
    assert all(BOXES[name].contains(row) for row in action)
    if not sampled:
        expected, _ = model.predict(observation, deterministic=True)
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-3 if name == "float16" else 1e-5)


def test_a_box_of_integers_is_refused():
    model = random_model(action_space=spaces.Box(-5, 5, (2,), np.int32))
    with pytest.raises(
        ValueError, match=r"action_space: expected a Box of float16, .* so that its action space is a MultiDiscrete"
    ):
        from_sb3(model)


@pytest.mark.slow
@pytest.mark.parametrize(("observations", "actions"), list(zip(OBSERVATIONS, ACTIONS, strict=True)))
def test_an_exported_policy_for_every_space_acts_as_its_model(observations, actions, tmp_path):
    """Exports every observation space and every action space once."""
    space = OBSERVATIONS[observations]
    model = random_model(space, ACTIONS[actions], policy="CnnPolicy" if observations == "image" else "MlpPolicy")
    check_policy(model, samples(space, 16), tmp_path)


def test_images_may_have_their_channels_first():
    policy = from_sb3(random_model(IMAGE, policy="CnnPolicy")).policy
    image = torch.from_numpy(samples(IMAGE, 8))
    assert torch.equal(policy(image).action, policy(image.permute(0, 3, 1, 2)).action)


@pytest.mark.slow
def test_the_statistics_of_vec_normalize_are_part_of_the_policy(tmp_path):
    space = spaces.Box(-100.0, 300.0, (3,))
    env = VecNormalize(DummyVecEnv([lambda: Random(space, ACTIONS["Box"])]), clip_obs=1.5)
    model = A2C("MlpPolicy", env, seed=0, device="cpu").learn(100)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100.0)
    observation = samples(space)
    assert np.abs(env.normalize_obs(observation)).max() == 1.5, "some are clipped"
    check_policy(model, observation, tmp_path, sb3_observation=env.normalize_obs(observation))
    env.norm_obs = False
    check_policy(model, observation)


class Extractor(BaseFeaturesExtractor):
    """A user-defined extractor with dropout, which must be off when the policy acts."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 6)
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_user_defined_features_extractor_may_be_shared_or_separate(shared, tmp_path):
    options = {"features_extractor_class": Extractor, "share_features_extractor": shared, "net_arch": []}
    model = random_model(policy_kwargs=options)
    check_policy(model, samples(BOX), None if shared else tmp_path)
    loss = from_sb3(model).loss
    actor, critic = (set(network.parameters()) for network in (loss.actor_network, loss.critic_network))
    assert len(actor & critic) == (2 if shared else 0)
    assert trunk_length(loss.actor_network, loss.critic_network) == shared


# Losses


def one_update(action_space, policy_step=False, **options):
    """A model after one rollout of four steps and SB3's own update, which moves no parameter unless ``policy_step``."""
    options = {"n_steps": 4, "ent_coef": 0.02, "gae_lambda": 0.9, "max_grad_norm": 1e9, **options}
    model = random_model(action_space=action_space, num_envs=3, **options)
    before = copy.deepcopy(model.policy.state_dict())
    if not policy_step:
        model.policy.optimizer.step = lambda: None
    model.learn(12, log_interval=None)
    return model, before


def flat_actions(model):
    """The actions of the last rollout, flattened as in SB3's buffer, in the dtype of the space: SB3 2.7 keeps float32."""
    return torch.from_numpy(model.rollout_buffer.actions.astype(model.action_space.dtype))


def flat_rollout(model):
    """Observations and actions of the last rollout, flattened as in SB3's buffer."""
    actions = flat_actions(model)
    return torch.from_numpy(model.rollout_buffer.observations), actions.squeeze(-1) if isinstance(
        model.action_space, spaces.Discrete
    ) else actions


def rows(tensor):
    """``[T, N, ...]`` of three environments from SB3's flattened rows."""
    return tensor.unflatten(0, (3, 4)).transpose(0, 1)


def check_losses_and_gradients(model, losses):
    logged = model.logger.name_to_value
    theirs = [logged[f"train/{name}"] for name in ("policy_loss", "value_loss", "entropy_loss")]
    ours = [losses.loss_objective, losses.loss_critic / 0.5, losses.loss_entropy / 0.02]
    assert_close(torch.stack(ours), torch.tensor(theirs), torch.float32, "losses")
    named = dict(model.policy.named_parameters())
    total = losses.loss_objective + losses.loss_critic + losses.loss_entropy
    for name, gradient in zip(named, torch.autograd.grad(total, list(named.values())), strict=True):
        assert named[name].grad.abs().max() > 0
        assert_close(gradient, named[name].grad, torch.float32, name)


@pytest.mark.parametrize("name", ACTIONS)
def test_losses_and_gradients_equal_those_of_sb3s_update(name):
    model, _ = one_update(ACTIONS[name])
    buffer = model.rollout_buffer
    advantage, value_target = (torch.from_numpy(array).squeeze(-1) for array in (buffer.advantages, buffer.returns))
    check_losses_and_gradients(
        model, from_sb3(model).loss(*flat_rollout(model), advantage=advantage, value_target=value_target)
    )


def rollout_of(model):
    """The last rollout as ``[T, N, ...]``; its environment's episodes are longer than the rollout, so no step is done."""
    observation, action = map(rows, flat_rollout(model))
    reward = torch.from_numpy(model.rollout_buffer.rewards)  # the buffer does not flatten the rewards
    next_observation = torch.cat([observation[1:], torch.from_numpy(model._last_obs).unsqueeze(0)])
    done = torch.zeros_like(reward, dtype=torch.bool)
    return Rollout(observation, action, reward, next_observation, done, done)


@pytest.mark.slow
def test_advantages_that_the_loss_computes_equal_those_of_the_buffer():
    model, _ = one_update(ACTIONS["Box"], length=1000)
    loss, rollout = from_sb3(model).loss, rollout_of(model)
    check_losses_and_gradients(model, loss(*rollout[:6]))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    check_losses_and_gradients(model, compiled(*rollout[:6]))
    check_losses_and_gradients(model, torch.jit.script(loss)(*rollout[:6]))


def test_a_training_step_on_the_loss_trains_the_model():
    model, before = one_update(ACTIONS["Box"], policy_step=True, length=1000, max_grad_norm=0.5)
    expected = copy.deepcopy(model.policy.state_dict())
    model.policy.load_state_dict(before)
    step = TrainStep(from_sb3(model).loss, optimizer="rmsprop", lr=7e-4, max_grad_norm=0.5, compile=False)
    step(rollout_of(model))
    for name, parameter in model.policy.state_dict().items():
        assert not torch.equal(parameter, before[name]), name
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_the_training_step_of_a_model_exports(tmp_path):
    export = pytest.importorskip("a2c_compiled.export")
    model, _ = one_update(ACTIONS["Box"], length=1000)
    path = export.export_train_step(TrainStep(from_sb3(model).loss, compile=False), rollout_of(model), tmp_path / "step.onnx")
    assert export.verify(path).passed


def test_hyperparameters_come_from_the_model():
    loss = from_sb3(random_model(algorithm=PPO, n_steps=8, batch_size=8, gamma=0.9, ent_coef=0.03, vf_coef=0.7)).loss
    estimator = loss.value_estimator
    found = [float(value) for value in (estimator.gamma, estimator.lmbda, loss.entropy_coef, loss.critic_coef)]
    assert found == [0.9, 0.95, 0.03, 0.7]
    assert estimator.average_gae, "PPO normalises by default"
    alone = from_sb3(random_model().policy).loss
    assert (float(alone.value_estimator.lmbda), float(alone.critic_coef), alone.loss_critic_type) == (1.0, 0.5, "l2")


class Another(OnPolicyAlgorithm):
    """An algorithm of a user."""

    def __init__(self, policy, env, **options):
        kept = {"learning_rate": 0.1, "n_steps": 4, "max_grad_norm": 1.0, "use_sde": False, "sde_sample_freq": -1}
        super().__init__(policy, env, **kept, gamma=0.8, gae_lambda=0.7, ent_coef=0.2, vf_coef=0.3, **options)


def test_any_on_policy_algorithm_is_converted():
    model = random_model(algorithm=Another, policy=ActorCriticPolicy)
    check_policy(model, samples(BOX))
    loss = from_sb3(model).loss
    found = [
        float(value) for value in (loss.value_estimator.gamma, loss.value_estimator.lmbda, loss.entropy_coef, loss.critic_coef)
    ]
    assert found == pytest.approx([0.8, 0.7, 0.2, 0.3])


def test_a_model_that_was_loaded_without_its_vec_normalize_is_warned_about(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: Random(BOX, BOX)]))
    model = A2C("MlpPolicy", env, seed=0, device="cpu").learn(10)
    model.save(tmp_path / "model.zip")
    env.save(tmp_path / "statistics.pkl")
    inner = DummyVecEnv([lambda: Random(BOX, BOX)])
    for loaded in (A2C.load(tmp_path / "model.zip", device="cpu"), A2C.load(tmp_path / "model.zip", inner, device="cpu")):
        with pytest.warns(
            UserWarning, match="model: expected an environment with the VecNormalize of the training, got one without"
        ):
            from_sb3(loaded)
    loaded.set_env(VecNormalize.load(tmp_path / "statistics.pkl", inner))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_sb3(loaded)
        from_sb3(random_model())


# Errors


class Squared(ActorCriticPolicy):
    def predict_values(self, obs):
        return super().predict_values(obs) ** 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: random_model(use_sde=True, policy_kwargs={"squash_output": True}),
            ValueError,
            "model: expected squash_output=False",
        ),
        (
            lambda: preprocessing(spaces.Dict({"x": spaces.Text(3)}), True),
            ValueError,
            r"model: expected a Box, .* observation space, or a Dict of them, got Text",
        ),
        (lambda: random_model(policy=Squared), TypeError, "got Squared with its own predict_values"),
        (lambda: DQN("MlpPolicy", "CartPole-v1", device="cpu"), TypeError, "model: expected an on-policy .* got DQN"),
    ],
    ids=["squashed", "Text", "custom", "DQN"],
)
def test_a_model_that_is_not_supported_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        from_sb3(make())


def test_an_observation_of_another_shape_is_refused():
    loss = from_sb3(random_model()).loss
    for shape in ([5, 4], [2]):
        with pytest.raises(ValueError, match=r"observation: expected the last dimensions \[3\] of the model's space"):
            loss.actor_network(torch.zeros(shape))


# Wrappers


FRAME = spaces.Box(-100.0, 300.0, (3,))
WRAPPERS = {
    "frames over statistics": lambda env: VecFrameStack(VecNormalize(env, clip_obs=1.5), 3),
    "frames over statistics, monitored": lambda env: VecMonitor(VecFrameStack(VecMonitor(VecNormalize(env, clip_obs=1.5)), 3)),
    "statistics over frames": lambda env: VecNormalize(VecFrameStack(env, 3), clip_obs=1.5),
    "frames": lambda env: VecFrameStack(env, 3),
    "statistics of rewards only": lambda env: VecFrameStack(VecNormalize(env, norm_obs=False), 3),
}


class Recording(VecEnvWrapper):
    """Keeps the last observations of the environments, before any other wrapper."""

    def reset(self):
        self.last = self.venv.reset()
        return self.last

    def step_wait(self):
        self.last, *others = self.venv.step_wait()
        return self.last, *others


def wrapped_model(wrap):
    actions = spaces.Box(-100.0, 100.0, (2,))  # wide, so that no action is clipped
    recording = Recording(DummyVecEnv([lambda: Random(FRAME, actions, 5), lambda: Random(FRAME, actions, 7)]))
    model = A2C("MlpPolicy", wrap(recording), seed=0, device="cpu").learn(100)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(10.0)
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.training = False
    return model, recording


def steps_of(model, recording, count=16):
    """Raw observations, whether they are the first of an episode, and the model's actions."""
    env = model.get_env()
    observation, start = env.reset(), np.ones(2, dtype=bool)
    for _ in range(count):
        action, _ = model.predict(observation, deterministic=True)
        yield recording.last.copy(), start, action
        observation, _, start, _ = env.step(action)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_policy_acts_as_its_model_with_wrappers_in_any_order_from_the_first_steps_on(name):
    model, recording = wrapped_model(WRAPPERS[name])
    policy = from_sb3(model).policy
    stack = np.zeros((2, 9), np.float32)
    actions, expected_actions = [], []
    for frame, start, expected in steps_of(model, recording):
        stack[start] = 0.0
        with torch.no_grad():
            if name.startswith("frames over statistics"):
                action, hidden = policy(torch.from_numpy(frame), torch.from_numpy(stack))
                scripted = torch.jit.script(policy)(torch.from_numpy(frame), torch.from_numpy(stack))
                assert torch.equal(scripted.action, action)
                stack = hidden.numpy()
            else:
                stack = np.concatenate([stack[:, 3:], frame], -1)
                action = policy(torch.from_numpy(stack)).action
        actions.append(action.numpy())
        expected_actions.append(expected)
    check_actions(np.concatenate(actions), np.concatenate(expected_actions))


@pytest.mark.slow
def test_an_exported_policy_stacks_normalised_frames_in_the_runtime(tmp_path):
    export = pytest.importorskip("a2c_compiled.export")
    from a2c_compiled.export.on_device.runtime import Policy

    model, recording = wrapped_model(WRAPPERS["frames over statistics"])
    inputs = torch.zeros(2, 3), torch.zeros(2, 9)
    path = export.export_onnx(from_sb3(model).policy, inputs, tmp_path / "policy.onnx", ("N",))
    assert export.verify(path).passed
    policy = Policy.load(path)
    actions, expected_actions = [], []
    for frame, start, expected in steps_of(model, recording):
        policy.reset(start)
        actions.append(policy.act(frame))
        expected_actions.append(expected)
    check_actions(np.concatenate(actions), np.concatenate(expected_actions))


class Flipped(VecEnvWrapper):
    def __init__(self, venv):
        super().__init__(venv, observation_space=spaces.Box(-2.0, 2.0, venv.observation_space.shape))

    def reset(self):
        return -self.venv.reset()

    def step_wait(self):
        observation, *others = self.venv.step_wait()
        return -observation, *others


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda env: VecNormalize(VecNormalize(env)), "expected one VecNormalize that normalises observations, got two"),
        (lambda env: VecFrameStack(VecFrameStack(VecNormalize(env), 2), 2), "got VecFrameStack, VecFrameStack"),
        (lambda env: Flipped(VecNormalize(env)), r"around VecNormalize, got Flipped \(apply VecNormalize last\)"),
    ],
)
def test_wrappers_that_a_policy_cannot_repeat_are_refused_by_name(wrap, message):
    model = A2C("MlpPolicy", wrap(DummyVecEnv([lambda: Random(FRAME, ACTIONS["Box"])])), device="cpu")
    with pytest.raises(ValueError, match=message):
        from_sb3(model)


def test_a_whole_stack_is_refused_where_the_policy_stacks_frames():
    policy = from_sb3(wrapped_model(WRAPPERS["frames over statistics"])[0]).policy
    with pytest.raises(
        ValueError, match=r"observation: expected one frame \[N, \*\[3\]\] \(the policy stacks frames\), got \[2, 9\]"
    ):
        policy(torch.zeros(2, 9), torch.zeros(2, 9))


# Dict observations


DICT = spaces.Dict({"vector": FRAME, "image": IMAGE, "goal": spaces.Discrete(5), "flags": spaces.MultiBinary(2)})
VECTORS = spaces.Dict({"vector": FRAME, "goal": spaces.Discrete(5)})


def dict_samples(space, count=16):
    return {key: samples(part, count) for key, part in space.items()}


def as_tensors(observation):
    return {key: torch.from_numpy(array) for key, array in observation.items()}


def dict_model(space, wrap=lambda env: env, **options):
    """A model over Dict observations, with statistics of a few of them if ``wrap`` normalises."""
    env = wrap(DummyVecEnv([lambda: Random(space, ACTIONS["MultiDiscrete"], 1000)] * 3))
    model = A2C("MultiInputPolicy", env, seed=0, device="cpu", n_steps=4, ent_coef=0.02, max_grad_norm=1e9, **options)
    env.reset()
    for _ in range(20):
        env.step(np.stack([env.action_space.sample()] * 3))
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100.0)
    return model


@pytest.mark.parametrize("keys", [None, ["vector"]])
def test_a_policy_over_dicts_acts_as_its_model_whichever_entries_are_normalised(keys):
    model = dict_model(DICT, (lambda env: env) if keys is None else (lambda env: VecNormalize(env, norm_obs_keys=keys)))
    observation = dict_samples(DICT)
    normalize = model.get_vec_normalize_env()
    expected, _ = model.predict(observation if normalize is None else normalize.normalize_obs(observation), deterministic=True)
    policy = from_sb3(model).policy
    with torch.no_grad():
        check_actions(policy(as_tensors(observation)).action.numpy(), expected)
        channels_first = {**observation, "image": observation["image"].transpose(0, 3, 1, 2)}
        check_actions(policy(as_tensors(channels_first)).action.numpy(), expected)


@pytest.mark.slow
def test_an_exported_policy_over_dicts_acts_as_its_model_in_the_runtime(tmp_path):
    export = pytest.importorskip("a2c_compiled.export")
    from a2c_compiled.export.on_device.runtime import Policy

    model = dict_model(DICT, lambda env: VecNormalize(env, norm_obs_keys=["vector"]))
    observation = dict_samples(DICT)
    example = {key: tensor[:3] for key, tensor in as_tensors(observation).items()}
    path = export.export_onnx(from_sb3(model).policy, {"observation": example}, tmp_path / "policy.onnx", ("N",))
    assert export.verify(path).passed
    expected, _ = model.predict(model.get_vec_normalize_env().normalize_obs(observation), deterministic=True)
    policy = Policy.load(path)
    check_actions(policy.act(observation), expected)
    np.testing.assert_array_equal(policy.act({key: array[0] for key, array in observation.items()}), expected[0])
    sampled, loss = from_sb3(model, sampled=True)
    noise = torch.randn(16, loss.distribution.num_params)
    with torch.no_grad():
        action, log_prob, value = sampled(as_tensors(observation), noise)
        normalized = as_tensors(model.get_vec_normalize_env().normalize_obs(observation))
        normalized["image"] = normalized["image"].permute(0, 3, 1, 2)
        values, log_probs, _ = model.policy.evaluate_actions(normalized, action)
    torch.testing.assert_close(value, values.squeeze(-1))
    torch.testing.assert_close(log_prob, log_probs)


def dict_update(**options):
    """A model over Dict observations after one rollout, with the gradients of SB3's own update."""
    model = dict_model(VECTORS, **options)
    with torch.no_grad():
        model.policy.action_net.weight.div_(100.0)
    model.policy.optimizer.step = lambda: None
    return model.learn(12, log_interval=None)


def in_order(observation):
    """The entries as a tuple, without the dimension that a buffer adds to choices."""
    return tuple(torch.from_numpy(observation[key]).reshape(-1, *part.shape) for key, part in VECTORS.items())


def test_losses_and_gradients_over_dicts_equal_those_of_sb3s_update():
    model = dict_update()
    buffer = model.rollout_buffer
    action, advantage, value_target = flat_actions(model), *map(torch.from_numpy, (buffer.advantages, buffer.returns))
    loss = from_sb3(model).loss
    arguments = {"advantage": advantage.squeeze(-1), "value_target": value_target.squeeze(-1)}
    check_losses_and_gradients(model, loss(in_order(buffer.observations), action, **arguments))


@pytest.mark.slow
def test_the_training_step_of_a_model_over_dicts_exports_and_trains_as_eager_does(tmp_path):
    export = pytest.importorskip("a2c_compiled.export")
    from a2c_compiled.export.on_device.runtime import Learner

    model = dict_update()
    buffer = model.rollout_buffer
    observation = tuple(map(rows, in_order(buffer.observations)))
    last = in_order(model._last_obs)
    next_observation = tuple(torch.cat([part[1:], end.unsqueeze(0)]) for part, end in zip(observation, last, strict=True))
    reward = torch.from_numpy(buffer.rewards)
    done = torch.zeros_like(reward, dtype=torch.bool)
    rollout = Rollout(observation, rows(flat_actions(model)), reward, next_observation, done, done)
    step = TrainStep(from_sb3(model).loss, "sgd", 0.1, compile=False)
    path = export.export_train_step(step, rollout, tmp_path / "step.onnx")
    assert export.verify(path).passed
    learner = Learner.load(path)
    arrays = {
        name: tuple(part.numpy() for part in entry) if isinstance(entry, tuple) else entry.numpy()
        for name, entry in rollout._asdict().items()
        if entry is not None
    }
    learner.step(arrays)
    step(rollout)
    for name, parameter in step.loss.named_parameters():
        np.testing.assert_allclose(learner.parameters[name], parameter.detach(), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (tuple, TypeError, "observation: expected a mapping of goal, vector to tensors, got tuple"),
        (lambda x: {"goal": x["goal"]}, ValueError, "observation: expected the keys goal, vector, got goal"),
        (lambda x: {**x, "map": x["goal"]}, ValueError, "observation: expected the keys goal, vector, got goal, vector, map"),
        (
            lambda x: {**x, "vector": x["vector"][:, :2]},
            ValueError,
            r"expected a tuple of goal \[\*B, \*\[\]\], vector \[\*B, \*\[3\]\] .*, got shapes \[\[16\], \[16, 2\]\]",
        ),
    ],
)
def test_a_wrong_dict_is_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        from_sb3(dict_model(VECTORS)).policy(change(as_tensors(dict_samples(VECTORS))))


def test_stacked_dicts_over_statistics_are_refused_by_name():
    model = dict_model(spaces.Dict({"vector": FRAME}), lambda env: VecFrameStack(VecNormalize(env), 2))
    with pytest.raises(ValueError, match="expected no VecFrameStack around VecNormalize for a Dict observation space"):
        from_sb3(model)


# Sampled policies


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Box", "Discrete", "MultiDiscrete", "MultiBinary"])
def test_a_sampled_policy_draws_as_its_model_and_scores_its_actions(name, tmp_path):
    export = pytest.importorskip("a2c_compiled.export")
    from a2c_compiled.export.on_device.runtime import Policy

    model = random_model(action_space=ACTIONS[name])
    with torch.no_grad():
        model.policy.action_net.weight.div_(100.0)  # so that every action is drawn
    policy, loss = from_sb3(model, sampled=True)
    count = 8192
    observation = np.repeat(samples(BOX, 1), count, 0)
    tensor = torch.from_numpy(observation)
    noise = loss.distribution.noise(loss.actor_network(tensor))
    path = export.export_onnx(policy, (tensor[:3], noise[:3]), tmp_path / "policy.onnx", ("N",))
    assert export.verify(path).passed
    output = Policy.load(path, seed=0).act(observation)
    torch.manual_seed(0)
    expected, _ = model.predict(observation, deterministic=False)
    assert (output.action.dtype, output.action.shape) == (expected.dtype, expected.shape)
    # Means and squares agree within 6 standard errors, for each entry of an action, or for each choice.
    ours, theirs = (
        np.eye(4)[action] if name == "Discrete" else action.astype(np.float64) for action in (output.action, expected)
    )
    for power in (1, 2):
        error = 6 * np.sqrt(2 * (theirs**power).var(0) / count)
        assert (np.abs((ours**power).mean(0) - (theirs**power).mean(0)) <= error).all()
    within = output.action
    if name == "Box":
        kept = (within > ACTIONS[name].low).all(-1) & (within < ACTIONS[name].high).all(
            -1
        )  # a clipped action has another score
        assert 0 < kept.sum() < count
    else:
        kept = np.ones(count, bool)
    with torch.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(tensor[kept], torch.from_numpy(within[kept]))
    np.testing.assert_allclose(output.log_prob[kept], log_prob, atol=1e-4)
    np.testing.assert_allclose(output.state_value[kept], values.squeeze(-1), atol=1e-5)


EXPLORATIONS = {
    "one scale for each feature and action": {},
    "one scale for each feature": {"full_std": False},
    "expln, features without gradient": {"use_expln": True},
}


@pytest.mark.parametrize("name", EXPLORATIONS)
def test_a_model_with_state_dependent_exploration_acts_and_learns_as_it_does_itself(name, tmp_path):
    box, options = ACTIONS["Box"], {"use_sde": True, "policy_kwargs": {"net_arch": [6], **EXPLORATIONS[name]}}
    check_policy(random_model(action_space=box, **options), samples(BOX), None if EXPLORATIONS[name] else tmp_path)
    model, _ = one_update(box, **options)
    with torch.no_grad():  # both branches of expln
        model.policy.log_std.copy_(torch.linspace(-2.0, 1.0, model.policy.log_std.numel()).reshape_as(model.policy.log_std))
    model.policy.optimizer.zero_grad()
    model.train()
    advantage, value_target = (
        torch.from_numpy(array).squeeze(-1) for array in (model.rollout_buffer.advantages, model.rollout_buffer.returns)
    )
    check_losses_and_gradients(
        model, from_sb3(model).loss(*flat_rollout(model), advantage=advantage, value_target=value_target)
    )


def test_sampling_with_state_dependent_exploration_and_sampled_frames_are_refused_by_name():
    model = A2C("MlpPolicy", DummyVecEnv([lambda: Random(BOX, BOX)]), use_sde=True, device="cpu")
    with pytest.raises(ValueError, match=r"sampled: expected False for a model with use_sde=True, .*, got True"):
        from_sb3(model, sampled=True)
    with pytest.raises(
        ValueError, match="sampled: expected False for a model with a VecFrameStack around VecNormalize, got True"
    ):
        from_sb3(wrapped_model(WRAPPERS["frames over statistics"])[0], sampled=True)
