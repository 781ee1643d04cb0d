"""Actions of gymnasium's MultiDiscrete and MultiBinary spaces, and scales that do not depend on the state."""

import math
from typing import Any, List

import pytest
import torch
from torch import nn

pytest.importorskip("gymnasium")
import gymnasium

from a2c_compiled.distributions import AddStateIndependentNormalScale, Bernoulli, MultiCategorical, Normal
from a2c_compiled.networks.for_spaces import distribution_for

INF = float("inf")
# A correct sampler leaves this many standard errors once in two million comparisons; seeds are fixed besides.
STANDARD_ERRORS = 5.0


def test_choices_of_different_sizes_do_not_touch_each_other() -> None:
    distribution = MultiCategorical([2, 3])
    params = torch.tensor([[1e30, 0.0, 0.0, -INF, 0.0]], requires_grad=True)
    log_prob = distribution.log_prob(params, torch.tensor([[0, 2]]))
    torch.testing.assert_close(log_prob, torch.tensor([-math.log(2)]))
    entropy = distribution.entropy(params)
    torch.testing.assert_close(entropy, torch.tensor([math.log(2)]))
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), params)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, -0.5, 0.0, 0.5]]))
    sample = distribution.sample(params.expand(1000, 5))
    assert (sample[:, 0] == 0).all()
    assert (sample[:, 1] != 1).all()


def test_each_choice_comes_as_often_as_its_probabilities_say() -> None:
    nvec, count = [2, 4, 1], 100_000
    params = torch.tensor([0.5, -0.5, 1.0, 0.0, -2.0, 0.3, 7.0])
    sample = MultiCategorical(nvec).sample(params.expand(count, 7))
    for column, logits in zip(sample.unbind(-1), params.split(nvec), strict=True):
        assert_frequencies(torch.bincount(column, minlength=len(logits)) / count, logits.softmax(-1), count)
    # Choices are independent: the two outcomes of the first see the same frequencies of the second.
    given = sample[sample[:, 0] == 0, 1]
    assert_frequencies(torch.bincount(given, minlength=4) / len(given), params[2:6].softmax(-1), len(given))


def test_ones_come_as_often_as_their_probabilities_say() -> None:
    count = 100_000
    params = torch.tensor([0.0, 2.0, -3.0, INF, -INF])
    frequency = Bernoulli(5).sample(params.expand(count, 5)).double().mean(0)
    assert_frequencies(frequency, params.sigmoid(), count)


def assert_frequencies(frequency: torch.Tensor, probability: torch.Tensor, count: int) -> None:
    probability = probability.double()
    standard_error = (probability * (1 - probability) / count).sqrt()
    assert ((frequency - probability).abs() <= STANDARD_ERRORS * standard_error + 1e-12).all(), (frequency, probability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bernoulli_extremes(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0], [1e4], [-1e30], [INF], [-INF]], dtype=dtype, requires_grad=True)
    distribution = Bernoulli(1)
    for action, expected, slope in (
        (1, [-math.log(2), 0.0, -1e30, 0.0, -INF], [0.5, 0.0, 1.0, 0.0, 1.0]),
        (0, [-math.log(2), -1e4, 0.0, -INF, 0.0], [-0.5, -1.0, 0.0, -1.0, 0.0]),
    ):
        log_prob = distribution.log_prob(logits, torch.full((5, 1), action))
        torch.testing.assert_close(log_prob, torch.tensor(expected, dtype=dtype))
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        torch.testing.assert_close(gradient.squeeze(-1), torch.tensor(slope, dtype=dtype))
    entropy = distribution.entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([math.log(2), 0.0, 0.0, 0.0, 0.0], dtype=dtype))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert distribution.mode(logits).flatten().tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64, torch.float32], ids=str)
def test_bernoulli_takes_any_dtype(dtype: torch.dtype) -> None:
    params, action = torch.randn(5, 3), torch.randint(2, (5, 3))
    distribution = Bernoulli(3)
    assert torch.equal(distribution.log_prob(params, action.to(dtype)), distribution.log_prob(params, action))


def test_actions_fit_gymnasiums_spaces() -> None:
    for space in (gymnasium.spaces.MultiDiscrete([2, 5, 3]), gymnasium.spaces.MultiBinary(4)):
        distribution = distribution_for(space)
        params = torch.zeros(100, distribution.num_params)
        for action in distribution.sample(params).numpy():
            assert space.contains(action)
        taken = torch.stack([torch.from_numpy(space.sample()) for _ in range(100)])
        assert distribution.log_prob(params, taken).isfinite().all()


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.MultiDiscrete([2, 3], start=[0, 1]),
        gymnasium.spaces.MultiDiscrete([[2, 3]]),
        gymnasium.spaces.MultiBinary([2, 2]),
    ],
    ids=str,
)
def test_other_spaces_are_refused(space: Any) -> None:
    with pytest.raises(ValueError, match="action_space: expected a Discrete space, or a MultiDiscrete"):
        distribution_for(space)


@pytest.mark.parametrize(
    ("distribution", "action", "error", "message"),
    [
        (MultiCategorical([2, 3]), torch.zeros(5, dtype=torch.int64), ValueError, "action: expected shape [5, 2], got [5]"),
        (MultiCategorical([2, 3]), torch.zeros(5, 2), TypeError, "action: expected an integer dtype, got torch.float32"),
        (Bernoulli(2), torch.zeros(5, 3), ValueError, "action: expected shape [5, 2], got [5, 3]"),
    ],
)
def test_wrong_actions_are_named(distribution: Any, action: torch.Tensor, error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        distribution.log_prob(torch.zeros(5, distribution.num_params), action)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("nvec", "error", "message"),
    [
        ([], ValueError, "nvec: expected at least one choice, got none"),
        ([2, 0], ValueError, "nvec: expected at least 1, got 0"),
        ([2, 1.5], TypeError, "nvec: expected an integer, got 1.5"),
        (3, TypeError, "nvec: expected a sequence of integers, got 3"),
    ],
)
def test_wrong_numbers_of_actions_are_named(nvec: Any, error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        MultiCategorical(nvec)
    assert str(raised.value) == message


# A scale that does not depend on the state.


def test_state_independent_scale_is_sb3s_log_std() -> None:
    layer = AddStateIndependentNormalScale(2, init_value=-0.5)
    loc = torch.randn(4, 2)
    distribution = Normal(2, "exp")
    location, scale = distribution.loc_and_scale(layer(loc))
    torch.testing.assert_close(location, loc)
    torch.testing.assert_close(scale, torch.full((4, 2), math.exp(-0.5)))
    distribution.entropy(layer(loc)).sum().backward()
    torch.testing.assert_close(layer.state_independent_scale.grad, torch.full((2,), 4.0))


def test_state_independent_scale_equals_tensordicts() -> None:
    theirs = pytest.importorskip("tensordict.nn").AddStateIndependentNormalScale(3, init_value=0.7)
    layer = AddStateIndependentNormalScale(3)
    layer.load_state_dict(theirs.state_dict())
    loc = torch.randn(2, 5, 3)
    for actual, expected in zip(Normal(3, "exp").loc_and_scale(layer(loc)), theirs(loc), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.slow
def test_state_independent_scale_is_scripted_and_exported(tmp_path: Any) -> None:
    layer = AddStateIndependentNormalScale(2, init_value=0.3)
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    actor = nn.Sequential(nn.Linear(3, 2), layer)
    observation = torch.randn(5, 3)
    torch.testing.assert_close(torch.jit.script(actor)(observation), actor(observation))
    noise = torch.randn(5, 2)
    policy = export.SampledPolicy(actor, nn.Linear(3, 1), Normal(2, "exp"))
    path = tmp_path / "policy.onnx"
    export.export_onnx(policy, {"observation": observation, "noise": noise}, path, ("N",))
    report = export.verify(path)
    assert report.passed, str(report)


def test_wrong_loc_is_named() -> None:
    for shape in ([5, 3], []):
        with pytest.raises(ValueError, match=r"loc: expected shape \[\.\.\., 2\], got"):
            AddStateIndependentNormalScale(2)(torch.zeros(shape))


@pytest.mark.parametrize("scale_mapping", ["relu", "identity"])
def test_scale_may_be_mapped_already(scale_mapping: str) -> None:
    params = torch.tensor([0.3, 0.0, 0.0, 2.0, 0.5, -1.0], requires_grad=True)
    scale = Normal(3, scale_mapping, scale_lb=0.1).loc_and_scale(params)[1]
    torch.testing.assert_close(scale, torch.tensor([2.0, 0.5, 0.1]))
    (gradient,) = torch.autograd.grad(scale.sum(), params)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0]))


@pytest.mark.parametrize("scale_mapping", ["relu", "biased_softplus_0.5", "biased_softplus_3.0", "biased_softplus_1"])
def test_scale_mapping_is_tensordicts(scale_mapping: str) -> None:
    extractor = pytest.importorskip("tensordict.nn").NormalParamExtractor(scale_mapping, 1e-4)
    params = torch.linspace(-12, 4, 24).reshape(4, 6)
    expected: List[torch.Tensor] = list(extractor(params))
    for actual, theirs in zip(Normal(3, scale_mapping).loc_and_scale(params), expected, strict=True):
        torch.testing.assert_close(actual, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "scale_mapping", ["biased_softplus_0.01", "biased_softplus_", "biased_softplus_x", "softplus_1", "log"]
)
def test_unknown_scale_mapping_is_named(scale_mapping: str) -> None:
    with pytest.raises(ValueError, match=f"scale_mapping: expected 'biased_softplus', .* got '{scale_mapping}'"):
        Normal(2, scale_mapping)
