"""The beta distribution: its special functions, its samples from noise and with gradients, and concentrations of any size."""

import math
from typing import List

import pytest
import torch
from torch import Tensor

from a2c_compiled._special_functions import stirling_error, stirling_error_slope
from a2c_compiled.distributions import Beta

# Five standard errors; seeds are fixed besides.
STANDARD_ERRORS = 5.0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_stirlings_error_is_that_of_torchs_functions(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(1.0, 60.0, 200, dtype=torch.float64).requires_grad_()
    leading = (x - 0.5) * x.log() - x + 0.5 * math.log(2 * math.pi)
    error, slope = stirling_error(x.to(dtype)), stirling_error_slope(x.to(dtype))
    torch.testing.assert_close(error.double(), torch.lgamma(x) - leading, atol=tolerance, rtol=0)
    torch.testing.assert_close(slope.double(), torch.digamma(x) - x.log() + 0.5 / x, atol=tolerance, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(error.sum(), x)[0], slope.double(), atol=10 * tolerance, rtol=0)


# Raw concentrations; then log-probability at the mode and entropy on [-1, 1], computed with mpmath to 40 digits.
REFERENCE = [
    (1e4, 1e4, 4.0328427418, -3.5328802393),
    (1e4, -5.0, 8.4808187774, -7.5107156839),
    (-1e30, -1e30, -math.log(2.0), math.log(2.0)),
    (1e30, 1e30, 33.9664114520, -33.4664114520),
]


@pytest.mark.parametrize(("first", "second", "log_prob", "entropy"), REFERENCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_concentrations_of_any_size(first: float, second: float, log_prob: float, entropy: float, dtype: torch.dtype) -> None:
    distribution = Beta(1)
    params = torch.tensor([first, second], dtype=dtype, requires_grad=True)
    # Next to a bound, rounding the mode itself moves its log-probability.
    tolerance = {torch.float32: 5e-3, torch.float64: 1e-8}[dtype]
    scored = distribution.log_prob(params, distribution.mode(params).detach())
    assert scored.item() == pytest.approx(log_prob, abs=tolerance)
    assert distribution.entropy(params).item() == pytest.approx(entropy, abs=1e-5)
    for value in (scored, distribution.entropy(params), distribution.mode(params).sum(), distribution.rsample(params).sum()):
        assert torch.autograd.grad(value, params)[0].isfinite().all()
    samples = distribution.sample(params.expand(100, 2))
    assert ((samples >= -1) & (samples <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_actions_at_the_bounds_are_scored(dtype: torch.dtype) -> None:
    distribution = Beta(2, [-0.1, 1000.0], [0.3, 1001.0])
    params = torch.tensor([[0.0, 3.0, -3.0, 20.0]], dtype=dtype, requires_grad=True)
    for action in ([-0.1, 1001.0], [0.3, 1000.0]):
        log_prob = distribution.log_prob(params, torch.tensor([action], dtype=dtype))
        assert log_prob.isfinite().all()
        assert torch.autograd.grad(log_prob.sum(), params)[0].isfinite().all()


@pytest.mark.parametrize("values", [[-3.0, -3.0], [0.0, 2.0], [30.0, 8.0]], ids=str)
def test_samples_follow_the_density(values: List[float]) -> None:
    distribution = Beta(1, -1.0, 2.0)
    params = torch.tensor(values, dtype=torch.float64)
    grid = torch.linspace(-1.0, 2.0, 200_001, dtype=torch.float64)
    density = distribution.log_prob(params.expand(len(grid), 2), grid.unsqueeze(-1)).exp()
    below = torch.cumulative_trapezoid(density, grid)
    torch.testing.assert_close(below[-1].item(), 1.0, atol=1e-5, rtol=0)
    torch.manual_seed(0)
    many = params.float().expand(100_000, 2)
    for sample in (distribution.sample(many), distribution.rsample(many)):
        for probability in (0.01, 0.2, 0.5, 0.8, 0.99):
            point = grid[torch.searchsorted(below, probability)]
            error = abs((sample < point).double().mean().item() - probability)
            assert error <= STANDARD_ERRORS * math.sqrt(probability * (1 - probability) / 1e5) + 1e-5


def test_the_first_accepted_candidate_is_taken() -> None:
    distribution, params = Beta(1), torch.tensor([0.2, 0.4])
    torch.manual_seed(1)
    noise = distribution.noise(params)
    normal, uniform = noise.view(2, 2, 8).clone().unbind(0)
    uniform[:] = 0.5
    normal[:, :3] = -9.0  # no cube of a positive number
    normal[:, 3:] = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.5])
    alone = normal[:, 3:4].expand(2, 8)
    rejected, expected = (
        distribution.sample_from(params, torch.cat([x.flatten(), uniform.flatten()])) for x in (normal, alone)
    )
    torch.testing.assert_close(rejected, expected)


def test_no_candidate_is_accepted_once_in_ten_billion_draws() -> None:
    """How often the first is rejected, where that is most probable: a shape of 1. All eight are independent, of both gamma variables."""
    params = torch.full((200_000, 2), -1e30)
    noise = torch.zeros(200_000, 2, 2, 8)
    torch.manual_seed(2)
    noise[:, 0, 0, 0], noise[:, 1, 0, 0] = torch.randn(200_000), torch.rand(200_000)
    # The other candidates are certain to be accepted, and all the same: then both gamma variables are equal, and the action is 0.
    rejected = (Beta(1).sample_from(params, noise.flatten(1)) == 0).double().mean().item()
    assert 0.04 < rejected < 0.055
    assert 2 * rejected**8 < 1e-10


def test_rsample_has_the_gradient_of_the_mean() -> None:
    rows = torch.tensor([0.5, 1.5], dtype=torch.float64).expand(100_000, 2).clone().requires_grad_()
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(Beta(1, 0.0, 1.0).rsample(rows).sum(), rows)
    params = rows[0].detach().requires_grad_()
    a, b = Beta(1).concentrations(params)
    (expected,) = torch.autograd.grad((a / (a + b)).sum(), params)
    assert ((gradient.mean(0) - expected).abs() <= STANDARD_ERRORS * gradient.std(0) / math.sqrt(1e5)).all()


def test_rsample_is_scripted() -> None:
    class Sampler(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.distribution = Beta(2)

        def forward(self, params: Tensor) -> Tensor:
            return self.distribution.rsample(params)

    params = torch.randn(5, 4, requires_grad=True)
    scripted = torch.jit.script(Sampler())
    for _ in range(3):
        torch.manual_seed(4)
        expected = Sampler()(params)
        torch.manual_seed(4)
        actual = scripted(params)
        torch.testing.assert_close(actual, expected)
        gradients = [torch.autograd.grad(sample.sum(), params)[0] for sample in (actual, expected)]
        torch.testing.assert_close(*gradients)


def test_wrong_bounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"high: expected finite numbers, got inf"):
        Beta(2, 0.0, math.inf)
