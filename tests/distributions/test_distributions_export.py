"""Every distribution where there is no torch: policies as ONNX and TorchScript, acting by runtime.py, and learning."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distribution_cases import CASES, Case
from torch import nn

pytest.importorskip("onnxruntime")
from a2c_compiled import A2CLoss, export
from a2c_compiled.distributions import Bernoulli, Composite, MultiCategorical, TanhNormal
from a2c_compiled.distributions.base import NOISE_KINDS, draw
from a2c_compiled.export.on_device.runtime import _DRAWN_BY, Learner, Policy
from a2c_compiled.update import Rollout, TrainStep

each = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_runtime_draws_the_same_noise(kind: str) -> None:
    torch.manual_seed(0)
    count, at = 200_000, torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    ours = draw(kind, torch.empty(count, dtype=torch.float64))
    its = torch.from_numpy(getattr(np.random.default_rng(0), _DRAWN_BY[kind])(size=count))
    # Quantiles of two samples: five standard errors, as fractions of the samples.
    below = torch.stack([(its < quantile).double().mean() for quantile in ours.quantile(at)])
    assert ((below - at).abs() < 5 * (2 * at * (1 - at) / count).sqrt()).all()


@each
@pytest.mark.parametrize("ending", [".onnx", ".pt"])
def test_policies_are_exported(case: Case, ending: str, tmp_path: Path) -> None:
    actor, critic = nn.Linear(3, case.distribution.num_params), nn.Linear(3, 1)
    observation = torch.randn(5, 3)
    noise = case.distribution.noise(actor(observation)).detach()
    greedy, sampled = export.GreedyPolicy(actor, case.distribution), export.SampledPolicy(actor, critic, case.distribution)
    paths = []
    for module, inputs in ((greedy, {"observation": observation}), (sampled, {"observation": observation, "noise": noise})):
        paths.append(tmp_path / f"{type(module).__name__}{ending}")
        {".onnx": export.export_onnx, ".pt": export.export_torchscript}[ending](module, inputs, paths[-1], ("N",))
        report = export.verify(paths[-1])
        assert report.passed, str(report)
    if ending == ".onnx":
        check_runtime(greedy, sampled, *paths)


def check_runtime(greedy: nn.Module, sampled: nn.Module, greedy_path: Path, sampled_path: Path) -> None:
    """Equal answers for other observations, and noise of the distribution's kind where none is given."""
    distribution, observation = sampled.distribution, torch.randn(400, 3)
    with torch.no_grad():
        params = sampled.actor_network(observation)
        noise = distribution.noise(params)
        expected, action = sampled(observation, noise), greedy(observation).action
    policy = Policy.load(sampled_path, seed=0)
    np.testing.assert_allclose(Policy.load(greedy_path).act(observation.numpy()), action, rtol=1e-5, atol=1e-5)
    for mine, its in zip(policy.act(observation.numpy(), noise.numpy()), expected, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4)
    if distribution.has_entropy:
        # Minus the mean log-probability of what it draws is the mean entropy; five standard errors of it.
        log_prob = policy.act(observation.repeat(10, 1).numpy()).log_prob
        entropy = distribution.entropy(params).mean().item()
        assert abs(log_prob.mean() + entropy) < 5 * log_prob.std() / math.sqrt(len(log_prob))


@pytest.fixture(scope="module")
def learner_path(tmp_path_factory: Any) -> Path:
    """A training step over choices, yes and no, and a vector whose entropy is estimated from samples."""
    torch.manual_seed(0)
    distribution = Composite(MultiCategorical([2, 3]), Bernoulli(1), TanhNormal(1))
    actor, critic = nn.Linear(3, distribution.num_params), nn.Linear(3, 1)
    loss = A2CLoss(actor, critic, distribution, value_estimator="gae")
    path = tmp_path_factory.mktemp("composite") / "train_step.onnx"
    export.export_train_step(TrainStep(loss, lr=0.01, compile=False), make_rollout(distribution, actor), path)
    return path


def make_rollout(distribution: Composite, actor: nn.Module, steps: int = 4, envs: int = 3) -> Rollout:
    observation, following = torch.randn(2, steps, envs, 3)
    ended = torch.zeros(steps, envs, dtype=torch.bool)
    action = distribution.sample(actor(observation))
    return Rollout(observation, action, torch.randn(steps, envs), following, ended, ended)


def test_a_composite_training_step_agrees_with_eager(learner_path: Path) -> None:
    report = export.verify(learner_path)
    assert report.passed, str(report)


def test_a_composite_learner_acts_and_learns_without_torch(learner_path: Path) -> None:
    learner = Learner.load(learner_path, seed=0)
    observation = np.random.default_rng(0).standard_normal((6, 5, 3), dtype=np.float32)
    output = learner.act(observation[0])
    assert output.action.shape == (5, 4)
    assert set(output.action[:, 1]) <= {0.0, 1.0, 2.0}
    before = learner.parameters
    action = np.stack([learner.act(row).action for row in observation])
    ended = np.zeros((6, 5), dtype=bool)
    reward = np.ones((6, 5), dtype=np.float32)
    rollout = {"observation": observation, "action": action, "reward": reward, "next_observation": observation}
    metrics = learner.step({**rollout, "done": ended, "terminated": ended})
    assert all(math.isfinite(value) for value in metrics.values())
    assert any(not np.array_equal(before[name], value) for name, value in learner.parameters.items())


def test_choices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    distribution = MultiCategorical([2, 3])
    actor = nn.Linear(3, distribution.num_params)
    loss = A2CLoss(actor, nn.Linear(3, 1), distribution, value_estimator="td0")
    rollout = make_rollout(distribution, actor)
    path = tmp_path / "train_step.onnx"
    export.export_train_step(TrainStep(loss, compile=False), rollout, path)
    learner = Learner.load(path)
    given = {name: getattr(rollout, name).numpy() for name in learner.rollout_entries}
    learner.step(given)
    for wrong in ([0, 3], [2, 0], [-1, 0]):
        given["action"][0, 0] = wrong
        with pytest.raises(ValueError, match=r"rollout\['action'\]: expected choices from 0 to 1 and 2"):
            learner.step(given)
