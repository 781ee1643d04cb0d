"""Shared by the tests of the loss and of the training step: networks, steps with observations and actions, gradients."""

import contextlib
import copy
import inspect
from typing import NamedTuple, Optional
from unittest import mock

import torch
from cases import make_steps, weights
from torch import Tensor, nn

from a2c_compiled import A2CLoss, distributions
from a2c_compiled.update import Rollout

FEATURES = 3
CHOICES = 4
DIM = 2
DISTRIBUTIONS = {
    "Categorical": (distributions.Categorical, CHOICES),
    "OneHotCategorical": (distributions.OneHotCategorical, CHOICES),
    "MaskedCategorical": (distributions.MaskedCategorical, CHOICES),
    "Normal": (distributions.Normal, DIM),
    "TanhNormal": (distributions.TanhNormal, DIM),
}
ESTIMATORS = ("TD0", "TD1", "TDLambda", "GAE", "VTrace")
# Arguments with which the loss computes the advantage, and arguments that include the advantage.
INSIDE = ("reward", "next_observation", "done", "terminated", "sample_log_prob")
GIVEN = ("advantage", "value_target", "state_value")
MASKED = (*INSIDE, "state_value", "mask")
# Distribution, options, whether the trunk is shared, and further arguments. Every distribution and every estimator occurs.
MODES = {
    "gae_clipped": ("Categorical", {"value_estimator": "gae", "clip_value": 0.2}, False, INSIDE),
    "vtrace_separate": ("Normal", {"value_estimator": "vtrace", "separate_losses": True}, True, INSIDE),
    "td_lambda_masked": ("OneHotCategorical", {"value_estimator": "td_lambda", "clip_value": 0.2}, True, MASKED),
    "td1_sampled_entropy": ("TanhNormal", {"value_estimator": "td1", "samples_mc_entropy": 3}, False, INSIDE),
    "td0_unreduced": ("MaskedCategorical", {"value_estimator": "td0", "reduction": "none"}, False, INSIDE),
    "given_clipped": ("Categorical", {"clip_value": 0.2, "separate_losses": True, "reduction": "sum"}, True, GIVEN),
    "without_critic": ("Normal", {"critic_coef": None, "entropy_coef": 0.0}, False, ("advantage",)),
}


class LossSteps(NamedTuple):
    """All arguments of a loss, with one entry per step. Field names are argument names."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    done: Tensor
    terminated: Tensor
    advantage: Tensor
    value_target: Tensor
    state_value: Tensor
    sample_log_prob: Tensor
    mask: Tensor


def make_loss_steps(shape=(4, 5), distribution="Categorical", dtype=torch.float32, seed=0, column=True):
    """Returns random steps of ``shape``.

    If ``column``, all fields except observations and actions have a last dimension of 1, as in TorchRL's data.
    """
    steps = make_steps((*shape, 1) if column else shape, dtype, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    observation, next_observation = torch.randn((2, *shape, FEATURES), generator=generator, dtype=torch.float64).to(dtype)
    choice = torch.randint(CHOICES, shape, generator=generator)
    if distribution == "MaskedCategorical":
        choice = torch.where(allowed(observation).gather(-1, choice.unsqueeze(-1)).squeeze(-1), choice, 0)
    vector = torch.randn((*shape, DIM), generator=generator, dtype=torch.float64).to(dtype)
    action = {
        "OneHotCategorical": nn.functional.one_hot(choice, CHOICES),
        "Normal": vector,
        "TanhNormal": vector.tanh(),
    }.get(distribution, choice)
    mask = torch.rand(steps.reward.shape, generator=generator) < 0.7
    return LossSteps(
        observation,
        action,
        steps.reward,
        next_observation,
        steps.done,
        steps.terminated,
        steps.log_pi,
        steps.log_mu,
        steps.state_value,
        # Close to the log-probabilities of a policy with its initial weights.
        steps.log_mu - 1.5,
        mask,
    )


def make_rollout(shape=(5, 6), distribution="Categorical", seed=0, dtype=torch.float32, options=()):
    """Returns a random rollout, time first. ``options``: names of the optional entries to include."""
    steps = make_loss_steps(shape, distribution, dtype, seed, column=False)
    optional = {"log_prob": steps.sample_log_prob, "state_value": steps.state_value, "mask": steps.mask}
    return Rollout(
        steps.observation,
        steps.action,
        steps.reward,
        steps.next_observation,
        steps.done,
        steps.terminated,
        **{name: optional[name] for name in options},
    )


def of(steps, *names):
    """Returns observation, action and the fields ``names`` of ``steps`` as keyword arguments."""
    return {name: getattr(steps, name) for name in ("observation", "action", *names)}


def swapped(steps, first=0, second=1):
    """Returns the same steps with the two batch dimensions exchanged."""
    return LossSteps(*(tensor.transpose(first, second) for tensor in steps))


def allowed(observation):
    """Returns a mask of the choices that an observation allows: always the first, and choice ``i + 1`` if feature ``i`` is positive."""
    return torch.cat([torch.ones_like(observation[..., :1]), observation], -1) > 0


class MaskingActor(nn.Module):
    """Concatenates logits and the mask of the choices that the observation allows."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, observation):
        return torch.cat([self.logits(observation), allowed(observation).to(observation.dtype)], -1)


def make_networks(distribution="Categorical", shared=False, dtype=torch.float32, seed=0):
    """Returns actor and critic. If ``shared``, both have the same first layer."""
    kind, size = DISTRIBUTIONS[distribution]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk, other = (nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()) for _ in range(2))
        outputs = size if distribution == "MaskedCategorical" else kind(size).num_params
        actor = nn.Sequential(trunk, nn.Linear(8, outputs))
        critic = nn.Sequential(trunk if shared else other, nn.Linear(8, 1))
    if distribution == "MaskedCategorical":
        actor = MaskingActor(actor)
    return nn.ModuleList([actor, critic]).to(dtype)


def make_loss(distribution="Categorical", shared=False, networks=None, dtype=torch.float32, **options):
    """Returns a loss over ``networks``. Default: new small networks."""
    actor, critic = make_networks(distribution, shared, dtype) if networks is None else networks
    kind, size = DISTRIBUTIONS[distribution]
    return A2CLoss(actor, critic, kind(size), **options)


def present(outputs):
    """Returns the outputs that are not None, by name."""
    return {name: value for name, value in outputs._asdict().items() if value is not None}


def losses_of(outputs):
    """Returns the outputs that training minimises, by name."""
    named = outputs._asdict() if hasattr(outputs, "_asdict") else dict(outputs.items())
    return {name: value for name, value in named.items() if name.startswith("loss_") and value is not None}


def gradients(outputs, module):
    """Returns the gradients of a weighted sum of all losses with respect to each parameter of ``module``, by name."""
    losses = list(losses_of(outputs).values())
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(
        losses, parameters, [weights(loss) for loss in losses], allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, grads, strict=True))


def assert_same(actual, expected, tolerance=1e-5):
    """Asserts that two sets of outputs or gradients have equal names and shapes, and equal entries within ``tolerance``.

    None equals None.
    """
    actual, expected = (x._asdict() if hasattr(x, "_asdict") else x for x in (actual, expected))
    assert set(actual) == set(expected)
    for name, value in expected.items():
        if value is None or actual[name] is None:
            assert actual[name] is value, name
        else:
            torch.testing.assert_close(
                actual[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
            )


def assert_losses_same(loss, expected_loss, arguments, expected_arguments=None, tolerance=1e-5):
    """Asserts that two losses have the same outputs and the same gradients of all parameters."""
    outputs = loss(**arguments)
    expected = expected_loss(**(arguments if expected_arguments is None else expected_arguments))
    assert_same(outputs, expected, tolerance)
    assert_same(gradients(outputs, loss), gradients(expected, expected_loss), tolerance)


def traced(module, backend="eager", dynamic=True):
    """Returns ``module`` traced by Dynamo as one graph, for any shape unless ``dynamic`` is False.

    With the backend "eager", torch runs the traced graph without changes. "aot_eager" also traces the backward pass and removes
    mutation, and takes four times as long. "inductor" also generates code.
    """
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, dynamic=dynamic, backend=backend)


@contextlib.contextmanager
def compile_backend(backend="eager"):
    """In the block, every ``torch.compile`` uses ``backend``, see :func:`traced`. Of its ``options``, it takes those of guards alone."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_with_options = torch.compile

    def compile_without_options(*arguments, options=None, **named):
        guards = {name: option for name, option in (options or {}).items() if name == "guard_filter_fn"}
        return compile_with_options(*arguments, **{**named, "backend": backend}, options=guards or None)

    with mock.patch.object(torch, "compile", compile_without_options):
        yield


def graphs_compiled():
    """Returns the number of graphs compiled since the counters were cleared. :func:`compile_backend` clears them."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class ClippedRatioLoss(A2CLoss):
    """An objective that replaces A2C's. Schulman et al., Proximal Policy Optimization Algorithms, 2017, eq. 7."""

    needs_sample_log_prob = True

    def objective(self, log_prob: Tensor, advantage: Tensor, sample_log_prob: Optional[Tensor]) -> Tensor:
        assert sample_log_prob is not None
        ratio = (log_prob - sample_log_prob).exp()
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def make_clipped_loss(networks=None, dtype=torch.float32, **options):
    actor, critic = make_networks(dtype=dtype) if networks is None else networks
    return ClippedRatioLoss(actor, critic, distributions.Categorical(CHOICES), **options)


def copies(module, count=2):
    return [copy.deepcopy(module) for _ in range(count)]


def parameter_names(function):
    return tuple(inspect.signature(function).parameters)


class CountingCritic(nn.Module):
    """A critic that counts its forward calls."""

    def __init__(self, critic):
        super().__init__()
        self.critic, self.calls = critic, 0

    def forward(self, observation):
        self.calls += 1
        return self.critic(observation)


class TupleNetwork(nn.Module):
    """A network over a tuple of two observations."""

    def __init__(self, outputs):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, outputs), nn.Linear(2, outputs)

    def forward(self, observation):
        first, second = observation
        return self.first(first) + self.second(second).tanh()
