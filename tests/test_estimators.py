"""Value estimators as modules: the functions with their hyperparameters, standardisation and auto-reset, in every mode."""

import copy
import inspect

import oracle
import pytest
import torch
from cases import CLASSES, STANDARDISING, VARIANT_IDS, VARIANTS, call_arguments, evaluate, inputs, make_steps
from tolerances import assert_close

from a2c_compiled import estimators, functional
from a2c_compiled.estimators import (
    GAE,
    TD0Estimator,
    TD1Estimator,
    TDLambdaEstimator,
    ValueEstimators,
    VTrace,
    make_value_estimator,
)

SHAPE = (6, 5)
ADVANTAGE_FUNCTIONS = {
    GAE: "generalized_advantage_estimate",
    TD0Estimator: "td0_advantage_estimate",
    TD1Estimator: "td1_advantage_estimate",
    TDLambdaEstimator: "td_lambda_advantage_estimate",
    VTrace: "vtrace_advantage_estimate",
}
RETURN_FUNCTIONS = {
    TD0Estimator: "td0_return_estimate",
    TD1Estimator: "td1_return_estimate",
    TDLambdaEstimator: "td_lambda_return_estimate",
}


def coefficients(kind, **values):
    """Those of ``values`` that ``kind`` takes."""
    return {name: value for name, value in values.items() if name in inspect.signature(kind).parameters}


def standardize(x, eps):
    return (x - x.mean()) / x.std().clamp_min(eps)


def expected(kind, options, gamma=0.97, lmbda=0.9, rho_thresh=1.0, c_thresh=1.0, time_dim=-2):
    """The oracle of the whole module, as a function of the same arguments."""
    standardising, eps = STANDARDISING[kind]

    def function(**steps):
        if options.get("auto_reset_env"):
            truncated = steps["done"] & ~steps["terminated"]
            steps["reward"] = steps["reward"] + torch.where(truncated, gamma * steps["state_value"], 0.0)
            steps["terminated"] = steps["done"]
        if options.get("average_rewards"):
            steps["reward"] = standardize(steps["reward"], eps)
        available = {
            **steps,
            "gamma": gamma,
            "lmbda": lmbda,
            "rho_thresh": rho_thresh,
            "c_thresh": c_thresh,
            "time_dim": time_dim,
        }

        def call(name):
            reference = getattr(oracle, name)
            return reference(**{k: v for k, v in available.items() if k in inspect.signature(reference).parameters})

        advantage = call(ADVANTAGE_FUNCTIONS[kind])
        if kind in RETURN_FUNCTIONS:
            return advantage, call(RETURN_FUNCTIONS[kind])
        advantage, value_target = advantage
        return (standardize(advantage, eps) if options.get(standardising) else advantage), value_target

    return function


def assert_equals_oracle(module, kind, options, arguments, **values):
    """Results and gradients to values, rewards and log-probabilities."""
    results, gradients = evaluate(module, arguments)
    double = {k: v.double() if v is not None and v.is_floating_point() else v for k, v in arguments.items()}
    truths, true_gradients = evaluate(expected(kind, options, **values), double)
    for what, result, truth in zip(("advantage", "value_target"), results, truths, strict=True):
        assert result.dtype == arguments["reward"].dtype
        assert_close(result, truth, what=what)
    for name, truth in true_gradients.items():
        assert_close(gradients[name], truth, what=f"gradient to {name}")


@pytest.mark.parametrize(("shape", "time_dim"), [(SHAPE, -2), ((5, 6), -1), ((3, 6, 1), -2), ((2, 6, 3, 2), 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_estimator_equals_the_oracle_with_gradients(kind, options, dtype, shape, time_dim):
    values = coefficients(kind, gamma=0.97, lmbda=0.9, rho_thresh=1.1, c_thresh=0.9, time_dim=time_dim)
    module = kind(**values, **options, differentiable=True)
    assert_equals_oracle(module, kind, options, inputs(kind, make_steps(shape, dtype)), **values)


@pytest.mark.parametrize("kind", CLASSES)
def test_estimator_equals_its_function(kind):
    steps = make_steps(SHAPE, torch.float32)
    advantage, value_target = kind(**coefficients(kind, gamma=0.97, lmbda=0.9))(**inputs(kind, steps))
    trace = {"lmbda": 0.9} if kind is VTrace else {}
    result = getattr(functional, ADVANTAGE_FUNCTIONS[kind])(**call_arguments(ADVANTAGE_FUNCTIONS[kind], steps), **trace)
    if kind in RETURN_FUNCTIONS:
        name = RETURN_FUNCTIONS[kind]
        result = result, getattr(functional, name)(**call_arguments(name, steps))
    assert_close(advantage, result[0], torch.float64)
    assert_close(value_target, result[1], torch.float64)


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_terminated_none_means_done(kind, options):
    arguments = inputs(kind, make_steps(SHAPE))
    module = kind(**options)
    without = module(**{**arguments, "terminated": None})
    for result, same in zip(without, module(**{**arguments, "terminated": arguments["done"]}), strict=True):
        assert torch.equal(result, same)


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_not_differentiable_gives_results_without_gradient(kind, options):
    arguments = inputs(kind, make_steps(SHAPE))
    leaves = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in arguments.items()}
    plain = kind(**options)(**leaves)
    assert not any(result.requires_grad for result in plain)
    for result, same in zip(plain, kind(**options, differentiable=True)(**leaves), strict=True):
        assert torch.equal(result, same)
        assert same.requires_grad


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_arguments_are_never_written_to(kind, options, differentiable):
    arguments = inputs(kind, make_steps(SHAPE))
    before = {name: value.clone() for name, value in arguments.items()}
    kind(**options, differentiable=differentiable)(**arguments)
    assert all(torch.equal(value, before[name]) for name, value in arguments.items())


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_no_steps_no_rows_and_a_single_step_give_finite_results_and_gradients(kind, options, shape):
    results, gradients = evaluate(kind(**options, differentiable=True), inputs(kind, make_steps(shape)))
    for tensor in (*results, *gradients.values()):
        assert tensor.shape == shape
        assert tensor.isfinite().all()


@pytest.mark.parametrize("kind", CLASSES)
def test_standardised_constants_are_zero_not_nan(kind):
    option, _ = STANDARDISING[kind]
    steps = make_steps(SHAPE, ends="all_terminated")
    # One advantage for all: no reward, no value, and the same ratio.
    constant = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in inputs(kind, steps).items()}
    constant["reward"] += 3.0
    results, gradients = evaluate(kind(**{option: True}, differentiable=True), constant)
    assert_close(results[0], torch.zeros(SHAPE, dtype=torch.float64))
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("kind", CLASSES)
def test_standardisation_divides_by_no_less_than_its_eps(kind):
    option, eps = STANDARDISING[kind]
    steps = make_steps((2, 1), ends="all_terminated")
    small = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in inputs(kind, steps).items()}
    small["reward"] = torch.tensor([[eps / 8], [-eps / 8]], dtype=torch.float64)
    advantage = kind(**{option: True})(**small).advantage
    assert_close(advantage, torch.tensor([[0.125], [-0.125]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_half_precision_results_have_the_rewards_dtype(kind, options, dtype):
    values = coefficients(kind, gamma=0.97, lmbda=0.9)
    module = kind(**values, **options, differentiable=True)
    arguments = inputs(kind, make_steps(SHAPE, dtype))
    double = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}
    for result, truth in zip(module(**arguments), expected(kind, options, **values)(**double), strict=True):
        assert result.dtype == dtype
        # The reward is rounded once more where it was standardised or added to.
        assert_close(result, truth, roundings=3 if options else 1)


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_scripted_estimator_equals_the_oracle(kind, options):
    values = coefficients(kind, gamma=0.97, lmbda=0.9)
    module = torch.jit.script(kind(**values, **options, differentiable=True))
    assert_equals_oracle(module, kind, options, inputs(kind, make_steps(SHAPE)), **values)


@pytest.mark.parametrize("kind", CLASSES)
def test_scripted_estimator_that_is_not_differentiable_gives_no_gradient(kind):
    arguments = inputs(kind, make_steps(SHAPE))
    leaves = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in arguments.items()}
    assert not any(result.requires_grad for result in torch.jit.script(kind())(**leaves))


@pytest.mark.parametrize(
    ("kind", "options"), [variant for variant in VARIANTS if variant[1]][:-1], ids=[i for i in VARIANT_IDS if "-" in i][:-1]
)
def test_compiled_estimator_equals_the_oracle_in_other_shapes_and_with_other_coefficients(kind, options):
    torch._dynamo.reset()
    values = coefficients(kind, gamma=0.97, lmbda=0.9)
    module = kind(**values, **options, differentiable=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_equals_oracle(compiled, kind, options, inputs(kind, make_steps(SHAPE)), **values)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_equals_oracle(compiled, kind, options, inputs(kind, make_steps((9, 2))), **values)
        module.gamma = 0.5
        assert_equals_oracle(compiled, kind, options, inputs(kind, make_steps(SHAPE)), **{**values, "gamma": 0.5})


@pytest.mark.parametrize("kind", CLASSES)
def test_state_dict_round_trip_gives_the_same_results(kind):
    module, other = kind(gamma=0.9), kind(gamma=0.5)
    arguments = inputs(kind, make_steps(SHAPE))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(**arguments).advantage, module(**arguments).advantage)


@pytest.mark.parametrize("kind", CLASSES)
def test_converting_the_dtype_keeps_the_coefficients_exact(kind):
    for convert in (kind.half, kind.bfloat16, lambda module: module.to(torch.bfloat16)):
        module = convert(kind(gamma=0.99))
        assert all(buffer.dtype == torch.float64 for buffer in module.buffers())
        assert module.gamma.item() == 0.99


@pytest.mark.parametrize("kind", CLASSES)
def test_assigned_coefficients_act_at_the_next_call(kind):
    module = kind()
    values = coefficients(kind, gamma=0.5, lmbda=0.25, rho_thresh=0.5, c_thresh=0.75)
    for name, value in values.items():
        setattr(module, name, value)
    arguments = inputs(kind, make_steps(SHAPE))
    for result, same in zip(module(**arguments), kind(**values)(**arguments), strict=True):
        assert torch.equal(result, same)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_coefficient_may_be_a_tensor_and_receives_its_gradient(kind):
    gamma = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    arguments = inputs(kind, make_steps(SHAPE))
    kind(gamma=gamma)(**arguments).value_target.sum().backward()
    assert gamma.grad.abs() > 0
    module = kind(gamma=torch.full(SHAPE, 0.9, dtype=torch.float64))
    assert_close(module(**arguments).advantage, kind(gamma=0.9)(**arguments).advantage)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_deep_copy_is_independent(kind):
    module = kind(gamma=0.9)
    twin = copy.deepcopy(module)
    twin.gamma = 0.1
    assert module.gamma.item() == 0.9


# Choosing an estimator


@pytest.mark.parametrize(
    ("value_type", "kind"),
    [
        (None, GAE),
        (ValueEstimators.TD0, TD0Estimator),
        (ValueEstimators.TDLambda, TDLambdaEstimator),
        (ValueEstimators.VTrace, VTrace),
        ("gae", GAE),
        ("GAE", GAE),
        ("td0", TD0Estimator),
        ("TD1", TD1Estimator),
        ("td_1", TD1Estimator),
        ("TDLambda", TDLambdaEstimator),
        ("td_lambda", TDLambdaEstimator),
        ("td-lambda", TDLambdaEstimator),
        ("vtrace", VTrace),
        ("V-Trace", VTrace),
        (TD1Estimator, TD1Estimator),
    ],
    ids=str,
)
def test_an_estimator_is_made_by_kind_with_the_losss_defaults(value_type, kind):
    module = make_value_estimator(value_type)
    assert type(module) is kind
    assert module.differentiable
    assert module.gamma.item() == 0.99
    assert not hasattr(module, "lmbda") or module.lmbda.item() == (1.0 if kind is VTrace else 0.95)


def test_every_member_of_the_enumeration_is_an_estimator_of_the_package():
    assert [kind.value for kind in ValueEstimators] == [getattr(estimators, kind.value.__name__) for kind in ValueEstimators]


def test_hyperparameters_reach_the_estimator():
    module = make_value_estimator("gae", gamma=0.5, lmbda=0.25, average_gae=True, time_dim=-1, differentiable=False)
    assert (module.gamma.item(), module.lmbda.item(), module.time_dim) == (0.5, 0.25, -1)
    assert module.average_gae
    assert not module.differentiable


def test_an_estimator_is_returned_as_it_is():
    module = GAE()
    assert make_value_estimator(module) is module
    assert not module.differentiable


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: make_value_estimator("sarsa"), ValueError, "value_type: expected one of .*'gae'.*, got 'sarsa'"),
        (lambda: make_value_estimator(3), TypeError, "value_type: expected a name, .*, got 3"),
        (lambda: make_value_estimator(dict), TypeError, "value_type: expected a name, .*, got <class 'dict'>"),
        (lambda: make_value_estimator(GAE(), gamma=0.9), TypeError, r"hyperparams: expected none .*, got \['gamma'\]"),
        (lambda: make_value_estimator("td0", lmbda=0.9), TypeError, "lmbda"),
        (lambda: GAE(gamma=1.5), ValueError, "gamma: expected a number from 0 to 1, got 1.5"),
        (lambda: GAE(gamma=-0.1), ValueError, "gamma: expected a number from 0 to 1, got -0.1"),
        (lambda: GAE(gamma=float("nan")), ValueError, "gamma: expected a number from 0 to 1, got nan"),
        (lambda: GAE(gamma=None), TypeError, "gamma: expected a number or a tensor, got None"),
        (lambda: GAE(gamma=True), TypeError, "gamma: expected a number or a tensor, got True"),
        (lambda: GAE(gamma="0.9"), TypeError, "gamma: expected a number or a tensor, got '0.9'"),
        (lambda: GAE(lmbda=2), ValueError, "lmbda: expected a number from 0 to 1, got 2"),
        (lambda: GAE(lmbda=False), TypeError, "lmbda: expected a number or a tensor, got False"),
        (lambda: TD0Estimator(gamma=2.0), ValueError, "gamma: expected a number from 0 to 1"),
        (lambda: TD1Estimator(gamma=2.0), ValueError, "gamma: expected a number from 0 to 1"),
        (lambda: TDLambdaEstimator(lmbda=-1.0), ValueError, "lmbda: expected a number from 0 to 1"),
        (lambda: VTrace(rho_thresh=0.0), ValueError, "rho_thresh: expected a positive number, got 0.0"),
        (lambda: VTrace(c_thresh=-1.0), ValueError, "c_thresh: expected a positive number, got -1.0"),
        (lambda: VTrace(c_thresh=None), TypeError, "c_thresh: expected a number or a tensor, got None"),
        (lambda: VTrace(rho_thresh=True), TypeError, "rho_thresh: expected a number or a tensor, got True"),
    ],
)
def test_a_wrong_choice_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("missing", ["log_pi", "log_mu"])
def test_vtrace_names_the_log_probability_that_is_missing(missing):
    arguments = inputs(VTrace, make_steps(SHAPE))
    with pytest.raises(ValueError, match=f"^{missing}: expected the log-probability .*, got None"):
        VTrace()(**{**arguments, missing: None})


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [(*variant, name) for variant in VARIANTS for name in inputs(variant[0], make_steps(SHAPE))],
)
def test_a_wrong_shape_or_dtype_is_refused_by_name(kind, options, name):
    arguments = inputs(kind, make_steps(SHAPE))
    # Everything is held against the reward: where it is the odd one out, the first of the others is named.
    with pytest.raises(ValueError, match=f"^{'done' if name == 'reward' else name}: expected the shape of reward"):
        kind(**options)(**{**arguments, name: arguments[name][:-1]})
    wrong = arguments[name].int() if name in ("done", "terminated", "reward") else arguments[name].bool()
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        kind(**options)(**{**arguments, name: wrong})


# TorchRL


def torchrl_estimator(kind, options, gamma, lmbda, monkeypatch, log_pi):
    """TorchRL's module of the same name, without networks: it reads the values from its data."""
    advantages = pytest.importorskip("torchrl.objectives.value.advantages")
    hyperparameters = {"gamma": gamma, "value_network": None, "differentiable": True, **options}
    if kind in (GAE, TDLambdaEstimator):
        hyperparameters |= {"lmbda": lmbda, "vectorized": False}
    if kind is VTrace:
        # It needs networks. The value network is left out afterwards; the policy's log-probability, which it takes of an action
        # that it samples anew, is given.
        from tensordict.nn import TensorDictModule

        network = TensorDictModule(torch.nn.Identity(), ["observation"], ["state_value"])
        hyperparameters |= {"actor_network": network, "value_network": network}
        monkeypatch.setattr(advantages, "_call_actor_net", lambda **arguments: log_pi)
    module = getattr(advantages, kind.__name__)(**hyperparameters)
    if kind is VTrace:
        monkeypatch.setattr(
            type(module),
            "_call_value_nets",
            lambda self, data, **rest: (data["state_value"], data["next", "state_value"], None),
        )
    return module


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_estimator_equals_torchrl_with_gradients(kind, options, monkeypatch):
    tensordict = pytest.importorskip("tensordict")
    gamma, lmbda = 31 / 32, 7 / 8  # exact in float32, which is what TorchRL keeps them in
    batch, time = 4, 6

    def torchrl(state_value, next_state_value, reward, done, terminated, log_pi=None, log_mu=None):
        next_ = {
            "state_value": next_state_value,
            "reward": reward,
            "done": done,
            "terminated": terminated,
            "truncated": done & ~terminated,
        }
        # TorchRL asks for an observation too, and overwrites the reward of the data that it is given.
        data = {"state_value": state_value, "observation": state_value.detach(), "next": next_}
        if log_mu is not None:
            data["action_log_prob"] = log_mu.squeeze(-1)
        data = tensordict.TensorDict(data, [batch, time])
        module = torchrl_estimator(kind, options, gamma, lmbda, monkeypatch, log_pi)
        result = module(data)
        return result["advantage"], result["value_target"]

    arguments = inputs(kind, make_steps((batch, time, 1)))
    known = {"gamma": gamma} if kind is VTrace else {"gamma": gamma, "lmbda": lmbda}  # TorchRL's V-trace has no lambda
    module = kind(**coefficients(kind, **known), **options, differentiable=True)
    results, gradients = evaluate(module, arguments)
    truths, true_gradients = evaluate(torchrl, arguments)
    for what, result, truth in zip(("advantage", "value_target"), results, truths, strict=True):
        assert_close(result, truth, what=what)
    for name, truth in true_gradients.items():
        assert_close(gradients[name], truth, what=f"gradient to {name}")
