"""Epochs of minibatches: ``TrainStep.epochs`` against a plain loop with torch.optim over the same minibatches."""

import copy

import pytest
import torch
from loss_cases import assert_same, compile_backend, graphs_compiled, losses_of, make_loss, make_networks, make_rollout
from torch import nn
from torch_step import LR, TORCH_OPTIMIZERS, parameters_of

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, estimators, losses
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.update.optimizers import RULES
from a2c_compiled.update.rollout import as_loss_arguments, mapped

EPOCHS = 3
T, N = 4, 6


def make_step(loss, name="adam", **options):
    return TrainStep(loss, name, **{"lr": LR, "compile": False, **options})


def plain_loop(loss, rollout, size, by="steps", generator=None, name="adam", rates=None, estimates=None):
    """The loop that users write: advantages once, then slices of them. Returns the losses and the gradient norm of each update."""
    optimizer = TORCH_OPTIMIZERS[name](loss.parameters(), **{**RULES[name].defaults, "lr": LR, "foreach": False})
    own = as_loss_arguments(rollout._asdict())
    estimates = loss.estimates(**own) if estimates is None else estimates
    names = ("advantage", "value_target", "state_value", "mask")
    entries = {**{name: own[name] for name in ("observation", "action", "sample_log_prob")}}
    entries |= {name: getattr(estimates, name) for name in names}
    dim, count = (0, T * N) if by == "steps" else (1, N)
    if by == "steps":
        entries = {name: mapped(lambda tensor: tensor.flatten(0, 1), entry) for name, entry in entries.items()}
    found = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(count, generator=generator).split(size):
            batch = {
                name: mapped(lambda tensor, rows=rows: tensor.index_select(dim, rows), entry) for name, entry in entries.items()
            }
            outputs = loss(**batch)
            optimizer.zero_grad()
            sum(losses_of(outputs).values()).backward()
            norm = nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
            if rates is not None:
                optimizer.param_groups[0]["lr"] = float(rates[len(found)])
            optimizer.step()
            found.append({name: value.detach() for name, value in outputs._asdict().items() if value is not None})
            found[-1]["grad_norm"] = norm
    return {name: torch.stack([update[name] for update in found]) for name in found[0]}


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def assert_equals_plain_loop(loss, rollout, size, by="steps", compile=False, rates=None, **options):
    expected_loss = copy.deepcopy(loss)
    name = "rmsprop" if compile else "adam"  # a compiled Adam computes its corrections in float32
    step = make_step(loss, name, compile=compile)
    metrics = step.epochs(rollout, EPOCHS, size, by, generator(), lr=rates, **options)
    expected = plain_loop(expected_loss, rollout, size, by, generator(), name, rates)
    assert_same({name: value for name, value in metrics._asdict().items() if value is not None}, expected, 1e-9)
    assert_same(dict(loss.state_dict()), dict(expected_loss.state_dict()), 1e-9)
    assert step.step_count == len(metrics.grad_norm) == EPOCHS * -(-(T * N if by == "steps" else N) // size)
    return step


CASES = {
    "steps": ({"value_estimator": "gae"}, (), 8, "steps"),
    "smaller_last_minibatch": ({"value_estimator": estimators.GAE(average_gae=True)}, (), 7, "steps"),
    "environments": ({"value_estimator": "td_lambda", "reduction": "sum"}, ("mask",), 2, "environments"),
    "masked": (
        {"value_estimator": "vtrace", "clip_value": 0.2, "diagnostics": True},
        ("log_prob", "state_value", "mask"),
        5,
        "steps",
    ),
    "clipped_to_the_first_values": ({"clip_value": 0.2}, (), 4, "environments"),
    "without_critic": ({"critic_coef": None, "entropy_coef": 0.0}, (), 8, "steps"),
}


@pytest.mark.parametrize("case", CASES)
def test_epochs_equal_a_plain_loop_over_the_same_minibatches(case):
    options, entries, size, by = CASES[case]
    loss = make_loss(dtype=torch.float64, **options)
    assert_equals_plain_loop(loss, make_rollout((T, N), dtype=torch.float64, options=entries), size, by)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["smaller_last_minibatch", "masked", "environments"])
def test_compiled_epochs_equal_a_plain_loop_and_compile_one_graph_for_all_minibatches(case):
    options, entries, size, by = CASES[case]
    loss = make_loss(dtype=torch.float64, **options)
    rollout = make_rollout((T, N), dtype=torch.float64, options=entries)
    with compile_backend():
        step = assert_equals_plain_loop(loss, rollout, size, by, compile=True)
        assert graphs_compiled() == 2  # the estimates and the update
        step.epochs(rollout, 1, size, by, lr=torch.rand(-(-(T * N if by == "steps" else N) // size)))
        assert graphs_compiled() == 2


def test_each_update_has_its_learning_rate():
    rates = torch.linspace(LR, 0.0, EPOCHS * 3, dtype=torch.float64)
    step = assert_equals_plain_loop(make_loss(dtype=torch.float64), make_rollout((T, N), dtype=torch.float64), 8, rates=rates)
    assert step.lr == LR


@pytest.mark.parametrize("norm", ["value", "advantage"])
def test_norms_are_updated_once_for_all_epochs(norm):
    actor, critic = make_networks(dtype=torch.float64)
    if norm == "value":
        value_norm = losses.PopArt(critic[-1]).double()
        loss = make_loss(networks=[actor, nn.Sequential(critic[0], value_norm)], value_norm=value_norm)
        moments = value_norm.moments
    else:
        loss = make_loss(networks=[actor, critic], advantage_norm=losses.RunningNorm())
        moments = loss.advantage_norm.moments
    rollout = make_rollout((T, N), dtype=torch.float64)
    rollout = rollout._replace(reward=100 * rollout.reward)
    once = copy.deepcopy(loss)
    once.estimates(**as_loss_arguments(rollout._asdict()))
    assert_equals_plain_loop(loss, rollout, 7)
    expected = once.value_norm.moments if norm == "value" else once.advantage_norm.moments
    torch.testing.assert_close(moments.mean, expected.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.count, expected.count, rtol=1e-12, atol=0)


def test_given_advantages_and_value_targets_are_used_as_they_are():
    loss, rollout = make_loss(dtype=torch.float64), make_rollout((T, N), dtype=torch.float64)
    other = copy.deepcopy(loss)
    estimates = loss.estimates(**as_loss_arguments(rollout._asdict()))
    doubled = estimates._replace(advantage=2 * estimates.advantage, value_target=estimates.value_target + 1.0)
    step = make_step(loss)
    step.epochs(rollout, EPOCHS, 7, "steps", generator(), doubled.advantage, doubled.value_target)
    plain_loop(other, rollout, 7, "steps", generator(), estimates=doubled)
    assert_same(parameters_of(loss), parameters_of(other), 1e-9)


def test_environments_first_with_a_last_dimension_of_one_equals_time_first():
    rollout = make_rollout((T, N), dtype=torch.float64, options=("mask",))
    column = {
        name: entry.unsqueeze(-1)
        for name, entry in rollout._asdict().items()
        if entry is not None and entry.dim() == 2 and name != "action"
    }
    swapped = Rollout(
        **{name: entry.transpose(0, 1) for name, entry in (rollout._asdict() | column).items() if entry is not None}
    )
    for by, size in (("environments", 4), ("steps", T * N)):
        steps = [make_step(make_loss(dtype=torch.float64)) for _ in range(2)]
        metrics = [step.epochs(data, 2, size, by, generator()) for step, data in zip(steps, (rollout, swapped), strict=True)]
        assert_same(metrics[1], metrics[0], 1e-9)


def make_recurrent_loss():
    torch.manual_seed(0)
    actor, critic = (
        nn.Sequential(Recurrent(MinGRU(3, 5), offset=offset), nn.Linear(5, outputs)) for offset, outputs in ((0, 4), (5, 1))
    )
    return A2CLoss(actor, critic, distributions.Categorical(4)).double()


def make_recurrent_rollout():
    rollout = make_rollout((T, N), dtype=torch.float64)
    hidden, after = torch.randn(2, T, N, 10, generator=generator(), dtype=torch.float64)
    start = torch.cat([torch.ones(1, N, dtype=torch.bool), rollout.done[:-1]])
    return rollout._replace(
        observation=(rollout.observation, hidden, start),
        next_observation=(rollout.next_observation, after, torch.ones_like(start)),
    )


def test_recurrent_networks_learn_from_whole_environments():
    assert_equals_plain_loop(make_recurrent_loss(), make_recurrent_rollout(), 4, "environments")


def test_agents_stay_together_in_a_minibatch():
    torch.manual_seed(0)
    actor, critic = (nn.Linear(3, outputs).double() for outputs in (4, 1))
    loss = A2CLoss(actor, critic, distributions.Categorical(4), estimators.MultiAgentGAE())
    agents = make_rollout((5, T, 2), dtype=torch.float64)  # [N, T, K]
    team = agents._replace(**{name: getattr(agents, name)[..., 0] for name in ("reward", "done", "terminated")})
    rollouts = []
    for data in (agents, team):
        for by, size in (("steps", 7), ("environments", 2)):
            step = make_step(copy.deepcopy(loss))
            metrics = step.epochs(data, 1, size, by, generator())
            assert all(value.isfinite().all() for value in metrics if value is not None)
            rollouts.append(len(metrics.grad_norm))
    assert rollouts == [3, 3, 3, 3]
    # One minibatch of everything is one update from the rollout.
    whole, one = make_step(copy.deepcopy(loss)), make_step(copy.deepcopy(loss))
    one.epochs(team, 1, 20, "steps", generator())
    whole(team)
    assert_same(parameters_of(one.loss), parameters_of(whole.loss), 1e-9)


def test_a_restored_step_continues_with_the_orders_of_its_generator():
    rollout = make_rollout((T, N))
    step = make_step(make_loss())
    own = generator()
    step.epochs(rollout, 1, 7, generator=own)
    saved = copy.deepcopy(step.state_dict())
    twin = copy.deepcopy(step)
    assert torch.equal(saved["generator_state"], own.get_state())
    step.epochs(rollout, 2, 7, generator=own)
    restored = make_step(make_loss())
    restored.load_state_dict(saved)
    for other in (restored, twin):
        assert torch.equal(other.state_dict()["generator_state"], saved["generator_state"])
        other.epochs(rollout, 2, 7, generator=generator(99))
        assert_same(dict(other.state_dict()), dict(step.state_dict()), 0)
    assert "generator_state" not in make_step(make_loss()).state_dict()
    make_step(make_loss()).load_state_dict(make_step(make_loss()).state_dict())


def test_an_update_that_is_not_finite_is_skipped_alone():
    rollout = make_rollout((T, N))
    advantage, target = torch.ones(T, N), torch.zeros(T, N)
    advantage[1, 2] = float("nan")
    step = make_step(make_loss())
    metrics = step.epochs(rollout, 2, 6, "steps", generator(), advantage, target)
    assert step.skipped == 2
    assert step.step_count == 6
    assert (~metrics.grad_norm.isfinite()).sum() == 2


WRONG = {
    "epochs: expected at least 1, got 0": {"epochs": 0},
    "minibatch_size: expected at least 1, got 0": {"minibatch_size": 0},
    "minibatch_size: expected at most the number of steps, 24, got 25": {"minibatch_size": 25},
    "minibatch_size: expected at most the number of environments, 6, got 7": {"minibatch_size": 7, "by": "environments"},
    "by: expected one of 'steps', 'environments', got 'time'": {"by": "time"},
    "generator: expected a torch.Generator or None, got 3": {"generator": 3},
    "value_target: expected None without advantage, got a tensor": {"value_target": torch.zeros(T, N)},
    r"value_target: expected \[4, 6\] in the dimensions 0 to 1, as in the advantage, got \[6, 4\]": {
        "advantage": torch.zeros(T, N),
        "value_target": torch.zeros(N, T),
    },
    r"lr: expected \[3\], one learning rate for each update, got shape \[2\]": {"lr": torch.zeros(2)},
    "lr: expected a torch.Tensor, got 0.1": {"lr": 0.1},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_argument_is_refused_by_name_and_changes_nothing(message):
    step = make_step(make_loss())
    before = copy.deepcopy(step.state_dict())
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        step.epochs(**{"rollout": make_rollout((T, N)), "epochs": 1, "minibatch_size": 8, **WRONG[message]})
    assert_same(dict(step.state_dict()), dict(before), 0)


def test_networks_and_layouts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"^by: expected 'environments' for a recurrent network"):
        make_step(make_recurrent_loss()).epochs(make_recurrent_rollout(), 1, 2)
    with pytest.raises(ValueError, match=r"^minibatches: expected 1 for epochs, .* got 2"):
        make_step(make_loss(), minibatches=2).epochs(make_rollout(), 1, 2)
    with pytest.raises(TypeError, match=r"^rollout: expected a Rollout, got a tensor"):
        make_step(make_loss()).epochs(torch.zeros(3), 1, 2)
    with pytest.raises(
        ValueError, match=r"^by: expected 'environments' unless steps and environments are the first two dimensions"
    ):
        make_step(make_loss(value_estimator=estimators.GAE(time_dim=-1))).epochs(make_rollout((2, 3, 4)), 1, 2)
