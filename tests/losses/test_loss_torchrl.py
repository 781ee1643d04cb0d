"""The loss against TorchRL's: outputs and gradients on the same networks and data, over the options of both."""

import itertools

import pytest
import torch
from loops import loop_over
from loss_cases import (
    ESTIMATORS,
    GIVEN,
    INSIDE,
    assert_same,
    copies,
    gradients,
    make_loss,
    make_loss_steps,
    make_networks,
    of,
    present,
    swapped,
    traced,
)

pytest.importorskip("torchrl")

from torchrl_cases import TORCHRL_CLASSES, assert_equals_torchrl, torchrl_data, torchrl_loss

pytestmark = pytest.mark.filterwarnings(
    # TorchRL's own note that it samples the entropy.
    "ignore:This computes a Monte-Carlo:UserWarning"
)

COEFFICIENTS = tuple(
    itertools.product(("l1", "l2", "smooth_l1"), ("none", "mean", "sum"), (None, 0.2), (0.0, 0.01), (None, 1.0, 0.5))
)
SHARING = ((False, False), (False, True), (True, False), (True, True))  # separate_losses, shared trunk


@pytest.mark.parametrize(("separate_losses", "shared"), SHARING)
@pytest.mark.parametrize("source", ["given", "inside"])
@loop_over(("loss_critic_type", "reduction", "clip_value", "entropy_coef", "critic_coef"), COEFFICIENTS)
def test_every_combination_of_options_equals_torchrl(
    loss_critic_type, reduction, clip_value, entropy_coef, critic_coef, source, separate_losses, shared
):
    assert_equals_torchrl(
        make_loss_steps(),
        GIVEN if source == "given" else INSIDE,
        estimator="GAE",
        shared=shared,
        loss_critic_type=loss_critic_type,
        reduction=reduction,
        clip_value=clip_value,
        entropy_coef=entropy_coef,
        critic_coef=critic_coef,
        separate_losses=separate_losses,
    )


@pytest.mark.parametrize("estimator", [None, *ESTIMATORS])
@pytest.mark.parametrize("distribution", TORCHRL_CLASSES)
@loop_over(("separate_losses", "shared"), SHARING)
@loop_over("clip_value", [None, 0.2])
def test_every_distribution_with_every_estimator_equals_torchrl(
    distribution, estimator, clip_value, separate_losses, shared, taken_action_vtrace
):
    assert_equals_torchrl(
        make_loss_steps(distribution=distribution),
        GIVEN if estimator is None else INSIDE,
        distribution=distribution,
        estimator=estimator,
        shared=shared,
        clip_value=clip_value,
        separate_losses=separate_losses,
        entropy_coef=0.1,
    )


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("samples_mc_entropy", [1, 2, 7])
def test_monte_carlo_entropy_equals_torchrl_for_any_number_of_samples(samples_mc_entropy, reduction):
    assert_equals_torchrl(
        make_loss_steps(distribution="TanhNormal"),
        GIVEN,
        distribution="TanhNormal",
        samples_mc_entropy=samples_mc_entropy,
        reduction=reduction,
        entropy_coef=0.1,
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_masked_losses_equal_torchrl(names, reduction):
    steps = make_loss_steps()
    mine, theirs = copies(make_networks())
    loss = make_loss(networks=mine, reduction=reduction)
    given = of(steps, "advantage", "value_target")
    if names == INSIDE:  # TorchRL's trace passes masked steps, as advantages computed without a mask do
        estimates = loss.estimates(**of(steps, *INSIDE))
        given |= {name: getattr(estimates, name) for name in ("advantage", "value_target")}
    outputs = loss(**given, mask=steps.mask)
    expected = torchrl_loss(theirs, estimator="GAE", reduction=reduction)(torchrl_data(steps, *names, "mask"))
    for name in ("loss_objective", "loss_critic", "loss_entropy"):
        torch.testing.assert_close(getattr(outputs, name), expected[name], rtol=1e-5, atol=1e-5)
    assert_same(gradients(outputs, mine), gradients(expected, theirs))


@pytest.mark.parametrize("estimator", [None, *ESTIMATORS])
def test_time_major_data_equals_torchrl_transposed(estimator, taken_action_vtrace):
    steps = make_loss_steps()
    time_major = swapped(steps)
    time_major = time_major._replace(
        **{
            name: value.squeeze(-1)
            for name, value in time_major._asdict().items()
            if name not in ("observation", "next_observation", "action")
        }
    )
    names = GIVEN if estimator is None else INSIDE
    mine, theirs = copies(make_networks())
    options = {"reduction": "none", "clip_value": 0.2}
    outputs = make_loss(networks=mine, value_estimator=estimator, **options)(**of(time_major, *names))
    expected = torchrl_loss(theirs, estimator=estimator, **options)(torchrl_data(steps, *names))
    for name in ("loss_objective", "loss_critic", "loss_entropy"):
        torch.testing.assert_close(getattr(outputs, name).t(), expected[name], rtol=1e-5, atol=1e-5)


def test_clipping_around_the_present_value_equals_torchrl_where_no_value_is_given():
    """TorchRL then takes the value that its estimator has just computed, so that nothing is clipped."""
    assert_equals_torchrl(make_loss_steps(), INSIDE, estimator="GAE", clip_value=1e-3)


def test_clipping_around_a_given_value_equals_torchrl_with_the_advantage_computed_beforehand():
    """With the advantage computed inside, TorchRL overwrites the value that it is given; here it is the one that counts."""
    steps = make_loss_steps()
    mine, theirs = copies(make_networks())
    outputs = make_loss(networks=mine, clip_value=0.2)(**of(steps, *INSIDE, "state_value"))
    expected_loss = torchrl_loss(theirs, estimator="GAE", clip_value=0.2)
    data = torchrl_data(steps, *INSIDE)
    expected_loss.value_estimator(data)
    data["state_value"] = steps.state_value
    expected = expected_loss(data)
    assert outputs.value_clip_fraction > 0
    for name in ("loss_objective", "loss_critic", "value_clip_fraction"):
        torch.testing.assert_close(getattr(outputs, name), expected[name], rtol=1e-5, atol=1e-5)


def test_scheduled_coefficients_equal_torchrl():
    steps = make_loss_steps()
    mine, theirs = copies(make_networks())
    loss = make_loss(networks=mine, clip_value=0.1)
    expected_loss = torchrl_loss(theirs, estimator="GAE", clip_value=0.1)
    loss.entropy_coef, loss.critic_coef, loss.clip_value = 0.3, 0.7, 0.4
    expected_loss.entropy_coeff, expected_loss.critic_coeff, expected_loss.clip_value = map(torch.tensor, (0.3, 0.7, 0.4))
    outputs, expected = loss(**of(steps, *GIVEN)), expected_loss(torchrl_data(steps, *GIVEN))
    assert_same(present(outputs), dict(expected.items()))
    assert_same(gradients(outputs, mine), gradients(expected, theirs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning")
@pytest.mark.parametrize(("names", "clip_value"), [(INSIDE, None), (GIVEN, 0.2)], ids=["advantage_inside", "clip_value"])
def test_torchrl_itself_does_not_compile_whole(names, clip_value):
    """What this library is for; when it no longer holds, the documentation is to be changed."""
    compiled = traced(torchrl_loss(make_networks(), estimator="GAE", clip_value=clip_value), dynamic=None)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Data-dependent branching"):
        compiled(torchrl_data(make_loss_steps(), *names))
