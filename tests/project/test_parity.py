"""One test for each row of PARITY.md, named after it: what TorchRL's A2C offers, beside what there is here.

Each shows the row at work against TorchRL itself. That every mode gives the same is shown where each part is tested.
"""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from cases import call_arguments, evaluate, inputs, make_steps, per_step
from loss_cases import (
    GIVEN,
    INSIDE,
    assert_same,
    copies,
    gradients,
    losses_of,
    make_loss,
    make_loss_steps,
    make_networks,
    of,
    present,
)
from tolerances import assert_close
from torch import nn

from a2c_compiled import A2CLoss, ActorCritic, distributions, estimators
from a2c_compiled import functional as F
from a2c_compiled.estimators import ValueEstimators, make_value_estimator
from a2c_compiled.losses import PercentileNorm

pytest.importorskip("torchrl")

from tensordict import TensorDict
from torchrl import objectives as theirs
from torchrl.modules import MaskedCategorical, PercentileValueNorm
from torchrl.objectives.value import advantages as their_estimators
from torchrl.objectives.value import functional as their_functions
from torchrl_cases import assert_equals_torchrl, torchrl_data, torchrl_loss

pytestmark = pytest.mark.filterwarnings("ignore:This computes a Monte-Carlo:UserWarning")
PLAIN = ("reward", "next_observation", "done", "terminated")
SHAPE = (4, 6, 1)


def compare(names=PLAIN, distribution="Categorical", estimator=None, shared=False, **options):
    """Outputs and gradients of both losses on the same networks and data."""
    assert_equals_torchrl(make_loss_steps(distribution=distribution), names, distribution, estimator, shared, **options)


def both_losses(estimator="GAE", **options):
    """This library's loss and TorchRL's, over equal networks."""
    mine, others = copies(make_networks())
    return make_loss(networks=mine, value_estimator=estimator, **options), torchrl_loss(others, estimator=estimator, **options)


# Arguments of A2CLoss


def test_actor_network_and_critic_network():
    actor, critic = make_networks()
    other = copy.deepcopy(actor)
    loss = A2CLoss(other, other, distributions.Categorical(4), actor=actor, critic=critic)
    assert loss.actor_network is actor
    assert loss.critic_network is critic
    for missing in ({"actor": actor}, {"critic": critic}):
        with pytest.raises(TypeError, match="_network: expected a module"):
            A2CLoss(distribution=distributions.Categorical(4), **missing)
        with pytest.raises(TypeError):
            theirs.A2CLoss(**missing)


def test_entropy_bonus():
    for options in ({"entropy_bonus": False}, {"entropy_coef": 0.0}, {"entropy_bonus": True, "entropy_coef": 0.0}):
        compare(**options)
        assert "entropy" not in make_loss(**options).out_keys


def test_samples_mc_entropy():
    compare(distribution="TanhNormal", samples_mc_entropy=3)


def test_entropy_coef():
    compare(entropy_coef=0.3)
    loss, expected = both_losses()
    loss.entropy_coef, expected.entropy_coeff = 0.2, torch.tensor(0.2)
    steps = make_loss_steps()
    torch.testing.assert_close(loss(**of(steps, *PLAIN)).loss_entropy, expected(torchrl_data(steps, *PLAIN))["loss_entropy"])


def test_critic_coef():
    compare(critic_coef=0.3)
    compare(("advantage",), critic_coef=None)


def test_loss_critic_type():
    for kind in ("l1", "l2", "smooth_l1"):
        compare(loss_critic_type=kind)
    with pytest.raises(ValueError, match="loss_critic_type: expected one of 'l1', 'l2', 'smooth_l1', got 'huber'"):
        make_loss(loss_critic_type="huber")


def test_advantage_norm():
    steps = make_loss_steps()
    mine, others = copies(make_networks())
    loss = make_loss(networks=mine, advantage_norm=PercentileNorm(rate=0.5, min_scale=0.1))
    expected = torchrl_loss(others, advantage_norm=PercentileValueNorm(rate=0.5, min_scale=0.1))
    for names in (PLAIN, PLAIN, GIVEN):  # the statistics follow what the loss computes, not what it is given
        outputs, theirs_ = loss(**of(steps, *names)), expected(torchrl_data(steps, *names))
        torch.testing.assert_close(outputs.loss_objective, theirs_["loss_objective"])
    loss.eval(), expected.eval()
    scale = loss.advantage_norm.scale().clone()
    loss(**of(steps, *PLAIN))
    assert torch.equal(loss.advantage_norm.scale(), scale)
    assert_close(scale.float(), expected.advantage_norm.scale().squeeze())


def test_gamma():
    for make in (lambda: make_loss(gamma=0.9), lambda: torchrl_loss(make_networks(), gamma=0.9)):
        with pytest.raises(TypeError):
            make()


def test_separate_losses():
    for shared in (False, True):
        compare(shared=shared, separate_losses=True)


def test_actor_and_critic_over_a_common_trunk():
    mine, others = copies(make_networks(shared=True))
    steps = make_loss_steps()
    loss = make_loss(networks=(ActorCritic(mine[0][0], mine[0][1], mine[1][1]), None), value_estimator="GAE")
    expected = torchrl_loss(others, estimator="GAE")(torchrl_data(steps, *PLAIN))
    outputs = loss(**of(steps, *PLAIN))
    assert_same(present(outputs), {name: expected[name] for name in present(outputs)})
    assert_same(gradients(outputs, mine), gradients(expected, others))


def test_functional():
    loss = make_loss(functional=True)
    others = make_networks(seed=1)
    networks = nn.ModuleDict({"actor_network": others[0], "critic_network": others[1]})
    parameters = dict(networks.named_parameters())
    arguments = of(make_loss_steps(), *PLAIN)
    assert_same(torch.func.functional_call(loss, parameters, (), arguments), make_loss(networks=others)(**arguments), 0)


def test_reduction():
    for reduction in ("none", "mean", "sum"):
        compare(reduction=reduction)


def test_clip_value():
    for clip_value in (0.2, torch.tensor(0.2), torch.tensor([0.2])):
        compare(GIVEN, clip_value=clip_value)
    for wrong, error in ((True, TypeError), (torch.ones(2), ValueError)):
        with pytest.raises(error, match="clip_value: expected a number"):
            make_loss(clip_value=wrong)
        with pytest.raises(ValueError, match="clip_value"):
            torchrl_loss(make_networks(), clip_value=wrong)
    loss, expected = both_losses(clip_value=0.1)
    loss.clip_value, expected.clip_value = 0.4, torch.tensor(0.4)
    steps = make_loss_steps()
    outputs, others = loss(**of(steps, *GIVEN)), expected(torchrl_data(steps, *GIVEN))
    torch.testing.assert_close(outputs.loss_critic, others["loss_critic"])


# What the loss does


def test_the_advantage_is_computed_with_a_critic_that_is_held_out():
    compare()
    loss = make_loss(critic_coef=None)
    outputs = loss(**of(make_loss_steps(), *PLAIN))
    found = torch.autograd.grad(outputs.loss_objective, list(loss.critic_network.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in found)


def test_an_action_that_requires_grad_is_refused():
    steps = make_loss_steps(distribution="Normal")
    steps = steps._replace(action=steps.action.requires_grad_())
    with pytest.raises(ValueError, match="action: expected a tensor that does not require grad"):
        make_loss("Normal")(**of(steps, *GIVEN))
    with pytest.raises(RuntimeError, match="requires grad"):
        torchrl_loss(make_networks("Normal"), "Normal")(torchrl_data(steps, *GIVEN))


def test_entropy_is_reported_detached_and_weighted_as_a_loss():
    for distribution in ("Categorical", "TanhNormal"):
        compare(GIVEN, distribution, entropy_coef=0.1)
    outputs = make_loss()(**of(make_loss_steps(), *GIVEN))
    assert not outputs.entropy.requires_grad


def test_a_value_target_of_another_shape_or_missing_is_refused():
    steps, loss = make_loss_steps(), make_loss()
    with pytest.raises(ValueError, match="value_target: expected a tensor, which the critic loss needs, got None"):
        loss(**of(steps, "advantage"))
    with pytest.raises(ValueError, match="value_target: expected the shape of log_prob"):
        loss(**of(steps._replace(value_target=steps.value_target[:1]), *GIVEN))


def test_clipped_values_and_their_share():
    compare(GIVEN, clip_value=0.2)
    with pytest.raises(ValueError, match="state_value: expected a tensor, which clip_value needs"):
        make_loss(clip_value=0.2)(**of(make_loss_steps(), "advantage", "value_target"))


def test_only_losses_are_reduced():
    steps = make_loss_steps((4, 5))
    outputs = make_loss(reduction="none", clip_value=0.2)(**of(steps, *GIVEN))
    expected = torchrl_loss(make_networks(), reduction="none", clip_value=0.2)(torchrl_data(steps, *GIVEN))
    for name, value in present(outputs).items():
        assert value.shape == expected[name].shape == ((4, 5) if name.startswith("loss_") else ())


def test_outputs_in_order_and_filtered():
    assert make_loss(clip_value=0.2).out_keys == (
        "loss_objective",
        "loss_critic",
        "entropy",
        "loss_entropy",
        "value_clip_fraction",
    )
    loss = make_loss()
    loss.out_keys = ("loss_critic", "entropy")
    assert list(present(loss(**of(make_loss_steps(), *PLAIN)))) == ["loss_critic", "entropy"]


def test_composite_actions():
    heads = distributions.Categorical(3), distributions.Normal(2)
    composite = distributions.Composite(*heads)
    params = torch.randn(4, 5, composite.num_params)
    first, second = params.split([head.num_params for head in heads], -1)
    actions = heads[0].sample(first), heads[1].sample(second)
    action = composite.join_actions(actions)
    assert_close(
        composite.log_prob(params, action), heads[0].log_prob(first, actions[0]) + heads[1].log_prob(second, actions[1])
    )
    assert_close(composite.entropy(params), heads[0].entropy(first) + heads[1].entropy(second))


def test_every_value_estimator_by_enumeration_string_class_and_instance(taken_action_vtrace):
    for name in ("TD0", "TD1", "TDLambda", "GAE", "VTrace"):
        compare(INSIDE, estimator=name)
        kind = ValueEstimators[name]
        for value_type in (kind, name, name.lower(), kind.value, kind.value(differentiable=True)):
            assert type(make_loss().make_value_estimator(value_type).value_estimator) is kind.value
    assert [kind.name for kind in theirs.ValueEstimators if kind.name in ValueEstimators.__members__] == [
        kind.name for kind in ValueEstimators if kind.name in theirs.ValueEstimators.__members__
    ]
    default = make_loss().value_estimator
    assert (type(default), default.gamma, default.lmbda, default.differentiable) == (estimators.GAE, 0.99, 0.95, True)
    assert make_value_estimator("td_lambda", gamma=0.5, lmbda=0.25).lmbda == 0.25

    class Own(estimators.ValueEstimator):
        def estimate(self, steps):
            return F.ValueEstimate(steps.reward - steps.state_value, steps.reward)

    own = Own(0.9, False, -2)
    steps = make_loss_steps()
    outputs = make_loss(value_estimator=own, loss_critic_type="l2")(**of(steps, *PLAIN))
    values = make_networks()[1](steps.observation)
    torch.testing.assert_close(outputs.loss_critic, (steps.reward - values).square().mean())


def test_validity_mask():
    """TorchRL's entropy, which is for the log alone, does not follow the mask."""
    names, steps = (*GIVEN, "mask"), make_loss_steps()
    for reduction in ("none", "mean", "sum"):
        loss, expected = both_losses(reduction=reduction)
        assert_same(losses_of(loss(**of(steps, *names))), losses_of(expected(torchrl_data(steps, *names))))
    steps = steps._replace(advantage=steps.advantage.masked_fill(~steps.mask, torch.nan))
    loss = make_loss()
    outputs = loss(**of(steps, *names))
    assert all(value.isfinite().all() for value in (*present(outputs).values(), *gradients(outputs, loss).values()))
    everything_out = steps._replace(mask=torch.zeros_like(steps.mask))
    assert loss(**of(everything_out, *names)).loss_critic == 0


def test_a_terminated_step_ends_the_trace():
    steps = make_steps((3, 6, 1))
    never = torch.zeros_like(steps.done)
    terminated = never.clone()
    terminated[:, 2] = True
    values = steps.state_value, steps.next_state_value, steps.reward
    ours = F.generalized_advantage_estimate(0.9, 0.8, *values, never, terminated).advantage
    marked = F.generalized_advantage_estimate(0.9, 0.8, *values, terminated, terminated).advantage
    theirs, _ = their_functions.generalized_advantage_estimate(0.9, 0.8, *values, never, terminated)
    assert_close(ours, marked)
    torch.testing.assert_close(theirs[:, 3:], ours[:, 3:], rtol=1e-6, atol=1e-6)  # TorchRL rounds gamma to float32
    assert not torch.allclose(theirs[:, :3], ours[:, :3])


def test_a_mask_ends_the_trace():
    """TorchRL's result: advantages without a mask, passed with the mask."""
    names, steps = (*INSIDE, "mask"), make_loss_steps()
    loss, expected = both_losses(reduction="none")
    theirs = losses_of(expected(torchrl_data(steps, *names)))
    estimates = loss.estimates(**of(steps, *INSIDE))
    given = {"advantage": estimates.advantage, "value_target": estimates.value_target}
    assert_same(losses_of(loss(**of(steps, "mask"), **given)), theirs)
    padding = torch.zeros_like(steps.mask)
    padding[:, 3:] = True
    unended = steps._replace(mask=~padding, done=torch.zeros_like(steps.done), terminated=torch.zeros_like(steps.done))
    other = unended._replace(reward=unended.reward.masked_fill(padding, 100.0))
    assert_same(losses_of(loss(**of(other, *names))), losses_of(loss(**of(unended, *names))))
    changed, same = (expected(torchrl_data(data, *names))["loss_objective"] for data in (other, unended))
    assert not torch.allclose(changed[:, :3], same[:, :3])


def test_given_targets_are_detached():
    steps = make_loss_steps()
    loss, expected = both_losses()
    given = {name: getattr(steps, name).clone().requires_grad_() for name in ("advantage", "value_target")}
    outputs = losses_of(loss(**{**of(steps, *GIVEN), **given}))
    theirs = losses_of(expected(torchrl_data(steps._replace(**given), *GIVEN)))
    assert_same(outputs, theirs)
    gradients_to_given = [
        torch.autograd.grad(sum(losses.values()), tuple(given.values()), allow_unused=True) for losses in (outputs, theirs)
    ]
    assert gradients_to_given[0] == (None, None)
    assert any(gradient is not None for gradient in gradients_to_given[1])


def test_state_dict_and_conversions():
    loss, other = make_loss(entropy_coef=0.3, clip_value=0.2), make_loss(networks=make_networks(seed=5))
    other = make_loss(networks=make_networks(seed=5), clip_value=0.5)
    other.load_state_dict(loss.state_dict())
    arguments = of(make_loss_steps(), *GIVEN)
    assert_same(other(**arguments), loss(**arguments), 0)
    double = loss.double()
    assert double(**of(make_loss_steps(dtype=torch.float64), *GIVEN)).loss_critic.dtype == torch.float64


class _WithTarget(theirs.LossModule):
    """As little of a loss as TorchRL's updaters ask for: one network and its target."""

    value_network: nn.Module
    value_network_params: TensorDict
    target_value_network_params: TensorDict

    def __init__(self, network):
        super().__init__()
        self.convert_to_functional(network, "value_network", create_target_params=True)

    def forward(self, tensordict):
        return tensordict


def _target_pair():
    from tensordict.nn import TensorDictModule

    torch.manual_seed(0)
    critic = nn.Linear(3, 1)
    loss = _WithTarget(TensorDictModule(copy.deepcopy(critic), ["observation"], ["state_value"]))
    return critic, loss


@pytest.mark.filterwarnings("ignore:No target network updater:UserWarning")
def test_soft_and_hard_target_updates():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    critic, loss = _target_pair()
    soft = theirs.SoftUpdate(loss, eps=0.9)
    target = AveragedModel(critic, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    target.update_parameters(critic)  # the first call copies
    for step in range(3):
        with torch.no_grad():
            for mine, other in zip(critic.parameters(), loss.value_network_params.values(True, True), strict=True):
                mine.add_(step + 1.0)
                other.add_(step + 1.0)
        target.update_parameters(critic)
        soft.step()
    for mine, other in zip(target.module.parameters(), loss.target_value_network_params.values(True, True), strict=True):
        assert_close(mine, other)
    hard = theirs.HardUpdate(loss, value_network_update_interval=1)
    hard.step()
    target.module.load_state_dict(critic.state_dict())
    for mine, other in zip(target.module.parameters(), loss.target_value_network_params.values(True, True), strict=True):
        assert torch.equal(mine, other)
    # And the loss takes the target's word for what comes next.
    networks = make_networks()
    follower = make_networks(seed=3)[1]
    steps = make_loss_steps()
    arguments = of(steps, *PLAIN)
    with torch.no_grad():
        value, next_value = networks[1](steps.observation), follower(steps.next_observation)
    estimate = estimators.GAE()(value, next_value, steps.reward, steps.done, steps.terminated)
    found = make_loss(networks=networks, target_critic_network=follower)(**arguments)
    expected = make_loss(networks=networks)(**of(steps), advantage=estimate.advantage, value_target=estimate.value_target)
    assert_same(found, expected)


def test_one_optimizer_over_both_networks():
    loss = make_loss(shared=True)
    networks = nn.ModuleList([loss.actor_network, loss.critic_network])
    assert {id(p) for p in loss.parameters()} == {id(p) for p in networks.parameters()}
    assert len(list(loss.parameters())) == len({id(p) for p in loss.parameters()})


# Estimators


def their_estimator(kind, **options):
    """TorchRL's module of the same name, which reads values from its data."""
    looped = {"vectorized": False} if "vectorized" in inspect.signature(getattr(their_estimators, kind)).parameters else {}
    if kind == "MultiAgentGAE":
        looped = {"vectorized": False}
    return getattr(their_estimators, kind)(value_network=None, **looped, **options)


def as_data(steps, batch_size=SHAPE[:2], **extra):
    nexts = {
        "state_value": steps["next_state_value"],
        "reward": steps["reward"].clone(),  # TorchRL may write into it
        "done": steps["done"],
        "terminated": steps["terminated"],
        "truncated": steps["done"] & ~steps["terminated"],
    }
    data = {"state_value": steps["state_value"], "observation": steps["state_value"], "next": nexts, **extra}
    return TensorDict(data, batch_size)


def compare_estimator(kind, gamma=31 / 32, extra=(), time_dim=-2, steps=None, **options):
    """Advantage and value target of both; ``extra``: TorchRL's key and our argument, and the tensor."""
    steps = inputs(getattr(estimators, kind), make_steps(SHAPE)) if steps is None else steps
    mine = getattr(estimators, kind)(gamma=gamma, **options)
    theirs_options = dict(options)
    found = mine(**steps, **{name: tensor for _, name, tensor in extra})
    group = {"group_key": "group"} if any(name == "group" for _, name, _ in extra) else {}
    data = their_estimator(kind, gamma=gamma, **theirs_options, **group)(
        as_data(steps, **{key: tensor for key, _, tensor in extra})
    )
    assert_close(found.advantage, data["advantage"])
    assert_close(found.value_target, data["value_target"])


def test_td0_estimator():
    for average_rewards in (False, True):
        compare_estimator("TD0Estimator", average_rewards=average_rewards)


def test_td1_estimator():
    for average_rewards in (False, True):
        compare_estimator("TD1Estimator", average_rewards=average_rewards)


def test_td_lambda_estimator():
    for average_rewards in (False, True):
        compare_estimator("TDLambdaEstimator", lmbda=7 / 8, average_rewards=average_rewards)


def test_gae():
    for average_gae in (False, True):
        compare_estimator("GAE", lmbda=7 / 8, average_gae=average_gae)


def test_multi_agent_gae():
    steps = inputs(estimators.GAE, make_steps((4, 6, 3, 1)))
    team = {name: tensor[..., 0, :] if name in ("reward", "done", "terminated") else tensor for name, tensor in steps.items()}
    for given in (team, steps):
        for average_gae in (False, True):
            found = estimators.MultiAgentGAE(31 / 32, 7 / 8, average_gae)(**given)
            data = their_estimator("MultiAgentGAE", gamma=31 / 32, lmbda=7 / 8, average_gae=average_gae)(as_data(given))
            assert_close(found.advantage, data["advantage"])
            assert_close(found.value_target, data["value_target"])


def test_vtrace(taken_action_vtrace):
    for distribution in ("Categorical", "Normal"):
        compare(INSIDE, distribution, "VTrace")


def test_differentiable():
    for kind in ("TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "GAE"):
        lmbda = {"lmbda": 7 / 8} if kind in ("TDLambdaEstimator", "GAE") else {}
        for differentiable in (False, True):
            steps = inputs(getattr(estimators, kind), make_steps(SHAPE))
            steps["reward"].requires_grad_()
            mine = getattr(estimators, kind)(gamma=31 / 32, differentiable=differentiable, **lmbda)(**steps)
            data = their_estimator(kind, gamma=31 / 32, differentiable=differentiable, **lmbda)(as_data(steps))
            # Without, TorchRL's GAE may leave the gradient in what it returns; here nothing has one.
            assert mine.advantage.requires_grad is differentiable
            if differentiable:
                (found,) = torch.autograd.grad(mine.advantage.sum(), steps["reward"])
                (expected,) = torch.autograd.grad(data["advantage"].sum(), steps["reward"])
                assert_close(found, expected)


def test_shifted_values():
    steps = make_loss_steps((4, 6))
    # Next observations that are the next step's, but where an episode ends, and at most one cut short in each trajectory.
    done = torch.zeros(4, 6, 1, dtype=torch.bool)
    done[0, 2], done[1, 4], done[2, 1], done[3, 5] = True, True, True, True
    terminated = torch.zeros_like(done)
    terminated[2, 1] = True
    following = steps.next_observation.clone()
    following[:, :-1] = torch.where(done[:, :-1], following[:, :-1], steps.observation[:, 1:])
    steps = steps._replace(done=done, terminated=terminated, next_observation=following)
    mine, others = copies(make_networks())
    outputs = make_loss(networks=mine, shifted=True, shifted_budget=2)(**of(steps, *PLAIN))
    assert_same(outputs, make_loss(networks=mine)(**of(steps, *PLAIN)))
    expected_loss = torchrl_loss(others, functional=False)  # otherwise TorchRL refuses
    expected_loss.make_value_estimator(theirs.ValueEstimators.GAE, shifted=True, shifted_budget=2, vectorized=False)
    assert_same(present(outputs), dict(expected_loss(torchrl_data(steps, *PLAIN)).items()))


def test_chunked_critic_evaluation():
    steps = make_loss_steps()
    mine, others = copies(make_networks())
    for options in ({"value_chunk_size": 3}, {"num_chunks": 2}):
        expected_loss = torchrl_loss(others)
        expected_loss.make_value_estimator(theirs.ValueEstimators.GAE, vectorized=False, **options)
        expected = dict(expected_loss(torchrl_data(steps, *PLAIN)).items())
        assert_same(present(make_loss(networks=mine, **options)(**of(steps, *PLAIN))), expected)


def test_group_wise_standardisation():
    groups = torch.tensor([[3], [-1], [3], [7]]).expand(4, 6)
    for kind, option in (
        ("GAE", {"average_gae": True, "lmbda": 7 / 8}),
        ("TD0Estimator", {"average_rewards": True}),
        ("TD1Estimator", {"average_rewards": True}),
        ("TDLambdaEstimator", {"average_rewards": True, "lmbda": 7 / 8}),
    ):
        compare_estimator(kind, extra=[("group", "group", groups)], **option)


def test_n_step_rewards():
    steps_to_next_obs = torch.randint(1, 4, SHAPE)
    for kind in ("TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "GAE"):
        lmbda = {"lmbda": 7 / 8} if kind in ("TDLambdaEstimator", "GAE") else {}
        steps = inputs(getattr(estimators, kind), make_steps(SHAPE, torch.float32))
        compare_estimator(kind, extra=[("steps_to_next_obs", "steps_to_next_obs", steps_to_next_obs)], steps=steps, **lmbda)


def test_nan_next_observations():
    steps = make_loss_steps()
    unknown = torch.where(steps.done, torch.nan, steps.next_observation)
    assert_equals_torchrl(steps._replace(next_observation=unknown), PLAIN)


def test_missing_terminated():
    compare(("reward", "next_observation", "done"))


def test_auto_reset_env():
    for average_gae in (False, True):
        compare_estimator("GAE", lmbda=7 / 8, auto_reset_env=True, average_gae=average_gae)


def test_normalisation_divides_by_at_least_eps_and_writes_nothing():
    for kind, eps in (("TD0Estimator", 1e-5), ("TD1Estimator", 1e-5), ("TDLambdaEstimator", 1e-4)):
        steps = inputs(getattr(estimators, kind), make_steps(SHAPE))
        steps["reward"] = 1.0 + 1e-7 * steps["reward"]
        before = steps["reward"].clone()
        lmbda = {"lmbda": 7 / 8} if kind == "TDLambdaEstimator" else {}
        module = getattr(estimators, kind)(gamma=31 / 32, average_rewards=True, **lmbda)
        assert module.smallest_std == eps
        compare_estimator(kind, steps=steps, average_rewards=True, **lmbda)
        assert torch.equal(steps["reward"], before)
    assert (estimators.GAE().smallest_std, estimators.VTrace().smallest_std) == (1e-4, 1e-5)


def test_gamma_and_lmbda_are_buffers():
    module = estimators.GAE(0.9, 0.8)
    assert (
        dict(module.named_buffers()).keys()
        == {"gamma", "lmbda"}
        == dict(their_estimator("GAE", gamma=0.9, lmbda=0.8).named_buffers()).keys()
    )
    module.gamma = 0.5
    assert module.state_dict()["gamma"] == 0.5


# Functions


def compare_function(name, gamma=None, lmbda=None, shape=(6, 5), **options):
    gamma = per_step(shape) if gamma is None else gamma
    lmbda = per_step(shape, seed=2) if lmbda is None else lmbda
    arguments = call_arguments(name, make_steps(shape), gamma=gamma, lmbda=lmbda) | options
    time_dim = arguments.pop("time_dim", None)
    del time_dim  # both have -2
    results, found = evaluate(getattr(F, name), arguments)
    expected, truth = evaluate(getattr(their_functions, name), arguments)
    for one, other in zip(results, expected, strict=True):
        assert_close(one, other)
    for argument, gradient in truth.items():
        assert_close(found[argument], gradient, what=argument)


def test_generalized_advantage_estimate():
    compare_function("generalized_advantage_estimate")


def test_td0_advantage_estimate():
    compare_function("td0_advantage_estimate")


def test_td0_return_estimate():
    compare_function("td0_return_estimate")


def test_td1_return_estimate():
    compare_function("td1_return_estimate")


def test_td1_advantage_estimate():
    compare_function("td1_advantage_estimate")


def test_td_lambda_return_estimate():
    compare_function("td_lambda_return_estimate")


def test_td_lambda_advantage_estimate():
    compare_function("td_lambda_advantage_estimate")


def test_vtrace_advantage_estimate():
    compare_function("vtrace_advantage_estimate", rho_thresh=0.875, c_thresh=1.125)


def test_reward2go():
    steps = make_steps((6, 5))
    done = steps.done.clone()
    done[-1] = True  # TorchRL wants every trajectory ended, and computes in float32
    found = F.reward2go(steps.reward, done, 0.9)
    assert_close(found, their_functions.reward2go(steps.reward, done, 0.9), torch.float32)


def test_gamma_as_number_tensor_or_per_step():
    for gamma in (0.9, torch.tensor(0.9).double(), torch.tensor([0.9]).double(), per_step((6, 5))):
        compare_function("td_lambda_return_estimate", gamma=gamma, lmbda=0.8)


def test_rolling_gamma():
    for name in ("td1_return_estimate", "td1_advantage_estimate", "td_lambda_return_estimate", "td_lambda_advantage_estimate"):
        for rolling_gamma in (None, True, False):
            compare_function(name, rolling_gamma=rolling_gamma)
    steps = call_arguments("td_lambda_return_estimate", make_steps((6, 5)), gamma=0.9, lmbda=0.8)
    with pytest.raises(ValueError, match="rolling_gamma: expected True if neither gamma nor lmbda has one entry per step"):
        F.td_lambda_return_estimate(**steps, rolling_gamma=False)


def test_vtrace_at_a_boundary():
    """The target after a step that is done is the true next value: nothing of the next row is read."""
    arguments = call_arguments("vtrace_advantage_estimate", make_steps((6, 1)), gamma=31 / 32)
    done = torch.tensor([0, 0, 1, 0, 0, 0]).bool().unsqueeze(-1)
    arguments |= {"done": done, "terminated": torch.zeros_like(done)}
    first = {k: v[:3] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in arguments.items()}
    whole, alone = F.vtrace_advantage_estimate(**arguments), F.vtrace_advantage_estimate(**first)
    assert_close(whole.advantage[:3], alone.advantage)
    arguments.pop("time_dim")
    assert_close(whole.advantage, their_functions.vtrace_advantage_estimate(**arguments)[0])


def test_td_lambda_bootstraps_at_the_last_step_and_at_every_done():
    steps = make_steps((6, 5))
    returns = F.td_lambda_return_estimate(0.9, 0.8, steps.next_state_value, steps.reward, steps.done, steps.terminated)
    one_step = F.td0_return_estimate(0.9, steps.next_state_value, steps.reward, steps.terminated)
    ends = steps.done.clone()
    ends[-1] = True
    assert_close(returns[ends], one_step[ends])


# What is not copied: TorchRL's behaviour beside ours


@pytest.mark.slow
def test_one_implementation_for_every_mode():
    """TorchRL's eager mode takes the loop, its compiled mode another algorithm; here both run the same operator."""
    assert their_estimator("GAE", gamma=0.9, lmbda=0.9).vectorized is False
    vectorized = their_estimators.GAE(gamma=0.9, lmbda=0.9, value_network=None)
    torch.compiler.reset()
    seen = []

    def read(x):
        seen.append(vectorized.vectorized)
        return x + 1

    torch.compile(read, backend="eager")(torch.ones(1))
    assert vectorized.vectorized != seen[0]

    names = []

    def keep(module, example_inputs):
        names.extend(str(node.target) for node in module.graph.nodes)
        return module

    steps = call_arguments("generalized_advantage_estimate", make_steps((6, 5)))
    compiled = torch.compile(F.generalized_advantage_estimate, backend=keep, fullgraph=True)
    results = compiled(**steps), F.generalized_advantage_estimate(**steps)
    assert any("a2c_compiled.gae" in name or "gae" in name for name in names)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_gradient_to_gamma():
    """TorchRL's vectorised GAE gives a wrong one, silently."""
    arguments = call_arguments("generalized_advantage_estimate", make_steps(SHAPE), gamma=torch.tensor(0.9).double(), lmbda=0.9)
    arguments.pop("time_dim")
    loop = evaluate(their_functions.generalized_advantage_estimate, arguments)[1]["gamma"]
    vectorised = evaluate(their_functions.vec_generalized_advantage_estimate, arguments)[1]["gamma"]
    ours = evaluate(F.generalized_advantage_estimate, arguments)[1]["gamma"]
    assert_close(ours, loop)
    assert (vectorised - loop).abs() > 1e-2 * loop.abs()


def test_gamma_of_zero():
    """TorchRL's vectorised versions fail on it."""
    arguments = call_arguments("generalized_advantage_estimate", make_steps(SHAPE), gamma=0.0)
    arguments.pop("time_dim")
    with pytest.raises(Exception):  # noqa: B017, PT011 - it is an accident: whatever it is, it is not a result
        their_functions.vec_generalized_advantage_estimate(**arguments)
    found = F.generalized_advantage_estimate(**arguments)
    assert_close(found.advantage, arguments["reward"] - arguments["state_value"])


def test_the_dimension_of_time_is_said():
    """Of [B, T] data TorchRL takes B for time, silently; so would this library, but what says which is which is documented and checked."""
    arguments = call_arguments("generalized_advantage_estimate", make_steps((3, 5)), time_dim=-1)
    right = F.generalized_advantage_estimate(**arguments)
    arguments.pop("time_dim")
    silently = their_functions.generalized_advantage_estimate(**arguments)[0]
    assert (silently - right.advantage).abs().max() > 0.1
    vector = {k: v[0] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in arguments.items()}
    with pytest.raises(
        ValueError, match=r"time_dim: expected a dimension of a tensor with shape \[5\], got -2 \(use time_dim=-1"
    ):
        F.generalized_advantage_estimate(**vector)


def test_half_precision_in_and_out_with_float32_inside():
    """TorchRL's vectorised versions return float32, its loops may add up in bfloat16."""
    reward = torch.ones(2, 1000, 1, dtype=torch.bfloat16)
    value, done = torch.zeros_like(reward), torch.zeros_like(reward, dtype=torch.bool)
    one = torch.ones((), dtype=torch.bfloat16)
    exact = torch.arange(1000, 0, -1.0).reshape(1, 1000, 1).expand(2, 1000, 1).bfloat16()
    for name, values in (("generalized_advantage_estimate", (value, value)), ("td_lambda_return_estimate", (value,))):
        ours, loop = (getattr(module, name)(one, one, *values, reward, done) for module in (F, their_functions))
        vectorised = getattr(their_functions, f"vec_{name}")(1.0, 1.0, *values, reward, done)
        ours, loop, vectorised = (found[0] if isinstance(found, tuple) else found for found in (ours, loop, vectorised))
        assert (ours.dtype, loop.dtype, vectorised.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        assert torch.equal(ours, exact)
        assert loop.max() == 256  # where adding 1 no longer changes a bfloat16


def standardised_by_both(steps, group=None):
    """Advantages of TorchRL's TD0Estimator and of ours for ``steps`` equal rewards of 100.1 that each end an episode."""
    zeros = torch.zeros(steps, 1, 1)
    ends = torch.ones_like(zeros, dtype=torch.bool)
    arguments = {"state_value": zeros, "next_state_value": zeros, "reward": zeros + 100.1, "done": ends, "terminated": ends}
    key, extra = ({}, {}) if group is None else ({"group_key": "group"}, {"group": group})
    data = their_estimator("TD0Estimator", gamma=0.9, average_rewards=True, **key)(as_data(arguments, (steps, 1), **extra))
    return data["advantage"], estimators.TD0Estimator(0.9, average_rewards=True)(**arguments, **extra).advantage


def test_standardisation_of_equal_values():
    """TorchRL's mean differs from the values by a rounding error, which the standardisation enlarges."""
    for group in (None, torch.zeros(8192, 1, 1, dtype=torch.int64)):
        theirs_found, found = standardised_by_both(8192, group)
        assert theirs_found.abs().max() > 0.5
        assert (found == 0).all()


@pytest.mark.filterwarnings("ignore:std")
def test_standardisation_of_a_single_step():
    theirs_found, found = standardised_by_both(1)
    assert theirs_found.isnan().all()
    assert_close(found, torch.full((1, 1, 1), 100.1))
    for found in standardised_by_both(1, torch.zeros(1, 1, 1, dtype=torch.int64)):
        assert (found == 0).all()


def test_an_action_that_the_distribution_lacks():
    theirs_masked = MaskedCategorical(logits=torch.zeros(3), mask=torch.tensor([True, False, True]))
    assert theirs_masked.log_prob(torch.tensor(1)) == -torch.inf
    params = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="action: expected choices that the mask in params allows, got 1"):
        distributions.MaskedCategorical(3).log_prob(params, torch.tensor(1))
    with pytest.raises(ValueError, match="action: expected choices from 0 to 2, got -1"):
        distributions.MaskedCategorical(3).log_prob(params, torch.tensor(-1))
    loss, steps = make_loss(), make_loss_steps()
    padded = steps._replace(action=torch.where(steps.mask.squeeze(-1), steps.action, -1))
    assert_same(loss(**of(padded, *GIVEN, "mask")), loss(**of(steps, *GIVEN, "mask")), 0)


def test_a_bool_is_no_coefficient():
    steps = inputs(estimators.GAE, make_steps(SHAPE))
    with pytest.raises(TypeError, match="gamma: expected a number or a tensor, got True"):
        estimators.GAE(gamma=True)
    theirs = their_estimator("GAE", gamma=True, lmbda=0.9).value_estimate(as_data(steps))
    torch.testing.assert_close(theirs, their_estimator("GAE", gamma=1.0, lmbda=0.9).value_estimate(as_data(steps)))


def test_unknown_arguments_are_refused():
    """TorchRL's losses and estimators take any ``**kwargs`` in some of their calls."""
    steps = inputs(estimators.GAE, make_steps(SHAPE))
    with pytest.raises(TypeError, match="unexpected keyword argument 'typo'"):
        estimators.GAE()(**steps, typo=1)
    their_estimator("GAE", gamma=0.9, lmbda=0.9).value_estimate(as_data(steps), typo=1)
    with pytest.raises(TypeError, match=r"hyperparams: expected options of GAE \(gamma, lmbda, .*\), got lambda_"):
        make_value_estimator("gae", lambda_=0.9)


# The table


def test_the_table_names_exactly_these_tests():
    table = (Path(__file__).parents[2] / "PARITY.md").read_text()
    named = re.findall(r"\| `(test_\w+)` \|$", table, re.MULTILINE)
    defined = [name for name, value in globals().items() if name.startswith("test_") and callable(value)]
    defined.remove("test_the_table_names_exactly_these_tests")
    assert sorted(named) == sorted(defined)
    assert len(set(named)) == len(named)
