"""Every distribution in exported policies, in the runtime for devices without torch, and some in its learner."""

import math
from pathlib import Path
from typing import Dict, NamedTuple

import numpy as np
import pytest
import torch
from distribution_cases import CASES
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
from export_cases import (
    EXTREME_ACTORS,
    EXTREME_LOGITS,
    UNCOMPILED,
    Exported,
    assert_passes_verification,
    assert_same_outputs,
    export_as,
    grouped,
    named,
    one_operator_table,
)

from a2c_compiled import A2CLoss, export
from a2c_compiled.distributions import Bernoulli, Composite, MultiCategorical, TanhNormal
from a2c_compiled.distributions.base import NOISE_KINDS, draw
from a2c_compiled.export.on_device.runtime import _DRAWN_BY, Learner, Policy
from a2c_compiled.update import Rollout, TrainStep

__all__ = ["one_operator_table"]


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_the_runtime_draws_the_same_noise(kind: str) -> None:
    torch.manual_seed(0)
    count, levels = 200_000, torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    expected = draw(kind, torch.empty(count, dtype=torch.float64))
    drawn = torch.from_numpy(getattr(np.random.default_rng(0), _DRAWN_BY[kind])(size=count))
    # Compares quantiles of the two samples; five standard errors are allowed.
    below = torch.stack([(drawn < quantile).double().mean() for quantile in expected.quantile(levels)])
    assert ((below - levels).abs() < 5 * (2 * levels * (1 - levels) / count).sqrt()).all()


class Policies(NamedTuple):
    """The exported policies over a distribution."""

    greedy: Exported
    sampled: Exported


@pytest.fixture(scope="module", params=grouped("policies", CASES))
def policies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """Both policies over a distribution as ONNX and TorchScript, those over TanhNormal and over few choices also as ``.pt2``.

    The observations of the actors for extreme logits are logits.
    """
    torch.manual_seed(0)
    distribution, name = request.param.distribution, str(request.param)
    actor = EXTREME_ACTORS[name]() if name in EXTREME_ACTORS else nn.Linear(3, distribution.num_params)
    features = 4 if name in EXTREME_ACTORS else 3
    endings = UNCOMPILED if name in (*EXTREME_ACTORS, "TanhNormal") else (".onnx", ".pt")

    def exported(module: nn.Module, *names: str) -> Exported:
        def make_inputs(steps: int, envs: int, ends: str) -> Dict[str, Tensor]:
            observation = torch.randn(envs, features)
            inputs = {"observation": observation, "noise": distribution.noise(actor(observation)).detach()}
            return {name: inputs[name] for name in names}

        return export_as(endings, tmp_path_factory.mktemp("policy"), module, make_inputs, ("N",))

    sampled = export.SampledPolicy(actor, nn.Linear(features, 1), distribution)
    return Policies(
        exported(export.GreedyPolicy(actor, distribution), "observation"), exported(sampled, "observation", "noise")
    )


@pytest.mark.slow
def test_exported_policies_pass_verification(policies: Policies) -> None:
    assert_passes_verification(policies.greedy.files, ["action"])
    assert_passes_verification(policies.sampled.files, ["action", "log_prob", "state_value"])


@pytest.mark.slow
def test_exported_policies_run_for_any_number_of_environments(policies: Policies) -> None:
    for exported in policies:
        for envs in (1, 3, 200):
            exported.assert_equals_eager(exported.make_inputs(1, envs, "none"))
        inputs = exported.make_inputs(1, 0, "none")
        for ending, run in exported.runners.items():
            assert_same_outputs(run(inputs), named(exported.module(**inputs)), ending)


@pytest.mark.slow
def test_exported_policies_equal_eager_on_extreme_logits(policies: Policies) -> None:
    actor, distribution = policies.sampled.module.actor_network, policies.sampled.module.distribution
    if not isinstance(actor, tuple(EXTREME_ACTORS.values())):
        return
    observation = EXTREME_LOGITS.repeat(50, 1)
    noise = distribution.noise(actor(observation)).detach()
    # The critic's value of an infinite observation is not finite, and not compared.
    for exported, inputs in zip(
        policies, ({"observation": EXTREME_LOGITS}, {"observation": observation, "noise": noise}), strict=True
    ):
        expected = named(exported.module(**inputs))
        expected.pop("state_value", None)
        assert all(value.isfinite().all() for value in expected.values())
        for ending, outputs in exported.outputs(inputs).items():
            assert_same_outputs({name: outputs[name] for name in expected}, expected, ending)


@pytest.mark.slow
def test_the_runtime_acts_as_the_policies(policies: Policies) -> None:
    """With equal actions for new observations; noise that it draws itself is of the distribution's kind."""
    greedy, sampled = policies.greedy.module, policies.sampled.module
    distribution, inputs = sampled.distribution, policies.sampled.make_inputs(1, 400, "none")
    with torch.no_grad():
        params = sampled.actor_network(inputs["observation"])
        expected, action = sampled(**inputs), greedy(inputs["observation"]).action
    observation, noise = inputs["observation"].numpy(), inputs["noise"].numpy()
    policy = Policy.load(policies.sampled.files[".onnx"], seed=0)
    np.testing.assert_allclose(Policy.load(policies.greedy.files[".onnx"]).act(observation), action, rtol=1e-5, atol=1e-5)
    output = policy.act(observation, noise)
    np.testing.assert_allclose(output.action, expected.action, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.state_value, expected.state_value, rtol=1e-4, atol=1e-4)
    score = distribution.log_prob(params, torch.from_numpy(output.action))
    np.testing.assert_allclose(output.log_prob, score, rtol=1e-4, atol=1e-4)
    if distribution.has_entropy:
        # The mean of -log_prob over sampled actions estimates the mean entropy; five standard errors are allowed.
        log_prob = policy.act(observation.repeat(10, 0)).log_prob
        entropy = distribution.entropy(params).mean().item()
        assert abs(log_prob.mean() + entropy) < 5 * log_prob.std() / math.sqrt(len(log_prob))


@pytest.fixture(scope="module")
def learner_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training step over two choices, a Bernoulli variable and a vector whose entropy is estimated from samples."""
    torch.manual_seed(0)
    distribution = Composite(MultiCategorical([2, 3]), Bernoulli(1), TanhNormal(1))
    actor, critic = nn.Linear(3, distribution.num_params), nn.Linear(3, 1)
    loss = A2CLoss(actor, critic, distribution, value_estimator="td0")
    path = tmp_path_factory.mktemp("composite") / "train_step.onnx"
    export.export_train_step(TrainStep(loss, "sgd", lr=0.01, compile=False), make_rollout(distribution, actor), path)
    return path


def make_rollout(distribution: Composite, actor: nn.Module, steps: int = 4, envs: int = 3) -> Rollout:
    observation, following = torch.randn(2, steps, envs, 3)
    ended = torch.zeros(steps, envs, dtype=torch.bool)
    action = distribution.sample(actor(observation))
    return Rollout(observation, action, torch.randn(steps, envs), following, ended, ended)


@pytest.mark.slow
@pytest.mark.xdist_group("composite_learner")
def test_a_composite_training_step_agrees_with_eager(learner_path: Path) -> None:
    report = export.verify(learner_path)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.xdist_group("composite_learner")
def test_a_composite_learner_acts_and_learns_without_torch(learner_path: Path) -> None:
    learner = Learner.load(learner_path, seed=0)
    observation = np.random.default_rng(0).standard_normal((6, 5, 3), dtype=np.float32)
    output = learner.act(observation[0])
    assert output.action.shape == (5, 4)
    assert set(output.action[:, 1]) <= {0.0, 1.0, 2.0}
    before = learner.parameters
    action = np.stack([learner.act(row).action for row in observation])
    reward, terminated = np.ones((6, 5), dtype=np.float32), np.zeros((6, 5), dtype=bool)
    rollout = {"observation": observation, "action": action, "reward": reward, "next_observation": observation}
    metrics = learner.step({**rollout, "terminated": terminated})
    assert all(math.isfinite(value) for value in metrics.values())
    assert any(not np.array_equal(before[name], value) for name, value in learner.parameters.items())


@pytest.mark.slow
def test_a_learner_refuses_choices_out_of_range(tmp_path: Path) -> None:
    distribution = MultiCategorical([2, 3])
    actor = nn.Linear(3, distribution.num_params)
    loss = A2CLoss(actor, nn.Linear(3, 1), distribution, value_estimator="td0")
    rollout = make_rollout(distribution, actor)
    path = tmp_path / "train_step.onnx"
    export.export_train_step(TrainStep(loss, "sgd", compile=False), rollout, path)
    learner = Learner.load(path)
    entries = {name: getattr(rollout, name).numpy() for name in learner.rollout_entries}
    learner.step(entries)
    for wrong in ([0, 3], [2, 0], [-1, 0]):
        entries["action"][0, 0] = wrong
        with pytest.raises(ValueError, match=r"rollout\['action'\]: expected choices from 0 to 1 and 2"):
            learner.step(entries)
