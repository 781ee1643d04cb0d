"""accelerate() and from_torchrl(): the same results, gradients and side effects as TorchRL, or a fallback to TorchRL's function."""

import copy
import sys
import types
from functools import partial

import pytest
import torch
from cases import make_steps
from loss_cases import CHOICES, DIM, FEATURES, assert_same, gradients, make_loss_steps
from torch import nn

pytest.importorskip("torchrl")

from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule, TensorDictSequential, set_skip_existing
from torchrl.modules import (
    MLP,
    ActorValueOperator,
    IndependentNormal,
    MaskedCategorical,
    MaskedOneHotCategorical,
    NormalParamExtractor,
    OneHotCategorical,
    OneHotOrdinal,
    Ordinal,
    ProbabilisticActor,
    TanhNormal,
    TruncatedNormal,
    ValueOperator,
)
from torchrl.modules.value_norm import PercentileValueNorm, PopArtValueNorm
from torchrl.objectives import A2CLoss, ClipPPOLoss, ValueEstimators
from torchrl.objectives import value as estimators
from torchrl.objectives.value import advantages, functional
from torchrl.objectives.value.advantages import ValueEstimatorBase

import a2c_compiled
from a2c_compiled import export
from a2c_compiled.integrations.torchrl import accelerate, from_torchrl, restore
from a2c_compiled.integrations.torchrl.value_functions import SERVED
from a2c_compiled.shared_trunk import trunk_length

pytestmark = pytest.mark.filterwarnings(
    # TorchRL's own note that it samples the entropy.
    "ignore:This computes a Monte-Carlo:UserWarning",
    # Its schema of layouts, read by dynamo.
    "ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning",
)

ORIGINALS = {name: getattr(functional, name) for name in SERVED}
METHODS = ((ValueEstimatorBase, "_call_value_nets"), (A2CLoss, "_log_probs"), (A2CLoss, "loss_critic"))
ORIGINAL_METHODS = [getattr(*place) for place in METHODS]
STEP = ("state_value", "next_state_value", "reward", "done", "terminated")
OPERANDS = {
    "generalized_advantage_estimate": ("gamma", "lmbda", *STEP),
    "td0_return_estimate": ("gamma", "next_state_value", "reward", "terminated"),
    "td0_advantage_estimate": ("gamma", *STEP),
    "td1_return_estimate": ("gamma", *STEP[1:]),
    "td1_advantage_estimate": ("gamma", *STEP),
    "td_lambda_return_estimate": ("gamma", "lmbda", *STEP[1:]),
    "td_lambda_advantage_estimate": ("gamma", "lmbda", *STEP),
    "vtrace_advantage_estimate": ("gamma", "log_pi", "log_mu", *STEP),
    "reward2go": ("reward", "done", "gamma"),
}


@pytest.fixture(autouse=True)
def _originals_again():
    yield
    restore()
    assert all(getattr(functional, name) is original for name, original in ORIGINALS.items())
    assert [getattr(*place) for place in METHODS] == ORIGINAL_METHODS


# Value functions


def operands(name, shape=(4, 7, 1), dtype=torch.float32, grad=False, layout=lambda tensor: tensor, per_step=False):
    """Arguments of the function ``name``; with ``grad``, everything but the flags requires it."""
    steps = {key: layout(tensor) for key, tensor in make_steps(shape, dtype)._asdict().items()}
    size = shape if per_step else ()
    coefficients = {"gamma": torch.full(size, 0.9, dtype=dtype), "lmbda": torch.full(size, 0.8, dtype=dtype)}
    given = [{**steps, **coefficients}[key].clone() for key in OPERANDS[name.removeprefix("vec_")]]
    return [one.requires_grad_() if grad and one.is_floating_point() else one for one in given]


def flat(result):
    return result if isinstance(result, tuple) else (result,)


def differentiated(result, arguments):
    wanted = [argument for argument in arguments if getattr(argument, "requires_grad", False)]
    weights = [torch.linspace(-1, 2, one.numel(), dtype=one.dtype).reshape(one.shape) for one in flat(result)]
    return torch.autograd.grad(flat(result), wanted, weights, allow_unused=True, materialize_grads=True)


def check(name, *calls, served=True, **named):
    """Each call, a list of arguments, gives TorchRL's results and gradients; the kernels serve all of the calls, or none of them."""
    expected = [ORIGINALS[name](*arguments, **named) for arguments in calls]
    before = [[one.clone() if isinstance(one, torch.Tensor) else one for one in arguments] for arguments in calls]
    actual = []
    with accelerate() as acceleration:
        for arguments in calls:
            counts = acceleration.calls, sum(acceleration.fallbacks.values())
            actual.append(getattr(functional, name)(*arguments, **named))
            increased = acceleration.calls > counts[0], sum(acceleration.fallbacks.values()) > counts[1]
            assert increased == (served, not served), acceleration
    for result, truth, arguments, originals in zip(actual, expected, calls, before, strict=True):
        assert type(result) is type(truth)
        for one, other in zip(flat(result), flat(truth), strict=True):
            assert one.dtype == other.dtype
            assert one.is_contiguous() or not other.is_contiguous()
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        for argument, original in zip(arguments, originals, strict=True):
            assert not isinstance(argument, torch.Tensor) or torch.equal(argument, original)
        if any(getattr(argument, "requires_grad", False) for argument in arguments):
            pairs = zip(differentiated(result, arguments), differentiated(truth, arguments), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SERVED)
def test_value_functions_equal_torchrl(name):
    dtypes = (torch.float32, torch.float64)
    in_rows = operands(name, layout=lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1))
    numbers = [float(one) if isinstance(one, torch.Tensor) and one.dim() == 0 else one for one in operands(name)]
    shapes = ((4, 7, 1), (5, 2), (2, 3, 6, 2))
    check(name, in_rows, numbers, *(operands(name, shape, dtype) for dtype in dtypes for shape in shapes))
    if not name.startswith("td0"):
        check(name, *(operands(name, shape, dtype) for dtype in dtypes for shape in ((4, 7), (9,))), time_dim=-1)
        check(name, *(operands(name, (3, 5, 2, 2), dtype) for dtype in dtypes), time_dim=1)


@pytest.mark.parametrize("name", SERVED)
def test_gradients_of_value_functions_equal_torchrl(name):
    """Also the gradients of gamma and lmbda, which are missing or wrong in TorchRL's vectorised functions."""
    arguments = operands(name, grad=True, dtype=torch.float64)
    if not name.startswith("vec_") and name != "reward2go":
        return check(name, arguments)
    check(name, [one.detach() if one.dim() == 0 else one for one in arguments])
    if name == "reward2go":
        return None
    with accelerate():
        vectorized = differentiated(getattr(functional, name)(*arguments), arguments)
    loop = ORIGINALS[name.removeprefix("vec_")]
    for one, other in zip(vectorized, differentiated(loop(*arguments), arguments), strict=True):
        torch.testing.assert_close(one, other)
    return None


@pytest.mark.parametrize("name", [name for name in SERVED if name != "reward2go"])
def test_a_gamma_for_each_step_equals_torchrl(name):
    arguments = operands(name, per_step=True)
    if name.startswith("vec_td_lambda"):
        arguments[1] = arguments[1][0, 0, 0]  # TorchRL's takes no lmbda for each step
    check(name, arguments)
    if "td1" in name or "td_lambda_" in name:
        loop = name.removeprefix("vec_")
        check(loop, operands(loop, per_step=True), served=False, rolling_gamma=False)


@pytest.mark.parametrize("name", ["td1_return_estimate", "td_lambda_return_estimate", "generalized_advantage_estimate"])
def test_terminated_without_done_equals_torchrl(name):
    arguments = operands(name)
    arguments[-2] = arguments[-2] & False
    arguments[-1] = torch.rand(arguments[-1].shape) < 0.3
    check(name, arguments)
    check(name, arguments[:-1])


def test_half_precision_keeps_what_torchrl_returns():
    """Its loops return the input's dtype, and lose precision on the way; its vectorised functions return float32."""
    arguments = operands("generalized_advantage_estimate", dtype=torch.bfloat16)
    wide = [one.float() if one.is_floating_point() else one for one in arguments]
    with accelerate() as acceleration:
        advantage, _ = functional.generalized_advantage_estimate(*arguments)
    assert acceleration.calls == 1
    expected, _ = ORIGINALS["generalized_advantage_estimate"](*wide)
    torch.testing.assert_close(advantage, expected.bfloat16(), rtol=0.01, atol=0.01)
    check("vec_generalized_advantage_estimate", arguments, served=False)


def test_gamma_zero_and_nan_after_an_episodes_end_give_finite_advantages():
    gamma, *rest = operands("vec_generalized_advantage_estimate")
    rest[4], rest[5] = rest[4].fill_(False), rest[5].fill_(False)
    rest[4][:, 3], rest[5][:, 3], rest[2][:, 3] = True, True, float("nan")
    with accelerate():
        advantage, _ = functional.vec_generalized_advantage_estimate(torch.zeros_like(gamma), *rest)
    assert advantage.isfinite().all()


class Subclass(torch.Tensor):
    pass


FALLBACKS = {
    "a subclass": lambda steps: [*steps[:4], steps[4].as_subclass(Subclass), *steps[5:]],
    "mixed dtypes": lambda steps: [*steps[:4], steps[4].double(), *steps[5:]],
    "flags that are integers": lambda steps: [*steps[:5], *(flag.to(torch.int8) for flag in steps[5:])],
    "a gamma per step in another dtype": lambda steps: [steps[0].double().expand_as(steps[2]).clone(), *steps[1:]],
    "a gamma to broadcast": lambda steps: [steps[0].expand(7, 1).clone(), *steps[1:]],
    "no steps": lambda steps: [one[:, :0] if one.dim() else one for one in steps],
}


@pytest.mark.parametrize("kind", FALLBACKS)
def test_unsupported_arguments_are_left_to_torchrl_and_counted(kind):
    arguments = FALLBACKS[kind](operands("generalized_advantage_estimate"))
    expected = ORIGINALS["generalized_advantage_estimate"](*arguments)
    with accelerate() as acceleration:
        actual = functional.generalized_advantage_estimate(*arguments)
    assert (acceleration.calls, sum(acceleration.fallbacks.values())) == (0, 1)
    for one, other in zip(actual, expected, strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


def test_a_zero_dimensional_gamma_in_another_dtype_is_served_in_the_dtype_of_the_data():
    gamma, *steps = operands("generalized_advantage_estimate")
    assert steps[1].dtype == torch.float32
    expected = ORIGINALS["generalized_advantage_estimate"](gamma.double(), *steps)
    with accelerate() as acceleration:
        actual = functional.generalized_advantage_estimate(gamma.double(), *steps)
    assert acceleration.calls == 1
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [*SERVED])
def test_errors_equal_those_of_torchrl(name):
    arguments = operands(name)
    arguments[1 if name == "reward2go" else -1] = arguments[1 if name == "reward2go" else -1][:, :3]
    with pytest.raises((RuntimeError, ValueError)) as expected:
        ORIGINALS[name](*arguments)
    with accelerate(), pytest.raises(expected.type) as actual:
        getattr(functional, name)(*arguments)
    assert str(actual.value) == str(expected.value)


def test_forward_mode_is_left_to_torchrl():
    gamma, *steps = operands("td_lambda_return_estimate", dtype=torch.float64)
    with accelerate() as acceleration:
        _, tangent = torch.func.jvp(lambda gamma: functional.td_lambda_return_estimate(gamma, *steps), (gamma,), (gamma,))
    assert tangent.isfinite().all()
    assert acceleration.calls == 0


@pytest.mark.slow
def test_vmap_and_compile_give_the_same_result():
    arguments = operands("td_lambda_return_estimate", dtype=torch.float64)
    expected = ORIGINALS["td_lambda_return_estimate"](*arguments)
    with accelerate():
        mapped = torch.func.vmap(lambda reward: functional.td_lambda_return_estimate(*arguments[:3], reward, *arguments[4:]))
        torch.testing.assert_close(mapped(torch.stack([arguments[3]] * 2))[1], expected)
        compiled = torch.compile(
            lambda *arguments: functional.td_lambda_return_estimate(*arguments), backend="aot_eager", fullgraph=True
        )
        torch.testing.assert_close(compiled(*arguments), expected)


# Putting in place and back


def test_every_module_gets_the_functions_until_the_block_ends():
    early, late = types.ModuleType("early"), types.ModuleType("late")
    early.renamed = functional.generalized_advantage_estimate
    sys.modules.update(early=early, late=late)
    try:
        with accelerate():
            assert early.renamed is functional.generalized_advantage_estimate is advantages.generalized_advantage_estimate
            assert early.renamed is not ORIGINALS["generalized_advantage_estimate"]
            late.function = functional.reward2go
        assert early.renamed is ORIGINALS["generalized_advantage_estimate"] is advantages.generalized_advantage_estimate
        assert late.function is ORIGINALS["reward2go"]
        late.other = functional.td0_return_estimate  # a new name in a module that has been searched before
        del early.renamed
        with accelerate():
            assert late.function is functional.reward2go is not ORIGINALS["reward2go"]
            assert late.other is functional.td0_return_estimate is not ORIGINALS["td0_return_estimate"]
            assert not hasattr(early, "renamed")
        assert (late.function, late.other) == (ORIGINALS["reward2go"], ORIGINALS["td0_return_estimate"])
    finally:
        del sys.modules["early"], sys.modules["late"]


def test_a_name_that_is_assigned_again_in_the_main_module_gets_the_functions(monkeypatch):
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    for name in ("reward2go", "td0_return_estimate"):
        main.function = functional.vtrace_advantage_estimate
        with accelerate():
            pass
        main.function = getattr(functional, name)
        with accelerate():
            assert main.function is getattr(functional, name) is not ORIGINALS[name]
        assert main.function is ORIGINALS[name]


def test_nested_accelerates_count_their_own_calls():
    arguments = operands("reward2go")
    with accelerate() as outer:
        functional.reward2go(*arguments)
        with accelerate() as inner:
            functional.reward2go(*arguments)
        functional.reward2go(*arguments)
    assert (outer.calls, inner.calls) == (3, 1)
    assert functional.reward2go is ORIGINALS["reward2go"]
    accelerate()
    accelerate()
    restore()
    assert functional.reward2go is ORIGINALS["reward2go"]


# Estimators and losses


def network(outputs, seed=0, first=FEATURES):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(first, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, outputs))


def data(steps=None, **entries):
    """A TensorDict ``[N, T]``."""
    steps = make_loss_steps() if steps is None else steps
    following = {
        "observation": steps.next_observation,
        "reward": steps.reward,
        "done": steps.done,
        "terminated": steps.terminated,
    }
    root = {"observation": steps.observation, "action": steps.action, "action_log_prob": steps.sample_log_prob.squeeze(-1)}
    return TensorDict({**root, "next": following, **entries}, steps.observation.shape[:2])


def actor(module=None, kind=torch.distributions.Categorical, keys=("logits",), **options):
    module = network(CHOICES, 1) if module is None else module
    if isinstance(module, nn.Module) and not isinstance(module, TensorDictModule | TensorDictSequential):
        module = TensorDictModule(module, ["observation"], [key for key in keys if key != "mask"])
    return ProbabilisticActor(module, in_keys=list(keys), distribution_class=kind, **options)


def critic(module=None):
    return ValueOperator(network(1, 2) if module is None else module, in_keys=["observation"])


ESTIMATORS = {
    "gae": partial(estimators.GAE, gamma=0.97, lmbda=0.9),
    "gae_loop": partial(estimators.GAE, gamma=0.97, lmbda=0.9, average_gae=True, vectorized=False),
    "td0": partial(estimators.TD0Estimator, gamma=0.97),
    "td1": partial(estimators.TD1Estimator, gamma=0.97),
    "td_lambda": partial(estimators.TDLambdaEstimator, gamma=0.97, lmbda=0.9, average_rewards=True),
}


def before_and_after(call):
    """The results of a call without and with ``accelerate()``."""
    expected = call()
    with accelerate() as acceleration:
        actual = call()
    return expected, actual, acceleration


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_accelerated_estimators_write_the_same_entries(name, differentiable):
    value_net = critic()

    def call():
        batch = data()
        batch["observation"].requires_grad_(differentiable)
        batch["next", "observation"][1, 2] = float("nan")
        estimator = ESTIMATORS[name](value_network=value_net, differentiable=differentiable)
        result = estimator(batch)
        assert result is batch
        assert all(parameter.requires_grad for parameter in value_net.parameters())
        entries = dict(batch.flatten_keys(".").items())
        if differentiable:
            entries["grad"] = torch.autograd.grad(entries["advantage"].square().sum(), batch["observation"])[0]
        return {key: value for key, value in entries.items() if value.is_floating_point() and not value.isnan().any()}

    expected, actual, acceleration = before_and_after(call)
    assert acceleration.calls == 2
    assert not acceleration.fallbacks
    assert_same(actual, expected)


def test_accelerated_vtrace_gives_the_same_result():
    def call():
        torch.manual_seed(0)  # TorchRL scores an action that it samples anew
        batch = data()
        estimators.VTrace(gamma=0.97, actor_network=actor(return_log_prob=True), value_network=critic())(batch)
        return {"advantage": batch["advantage"], "value_target": batch["value_target"]}

    expected, actual, acceleration = before_and_after(call)
    assert acceleration.calls == 2
    assert_same(actual, expected)


class Unknown(nn.Module):
    """A layer that the integration does not know, so that it may depend on the batch shape."""

    def forward(self, x, y=1.0):
        return (x * y).sum(-1, keepdim=True)


VALUE_NETS = {
    "unknown layers": lambda: critic(Unknown()),
    "a hook": lambda: critic(nn.Sequential(_watched(network(1, 2)))),
    "two entries": lambda: TensorDictModule(Unknown(), ["observation", "observation"], ["state_value"]),
    "a chain": lambda: TensorDictSequential(critic()),
    "dropout": lambda: critic(nn.Sequential(nn.Dropout(0.0), nn.Linear(FEATURES, 1))),
}


def _watched(module):
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize("kind", VALUE_NETS)
def test_unsupported_value_networks_are_called_by_torchrl(kind):
    torch.manual_seed(0)
    value_net = VALUE_NETS[kind]()

    def call():
        estimator = ESTIMATORS["gae"](value_network=value_net)
        if kind == "dropout":
            estimator.set_vmap_randomness("different")
        return {key: value for key, value in estimator(data()).items() if key in ("advantage", "value_target")}

    expected, actual, acceleration = before_and_after(call)
    assert_same(actual, expected)
    assert [reason for reason in acceleration.fallbacks if reason.startswith("value network")]


def test_existing_values_are_kept_with_skip_existing():
    def call():
        batch = data(state_value=torch.zeros(4, 5, 1))
        batch["next", "state_value"] = torch.zeros(4, 5, 1)
        with set_skip_existing(True):
            ESTIMATORS["gae"](value_network=critic(), skip_existing=True)(batch)
        return {"advantage": batch["advantage"], "state_value": batch["state_value"]}

    expected, actual, _ = before_and_after(call)
    assert_same(actual, expected)
    assert not actual["state_value"].any()


def loss_of(kind=A2CLoss, shared=False, estimator=ValueEstimators.GAE, module=None, value_net=None, **options):
    """A TorchRL loss over the same networks every time."""
    policy = actor() if module is None else module
    value_net = critic() if value_net is None else value_net
    if shared:
        common = TensorDictModule(network(6), ["observation"], ["hidden"])
        head = ProbabilisticActor(
            TensorDictModule(nn.Linear(6, CHOICES), ["hidden"], ["logits"]),
            in_keys=["logits"],
            distribution_class=torch.distributions.Categorical,
        )
        both = ActorValueOperator(common, head, ValueOperator(nn.Linear(6, 1), in_keys=["hidden"]))
        policy, value_net = both.get_policy_operator(), both.get_value_operator()
    loss = kind(policy, value_net, **options)
    loss.make_value_estimator(estimator, **({"gamma": 0.97} if isinstance(estimator, ValueEstimators) else {}))
    return loss


def results(loss, batch, keys=("loss_objective", "loss_critic", "loss_entropy")):
    """Losses, and the gradients of their sum to every parameter."""
    torch.manual_seed(0)
    outputs = loss(batch)
    names, parameters = zip(*loss.named_parameters(), strict=True)
    total = sum(outputs[key].sum() for key in keys)
    grads = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return {**{key: outputs[key] for key in keys}, **dict(zip(names, grads, strict=True))}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (A2CLoss, {}),
        (A2CLoss, {"clip_value": 0.2, "reduction": "none", "loss_critic_type": "l2"}),
        (A2CLoss, {"functional": False}),
        (A2CLoss, {"shared": True, "separate_losses": True}),
        (A2CLoss, {"shared": True, "estimator": ValueEstimators.TDLambda}),
        (ClipPPOLoss, {}),
        (ClipPPOLoss, {"estimator": ValueEstimators.TD1}),
    ],
    ids=str,
)
def test_accelerated_losses_and_gradients_equal_torchrl(kind, options):
    torch.manual_seed(0)
    loss = loss_of(kind, **options)
    keys = ("loss_objective", "loss_critic", "loss_entropy")
    expected, actual, acceleration = before_and_after(lambda: results(loss, data(), keys))
    assert acceleration.calls >= 1
    assert_same(actual, expected)
    assert_same(results(loss, data(), keys), expected)


def test_accelerated_losses_after_a_conversion_or_copy_equal_torchrl():
    for change in (nn.Module.double, copy.deepcopy):
        loss = change(loss_of())
        batch = data(make_loss_steps(dtype=next(loss.parameters()).dtype))
        expected, actual, _ = before_and_after(lambda loss=loss, batch=batch: results(loss, batch.clone()))
        assert_same(actual, expected)


def test_a_loss_that_raises_stays_functional():
    loss = loss_of()
    with accelerate(), pytest.raises(KeyError):
        loss.loss_critic(data())
    assert loss.functional


# Losses of this library


def extracted(mapping="biased_softplus_1.0"):
    return nn.Sequential(network(2 * DIM, 1), NormalParamExtractor(mapping))


class Mask(nn.Module):
    """Which choices an observation allows: the first always."""

    def forward(self, observation):
        return torch.cat([torch.ones_like(observation[..., :1]), observation], -1) > 0


LOGITS_AND_MASK = partial(
    TensorDictSequential,
    TensorDictModule(Mask(), ["observation"], ["mask"]),
)
ACTORS = {
    "Categorical": lambda: actor(),
    "OneHotCategorical": lambda: actor(kind=OneHotCategorical),
    "torch's OneHotCategorical": lambda: actor(kind=torch.distributions.OneHotCategorical),
    "MaskedCategorical": lambda: actor(
        LOGITS_AND_MASK(TensorDictModule(network(CHOICES, 1), ["observation"], ["logits"])),
        MaskedCategorical,
        ("logits", "mask"),
    ),
    "MaskedOneHotCategorical": lambda: actor(
        LOGITS_AND_MASK(TensorDictModule(network(CHOICES, 1), ["observation"], ["logits"])),
        MaskedOneHotCategorical,
        ("logits", "mask"),
    ),
    "Ordinal": lambda: actor(kind=Ordinal, keys=("scores",)),
    "OneHotOrdinal": lambda: actor(kind=OneHotOrdinal, keys=("scores",)),
    "Normal": lambda: actor(extracted(), IndependentNormal, ("loc", "scale")),
    "Normal exp": lambda: actor(
        extracted("exp"), IndependentNormal, ("loc", "scale"), distribution_kwargs={"tanh_loc": True, "upscale": 3.0}
    ),
    "Normal biased": lambda: actor(extracted("biased_softplus_0.5"), IndependentNormal, ("loc", "scale")),
    "Normal with a scale of its own": lambda: actor(
        nn.Sequential(MLP(FEATURES, DIM, num_cells=[8]), AddStateIndependentNormalScale(DIM)),
        IndependentNormal,
        ("loc", "scale"),
    ),
    "Normal in parts": lambda: actor(
        TensorDictSequential(
            TensorDictModule(network(DIM, 1), ["observation"], ["loc"]),
            TensorDictModule(nn.Sequential(network(DIM, 3), nn.Softplus()), ["observation"], ["scale"]),
        ),
        IndependentNormal,
        ("loc", "scale"),
    ),
    "TanhNormal": lambda: actor(
        TensorDictSequential(
            TensorDictModule(network(2 * DIM, 1), ["observation"], ["params"]),
            TensorDictModule(NormalParamExtractor(), ["params"], ["loc", "scale"]),
        ),
        TanhNormal,
        ("loc", "scale"),
        distribution_kwargs={"low": -2.0, "high": torch.tensor([1.5, 2.0]), "tanh_loc": True},
    ),
    "TruncatedNormal": lambda: actor(
        extracted(), TruncatedNormal, ("loc", "scale"), distribution_kwargs={"low": -1.0, "high": 2.0}
    ),
}


def steps_for(name):
    one_hot = {"OneHotCategorical", "torch's OneHotCategorical", "MaskedOneHotCategorical", "OneHotOrdinal"}
    if name in one_hot:
        masked = make_loss_steps(distribution="MaskedCategorical" if "Masked" in name else "Categorical")
        return masked._replace(action=nn.functional.one_hot(masked.action, CHOICES))
    kind = "MaskedCategorical" if "Masked" in name else "TanhNormal" if "Normal" in name else "Categorical"
    return make_loss_steps(distribution=kind)


def arguments_of(steps):
    names = ("observation", "action", "reward", "next_observation", "done", "terminated")
    return {name: getattr(steps, name) for name in names}


def check_converted(theirs, steps, **options):
    """The same losses, and the same gradients to the same parameters."""
    ours = from_torchrl(theirs, **options)
    assert {id(parameter) for parameter in ours.parameters()} == {id(parameter) for parameter in theirs.parameters()}
    torch.manual_seed(0)
    expected = theirs(data(steps))
    torch.manual_seed(0)
    actual = ours(**arguments_of(steps))
    given = {name: value for name, value in actual._asdict().items() if value is not None}
    assert_same(given, dict(expected.items()), 1e-4)
    assert_same(gradients(actual, theirs), gradients(expected, theirs), 1e-4)
    return ours


@pytest.mark.parametrize("name", ACTORS)
def test_converted_losses_equal_torchrl(name):
    check_converted(loss_of(module=ACTORS[name](), entropy_coeff=0.1), steps_for(name))


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "gae_chunked"])
def test_converted_estimators_equal_torchrl(estimator):
    loss = loss_of()
    if estimator == "gae_chunked":
        loss.make_value_estimator(ValueEstimators.GAE, gamma=0.9, lmbda=0.8, value_chunk_size=3, time_dim=-1)
    else:
        loss.make_value_estimator(ESTIMATORS[estimator](value_network=loss.critic_network))
    check_converted(loss, steps_for("Categorical"))


@pytest.mark.parametrize(
    "options", [{"shifted": True}, {"group_key": "group", "average_gae": True}, {"auto_reset_env": True}], ids=str
)
def test_converted_estimator_options_equal_torchrl(options):
    """TorchRL's shifted values work in losses alone that are not functional."""
    theirs, steps = loss_of(functional=False), steps_for("Categorical")
    theirs.make_value_estimator(ValueEstimators.GAE, gamma=0.9, lmbda=0.8, **options)
    ours, group = from_torchrl(theirs), torch.randint(3, (4, 5))
    batch = data(steps, group=group)
    batch["next", "truncated"] = steps.done & ~steps.terminated
    actual = ours(**arguments_of(steps), group=group if "group_key" in options else None)
    expected = theirs(batch.refine_names(None, "time"))
    torch.testing.assert_close(actual.loss_objective, expected["loss_objective"])
    torch.testing.assert_close(actual.loss_critic, expected["loss_critic"])


def test_a_converted_vtrace_has_its_coefficients():
    theirs = loss_of(module=actor(return_log_prob=True))
    theirs.make_value_estimator(ValueEstimators.VTrace, gamma=0.9, rho_thresh=2.0, c_thresh=1.5, average_adv=True)
    ours = from_torchrl(theirs).value_estimator
    assert (type(ours), ours.average_adv) == (a2c_compiled.estimators.VTrace, True)
    assert [round(float(one), 6) for one in (ours.gamma, ours.rho_thresh, ours.c_thresh)] == [0.9, 2.0, 1.5]


@pytest.mark.parametrize(
    "options",
    [
        {"clip_value": 0.2, "reduction": "none", "loss_critic_type": "l1"},
        {"entropy_bonus": False, "reduction": "sum", "critic_coeff": 0.3},
        {"critic_coeff": None, "entropy_coeff": 0.2},
        {"functional": False},
        {"shared": True},
        {"shared": True, "separate_losses": True},
        {"advantage_norm": PercentileValueNorm(rate=0.5, min_scale=0.1)},
    ],
    ids=lambda options: "-".join(f"{name}_{value}" for name, value in options.items() if not isinstance(value, nn.Module)),
)
def test_converted_options_equal_torchrl(options):
    converted = check_converted(loss_of(**options), steps_for("Categorical"))
    assert trunk_length(converted.actor_network, converted.critic_network) == ("shared" in options)


def test_a_copied_or_converted_torchrl_loss_shares_its_own_parameters():
    check_converted(copy.deepcopy(loss_of()), steps_for("Categorical"))
    check_converted(loss_of().double(), make_loss_steps(dtype=torch.float64))


def test_several_entries_are_a_tuple_of_tensors():
    torch.manual_seed(0)
    policy = actor(
        TensorDictModule(nn.Linear(FEATURES, CHOICES), ["observation"], ["logits"]), MaskedCategorical, ("logits", "mask")
    )
    theirs, steps = loss_of(module=policy), steps_for("MaskedCategorical")
    with pytest.raises(ValueError, match="observation_keys: expected the keys"):
        from_torchrl(theirs)
    ours = from_torchrl(theirs, ["observation", "mask"])
    masks = Mask()(steps.observation), Mask()(steps.next_observation)
    expected = theirs(data(steps, mask=masks[0]))
    given = arguments_of(steps)
    given["observation"], given["next_observation"] = zip((steps.observation, steps.next_observation), masks, strict=True)
    torch.testing.assert_close(ours(**given).loss_objective, expected["loss_objective"])


@pytest.mark.slow
def test_a_converted_loss_compiles_trains_and_exports(tmp_path):
    theirs, steps = loss_of(module=ACTORS["TanhNormal"](), entropy_bonus=False), steps_for("TanhNormal")
    ours = from_torchrl(theirs)
    given = arguments_of(steps)
    expected = ours(**given)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")(**given)
    torch.testing.assert_close(compiled.loss_objective, expected.loss_objective)
    torch.testing.assert_close(torch.jit.script(ours)(**given).loss_objective, expected.loss_objective)
    policy = export.GreedyPolicy(ours.actor_network, ours.distribution)
    export.export_onnx(policy, {"observation": torch.randn(3, FEATURES)}, tmp_path / "policy.onnx", dynamic_axes=("N",))
    assert export.verify(tmp_path / "policy.onnx").passed
    before = copy.deepcopy(theirs.state_dict())
    step = a2c_compiled.TrainStep(ours, compile=False)
    step(a2c_compiled.Rollout(*(given[name] for name in a2c_compiled.Rollout._fields[:6])))
    assert any(not torch.equal(before[name], tensor) for name, tensor in theirs.state_dict().items())


REFUSED = {
    "no loss": (lambda: nn.Linear(1, 1), TypeError, "loss"),
    "another distribution": (
        lambda: loss_of(module=actor(kind=torch.distributions.Bernoulli)),
        TypeError,
        "distribution_class",
    ),
    "another option": (
        lambda: loss_of(module=actor(extracted(), IndependentNormal, ("loc", "scale"), distribution_kwargs={"event_dim": 2})),
        ValueError,
        "distribution_kwargs",
    ),
    "a mapping of its own": (
        lambda: loss_of(module=actor(extracted("expln"), IndependentNormal, ("loc", "scale"))),
        ValueError,
        "scale_mapping",
    ),
    "a size that nobody says": (lambda: loss_of(module=actor(Unknown())), ValueError, "size"),
    "a hook": (lambda: loss_of(value_net=_watched(critic())), TypeError, "without hooks"),
    "another norm": (lambda: loss_of(advantage_norm=PopArtValueNorm()), ValueError, "advantage_norm"),
    "another value network": (
        lambda: loss_of(estimator=ESTIMATORS["gae"](value_network=critic())),
        ValueError,
        "value_estimator",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_cannot_be_converted_are_refused_by_name(name):
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        from_torchrl(make())
