"""Every distribution equals its reference in every precision and mode."""

import copy
import functools
from typing import Any, Callable, List, Tuple

import pytest
import torch
from distribution_cases import BATCHES, CASES, TOLERANCE, Case, assert_close, value_and_gradients
from loss_cases import traced
from torch import Tensor, nn

from a2c_compiled import distributions
from a2c_compiled.distributions import Distribution

each = pytest.mark.parametrize("case", CASES, ids=str)
# test_distributions_modes.py compiles all that these compute, and their gradients.
COMPILED_ELSEWHERE = ("Categorical", "OneHotCategorical", "MaskedCategorical", "Normal", "TanhNormal")
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def log_prob_of(case: Case, of: Callable[[Tensor], Any], params: Tensor, action: Tensor) -> List[Tensor]:
    if case.gradient_in_action:
        return value_and_gradients(lambda p, a: of(p).log_prob(a), params, action)
    return value_and_gradients(lambda p: of(p).log_prob(action), params)


class Bound:
    """A distribution with its params, as torch's are."""

    def __init__(self, distribution: Distribution, params: Tensor) -> None:
        self.distribution, self.params = distribution, params

    def log_prob(self, action: Tensor) -> Tensor:
        return self.distribution.log_prob(self.params, action)


def bound(case: Case) -> Callable[[Tensor], Bound]:
    return functools.partial(Bound, case.distribution)


def test_every_distribution_has_a_row() -> None:
    """But those whose density is infinite, and torch's, which have tests of their own."""
    public = {name for name, kind in vars(distributions).items() if isinstance(kind, type) and issubclass(kind, Distribution)}
    assert sorted(map(str, CASES)) == sorted(public - {"Delta", "Distribution", "TanhDelta", "TorchDistribution"})


@each
@dtypes
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_equals_its_reference(case: Case, dtype: torch.dtype, batch: List[int]) -> None:
    params = case.params(batch, dtype)
    action = case.action(params)
    tolerance = case.tolerance if dtype == torch.float64 else TOLERANCE[dtype]
    log_prob = log_prob_of(case, bound(case), params, action)
    assert list(log_prob[0].shape) == batch
    assert_close(log_prob, log_prob_of(case, case.reference, params, action), tolerance)
    if case.distribution.has_entropy:
        expected = value_and_gradients(lambda p: case.reference(p).entropy(), params)
        assert_close(value_and_gradients(case.distribution.entropy, params), expected, tolerance)
    mode = case.distribution.mode(params)
    assert (mode.dtype, mode.shape) == (action.dtype, action.shape)
    torch.testing.assert_close(mode, case.reference(params).mode.to(mode.dtype), atol=2e-6, rtol=1e-6)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float32_rounded(case: Case, dtype: torch.dtype) -> None:
    params = case.params([3, 4], dtype)
    action = case.action(params)
    actual = [*evaluate(case.distribution, params, action)]
    wide = action.float() if action.is_floating_point() else action
    expected = [x.to(a.dtype) for a, x in zip(actual, evaluate(case.distribution, params.float(), wide), strict=True)]
    assert_close(actual, expected, torch.finfo(dtype).eps)
    torch.manual_seed(1)
    noise = case.distribution.noise(params)
    assert noise.dtype == torch.float32
    sample = case.distribution.sample_from(params, noise)
    torch.testing.assert_close(sample, case.distribution.sample_from(params.float(), noise).to(sample.dtype), rtol=0, atol=0)


def evaluate(distribution: Distribution, params: Tensor, action: Tensor) -> List[Tensor]:
    """What is computed without random numbers, with its gradient in params."""
    results = value_and_gradients(lambda p: distribution.log_prob(p, action), params)
    if distribution.has_entropy:
        results += value_and_gradients(distribution.entropy, params)
    return [*results, distribution.mode(params)]


@each
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    params = case.params([2], torch.float64).requires_grad_()
    action = case.action(params.detach())
    if case.gradient_in_action:
        assert torch.autograd.gradcheck(case.distribution.log_prob, (params, action.requires_grad_()))
    else:
        assert torch.autograd.gradcheck(lambda p: case.distribution.log_prob(p, action), params)
    if case.distribution.has_entropy:
        assert torch.autograd.gradcheck(case.distribution.entropy, params)
    torch.manual_seed(2)
    noise = case.distribution.noise(params).detach()
    if not case.distribution.sample_from(params, noise).is_floating_point():
        with pytest.raises(NotImplementedError, match="rsample: a discrete distribution"):
            case.distribution.rsample(params)
        return
    if case.gradient_from_noise:
        assert torch.autograd.gradcheck(lambda p: case.distribution.sample_from(p, noise), params)
        assert torch.autograd.gradcheck(lambda p: case.distribution.sample_and_log_prob(p, noise)[1], params)


class Everything(nn.Module):
    """All that a distribution computes of params, an action and noise, then what it draws."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, params: Tensor, action: Tensor, noise: Tensor) -> Tuple[List[Tensor], List[Tensor]]:
        sample, log_prob = self.distribution.sample_and_log_prob(params, noise)
        drawn = [
            self.distribution.sample(params),
            self.distribution.noise(params),
            self.distribution.sample_and_log_prob(params)[1],
            self.distribution.entropy_estimate(params, 2),
        ]
        entropy = self.distribution.entropy_estimate(params, 2, torch.stack([noise, noise.flip(0)]))
        scored = self.distribution.log_prob(params, action)
        return [
            scored,
            log_prob,
            entropy,
            self.distribution.mode(params),
            sample,
            self.distribution.sample(params, noise),
        ], drawn


def run(module: Callable[..., Any], inputs: Tuple[Tensor, Tensor, Tensor]) -> Tuple[List[Tensor], List[Tensor]]:
    """What is computed, with its gradient in params; and what is drawn."""
    params = inputs[0].clone().requires_grad_()
    computed, drawn = module(params, *inputs[1:])
    (gradient,) = torch.autograd.grad(sum(x.sum() for x in computed[:3]), params)
    return [*(x.detach() for x in computed), gradient], drawn


def example(case: Case, batch: List[int], seed: int = 3) -> Tuple[Tensor, Tensor, Tensor]:
    params = case.params(batch, seed=seed)
    torch.manual_seed(seed)
    return params, case.action(params), case.distribution.noise(params)


@each
def test_scripted_equals_eager(case: Case) -> None:
    eager = Everything(case.distribution)
    scripted = torch.jit.script(eager)
    for batch in BATCHES:
        # The profiling executor rewrites the graph after its first run.
        for _ in range(3):
            inputs = example(case, batch)
            expected, shapes = run(eager, inputs)
            actual, drawn = run(scripted, inputs)
            assert_close(actual, expected, TOLERANCE[torch.float32])
            assert [(x.shape, x.dtype) for x in drawn] == [(x.shape, x.dtype) for x in shapes]


def assert_same_as_eager(module: Callable[..., Any], case: Case, rows: int) -> None:
    inputs = example(case, [rows])
    expected, shapes = run(Everything(case.distribution), inputs)
    actual, drawn = run(module, inputs)
    assert_close(actual, expected, 1e-5)
    assert [(x.shape, x.dtype) for x in drawn] == [(x.shape, x.dtype) for x in shapes]


@pytest.mark.slow
@each
def test_traced_whole_equals_eager(case: Case) -> None:
    """One graph serves any number of rows. Dynamo alone traces it, with torch's own backward pass."""
    module = traced(Everything(case.distribution))
    assert_same_as_eager(module, case, 7)
    # Dynamo fixes the number of rows of a composite's noise and traces once more.
    with torch._dynamo.config.patch(error_on_recompile=str(case) != "Composite"):
        assert_same_as_eager(module, case, 130)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if str(case) not in COMPILED_ELSEWHERE], ids=str)
def test_traced_backward_pass_equals_eager(case: Case) -> None:
    """AOTAutograd traces the gradient too; for a fixed shape, which it traces several times faster."""
    assert_same_as_eager(traced(Everything(case.distribution), "aot_eager", dynamic=False), case, 33)


@pytest.mark.slow
def test_compiled_whole_equals_eager() -> None:
    """Log-probability and entropy of the four that differ most, in one graph, because compiling four takes longer."""
    torch._dynamo.reset()
    cases = [case for case in CASES if str(case) in ("MultiCategorical", "Bernoulli", "TruncatedNormal", "Beta")]
    assert len(cases) == 4

    def scores(all_params: List[Tensor], actions: List[Tensor]) -> List[Tensor]:
        results = []
        for case, params, action in zip(cases, all_params, actions, strict=True):
            results += [case.distribution.log_prob(params, action), case.distribution.entropy(params)]
        return results

    compiled = torch.compile(scores, fullgraph=True, dynamic=False)
    all_params = [case.params([33]).requires_grad_() for case in cases]
    actions = [case.action(params.detach()) for case, params in zip(cases, all_params, strict=True)]
    both = []
    for function in (compiled, scores):
        results = function(all_params, actions)
        both.append([*results, *torch.autograd.grad(sum(x.sum() for x in results), all_params)])
    assert_close(*both, 1e-5)


@each
def test_empty_batch_gives_empty_results(case: Case) -> None:
    params = torch.zeros(0, case.distribution.num_params)
    sample = case.distribution.sample(params)
    assert sample.shape[0] == 0
    assert case.distribution.log_prob(params, sample).shape == (0,)
    assert case.distribution.entropy_estimate(params, 2).shape == (0,)
    assert case.distribution.mode(params).shape == sample.shape


@each
def test_sample_is_what_its_noise_makes_and_has_no_gradient(case: Case) -> None:
    params = case.params([64]).requires_grad_()
    torch.manual_seed(4)
    sample = case.distribution.sample(params)
    assert not sample.requires_grad
    torch.manual_seed(4)
    noise = case.distribution.noise(params)
    torch.testing.assert_close(sample, case.distribution.sample_from(params, noise).detach(), rtol=0, atol=0)
    given = case.distribution.sample(params, noise)
    assert not given.requires_grad
    torch.testing.assert_close(given, sample, rtol=0, atol=0)


@each
def test_entropy_estimate_takes_the_noise_of_all_its_samples(case: Case) -> None:
    distribution, params = case.distribution, case.params([3, 4])
    torch.manual_seed(4)
    expected = distribution.entropy_estimate(params, 5)
    torch.manual_seed(4)
    noise = distribution.noise(params.expand(5, 3, 4, -1))
    torch.testing.assert_close(distribution.entropy_estimate(params, 5, noise), expected, rtol=0, atol=0)
    if not distribution.has_entropy:
        message = r"noise: expected shape \[6, 3, 4\] \+ \[noise size\], got \[5, 3, 4, \d+\]"
        with pytest.raises(ValueError, match=message):
            distribution.entropy_estimate(params, 6, noise)


@each
@pytest.mark.parametrize("method", ["mode", "entropy_estimate", "sample", "log_prob"])
def test_wrong_params_and_actions_are_named(case: Case, method: str) -> None:
    distribution, params = case.distribution, case.params([5])
    action = case.action(params)
    more = {"log_prob": (action,), "entropy_estimate": (2,)}.get(method, ())
    n = distribution.num_params
    with pytest.raises(ValueError, match=rf"params: expected shape \[\.\.\., {n}\], got \[5, {n - 1}\]"):
        getattr(distribution, method)(params[:, 1:], *more)
    with pytest.raises(TypeError, match=r"params: expected a floating dtype, got torch\.int64"):
        getattr(distribution, method)(params.long(), *more)
    with pytest.raises(ValueError, match=r"action: expected shape \[5.*\], got \[4"):
        distribution.log_prob(params, action[1:])


@each
def test_state_dict_is_empty_and_casts_change_nothing(case: Case) -> None:
    assert not case.distribution.state_dict()
    inputs = example(case, [5])
    expected, _ = run(Everything(case.distribution), inputs)
    for dtype in (torch.float64, torch.bfloat16):
        cast = copy.deepcopy(case.distribution).to(dtype)
        assert_close(run(Everything(cast), inputs)[0], expected, 0.0)
