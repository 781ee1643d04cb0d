"""Extreme params and actions at the bounds: results are finite where mathematics says so, values and gradients."""

import math
from typing import List

import pytest
import torch
from distribution_cases import (
    HALF,
    INF,
    NAN,
    SCRIPTABLE,
    STANDARD_ERRORS,
    TORCH_TOLERANCE,
    TorchCase,
    assert_close,
    assert_finite,
    dtypes,
    each,
    value_and_gradients,
)

from a2c_compiled.distributions import (
    Categorical,
    MaskedCategorical,
    Normal,
    OneHotCategorical,
    TanhNormal,
)


@pytest.mark.parametrize("distribution", [Categorical(3), OneHotCategorical(3)], ids=["categorical", "one_hot"])
@pytest.mark.parametrize(
    ("logits", "log_probs", "entropy"),
    [
        ([1e4, 0.0, -1e4], [0.0, -1e4, -2e4], 0.0),
        ([1e30, 0.0, -1e30], [0.0, -1e30, -2e30], 0.0),
        ([-1e30, -1e30, -1e30], [-math.log(3)] * 3, math.log(3)),
        ([1e30, 1e30, -1e30], [-math.log(2), -math.log(2), -2e30], math.log(2)),
        ([0.0, -INF, 0.0], [-math.log(2), -INF, -math.log(2)], math.log(2)),
        ([-INF, -INF, -1e4], [-INF, -INF, 0.0], 0.0),
        ([1e30, -INF, -1e30], [0.0, -INF, -2e30], 0.0),
    ],
)
@dtypes
def test_categorical_extremes(
    distribution: Categorical, logits: List[float], log_probs: List[float], entropy: float, dtype: torch.dtype
) -> None:
    params = torch.tensor(logits, dtype=dtype)
    for i, expected in enumerate(log_probs):
        action = torch.eye(3)[i] if isinstance(distribution, OneHotCategorical) else torch.tensor(i)
        log_prob, gradient = value_and_gradients(lambda p, a=action: distribution.log_prob(p, a.detach()), params)
        torch.testing.assert_close(log_prob.item(), expected, rtol=1e-6, atol=1e-6)
        expected_gradient = torch.eye(3, dtype=dtype)[i] - torch.tensor(log_probs, dtype=dtype).exp()
        torch.testing.assert_close(gradient, 0.5 * expected_gradient)
    value, gradient = value_and_gradients(distribution.entropy, params)
    torch.testing.assert_close(value.item(), entropy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)
    possible = torch.tensor(log_probs) > -1e3
    torch.manual_seed(5)
    sample = distribution.sample(params.expand(200, 3))
    index = sample.argmax(-1) if isinstance(distribution, OneHotCategorical) else sample
    assert possible[index].all()


@each(SCRIPTABLE)
def test_one_action_or_dimension(case: TorchCase) -> None:
    options = {"low": case.low[:1], "high": case.high[:1]} if case.low else {}
    distribution = type(case.distribution)(1, **options)
    params = torch.ones(2, distribution.num_params)
    sample = distribution.sample(params)
    results = value_and_gradients(lambda p: distribution.log_prob(p, sample), params)
    assert_finite(results)
    if distribution.has_entropy:
        assert_finite(value_and_gradients(distribution.entropy, params))
    if isinstance(distribution, Categorical):
        assert sample.sum() == (2 if isinstance(distribution, OneHotCategorical) else 0)
        assert_close(results, [torch.zeros(2), torch.zeros_like(params)], 0.0)
        assert (distribution.entropy(params) == 0).all()


@dtypes
def test_masked_categorical_with_one_action_left_is_certain(dtype: torch.dtype) -> None:
    distribution = MaskedCategorical(3)
    for logit in (0.0, -1e30, 1e30):
        params = torch.tensor([5.0, logit, 1e30, 0.0, 1.0, 0.0], dtype=dtype)
        results = value_and_gradients(lambda p: distribution.log_prob(p, torch.tensor(1)), params)
        assert_close(results, [torch.zeros((), dtype=dtype), torch.zeros(6, dtype=dtype)], 0.0)
        assert_close(value_and_gradients(distribution.entropy, params), results, 0.0)
        assert distribution.mode(params) == 1
        assert (distribution.sample(params.expand(100, 6)) == 1).all()


@pytest.mark.parametrize("dtype", [*TORCH_TOLERANCE, *HALF], ids=str)
def test_masked_categorical_with_nothing_allowed_has_no_score_and_an_entropy_of_zero(dtype: torch.dtype) -> None:
    distribution = MaskedCategorical(3)
    for logits in ([0.0, 1.0, 2.0], [1e4, -1e4, 0.0], [-INF, INF, NAN]):
        params = torch.tensor([*logits, 0.0, 0.0, 0.0], dtype=dtype)
        assert distribution.log_prob(params, torch.tensor(1)).isnan()
        expected = [torch.zeros((), dtype=dtype), torch.zeros_like(params)]
        assert_close(value_and_gradients(distribution.entropy, params), expected, 0.0)
        assert 0 <= distribution.mode(params) < 3
        sample = distribution.sample(params.expand(20, 6))
        assert ((sample >= 0) & (sample < 3)).all()


def test_masked_categorical_whose_only_allowed_action_is_impossible_gives_no_nan() -> None:
    distribution = MaskedCategorical(3)
    params = torch.tensor([1.0, -INF, 0.0, 0.0, 1.0, 0.0])
    log_prob, gradient = value_and_gradients(lambda p: distribution.log_prob(p, torch.tensor(1)), params)
    assert log_prob == -INF
    assert_finite([gradient])
    assert_close(value_and_gradients(distribution.entropy, params), [torch.zeros(()), torch.zeros(6)], 0.0)


@pytest.mark.parametrize("logit", [1e30, INF, -INF, NAN])
def test_forbidden_logit_changes_nothing(logit: float) -> None:
    distribution = MaskedCategorical(3)
    params = torch.tensor([[0.5, -1.0, 2.0, 1.0, 0.0, 1.0]])
    other = params.clone()
    other[0, 1] = logit
    for function in (distribution.entropy, lambda p: distribution.log_prob(p, torch.tensor([2]))):
        expected = value_and_gradients(function, params)
        assert expected[1][0, 1] == 0
        assert_close(value_and_gradients(function, other), expected, 0.0)


def test_any_nonzero_mask_allows() -> None:
    distribution = MaskedCategorical(4)
    log_probs = distribution.log_probs(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, -1.0, 0.0, 1.0]))
    torch.testing.assert_close(log_probs, torch.tensor([-math.log(3), -math.log(3), -INF, -math.log(3)]))


@pytest.mark.parametrize("dtype", [*TORCH_TOLERANCE, *HALF], ids=str)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.1, 0.3), (1000.0, 1001.0)])
def test_tanh_normal_scores_actions_at_the_bounds(low: float, high: float, dtype: torch.dtype) -> None:
    distribution = TanhNormal(2, low, high)
    params = torch.tensor([0.5, -0.5, 0.0, 1.0], dtype=dtype)
    for action in ([low, high], [high, low], [high, high], [(low + high) / 2, low]):
        assert_finite(value_and_gradients(distribution.log_prob, params, torch.tensor(action, dtype=dtype)))


@dtypes
def test_tanh_normal_scores_its_own_saturated_samples(dtype: torch.dtype) -> None:
    params = torch.tensor([[40.0, -1e6, 0.0, 0.0]], dtype=dtype)
    distribution = TanhNormal(2, -2.0, 3.0)
    sample = distribution.sample(params)
    assert ((sample >= -2) & (sample <= 3)).all()
    assert_finite(value_and_gradients(lambda p: distribution.log_prob(p, sample), params))


@pytest.mark.parametrize("loc", [-1e4, -50.0, 50.0, 1e4])
@dtypes
def test_tanh_normal_with_a_huge_loc(loc: float, dtype: torch.dtype) -> None:
    distribution = TanhNormal(1, -2.0, 4.0, scale_mapping="exp")
    params = torch.tensor([loc, math.log(0.5)], dtype=dtype)
    noise = torch.tensor([0.5], dtype=dtype)
    # tanh(u) is a sign here: log(1 - tanh(u)^2) = 2 log 2 - 2 |u|, whose derivative in u is -2 sign(u).
    u, sign = loc + 0.25, math.copysign(1.0, loc)
    expected = -0.125 - math.log(0.5) - 0.5 * math.log(2 * math.pi) - math.log(3.0) - 2 * (math.log(2) - abs(u))
    action, gradient = value_and_gradients(lambda p: distribution.sample_and_log_prob(p, noise)[0], params)
    torch.testing.assert_close(action, torch.tensor([4.0 if loc > 0 else -2.0], dtype=dtype), rtol=1e-5, atol=0)
    assert_finite([gradient])
    log_prob, gradient = value_and_gradients(lambda p: distribution.sample_and_log_prob(p, noise)[1], params)
    torch.testing.assert_close(log_prob.item(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, 0.5 * torch.tensor([2 * sign, -1 + 2 * sign * 0.25], dtype=dtype), rtol=1e-3, atol=0)
    torch.manual_seed(6)
    entropy, gradient = value_and_gradients(lambda p: distribution.entropy_estimate(p, 64), params)
    # The normal's entropy, plus the mean of log(3) + 2 log 2 - 2 |u|: u's mean has standard error scale / 8.
    closed = 0.5 + 0.5 * math.log(2 * math.pi) + math.log(0.5) + math.log(3.0) + 2 * (math.log(2) - abs(loc))
    assert abs(entropy.item() - closed) < STANDARD_ERRORS * (2 * 0.5 + 1) / 8 + 1e-6 * abs(loc)
    torch.testing.assert_close(gradient[0].item(), 0.5 * -2 * sign, rtol=1e-6, atol=0)
    assert_finite([gradient])


@pytest.mark.parametrize(
    ("scale_mapping", "raw"),
    [(m, raw) for m in ("biased_softplus", "softplus", "exp") for raw in (-1e30, -1e4, -80.0, 80.0)]
    # Not exp: the scale itself is infinite there.
    + [(m, raw) for m in ("biased_softplus", "softplus") for raw in (1e4, 1e30)],
)
def test_tiny_and_huge_scales_are_finite(scale_mapping: str, raw: float) -> None:
    params = torch.tensor([0.3, raw])
    noise = torch.tensor([0.7])
    for distribution in (Normal(1, scale_mapping), TanhNormal(1, scale_mapping=scale_mapping)):
        scale = distribution.loc_and_scale(params)[1]
        assert scale >= 1e-4
        assert_finite(value_and_gradients(distribution.log_prob, params, torch.tensor([-0.4])))
        for i in (0, 1):
            assert_finite(value_and_gradients(lambda p, i=i, d=distribution: d.sample_and_log_prob(p, noise)[i], params))
        assert_finite(value_and_gradients(lambda p, d=distribution: d.entropy_estimate(p, 3), params))


def test_scale_never_falls_below_its_bound() -> None:
    for scale_mapping in ("biased_softplus", "softplus", "exp"):
        _, scale = Normal(1, scale_mapping, scale_lb=0.2).loc_and_scale(torch.tensor([0.0, -30.0]))
        assert scale.item() == torch.tensor(0.2).item()
