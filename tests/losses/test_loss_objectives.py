"""Another objective over the same actor, critic, distribution and estimator: one method, and what it reads."""

from typing import Optional

import pytest
import torch
from loss_cases import (
    CHOICES,
    ClippedRatioLoss,
    assert_same,
    compile_backend,
    gradients,
    make_clipped_loss,
    make_loss_steps,
    make_networks,
    make_rollout,
    of,
    present,
    traced,
)
from torch import Tensor

from a2c_compiled import A2CLoss, TrainStep, distributions
from a2c_compiled.losses import a2c_loss

EXPERIENCE = ("reward", "next_observation", "done", "terminated", "sample_log_prob", "mask")


class SquaredLoss(A2CLoss):
    """Not 0 where every argument is."""

    def objective(self, log_prob: Tensor, advantage: Tensor, sample_log_prob: Optional[Tensor]) -> Tensor:
        return (advantage - log_prob - 1.0).square()


def by_hand(loss, steps, estimator, mask):
    """The objective with the advantage of ``estimator``, step by step in float64."""
    log_prob = loss.distribution.log_prob(loss.actor_network(steps.observation), steps.action)
    values, next_values = (loss.critic_network(x).detach() for x in (steps.observation, steps.next_observation))
    logs = (log_prob.detach().unsqueeze(-1), steps.sample_log_prob) if estimator.needs_log_prob else (None, None)
    advantage = estimator(
        values, next_values, steps.reward, steps.done, steps.terminated, *logs, mask=mask.unsqueeze(-1)
    ).advantage
    total = torch.zeros((), dtype=torch.float64)
    for index in zip(*torch.where(mask), strict=True):
        ratio = (log_prob[index] - steps.sample_log_prob.squeeze(-1)[index]).exp()
        weight = advantage.squeeze(-1)[index]
        total = total - min(ratio * weight, ratio.clamp(0.8, 1.2) * weight)
    return total / mask.sum()


@pytest.mark.parametrize("value_estimator", ["gae", "vtrace"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_objective_of_ones_own_equals_its_formula_and_its_gradient(value_estimator, masked):
    loss = make_clipped_loss(dtype=torch.float64, value_estimator=value_estimator)
    steps = make_loss_steps(dtype=torch.float64)
    mask = steps.mask.squeeze(-1) if masked else torch.ones(4, 5, dtype=torch.bool)
    outputs = loss(**of(steps, *EXPERIENCE[: 6 if masked else 5]))
    expected = by_hand(loss, steps, loss.value_estimator, mask)
    torch.testing.assert_close(outputs.loss_objective, expected, rtol=1e-12, atol=1e-12)
    parameters = list(loss.actor_network.parameters())
    found = torch.autograd.grad(outputs.loss_objective, parameters)
    for mine, other in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_the_other_losses_are_those_of_a2c():
    networks, steps = make_networks(), make_loss_steps()
    found = make_clipped_loss(networks)(**of(steps, *EXPERIENCE))
    expected = A2CLoss(*networks, distributions.Categorical(CHOICES))(**of(steps, *EXPERIENCE))
    assert_same(found._replace(loss_objective=None), expected._replace(loss_objective=None), 0)
    assert not torch.equal(found.loss_objective, expected.loss_objective)


def test_an_objective_that_is_not_zero_where_its_arguments_are_counts_no_masked_step():
    actor, critic = make_networks()
    steps = make_loss_steps(column=False)
    loss = SquaredLoss(actor, critic, distributions.Categorical(CHOICES), reduction="none")
    outputs = loss(**of(steps, "advantage", "value_target", "mask"))
    assert (outputs.loss_objective[~steps.mask] == 0).all()
    assert (outputs.loss_objective[steps.mask] != 0).all()


@pytest.mark.slow
def test_traced_and_scripted_equal_eager():
    """Saved: see test_loss_modes.py. Exported: see test_loss_export.py."""
    loss, arguments = make_clipped_loss(value_estimator="vtrace"), of(make_loss_steps(), *EXPERIENCE)
    expected = loss(**arguments)
    expected_gradients = gradients(expected, loss)
    for module in (traced(loss, dynamic=None), torch.jit.script(loss)):
        outputs = module(**arguments)
        assert_same(present(outputs), present(expected))
        assert_same(gradients(outputs, loss), expected_gradients)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_training_step_in_minibatches_with_vtrace_and_a_mask_equals_one_update_of_the_whole_rollout(compile):
    rollout = make_rollout(options=("log_prob", "mask"))
    networks = make_networks()
    loss = make_clipped_loss(networks, value_estimator="vtrace")
    by_hand_loss = make_clipped_loss(make_networks(), value_estimator="vtrace")
    with compile_backend():
        step = TrainStep(loss, optimizer="sgd", lr=0.1, max_grad_norm=None, compile=compile, minibatches=3)
        metrics = step(rollout)

    arguments = rollout._asdict()
    arguments["sample_log_prob"] = arguments.pop("log_prob")
    outputs = by_hand_loss(**arguments)
    (outputs.loss_objective + outputs.loss_critic + outputs.loss_entropy).backward()
    torch.testing.assert_close(metrics.loss_objective, outputs.loss_objective.detach())
    for mine, other in zip(loss.parameters(), by_hand_loss.parameters(), strict=True):
        torch.testing.assert_close(mine, other - 0.1 * other.grad, rtol=1e-5, atol=1e-6)


def test_the_log_probability_that_the_objective_reads_is_asked_for():
    loss, steps = make_clipped_loss(), make_loss_steps()
    assert loss.reads_log_prob
    with pytest.raises(ValueError, match=r"^sample_log_prob: expected a tensor, which the objective needs, got None"):
        loss(**of(steps, "reward", "next_observation", "done"))


def test_dropped_outputs_are_not_computed(monkeypatch):
    """Neither the objective, nor what the critic's loss is made of."""
    loss, steps = make_clipped_loss(diagnostics=True), make_loss_steps()
    monkeypatch.setattr(ClippedRatioLoss, "objective", lambda *arguments: pytest.fail("computed"))
    loss.out_keys = ("entropy",)
    assert [name for name, value in loss(**of(steps, *EXPERIENCE))._asdict().items() if value is not None] == ["entropy"]


def test_the_function_and_the_module_are_one():
    """On the same terms they agree to the bit, every output that either knows included."""
    actor, critic = make_networks()
    steps = make_loss_steps(column=False)
    loss = A2CLoss(actor, critic, distributions.Categorical(CHOICES), clip_value=0.2, diagnostics=True)
    found = loss(**of(steps, "advantage", "value_target", "state_value", "sample_log_prob", "mask"))
    params = actor(steps.observation)
    expected = a2c_loss(
        loss.distribution.log_prob(params, steps.action),
        steps.advantage,
        loss.distribution.entropy(params),
        critic(steps.observation).squeeze(-1),
        steps.value_target,
        steps.state_value,
        loss.entropy_coef,
        loss.critic_coef,
        loss.clip_value,
        mask=steps.mask,
        sample_log_prob=steps.sample_log_prob,
        diagnostics=True,
    )
    assert_same(found, expected, 0)
