"""Action distributions: equal to torch's and TorchRL's, safe at extremes, the same in eager, scripted and compiled mode."""

import copy
import math
import pickle
from typing import Any, Callable, List, NamedTuple, Sequence, Tuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from a2c_compiled.distributions import (
    Beta,
    Categorical,
    Distribution,
    MaskedCategorical,
    Normal,
    OneHotCategorical,
    TanhNormal,
    TorchDistribution,
)

INF = float("inf")
NAN = float("nan")
BATCHES = ([], [5], [3, 4])
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
HALF = (torch.bfloat16, torch.float16)
# A correct sampler leaves this many standard errors once in two million comparisons; seeds are fixed besides.
STANDARD_ERRORS = 5.0


# References: torch.distributions, built without anything of the package.


def scale_from(raw: Tensor, scale_mapping: str, scale_lb: float) -> Tensor:
    if scale_mapping == "exp":
        scale = raw.exp()
    elif scale_mapping == "softplus":
        scale = nn.functional.softplus(raw)
    else:
        scale = nn.functional.softplus(raw + math.log(math.exp(0.99) - 1.0)) + 0.01
    return scale.clamp_min(scale_lb)


def normal_reference(
    scale_mapping: str = "biased_softplus",
    scale_lb: float = 1e-4,
    tanh_loc: bool = False,
    upscale: float = 5.0,
    middle: Sequence[float] = (0.0,),
) -> Callable[[Tensor], td.Distribution]:
    def reference(params: Tensor) -> td.Distribution:
        loc, raw = params.chunk(2, -1)
        loc = upscale * torch.tanh(loc / upscale) + params.new_tensor(middle) if tanh_loc else loc
        return td.Independent(td.Normal(loc, scale_from(raw, scale_mapping, scale_lb)), 1)

    return reference


def tanh_normal_reference(low: Sequence[float], high: Sequence[float], **options: Any) -> Callable[[Tensor], td.Distribution]:
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]

    def reference(params: Tensor) -> td.Distribution:
        low_, high_ = params.new_tensor(low), params.new_tensor(high)
        transforms = [td.TanhTransform(), td.AffineTransform((high_ + low_) / 2, (high_ - low_) / 2, event_dim=1)]
        return td.TransformedDistribution(normal_reference(middle=middle, **options)(params), transforms)

    return reference


def masked_reference(params: Tensor) -> td.Distribution:
    logits, mask = params.chunk(2, -1)
    # Not -inf: torch's entropy has a gradient of NaN there.
    return td.Categorical(logits=logits.masked_fill(mask == 0, -1e9))


def torch_normal(params: Tensor) -> td.Distribution:
    loc, raw = params.chunk(2, -1)
    return td.Independent(td.Normal(loc, raw.exp(), validate_args=False), 1, validate_args=False)


class Case(NamedTuple):
    name: str
    distribution: Distribution
    reference: Callable[[Tensor], td.Distribution]
    low: Tuple[float, ...] = ()
    high: Tuple[float, ...] = ()

    def params(self, batch: List[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        params = torch.randn([*batch, self.distribution.num_params], generator=generator, dtype=torch.float64)
        if isinstance(self.distribution, MaskedCategorical):
            logits, mask = params.chunk(2, -1)
            # The largest of each row is always allowed, so that none is empty.
            params = torch.cat([logits, ((mask > -0.3) | (mask == mask.max(-1, keepdim=True).values)).double()], -1)
        return params.to(dtype)

    def action(self, params: Tensor, seed: int = 1) -> Tensor:
        """A possible one; inside the bounds, where arctanh is well-conditioned."""
        if self.low:
            inside = torch.rand([*params.shape[:-1], len(self.low)], generator=torch.Generator().manual_seed(seed))
            low, high = torch.tensor(self.low), torch.tensor(self.high)
            return (low + (high - low) * (0.05 + 0.9 * inside)).to(params.dtype)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.reference(params.double()).sample().to(self.action_dtype(params))

    def action_dtype(self, params: Tensor) -> torch.dtype:
        return params.dtype if isinstance(self.distribution, (Normal, TorchDistribution)) else torch.int64

    def reference_mode(self, params: Tensor) -> Tensor:
        reference = self.reference(params)
        if not isinstance(reference, td.TransformedDistribution):
            return reference.mode
        mode = reference.base_dist.mean
        for transform in reference.transforms:
            mode = transform(mode)
        return mode


BOX = ((-1.0, 0.0, -3.5), (1.0, 0.5, 7.0))
DISCRETE = [
    Case("categorical", Categorical(4), lambda params: td.Categorical(logits=params)),
    Case("one_hot", OneHotCategorical(4), lambda params: td.OneHotCategorical(logits=params)),
    Case("masked", MaskedCategorical(4), masked_reference),
]
NORMALS = [
    Case("normal", Normal(3), normal_reference()),
    Case("normal_softplus", Normal(3, "softplus"), normal_reference("softplus")),
    Case("normal_exp", Normal(3, "exp"), normal_reference("exp")),
    Case("normal_lower_bound", Normal(3, "exp", scale_lb=0.9), normal_reference("exp", 0.9)),
    Case("normal_tanh_loc", Normal(3, tanh_loc=True, upscale=0.7), normal_reference(tanh_loc=True, upscale=0.7)),
]
TANH_NORMALS = [
    Case("tanh", TanhNormal(3), tanh_normal_reference([-1.0], [1.0]), (-1.0,) * 3, (1.0,) * 3),
    Case("tanh_box", TanhNormal(3, *BOX), tanh_normal_reference(*BOX), *BOX),
    Case(
        "tanh_options",
        TanhNormal(3, *BOX, scale_mapping="softplus", scale_lb=0.5, tanh_loc=True, upscale=2.0),
        tanh_normal_reference(*BOX, scale_mapping="softplus", scale_lb=0.5, tanh_loc=True, upscale=2.0),
        *BOX,
    ),
]
TORCH = [Case("torch", TorchDistribution(torch_normal, num_params=6), torch_normal)]
SCRIPTABLE = [*DISCRETE, NORMALS[0], TANH_NORMALS[1]]
ONE_OF_EACH = [*SCRIPTABLE, *TORCH]
ALL = [*DISCRETE, *NORMALS, *TANH_NORMALS, *TORCH]


def each(cases: List[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


batches = pytest.mark.parametrize("batch", BATCHES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
half_dtypes = pytest.mark.parametrize("dtype", HALF, ids=str)


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> List[Tensor]:
    """The value, and the gradients of a weighted sum of it in those inputs that are floating."""
    inputs = tuple(x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs)
    value = function(*inputs)
    weight = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape).to(value.dtype)
    wanted = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad((value * weight).sum(), wanted, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True))]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)


def assert_finite(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        assert tensor.isfinite().all(), tensor


def fix_standard_normal(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    """Make torch.distributions.Normal.rsample return ``loc + scale * noise``."""
    monkeypatch.setattr(td.normal, "_standard_normal", lambda shape, dtype, device: noise.to(dtype).expand(shape))


# Equal to torch.distributions.


@each(ALL)
@dtypes
@batches
def test_log_prob_and_its_gradients_equal_torch(case: Case, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    action = case.action(params)
    reference = value_and_gradients(lambda p, a: case.reference(p).log_prob(a), params, action)
    actual = value_and_gradients(case.distribution.log_prob, params, action)
    assert list(actual[0].shape) == batch
    assert_close(actual, reference, TOLERANCE[dtype])


@each([*DISCRETE, *NORMALS, *TORCH])
@dtypes
@batches
def test_entropy_and_its_gradient_equal_torch(case: Case, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    reference = value_and_gradients(lambda p: case.reference(p).entropy(), params)
    assert_close(value_and_gradients(case.distribution.entropy, params), reference, TOLERANCE[dtype])
    estimate = value_and_gradients(lambda p: case.distribution.entropy_estimate(p, 1), params)
    assert_close(estimate, reference, TOLERANCE[dtype])


@each(ALL)
@dtypes
@batches
def test_mode_equals_torch(case: Case, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    mode = case.distribution.mode(params)
    assert mode.dtype == case.action_dtype(params)
    torch.testing.assert_close(mode, case.reference_mode(params).to(mode.dtype), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@each([*NORMALS, *TANH_NORMALS])
@dtypes
@batches
def test_rsample_has_the_pathwise_gradient_of_torch(
    case: Case, dtype: torch.dtype, batch: List[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = case.params(batch, dtype)
    torch.manual_seed(2)
    noise = case.distribution.noise(params).clamp(-2, 2)
    assert noise.dtype == dtype
    assert not noise.requires_grad
    fix_standard_normal(monkeypatch, noise)
    reference = value_and_gradients(lambda p: case.reference(p).rsample(), params)
    assert_close(value_and_gradients(lambda p: case.distribution.sample_from(p, noise), params), reference, TOLERANCE[dtype])
    monkeypatch.setattr(case.distribution, "noise", lambda params: noise)
    assert_close(value_and_gradients(case.distribution.rsample, params), reference, TOLERANCE[dtype])


@each([*NORMALS, *TANH_NORMALS])
@dtypes
def test_sample_and_log_prob_equals_sampling_and_then_scoring(case: Case, dtype: torch.dtype) -> None:
    params = case.params([7], dtype)
    noise = torch.linspace(-1, 1, 21, dtype=dtype).reshape(7, 3)

    def scored_after(params: Tensor) -> Tensor:
        return case.reference(params).log_prob(case.distribution.sample_from(params, noise))

    action, _ = case.distribution.sample_and_log_prob(params, noise)
    torch.testing.assert_close(action, case.distribution.sample_from(params, noise), rtol=0, atol=0)
    actual = value_and_gradients(lambda p: case.distribution.sample_and_log_prob(p, noise)[1], params)
    # The reference goes through arctanh(tanh(u)), which loses up to four digits here.
    assert_close(actual, value_and_gradients(scored_after, params), {torch.float32: 1e-3, torch.float64: 1e-9}[dtype])


@each(DISCRETE)
def test_sample_and_log_prob_of_a_choice_scores_the_sample(case: Case) -> None:
    params = case.params([50])
    torch.manual_seed(3)
    noise = case.distribution.noise(params)
    action, log_prob = case.distribution.sample_and_log_prob(params, noise)
    torch.testing.assert_close(action, case.distribution.sample_from(params, noise))
    torch.testing.assert_close(log_prob, case.reference(params).log_prob(action), atol=1e-6, rtol=1e-6)


@each(ALL)
@half_dtypes
@batches
def test_half_precision_equals_float32_rounded(case: Case, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    action = case.action(params)
    if isinstance(case.distribution, TorchDistribution):
        # Computed by torch in the dtype that it gets.
        expected = [case.reference(params).log_prob(action), case.reference(params).entropy()]
        actual = [case.distribution.log_prob(params, action), case.distribution.entropy(params)]
        return assert_close(actual, expected, 0.0)
    wide_action = action.float() if action.is_floating_point() else action
    tolerance = torch.finfo(dtype).eps
    reference = value_and_gradients(lambda p: case.reference(p).log_prob(wide_action), params.float())
    actual = value_and_gradients(lambda p: case.distribution.log_prob(p, action), params)
    # A product with a rounded weight stands between the value and the gradient: two roundings.
    assert_close(actual, [x.to(dtype) for x in reference], 2 * tolerance)
    if case.distribution.has_entropy:
        reference = value_and_gradients(lambda p: case.reference(p).entropy(), params.float())
        assert_close(value_and_gradients(case.distribution.entropy, params), [x.to(dtype) for x in reference], 2 * tolerance)
    mode = case.distribution.mode(params)
    torch.testing.assert_close(mode, case.reference_mode(params.float()).to(mode.dtype), atol=tolerance, rtol=tolerance)
    return None


@pytest.mark.parametrize("action_dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_categorical_takes_any_integer_dtype(action_dtype: torch.dtype) -> None:
    params = DISCRETE[0].params([4])
    action = torch.arange(4)
    actual = Categorical(4).log_prob(params, action.to(action_dtype))
    torch.testing.assert_close(actual, td.Categorical(logits=params).log_prob(action), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("action_dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_one_hot_takes_any_dtype(action_dtype: torch.dtype) -> None:
    params = DISCRETE[0].params([4])
    actual = OneHotCategorical(4).log_prob(params, torch.eye(4).to(action_dtype))
    torch.testing.assert_close(actual, td.Categorical(logits=params).log_prob(torch.arange(4)), atol=1e-6, rtol=1e-6)


def test_one_hot_takes_a_one_with_a_rounding_error() -> None:
    params = torch.tensor([0.0, 1.0, 2.0])
    actual = OneHotCategorical(3).log_prob(params, torch.tensor([1e-8, 0.0, 0.9999999]))
    torch.testing.assert_close(actual, params.log_softmax(-1)[2])


def test_continuous_action_may_have_another_dtype_than_params() -> None:
    for case in (NORMALS[0], TANH_NORMALS[1]):
        params = case.params([5])
        action = case.action(params)
        log_prob = case.distribution.log_prob(params, action.double())
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob, case.distribution.log_prob(params, action))


# Equal to TorchRL and tensordict.


@pytest.mark.parametrize(
    ("scale_mapping", "theirs"),
    [("biased_softplus", "biased_softplus_1.0"), ("softplus", "softplus"), ("exp", "exp")],
)
@pytest.mark.parametrize("scale_lb", [1e-4, 0.5])
@dtypes
def test_scale_mapping_equals_tensordict(scale_mapping: str, theirs: str, scale_lb: float, dtype: torch.dtype) -> None:
    extractor = pytest.importorskip("tensordict.nn").NormalParamExtractor(theirs, scale_lb)
    params = torch.linspace(-12, 4, 24, dtype=dtype).reshape(4, 6)
    distribution = Normal(3, scale_mapping, scale_lb)
    for i in (0, 1):
        expected = value_and_gradients(lambda p, i=i: extractor(p)[i], params)
        assert_close(value_and_gradients(lambda p, i=i: distribution.loc_and_scale(p)[i], params), expected, 1e-6)


def test_biased_softplus_is_one_at_zero() -> None:
    torch.testing.assert_close(Normal(2).loc_and_scale(torch.zeros(4))[1], torch.ones(2))


@pytest.mark.parametrize(
    ("low", "high", "tanh_loc"),
    [
        ((-1.0,) * 3, (1.0,) * 3, False),
        ((-1.0,) * 3, (1.0,) * 3, True),
        ((-2.0, -0.5, -9.0), (2.0, 0.5, 9.0), False),
        ((-2.0, -0.5, -9.0), (2.0, 0.5, 9.0), True),
        (*BOX, False),
        (*BOX, True),
    ],
    ids=["unit", "unit_tanh_loc", "centred", "centred_tanh_loc", "box", "box_tanh_loc"],
)
@dtypes
@batches
def test_tanh_normal_equals_torchrl(
    low: Tuple[float, ...],
    high: Tuple[float, ...],
    tanh_loc: bool,
    dtype: torch.dtype,
    batch: List[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torchrl = pytest.importorskip("torchrl.modules.distributions")
    extractor = pytest.importorskip("tensordict.nn").NormalParamExtractor()
    distribution = TanhNormal(3, low, high, tanh_loc=tanh_loc)

    def theirs(params: Tensor) -> td.Distribution:
        bounds = {"low": params.new_tensor(low), "high": params.new_tensor(high)}
        return torchrl.TanhNormal(*extractor(params), tanh_loc=tanh_loc, **bounds)

    case = Case("", distribution, theirs, low, high)
    params = case.params(batch, dtype)
    action = case.action(params)
    # Gradients are sums of terms up to 100 in float32; in float64, their bias of the scale is a float32 number still.
    tolerance = {torch.float32: 5e-6, torch.float64: 1e-6}[dtype]
    expected = value_and_gradients(lambda p, a: theirs(p).log_prob(a), params, action)
    assert_close(value_and_gradients(distribution.log_prob, params, action), expected, tolerance)
    expected = value_and_gradients(lambda p: theirs(p).deterministic_sample, params)
    assert_close(value_and_gradients(distribution.mode, params), expected, tolerance)

    noise = torch.linspace(-1.5, 1.5, action.numel(), dtype=dtype).reshape(action.shape)
    fix_standard_normal(monkeypatch, noise)
    for i in (0, 1):
        expected = value_and_gradients(lambda p, i=i: theirs(p).rsample_and_log_prob()[i], params)
        actual = value_and_gradients(lambda p, i=i: distribution.sample_and_log_prob(p, noise)[i], params)
        assert_close(actual, expected, tolerance)


def test_tanh_normal_at_the_bounds_equals_torchrl() -> None:
    torchrl = pytest.importorskip("torchrl.modules.distributions")
    params = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    action = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    theirs = torchrl.TanhNormal(params[:2], scale_from(params[2:], "biased_softplus", 1e-4)).log_prob(action)
    torch.testing.assert_close(TanhNormal(2).log_prob(params, action), theirs, atol=1e-6, rtol=1e-6)


def test_tanh_loc_moves_the_location_to_the_middle_of_the_box() -> None:
    params = torch.tensor([0.8, 0.0])
    expected = 3.0 + torch.tanh(3.0 + 5.0 * torch.tanh(params[:1] / 5.0))
    torch.testing.assert_close(TanhNormal(1, 2.0, 4.0, tanh_loc=True).mode(params), expected)


@dtypes
@pytest.mark.parametrize("batch", [[], [5]], ids=str)
def test_masked_categorical_equals_torchrl(dtype: torch.dtype, batch: List[int]) -> None:
    torchrl = pytest.importorskip("torchrl.modules.distributions")
    case = DISCRETE[2]

    def theirs(params: Tensor) -> td.Distribution:
        logits, mask = params.chunk(2, -1)
        return torchrl.MaskedCategorical(logits=logits, mask=mask != 0)

    for seed in range(5):
        params = case.params(batch, dtype, seed)
        for chosen in range(4):
            action = torch.full(batch, chosen)
            torch.testing.assert_close(
                case.distribution.log_prob(params, action), theirs(params).log_prob(action), atol=1e-6, rtol=1e-6
            )
        torch.testing.assert_close(case.distribution.entropy(params), theirs(params).entropy(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(case.distribution.mode(params), theirs(params).mode)


# Extremes: finite where mathematics says finite, values and gradients.


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
def test_one_action_or_dimension(case: Case) -> None:
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


@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF], ids=str)
def test_masked_categorical_with_nothing_allowed_gives_no_nan(dtype: torch.dtype) -> None:
    distribution = MaskedCategorical(3)
    for logits in ([0.0, 1.0, 2.0], [1e4, -1e4, 0.0], [-INF, INF, NAN]):
        params = torch.tensor([*logits, 0.0, 0.0, 0.0], dtype=dtype)
        log_prob, gradient = value_and_gradients(lambda p: distribution.log_prob(p, torch.tensor(1)), params)
        assert log_prob == -INF
        assert_close([gradient], [torch.zeros_like(params)], 0.0)
        assert_close(value_and_gradients(distribution.entropy, params), [torch.zeros((), dtype=dtype), gradient], 0.0)
        assert 0 <= distribution.mode(params) < 3
        sample = distribution.sample(params.expand(20, 6))
        assert ((sample >= 0) & (sample < 3)).all()


def test_masked_categorical_whose_only_allowed_action_is_impossible_gives_no_nan() -> None:
    distribution = MaskedCategorical(3)
    params = torch.tensor([1.0, -INF, 0.0, 0.0, 1.0, 0.0])
    for action in range(3):
        log_prob, gradient = value_and_gradients(lambda p, a=action: distribution.log_prob(p, torch.tensor(a)), params)
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


@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF], ids=str)
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


# Sampling.


def assert_frequencies(index: Tensor, probs: Tensor) -> None:
    count = index.numel()
    frequencies = torch.bincount(index.flatten(), minlength=probs.numel()).double() / count
    standard_error = (probs * (1 - probs) / count).sqrt()
    assert ((frequencies - probs).abs() <= STANDARD_ERRORS * standard_error).all(), (frequencies, probs)
    assert (frequencies[probs == 0] == 0).all()


def assert_standard_normal_quantiles(u: Tensor) -> None:
    for quantile in (-2.0, -1.0, 0.0, 0.5, 1.5):
        probability = 0.5 * (1 + math.erf(quantile / math.sqrt(2)))
        standard_error = math.sqrt(probability * (1 - probability) / u.numel())
        assert abs((u < quantile).double().mean().item() - probability) <= STANDARD_ERRORS * standard_error


@each(DISCRETE)
@pytest.mark.parametrize("dtype", [*TOLERANCE, *HALF], ids=str)
def test_choices_come_as_often_as_their_probabilities_say(case: Case, dtype: torch.dtype) -> None:
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
def test_samples_are_reproducible_under_a_seed(case: Case) -> None:
    params = case.params([64])

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return case.distribution.sample(params)

    torch.testing.assert_close(draw(12), draw(12), rtol=0, atol=0)
    assert not torch.equal(draw(12), draw(13))


@each(ONE_OF_EACH)
def test_rows_are_sampled_independently(case: Case) -> None:
    params = torch.ones(64, case.distribution.num_params)
    torch.manual_seed(15)
    assert case.distribution.sample(params).unique(dim=0).shape[0] > 1


@each(TORCH)
def test_sample_has_no_gradient(case: Case) -> None:
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


# TorchDistribution.


def test_torch_distribution_is_its_factory() -> None:
    distribution = TorchDistribution(torch_normal)
    params = torch.randn(5, 6, generator=torch.Generator().manual_seed(22))
    for method in ("sample", "rsample"):
        torch.manual_seed(23)
        expected = getattr(torch_normal(params), method)()
        torch.manual_seed(23)
        torch.testing.assert_close(getattr(distribution, method)(params), expected, rtol=0, atol=0)
    torch.manual_seed(24)
    gradient = value_and_gradients(distribution.rsample, params)[1]
    torch.manual_seed(24)
    torch.testing.assert_close(gradient, value_and_gradients(lambda p: torch_normal(p).rsample(), params)[1])


def test_torch_distribution_without_num_params_takes_any() -> None:
    distribution = TorchDistribution(torch_normal)
    for num_params in (2, 8):
        assert distribution.entropy(torch.zeros(3, num_params)).shape == (3,)


# Scripted and compiled.


class Everything(nn.Module):
    """All that a distribution computes without random numbers, then what it draws."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, params: Tensor, action: Tensor, noise: Tensor) -> List[Tensor]:
        """In the order of ``DRAWN_FROM``."""
        scored, scored_log_prob = self.distribution.sample_and_log_prob(params, noise)
        return [
            self.distribution.log_prob(params, action),
            self.distribution.mode(params),
            self.distribution.sample_from(params, noise),
            scored,
            scored_log_prob,
            self.distribution.entropy_estimate(params, 3),
            self.distribution.noise(params),
            self.distribution.sample(params),
        ]


ENTROPY, SAMPLE = 5, 7


def example(case: Case, batch: List[int], dtype: torch.dtype = torch.float32) -> Tuple[Tensor, Tensor, Tensor]:
    params = case.params(batch, dtype)
    torch.manual_seed(25)
    return params, case.action(params), case.distribution.noise(params)


def run(module: Callable[..., List[Tensor]], inputs: Tuple[Tensor, Tensor, Tensor]) -> Tuple[List[Tensor], Tensor]:
    """Results, and the gradient of the log-probabilities and of a closed-form entropy in params."""
    params = inputs[0].detach().clone().requires_grad_()
    torch.manual_seed(26)
    results = module(params, *inputs[1:])
    loss = results[0].sum() + results[4].sum() + results[ENTROPY].sum()
    (gradient,) = torch.autograd.grad(loss, params)
    return [result.detach() for result in results], gradient


@each([*SCRIPTABLE, NORMALS[2], NORMALS[4], TANH_NORMALS[2]])
def test_scripted_equals_eager(case: Case) -> None:
    eager = Everything(case.distribution)
    scripted = torch.jit.script(eager)
    for batch in BATCHES:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = example(case, batch, dtype)
            expected, expected_gradient = run(eager, inputs)
            # The profiling executor rewrites the graph after its first run.
            for _ in range(3):
                actual, gradient = run(scripted, inputs)
                assert_close(actual, expected, TOLERANCE[torch.float32])
                torch.testing.assert_close(gradient, expected_gradient, atol=2e-6, rtol=2e-6)


@each(SCRIPTABLE)
def test_scripted_checks_its_params(case: Case) -> None:
    scripted = torch.jit.script(Everything(case.distribution))
    params, action, noise = example(case, [5])
    with pytest.raises(torch.jit.Error, match=r"params: expected shape \[\.\.\., \d\], got \[5, \d\]"):
        scripted(params[:, 1:], action, noise)


@pytest.mark.parametrize("nested", [False, True])
def test_torch_distribution_refuses_torchscript(nested: bool) -> None:
    distribution = TORCH[0].distribution
    with pytest.raises(
        TypeError, match=r"distribution: expected another class of a2c_compiled\.distributions, because TorchScript"
    ):
        torch.jit.script(Everything(distribution) if nested else distribution)


class Together(nn.Module):
    """Several distributions in one graph: compilation is what these tests wait for."""

    def __init__(self, cases: List[Case]) -> None:
        super().__init__()
        self.each = nn.ModuleList(Everything(case.distribution) for case in cases)

    def forward(self, inputs: List[Tuple[Tensor, Tensor, Tensor]]) -> List[List[Tensor]]:
        return [module(*tensors) for module, tensors in zip(self.each, inputs, strict=True)]


@pytest.mark.parametrize("cases", [DISCRETE, [NORMALS[0], TANH_NORMALS[1]]], ids=["discrete", "continuous"])
def test_compiled_whole_equals_eager(cases: List[Case]) -> None:
    torch._dynamo.reset()
    rows = 4096
    inputs = []
    for case in cases:
        params, action, noise = example(case, [])
        many = params.repeat(rows, 1).requires_grad_()
        inputs.append((many, action.expand(rows, *action.shape), noise.expand(rows, -1)))
    torch.manual_seed(27)
    results = torch.compile(Together(cases), fullgraph=True, dynamic=False)(inputs)
    all_params = [tensors[0] for tensors in inputs]
    gradients = torch.autograd.grad(sum(r[0].sum() + r[4].sum() + r[ENTROPY].sum() for r in results), all_params)
    for case, tensors, actual, gradient in zip(cases, inputs, results, gradients, strict=True):
        expected, expected_gradient = run(Everything(case.distribution), tensors)
        check_compiled(case, tensors[0][0].detach(), [*(x.detach() for x in actual), gradient], [*expected, expected_gradient])


def check_compiled(case: Case, params: Tensor, actual: List[Tensor], expected: List[Tensor]) -> None:
    assert_close(actual[:ENTROPY], expected[:ENTROPY], 2e-6)
    for i in (ENTROPY, -1):
        if case.distribution.has_entropy:
            torch.testing.assert_close(actual[i], expected[i], atol=2e-6, rtol=2e-6)
        else:
            # Other random numbers: two means over independent rows.
            standard_error = ((actual[i].var(0) + expected[i].var(0)) / actual[i].shape[0]).sqrt()
            assert ((actual[i].mean(0) - expected[i].mean(0)).abs() <= STANDARD_ERRORS * standard_error).all()
    sample = actual[SAMPLE]
    if isinstance(case.distribution, Categorical):
        index = sample.argmax(-1) if case.name == "one_hot" else sample
        assert_frequencies(index, case.reference(params.double()).probs)
    else:
        u = ((sample - case.distribution.center) / case.distribution.half_width).atanh() if case.low else sample
        loc, scale = case.distribution.loc_and_scale(params)
        assert_standard_normal_quantiles((u - loc) / scale)


def test_torch_distribution_compiled_whole_equals_eager() -> None:
    torch._dynamo.reset()
    case = TORCH[0]

    def score(params: Tensor, action: Tensor) -> Tensor:
        log_prob, entropy = case.distribution.log_prob(params, action), case.distribution.entropy_estimate(params, 1)
        return torch.stack([log_prob, entropy, case.distribution.mode(params).sum(-1)])

    params = case.params([5])
    compiled = torch.compile(score, fullgraph=True, dynamic=False)
    expected = value_and_gradients(score, params, case.action(params))
    assert_close(value_and_gradients(compiled, params, case.action(params)), expected, 2e-6)


# As modules.


@each(SCRIPTABLE)
@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: copy.deepcopy(module).to(torch.float64),
        lambda module: copy.deepcopy(module).half(),
        lambda module: copy.deepcopy(module).bfloat16().float(),
        lambda module: nn.Sequential(copy.deepcopy(module)).half()[0],
    ],
    ids=["deepcopy", "pickle", "double", "half", "bfloat16_and_back", "half_inside_another"],
)
def test_copied_or_cast_module_computes_the_same(case: Case, change: Callable[[nn.Module], nn.Module]) -> None:
    for dtype in (torch.float32, torch.float64):
        inputs = example(case, [5], dtype)
        expected, expected_gradient = run(Everything(case.distribution), inputs)
        actual, gradient = run(Everything(change(case.distribution)), inputs)
        assert_close([*actual, gradient], [*expected, expected_gradient], 0.0)


def test_tanh_normal_keeps_its_bounds_when_cast() -> None:
    distribution = TanhNormal(3, [-0.1, -1000.7, -1e6], [0.3, 1000.7, 1e6])
    expected = distribution.mode(torch.tensor([0.3, 9.0, -9.0, 0.0, 0.0, 0.0]))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        distribution = distribution.to(dtype)
        actual = distribution.mode(torch.tensor([0.3, 9.0, -9.0, 0.0, 0.0, 0.0]))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each(ONE_OF_EACH)
def test_state_dict_is_empty_and_loads(case: Case) -> None:
    state = case.distribution.state_dict()
    assert not state
    assert list(case.distribution.parameters()) == []
    copy.deepcopy(case.distribution).load_state_dict(state, strict=True)


# Errors.


@each(TORCH)
@pytest.mark.parametrize("method", ["mode", "entropy_estimate", "sample", "log_prob"])
def test_wrong_params_are_named(case: Case, method: str) -> None:
    distribution = case.distribution
    params = case.params([5])
    more = {"log_prob": (case.action(params),), "entropy_estimate": (2,)}.get(method, ())
    n = distribution.num_params
    with pytest.raises(ValueError, match=rf"params: expected shape \[\.\.\., {n}\], got \[5, {n - 1}\]"):
        getattr(distribution, method)(params[:, 1:], *more)
    with pytest.raises(TypeError, match=r"params: expected a floating dtype, got torch\.int64"):
        getattr(distribution, method)(params.long(), *more)


@each([*DISCRETE, NORMALS[0], TANH_NORMALS[0]])
def test_scalar_params_are_named(case: Case) -> None:
    with pytest.raises(ValueError, match=r"params: expected shape \[\.\.\., \d\], got \[\]"):
        case.distribution.noise(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("distribution", "wrong", "expected"),
    [
        (Categorical(4), [5, 1], "[5]"),
        (Categorical(4), [], "[5]"),
        (MaskedCategorical(4), [4], "[5]"),
        (OneHotCategorical(4), [5], "[5, 4]"),
        (OneHotCategorical(4), [5, 3], "[5, 4]"),
        (Normal(3), [5], "[5, 3]"),
        (Normal(3), [3], "[5, 3]"),
        (TanhNormal(3), [5, 1], "[5, 3]"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else str(x),
)
def test_wrong_action_shape_is_named(distribution: Distribution, wrong: List[int], expected: str) -> None:
    action = torch.zeros(wrong, dtype=torch.float32 if isinstance(distribution, Normal) else torch.int64)
    with pytest.raises(ValueError, match="action: expected shape") as raised:
        distribution.log_prob(torch.zeros(5, distribution.num_params), action)
    assert str(raised.value) == f"action: expected shape {expected}, got {wrong}"


@pytest.mark.parametrize(
    ("distribution", "shape", "dtype", "expected"),
    [
        (Categorical(4), [5], torch.float32, "an integer"),
        (Categorical(4), [5], torch.bool, "an integer"),
        (MaskedCategorical(4), [5], torch.bfloat16, "an integer"),
        (Normal(3), [5, 3], torch.int64, "a floating"),
        (TanhNormal(3), [5, 3], torch.bool, "a floating"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else str(x),
)
def test_wrong_action_dtype_is_named(distribution: Distribution, shape: List[int], dtype: torch.dtype, expected: str) -> None:
    with pytest.raises(TypeError, match=f"action: expected {expected} dtype, got {dtype}"):
        distribution.log_prob(torch.zeros(5, distribution.num_params), torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Categorical(0), ValueError, "n: expected at least 1, got 0"),
        (lambda: OneHotCategorical(-3), ValueError, "n: expected at least 1, got -3"),
        (lambda: MaskedCategorical(2.5), TypeError, "n: expected an integer, got 2.5"),
        (lambda: Normal(0), ValueError, "dim: expected at least 1, got 0"),
        (lambda: Normal((3,)), TypeError, "dim: expected an integer, got (3,)"),
        (lambda: Normal(2, scale_lb=0.0), ValueError, "scale_lb: expected a positive number, got 0.0"),
        (lambda: TanhNormal(2, scale_lb=NAN), ValueError, "scale_lb: expected a positive number, got nan"),
        (lambda: Normal(2, tanh_loc=True, upscale=0), ValueError, "upscale: expected a positive number, got 0"),
        (lambda: TanhNormal(2, 1.0, 1.0), ValueError, "low: expected less than high, 1.0, got 1.0"),
        (lambda: TanhNormal(2, [0.0, 2.0]), ValueError, "low: expected less than high, 1.0, got [0.0, 2.0]"),
        (lambda: TanhNormal(2, [-1.0] * 3), ValueError, "low: expected a number or a sequence of 2 numbers, got shape [3]"),
        (
            lambda: TanhNormal(2, high=[[1.0, 1.0]]),
            ValueError,
            "high: expected a number or a sequence of 2 numbers, got shape [1, 2]",
        ),
        (lambda: TanhNormal(2, low=-INF), ValueError, "low: expected finite numbers, got -inf"),
        (lambda: TanhNormal(2, high=[1.0, NAN]), ValueError, "high: expected finite numbers, got [1.0, nan]"),
        (
            lambda: TorchDistribution(3),
            TypeError,
            "factory: expected a callable from params to a distribution, got <class 'int'>",
        ),
        (lambda: TorchDistribution(torch_normal, 0), ValueError, "num_params: expected at least 1, got 0"),
    ],
)
def test_bad_constructor_argument_is_named(make: Callable[[], Distribution], error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == message


def test_sizes_and_bounds_may_be_numpy() -> None:
    action = torch.tensor([1, 0])
    torch.testing.assert_close(
        torch.jit.script(Everything(Categorical(np.int64(3))))(torch.zeros(2, 3), action, torch.zeros(2, 3))[0],
        torch.full((2,), -math.log(3)),
    )
    box = TanhNormal(np.int64(2), np.float32([-1, 0]), np.float32([1, 3]))
    torch.testing.assert_close(box.mode(torch.zeros(4)), torch.tensor([0.0, 1.5]))


@pytest.mark.parametrize("method", ["noise", "sample_from", "sample_and_log_prob"])
def test_torch_distribution_has_no_noise(method: str) -> None:
    params = torch.zeros(6)
    arguments = (params,) if method == "noise" else (params, torch.zeros(3))
    with pytest.raises(NotImplementedError):
        getattr(TORCH[0].distribution, method)(*arguments)


@pytest.mark.parametrize("method", ["sample", "rsample", "entropy_estimate"])
def test_noise_for_what_draws_its_own_is_named(method: str) -> None:
    own = TorchDistribution(torch_normal, has_entropy=False)
    arguments = (torch.zeros(6), 1) if method == "entropy_estimate" else (torch.zeros(6),)
    with pytest.raises(ValueError, match=r"noise: expected None, since torch\.distributions draw their own"):
        getattr(own, method)(*arguments, noise=torch.zeros(3))
    with pytest.raises(ValueError, match="noise: expected None, since Beta's rsample draws its own"):
        Beta(3).rsample(torch.zeros(6), torch.zeros(96))
