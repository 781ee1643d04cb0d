"""Value estimators as modules: the functions with their hyperparameters, standardisation and auto-reset, in every mode."""

import copy
import functools
import inspect
import pickle

import masked_oracle
import oracle
import pytest
import torch
from cases import (
    CLASSES,
    STANDARDISING,
    VARIANT_IDS,
    VARIANTS,
    assert_equals,
    call_arguments,
    evaluate,
    in_double,
    inputs,
    make_steps,
    per_step,
    poisoned,
)
from loops import loop_over
from tolerances import assert_close

from a2c_compiled import estimators, functional
from a2c_compiled.estimators import (
    GAE,
    UPGO,
    MultiAgentGAE,
    NStepEstimator,
    TD0Estimator,
    TD1Estimator,
    TDLambdaEstimator,
    ValueEstimators,
    VTrace,
    make_value_estimator,
)
from a2c_compiled.estimators.base import REGISTERED, ValueEstimator

SHAPE = (6, 5)
# The function of each estimator. It returns advantage and value target, or a return: the value target, whose advantage is
# the return minus the value.
FUNCTION_OF = {
    GAE: "generalized_advantage_estimate",
    TD0Estimator: "td0_return_estimate",
    TD1Estimator: "td1_return_estimate",
    TDLambdaEstimator: "td_lambda_return_estimate",
    VTrace: "vtrace_advantage_estimate",
    NStepEstimator: "n_step_return_estimate",
    UPGO: "upgo_return_estimate",
}
N = inspect.signature(NStepEstimator).parameters["n"].default


def coefficients(kind, **values):
    """Returns those of ``values`` that are arguments of ``kind``."""
    return {name: value for name, value in values.items() if name in inspect.signature(kind).parameters}


def expected(kind, options, group=None, mask=None, starts=(), **values):
    """Returns the oracle of the module ``kind(**values, **options)``, a function of the same tensors. ``values`` are coefficients."""
    standardising, eps = STANDARDISING[kind]
    values = {"gamma": 0.97, "lmbda": 0.9, "n": N, **values}
    time_dim = values.pop("time_dim", -2)

    def estimate(time_dim, **steps):
        if options.get("auto_reset_env"):
            truncated = steps["done"] & ~steps["terminated"]
            steps["reward"] = steps["reward"] + torch.where(truncated, steps["gamma"] * steps["state_value"], 0.0)
            steps["terminated"] = steps["done"]
        reference = getattr(oracle, FUNCTION_OF[kind])
        available = {**steps, "time_dim": time_dim}
        result = reference(**{k: v for k, v in available.items() if k in inspect.signature(reference).parameters})
        return result if isinstance(result, tuple) else (result - steps["state_value"], result)

    def function(**steps):
        if options.get("average_rewards"):
            steps["reward"] = oracle.standardize(steps["reward"], eps, mask, group)
        if mask is None:
            advantage, value_target = estimate(time_dim, **steps, **values)
        else:
            advantage, value_target = masked_oracle.on_pieces(
                functools.partial(estimate, -1),
                {**steps, **values},
                mask,
                time_dim,
                options.get("skip_masked", False),
                starts,
            )
        if options.get(standardising) and standardising != "average_rewards":
            advantage = oracle.standardize(advantage, eps, mask, group)
        return advantage, value_target

    return function


def assert_equals_oracle(module, kind, options, arguments, **values):
    assert_equals(module, expected(kind, options, **values), arguments)


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
@loop_over(("shape", "time_dim"), [(SHAPE, -2), ((5, 6), -1), ((3, 6, 1), -2), ((2, 6, 3, 2), 1)])
@loop_over("dtype", [torch.float64, torch.float32])
def test_estimator_equals_the_oracle_with_gradients(kind, options, dtype, shape, time_dim):
    values = coefficients(kind, gamma=0.97, lmbda=0.9, rho_thresh=1.1, c_thresh=0.9, pg_rho_thresh=1.3, n=3, time_dim=time_dim)
    module = kind(**values, **options, differentiable=True)
    assert_equals_oracle(module, kind, options, inputs(kind, make_steps(shape, dtype)), **values)


@pytest.mark.parametrize("kind", CLASSES)
def test_estimator_equals_its_function(kind):
    steps = make_steps(SHAPE, torch.float32)
    advantage, value_target = kind(**coefficients(kind, gamma=0.97, lmbda=0.9))(**inputs(kind, steps))
    trace = {"lmbda": 0.9} if kind is VTrace else {}
    result = getattr(functional, FUNCTION_OF[kind])(**call_arguments(FUNCTION_OF[kind], steps, n=N), **trace)
    result = (result - steps.state_value, result) if isinstance(result, torch.Tensor) else result
    assert_close(advantage, result[0], torch.float64)
    assert_close(value_target, result[1], torch.float64)


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_terminated_none_means_done(kind, options):
    arguments = inputs(kind, make_steps(SHAPE))
    module = kind(**options)
    without = module(**{**arguments, "terminated": None})
    for result, same in zip(without, module(**{**arguments, "terminated": arguments["done"]}), strict=True):
        assert torch.equal(result, same)


@pytest.mark.parametrize("kind", CLASSES)
def test_with_auto_reset_env_the_next_value_of_a_truncated_step_is_not_read(kind):
    arguments = inputs(kind, make_steps(SHAPE))
    module = kind(auto_reset_env=True, differentiable=True)
    plain = kind(differentiable=True)
    truncated = arguments["done"] & ~arguments["terminated"]
    results, gradients = evaluate(module, poisoned(arguments, truncated, ("next_state_value",)))
    replaced = torch.where(truncated, arguments["state_value"], arguments["next_state_value"])
    for result, same in zip(results, plain(**{**arguments, "next_state_value": replaced}), strict=True):
        assert torch.equal(result, same)
    assert (gradients["next_state_value"][truncated] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_results_require_no_gradient_unless_differentiable(kind, options):
    arguments = inputs(kind, make_steps(SHAPE))
    leaves = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in arguments.items()}
    plain = kind(**options)(**leaves)
    assert not any(result.requires_grad for result in plain)
    for result, same in zip(plain, kind(**options, differentiable=True)(**leaves), strict=True):
        assert torch.equal(result, same)
        assert same.requires_grad


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
@loop_over("differentiable", [False, True])
def test_arguments_are_never_written_to(kind, options, differentiable):
    arguments = inputs(kind, make_steps(SHAPE))
    before = {name: value.clone() for name, value in arguments.items()}
    kind(**options, differentiable=differentiable)(**arguments)
    assert all(torch.equal(value, before[name]) for name, value in arguments.items())


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
@loop_over("shape", [(0, 3), (4, 0), (0, 0), (1, 1)])
def test_empty_data_and_a_single_step_give_finite_results_and_gradients(kind, options, shape):
    results, gradients = evaluate(kind(**options, differentiable=True), inputs(kind, make_steps(shape)))
    for tensor in (*results, *gradients.values()):
        assert tensor.shape == shape
        assert tensor.isfinite().all()


@pytest.mark.parametrize("kind", CLASSES)
def test_standardised_constants_are_zero_not_nan(kind):
    option, _ = STANDARDISING[kind]
    steps = make_steps(SHAPE, ends="all_terminated")
    # All advantages are equal: the reward is constant, and values and log-probabilities are 0.
    constant = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in inputs(kind, steps).items()}
    constant["reward"] += 3.0
    results, gradients = evaluate(kind(**{option: True}, differentiable=True), constant)
    assert_close(results[0], torch.zeros(SHAPE, dtype=torch.float64))
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("kind", CLASSES)
def test_standardisation_divides_by_at_least_eps(kind):
    option, eps = STANDARDISING[kind]
    steps = make_steps((2, 1), ends="all_terminated")
    small = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in inputs(kind, steps).items()}
    small["reward"] = torch.tensor([[eps / 8], [-eps / 8]], dtype=torch.float64)
    advantage = kind(**{option: True})(**small).advantage
    assert_close(advantage, torch.tensor([[0.125], [-0.125]], dtype=torch.float64))


@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
@loop_over("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_results_have_the_rewards_dtype(kind, options, dtype):
    values = coefficients(kind, gamma=0.97, lmbda=0.9)
    module = kind(**values, **options, differentiable=True)
    arguments = inputs(kind, make_steps(SHAPE, dtype))
    for result, truth in zip(module(**arguments), expected(kind, options, **values)(**in_double(arguments)), strict=True):
        assert result.dtype == dtype
        # Options standardise the reward or add to it, which rounds it once more.
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"), [variant for variant in VARIANTS if variant[1]][:-1], ids=[i for i in VARIANT_IDS if "-" in i][:-1]
)
def test_traced_estimator_equals_the_oracle_in_other_shapes_and_with_other_coefficients(kind, options):
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


# steps_to_next_obs, group and mask


GROUPED = tuple((kind, {STANDARDISING[kind][0]: True}) for kind in CLASSES)
GROUPED_IDS = tuple(kind.__name__ for kind in CLASSES)


def steps_group_and_mask(shape):
    generator = torch.Generator().manual_seed(5)
    steps = torch.randint(1, 4, shape, generator=generator)
    group = torch.randint(-1, 2, shape[:1], generator=generator)
    return steps, group, torch.rand(shape, generator=generator) < 0.8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize(("kind", "options"), [*GROUPED, VARIANTS[-1]], ids=[*GROUPED_IDS, VARIANT_IDS[-1]])
def test_steps_to_next_obs_group_and_mask_together_equal_the_oracle(kind, options, mode, dtype):
    steps, group, mask = steps_group_and_mask(SHAPE)
    values = coefficients(kind, gamma=0.97, lmbda=0.9)
    module = kind(**values, **options, differentiable=True)
    module = torch.jit.script(module) if mode == "scripted" else module
    assert_equals(
        lambda **tensors: module(**tensors, steps_to_next_obs=steps, group=group, mask=mask),
        expected(kind, options, group, mask, **{**values, "gamma": 0.97 ** steps.double()}),
        inputs(kind, make_steps(SHAPE, dtype)),
    )


MASKED = (
    *((kind, {}) for kind in CLASSES),
    *((kind, {"skip_masked": True}) for kind in CLASSES),
    *((kind, {"auto_reset_env": True, "skip_masked": skip}) for kind in CLASSES for skip in (False, True)),
)


def poison(arguments, mask):
    """NaN in all values and True in all flags at the steps that the mask excludes."""
    return {k: v.masked_fill(~mask, True if v.dtype == torch.bool else torch.nan) for k, v in arguments.items()}


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"), MASKED, ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__
)
def test_masked_and_packed_steps_equal_the_data_without_the_excluded_steps(kind, options, packed, mode):
    mask = steps_group_and_mask(SHAPE)[2]
    starts = (0, 2, 3) if packed else ()
    values = coefficients(kind, gamma=per_step(SHAPE), lmbda=per_step(SHAPE, seed=2))
    module = kind(**values, **options, differentiable=True)
    module = torch.jit.script(module) if mode == "scripted" else module
    extra = {"mask": mask, "cu_seqlens": torch.tensor([*starts, 6]) if packed else None}
    assert_equals(
        functools.partial(module, **extra),
        expected(kind, options, None, mask, starts, **values),
        poison(inputs(kind, make_steps(SHAPE)), mask),
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_packed_sequences_alone_equal_each_sequence_alone(kind):
    starts, everything = (0, 2, 3), torch.ones(SHAPE, dtype=torch.bool)
    values = coefficients(kind, gamma=0.97, lmbda=0.9)
    assert_equals(
        functools.partial(kind(**values, differentiable=True), cu_seqlens=torch.tensor([*starts, 6])),
        expected(kind, {}, None, everything, starts, **values),
        inputs(kind, make_steps(SHAPE)),
    )


class Summing(ValueEstimator):
    """An estimator of a user, who does not know of masks: the sum of the rewards to the end."""

    def __init__(self, skip_masked=False):
        super().__init__(1.0, True, -2, skip_masked=skip_masked)

    def estimate(self, steps):
        returns = functional.reward2go(steps.reward, steps.done, steps.gamma)
        return functional.ValueEstimate(returns - steps.state_value, returns)


@pytest.mark.parametrize("skip_masked", [False, True])
def test_an_estimator_of_a_user_serves_masks(skip_masked):
    mask = steps_group_and_mask(SHAPE)[2]
    arguments = poison(inputs(Summing, make_steps(SHAPE)), mask)
    results = Summing(skip_masked)(**arguments, mask=mask)
    returns = masked_oracle.on_pieces(
        functools.partial(oracle.reward2go, gamma=1.0, time_dim=-1),
        {"reward": arguments["reward"], "done": arguments["done"]},
        mask,
        -2,
        skip_masked,
    )
    assert_close(results.value_target, returns)


@pytest.mark.parametrize("kind", CLASSES)
def test_steps_to_next_obs_of_1_equals_none(kind):
    arguments = inputs(kind, make_steps(SHAPE))
    for result, same in zip(kind()(**arguments, steps_to_next_obs=torch.ones(SHAPE).long()), kind()(**arguments), strict=True):
        assert_close(result, same)


@pytest.mark.parametrize("kind", CLASSES)
def test_gradient_of_gamma_with_steps_to_next_obs_equals_finite_differences(kind):
    steps, arguments = steps_group_and_mask(SHAPE)[0], inputs(kind, make_steps(SHAPE))

    def total(gamma):
        return kind(gamma=gamma, differentiable=True)(**arguments, steps_to_next_obs=steps).advantage

    assert torch.autograd.gradcheck(total, torch.tensor(0.9, dtype=torch.float64, requires_grad=True))


def test_nan_outside_the_mask_does_not_reach_standardised_results():
    _, group, mask = steps_group_and_mask(SHAPE)
    arguments = inputs(TD0Estimator, make_steps(SHAPE))
    module = TD0Estimator(average_rewards=True, differentiable=True)
    clean, gradients = evaluate(lambda **tensors: module(**tensors, group=group, mask=mask), arguments)
    arguments["reward"] = arguments["reward"].masked_fill(~mask, torch.nan)
    results, same_gradients = evaluate(lambda **tensors: module(**tensors, group=group, mask=mask), arguments)
    assert all(torch.equal(result, same) for result, same in zip(results, clean, strict=True))
    assert all(torch.equal(same_gradients[name], gradient) for name, gradient in gradients.items())


@pytest.mark.slow
def test_traced_with_steps_group_and_mask_equals_eager_in_other_shapes():
    torch._dynamo.reset()
    module = GAE(average_gae=True, differentiable=True)
    traced = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in (SHAPE, (9, 2)):
        extra = dict(zip(("steps_to_next_obs", "group", "mask"), steps_group_and_mask(shape), strict=True))
        with torch._dynamo.config.patch(error_on_recompile=shape != SHAPE):
            assert_equals(
                functools.partial(traced, **extra), functools.partial(module, **extra), inputs(GAE, make_steps(shape))
            )


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"steps_to_next_obs": torch.ones(5).long()}, ValueError, "steps_to_next_obs: expected the shape of reward"),
        ({"group": torch.zeros(5).long()}, ValueError, r"group: expected the shape of the data, \[6, 5\], or of its first"),
        ({"group": torch.zeros(6)}, TypeError, "group: expected an integer dtype, got torch.float32"),
        ({"mask": torch.ones(SHAPE)}, TypeError, "mask: expected dtype torch.bool, got torch.float32"),
        ({"mask": torch.ones(6).bool()}, ValueError, "mask: expected the shape of (the data|reward)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize(("kind", "options"), [GROUPED[0], GROUPED[1]], ids=["advantage", "reward"])
def test_wrong_steps_group_or_mask_raises_an_error_that_names_it(kind, options, changed, error, message):
    with pytest.raises(error, match=message):
        kind(**options)(**inputs(kind, make_steps(SHAPE)), **changed)


# make_value_estimator


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
        ("magae", MultiAgentGAE),
        ("n_step", NStepEstimator),
        ("UPGO", UPGO),
        (TD1Estimator, TD1Estimator),
    ],
    ids=str,
)
def test_make_value_estimator_takes_a_name_or_a_class_and_uses_the_defaults_of_the_loss(value_type, kind):
    module = make_value_estimator(value_type)
    assert type(module) is kind
    assert module.differentiable
    assert module.gamma.item() == 0.99
    assert not hasattr(module, "lmbda") or module.lmbda.item() == (1.0 if kind is VTrace else 0.95)


def test_value_estimators_enumerates_the_estimators_of_the_package():
    assert {kind.name for kind in ValueEstimators} == {"TD0", "TD1", "TDLambda", "GAE", "MAGAE", "VTrace", "NStep", "UPGO"}
    assert [kind.value for kind in ValueEstimators] == [getattr(estimators, kind.value.__name__) for kind in ValueEstimators]
    assert pickle.loads(pickle.dumps(ValueEstimators.TD0)) is ValueEstimators["TD0"] is ValueEstimators(TD0Estimator)


def test_make_value_estimator_finds_a_subclass_by_its_registered_name():
    class Twice(TD0Estimator, name="TD_Twice"):
        def returns(self, steps):
            return 2 * steps.reward

    try:
        assert type(make_value_estimator("td-twice")) is Twice
    finally:
        del REGISTERED["TD_Twice"]


def test_make_value_estimator_passes_hyperparameters():
    module = make_value_estimator("gae", gamma=0.5, lmbda=0.25, average_gae=True, time_dim=-1, differentiable=False)
    assert (module.gamma.item(), module.lmbda.item(), module.time_dim) == (0.5, 0.25, -1)
    assert module.average_gae
    assert not module.differentiable


def test_make_value_estimator_returns_an_estimator_unchanged():
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
        (
            lambda: make_value_estimator("td0", lmbda=0.9, value_network=None),
            TypeError,
            r"hyperparams: expected options of TD0Estimator \(gamma, .*\), got lmbda, value_network$",
        ),
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
        (lambda: VTrace(pg_rho_thresh=0.0), ValueError, "pg_rho_thresh: expected a positive number, got 0.0"),
        (lambda: VTrace(lmbda=1.5), ValueError, "lmbda: expected a number from 0 to 1, got 1.5"),
        (lambda: NStepEstimator(n=0), ValueError, "n: expected at least 1, got 0"),
        (lambda: NStepEstimator(n=2.5), TypeError, "n: expected an integer, got 2.5"),
        (lambda: VTrace(rho_thresh=True), TypeError, "rho_thresh: expected a number or a tensor, got True"),
    ],
)
def test_a_wrong_hyperparameter_or_name_raises_an_error_that_names_it(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("mode", ["eager", "scripted"])
def test_pg_rho_thresh_of_vtrace_is_rho_thresh_until_it_is_assigned(mode):
    arguments = inputs(VTrace, make_steps(SHAPE))

    def answers(module):
        return (torch.jit.script(module) if mode == "scripted" else module)(**arguments)

    module = VTrace(rho_thresh=0.8)
    assert torch.equal(answers(module).advantage, answers(VTrace(rho_thresh=0.8, pg_rho_thresh=0.8)).advantage)
    module.pg_rho_thresh = 1.2
    assert torch.equal(answers(module).advantage, answers(VTrace(rho_thresh=0.8, pg_rho_thresh=1.2)).advantage)
    assert not torch.equal(answers(module).advantage, answers(VTrace(rho_thresh=0.8)).advantage)
    assert torch.equal(answers(module).value_target, answers(VTrace(rho_thresh=0.8)).value_target)


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize("name", ["rho_thresh", "c_thresh"])
def test_a_threshold_of_none_is_infinity_and_can_be_assigned_later(name, mode):
    arguments = inputs(VTrace, make_steps(SHAPE))

    def answers(module):
        return (torch.jit.script(module) if mode == "scripted" else module)(**arguments)

    module = VTrace(**{name: None})
    for result, same in zip(answers(module), answers(VTrace(**{name: float("inf")})), strict=True):
        assert torch.equal(result, same)
    setattr(module, name, 0.8)
    for result, same in zip(answers(module), answers(VTrace(**{name: 0.8})), strict=True):
        assert torch.equal(result, same)


@pytest.mark.parametrize("missing", ["log_pi", "log_mu"])
def test_vtrace_names_the_log_probability_that_is_missing(missing):
    arguments = inputs(VTrace, make_steps(SHAPE))
    with pytest.raises(ValueError, match=f"^{missing}: expected the log-probability .*, got None"):
        VTrace()(**{**arguments, missing: None})


@loop_over(
    ("kind", "options", "name"),
    [(*variant, name) for variant in VARIANTS for name in inputs(variant[0], make_steps(SHAPE))],
)
def test_a_wrong_shape_or_dtype_raises_an_error_that_names_the_argument(kind, options, name):
    arguments = inputs(kind, make_steps(SHAPE))
    # All shapes are compared with that of reward. If reward itself is wrong, the error names the first tensor that is compared.
    with pytest.raises(ValueError, match=f"^{'done' if name == 'reward' else name}: expected the shape of reward"):
        kind(**options)(**{**arguments, name: arguments[name][:-1]})
    wrong = arguments[name].int() if name in ("done", "terminated", "reward") else arguments[name].bool()
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        kind(**options)(**{**arguments, name: wrong})


def test_a_subclass_decides_whether_it_standardises_advantages_or_rewards():
    class Always(estimators.GAE):
        def standardizes_advantage(self) -> bool:
            return True

    class Rewards(estimators.TDLambdaEstimator):
        def standardizes_reward(self) -> bool:
            return True

    steps = make_steps((7, 3))
    arguments = (steps.state_value, steps.next_state_value, steps.reward, steps.done, steps.terminated)
    for mine, other in (
        (Always(), estimators.GAE(average_gae=True)),
        (Rewards(), estimators.TDLambdaEstimator(average_rewards=True)),
    ):
        for result, expected in zip(mine(*arguments), other(*arguments), strict=True):
            assert torch.equal(result, expected)


@pytest.mark.parametrize("skip_masked", [False, True])
def test_a_subclass_that_overrides_estimate_gets_steps_without_a_mask(skip_masked):
    class Own(GAE):
        def estimate(self, steps):
            assert steps.mask is None
            assert steps.cu_seqlens is None
            return super().estimate(steps)

    steps = inputs(GAE, make_steps((9, 4)))
    mask = per_step((9, 4)) < 0.8
    options = {"mask": mask, "cu_seqlens": torch.tensor([0, 4, 9])}
    own, library = (kind(skip_masked=skip_masked)(**poisoned(steps, ~mask, {"reward"}), **options) for kind in (Own, GAE))
    torch.testing.assert_close(own, library)
    assert library.advantage.isfinite().all()
