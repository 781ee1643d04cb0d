"""The A2C loss in eager mode: its objective in float64, its options, masks, precision, and what its gradients reach."""

import copy
import re

import pytest
import torch
from loss_cases import (
    DISTRIBUTIONS,
    ESTIMATORS,
    GIVEN,
    INSIDE,
    CountingCritic,
    TupleNetwork,
    assert_losses_same,
    assert_same,
    gradients,
    losses_of,
    make_loss,
    make_loss_steps,
    make_networks,
    of,
    present,
    swapped,
)
from torch import nn

from a2c_compiled import A2CLoss, A2CLosses, distributions, estimators
from a2c_compiled.losses import a2c_loss

NAN = float("nan")
ALL_KEYS = ("loss_objective", "loss_critic", "entropy", "loss_entropy", "value_clip_fraction")


# The objective as a function of tensors


def terms(shape=(4, 5), dtype=torch.float64, seed=0):
    """What the function takes, everything of one entry per step, by name."""
    generator = torch.Generator().manual_seed(seed)
    names = ("log_prob", "advantage", "entropy", "new_state_value", "value_target", "state_value")
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name in names}


def some_mask(shape=(4, 5)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) < 0.6


def plain_loss(
    log_prob,
    advantage,
    entropy,
    new_state_value,
    value_target,
    state_value,
    entropy_coef,
    critic_coef,
    clip_value,
    loss_critic_type,
    reduction,
    mask,
):
    """Step by step, in Python."""

    def distance(target, value):
        error = abs(target - value)
        quadratic = error**2 if loss_critic_type == "l2" else 0.5 * error**2 if error < 1 else error - 0.5
        return error if loss_critic_type == "l1" else quadratic

    rows = {name: [] for name in ALL_KEYS}
    flat = [x.flatten() for x in (log_prob, advantage, entropy, new_state_value, value_target, state_value, mask)]
    for log_p, adv, ent, new, target, old, counts in zip(*flat, strict=True):
        limit = float("inf") if clip_value is None else clip_value
        clipped = (new - old).clamp(-limit, limit)
        critic = max(distance(target, new), distance(target, old + clipped), key=torch.Tensor.item)
        row = (-log_p * adv, critic_coef * critic, ent, -entropy_coef * ent, (clipped != new - old).to(new.dtype))
        for name, value in zip(ALL_KEYS, row, strict=True):
            rows[name].append(value if counts else torch.zeros_like(value))
    results = {}
    for name, values in rows.items():
        values = torch.stack(values)
        if reduction == "mean" or not name.startswith("loss_"):
            results[name] = values.sum() / max(int(mask.sum()), 1)
        else:
            results[name] = values.sum() if reduction == "sum" else values.reshape(mask.shape)
    if clip_value is None:
        results["value_clip_fraction"] = None
    return A2CLosses(**results)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("clip_value", [None, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss_critic_type", ["l1", "l2", "smooth_l1"])
def test_the_function_equals_a_plain_computation_with_gradients(loss_critic_type, reduction, clip_value, masked):
    mask = some_mask() if masked else None
    options = {"loss_critic_type": loss_critic_type, "reduction": reduction}

    def run(function, mask, coefficient):
        leaves = {name: value.requires_grad_() for name, value in terms().items()}
        coefficients = {"entropy_coef": 0.1, "critic_coef": 0.5, "clip_value": clip_value}
        coefficients = {name: None if value is None else coefficient(value) for name, value in coefficients.items()}
        outputs = function(**leaves, **coefficients, **options, mask=mask)
        total = sum(loss.sum() for loss in losses_of(outputs).values())
        names = [name for name in leaves if name != "state_value" or clip_value is not None]
        return outputs, dict(zip(names, torch.autograd.grad(total, [leaves[name] for name in names]), strict=True))

    outputs, grads = run(a2c_loss, mask, lambda value: torch.tensor(value, dtype=torch.float64))
    expected, expected_grads = run(plain_loss, some_mask() if masked else torch.ones(4, 5, dtype=torch.bool), float)
    assert_same({**outputs._asdict(), "entropy": outputs.entropy}, expected._replace(entropy=expected.entropy.detach()), 1e-12)
    assert_same(grads, expected_grads, 1e-12)


def test_the_function_leaves_out_what_it_is_not_given():
    given = terms()
    only = a2c_loss(given["log_prob"], given["advantage"])
    assert [name for name, value in only._asdict().items() if value is not None] == ["loss_objective"]
    with_entropy = a2c_loss(given["log_prob"], given["advantage"], given["entropy"])
    assert with_entropy.loss_critic is None
    assert torch.equal(with_entropy.loss_entropy, -given["entropy"].mean())


def test_coefficients_of_none_are_one():
    given = terms()
    one = torch.tensor(1.0, dtype=torch.float64)
    assert_same(a2c_loss(**given), a2c_loss(**given, entropy_coef=one, critic_coef=one), 0)


def test_the_values_before_the_update_are_not_read_without_clipping():
    given = terms()
    given["state_value"] = torch.full((4, 5), NAN, dtype=torch.float64)
    assert a2c_loss(**given).loss_critic.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_terms_give_float32_losses(dtype):
    half = terms(dtype=dtype)
    mask, clip_value = some_mask(), torch.tensor(0.3)
    for options in ({}, {"clip_value": clip_value}, {"mask": mask}):
        outputs = a2c_loss(**half, **options)
        assert {value.dtype for value in outputs if value is not None} == {torch.float32}
        assert_same(outputs, a2c_loss(**{name: value.float() for name, value in half.items()}, **options), 0)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_no_steps_give_a_loss_of_zero(shape, reduction, masked):
    mask = torch.ones(shape, dtype=torch.bool) if masked else None
    outputs = a2c_loss(**terms(shape), clip_value=torch.tensor(0.1), reduction=reduction, mask=mask)
    for name, value in present(outputs).items():
        assert value.shape == (shape if reduction == "none" and name.startswith("loss_") else ())
        assert value.sum() == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_what_is_masked_out_is_never_read(reduction):
    mask, options = some_mask(), {"clip_value": torch.tensor(0.3), "reduction": reduction}

    def run(fill):
        leaves = {name: torch.where(mask, value, fill).requires_grad_() for name, value in terms().items()}
        outputs = a2c_loss(**leaves, **options, mask=mask)
        grads = torch.autograd.grad(sum(loss.sum() for loss in losses_of(outputs).values()), list(leaves.values()))
        return outputs, dict(zip(leaves, grads, strict=True))

    clean, clean_grads = run(0.0)
    for fill in (NAN, float("inf")):
        outputs, grads = run(fill)
        assert_same(outputs, clean, 0)
        assert_same(grads, clean_grads, 0)
    assert all((gradient[~mask] == 0).all() for gradient in clean_grads.values())
    if reduction == "none":
        assert all((loss[~mask] == 0).all() for loss in losses_of(clean).values())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_everything_masked_out_gives_zero(reduction):
    given = {name: torch.full_like(value, NAN) for name, value in terms().items()}
    mask = torch.zeros(4, 5, dtype=torch.bool)
    outputs = a2c_loss(**given, clip_value=torch.tensor(0.3), reduction=reduction, mask=mask)
    assert all(value == 0 for value in present(outputs).values())


# The module


@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_unreduced_losses_have_the_shape_of_the_batch_and_the_rest_are_scalars(distribution, names):
    loss = make_loss(distribution, reduction="none", clip_value=0.2, diagnostics=True)
    outputs = loss(**of(make_loss_steps((4, 5), distribution), *names, "sample_log_prob"))
    assert {name: tuple(value.shape) for name, value in present(outputs).items()} == {
        "loss_objective": (4, 5),
        "loss_critic": (4, 5),
        "entropy": (),
        "loss_entropy": (4, 5),
        "value_clip_fraction": (),
        "explained_variance": (),
        "kl_approx": (),
    }
    assert not outputs.entropy.requires_grad
    assert not outputs.value_clip_fraction.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduced_losses_are_the_unreduced_ones_reduced(reduction):
    steps = of(make_loss_steps(), *INSIDE)
    reduced, unreduced = (make_loss(reduction=r, clip_value=0.2)(**steps) for r in (reduction, "none"))
    for name, value in losses_of(unreduced).items():
        torch.testing.assert_close(getattr(reduced, name), getattr(value, reduction)())
    assert torch.equal(reduced.entropy, unreduced.entropy)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_advantage_computed_inside_is_the_estimators(estimator):
    steps = make_loss_steps()
    loss = make_loss(value_estimator=estimator, reduction="none")
    with torch.no_grad():
        values = [loss.critic_network(observation) for observation in (steps.observation, steps.next_observation)]
        log_pi = loss.distribution.log_prob(loss.actor_network(steps.observation), steps.action).unsqueeze(-1)
    log_probs = (log_pi, steps.sample_log_prob) if estimator == "VTrace" else ()
    advantage, value_target = loss.value_estimator(*values, steps.reward, steps.done, steps.terminated, *log_probs)
    expected = loss(**of(steps), advantage=advantage, value_target=value_target)
    outputs = loss(**of(steps, *INSIDE))
    assert_same(outputs, expected)
    assert_same(gradients(outputs, loss), gradients(expected, loss))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_time_major_data_gives_the_transposed_result(estimator):
    """``[T, N]`` and ``[N, T, 1]`` both have time at -2."""
    time_major = make_loss_steps((6, 3), column=False)
    batch_major = swapped(time_major)
    per_step = {
        name: getattr(batch_major, name).unsqueeze(-1) for name in ("reward", "done", "terminated", "sample_log_prob", "mask")
    }
    batch_major = batch_major._replace(**per_step)
    loss = make_loss(value_estimator=estimator, reduction="none")
    names = (*INSIDE, "mask")
    outputs, transposed = loss(**of(time_major, *names)), loss(**of(batch_major, *names))
    for name, value in losses_of(outputs).items():
        assert value.shape == (6, 3)
        torch.testing.assert_close(value, getattr(transposed, name).t())


@pytest.mark.parametrize("time_dim", [-1, 1])
def test_batch_major_data_without_a_last_dimension_needs_its_time_dim(time_dim):
    steps = make_loss_steps((3, 6), column=False)
    loss = make_loss(value_estimator=estimators.GAE(time_dim=time_dim))
    with_column = make_loss()(
        **{k: v.unsqueeze(-1) if k in INSIDE and k != "next_observation" else v for k, v in of(steps, *INSIDE).items()}
    )
    assert_same(loss(**of(steps, *INSIDE)), with_column)


@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_a_critic_may_return_values_with_or_without_a_last_dimension(names):
    networks = make_networks()
    steps = make_loss_steps((4, 5), column=False)
    squeezed = [networks[0], nn.Sequential(networks[1], nn.Flatten(-2))]
    for data in (steps, make_loss_steps((4, 5))):
        arguments = of(data, *names)
        assert_same(make_loss(networks=squeezed)(**arguments), make_loss(networks=networks)(**arguments), 0)


def test_terminated_none_means_done():
    steps = make_loss_steps()
    loss = make_loss()
    arguments = of(steps, *INSIDE)
    assert_same(loss(**{**arguments, "terminated": None}), loss(**{**arguments, "terminated": steps.done}), 0)


def test_positional_arguments_come_in_the_documented_order():
    steps = make_loss_steps()
    loss = make_loss(clip_value=0.2)
    inside = ("reward", "next_observation", "done", "terminated")
    in_order = [getattr(steps, name) for name in ("observation", "action", *inside)]
    given = [getattr(steps, name) for name in (*GIVEN, "sample_log_prob", "mask")]
    assert_same(loss(*in_order), loss(**of(steps, *inside)), 0)
    assert_same(loss(*in_order, *given), loss(**of(steps, *inside, *GIVEN, "sample_log_prob", "mask")), 0)


def test_results_come_in_the_documented_order():
    assert A2CLosses._fields == (*ALL_KEYS, "explained_variance", "kl_approx")


# What is switched off


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ALL_KEYS[:4]),
        ({"clip_value": 0.2}, ALL_KEYS),
        ({"clip_value": 0}, ALL_KEYS[:4]),
        ({"entropy_coef": 0}, ALL_KEYS[:2]),
        ({"entropy_coef": 0.0, "clip_value": 0.2}, (*ALL_KEYS[:2], "value_clip_fraction")),
        ({"entropy_bonus": False}, ALL_KEYS[:2]),
        ({"critic_coef": None, "clip_value": 0.2}, ("loss_objective", "entropy", "loss_entropy")),
        ({"critic_coef": None, "entropy_coef": 0.0}, ("loss_objective",)),
    ],
    ids=str,
)
@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_out_keys_are_the_outputs_that_are_not_none(options, expected, names):
    loss = make_loss(**options)
    outputs = loss(**of(make_loss_steps(), *names))
    assert loss.out_keys == expected
    assert tuple(name for name, value in outputs._asdict().items() if value is not None) == expected


@pytest.mark.parametrize(
    "wanted", [(), *((name,) for name in ALL_KEYS), ALL_KEYS[1:3], ("loss_entropy", "loss_objective"), ALL_KEYS]
)
@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_assigned_out_keys_leave_the_others_none_and_change_no_value(wanted, names):
    loss = make_loss(clip_value=0.2)
    arguments = of(make_loss_steps(), *names)
    full = loss(**arguments)
    loss.out_keys = wanted
    assert loss.out_keys == tuple(name for name in ALL_KEYS if name in wanted)
    outputs = loss(**arguments)
    assert_same(outputs, {name: value if name in wanted else None for name, value in full._asdict().items()}, 0)
    loss.out_keys = ALL_KEYS
    assert_same(loss(**arguments), full, 0)


def test_an_unknown_out_key_is_refused_and_changes_nothing():
    loss = make_loss()
    with pytest.raises(ValueError, match=r"out_keys: expected one of 'loss_objective', .*, got 'loss_actor'"):
        loss.out_keys = ("loss_objective", "loss_actor")
    assert loss.out_keys == ALL_KEYS[:4]


def test_without_a_critic_loss_its_inputs_are_not_needed():
    steps = make_loss_steps()
    outputs = make_loss(critic_coef=None)(**of(steps, "advantage"))
    assert outputs.loss_critic is None
    assert outputs.loss_objective.isfinite()


@pytest.mark.parametrize(
    ("names", "options", "dropped", "calls"),
    [
        (INSIDE, {}, (), 2),
        (INSIDE, {"clip_value": 0.2}, (), 2),
        (INSIDE, {"critic_coef": None}, (), 2),
        (INSIDE, {"value_estimator": "vtrace"}, (), 2),
        (GIVEN, {}, (), 1),
        (GIVEN, {"clip_value": 0.2}, (), 1),
        (GIVEN, {"critic_coef": None}, (), 0),
        (GIVEN, {"clip_value": 0.2}, ("loss_critic", "value_clip_fraction"), 0),
    ],
)
def test_one_critic_pass_for_each_observation_serves_all(names, options, dropped, calls):
    actor, critic = make_networks()
    counting = CountingCritic(critic)
    loss = make_loss(networks=[actor, counting], **options)
    loss.out_keys = [name for name in ALL_KEYS if name not in dropped]
    loss(**of(make_loss_steps(), *names))
    assert counting.calls == calls


def test_actor_and_critic_aliases_win():
    actor, critic = make_networks()
    other_actor, other_critic = make_networks(seed=1)
    distribution = distributions.Categorical(4)
    loss = A2CLoss(other_actor, other_critic, distribution, actor=actor, critic=critic)
    assert loss.actor_network is actor
    assert loss.critic_network is critic
    by_alias = A2CLoss(distribution=distribution, actor=actor, critic=critic)
    assert by_alias.actor_network is actor


# What gradients reach


def reached(loss_value, module):
    """Names of the parameters that a loss has a gradient to."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss_value, parameters, retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None and grad.abs().sum() > 0}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_gradient_reaches_the_critic_through_the_advantage(estimator):
    loss = make_loss(value_estimator=estimator, clip_value=0.2)
    outputs = loss(**of(make_loss_steps(), *INSIDE))
    actor = {name for name, _ in loss.named_parameters() if name.startswith("actor_network")}
    critic = {name for name, _ in loss.named_parameters() if name.startswith("critic_network")}
    assert reached(outputs.loss_objective, loss) == actor
    assert reached(outputs.loss_entropy, loss) == actor
    assert reached(outputs.loss_critic, loss) == critic


@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
@pytest.mark.parametrize("separate_losses", [False, True])
def test_shared_parameters_learn_from_the_critic_unless_losses_are_separate(separate_losses, names):
    loss = make_loss(shared=True, separate_losses=separate_losses)
    outputs = loss(**of(make_loss_steps(), *names))
    trunk, heads = {"actor_network.0.0.weight", "actor_network.0.0.bias"}, {"critic_network.1.weight", "critic_network.1.bias"}
    assert reached(outputs.loss_critic, loss) == (heads if separate_losses else heads | trunk)
    assert trunk < reached(outputs.loss_objective, loss)


def test_a_single_shared_parameter_is_held_out_wherever_it_is_used():
    actor, critic = (nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, n)) for n in (4, 1))
    critic[0].weight = actor[0].weight
    critic.insert(1, nn.Linear(3, 3))
    critic[1].weight = actor[0].weight
    loss = make_loss(networks=[actor, critic], separate_losses=True)
    outputs = loss(**of(make_loss_steps(), *INSIDE))
    biases = {f"critic_network.{name}" for name in ("0.bias", "1.bias", "3.weight", "3.bias")}
    assert reached(outputs.loss_critic, loss) == biases
    assert "actor_network.0.weight" in reached(outputs.loss_objective, loss)


def test_a_shared_module_that_the_critic_uses_twice_keeps_its_parameters():
    trunk = nn.Linear(3, 3)
    networks = nn.ModuleList([nn.Sequential(trunk, nn.Linear(3, 4)), nn.Sequential(trunk, nn.Tanh(), trunk, nn.Linear(3, 1))])
    parameters = list(networks.parameters())
    loss = make_loss(networks=networks, separate_losses=True)
    assert not reached(loss(**of(make_loss_steps(), *INSIDE)).loss_critic, trunk)
    assert all(now is before for now, before in zip(networks.parameters(), parameters, strict=True))


@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_separate_losses_change_nothing_where_nothing_is_shared(names):
    assert_losses_same(make_loss(separate_losses=True), make_loss(), of(make_loss_steps(), *names), tolerance=0)


@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_separate_losses_change_no_value(names):
    arguments = of(make_loss_steps(), *names)
    assert_same(make_loss(shared=True, separate_losses=True)(**arguments), make_loss(shared=True)(**arguments), 0)


def test_a_given_advantage_and_a_given_value_target_are_detached():
    steps = make_loss_steps()
    given = {name: getattr(steps, name).clone().requires_grad_() for name in ("advantage", "value_target")}
    loss = make_loss()
    outputs, expected = loss(**{**of(steps, *GIVEN), **given}), loss(**of(steps, *GIVEN))
    sum(losses_of(outputs).values()).backward()
    assert all(tensor.grad is None for tensor in given.values())
    assert_same(gradients(loss(**{**of(steps, *GIVEN), **given}), loss), gradients(expected, loss), 0)


def test_a_network_that_is_held_out_stays_out_of_the_graph():
    loss = make_loss()
    loss.critic_network.requires_grad_(False)
    outputs = loss(**of(make_loss_steps(), *INSIDE))
    assert not outputs.loss_critic.requires_grad
    sum(losses_of(outputs).values()).backward()
    assert all(parameter.grad is None for parameter in loss.critic_network.parameters())


# Masks and NaN


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masked_steps_leave_the_losses(reduction):
    steps = make_loss_steps()
    masked = make_loss(reduction=reduction)(**of(steps, *GIVEN, "mask"))
    unreduced = make_loss(reduction="none")(**of(steps, *GIVEN))
    mask = steps.mask.squeeze(-1)
    for name, value in losses_of(unreduced).items():
        expected = value.masked_fill(~mask, 0.0)
        expected = expected if reduction == "none" else expected.sum() / (mask.sum() if reduction == "mean" else 1)
        torch.testing.assert_close(getattr(masked, name), expected)


@pytest.mark.parametrize("distribution", ["Categorical", "Normal", "TanhNormal"])
@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_nan_in_padding_reaches_neither_losses_nor_gradients(names, distribution):
    """Padding: masked steps behind the end of an episode."""
    steps = make_loss_steps((4, 7), distribution)
    padding = torch.zeros(4, 7, 1, dtype=torch.bool)
    padding[:, 4:] = True
    done = steps.done.clone()
    done[:, 3] = True
    steps = steps._replace(done=done, mask=~padding)

    def run(fill):
        padded = {
            name: value.masked_fill(padding.view(4, 7, *[1] * (value.dim() - 2)), fill) if value.is_floating_point() else value
            for name, value in of(steps, *names, "mask").items()
        }
        torch.manual_seed(0)
        loss = make_loss(distribution, value_estimator="vtrace", clip_value=0.2, diagnostics=True)
        outputs = loss(**padded)
        return present(outputs), gradients(outputs, loss)

    clean, clean_gradients = run(0.0)
    outputs, grads = run(NAN)
    assert_same(outputs, clean, 1e-6)
    assert_same(grads, clean_gradients, 1e-6)
    assert all(value.isfinite().all() for value in (*outputs.values(), *grads.values()))


def test_nothing_that_counts_gives_zero_and_no_gradient():
    loss = make_loss(clip_value=0.2)
    outputs = loss(**of(make_loss_steps(), *INSIDE), mask=torch.zeros(4, 5, dtype=torch.bool))
    assert all(value == 0 for value in present(outputs).values())
    assert all((gradient == 0).all() for gradient in gradients(outputs, loss).values())


def test_an_unknown_next_observation_is_taken_from_the_observation():
    """As TorchRL does it: where an episode ended the value is not used, where it was cut short it is the best there is."""
    steps = make_loss_steps()
    unknown = steps.done.expand(4, 5, 3)
    holes = steps._replace(next_observation=steps.next_observation.masked_fill(unknown, NAN))
    filled = steps._replace(next_observation=torch.where(unknown, steps.observation, steps.next_observation))
    loss = make_loss()
    outputs, expected = loss(**of(holes, *INSIDE)), loss(**of(filled, *INSIDE))
    assert_same(outputs, expected, 0)
    assert_same(gradients(outputs, loss), gradients(expected, loss), 0)


# Observations, precision, sizes


@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
def test_observations_may_be_a_tuple_of_tensors(names):
    steps = make_loss_steps()
    second, next_second = steps.observation[..., :2].square(), steps.next_observation[..., :2].square()
    actor, critic = TupleNetwork(4), TupleNetwork(1)

    class Joined(nn.Module):
        """The same network over one tensor."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, observation):
            return self.network((observation, observation[..., :2].square()))

    arguments = of(steps, *names, "mask")
    in_pairs = {**arguments, "observation": (steps.observation, second)}
    if "next_observation" in names:
        in_pairs["next_observation"] = (steps.next_observation, next_second)
    pairs, single = make_loss(networks=[actor, critic]), make_loss(networks=[Joined(actor), Joined(critic)])
    outputs, expected = pairs(**in_pairs), single(**arguments)
    assert_same(outputs, expected)
    for mine, other in zip(gradients(outputs, pairs).values(), gradients(expected, single).values(), strict=True):
        torch.testing.assert_close(mine, other)


def test_observations_may_be_integers():
    class Table(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.table = nn.Embedding(6, outputs)

        def forward(self, observation):
            return self.table(observation)

    steps = make_loss_steps()
    states, next_states = torch.randint(6, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    steps = steps._replace(observation=states, next_observation=next_states)
    for names in (INSIDE, (*INSIDE, "mask"), GIVEN):
        outputs = make_loss(networks=[Table(4), Table(1)])(**of(steps, *names))
        assert all(value.isfinite() for value in losses_of(outputs).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", [GIVEN, INSIDE], ids=["given", "inside"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_half_precision_networks_give_float32_losses_near_the_exact_ones(distribution, names, dtype):
    loss = make_loss(distribution, dtype=dtype, clip_value=0.2)
    exact = make_loss(distribution, dtype=torch.float64, clip_value=0.2)
    exact.load_state_dict(loss.state_dict())
    steps = make_loss_steps(distribution=distribution, dtype=dtype)
    # Rewards and what comes from them are float32 in most training loops; networks and observations are not.
    arguments = {k: v.float() if k in ("reward", *GIVEN) else v for k, v in of(steps, *names).items()}
    torch.manual_seed(0)
    outputs = loss(**arguments)
    assert {value.dtype for value in present(outputs).values()} == {torch.float32}
    assert {gradient.dtype for gradient in gradients(outputs, loss).values()} == {dtype}
    torch.manual_seed(0)
    expected = exact(**{k: v.double() if v.is_floating_point() else v for k, v in arguments.items()})
    for name in ("loss_objective", "loss_critic"):
        torch.testing.assert_close(getattr(outputs, name).double(), getattr(expected, name), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("estimator", [None, *ESTIMATORS])
def test_no_steps_give_empty_or_zero_losses_and_zero_gradients(estimator, reduction, shape):
    loss = make_loss(value_estimator=estimator, reduction=reduction, clip_value=0.2)
    for column in (False, True):
        steps = make_loss_steps(shape, column=column)
        outputs = loss(**of(steps, *(GIVEN if estimator is None else INSIDE)))
        for value in losses_of(outputs).values():
            assert value.shape == (shape if reduction == "none" else ())
            assert value.sum() == 0
        assert all((gradient == 0).all() for gradient in gradients(outputs, loss).values())


def test_one_environment_and_one_step():
    for shape in ((1, 1), (5, 1), (1, 5)):
        for column in (False, True):
            outputs = make_loss(reduction="none")(**of(make_loss_steps(shape, column=column), *INSIDE))
            assert outputs.loss_objective.shape == shape
            assert outputs.loss_critic.shape == shape


# The module as a module


def test_scheduled_coefficients_act_at_the_next_call():
    arguments = of(make_loss_steps(), *INSIDE, "state_value")
    scheduled = make_loss(clip_value=0.2)
    scheduled.entropy_coef, scheduled.critic_coef, scheduled.clip_value = 0.5, 2.0, 0.05
    scheduled.value_estimator.gamma, scheduled.value_estimator.lmbda = 0.9, 0.5
    made = make_loss(entropy_coef=0.5, critic_coef=2.0, clip_value=0.05, value_estimator=estimators.GAE(0.9, 0.5))
    assert_same(scheduled(**arguments), made(**arguments), 0)


def test_a_coefficient_may_be_a_tensor():
    arguments = of(make_loss_steps(), *GIVEN)
    tensors = make_loss(entropy_coef=torch.tensor(0.5), critic_coef=torch.tensor(2.0), clip_value=torch.tensor([0.25]))
    assert_same(tensors(**arguments), make_loss(entropy_coef=0.5, critic_coef=2.0, clip_value=0.25)(**arguments), 0)


def test_state_dict_round_trip_gives_the_same_losses():
    arguments = of(make_loss_steps(), *INSIDE)
    loss = make_loss(entropy_coef=0.5, critic_coef=2.0, clip_value=0.05, value_estimator=estimators.GAE(0.9, 0.5))
    other = make_loss(clip_value=1.0, networks=make_networks(seed=1))
    assert not torch.equal(other(**arguments).loss_objective, loss(**arguments).loss_objective)
    other.load_state_dict(loss.state_dict())
    assert_same(other(**arguments), loss(**arguments), 0)


def test_conversion_to_another_dtype_converts_networks_and_keeps_coefficients():
    loss = make_loss(clip_value=0.2)
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in of(make_loss_steps(), *INSIDE).items()}
    outputs = loss.to(torch.float64)(**arguments)
    assert {value.dtype for value in losses_of(outputs).values()} == {torch.float64}
    for name, value in (("entropy_coef", 0.01), ("clip_value", 0.2)):
        assert getattr(loss.half(), name).item() == value
    assert loss.value_estimator.gamma.item() == 0.99


def test_a_deep_copy_shares_nothing_and_gives_the_same():
    loss = make_loss(shared=True, separate_losses=True)
    twin = copy.deepcopy(loss)
    arguments = of(make_loss_steps(), *INSIDE)
    assert_losses_same(twin, loss, arguments, tolerance=0)
    assert not {id(parameter) for parameter in twin.parameters()} & {id(parameter) for parameter in loss.parameters()}
    twin.entropy_coef = 1.0
    assert loss.entropy_coef.item() == 0.01


def test_the_networks_are_used_as_they_are():
    networks = make_networks()
    loss = make_loss(networks=networks)
    assert {id(parameter) for parameter in loss.parameters()} == {id(parameter) for parameter in networks.parameters()}


def test_networks_without_parameters_are_fine():
    steps = make_loss_steps()
    steps = steps._replace(observation=torch.randn(4, 5, 4), next_observation=torch.randn(4, 5, 4))

    class Mean(nn.Module):
        def forward(self, observation):
            return observation.mean(-1)

    assert make_loss(networks=[nn.Identity(), Mean()])(**of(steps, *INSIDE)).loss_objective.isfinite()


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("shared", [False, True])
def test_functional_call_and_func_grad_equal_autograd(shared, functional):
    loss = make_loss(shared=shared, separate_losses=shared, clip_value=0.2, functional=functional)
    arguments = of(make_loss_steps(), *INSIDE)

    def total(parameters):
        # Not tied: torch would leave the values in a module that is reached under two names.
        return sum(losses_of(torch.func.functional_call(loss, parameters, (), arguments, tie_weights=False)).values())

    parameters = {name: parameter.detach() for name, parameter in loss.named_parameters()}
    grads = torch.func.grad(total)(parameters)
    expected = torch.autograd.grad(sum(losses_of(loss(**arguments)).values()), list(loss.parameters()))
    assert_same(grads, dict(zip(parameters, expected, strict=True)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shared", [False, True])
def test_an_ensemble_by_vmap_equals_its_members(shared, estimator):
    arguments = of(make_loss_steps(), *INSIDE)
    options = {"value_estimator": estimator, "separate_losses": shared, "clip_value": 0.2}
    members = [make_loss(networks=make_networks(shared=shared, seed=seed), **options) for seed in range(3)]
    base = members[0]

    def total(parameters):
        outputs = torch.func.functional_call(base, parameters, (), arguments, tie_weights=False)
        return sum(losses_of(outputs).values()), present(outputs)

    stacked, _ = torch.func.stack_module_state(members)
    stacked = {name: stacked[name] for name, _ in base.named_parameters()}
    grads, outputs = torch.func.vmap(torch.func.grad(total, has_aux=True))(stacked)
    for i, member in enumerate(members):
        own = member(**arguments)
        expected = torch.autograd.grad(sum(losses_of(own).values()), list(member.parameters()))
        assert_same({name: value[i] for name, value in outputs.items()}, present(own))
        assert_same({name: grad[i] for name, grad in grads.items()}, dict(zip(grads, expected, strict=True)))


def test_make_value_estimator_chooses_another_one_and_returns_the_loss():
    loss = make_loss()
    assert isinstance(loss.value_estimator, estimators.GAE)
    assert loss.make_value_estimator("td_lambda", lmbda=0.5) is loss
    assert isinstance(loss.value_estimator, estimators.TDLambdaEstimator)
    assert loss.value_estimator.lmbda.item() == 0.5
    loss.make_value_estimator(estimators.ValueEstimators.TD0, gamma=0.9)
    expected = make_loss(value_estimator=estimators.TD0Estimator(0.9))
    arguments = of(make_loss_steps(), *INSIDE)
    assert_same(loss(**arguments), expected(**arguments), 0)
    assert_same(loss.make_value_estimator()(**arguments), make_loss()(**arguments), 0)


# Errors


def build(**options):
    actor, critic = make_networks()
    return A2CLoss(
        **{"actor_network": actor, "critic_network": critic, "distribution": distributions.Categorical(4), **options}
    )


CONSTRUCTION_ERRORS = [
    ({"actor_network": None}, TypeError, "actor_network: expected a .*Module, got NoneType"),
    ({"critic_network": None}, TypeError, "critic_network: expected a .*Module, got NoneType"),
    ({"critic_network": len}, TypeError, "critic_network: expected a .*Module, got builtin_function_or_method"),
    ({"distribution": None}, TypeError, "distribution: expected a .*Distribution, such as .*, got NoneType"),
    (
        {"distribution": torch.distributions.Categorical},
        TypeError,
        r"distribution: .* Distribution, such as distributions\.Categorical\(2\), got the class torch\.distributions\.categorical\.Cat",
    ),
    ({"gamma": 0.99}, TypeError, "gamma: expected None, since it belongs to the value estimator"),
    ({"loss_critic_type": "huber"}, ValueError, "loss_critic_type: expected one of 'l1', 'l2', 'smooth_l1', got 'huber'"),
    ({"reduction": "max"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none', got 'max'"),
    ({"samples_mc_entropy": 0}, ValueError, "samples_mc_entropy: expected at least 1, got 0"),
    ({"entropy_coef": True}, TypeError, "entropy_coef: expected a number or a tensor, got True"),
    ({"entropy_coef": "0.1"}, TypeError, "entropy_coef: expected a number or a tensor, got '0.1'"),
    ({"entropy_coef": None}, TypeError, "entropy_coef: expected a number or a tensor, got None"),
    ({"critic_coef": True}, TypeError, "critic_coef: expected a number or a tensor, got True"),
    ({"clip_value": True}, TypeError, "clip_value: expected a number or a tensor, got True"),
    ({"clip_value": False}, TypeError, "clip_value: expected a number or a tensor, got False"),
    ({"clip_value": -0.1}, ValueError, "clip_value: expected a number of at least 0, got -0.1"),
    ({"clip_value": "0.1"}, TypeError, "clip_value: expected a number or a tensor, got '0.1'"),
    ({"clip_value": torch.ones(2)}, ValueError, r"clip_value: expected a number or a one-element tensor, got shape \[2\]"),
    ({"value_estimator": "sarsa"}, ValueError, "value_type: expected one of .*, got 'sarsa'"),
    (
        {"value_estimator": nn.Identity()},
        TypeError,
        "value_type: expected a name, a ValueEstimators member, a ValueEstimator or a subclass of it, got Identity",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), CONSTRUCTION_ERRORS, ids=[case[2] for case in CONSTRUCTION_ERRORS])
def test_a_wrong_option_is_refused_by_name(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        build(**options)


def call_errors():
    wrong = torch.ones(3, 5)
    inside, given = (lambda steps: of(steps, *INSIDE)), (lambda steps: of(steps, *GIVEN))
    vtrace = {"value_estimator": "vtrace"}
    clip = {"clip_value": 0.2}
    return [
        (
            {},
            inside,
            {"action": torch.zeros(4, 5, requires_grad=True)},
            ValueError,
            "action: expected a tensor that does not require",
        ),
        ({}, inside, {"action": torch.zeros(4, 5)}, TypeError, "action: expected an integer dtype, got torch.float32"),
        ({}, inside, {"action": torch.zeros(4, 4, dtype=torch.long)}, ValueError, "action: expected shape [4, 5], got [4, 4]"),
        ({}, inside, {"reward": None}, ValueError, "reward: expected a tensor if no advantage is given, got None"),
        ({}, inside, {"next_observation": None}, ValueError, "next_observation: expected a tensor if no advantage is"),
        ({}, inside, {"done": None}, ValueError, "done: expected a tensor if no advantage is given, got None"),
        ({}, inside, {"reward": torch.tensor(1.0)}, ValueError, "reward: expected one entry for each of the 4 leading"),
        ({}, inside, {"reward": torch.ones(3, 5, 1)}, ValueError, "reward: expected one entry for each of the 4 leading"),
        ({}, inside, {"reward": torch.ones(4, 5, 1).long()}, TypeError, "reward: expected a floating dtype, got torch.int64"),
        ({}, inside, {"done": torch.ones(4, 5, 1)}, TypeError, "done: expected dtype torch.bool, got torch.float32"),
        ({}, inside, {"done": torch.ones(4, 4, 1).bool()}, ValueError, "done: expected the shape of reward, [4, 5, 1], got"),
        (
            {},
            inside,
            {"terminated": torch.ones(4, 5, 1)},
            TypeError,
            "terminated: expected dtype torch.bool, got torch.float32",
        ),
        (
            {},
            inside,
            {"next_observation": torch.ones(4, 4, 3)},
            ValueError,
            "next_observation: expected the shape of observation",
        ),
        (
            vtrace,
            inside,
            {"sample_log_prob": None},
            ValueError,
            "sample_log_prob: expected a tensor, which the value estimator",
        ),
        (clip, inside, {"state_value": wrong}, ValueError, "state_value: expected the shape of log_prob, [4, 5], got [3, 5]"),
        ({}, given, {"advantage": wrong}, ValueError, "advantage: expected the shape of log_prob, [4, 5], got [3, 5]"),
        ({}, given, {"value_target": wrong}, ValueError, "value_target: expected the shape of log_prob, [4, 5], got [3, 5]"),
        (
            {},
            given,
            {"value_target": None},
            ValueError,
            "value_target: expected a tensor, which the critic loss needs, got None",
        ),
        (clip, given, {"state_value": None}, ValueError, "state_value: expected a tensor, which clip_value"),
        (clip, given, {"state_value": wrong}, ValueError, "state_value: expected the shape of log_prob, [4, 5], got [3, 5]"),
        ({}, given, {"mask": torch.ones(4, 5)}, TypeError, "mask: expected dtype torch.bool, got torch.float32"),
        ({}, given, {"mask": wrong.bool()}, ValueError, "mask: expected the leading dimensions of observation, [4, 5, 3], got"),
        ({}, given, {"mask": torch.ones(1, 5).bool()}, ValueError, "mask: expected the shape of log_prob, [4, 5], got [1, 5]"),
    ]


@pytest.mark.parametrize(
    ("options", "arguments", "wrong", "error", "message"), call_errors(), ids=lambda case: case if isinstance(case, str) else ""
)
def test_a_wrong_argument_is_refused_by_name(options, arguments, wrong, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make_loss(**options)(**{**arguments(make_loss_steps()), **wrong})


def test_a_critic_of_the_wrong_shape_is_named():
    class Wide(nn.Module):
        def forward(self, observation):
            return observation

    loss = make_loss(networks=[make_networks()[0], Wide()])
    with pytest.raises(
        ValueError, match=r"^critic_network: expected values of the shape of the actions, \[4, 5\],.* got \[4, 5, 3\]"
    ):
        loss(**of(make_loss_steps(), *GIVEN))
    with pytest.raises(ValueError, match=r"^critic_network: expected values of the shape of reward"):
        loss(**of(make_loss_steps(), *INSIDE))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"loss_critic_type": "huber"}, "loss_critic_type: expected 'l1', 'l2' or 'smooth_l1', got 'huber'"),
        ({"reduction": "max"}, "reduction: expected 'mean', 'sum' or 'none', got 'max'"),
    ],
)
def test_the_function_refuses_an_unknown_option_by_name(option, message):
    with pytest.raises(ValueError, match=message):
        a2c_loss(**terms(), **option)


@pytest.mark.parametrize("name", ["advantage", "entropy", "new_state_value", "value_target", "state_value", "mask"])
def test_the_function_names_a_term_of_another_shape(name):
    given = {**terms(), "clip_value": torch.tensor(0.2), "mask": some_mask()}
    with pytest.raises(ValueError, match=rf"^{name}: expected the shape of log_prob, \[4, 5\], got \[4, 4\]"):
        a2c_loss(**{**given, name: given[name][:, :4]})


@pytest.mark.parametrize("name", ["entropy_coeff", "critic_coeff"])
def test_torchrls_spelling_of_a_coefficient_is_refused(name):
    with pytest.raises(AttributeError, match=f"^{name}: use {name[:-1]}"):
        setattr(make_loss(), name, 0.5)


def test_float64_rewards_leave_the_losses_in_the_networks_precision():
    loss, steps = make_loss(), make_loss_steps()
    exact = loss(**of(steps, *INSIDE))
    given = of(steps, *INSIDE)
    losses = loss(**{**given, "reward": given["reward"].double()})
    assert all(value.dtype == torch.float32 for value in losses if value is not None)
    assert_same(losses_of(losses), losses_of(exact), 1e-6)


@pytest.mark.parametrize("names", [("done",), ("terminated",), ("reward",), ("done", "terminated")])
def test_a_last_dimension_of_1_that_some_entries_lack_is_refused(names):
    """``[T, N, 1]`` and ``[T, N]`` have time at another dimension: -2 would be N in the one and T in the other."""
    arguments = of(make_loss_steps(column=True), *INSIDE)
    arguments |= {name: arguments[name].squeeze(-1) for name in names}
    wrong = "done" if "done" in names or names == ("reward",) else "terminated"
    with pytest.raises(ValueError, match=rf"^{wrong}: expected the shape of reward, \[4, 5.*, got \[4, 5"):
        make_loss()(**arguments)


@pytest.mark.parametrize(("name", "given"), [("done", INSIDE), ("group", INSIDE), ("value_target", GIVEN)])
def test_something_other_than_a_tensor_is_refused_by_name(name, given):
    arguments = {**of(make_loss_steps(), *given), name: "x"}
    with pytest.raises(TypeError, match=rf"^{name}: expected a torch.Tensor, got 'x'"):
        make_loss()(**arguments)


def test_networks_that_are_made_without_memory_leave_the_coefficients_their_values():
    with torch.device("meta"):
        networks = make_networks()
    loss = make_loss(networks=networks)
    loss.actor_network.to_empty(device="cpu")
    loss.critic_network.to_empty(device="cpu")
    assert loss.value_estimator.gamma == 0.99
    assert loss.entropy_coef == 0.01


@pytest.mark.parametrize("wanted", [("loss_critic",), ("entropy",)])
def test_shapes_are_checked_whichever_outputs_are_wanted(wanted):
    loss = make_loss(diagnostics=True)
    loss.out_keys = wanted
    steps = make_loss_steps(column=False)
    for name in ("advantage", "sample_log_prob"):
        arguments = {**of(steps, *GIVEN, "sample_log_prob"), name: torch.zeros(3, 5)}
        with pytest.raises(ValueError, match=rf"^{name}: expected the shape of log_prob"):
            loss(**arguments)


# The total


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("loss_objective", "loss_critic", "loss_entropy")),
        ({"entropy_coef": 0.0}, ("loss_objective", "loss_critic")),
        ({"critic_coef": None, "entropy_coef": 0.0}, ("loss_objective",)),
        ({"reduction": "none", "diagnostics": True, "clip_value": 0.2}, ("loss_objective", "loss_critic", "loss_entropy")),
    ],
)
def test_the_total_is_the_sum_of_the_losses_that_are_not_none(options, names):
    steps = make_loss_steps(column=False)
    outputs = make_loss(**options)(**of(steps, *INSIDE, "state_value"))
    torch.testing.assert_close(outputs.total, sum(getattr(outputs, name) for name in names), rtol=0, atol=0)
    assert outputs.total.requires_grad


def test_a_total_of_nothing_or_of_several_shapes_is_refused():
    with pytest.raises(ValueError, match=r"^loss: expected out_keys with a loss_"):
        A2CLosses(entropy=torch.ones(())).total  # noqa: B018
    with pytest.raises(ValueError, match=r"^total: expected losses of one shape, got \[\[4, 3\], \[4, 1\]\]"):
        A2CLosses(torch.ones(4, 3), torch.ones(4, 1)).total  # noqa: B018
