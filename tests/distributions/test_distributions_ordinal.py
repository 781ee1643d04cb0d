"""Ordered and masked choices where scores are infinite, huge, or nothing but one."""

import pytest
import torch

from a2c_compiled.distributions import MaskedOneHotCategorical, OneHotOrdinal, Ordinal

INF = float("inf")


def test_the_first_score_changes_nothing() -> None:
    distribution, action = Ordinal(3), torch.tensor([1])
    for first in (0.0, -INF, 1e30):
        params = torch.tensor([[first, 0.5, -1.0]], requires_grad=True)
        log_prob = distribution.log_prob(params, action)
        torch.testing.assert_close(log_prob, torch.tensor([0.0, 0.5, -0.5]).log_softmax(0)[1:2])
        (gradient,) = torch.autograd.grad(log_prob.sum() + distribution.entropy(params).sum(), params)
        assert gradient[0, 0] == 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("scores", "possible"),
    [([0.0, 1.0, -INF, 5.0], [True, True, False, False]), ([0.0, 1e30, 1e30, -1e30], [False, False, True, False])],
)
def test_extreme_scores_leave_what_they_say(scores: list, possible: list) -> None:
    params = torch.tensor(scores, requires_grad=True)
    probs = Ordinal(4).log_probs(params).exp()
    assert (probs > 0).tolist() == possible
    entropy = Ordinal(4).entropy(params)
    torch.testing.assert_close(entropy, torch.special.entr(probs).sum())
    assert torch.autograd.grad(entropy, params)[0].isfinite().all()
    sample = OneHotOrdinal(4).sample(params.expand(1000, 4))
    assert (sample.sum(-1) == 1).all()
    assert (sample.sum(0) > 0).tolist() == possible


def test_one_ordered_action_is_certain() -> None:
    params = torch.randn(5, 1, requires_grad=True)
    log_prob = Ordinal(1).log_prob(params, torch.zeros(5, dtype=torch.int64))
    assert (log_prob == 0).all()
    assert (torch.autograd.grad(log_prob.sum(), params)[0] == 0).all()


def test_samples_of_an_order_come_as_often_as_their_probabilities_say() -> None:
    params, count = torch.tensor([0.3, 1.0, -0.5, -2.0]), 100_000
    frequency = torch.bincount(Ordinal(4).sample(params.expand(count, 4)), minlength=4) / count
    probs = Ordinal(4).log_probs(params).exp()
    # Five standard errors.
    assert ((frequency - probs).abs() <= 5 * (probs * (1 - probs) / count).sqrt()).all()


def test_a_forbidden_one_hot_action_is_never_taken() -> None:
    params = torch.tensor([9.0, 0.0, 0.0, 0.0, 1.0, 1.0], requires_grad=True)
    distribution = MaskedOneHotCategorical(3)
    entropy = distribution.entropy(params)
    torch.testing.assert_close(entropy, torch.tensor(2.0).log())
    assert torch.autograd.grad(entropy, params)[0].isfinite().all()
    assert (distribution.sample(params.expand(1000, 6)).sum(0) > 0).tolist() == [False, True, True]
