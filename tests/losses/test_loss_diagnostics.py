"""What the loss reports beside the losses: the variance that values explain, and how far the policy has moved."""

import math

import pytest
import torch
from loss_cases import (
    DISTRIBUTIONS,
    GIVEN,
    INSIDE,
    CountingCritic,
    assert_same,
    copies,
    gradients,
    losses_of,
    make_loss,
    make_loss_steps,
    make_networks,
    make_rollout,
    of,
    traced,
)

from a2c_compiled import TrainStep
from a2c_compiled.losses import A2CLosses, a2c_loss

EXACT = 1e-12
NAN = float("nan")
DIAGNOSTICS = ("explained_variance", "kl_approx")
SOURCES = {"inside": INSIDE, "given": (*GIVEN, "sample_log_prob")}


def terms(seed=0, shape=(4, 5), spread=0.3):
    """Of the function: log-probabilities now and when the data was made, values and returns."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    return {
        "log_prob": drawn[0],
        "sample_log_prob": drawn[0] + spread * drawn[1],
        "advantage": drawn[2],
        "new_state_value": drawn[3],
        "value_target": drawn[3] + 0.5 * drawn[4],
        "diagnostics": True,
    }


def some_mask(shape=(4, 5)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6


# The formulas


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_explained_variance_is_one_less_the_share_of_the_residual(masked, reduction):
    given, mask = terms(), some_mask() if masked else None
    found = a2c_loss(**given, mask=mask, reduction=reduction).explained_variance
    values, returns = (given[name] if mask is None else given[name][mask] for name in ("new_state_value", "value_target"))
    expected = 1 - (returns - values).var(unbiased=False) / returns.var(unbiased=False)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert 0.5 < found < 1


@pytest.mark.parametrize("masked", [False, True])
def test_known_explained_variances(masked):
    given, mask = terms(), some_mask() if masked else None

    def explained(values):
        return a2c_loss(**{**given, "new_state_value": values}, mask=mask).explained_variance.item()

    returns = given["value_target"]
    assert explained(returns) == 1
    assert explained(returns + 3) == pytest.approx(1, abs=EXACT)  # an offset is no variance
    assert explained(torch.full_like(returns, 7.0)) == pytest.approx(0, abs=EXACT)
    assert explained(-returns) == pytest.approx(-3, abs=EXACT)


def test_returns_that_are_all_equal_leave_nothing_to_explain():
    given = {**terms(), "value_target": torch.zeros(4, 5).double()}
    assert a2c_loss(**given).explained_variance == -math.inf
    assert a2c_loss(**{**given, "new_state_value": given["value_target"]}).explained_variance.isnan()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_divergence_is_the_mean_of_its_estimate_at_each_step(masked, reduction):
    given, mask = terms(), some_mask() if masked else None
    found = a2c_loss(**given, mask=mask, reduction=reduction).kl_approx
    log_ratio = given["log_prob"] - given["sample_log_prob"]
    each = log_ratio.exp() - 1 - log_ratio
    torch.testing.assert_close(found, each.mean() if mask is None else each[mask].mean(), rtol=EXACT, atol=EXACT)


def test_the_divergence_is_never_negative_and_finite_for_any_ratio():
    for seed in range(20):
        for spread in (1e-3, 0.1, 1.0, 10.0):
            assert a2c_loss(**terms(seed, spread=spread)).kl_approx > 0
    far = torch.full((4, 5), 300.0)
    for log_prob, sample in ((far, -far), (-far, far)):
        single = {name: value.float() for name, value in terms().items() if name != "diagnostics"}
        found = a2c_loss(**{**single, "log_prob": log_prob, "sample_log_prob": sample}, diagnostics=True).kl_approx
        assert found.isfinite()
        assert found > 100


@pytest.mark.parametrize("spread", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_the_divergence_of_a_small_step_is_exact_in_single_precision(spread):
    sample, moved = torch.zeros(100), spread * torch.linspace(-1, 1, 100)
    given = {"log_prob": moved, "sample_log_prob": sample, "advantage": sample}
    found = a2c_loss(**given, reduction="none", diagnostics=True).kl_approx
    each = [
        a2c_loss(*(x[i : i + 1] for x in (moved, sample)), sample_log_prob=sample[:1], diagnostics=True) for i in range(100)
    ]
    assert all(single.kl_approx >= 0 for single in each)
    expected = a2c_loss(**{name: value.double() for name, value in given.items()}, diagnostics=True).kl_approx
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)
    assert found > 0


def test_the_divergence_is_close_to_the_exact_one_of_two_policies():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, generator=generator, dtype=torch.float64).mul(0.5).log_softmax(-1)
    action = torch.multinomial(logits[0].exp(), 200_000, replacement=True, generator=generator)
    given = {"log_prob": logits[1][action], "sample_log_prob": logits[0][action], "advantage": torch.zeros(200_000).double()}
    exact = (logits[0].exp() * (logits[0] - logits[1])).sum()
    assert a2c_loss(**given, diagnostics=True).kl_approx == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)], ids=str)
def test_no_steps_have_no_divergence(shape):
    outputs = a2c_loss(**terms(shape=shape))
    assert outputs.kl_approx == 0
    assert outputs.explained_variance.isnan()


@pytest.mark.parametrize("name", ["log_prob", "sample_log_prob", "new_state_value", "value_target", "advantage"])
def test_what_is_masked_out_is_never_read(name):
    given, mask = terms(), some_mask()
    unknown = {**given, name: given[name].masked_fill(~mask, NAN)}
    assert_same(a2c_loss(**unknown, mask=mask), a2c_loss(**given, mask=mask), 0)


def test_a_sample_of_another_shape_is_named():
    given = terms()
    with pytest.raises(ValueError, match=r"^sample_log_prob: expected the shape of log_prob, \[4, 5\], got \[4, 4\]"):
        a2c_loss(**{**given, "sample_log_prob": given["sample_log_prob"][:, :4]})


# In the loss


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_diagnostics_change_neither_losses_nor_gradients(distribution, source):
    steps = make_loss_steps(distribution=distribution, dtype=torch.float64)
    losses = [
        make_loss(distribution, networks=both, diagnostics=asked)
        for both, asked in zip(copies(make_networks(distribution, dtype=torch.float64)), (True, False), strict=True)
    ]
    outputs = []
    for loss in losses:
        torch.manual_seed(0)
        outputs.append(loss(**of(steps, *SOURCES[source])))
    assert all(getattr(outputs[0], name).shape == () for name in DIAGNOSTICS)
    assert all(not getattr(outputs[0], name).requires_grad for name in DIAGNOSTICS)
    assert all(getattr(outputs[1], name) is None for name in DIAGNOSTICS)
    assert_same(losses_of(outputs[0]), losses_of(outputs[1]), 0)
    assert_same(*(gradients(output, loss) for output, loss in zip(outputs, losses, strict=True)), 0)


def test_the_loss_reports_of_its_own_values_and_policy():
    loss = make_loss(dtype=torch.float64, diagnostics=True)
    steps = make_loss_steps(dtype=torch.float64)
    outputs = loss(**of(steps, *GIVEN, "sample_log_prob"))
    values = loss.critic_network(steps.observation)
    expected = 1 - (steps.value_target - values).var() / steps.value_target.var()
    torch.testing.assert_close(outputs.explained_variance, expected.detach(), rtol=EXACT, atol=EXACT)
    log_prob = loss.distribution.log_prob(loss.actor_network(steps.observation), steps.action).detach()
    log_ratio = log_prob - steps.sample_log_prob.squeeze(-1)
    torch.testing.assert_close(outputs.kl_approx, (log_ratio.exp() - 1 - log_ratio).mean(), rtol=EXACT, atol=EXACT)
    assert loss(**{**of(steps, *GIVEN), "sample_log_prob": log_prob}).kl_approx == 0


def test_the_divergence_from_a_column_equals_that_from_its_entries():
    loss, steps = make_loss(diagnostics=True), make_loss_steps()
    arguments = of(steps, *INSIDE)
    flat = {**arguments, "sample_log_prob": steps.sample_log_prob.squeeze(-1)}
    assert torch.equal(loss(**arguments).kl_approx, loss(**flat).kl_approx)


@pytest.mark.parametrize(
    ("options", "names", "reported"),
    [
        ({}, INSIDE, DIAGNOSTICS),
        ({}, INSIDE[:-1], ("explained_variance",)),
        ({"critic_coef": None}, INSIDE, ("kl_approx",)),
        ({"critic_coef": None}, ("advantage",), ()),
        ({}, GIVEN, ("explained_variance",)),
        ({"diagnostics": False}, INSIDE, ()),
    ],
)
def test_diagnostics_are_none_where_what_they_need_is_missing(options, names, reported):
    loss = make_loss(**{"diagnostics": True, **options})
    outputs = loss(**of(make_loss_steps(), *names))
    assert tuple(name for name in DIAGNOSTICS if getattr(outputs, name) is not None) == reported
    if "sample_log_prob" in names:
        assert tuple(name for name in loss.out_keys if name in DIAGNOSTICS) == reported


@pytest.mark.parametrize("kept", [(), ("explained_variance",), ("kl_approx",), DIAGNOSTICS])
def test_out_keys_filter_diagnostics(kept):
    loss = make_loss(diagnostics=True)
    arguments = of(make_loss_steps(), *INSIDE)
    whole = loss(**arguments)
    loss.out_keys = ("loss_objective", *kept)
    filtered = loss(**arguments)
    assert tuple(name for name, value in filtered._asdict().items() if value is not None) == ("loss_objective", *kept)
    assert all(torch.equal(getattr(filtered, name), getattr(whole, name)) for name in kept)
    assert loss.reads_log_prob == ("kl_approx" in kept)


@pytest.mark.parametrize(
    ("names", "kept", "calls"),
    [
        (INSIDE, A2CLosses._fields, 2),
        (GIVEN, A2CLosses._fields, 1),
        (GIVEN, ("loss_objective", "explained_variance"), 1),
        (GIVEN, ("loss_objective", "kl_approx"), 0),
    ],
)
def test_diagnostics_cost_no_critic_pass_of_their_own(names, kept, calls):
    actor, critic = make_networks()
    counting = CountingCritic(critic)
    loss = make_loss(networks=[actor, counting], diagnostics=True)
    loss.out_keys = kept
    loss(**of(make_loss_steps(), *names, "sample_log_prob"))
    assert counting.calls == calls


def test_half_precision_networks_report_in_float32():
    loss = make_loss(dtype=torch.bfloat16, diagnostics=True)
    steps = make_loss_steps(dtype=torch.bfloat16)
    outputs = loss(**of(steps, *GIVEN, "sample_log_prob"))
    exact = make_loss(dtype=torch.float64, diagnostics=True)
    exact.load_state_dict(loss.state_dict())
    double = {name: value.double() if value.is_floating_point() else value for name, value in steps._asdict().items()}
    expected = exact(**of(type(steps)(**double), *GIVEN, "sample_log_prob"))
    for name in DIAGNOSTICS:
        assert getattr(outputs, name).dtype == torch.float32
        torch.testing.assert_close(getattr(outputs, name).double(), getattr(expected, name), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["eager", "scripted"])
def test_the_explained_variance_of_equal_targets_is_not_a_rounding_error(mode, masked):
    function = torch.jit.script(a2c_loss) if mode == "scripted" else a2c_loss
    target, log_prob = torch.full((8192,), 100.1), torch.zeros(8192)
    mask = torch.arange(8192) % 3 < 2 if masked else None
    for value, expected in ((target, torch.nan), (target + torch.arange(8192) % 2, -torch.inf)):
        outputs = function(log_prob, log_prob, None, value, target, mask=mask, diagnostics=True)
        torch.testing.assert_close(outputs.explained_variance, torch.tensor(expected), equal_nan=True)


def test_the_explained_variance_of_large_values_keeps_its_precision():
    generator = torch.Generator().manual_seed(0)
    target = (1e5 + torch.randn(8192, generator=generator)).float()
    value = (target + 0.5 * torch.randn(8192, generator=generator)).float()
    expected = 1 - (target.double() - value.double()).var() / target.double().var()
    log_prob = torch.zeros(8192)
    outputs = a2c_loss(log_prob, log_prob, None, value, target, diagnostics=True)
    torch.testing.assert_close(outputs.explained_variance.double(), expected, rtol=1e-6, atol=0)


# In other modes


@pytest.mark.slow
def test_scripted_and_traced_losses_report_the_same_as_eager():
    """Exported: see test_loss_export.py."""
    loss = make_loss(diagnostics=True)
    modules = torch.jit.script(loss), traced(loss)
    for count, shape in enumerate([(4, 5), (7, 9)]):
        arguments = of(make_loss_steps(shape, seed=count), *INSIDE, "mask")
        expected = loss(**arguments)
        assert all(getattr(expected, name).isfinite() for name in DIAGNOSTICS)
        with torch._dynamo.config.patch(error_on_recompile=count > 0):
            for module in modules:
                assert_same(module(**arguments), expected)


def test_a_step_reports_what_its_loss_does():
    loss = make_loss(diagnostics=True)
    step = TrainStep(loss, compile=False)
    rollout = make_rollout(options=("log_prob", "mask"))
    arguments = {name: value for name, value in rollout._asdict().items() if value is not None}
    arguments["sample_log_prob"] = arguments.pop("log_prob")
    expected = loss(**arguments)
    metrics = step(rollout)
    for name in DIAGNOSTICS:
        assert torch.equal(getattr(metrics, name), getattr(expected, name))
    # With the same actions scored by the policy that the step has changed, the divergence from the former one.
    log_prob = loss.distribution.log_prob(loss.actor_network(rollout.observation), rollout.action).detach()
    same = TrainStep(loss, "sgd", lr=0.0, compile=False)(rollout._replace(log_prob=log_prob))
    assert same.kl_approx == 0
    assert step(rollout._replace(log_prob=None)).kl_approx is None
    assert TrainStep(make_loss(), compile=False)(rollout).explained_variance is None
