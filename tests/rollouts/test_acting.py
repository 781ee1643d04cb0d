"""The score that is recorded when a policy acts is the score that the loss computes for the same policy: the importance ratio is 1."""

import pytest
import torch
from distribution_cases import CASES
from torch import nn

from a2c_compiled import A2CLoss
from a2c_compiled.distributions import (
    Categorical,
    Composite,
    Distribution,
    MaskedCategorical,
    Normal,
    TanhNormal,
    TorchDistribution,
)
from a2c_compiled.environments import Pendulum
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.rollouts.acting import act
from a2c_compiled.update.compilation import CompiledFunction

FEATURES, ENVS = 3, 200
SATURATED = [TanhNormal(1), TanhNormal(3, [-1.0, 0.0, 2.0], 3.0), Composite(Categorical(3), TanhNormal(2)), Normal(21)]
DISTRIBUTIONS = [*(case.distribution for case in CASES), *SATURATED]
TORCH = TorchDistribution(lambda logits: torch.distributions.Categorical(logits=logits.float()))


class Actor(nn.Module):
    """A linear actor with large outputs, so that tanh saturates. For a mask, the sign of an output decides what is allowed."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.outputs = 4 if distribution.num_params < 0 else distribution.num_params
        self.masks = isinstance(distribution, MaskedCategorical)
        self.linear = nn.Linear(FEATURES, self.outputs)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        outputs = self.linear(observation) * 8.0
        if not self.masks:
            return outputs
        logits, mask = outputs.chunk(2, -1)
        return torch.cat([logits, ((mask > 0) | (mask == mask.amax(-1, keepdim=True))).to(logits.dtype)], -1)


def make_loss(distribution: Distribution, dtype: torch.dtype) -> A2CLoss:
    torch.manual_seed(0)
    networks = nn.ModuleList([Actor(distribution), nn.Linear(FEATURES, 1)]).to(dtype)
    return A2CLoss(*networks, distribution, value_estimator="vtrace", entropy_bonus=False, diagnostics=True)


def kl_approx(loss: A2CLoss, observation: torch.Tensor, action: torch.Tensor, log_prob: torch.Tensor) -> float:
    """0 if all importance ratios are 1."""
    advantage = torch.ones(log_prob.shape)
    outputs = loss(observation, action, advantage=advantage, value_target=advantage, sample_log_prob=log_prob)
    return outputs.kl_approx.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, TORCH], ids=lambda distribution: type(distribution).__name__)
@torch.no_grad()
def test_the_recorded_score_is_that_of_the_loss(distribution: Distribution, dtype: torch.dtype) -> None:
    loss = make_loss(distribution, dtype)
    observation = torch.randn(ENVS, FEATURES).to(dtype)
    output = act(loss, observation)
    assert output.log_prob.dtype == torch.float32
    assert kl_approx(loss, observation, output.action, output.log_prob) == 0.0


@torch.no_grad()
def test_the_recorded_score_of_a_saturated_action_is_torchrls() -> None:
    theirs = pytest.importorskip("torchrl.modules.distributions").TanhNormal
    params = torch.tensor([[9.0, 0.0]])
    action = TanhNormal(1).sample(params, torch.zeros(1, 1))
    log_prob = TanhNormal(1).log_prob(params, action)
    torch.testing.assert_close(log_prob, torch.tensor([10.66]), atol=5e-3, rtol=0)
    torch.testing.assert_close(log_prob, theirs(params[:, :1], torch.ones(1, 1)).log_prob(action).flatten(), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", [SATURATED[1], SATURATED[2], CASES[2].distribution], ids=lambda d: type(d).__name__)
@torch.no_grad()
def test_a_compiled_policy_records_the_score_of_the_loss(distribution: Distribution) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        loss = make_loss(distribution, dtype)
        observation = torch.randn(ENVS, FEATURES).to(dtype)
        output = CompiledFunction(act)(loss, observation)
        assert kl_approx(loss, observation, output.action, output.log_prob) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
@torch.no_grad()
def test_a_rollout_on_the_device_records_the_score_of_the_loss(compile: bool) -> None:
    loss = make_loss(TanhNormal(1, -2.0, 2.0), torch.float32)
    rollout = RolloutCollector(Pendulum(16), loss, 8, seed=0, compile=compile).collect()
    assert kl_approx(loss, rollout.observation, rollout.action, rollout.log_prob) < 1e-6


@torch.no_grad()
def test_a_policy_acts_where_its_mask_allows_nothing() -> None:
    """For example on the last observation of an episode, at a step that is spent on the reset and does not count."""
    loss = A2CLoss(nn.Identity(), nn.Linear(4, 1), MaskedCategorical(2), value_estimator="vtrace")
    output = act(loss, torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]))
    assert output.action[1] == 0
    assert output.log_prob[0].isnan()
    assert output.log_prob[1] == 0
