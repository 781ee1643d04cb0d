"""How the loss asks its critic for values: shifted, in chunks, of a target network. The same losses, by other calls."""

import copy
import re

import pytest
import torch
from loss_cases import (
    ESTIMATORS,
    INSIDE,
    TupleNetwork,
    assert_losses_same,
    assert_same,
    compile_backend,
    copies,
    gradients,
    make_loss,
    make_loss_steps,
    make_networks,
    make_rollout,
    of,
    traced,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from a2c_compiled import TrainStep

EXACT = 1e-12
# What steps of [T, N] look like, and the time_dim that says so.
LAYOUTS = {
    "TN": (lambda tensor: tensor, -2),
    "NT": (lambda tensor: tensor.transpose(0, 1), -1),
    "NT1": (lambda tensor: tensor.transpose(0, 1), -2),
}


class RecordingCritic(nn.Module):
    """A critic that notes the leading sizes of what it is called with."""

    def __init__(self, critic):
        super().__init__()
        self.critic, self.sizes = critic, []

    def forward(self, observation):
        self.sizes.append(tuple(observation.shape[:-1]))
        return self.critic(observation)


def recording(**options):
    """A loss and its critic."""
    actor, critic = make_networks(dtype=torch.float64)
    critic = RecordingCritic(critic)
    return make_loss(networks=[actor, critic], **options), critic


# Shifted


def in_sequence(shape, cut_short=0, seed=0, distribution="Categorical", dtype=torch.float64):
    """Steps ``[T, N]`` that follow each other, with that many in each trajectory cut short before its end, and many terminated."""
    steps = make_loss_steps(shape, distribution, dtype, seed, column=False)
    generator = torch.Generator().manual_seed(seed)
    length = shape[0]
    order = torch.rand(shape, generator=generator)
    order[-1] = 2.0
    truncated = order.argsort(0).argsort(0) < min(cut_short, length - 1)
    truncated[-1] = torch.rand(shape[1:], generator=generator) < 0.5  # the end has its slot, however it comes
    terminated = (torch.rand(shape, generator=generator) < 0.3) & ~truncated
    done = truncated | terminated
    return ending(steps, done, terminated)


def ending(steps, done, terminated):
    """The same, with these ends: where the episode goes on, the next observation is the next step's."""
    following = torch.cat([steps.observation[1:], steps.next_observation[-1:]])
    next_observation = torch.where(done.unsqueeze(-1), steps.next_observation, following)
    return steps._replace(next_observation=next_observation, done=done, terminated=terminated)


def laid_out(steps, layout):
    """Steps ``[T, N]`` in another layout."""
    move, _ = LAYOUTS[layout]
    column = layout == "NT1"
    whole = ("observation", "next_observation", "action")
    return steps._replace(
        **{
            name: move(tensor).unsqueeze(-1) if column and name not in whole else move(tensor)
            for name, tensor in steps._asdict().items()
        }
    )


def pair(layout="TN", distribution="Categorical", budget=1, estimator="gae", networks=None, **options):
    """The shifted loss and the same one unshifted."""
    mine, theirs = copies(make_networks(distribution, dtype=torch.float64) if networks is None else networks)
    losses = [
        make_loss(distribution, networks=both, value_estimator=estimator, **options, **own)
        for both, own in ((mine, {"shifted": True, "shifted_budget": budget}), (theirs, {}))
    ]
    for loss in losses:
        loss.value_estimator.time_dim = LAYOUTS[layout][1]
    return losses


@pytest.mark.parametrize("budget", [1, 3])
@pytest.mark.parametrize("shape", [(6, 4), (1, 4), (6, 1), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shifted_equals_unshifted_where_every_trajectory_fits(layout, shape, budget):
    steps = laid_out(in_sequence(shape, cut_short=budget - 1), layout)
    assert_losses_same(*pair(layout, budget=budget, reduction="none"), of(steps, *INSIDE), tolerance=EXACT)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shifted_serves_every_estimator(estimator):
    steps = in_sequence((7, 5), cut_short=2)
    assert_losses_same(*pair(budget=3, estimator=estimator), of(steps, *INSIDE), tolerance=EXACT)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shifted_bootstraps_the_last_step_from_its_next_value_with_auto_reset_env_too(estimator):
    steps = in_sequence((7, 5), cut_short=2)
    losses = pair(budget=3, estimator=estimator)
    for loss in losses:
        loss.value_estimator.auto_reset_env = True
    assert_losses_same(*losses, of(steps, *INSIDE), tolerance=EXACT)


def test_shifted_reads_the_time_dimension_of_td0():
    steps = laid_out(in_sequence((6, 4)), "NT")
    shifted, unshifted = pair("NT", estimator="td0")
    shifted.make_value_estimator("td0", time_dim=-1)
    assert_losses_same(shifted, unshifted, of(steps, *INSIDE), tolerance=EXACT)


@pytest.mark.parametrize("seed", range(5))
def test_shifted_with_room_for_all_equals_unshifted_however_episodes_end(seed):
    steps = in_sequence((8, 6), cut_short=seed, seed=seed)
    ends = torch.rand(8, 6, generator=torch.Generator().manual_seed(seed)) < 0.5
    ended = ending(steps, steps.done | ends, steps.terminated & ends)
    assert_losses_same(*pair(budget=8), of(ended, *INSIDE), tolerance=EXACT)


@pytest.mark.parametrize("options", [{"clip_value": 0.2}, {"separate_losses": True}, {"num_chunks": 2}, {"critic_coef": None}])
def test_shifted_combines_with_other_options_and_a_mask(options):
    networks = make_networks(shared="separate_losses" in options, dtype=torch.float64)
    steps = in_sequence((6, 4), cut_short=1)
    arguments = of(steps, *INSIDE, "state_value", "mask")
    assert_losses_same(*pair(budget=2, networks=networks, **options), arguments, tolerance=EXACT)


def test_without_terminated_every_done_is_terminated_when_shifted_too():
    arguments = of(in_sequence((6, 4), cut_short=2), "reward", "next_observation", "done")
    assert_losses_same(*pair(budget=1, reduction="none"), arguments, tolerance=EXACT)


def test_shifted_takes_a_tuple_of_observations_and_images():
    steps = in_sequence((6, 4), cut_short=1)
    both = {name: getattr(steps, name) for name in ("observation", "next_observation")}
    tuples = {name: (tensor, tensor[..., :2].clone()) for name, tensor in both.items()}
    networks = nn.ModuleList([TupleNetwork(4), TupleNetwork(1)]).double()
    arguments = of(steps, *INSIDE)
    assert_losses_same(*pair(budget=2, networks=networks), {**arguments, **tuples}, tolerance=EXACT)
    images = {name: tensor.unflatten(-1, (1, 3, 1)).expand(-1, -1, 2, -1, 3) for name, tensor in both.items()}
    networks = nn.ModuleList([nn.Sequential(nn.Flatten(2), nn.Linear(18, size)) for size in (4, 1)]).double()
    assert_losses_same(*pair(budget=2, networks=networks), {**arguments, **images}, tolerance=EXACT)


@pytest.mark.parametrize(("shape", "budget"), [((6, 4), 1), ((6, 4), 3), ((1, 2), 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shifted_shows_the_critic_so_many_more_steps_than_there_are(layout, shape, budget):
    loss, critic = recording(shifted=True, shifted_budget=budget)
    loss.value_estimator.time_dim = LAYOUTS[layout][1]
    loss(**of(laid_out(in_sequence(shape), layout), *INSIDE))
    steps, envs = shape
    assert critic.sizes == [(steps + budget, envs) if layout == "TN" else (envs, steps + budget)]


def steps_that_fit(done, terminated, budget):
    """Of one trajectory: each observation takes a place, and so does what follows a step that was cut short, and the last one."""
    places = len(done) + budget
    taken = 0
    for t in range(len(done)):
        if taken + 2 > places:  # this observation and the next
            return t
        taken += 2 if done[t] and not terminated[t] else 1
    return len(done)


@pytest.mark.parametrize("budget", [1, 2])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_steps_that_find_no_room_shorten_their_trajectory(estimator, budget):
    steps = in_sequence((8, 5), cut_short=4)
    goes_on = torch.arange(5) == 4  # and has room
    steps = ending(steps, steps.done & ~goes_on, steps.terminated & ~goes_on)
    shifted, unshifted = pair(budget=budget, estimator=estimator, reduction="none")
    outputs = shifted(**of(steps, *INSIDE))
    counted = 0
    for env in range(5):
        fitting = steps_that_fit(steps.done[:, env], steps.terminated[:, env], budget)
        counted += fitting
        assert fitting == 8 if env == 4 else 0 < fitting < 8
        short = type(steps)(*(tensor[:fitting, env : env + 1] for tensor in steps))
        expected = unshifted(**of(short, *INSIDE))
        for name in ("loss_objective", "loss_critic", "loss_entropy"):
            loss = getattr(outputs, name)[:, env]
            torch.testing.assert_close(loss[:fitting], getattr(expected, name)[:, 0], rtol=EXACT, atol=EXACT)
            assert (loss[fitting:] == 0).all()
    shifted.reduction = "mean"
    torch.testing.assert_close(shifted(**of(steps, *INSIDE)).loss_critic, outputs.loss_critic.sum() / counted)


def test_what_finds_no_room_is_not_standardised_with_the_rest():
    steps = in_sequence((8, 5), cut_short=4)
    mine, _ = pair(reduction="none")
    raw = mine(**of(steps, *INSIDE))
    counts = raw.loss_entropy != 0
    assert 0 < counts.sum() < counts.numel()
    mine.value_estimator.average_gae = True
    outputs = mine(**of(steps, *INSIDE))
    log_prob = mine.distribution.log_prob(mine.actor_network(steps.observation), steps.action)
    advantage = (-raw.loss_objective / log_prob)[counts]
    expected = (advantage - advantage.mean()) / advantage.std()
    torch.testing.assert_close((-outputs.loss_objective / log_prob)[counts], expected, rtol=1e-10, atol=1e-10)


def test_an_unknown_next_observation_is_taken_from_the_observation_when_shifted_too():
    steps = in_sequence((6, 4), cut_short=1)
    unknown = torch.where(steps.done.unsqueeze(-1), float("nan"), steps.next_observation)
    shifted, _ = pair(budget=2)
    outputs = shifted(**of(steps._replace(next_observation=unknown), *INSIDE))
    filled = torch.where(steps.done.unsqueeze(-1), steps.observation, steps.next_observation)
    expected = shifted(**of(steps._replace(next_observation=filled), *INSIDE))
    assert_same(outputs, expected, 0)
    assert_same(gradients(outputs, shifted), gradients(expected, shifted), 0)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)], ids=str)
def test_shifted_gives_empty_losses_for_no_steps(shape):
    shifted, unshifted = pair(budget=2, reduction="none")
    arguments = of(make_loss_steps(shape, dtype=torch.float64, column=False), *INSIDE)
    for module in (shifted, torch.jit.script(shifted)):
        assert_same(module(**arguments), unshifted(**arguments))


def torchrl_shifted(networks, steps, budget, **options):
    """TorchRL's losses of steps ``[N, T, 1]`` with values from a shifted call, and its mask."""
    pytest.importorskip("torchrl")
    from torchrl.objectives import ValueEstimators
    from torchrl_cases import torchrl_data, torchrl_loss

    loss = torchrl_loss(networks, functional=False, **options)
    loss.make_value_estimator(ValueEstimators.GAE, vectorized=False, shifted=True, shifted_budget=budget)
    data = torchrl_data(steps, *INSIDE)
    data.names = [None, "time"]
    outputs = loss(data)
    loss.value_estimator(data)
    return outputs, data["shifted_valid"]


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_shifted_equals_torchrl(budget, reduction):
    steps = in_sequence((8, 5), cut_short=2, dtype=torch.float32)
    fitting = [steps_that_fit(steps.done[:, env], steps.terminated[:, env], budget) for env in range(5)]
    # Where the last step that found room is terminated, TorchRL does another thing: see the next test.
    goes_on = torch.stack([torch.arange(8) == count - 1 for count in fitting], 1) & (torch.tensor(fitting) < 8)
    steps = ending(steps, steps.done & ~(goes_on & steps.terminated), steps.terminated & ~goes_on)
    steps = laid_out(steps, "NT1")
    mine, theirs = copies(make_networks())
    outputs = make_loss(networks=mine, shifted=True, shifted_budget=budget, reduction=reduction)(**of(steps, *INSIDE))
    expected, valid = torchrl_shifted(theirs, steps, budget, reduction=reduction)
    assert valid.sum(1).tolist() == fitting
    assert valid.all() == (budget == 3)
    for name in ("loss_objective", "loss_critic", "loss_entropy"):
        torch.testing.assert_close(getattr(outputs, name), expected[name], rtol=1e-5, atol=1e-5)
    assert_same(gradients(outputs, mine), gradients(expected, theirs))


def test_the_last_step_with_room_stays_terminated_unlike_in_torchrl():
    """TorchRL takes it for one that was cut short, and adds the value of what follows an end."""
    steps = make_loss_steps((5, 3), column=False)
    place = torch.arange(5).unsqueeze(1).expand(5, 3)
    done = (place == 1) | (place == 3)  # the first cut short, which leaves no room for the fifth step
    ended = ending(steps, done, place == 3)
    networks = make_networks()
    loss = make_loss(networks=networks, shifted=True, reduction="none")
    kept = loss(**of(ended, *INSIDE)).loss_critic
    cut_short = loss(**of(ended._replace(terminated=place < 0), *INSIDE)).loss_critic
    short = type(ended)(*(tensor[:4] for tensor in ended))
    torch.testing.assert_close(kept[:4], make_loss(networks=networks, reduction="none")(**of(short, *INSIDE)).loss_critic)
    expected, valid = torchrl_shifted(networks, laid_out(ended, "NT1"), 1, reduction="none")
    assert valid.sum(1).tolist() == [4, 4, 4]
    torch.testing.assert_close(expected["loss_critic"].t()[:2], kept[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(expected["loss_critic"].t()[2:4], cut_short[2:4], rtol=1e-5, atol=1e-5)
    assert (kept - cut_short)[2:4].abs().amin() > 1e-4


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"done": torch.ones(4, 4).bool()}, ValueError, "done: expected the shape of reward, [4, 5], got [4, 4]"),
        ({"terminated": torch.ones(4, 4).bool()}, ValueError, "terminated: expected the shape of reward, [4, 5], got [4, 4]"),
        ({"done": torch.ones(4, 5)}, TypeError, "done: expected dtype torch.bool, got torch.float32"),
        ({"next_observation": torch.ones(4, 4, 3)}, ValueError, "next_observation: expected the shape of observation"),
        ({"steps_to_next_obs": torch.ones(4, 5)}, ValueError, "steps_to_next_obs: expected None with shifted"),
    ],
)
def test_shifted_refuses_a_wrong_argument_by_name(changed, error, message):
    arguments = of(make_loss_steps(column=False), *INSIDE)
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make_loss(shifted=True)(**{**arguments, **changed})


def test_shifted_refuses_several_agents():
    with pytest.raises(ValueError, match=r"^shifted: expected False with a value estimator of several agents"):
        make_loss(shifted=True, value_estimator="magae")(**of(make_loss_steps(), *INSIDE))


# Chunks


@pytest.mark.parametrize("shape", [(6, 4), (1, 3), (5, 1)], ids=str)
@pytest.mark.parametrize("options", [{"value_chunk_size": 1}, {"value_chunk_size": 5}, {"num_chunks": 3}, {"num_chunks": 100}])
def test_chunks_change_no_result(options, shape):
    mine, theirs = copies(make_networks(shared=True, dtype=torch.float64))
    arguments = of(make_loss_steps(shape, dtype=torch.float64), *INSIDE, "mask")
    loss = make_loss(networks=mine, separate_losses=True, **options)
    assert_losses_same(loss, make_loss(networks=theirs, separate_losses=True), arguments, tolerance=EXACT)


@pytest.mark.parametrize(
    ("options", "names", "sizes"),
    [
        ({"value_chunk_size": 5}, INSIDE, [5, 1, 5, 1]),
        ({"value_chunk_size": 12}, INSIDE, [6, 6]),
        ({"num_chunks": 4}, INSIDE, [1, 2, 1, 2] * 2),
        ({"num_chunks": 1}, INSIDE, [6, 6]),
        ({"num_chunks": 100}, INSIDE, [1] * 12),
        ({"num_chunks": 2, "shifted": True}, INSIDE, [3, 4]),
        ({"value_chunk_size": 4}, ("advantage", "value_target"), [4, 2]),
    ],
)
def test_the_critic_is_called_on_so_many_entries_at_a_time(options, names, sizes):
    loss, critic = recording(**options)
    loss(**of(make_loss_steps((6, 4), dtype=torch.float64, column=False), *names))
    assert critic.sizes == [(size, 4) for size in sizes]


def test_chunks_serve_a_tuple_of_observations():
    steps = make_loss_steps()
    networks = [TupleNetwork(4), TupleNetwork(1)]
    both = {name: (getattr(steps, name), getattr(steps, name)[..., :2]) for name in ("observation", "next_observation")}
    arguments = {**of(steps, *INSIDE), **both}
    assert_losses_same(make_loss(networks=networks, num_chunks=3), make_loss(networks=networks), arguments)


# In other modes


MODES = {
    "shifted": {"shifted": True, "shifted_budget": 2, "clip_value": 0.2},
    "value_chunk_size": {"value_chunk_size": 100, "shared": True, "separate_losses": True},
    "target_in_chunks": {"target_critic_network": make_networks(seed=7)[1], "num_chunks": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_scripted_and_traced_equal_eager_and_serve_another_shape(mode):
    """Exported: see test_loss_export.py."""
    loss = make_loss(**MODES[mode])
    learning = nn.ModuleList([loss.actor_network, loss.critic_network])
    # A shifted loss gathers with indices that depend on the data, also in its backward pass.
    modules = {"scripted": torch.jit.script(loss), "traced": traced(loss, "aot_eager" if mode == "shifted" else "eager")}
    for count, shape in enumerate([(5, 6), (7, 9)]):
        arguments = of(in_sequence(shape, cut_short=2, dtype=torch.float32), *INSIDE, "mask")
        expected = loss(**arguments)
        with torch._dynamo.config.patch(error_on_recompile=count > 0):
            for module in modules.values():
                outputs = module(**arguments)
                assert_same(outputs, expected)
                assert_same(gradients(outputs, learning), gradients(loss(**arguments), learning))


# A target network


def with_target(dtype=torch.float64, **options):
    networks = make_networks(dtype=dtype)
    return make_loss(networks=networks, target_critic_network=make_networks(seed=1, dtype=dtype)[1], **options)


@pytest.mark.parametrize("options", [{}, {"num_chunks": 3}, {"critic_coef": None}])
def test_next_values_come_from_the_target(options):
    loss = with_target(reduction="none", **options)
    steps = make_loss_steps(dtype=torch.float64)
    outputs = loss(**of(steps, *INSIDE))
    with torch.no_grad():
        estimate = loss.value_estimator(
            loss.critic_network(steps.observation),
            loss.target_critic_network(steps.next_observation),
            steps.reward,
            steps.done,
            steps.terminated,
        )
    arguments = {**of(steps), "advantage": estimate.advantage, "value_target": estimate.value_target}
    without = make_loss(networks=[loss.actor_network, loss.critic_network], reduction="none", **options)
    assert_same(outputs, without(**arguments), EXACT)
    networks = nn.ModuleList([loss.actor_network, loss.critic_network])
    assert_same(gradients(outputs, networks), gradients(without(**arguments), networks), EXACT)


def test_an_equal_target_changes_nothing():
    mine, theirs = copies(make_networks(dtype=torch.float64))
    loss = make_loss(networks=mine, target_critic_network=copy.deepcopy(mine[1]))
    outputs, expected_loss = loss(**of(make_loss_steps(dtype=torch.float64), *INSIDE)), make_loss(networks=theirs)
    expected = expected_loss(**of(make_loss_steps(dtype=torch.float64), *INSIDE))
    assert_same(outputs, expected, EXACT)
    assert_same(gradients(outputs, mine), gradients(expected, theirs), EXACT)


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_training_step_changes_the_critic_and_not_the_target(compiles):
    loss = with_target(torch.float32)
    assert not any(parameter.requires_grad for parameter in loss.target_critic_network.parameters())
    with compile_backend():
        step = TrainStep(loss, "sgd", lr=0.1, compile=compiles)
    assert not any("target" in name for name in step.parameter_names)
    before = copy.deepcopy(loss.state_dict())
    assert any(name.startswith("target_critic_network") for name in before)
    with compile_backend():
        step(make_rollout())
    for name, tensor in loss.state_dict().items():
        learns = name.startswith(("actor_network", "critic_network"))
        assert torch.equal(tensor, before[name]) != learns, name
    assert all(parameter.grad is None for parameter in loss.target_critic_network.parameters())


def test_an_averaged_model_follows_the_critic_as_torchrls_soft_update_does():
    pytest.importorskip("torchrl")
    from torchrl.objectives import SoftUpdate

    networks = make_networks()
    target = AveragedModel(networks[1], multi_avg_fn=get_ema_multi_avg_fn(0.9))
    # AveragedModel copies the critic at its first update, and averages from the second.
    target.update_parameters(networks[1])
    loss = make_loss(networks=networks, target_critic_network=target)
    followed = copy.deepcopy(networks[1])
    soft = SoftUpdate.__new__(SoftUpdate)
    soft.eps = 0.9
    step = TrainStep(loss, "sgd", lr=0.5, compile=False)
    for seed in range(3):
        step(make_rollout(seed=seed))
        target.update_parameters(loss.critic_network)
        for source, expected in zip(loss.critic_network.parameters(), followed.parameters(), strict=True):
            soft._step(source, expected)
        for parameter, expected in zip(target.module.parameters(), followed.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected)
        rollout = make_rollout(seed=9)
        with_copy = make_loss(networks=networks, target_critic_network=copy.deepcopy(followed))
        arguments = rollout._asdict()
        arguments = {name: arguments[name] for name in ("observation", "action", *INSIDE[:-1])}
        assert_same(loss(**arguments), with_copy(**arguments))


def test_a_hard_update_is_load_state_dict():
    loss = with_target()
    loss.target_critic_network.load_state_dict(loss.critic_network.state_dict())
    arguments = of(make_loss_steps(dtype=torch.float64), *INSIDE)
    without = make_loss(networks=[loss.actor_network, loss.critic_network])
    assert_same(loss(**arguments), without(**arguments), EXACT)
    assert not any(parameter.requires_grad for parameter in loss.target_critic_network.parameters())


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"value_chunk_size": 2, "num_chunks": 2},
            ValueError,
            "num_chunks: expected None when value_chunk_size is given, got 2",
        ),
        ({"value_chunk_size": 0}, ValueError, "value_chunk_size: "),
        ({"value_chunk_size": -1}, ValueError, "value_chunk_size: "),
        ({"num_chunks": 0}, ValueError, "num_chunks: "),
        ({"num_chunks": -3}, ValueError, "num_chunks: "),
        ({"shifted_budget": 0}, ValueError, "shifted_budget: "),
        ({"target_critic_network": "critic"}, TypeError, "target_critic_network: expected a .*Module, got str"),
        (
            {"shifted": True, "target_critic_network": nn.Linear(3, 1)},
            ValueError,
            "shifted: expected False with a target_critic_network",
        ),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make_loss(**options)


def test_a_target_that_learns_is_refused_and_left_learning():
    networks = make_networks()
    for target in (networks[1], nn.Sequential(networks[1][0], nn.Linear(8, 1))):
        with pytest.raises(ValueError, match=r"^target_critic_network: expected a network that shares no parameters"):
            make_loss(networks=networks, target_critic_network=target)
    assert all(parameter.requires_grad for parameter in networks.parameters())
