"""MaskablePPO of sb3-contrib, converted to our losses and policies, compared with its own code."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tolerances import assert_close

from a2c_compiled import TrainStep
from a2c_compiled.integrations.stable_baselines3 import from_sb3
from a2c_compiled.update import Rollout

pytest.importorskip("sb3_contrib")
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy, MaskableMultiInputActorCriticPolicy

VECTOR = spaces.Box(-2.0, 2.0, (3,))
ACTIONS = {
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(3),
}
OBSERVATIONS = {"vector": VECTOR, "Dict": spaces.Dict({"b": spaces.Discrete(3), "a": VECTOR})}
N = 16


def make_policy(actions, observations=VECTOR, **options):
    torch.manual_seed(0)
    policy_of = MaskableMultiInputActorCriticPolicy if isinstance(observations, spaces.Dict) else MaskableActorCriticPolicy
    policy = policy_of(observations, actions, lambda _: 1e-3, net_arch=[5], **options)
    with torch.no_grad():
        policy.action_net.weight.normal_()  # SB3's initial logits are close to 0
    return policy


def choice_sizes(actions):
    sizes = {"Discrete": lambda: [actions.n], "MultiDiscrete": lambda: actions.nvec, "MultiBinary": lambda: [2] * actions.n}
    return [int(size) for size in sizes[type(actions).__name__]()]


def make_data(actions, observations, rows=N):
    """Observations as arrays, masks that allow an option of each choice, and an allowed action for each row."""
    random = np.random.default_rng(0)
    observations.seed(0)
    samples = [observations.sample() for _ in range(rows)]
    stacked = (
        np.stack(samples)
        if isinstance(observations, spaces.Box)
        else {k: np.stack([x[k] for x in samples]) for k in observations}
    )
    allowed = [random.integers(size, size=rows) for size in choice_sizes(actions)]
    masks = [
        (random.random((rows, size)) < 0.5) | np.eye(size, dtype=bool)[chosen]
        for size, chosen in zip(choice_sizes(actions), allowed, strict=True)
    ]
    action = torch.from_numpy(np.stack(allowed, -1))
    return stacked, np.concatenate(masks, -1), action[:, 0] if isinstance(actions, spaces.Discrete) else action


def as_tensors(observation):
    if isinstance(observation, dict):
        return {key: torch.from_numpy(x) for key, x in observation.items()}
    return torch.from_numpy(observation)


def for_loss(observation, mask):
    parts = tuple(as_tensors(observation).values()) if isinstance(observation, dict) else (torch.from_numpy(observation),)
    return (*parts, torch.from_numpy(mask))


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("name", ACTIONS)
def test_scores_entropies_values_and_their_gradients_equal_those_of_the_model(name, kind):
    for options in ({}, {"share_features_extractor": False}):
        actions, observations = ACTIONS[name], OBSERVATIONS[kind]
        policy = make_policy(actions, observations, **options)
        observation, mask, action = make_data(actions, observations)
        loss = from_sb3(policy).loss
        inputs = for_loss(observation, mask)
        params = loss.actor_network(inputs)
        log_prob, entropy = loss.distribution.log_prob(params, action), loss.distribution.entropy(params)
        values = loss.critic_network(inputs)
        theirs = policy.evaluate_actions(as_tensors(observation), action, torch.from_numpy(mask))
        for what, ours, expected in zip(("values", "log_prob", "entropy"), (values, log_prob, entropy), theirs, strict=True):
            assert_close(ours, expected, torch.float32, what)
        parameters = dict(policy.named_parameters())
        ours, expected = (
            torch.autograd.grad(a.sum() + b.sum() + c.sum(), list(parameters.values()))
            for a, b, c in ((values, log_prob, entropy), theirs)
        )
        for key, gradient, other in zip(parameters, ours, expected, strict=True):
            assert_close(gradient, other, torch.float32, key)


@pytest.mark.parametrize("kind", OBSERVATIONS)
@pytest.mark.parametrize("name", ACTIONS)
def test_a_policy_acts_as_its_model_under_a_mask(name, kind):
    policy = make_policy(ACTIONS[name], OBSERVATIONS[kind])
    observation, mask, _ = make_data(ACTIONS[name], OBSERVATIONS[kind], 200)
    expected, _ = policy.predict(observation, deterministic=True, action_masks=mask)
    action = from_sb3(policy).policy((as_tensors(observation), torch.from_numpy(mask))).action
    np.testing.assert_array_equal(action, expected)
    assert action.numpy().dtype == expected.dtype
    assert (expected != policy.predict(observation, deterministic=True)[0]).any(), "a mask without effect would test nothing"


@pytest.mark.parametrize("name", ACTIONS)
def test_a_sampled_policy_draws_allowed_actions_as_often_as_its_model(name):
    actions = ACTIONS[name]
    policy = make_policy(actions)
    observation, mask, _ = make_data(actions, VECTOR, 1)
    observation, mask = observation.repeat(4000, 0), mask.repeat(4000, 0)
    sampled, loss = from_sb3(policy, sampled=True)
    inputs = for_loss(observation, mask)
    with torch.no_grad():
        outputs = sampled(inputs, loss.distribution.noise(loss.actor_network(inputs)))
        values, log_prob, _ = policy.evaluate_actions(inputs[0], outputs.action, inputs[1])
    assert_close(outputs.log_prob, log_prob, torch.float32, "log_prob")
    assert_close(outputs.state_value, values.squeeze(-1), torch.float32, "state_value")
    torch.manual_seed(0)
    theirs = policy.predict(observation, deterministic=False, action_masks=mask)[0].reshape(4000, -1)
    ours = outputs.action.numpy().reshape(4000, -1)
    for i, size in enumerate(choice_sizes(actions)):
        counts = [np.bincount(drawn[:, i], minlength=size) for drawn in (ours, theirs)]
        np.testing.assert_allclose(*counts, atol=200)  # more than four standard deviations of a difference


def test_a_model_trains_in_our_step():
    policy = make_policy(ACTIONS["MultiDiscrete"])
    loss = from_sb3(policy).loss
    observation, mask, action = make_data(ACTIONS["MultiDiscrete"], VECTOR, 12)
    shaped = tuple(x.unflatten(0, (4, 3)) for x in for_loss(observation, mask))
    flags = torch.zeros(4, 3, dtype=torch.bool)
    rollout = Rollout(shaped, action.unflatten(0, (4, 3)), torch.randn(4, 3), shaped, flags, flags)
    before = policy.action_net.weight.clone()
    metrics = TrainStep(loss, compile=False)(rollout)
    assert metrics.grad_norm.isfinite()
    assert not torch.equal(before, policy.action_net.weight)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".pt2"])
@pytest.mark.parametrize("sampled", [False, True])
def test_an_exported_policy_takes_the_mask_as_an_input(ending, sampled, tmp_path):
    export = pytest.importorskip("a2c_compiled.export")
    from a2c_compiled.export.on_device.runtime import Policy

    kind = "Dict" if sampled else "vector"
    model = make_policy(ACTIONS["MultiDiscrete"], OBSERVATIONS[kind])
    observation, mask, _ = make_data(ACTIONS["MultiDiscrete"], OBSERVATIONS[kind])
    policy, loss = from_sb3(model, sampled)
    inputs = {"observation": (as_tensors(observation), torch.from_numpy(mask))}
    if sampled:
        inputs["noise"] = loss.distribution.noise(loss.actor_network(for_loss(observation, mask)))
    export_to = {".onnx": export.export_onnx, ".pt": export.export_torchscript, ".pt2": export.export_pt2}[ending]
    path = export_to(policy, inputs, tmp_path / f"policy{ending}", dynamic_axes=("N",))
    report = export.verify(path)
    assert report.passed, str(report)
    if ending == ".onnx":
        result = Policy.load(path, seed=0).act((observation, mask))
        if sampled:
            allowed = np.split(mask, np.cumsum(choice_sizes(ACTIONS["MultiDiscrete"]))[:-1], -1)
            assert all(part[range(N), chosen].all() for part, chosen in zip(allowed, result.action.T, strict=True))
        else:
            expected = model.predict(observation, deterministic=True, action_masks=mask)[0]
            np.testing.assert_array_equal(result, expected)


def test_wrong_masks_and_models_are_refused_by_name():
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

    policy, loss = from_sb3(make_policy(ACTIONS["Discrete"]))
    observation = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="observation: expected a pair of an observation and its action mask, got"):
        policy(observation)
    with pytest.raises(ValueError, match=r"observation: expected \[2, 4\] for the action mask, got shape \[2, 5\]"):
        policy((observation, torch.ones(2, 5)))
    with pytest.raises(TypeError, match="observation: expected a tuple that ends with the action mask, got"):
        loss.actor_network(observation)
    env = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", 1)), 2)
    with pytest.raises(ValueError, match="expected no VecFrameStack around VecNormalize for a MaskablePPO, got one"):
        from_sb3(MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu"))

    class Own(MaskableActorCriticPolicy):
        def forward(self, obs, deterministic=False, action_masks=None):
            return super().forward(obs, deterministic, action_masks)

    own = Own(VECTOR, ACTIONS["Discrete"], lambda _: 1e-3)
    with pytest.raises(TypeError, match="methods of MaskableActorCriticPolicy, got Own with its own forward"):
        from_sb3(own)
