"""The truncated normal distribution where its normaliser is hard: far tails, narrow boxes, bounds; and the integrals below it."""

import math
from typing import List

import pytest
import torch
from loops import loop_over
from torch import Tensor

from a2c_compiled._special_functions import (
    gauss_legendre,
    half_normal_end,
    half_normal_integral,
    half_normal_moment,
    half_normal_quantile,
)
from a2c_compiled.distributions import TruncatedNormal

# Five standard errors; seeds are fixed besides.
STANDARD_ERRORS = 5.0
TILTS = torch.tensor([0.0, 1e-3, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e8], dtype=torch.float64).unsqueeze(-1)


def test_gauss_legendre_integrates_polynomials() -> None:
    points, weights = gauss_legendre(5)
    for degree in range(10):
        torch.testing.assert_close((points**degree * weights).sum().item(), 1 / (degree + 1), atol=1e-15, rtol=1e-14)


def test_half_normal_integral_equals_the_error_functions() -> None:
    """erfcx(k / sqrt 2) sqrt(pi / 2), less what lies beyond the width: wide enough that this does not cancel."""
    points, weights = gauss_legendre(28)
    exponent = torch.tensor([1.0, 4.0, 15.0, 30.0, 39.0, 100.0, 1e9], dtype=torch.float64)
    width = 2 * exponent / (TILTS + (TILTS**2 + 2 * exponent).sqrt())
    tilt = TILTS.expand_as(width)
    mills = [torch.special.erfcx(x / math.sqrt(2)) * math.sqrt(math.pi / 2) for x in (tilt, tilt + width)]
    actual = half_normal_integral(tilt, width, points, weights)
    torch.testing.assert_close(actual, mills[0] - (-exponent).exp() * mills[1], rtol=3e-15, atol=0)


def test_half_normal_integrals_equal_their_series_where_narrow() -> None:
    points, weights = gauss_legendre(28)
    width = torch.tensor([1e-12, 1e-6, 1e-3], dtype=torch.float64) / (1 + TILTS)
    first, second = (f(TILTS.expand_as(width), width, points, weights) for f in (half_normal_integral, half_normal_moment))
    kw = TILTS * width
    # To the third order of E: more than 1e-12 of the first of them.
    series = width * (1 - kw / 2 + (kw**2 - width**2) / 6 - kw**3 / 24 + kw * width**2 / 8)
    torch.testing.assert_close(first, series, rtol=1e-12, atol=0)
    torch.testing.assert_close(second, width * (kw / 2 + width**2 / 6 - kw**2 / 3), rtol=2e-6, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_half_normal_quantile_inverts_the_integral(dtype: torch.dtype, tolerance: float) -> None:
    points, weights = gauss_legendre(28)
    tilt = TILTS.to(dtype)
    for width in (1e-6, 1e-2, 1.0, 1e9):
        whole = half_normal_integral(tilt, torch.full_like(tilt, width), points, weights)
        integral = whole * torch.tensor([1e-12, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999], dtype=dtype)
        quantile = half_normal_quantile(tilt.expand_as(integral), integral, points, weights)
        back = half_normal_integral(tilt.expand_as(integral), quantile, points, weights)
        torch.testing.assert_close(back, integral, rtol=tolerance, atol=0)
        assert (quantile <= half_normal_end(tilt)).all()


# Location, scale, action; then log-probability and entropy on [-1, 2], computed with mpmath to 50 digits.
REFERENCE = [
    (0.0, 1.0, 0.5, -0.8437722389, 1.0050201255),
    (50.0, 1.0, 1.98, 2.9114345687, -2.8720676576),
    (-1e4, 1.0, -0.9999, 8.2103403720, -8.2102403870),
    (0.25, 2.0**-13, 0.25, 8.0919748141, -7.5919748141),
    (0.25, 1e6, 1.5, -1.0986122887, 1.0986122887),
]


@pytest.mark.parametrize(("loc", "scale", "action", "log_prob", "entropy"), REFERENCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tails_and_narrow_boxes(
    loc: float, scale: float, action: float, log_prob: float, entropy: float, dtype: torch.dtype
) -> None:
    distribution = TruncatedNormal(1, -1.0, 2.0, "identity")
    params = torch.tensor([loc, scale], dtype=dtype)
    # An action near a bound is rounded itself, by more of the scale than the result.
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-7}[dtype]
    actual = distribution.log_prob(params, torch.tensor([action], dtype=dtype)).item()
    assert actual == pytest.approx(log_prob, abs=tolerance)
    assert distribution.entropy(params).item() == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@loop_over("loc", [0.0, -1.0, 2.0, 1e4, -1e30, 1e30])
@loop_over("raw", [-1e30, -20.0, 0.0, 80.0])
def test_extremes_are_finite(loc: float, raw: float, dtype: torch.dtype) -> None:
    distribution = TruncatedNormal(1, -1.0, 2.0, "exp")
    params = torch.tensor([[loc, raw]], dtype=dtype).expand(5, 2).clone().requires_grad_()
    noise = torch.tensor([[0.0], [1e-7], [0.5], [1 - 1e-7], [1.0]], dtype=dtype)
    sample, log_prob = distribution.sample_and_log_prob(params, noise)
    assert ((sample >= -1) & (sample <= 2)).all()
    at_mode = distribution.log_prob(params, distribution.mode(params).detach())
    for value in (sample, log_prob, at_mode, distribution.entropy(params)):
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), params, retain_graph=True)[0].isfinite().all()


def test_gradient_where_the_location_is_a_bound_is_that_of_both_sides() -> None:
    distribution = TruncatedNormal(1, -1.0, 2.0)
    noise, action = torch.full((3, 1), 0.3, dtype=torch.float64), torch.full((3, 1), 0.5, dtype=torch.float64)
    for bound in (-1.0, 2.0):
        params = torch.tensor([[bound - 1e-9, 0.3], [bound, 0.3], [bound + 1e-9, 0.3]], dtype=torch.float64).requires_grad_()
        values = [distribution.log_prob(params, action), distribution.entropy(params), distribution.sample_from(params, noise)]
        for value in values:
            (gradient,) = torch.autograd.grad(value.sum(), params)
            torch.testing.assert_close(gradient, gradient[:1].expand(3, 2), atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_actions_outside_are_impossible_and_those_at_the_bounds_are_not(dtype: torch.dtype) -> None:
    distribution = TruncatedNormal(2, [-0.1, 0.3], [0.7, 1.1])
    params = torch.zeros(4, 4, dtype=dtype, requires_grad=True)
    action = torch.tensor([[-0.1, 0.3], [0.7, 1.1], [-0.2, 0.5], [0.0, 1.2]], dtype=torch.float64).to(dtype)
    log_prob = distribution.log_prob(params, action)
    assert log_prob.isfinite().tolist() == [True, True, False, False]
    assert (log_prob[2:] == -math.inf).all()
    assert torch.autograd.grad(log_prob.sum(), params)[0].isfinite().all()


@pytest.mark.parametrize("values", [[0.0, 0.0], [3.0, -0.5], [-40.0, 0.0]], ids=str)
def test_samples_follow_the_density(values: List[float]) -> None:
    """The uniform noise has the distribution of the probability below a sample, integrated from the density."""
    distribution = TruncatedNormal(1, -1.0, 2.0, "exp")
    params = torch.tensor(values, dtype=torch.float64)
    edge = distribution.sample_from(params.expand(9, 2), torch.linspace(0.1, 0.9, 9, dtype=torch.float64).unsqueeze(-1))
    grid = torch.linspace(-1.0, 2.0, 300_001, dtype=torch.float64)
    density = distribution.log_prob(params.expand(len(grid), 2), grid.unsqueeze(-1)).exp()
    below = torch.cumulative_trapezoid(density, grid)
    torch.testing.assert_close(below[-1].item(), 1.0, atol=1e-6, rtol=0)
    at_edge = below[torch.searchsorted(grid, edge.squeeze(-1)) - 1]
    torch.testing.assert_close(at_edge, torch.linspace(0.1, 0.9, 9, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.manual_seed(0)
    sample = distribution.sample(params.float().expand(100_000, 2)).double()
    for i, point in enumerate(edge.flatten(), 1):
        error = abs((sample < point).double().mean().item() - i / 10)
        assert error <= STANDARD_ERRORS * math.sqrt(i / 10 * (1 - i / 10) / 1e5)


def test_sample_and_its_gradient_equal_torchrls() -> None:
    torchrl = pytest.importorskip("torchrl.modules.distributions")
    probability = torch.linspace(0.05, 0.95, 7, dtype=torch.float64).unsqueeze(-1)
    params = torch.tensor([0.3, 0.8], dtype=torch.float64).expand(7, 2).clone().requires_grad_()

    def theirs(params: Tensor) -> Tensor:
        return torchrl.TruncatedNormal(*params.chunk(2, -1), low=-1.0, high=2.0).base_dist.icdf(probability)

    actual = TruncatedNormal(1, -1.0, 2.0, "identity").sample_from(params, probability)
    torch.testing.assert_close(actual, theirs(params), atol=1e-10, rtol=0)
    gradients = [torch.autograd.grad(sample.sum(), params)[0] for sample in (actual, theirs(params))]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


def test_tanh_loc_keeps_the_location_from_running_away() -> None:
    distribution = TruncatedNormal(1, -9.0, 9.0, tanh_loc=True, upscale=2.0)
    torch.testing.assert_close(distribution.mode(torch.tensor([100.0, 0.0])), torch.tensor([2.0]))


def test_wrong_bounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"low: expected less than high, 1\.0, got 1\.0"):
        TruncatedNormal(2, 1.0, 1.0)
