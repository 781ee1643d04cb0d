"""Several distributions over one action: its parts, its entropy, its noise, and what it is exported to."""

import math
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from a2c_compiled.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Composite,
    Delta,
    Distribution,
    MultiCategorical,
    Normal,
    OneHotCategorical,
    TanhNormal,
    TorchDistribution,
)

MIXED = Composite(Categorical(3), TanhNormal(2), OneHotCategorical(2), Bernoulli(1))


def make_params(distribution: Distribution, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, distribution.num_params, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_an_action_is_the_heads_actions_side_by_side() -> None:
    action = MIXED.sample(make_params(MIXED, 50))
    assert action.dtype == torch.float32
    assert action.shape == (50, 1 + 2 + 2 + 1)
    choice, vector, one_hot, binary = MIXED.split_action(action)
    assert [part.dtype for part in (choice, vector, one_hot, binary)] == [torch.int64, torch.float32, torch.int64, torch.int64]
    assert [tuple(part.shape) for part in (choice, vector, one_hot, binary)] == [(50,), (50, 2), (50, 2), (50, 1)]
    assert (one_hot.sum(-1) == 1).all()
    assert torch.equal(MIXED.join_actions([choice, vector, one_hot, binary]), action)


def test_log_prob_is_the_sum_of_the_heads() -> None:
    params = make_params(MIXED, 20)
    action = MIXED.sample(params)
    parts = zip(MIXED.heads, params.split([3, 4, 2, 1], -1), MIXED.split_action(action), strict=True)
    torch.testing.assert_close(MIXED.log_prob(params, action), sum(head.log_prob(p, a) for head, p, a in parts))


def test_choices_alone_are_integers() -> None:
    distribution = Composite(Categorical(3), MultiCategorical([2, 4]))
    params = make_params(distribution, 30)
    action = distribution.sample(params)
    assert action.dtype == torch.int64
    expected = MultiCategorical([3, 2, 4]).log_prob(params, action)
    torch.testing.assert_close(distribution.log_prob(params, action), expected)
    torch.testing.assert_close(distribution.entropy(params), MultiCategorical([3, 2, 4]).entropy(params))
    assert distribution.noise_kind == MultiCategorical([3, 2, 4]).noise_kind == "gumbel:3,gumbel:2,gumbel:4"


def test_a_composite_is_a_head_too() -> None:
    nested = Composite(Composite(Categorical(3), Normal(1)), Bernoulli(2))
    flat = Composite(Categorical(3), Normal(1), Bernoulli(2))
    params = make_params(flat, 20)
    torch.manual_seed(0)
    noise = flat.noise(params)
    assert nested.noise_kind == flat.noise_kind == "gumbel:3,normal:1,logistic:2"
    for mine, its in zip(nested.sample_and_log_prob(params, noise), flat.sample_and_log_prob(params, noise), strict=True):
        torch.testing.assert_close(mine, its)


def test_choices_are_exact_in_half_precision() -> None:
    distribution = Composite(Categorical(1001), Normal(1))
    params = torch.zeros(2, distribution.num_params, dtype=torch.bfloat16)
    params[0, 999], params[1, 777] = 50.0, 50.0
    for action in (distribution.mode(params), distribution.sample(params)):
        assert action.dtype == torch.float32
        assert distribution.split_action(action)[0].tolist() == [999, 777]
    assert distribution.log_prob(params, action).dtype == torch.bfloat16


def test_only_heads_without_an_entropy_are_sampled() -> None:
    distribution = Composite(Categorical(3), TanhNormal(2))
    assert not distribution.has_entropy
    params = make_params(distribution, 6).double()
    torch.manual_seed(1)
    estimate = distribution.entropy_estimate(params, 4000)
    closed = Categorical(3).entropy(params[:, :3])
    torch.manual_seed(2)
    samples = -TanhNormal(2).log_prob(*(lambda p: (p, TanhNormal(2).sample(p)))(params[:, 3:].expand(4000, 6, 4)))
    # Five standard errors of the difference of two means.
    assert ((estimate - closed - samples.mean(0)).abs() <= 5 * samples.std(0) * math.sqrt(2 / 4000)).all()
    with pytest.raises(ValueError, match="num_samples: expected at least one sample, got 0"):
        distribution.entropy_estimate(params, 0)
    with pytest.raises(NotImplementedError, match="entropy: TanhNormal has no closed form"):
        distribution.entropy(params)


def test_making_one_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    Composite(Categorical(3), Beta(2))
    assert torch.equal(torch.rand(3), expected)


def test_rsample_is_differentiable_where_all_heads_are() -> None:
    distribution = Composite(Normal(2), Beta(1))
    params = make_params(distribution, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(distribution.rsample(params).sum(), params)
    assert (gradient != 0).all()
    with pytest.raises(NotImplementedError, match="rsample: a discrete distribution"):
        MIXED.rsample(make_params(MIXED, 5))


def test_certain_heads_need_no_noise() -> None:
    distribution = Composite(Delta(2), Categorical(2))
    assert distribution.noise_kind == "gumbel:2"
    params = make_params(distribution, 5)
    torch.testing.assert_close(distribution.sample(params)[:, :2], params[:, :2])


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: Composite(), ValueError, "heads: expected at least one distribution, got none"),
        (
            lambda: Composite(Categorical(2), torch.nn.Linear(1, 1)),
            TypeError,
            "heads: expected distributions of a2c_compiled other than TorchDistribution, got Linear",
        ),
        (
            lambda: Composite(TorchDistribution(lambda params: params)),
            TypeError,
            "heads: expected distributions of a2c_compiled other than TorchDistribution, got TorchDistribution",
        ),
        (lambda: MIXED.split_action(torch.zeros(5, 4)), ValueError, "action: expected shape [..., 6], got [5, 4]"),
        (lambda: MIXED.split_action(torch.tensor(1.0)), ValueError, "action: expected shape [..., 6], got []"),
        (lambda: MIXED.split_action(torch.zeros(6).long()), TypeError, "action: expected a floating dtype, got torch.int64"),
        (lambda: Composite(Categorical(2)).split_action(torch.zeros(1)), TypeError, "action: expected an integer dtype, got torch.float32"),
        (lambda: MIXED.join_actions([torch.zeros(5)]), ValueError, "actions: expected 4 tensors, got 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(run: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        run()
    assert str(raised.value) == message
