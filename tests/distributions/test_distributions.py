"""Log-probability, entropy, mode and pathwise gradient equal torch's, TorchRL's and tensordict's."""

from typing import List, Tuple

import pytest
import torch
from distribution_cases import (
    ALL,
    BOX,
    DISCRETE,
    NORMALS,
    TANH_NORMALS,
    TORCH,
    TORCH_TOLERANCE,
    TorchCase,
    assert_close,
    batches,
    dtypes,
    each,
    fix_standard_normal,
    half_dtypes,
    scale_from,
    torch_normal,
    value_and_gradients,
)
from torch import Tensor
from torch import distributions as td

from a2c_compiled.distributions import (
    Categorical,
    Normal,
    OneHotCategorical,
    TanhNormal,
    TorchDistribution,
)

# Equal to torch.distributions.


@each(ALL)
@dtypes
@batches
def test_log_prob_and_its_gradients_equal_torch(case: TorchCase, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    action = case.action(params)
    reference = value_and_gradients(lambda p, a: case.reference(p).log_prob(a), params, action)
    actual = value_and_gradients(case.distribution.log_prob, params, action)
    assert list(actual[0].shape) == batch
    assert_close(actual, reference, TORCH_TOLERANCE[dtype])


@each([*DISCRETE, *NORMALS, *TORCH])
@dtypes
@batches
def test_entropy_and_its_gradient_equal_torch(case: TorchCase, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    reference = value_and_gradients(lambda p: case.reference(p).entropy(), params)
    assert_close(value_and_gradients(case.distribution.entropy, params), reference, TORCH_TOLERANCE[dtype])
    estimate = value_and_gradients(lambda p: case.distribution.entropy_estimate(p, 1), params)
    assert_close(estimate, reference, TORCH_TOLERANCE[dtype])


@each(ALL)
@dtypes
@batches
def test_mode_equals_torch(case: TorchCase, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    mode = case.distribution.mode(params)
    assert mode.dtype == case.action_dtype(params)
    torch.testing.assert_close(
        mode, case.reference_mode(params).to(mode.dtype), atol=TORCH_TOLERANCE[dtype], rtol=TORCH_TOLERANCE[dtype]
    )


@each([*NORMALS, *TANH_NORMALS])
@dtypes
@batches
def test_rsample_has_the_pathwise_gradient_of_torch(
    case: TorchCase, dtype: torch.dtype, batch: List[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = case.params(batch, dtype)
    torch.manual_seed(2)
    noise = case.distribution.noise(params).clamp(-2, 2)
    assert noise.dtype == dtype
    assert not noise.requires_grad
    fix_standard_normal(monkeypatch, noise)
    reference = value_and_gradients(lambda p: case.reference(p).rsample(), params)
    assert_close(
        value_and_gradients(lambda p: case.distribution.sample_from(p, noise), params), reference, TORCH_TOLERANCE[dtype]
    )
    monkeypatch.setattr(case.distribution, "noise", lambda params: noise)
    assert_close(value_and_gradients(case.distribution.rsample, params), reference, TORCH_TOLERANCE[dtype])


@each([*NORMALS, *TANH_NORMALS])
@dtypes
def test_sample_and_log_prob_equals_sampling_and_then_scoring(case: TorchCase, dtype: torch.dtype) -> None:
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
def test_sample_and_log_prob_of_a_choice_scores_the_sample(case: TorchCase) -> None:
    params = case.params([50])
    torch.manual_seed(3)
    noise = case.distribution.noise(params)
    action, log_prob = case.distribution.sample_and_log_prob(params, noise)
    torch.testing.assert_close(action, case.distribution.sample_from(params, noise))
    torch.testing.assert_close(log_prob, case.reference(params).log_prob(action), atol=1e-6, rtol=1e-6)


@each(ALL)
@half_dtypes
@batches
def test_half_precision_equals_float32_rounded(case: TorchCase, dtype: torch.dtype, batch: List[int]) -> None:
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

    case = TorchCase("", distribution, theirs, low, high)
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
            allowed = params[..., 4 + chosen] != 0  # for a forbidden choice, TorchRL returns minus infinity
            some, action = params[allowed], torch.full(batch, chosen)
            torch.testing.assert_close(
                case.distribution.log_prob(some, action[allowed]),
                theirs(params).log_prob(action)[allowed],
                atol=1e-6,
                rtol=1e-6,
            )
        torch.testing.assert_close(case.distribution.entropy(params), theirs(params).entropy(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(case.distribution.mode(params), theirs(params).mode)


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
