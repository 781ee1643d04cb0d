"""What the tests of all distributions draw from: each with what it is to equal, values with their gradients."""

from typing import Any, Callable, List, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from a2c_compiled import distributions
from a2c_compiled.distributions import Distribution

BATCHES = ([], [5], [3, 4])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


class Case(NamedTuple):
    """A distribution and what it is to equal.

    ``gradient_in_action`` says whether the log-probability is differentiable there, and ``gradient_from_noise`` whether
    ``sample_from`` is in params. ``prepare`` makes params of normal numbers; ``tolerance`` is that of float64.
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
    """Several of torch's distributions over one action."""

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
    """Takes integers too."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.to(self.logits.dtype))


NVEC = [2, 4, 1, 3]


def torchrl(name: str) -> Any:
    return getattr(pytest.importorskip("torchrl.modules.distributions"), name)


def masked(params: Tensor) -> Any:
    logits, mask = params.chunk(2, -1)
    theirs = torchrl("MaskedOneHotCategorical")(logits=logits, mask=mask != 0)
    # Its own entropy has a gradient of NaN.
    theirs.entropy = td.Categorical(logits=logits.masked_fill(mask == 0, -1e9)).entropy
    return theirs


def allowed(params: Tensor) -> Tensor:
    """Logits, and a mask that allows the action of the largest."""
    logits, mask = params.chunk(2, -1)
    return torch.cat([logits, ((mask > -0.3) | (mask == mask.max(-1, keepdim=True).values)).to(params.dtype)], -1)


LOW, HIGH = [-1.0, 0.0, -1.5], [1.0, 0.75, 2.0]


def truncated(params: Tensor) -> Any:
    loc, raw = params.chunk(2, -1)
    scale = nn.functional.softplus(raw)
    return torchrl("TruncatedNormal")(loc, scale, low=params.new_tensor(LOW), high=params.new_tensor(HIGH))


def masked_choice(params: Tensor) -> td.Distribution:
    logits, mask = params.chunk(2, -1)
    # Not -inf: torch's entropy has a gradient of NaN there.
    return td.Categorical(logits=logits.masked_fill(mask == 0, -1e9))


def normal(params: Tensor) -> td.Distribution:
    loc, raw = params.chunk(2, -1)
    return td.Independent(td.Normal(loc, nn.functional.softplus(raw)), 1)


class SquashedNormal(td.TransformedDistribution):
    """With the mode that transformed distributions lack: the squashed location."""

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
    """With the entropy and the mode that transformed distributions lack."""

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
    """Over the parts of one tensor: a choice, a vector of two numbers, two of yes and no."""

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
    # Not near the bounds, where arctanh loses digits.
    Case(distributions.TanhNormal(3, LOW, HIGH, "softplus"), SquashedNormal, True, lambda params: 0.3 * params),
    # Not too narrow, since TorchRL gives up in the tails.
    Case(distributions.TruncatedNormal(3, LOW, HIGH, "softplus"), truncated, True, lambda params: 0.5 * params + 0.75),
    # torch's trigamma function, in the gradient, is good to 1e-10.
    Case(distributions.Beta(3, LOW, HIGH), StretchedBeta, True, gradient_from_noise=False, tolerance=1e-9),
    Case(
        distributions.Composite(distributions.Categorical(3), distributions.Normal(2, "softplus"), distributions.Bernoulli(2)),
        TorchRLComposite,
        True,
    ),
]


def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> List[Tensor]:
    """The value, and the gradients of a weighted sum of it."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    value = function(*inputs)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape).to(value.dtype)
    gradients = torch.autograd.grad((value * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    return [value.detach(), *gradients]


def assert_close(actual: List[Tensor], expected: List[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)
