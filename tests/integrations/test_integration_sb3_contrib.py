"""Recurrent models of sb3-contrib, converted to our losses and policies, compared with its own code."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from tolerances import assert_close

from a2c_compiled.integrations.stable_baselines3 import from_sb3
from a2c_compiled.recurrent import hidden_size

sb3_contrib = pytest.importorskip("sb3_contrib")
N, WIDTH = 2, 6
SHAPES = {
    "critic with its own LSTM": {},
    "two layers": {"n_lstm_layers": 2},
    "shared LSTM": {"shared_lstm": True, "enable_critic_lstm": False},
    "critic without LSTM": {"enable_critic_lstm": False, "share_features_extractor": False},
}


def make_model(wrap=lambda env: env, env_id="Pendulum-v1", **options):
    from stable_baselines3.common.env_util import make_vec_env

    env = wrap(make_vec_env(env_id, N, seed=0))
    policy = {"lstm_hidden_size": WIDTH, "net_arch": [5], **options}
    model = sb3_contrib.RecurrentPPO(
        "MlpLstmPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu", policy_kwargs=policy
    )
    return model.learn(64)


def played(model, count=12):
    """Observations, whether they are the first of an episode, and the actions that the model predicts."""
    random = np.random.default_rng(0)
    state = None
    for t in range(count):
        observation = random.normal(size=(N, 3)).astype(np.float32)
        start = np.array([t == 0, t in (0, 5)])
        action, state = model.predict(observation, state, start, deterministic=True)
        yield observation, start, action


@pytest.mark.parametrize("name", SHAPES)
def test_a_recurrent_policy_acts_as_its_model(name):
    model = make_model(**SHAPES[name])
    policy, loss = from_sb3(model)
    hidden = torch.zeros(N, hidden_size(torch.nn.ModuleList([loss.actor_network, loss.critic_network])))
    for observation, start, expected in played(model):
        hidden[torch.from_numpy(start)] = 0.0
        with torch.no_grad():
            action, hidden = policy(torch.from_numpy(observation), hidden)
        np.testing.assert_allclose(action, expected, atol=1e-5)
    assert hidden.abs().max() > 0


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_scores_over_a_sequence_and_their_gradients_equal_those_of_the_model(name):
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    policy = make_model(**SHAPES[name]).policy
    loss = from_sb3(policy).loss
    steps = 5
    x, action = torch.randn(steps, N, 3), torch.randn(steps, N, 1)
    start = torch.zeros(steps, N, dtype=torch.bool)
    start[2, 1] = start[0] = True
    hidden = torch.zeros(steps, N, hidden_size(torch.nn.ModuleList([loss.actor_network, loss.critic_network])))
    observation = x, hidden, start
    log_prob = loss.distribution.log_prob(loss.actor_network(observation), action)
    values = loss.critic_network(observation).squeeze(-1)
    zeros = tuple(torch.zeros(policy.lstm_actor.num_layers, N, WIDTH) for _ in range(2))

    def rows(tensor):  # SB3 puts the steps of a sequence one after the other
        return tensor.transpose(0, 1).flatten(0, 1)

    theirs = policy.evaluate_actions(rows(x), rows(action), RNNStates(zeros, zeros), rows(start.float()))
    assert_close(rows(values), theirs[0].squeeze(-1), torch.float32, "values")
    assert_close(rows(log_prob), theirs[1], torch.float32, "log_prob")
    parameters = dict(policy.named_parameters())
    ours = torch.autograd.grad(values.sum() + log_prob.sum(), list(parameters.values()))
    expected = torch.autograd.grad(theirs[0].sum() + theirs[1].sum(), list(parameters.values()))
    for key, gradient, other in zip(parameters, ours, expected, strict=True):
        assert_close(gradient, other, torch.float32, key)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".pt2"])
def test_an_exported_recurrent_policy_acts_as_its_model(ending, tmp_path):
    export = pytest.importorskip("a2c_compiled.export")
    from a2c_compiled.export.on_device.runtime import Policy

    model = make_model(n_lstm_layers=2, wrap=VecNormalize)
    policy, loss = from_sb3(model)
    export_to = {".onnx": export.export_onnx, ".pt": export.export_torchscript, ".pt2": export.export_pt2}[ending]
    inputs = torch.randn(2, 3), torch.randn(2, hidden_size(loss.actor_network))
    path = export_to(policy, inputs, tmp_path / f"policy{ending}", dynamic_axes=("N",))
    assert export.verify(path).passed
    if ending == ".onnx":
        loaded, state = Policy.load(path), None
        for observation, start, _ in played(model):
            expected, state = model.predict(model.env.normalize_obs(observation), state, start, deterministic=True)
            loaded.reset(start)
            np.testing.assert_allclose(loaded.act(observation), expected, atol=1e-5)


def test_recurrent_models_that_are_not_supported_are_refused_by_name():
    with pytest.raises(ValueError, match=r"model: expected an LSTM with dropout=0\.0, got 0\.5"):
        from_sb3(make_model(n_lstm_layers=2, lstm_kwargs={"dropout": 0.5}))
    space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (3,))})
    policy = sb3_contrib.RecurrentPPO.policy_aliases["MultiInputLstmPolicy"](space, spaces.Discrete(2), lambda _: 1e-3)
    with pytest.raises(ValueError, match="expected an observation space of one tensor for a recurrent model, got Dict"):
        from_sb3(policy)
    with pytest.raises(ValueError, match="sampled: expected False for a recurrent model, got True"):
        from_sb3(make_model(), sampled=True)
    with pytest.raises(ValueError, match="model: expected no VecFrameStack around VecNormalize for a recurrent model, got one"):
        from_sb3(make_model(lambda env: VecFrameStack(VecNormalize(env), 2)))


def test_trpo_is_converted_with_a_critic_that_learns():
    model = sb3_contrib.TRPO(
        "MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, gamma=0.9, gae_lambda=0.8, seed=0, device="cpu"
    )
    model.learn(32)
    policy, loss = from_sb3(model)
    observation = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with torch.no_grad():
        action = policy(torch.from_numpy(observation)).action
    np.testing.assert_allclose(action, model.predict(observation, deterministic=True)[0], atol=1e-5)
    found = [
        float(value) for value in (loss.value_estimator.gamma, loss.value_estimator.lmbda, loss.entropy_coef, loss.critic_coef)
    ]
    assert found == pytest.approx([0.9, 0.8, 0.0, 0.5])
