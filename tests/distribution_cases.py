"""Shared by the tests of distributions: distributions with the references that they must equal, and helpers for values and gradients."""

import math
from typing import Any, Callable, List, NamedTuple, Sequence, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from a2c_compiled import distributions
from a2c_compiled.distributions import (
    Categorical,
    Distribution,
    MaskedCategorical,
    Normal,
    OneHotCategorical,
    TanhNormal,
    TorchDistribution,
)

BATCHES = ([], [5], [3, 4])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
TORCH_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
INF = float("inf")
NAN = float("nan")
HALF = (torch.bfloat16, torch.float16)
# A correct sampler is off by more standard errors in one of two million comparisons. Seeds are fixed, so results do not vary.
STANDARD_ERRORS = 5.0


class Case(NamedTuple):
    """A distribution and the reference that it must equal.

    Attributes:
        distribution: the distribution.
        reference: function from params to another library's distribution.
        gradient_in_action: whether the log-probability is differentiable with respect to the action.
        prepare: function from normally distributed numbers to params.
        gradient_from_noise: whether ``sample_from`` is differentiable with respect to params.
        tolerance: tolerance in float64.
    """

    distribution: Distribution
    reference: Callable[[Tensor], Any]
    gradient_in_action: bool = False
    prepare: Callable[[Tensor], Tensor] = lambda params: params
    gradient_from_noise: bool = True
    tolerance: float = 1e-12

    def __str__(self) -> str:
        return type(self.distribution).__name__

    def params(self, batch: List[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        params = torch.randn([*batch, self.distribution.num_params], generator=generator, dtype=torch.float64)
        return self.prepare(params).to(dtype)

    def action(self, params: Tensor, seed: int = 1) -> Tensor:
        torch.manual_seed(seed)
        return self.distribution.sample(params)


class SideBySide:
    """Several of torch's distributions, each over one entry of an action."""

    def __init__(self, parts: List[td.Distribution]) -> None:
        self.parts = parts

    def log_prob(self, action: Tensor) -> Tensor:
        return sum(part.log_prob(column) for part, column in zip(self.parts, action.unbind(-1), strict=True))

    def entropy(self) -> Tensor:
        return sum(part.entropy() for part in self.parts)

    @property
    def mode(self) -> Tensor:
        return torch.stack([part.mode for part in self.parts], -1)


class FloatBernoulli(td.Bernoulli):
    """A Bernoulli distribution whose ``log_prob`` also accepts integers."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.to(self.logits.dtype))


NVEC = [2, 4, 1, 3]


def torchrl(name: str) -> Any:
    return getattr(pytest.importorskip("torchrl.modules.distributions"), name)


def masked(params: Tensor) -> Any:
    logits, mask = params.chunk(2, -1)
    theirs = torchrl("MaskedOneHotCategorical")(logits=logits, mask=mask != 0)
    # The gradient of TorchRL's own entropy is NaN.
    theirs.entropy = td.Categorical(logits=logits.masked_fill(mask == 0, -1e9)).entropy
    return theirs


def allowed(params: Tensor) -> Tensor:
    """Returns logits and a mask of 0 and 1. In each row, the mask allows at least one action: the one with the largest random number."""
    logits, mask = params.chunk(2, -1)
    return torch.cat([logits, ((mask > -0.3) | (mask == mask.max(-1, keepdim=True).values)).to(params.dtype)], -1)


LOW, HIGH = [-1.0, 0.0, -1.5], [1.0, 0.75, 2.0]


def truncated(params: Tensor) -> Any:
    loc, raw = params.chunk(2, -1)
    scale = nn.functional.softplus(raw)
    return torchrl("TruncatedNormal")(loc, scale, low=params.new_tensor(LOW), high=params.new_tensor(HIGH))


def masked_choice(params: Tensor) -> td.Distribution:
    logits, mask = params.chunk(2, -1)
    # -1e9 instead of -inf, for which the gradient of torch's entropy is NaN.
    return td.Categorical(logits=logits.masked_fill(mask == 0, -1e9))


def normal(params: Tensor) -> td.Distribution:
    loc, raw = params.chunk(2, -1)
    return td.Independent(td.Normal(loc, nn.functional.softplus(raw)), 1)


class SquashedNormal(td.TransformedDistribution):
    """A normal distribution, transformed by tanh into a box, with the mode that torch's class lacks: the transformed location."""

    def __init__(self, params: Tensor) -> None:
        low, high = params.new_tensor(LOW), params.new_tensor(HIGH)
        super().__init__(
            normal(params), [td.TanhTransform(), td.AffineTransform((high + low) / 2, (high - low) / 2, event_dim=1)]
        )

    @property
    def mode(self) -> Tensor:
        mode = self.base_dist.mean
        for transform in self.transforms:
            mode = transform(mode)
        return mode


class StretchedBeta(td.Independent):
    """A beta distribution, transformed into a box, with the entropy and the mode that torch's transformed distributions lack."""

    def __init__(self, params: Tensor) -> None:
        self.low, self.width = params.new_tensor(LOW), params.new_tensor(HIGH) - params.new_tensor(LOW)
        self.beta = td.Beta(*(nn.functional.softplus(params) + 1).chunk(2, -1))
        super().__init__(
            td.TransformedDistribution(self.beta, td.AffineTransform(self.low, self.width), validate_args=False), 1
        )

    def entropy(self) -> Tensor:
        return (self.beta.entropy() + self.width.log()).sum(-1)

    @property
    def mode(self) -> Tensor:
        return self.low + self.width * self.beta.mode


class TorchRLComposite:
    """TorchRL's composite distribution over the parts of one tensor: a choice, a vector of two numbers, and two flags."""

    def __init__(self, params: Tensor) -> None:
        tensordict = pytest.importorskip("tensordict")
        choice, loc, raw, yes = params.split([3, 2, 2, 2], -1)
        parts = {
            "choice": td.Categorical(logits=choice),
            "vector": td.Independent(td.Normal(loc, nn.functional.softplus(raw)), 1),
            "yes": td.Independent(FloatBernoulli(logits=yes), 1),
        }
        given = tensordict.TensorDict({name: {"params": params} for name in parts}, params.shape[:-1])
        makers = {name: lambda params, part=part: part for name, part in parts.items()}
        self.batch = params.shape[:-1]
        self.aggregate = tensordict.nn.set_composite_lp_aggregate(True)
        self.tensordict = tensordict.TensorDict
        self.theirs = tensordict.nn.CompositeDistribution(given, makers)

    def log_prob(self, action: Tensor) -> Tensor:
        choice, vector, yes = action.split([1, 2, 2], -1)
        with self.aggregate:
            parts = {"choice": choice.squeeze(-1).detach(), "vector": vector, "yes": yes.detach()}
            return self.theirs.log_prob(self.tensordict(parts, self.batch))

    def entropy(self) -> Tensor:
        with self.aggregate:
            return self.theirs.entropy()

    @property
    def mode(self) -> Tensor:
        mode = self.theirs.mode
        return torch.cat([mode["choice"].unsqueeze(-1), mode["vector"], mode["yes"]], -1)


CASES = [
    Case(distributions.Categorical(4), lambda params: td.Categorical(logits=params)),
    Case(distributions.OneHotCategorical(4), lambda params: td.OneHotCategorical(logits=params)),
    Case(distributions.MaskedCategorical(4), masked_choice, prepare=allowed),
    Case(
        distributions.MultiCategorical(NVEC),
        lambda params: SideBySide([td.Categorical(logits=logits) for logits in params.split(NVEC, -1)]),
    ),
    Case(distributions.Bernoulli(3), lambda params: td.Independent(FloatBernoulli(logits=params), 1)),
    Case(distributions.MaskedOneHotCategorical(4), masked, prepare=allowed),
    Case(distributions.Ordinal(4), lambda params: torchrl("Ordinal")(params)),
    Case(distributions.OneHotOrdinal(4), lambda params: torchrl("OneHotOrdinal")(params)),
    Case(distributions.Normal(3, "softplus"), normal, True),
    # Small params keep actions away from the bounds, where arctanh loses digits.
    Case(distributions.TanhNormal(3, LOW, HIGH, "softplus"), SquashedNormal, True, lambda params: 0.3 * params),
    # Wide distributions: in the tails of narrow ones TorchRL limits cumulative probabilities, which changes its results.
    Case(distributions.TruncatedNormal(3, LOW, HIGH, "softplus"), truncated, True, lambda params: 0.5 * params + 0.75),
    # The gradient contains torch's trigamma function, which is accurate to 1e-10.
    Case(distributions.Beta(3, LOW, HIGH), StretchedBeta, True, gradient_from_noise=False, tolerance=1e-9),
    Case(
        distributions.Composite(distributions.Categorical(3), distributions.Normal(2, "softplus"), distributions.Bernoulli(2)),
        TorchRLComposite,
        True,
    ),
]


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> List[Tensor]:
    """Returns the value of ``function``, and the gradients of a weighted sum of its entries with respect to the floating-point inputs."""
    inputs = tuple(x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs)
    value = function(*inputs)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape).to(value.dtype)
    differentiable = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad((value * weight).sum(), differentiable, allow_unused=True, materialize_grads=True)
    return [value.detach(), *gradients]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)


# Distributions with several choices of options, and the torch.distributions that they must equal.


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


def torch_normal(params: Tensor) -> td.Distribution:
    loc, raw = params.chunk(2, -1)
    return td.Independent(td.Normal(loc, raw.exp(), validate_args=False), 1, validate_args=False)


class TorchCase(NamedTuple):
    """A distribution with one choice of options, the torch distribution that it must equal, and the bounds of its actions."""

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
            # The action with the largest random number is always allowed, so that each row allows an action.
            params = torch.cat([logits, ((mask > -0.3) | (mask == mask.max(-1, keepdim=True).values)).double()], -1)
        return params.to(dtype)

    def action(self, params: Tensor, seed: int = 1) -> Tensor:
        """Returns a possible action. With bounds, the action lies well inside them, so that arctanh is well-conditioned."""
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
    TorchCase("categorical", Categorical(4), lambda params: td.Categorical(logits=params)),
    TorchCase("one_hot", OneHotCategorical(4), lambda params: td.OneHotCategorical(logits=params)),
    TorchCase("masked", MaskedCategorical(4), masked_choice),
]
NORMALS = [
    TorchCase("normal", Normal(3), normal_reference()),
    TorchCase("normal_softplus", Normal(3, "softplus"), normal_reference("softplus")),
    TorchCase("normal_exp", Normal(3, "exp"), normal_reference("exp")),
    TorchCase("normal_lower_bound", Normal(3, "exp", scale_lb=0.9), normal_reference("exp", 0.9)),
    TorchCase("normal_tanh_loc", Normal(3, tanh_loc=True, upscale=0.7), normal_reference(tanh_loc=True, upscale=0.7)),
]
TANH_NORMALS = [
    TorchCase("tanh", TanhNormal(3), tanh_normal_reference([-1.0], [1.0]), (-1.0,) * 3, (1.0,) * 3),
    TorchCase("tanh_box", TanhNormal(3, *BOX), tanh_normal_reference(*BOX), *BOX),
    TorchCase(
        "tanh_options",
        TanhNormal(3, *BOX, scale_mapping="softplus", scale_lb=0.5, tanh_loc=True, upscale=2.0),
        tanh_normal_reference(*BOX, scale_mapping="softplus", scale_lb=0.5, tanh_loc=True, upscale=2.0),
        *BOX,
    ),
]
TORCH = [TorchCase("torch", TorchDistribution(torch_normal, num_params=6), torch_normal)]
SCRIPTABLE = [*DISCRETE, NORMALS[0], TANH_NORMALS[1]]
ONE_OF_EACH = [*SCRIPTABLE, *TORCH]
ALL = [*DISCRETE, *NORMALS, *TANH_NORMALS, *TORCH]


def each(cases: List[TorchCase]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


batches = pytest.mark.parametrize("batch", BATCHES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
half_dtypes = pytest.mark.parametrize("dtype", HALF, ids=str)


def assert_finite(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        assert tensor.isfinite().all(), tensor


def fix_standard_normal(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
    """Makes torch.distributions.Normal.rsample return ``loc + scale * noise``."""
    monkeypatch.setattr(td.normal, "_standard_normal", lambda shape, dtype, device: noise.to(dtype).expand(shape))


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
