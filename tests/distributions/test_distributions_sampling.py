"""Samples have the frequencies of the distribution, and entropies by sampling converge to the closed form."""

import math
from typing import List, Tuple

import pytest
import torch
from distribution_cases import (
    DISCRETE,
    HALF,
    NORMALS,
    ONE_OF_EACH,
    STANDARD_ERRORS,
    TORCH,
    TORCH_TOLERANCE,
    TorchCase,
    assert_frequencies,
    assert_standard_normal_quantiles,
    dtypes,
    each,
    torch_normal,
    value_and_gradients,
)
from torch import Tensor
from torch import distributions as td

from a2c_compiled.distributions import (
    Categorical,
    MaskedCategorical,
    Normal,
    TanhNormal,
    TorchDistribution,
)

# The frequencies of samples.


@each(DISCRETE)
@pytest.mark.parametrize("dtype", [*TORCH_TOLERANCE, *HALF], ids=str)
def test_choices_come_as_often_as_their_probabilities_say(case: TorchCase, dtype: torch.dtype) -> None:
    params = torch.tensor([2.0, 0.0, -1.0, 1.0], dtype=dtype)
    if case.name == "masked":
        params = torch.cat([params, torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=dtype)])
    torch.manual_seed(7)
    sample = case.distribution.sample(params.expand(100, 1000, -1))
    if case.name == "one_hot":
        assert (sample.sum(-1) == 1).all()
        sample = sample.argmax(-1)
    assert_frequencies(sample, case.reference(params.double()).probs)


def test_gumbel_noise_has_its_moments() -> None:
    torch.manual_seed(8)
    noise = Categorical(4).noise(torch.zeros(100_000, 4)).double()
    count, variance = noise.numel(), math.pi**2 / 6
    assert noise.isfinite().all()
    assert abs(noise.mean().item() - 0.5772156649) <= STANDARD_ERRORS * math.sqrt(variance / count)
    # The fourth central moment of a Gumbel variable is 5.4 variance^2.
    assert abs(noise.var().item() - variance) <= STANDARD_ERRORS * math.sqrt(4.4 / count) * variance


def test_masked_actions_are_never_sampled() -> None:
    torch.manual_seed(9)
    mask = torch.rand(50_000, 6) < 0.4
    mask[torch.arange(50_000), torch.randint(6, (50_000,))] = True
    # The forbidden have the larger logits.
    params = torch.cat([torch.randn(50_000, 6) + 50.0 * ~mask, mask.float()], -1)
    for _ in range(5):
        sample = MaskedCategorical(6).sample(params)
        assert mask.gather(-1, sample.unsqueeze(-1)).all()
    assert mask.gather(-1, MaskedCategorical(6).mode(params).unsqueeze(-1)).all()


@dtypes
def test_normal_samples_are_normal(dtype: torch.dtype) -> None:
    params = torch.tensor([3.0, -1.0, 0.7, -0.7], dtype=dtype)
    distribution = Normal(2, "exp")
    torch.manual_seed(10)
    sample = distribution.sample(params.expand(100_000, 4)).double()
    loc, scale = params[:2].double(), params[2:].double().exp()
    assert ((sample.mean(0) - loc).abs() <= STANDARD_ERRORS * scale / math.sqrt(1e5)).all()
    assert ((sample.var(0) - scale**2).abs() <= STANDARD_ERRORS * scale**2 * math.sqrt(2 / 1e5)).all()
    for i in (0, 1):
        assert_standard_normal_quantiles((sample[:, i] - loc[i]) / scale[i])


def test_tanh_normal_samples_are_squashed_normal() -> None:
    params = torch.tensor([0.5, -0.4], dtype=torch.float64)
    torch.manual_seed(11)
    sample = TanhNormal(1, -2.0, 6.0, scale_mapping="exp").sample(params.expand(100_000, 2))
    assert ((sample > -2) & (sample < 6)).all()
    assert_standard_normal_quantiles((((sample - 2) / 4).atanh() - 0.5) / math.exp(-0.4))


@each(ONE_OF_EACH)
def test_samples_are_reproducible_under_a_seed(case: TorchCase) -> None:
    params = case.params([64])

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return case.distribution.sample(params)

    torch.testing.assert_close(draw(12), draw(12), rtol=0, atol=0)
    assert not torch.equal(draw(12), draw(13))


@each(ONE_OF_EACH)
def test_rows_are_sampled_independently(case: TorchCase) -> None:
    params = torch.ones(64, case.distribution.num_params)
    torch.manual_seed(15)
    assert case.distribution.sample(params).unique(dim=0).shape[0] > 1


@each(TORCH)
def test_sample_has_no_gradient(case: TorchCase) -> None:
    assert not case.distribution.sample(case.params([5]).requires_grad_()).requires_grad


# Entropy by sampling.


def tanh_normal_moments(params: Tensor, low: float, high: float) -> Tuple[Tensor, Tensor]:
    """Mean (the entropy) and variance of ``-log p`` for one dimension and scale ``exp(raw)``, integrated over standard normal noise."""
    noise = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * noise**2) / math.sqrt(2 * math.pi)
    u = params[0] + params[1].exp() * noise
    # log(1 - tanh^2) = -2 log cosh
    slope = math.log((high - low) / 2) - 2 * torch.log(torch.cosh(u))
    surprise = 0.5 * noise**2 + params[1] + 0.5 * math.log(2 * math.pi) + slope
    mean = torch.trapezoid(density * surprise, noise)
    return mean, torch.trapezoid(density * (surprise - mean) ** 2, noise)


TANH_PARAMS = ([0.0, 0.0], [1.0, -1.0], [-2.0, 0.5], [3.0, -2.0])


@pytest.mark.parametrize("values", TANH_PARAMS, ids=str)
def test_tanh_normal_entropy_estimate_converges_to_the_integral(values: List[float]) -> None:
    params = torch.tensor(values, dtype=torch.float64)
    entropy, variance = tanh_normal_moments(params, -2.0, 6.0)
    torch.manual_seed(16)
    estimate = TanhNormal(1, -2.0, 6.0, scale_mapping="exp").entropy_estimate(params, 100_000)
    assert abs(estimate - entropy) <= STANDARD_ERRORS * (variance / 1e5).sqrt()


@pytest.mark.parametrize("values", TANH_PARAMS, ids=str)
def test_tanh_normal_entropy_estimate_has_the_gradient_of_the_integral(values: List[float]) -> None:
    params = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(tanh_normal_moments(params, -2.0, 6.0)[0], params)
    rows = params.detach().expand(100_000, 2).clone().requires_grad_()
    torch.manual_seed(17)
    estimate = TanhNormal(1, -2.0, 6.0, scale_mapping="exp").entropy_estimate(rows, 1)
    (each_row,) = torch.autograd.grad(estimate.sum(), rows)
    assert ((each_row.mean(0) - expected).abs() <= STANDARD_ERRORS * each_row.std(0) / math.sqrt(1e5)).all()


@pytest.mark.parametrize("values", TANH_PARAMS, ids=str)
def test_tanh_normal_density_integrates_to_one(values: List[float]) -> None:
    u = torch.linspace(-15, 15, 60_001, dtype=torch.float64)
    action = 2 + 4 * torch.tanh(u)
    params = torch.tensor(values, dtype=torch.float64).expand(60_001, 2)
    density = TanhNormal(1, -2.0, 6.0, scale_mapping="exp").log_prob(params, action.unsqueeze(-1)).exp()
    torch.testing.assert_close(torch.trapezoid(density, action).item(), 1.0, atol=1e-4, rtol=0)


class NormalWithoutEntropy(Normal):
    has_entropy = False


class CategoricalWithoutEntropy(Categorical):
    has_entropy = False


def test_normal_entropy_estimate_converges_to_the_closed_form() -> None:
    params = NORMALS[0].params([4], torch.float64)
    torch.manual_seed(18)
    estimate, gradient = value_and_gradients(lambda p: NormalWithoutEntropy(3).entropy_estimate(p, 20_000), params)
    closed, closed_gradient = value_and_gradients(Normal(3).entropy, params)
    # -log p varies as half a chi-square variable of three degrees, whose variance is 3 / 2; its gradient does not vary.
    assert ((estimate - closed).abs() <= STANDARD_ERRORS * math.sqrt(1.5 / 20_000)).all()
    torch.testing.assert_close(gradient, closed_gradient, atol=1e-9, rtol=1e-9)


def test_categorical_entropy_estimate_converges_to_the_closed_form() -> None:
    params = DISCRETE[0].params([6], torch.float64)
    log_probs = params.log_softmax(-1)
    closed = -(log_probs.exp() * log_probs).sum(-1)
    variance = (log_probs.exp() * log_probs**2).sum(-1) - closed**2
    torch.manual_seed(19)
    estimate = CategoricalWithoutEntropy(4).entropy_estimate(params, 20_000)
    assert ((estimate - closed).abs() <= STANDARD_ERRORS * (variance / 20_000).sqrt()).all()


def test_torch_distribution_entropy_estimate_converges_to_the_closed_form() -> None:
    params = TORCH[0].params([4], torch.float64)
    torch.manual_seed(20)
    estimate = TorchDistribution(torch_normal, has_entropy=False).entropy_estimate(params, 20_000)
    assert ((estimate - torch_normal(params).entropy()).abs() <= STANDARD_ERRORS * math.sqrt(1.5 / 20_000)).all()


def test_torch_distribution_estimates_the_entropy_of_a_discrete_distribution() -> None:
    rate = torch.tensor([0.5, 2.0], dtype=torch.float64)
    counts = torch.arange(60, dtype=torch.float64).unsqueeze(-1)
    log_probs = td.Poisson(rate).log_prob(counts)
    closed = -(log_probs.exp() * log_probs).sum(0)
    variance = (log_probs.exp() * log_probs**2).sum(0) - closed**2
    distribution = TorchDistribution(lambda params: td.Poisson(params.squeeze(-1)), num_params=1, has_entropy=False)
    torch.manual_seed(21)
    estimate = distribution.entropy_estimate(rate.unsqueeze(-1), 20_000)
    assert ((estimate - closed).abs() <= STANDARD_ERRORS * (variance / 20_000).sqrt()).all()


@pytest.mark.parametrize("num_samples", [0, -1])
def test_entropy_estimate_needs_a_sample(num_samples: int) -> None:
    for distribution in (TanhNormal(3), TorchDistribution(torch_normal, has_entropy=False)):
        with pytest.raises(ValueError, match=f"num_samples: expected at least one sample, got {num_samples}"):
            distribution.entropy_estimate(torch.zeros(6), num_samples)


def test_tanh_normal_has_no_closed_form_entropy() -> None:
    assert not TanhNormal(1).has_entropy
    with pytest.raises(NotImplementedError, match="entropy: TanhNormal has no closed form"):
        TanhNormal(1).entropy(torch.zeros(2))
