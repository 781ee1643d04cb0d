"""Scripted, compiled, copied and cast distributions equal eager ones."""

import copy
import math
import pickle
from typing import Callable, List, Tuple

import numpy as np
import pytest
import torch
from distribution_cases import (
    BATCHES,
    DISCRETE,
    NORMALS,
    ONE_OF_EACH,
    SCRIPTABLE,
    STANDARD_ERRORS,
    TANH_NORMALS,
    TORCH,
    TORCH_TOLERANCE,
    TorchCase,
    assert_close,
    assert_frequencies,
    assert_standard_normal_quantiles,
    each,
    value_and_gradients,
)
from torch import Tensor, nn

from a2c_compiled.distributions import (
    Categorical,
    Distribution,
    TanhNormal,
)

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


def example(case: TorchCase, batch: List[int], dtype: torch.dtype = torch.float32) -> Tuple[Tensor, Tensor, Tensor]:
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
def test_scripted_equals_eager(case: TorchCase) -> None:
    eager = Everything(case.distribution)
    scripted = torch.jit.script(eager)
    for batch in BATCHES:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = example(case, batch, dtype)
            expected, expected_gradient = run(eager, inputs)
            # The profiling executor rewrites the graph after its first run.
            for _ in range(3):
                actual, gradient = run(scripted, inputs)
                assert_close(actual, expected, TORCH_TOLERANCE[torch.float32])
                torch.testing.assert_close(gradient, expected_gradient, atol=2e-6, rtol=2e-6)


@each(SCRIPTABLE)
def test_scripted_checks_its_params(case: TorchCase) -> None:
    scripted = torch.jit.script(Everything(case.distribution))
    params, action, noise = example(case, [5])
    with pytest.raises(torch.jit.Error, match=r"params: expected shape \[\.\.\., \d\], got \[5, \d\]"):
        scripted(params[:, 1:], action, noise)


@pytest.mark.parametrize("nested", [False, True])
def test_torch_distribution_refuses_torchscript(nested: bool) -> None:
    distribution = TORCH[0].distribution
    with pytest.raises(
        TypeError,
        match=r"distribution: expected another class of a2c_compiled\.distributions, because TorchScript cannot read torch",
    ):
        torch.jit.script(Everything(distribution) if nested else distribution)


class Together(nn.Module):
    """Several distributions in one graph, because compiling each of them takes longer."""

    def __init__(self, cases: List[TorchCase]) -> None:
        super().__init__()
        self.each = nn.ModuleList(Everything(case.distribution) for case in cases)

    def forward(self, inputs: List[Tuple[Tensor, Tensor, Tensor]]) -> List[List[Tensor]]:
        return [module(*tensors) for module, tensors in zip(self.each, inputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [DISCRETE, [NORMALS[0], TANH_NORMALS[1]]], ids=["discrete", "continuous"])
def test_compiled_whole_equals_eager(cases: List[TorchCase]) -> None:
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


def check_compiled(case: TorchCase, params: Tensor, actual: List[Tensor], expected: List[Tensor]) -> None:
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


@pytest.mark.slow
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
def test_copied_or_cast_module_computes_the_same(case: TorchCase, change: Callable[[nn.Module], nn.Module]) -> None:
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
def test_state_dict_is_empty_and_loads(case: TorchCase) -> None:
    state = case.distribution.state_dict()
    assert not state
    assert list(case.distribution.parameters()) == []
    copy.deepcopy(case.distribution).load_state_dict(state, strict=True)


def test_sizes_and_bounds_may_be_numpy() -> None:
    action = torch.tensor([1, 0])
    torch.testing.assert_close(
        torch.jit.script(Everything(Categorical(np.int64(3))))(torch.zeros(2, 3), action, torch.zeros(2, 3))[0],
        torch.full((2,), -math.log(3)),
    )
    box = TanhNormal(np.int64(2), np.float32([-1, 0]), np.float32([1, 3]))
    torch.testing.assert_close(box.mode(torch.zeros(4)), torch.tensor([0.0, 1.5]))
