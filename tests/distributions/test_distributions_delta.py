"""Deterministic policies: equal to TorchRL's, scripted and exported."""

from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

from a2c_compiled.distributions import Delta, Distribution, TanhDelta

INF = float("inf")
BOX = ([-1.0, 0.0, -3.5], [1.0, 0.5, 7.0])


def torchrl_delta(params: Tensor) -> Any:
    return pytest.importorskip("torchrl.modules.distributions").Delta(params)


def torchrl_tanh_delta(params: Tensor) -> Any:
    low, high = (params.new_tensor(bound) for bound in BOX)
    return pytest.importorskip("torchrl.modules.distributions").TanhDelta(params, low=low, high=high)


each = pytest.mark.parametrize(
    ("distribution", "theirs"), [(Delta(3), torchrl_delta), (TanhDelta(3, *BOX), torchrl_tanh_delta)], ids=["delta", "tanh"]
)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_torchrl(distribution: Distribution, theirs: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
    params = 0.3 * torch.randn(4, 5, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    mode = distribution.mode(params)
    torch.testing.assert_close(mode, theirs(params).mode, atol=1e-6, rtol=0)
    for action in (mode, distribution.sample(params), distribution.rsample(params)):
        torch.testing.assert_close(action, mode, rtol=0, atol=0)
    away = mode.clone()
    away[::2, :, 1] -= 0.01
    log_prob = distribution.log_prob(params, away)
    assert (log_prob[1::2] == INF).all()
    assert (log_prob[::2] == -INF).all()
    torch.testing.assert_close(log_prob, theirs(params).log_prob(away))


@each
def test_gradient_reaches_the_params_through_rsample_alone(distribution: Distribution, theirs: Callable[[Tensor], Any]) -> None:
    params = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(distribution.rsample, params)
    assert not distribution.sample(params).requires_grad
    assert not distribution.log_prob(params, torch.zeros(5, 3)).requires_grad


def test_actions_within_the_tolerance_are_equal() -> None:
    params = torch.tensor([[100.0], [100.0], [0.0]], dtype=torch.float64)
    action = params + torch.tensor([[1e-3], [0.9e-4], [0.9e-6]], dtype=torch.float64)
    assert Delta(1).log_prob(params, action).tolist() == [-INF, INF, INF]
    assert Delta(1, atol=0.01, rtol=0.0).log_prob(params, action).tolist() == [INF, INF, INF]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_saturated_action_is_its_own_mode(dtype: torch.dtype) -> None:
    distribution = TanhDelta(2, -2.0, 3.0)
    params = torch.tensor([[30.0, -1e4]], dtype=dtype)
    action = distribution.sample(params)
    assert ((action >= -2) & (action <= 3)).all()
    assert distribution.log_prob(params, action).item() == INF


def test_there_is_no_entropy() -> None:
    assert not Delta(2).has_entropy
    with pytest.raises(NotImplementedError, match="entropy: a deterministic action has no entropy"):
        Delta(2).entropy(torch.zeros(2))


@each
def test_scripted_equals_eager(distribution: Distribution, theirs: Callable[[Tensor], Any]) -> None:
    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.distribution = distribution

        def forward(self, params: Tensor) -> Tensor:
            action, log_prob = self.distribution.sample_and_log_prob(params, self.distribution.noise(params))
            return torch.cat([action, self.distribution.mode(params), log_prob.unsqueeze(-1)], -1)

    params = torch.randn(5, 3)
    torch.testing.assert_close(torch.jit.script(Everything())(params), Everything()(params))


@pytest.mark.slow
@each
@pytest.mark.parametrize("ending", [".onnx", ".pt"])
def test_a_greedy_policy_is_exported(
    distribution: Distribution, theirs: Callable[[Tensor], Any], ending: str, tmp_path: Any
) -> None:
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    exporter = {".onnx": export.export_onnx, ".pt": export.export_torchscript}[ending]
    path = tmp_path / f"policy{ending}"
    exporter(export.GreedyPolicy(nn.Linear(2, 3), distribution), {"observation": torch.randn(5, 2)}, path, ("N",))
    report = export.verify(path)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Delta(0), ValueError, "dim: expected at least 1, got 0"),
        (lambda: Delta(2, atol=-1.0), ValueError, "atol: expected a number of at least 0, got -1.0"),
        (lambda: TanhDelta(2, 1.0, 0.0), ValueError, "low: expected less than high, 0.0, got 1.0"),
        (lambda: Delta(2).mode(torch.zeros(3)), ValueError, "params: expected shape [..., 2], got [3]"),
        (lambda: Delta(2).log_prob(torch.zeros(2), torch.zeros(3)), ValueError, "action: expected shape [2], got [3]"),
        (
            lambda: Delta(1).log_prob(torch.zeros(1), torch.ones(1).long()),
            TypeError,
            "action: expected a floating dtype, got torch.int64",
        ),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == message
