"""Wrong params, actions and options are refused with a message that says what was expected and what came."""

from typing import Callable, List

import pytest
import torch
from distribution_cases import DISCRETE, INF, NAN, NORMALS, TANH_NORMALS, TORCH, TorchCase, each, torch_normal
from torch import nn

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


@each(TORCH)
@pytest.mark.parametrize("method", ["mode", "entropy_estimate", "sample", "log_prob"])
def test_wrong_params_are_named(case: TorchCase, method: str) -> None:
    distribution = case.distribution
    params = case.params([5])
    more = {"log_prob": (case.action(params),), "entropy_estimate": (2,)}.get(method, ())
    n = distribution.num_params
    with pytest.raises(ValueError, match=rf"params: expected shape \[\.\.\., {n}\], got \[5, {n - 1}\]"):
        getattr(distribution, method)(params[:, 1:], *more)
    with pytest.raises(TypeError, match=r"params: expected a floating dtype, got torch\.int64"):
        getattr(distribution, method)(params.long(), *more)


@each([*DISCRETE, NORMALS[0], TANH_NORMALS[0]])
def test_scalar_params_are_named(case: TorchCase) -> None:
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
        (Categorical(3), [5, 3], "[5]"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else str(x),
)
def test_wrong_action_shape_is_named(distribution: Distribution, wrong: List[int], expected: str) -> None:
    action = torch.zeros(wrong, dtype=torch.float32 if isinstance(distribution, Normal) else torch.int64)
    with pytest.raises(ValueError, match="action: expected shape") as raised:
        distribution.log_prob(torch.zeros(5, distribution.num_params), action)
    is_one_hot = type(distribution) is Categorical and wrong == [5, 3]
    remedy = " (for one-hot actions use a distribution such as OneHotCategorical)" if is_one_hot else ""
    assert str(raised.value) == f"action: expected shape {expected}, got {wrong}{remedy}"


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
        (lambda: Normal((3,)), TypeError, "dim: expected an integer, got tuple"),
        (lambda: Normal(2, scale_lb=0.0), ValueError, "scale_lb: expected a positive number, got 0.0"),
        (lambda: TanhNormal(2, scale_lb=NAN), ValueError, "scale_lb: expected a positive number, got nan"),
        (lambda: Normal(2, tanh_loc=True, upscale=0), ValueError, "upscale: expected a positive number, got 0.0"),
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
            "factory: expected a callable from params to a distribution, got 3",
        ),
        (lambda: TorchDistribution(torch_normal, 0), ValueError, "num_params: expected at least 1, got 0"),
    ],
)
def test_bad_constructor_argument_is_named(make: Callable[[], Distribution], error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == message


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
