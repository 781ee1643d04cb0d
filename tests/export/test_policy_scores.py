"""Exported policies score an action as the loss does: the importance ratio of an unchanged policy is 1."""

import numpy as np
import pytest
import torch
from distribution_cases import CASES
from torch import nn

from a2c_compiled import A2CLoss, distributions, export
from a2c_compiled.export.checking.comparison import compared
from a2c_compiled.export.checking.reference_cases import Case
from a2c_compiled.export.on_device.runtime import Learner
from a2c_compiled.update import Rollout, TrainStep

FEATURES, ENVS = 3, 200
DISTRIBUTIONS = {
    **{str(case): case.distribution for case in CASES if str(case) not in ("MaskedCategorical", "MaskedOneHotCategorical")},
    "saturated": distributions.TanhNormal(2, [-1.0, 0.0], 3.0),
    "saturated Composite": distributions.Composite(distributions.Categorical(3), distributions.TanhNormal(2)),
    "many dimensions": distributions.Normal(21),
}


def make_loss(name, dtype=torch.float32):
    """A loss whose actor has large outputs, so that tanh saturates."""
    torch.manual_seed(0)
    distribution = DISTRIBUTIONS[name]
    actor, critic = nn.Linear(FEATURES, distribution.num_params).to(dtype), nn.Linear(FEATURES, 1).to(dtype)
    with torch.no_grad():
        actor.weight *= 8
    return A2CLoss(actor, critic, distribution, entropy_bonus=False, diagnostics=True)


def inputs_for(loss, dtype=torch.float32):
    observation = torch.randn(ENVS, FEATURES).to(dtype)
    return {"observation": observation, "noise": loss.distribution.noise(loss.actor_network(observation)).detach()}


def assert_ratio_of_one(loss, observation, action, log_prob):
    """``log_prob`` is what the loss computes for ``action``. The parameters may be rounded in another way than in eager mode."""
    observation, action, log_prob = (torch.as_tensor(x) for x in (observation, action, log_prob))
    advantage = torch.ones(log_prob.shape)
    with torch.no_grad():
        losses = loss(observation, action, advantage=advantage, value_target=advantage, sample_log_prob=log_prob)
    assert log_prob.dtype == torch.float32
    assert 0 <= losses.kl_approx < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_scripted_policy_scores_as_the_loss_does(name, dtype):
    loss = make_loss(name, dtype)
    policy = torch.jit.script(export.SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution))
    inputs = inputs_for(loss, dtype)
    output = policy(**inputs)
    assert_ratio_of_one(loss, inputs["observation"], output.action, output.log_prob)


def test_a_score_may_differ_as_far_as_its_action_is_rounded_in_another_way():
    """The error of the second score is 2 percent of the largest score."""
    expected = {"action": np.float32([[0.5], [0.99]]), "log_prob": np.float32([1.0, 10.0])}
    cases = {"case": Case({}, expected, {}, {}, {})}
    for action, log_prob, passed in (
        ([[0.5], [0.99]], [1.0, 10.2], False),  # the same action
        ([[0.5], [0.9900001]], [1.0, 10.2], True),
        ([[0.5], [0.9900001]], [1.2, 10.0], False),  # the error is that of the other action
        ([[0.5], [0.9900001]], [1.0, 15.0], False),  # the score before tanh
    ):
        answer = {"action": np.float32(action), "log_prob": np.float32(log_prob)}
        assert compared(cases, {"case": answer})["log_prob"].passed == passed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Beta", "TruncatedNormal", "saturated", "saturated Composite", "many dimensions"])
def test_an_exported_policy_scores_as_the_loss_does_in_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    loss = make_loss(name)
    inputs, path = inputs_for(loss), tmp_path / "policy.onnx"
    export.export_onnx(export.SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution), inputs, path, ("N",))
    report = export.verify(path)
    assert report.passed, str(report)
    named = {name: tensor.numpy() for name, tensor in inputs.items()}
    action, log_prob, _ = onnxruntime.InferenceSession(str(path)).run(None, named)
    assert_ratio_of_one(loss, inputs["observation"], action, log_prob)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saturated", "saturated Composite"])
def test_a_learner_scores_as_the_loss_does(name, tmp_path):
    pytest.importorskip("onnxruntime")
    loss = make_loss(name)
    observation, next_observation = torch.randn(2, 4, 5, FEATURES)
    with torch.no_grad():
        action = loss.distribution.sample(loss.actor_network(observation))
    done = torch.zeros(4, 5, dtype=torch.bool)
    rollout = Rollout(observation, action, torch.randn(4, 5), next_observation, done, done)
    export.export_train_step(TrainStep(loss, compile=False), rollout, tmp_path / "train_step.onnx")
    learner = Learner.load(tmp_path / "train_step.onnx", seed=0)
    observations = np.random.default_rng(0).standard_normal((ENVS, FEATURES), dtype=np.float32)
    for greedy in (False, True):
        output = learner.act(observations, greedy)
        assert_ratio_of_one(loss, observations, output.action, output.log_prob)


@pytest.mark.slow
def test_a_learner_does_not_read_masked_choices(tmp_path):
    pytest.importorskip("onnxruntime")
    loss = make_loss("MultiCategorical")
    observation, next_observation = torch.randn(2, 4, 5, FEATURES)
    with torch.no_grad():
        action = loss.distribution.sample(loss.actor_network(observation))
    done, mask = torch.zeros(4, 5, dtype=torch.bool), torch.rand(4, 5) < 0.7
    rollout = Rollout(observation, action, torch.randn(4, 5), next_observation, done, done, mask=mask)
    export.export_train_step(TrainStep(loss, compile=False), rollout, tmp_path / "train_step.onnx")
    arrays = {name: tensor.numpy() for name, tensor in rollout._asdict().items() if tensor is not None}
    expected = Learner.load(tmp_path / "train_step.onnx").step(arrays)
    for wrong in (-1, -100, 9):
        masked = np.where(arrays["mask"][..., None], arrays["action"], wrong)
        assert Learner.load(tmp_path / "train_step.onnx").step({**arrays, "action": masked}) == expected
        with pytest.raises(ValueError, match=rf"rollout\['action'\]: expected choices from 0 to .*, got {wrong} to {wrong}"):
            Learner.load(tmp_path / "train_step.onnx").step({**arrays, "action": masked, "mask": np.ones_like(arrays["mask"])})
