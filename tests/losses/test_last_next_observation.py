"""A rollout with the observation after the last step alone: the loss equals that of the same rollout with all next observations."""

import pytest
import torch
from loops import loop_over
from torch import nn

from a2c_compiled import A2CLoss, ActorCritic, Rollout, TrainStep, distributions, estimators
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.update.rollout import as_loss_arguments

T, N, F = 6, 3, 4


def make_loss(kind="shared", **options):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(F, 8), nn.Tanh())
    distribution = distributions.Categorical(2)
    if kind == "shared":
        network = ActorCritic(trunk, nn.Linear(8, 2), nn.Linear(8, 1))
        return A2CLoss(network, distribution=distribution, **options).double()
    critic = nn.Sequential(nn.Linear(F, 1), *([nn.Flatten(-2)] if kind == "flat" else []))
    if kind == "target":
        options["target_critic_network"] = nn.Linear(F, 1)
    return A2CLoss(nn.Sequential(trunk, nn.Linear(8, 2)), critic, distribution, **options).double()


def make_rollout(mask=True, time_dim=0):
    """A rollout as autoreset mode NEXT_STEP gives it: the step after the end of an episode is masked. Also all next observations."""
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(T + 1, N, F, generator=generator, dtype=torch.float64)
    done = torch.zeros(T, N, dtype=torch.bool)
    done[2, 0] = done[0, 1] = done[3, 1] = done[T - 1, 2] = True
    terminated = done.clone()
    terminated[3, 1] = terminated[T - 1, 2] = False  # truncated
    counted = torch.cat([torch.ones_like(done[:1]), ~done[:-1]])
    action = torch.randint(2, (T, N), generator=generator)
    reward = torch.randn(T, N, generator=generator, dtype=torch.float64)
    entries = [observation[:-1], action, reward, observation[-1:], done, terminated]
    every = observation[1:]
    if time_dim == 1:
        entries, every = [entry.transpose(0, 1).contiguous() for entry in entries], every.transpose(0, 1).contiguous()
        counted = counted.t().contiguous()
    log_prob = -entries[2].abs()
    rollout = Rollout(*entries, log_prob=log_prob, mask=counted if mask else None)
    return rollout, rollout._replace(next_observation=every)


def losses_and_gradients(loss, rollout):
    losses = loss(**as_loss_arguments(rollout._asdict()))
    total = losses.loss_objective + losses.loss_critic + losses.loss_entropy
    parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    return [losses.loss_objective, losses.loss_critic, *torch.autograd.grad(total, parameters)]


CASES = {
    "GAE": ("shared", {}, 0),
    "V-trace": ("shared", {"value_estimator": estimators.VTrace()}, 0),
    "TD(0)": ("shared", {"value_estimator": estimators.TD0Estimator()}, 0),
    "environments first": ("shared", {"value_estimator": estimators.GAE(time_dim=-1)}, 1),
    "separate losses": ("shared", {"separate_losses": True}, 0),
    "shifted": ("shared", {"shifted": True, "shifted_budget": 4}, 0),
    "in chunks": ("two", {"num_chunks": 2}, 0),
    "values [*B]": ("flat", {}, 0),
    "target critic": ("target", {}, 0),
}


@loop_over("case", list(CASES))
@loop_over("mask", [True, False])
def test_the_losses_and_gradients_equal_those_with_all_next_observations(case, mask):
    kind, options, time_dim = CASES[case]
    last, every = make_rollout(mask, time_dim)
    got, expected = (losses_and_gradients(make_loss(kind, **options), rollout) for rollout in (last, every))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_trunk_sees_each_observation_once():
    last, every = make_rollout()
    for rollout, seen in ((last, (T + 1) * N), (every, 2 * T * N)):
        loss, sizes = make_loss(), []
        loss.actor_network[0].register_forward_hook(
            lambda module, inputs, output, to=sizes: to.append(output.shape[:-1].numel())
        )
        losses_and_gradients(loss, rollout)
        assert sum(sizes) == seen


def test_unknown_next_observations_are_those_of_the_last_step():
    last, every = make_rollout()
    last.next_observation[0, 0] = float("nan")
    unknown = every._replace(next_observation=torch.cat([every.next_observation[:-1], last.next_observation]))
    got, expected = (losses_and_gradients(make_loss(), rollout) for rollout in (last, unknown))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert all(tensor.isfinite().all() for tensor in got)


def test_tuples_of_observations_follow_each_other_too():
    last, every = make_rollout()
    actor, critic = TupleNetwork(2), TupleNetwork(1)
    loss = A2CLoss(actor, critic, distributions.Categorical(2)).double()
    pairs = [
        rollout._replace(observation=(rollout.observation,) * 2, next_observation=(rollout.next_observation,) * 2)
        for rollout in (last, every)
    ]
    got, expected = (losses_and_gradients(loss, rollout) for rollout in pairs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class TupleNetwork(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(F, outputs)

    def forward(self, observation):
        return self.layer(observation[0] + observation[1])


@pytest.mark.parametrize("minibatches", [1, 3])
def test_training_steps_equal_those_with_all_next_observations(minibatches):
    last, every = make_rollout()
    steps = [TrainStep(make_loss(), compile=False, minibatches=minibatches) for _ in range(2)]
    for _ in range(2):
        got, expected = (step(rollout) for step, rollout in zip(steps, (last, every), strict=True))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(list(step.loss.parameters()) for step in steps), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_scripted_and_compiled_losses_equal_eager_ones():
    last, _ = make_rollout()
    expected = losses_and_gradients(make_loss(), last)
    scripted = losses_and_gradients(torch.jit.script(make_loss()), last)
    torch.testing.assert_close(scripted, expected, rtol=1e-12, atol=1e-12)
    step, compiled = TrainStep(make_loss(), compile=False), TrainStep(make_loss(), compile=True)
    torch.testing.assert_close(compiled(last), step(last), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(list(compiled.loss.parameters()), list(step.loss.parameters()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps_to_next_obs": torch.ones(T, N, dtype=torch.int64)}, "with steps_to_next_obs"),
        (
            {"next_observation": torch.zeros(2, N, F, dtype=torch.float64)},
            "next_observation: expected the shape of observation",
        ),
        (
            {"next_observation": torch.zeros(1, 1, F, dtype=torch.float64)},
            "next_observation: expected the shape of observation",
        ),
    ],
)
def test_other_next_observations_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        losses_and_gradients(make_loss(), make_rollout(mask=False)[0]._replace(**changes))


def test_packed_sequences_recurrent_networks_and_several_agents_need_all_next_observations():
    rollout, _ = make_rollout()
    message = "next_observation: expected one for every step with {}, got the observation after the last step alone"
    packed = {name: entry[:, :1] for name, entry in as_loss_arguments(rollout._asdict()).items() if entry is not None}
    with pytest.raises(ValueError, match=message.format("cu_seqlens")):
        make_loss()(**packed, cu_seqlens=torch.tensor([0, 2, T]))
    trunk = Recurrent(MinGRU(F, F))
    loss = A2CLoss(
        nn.Sequential(trunk, nn.Linear(F, 2)), nn.Sequential(trunk, nn.Linear(F, 1)), distributions.Categorical(2)
    ).double()
    hidden, start = torch.zeros(T, N, F, dtype=torch.float64), torch.zeros(T, N, dtype=torch.bool)
    recurrent = rollout._replace(
        observation=(rollout.observation, hidden, start), next_observation=(rollout.next_observation, hidden[:1], start[:1])
    )
    with pytest.raises(ValueError, match=message.format("recurrent networks")):
        losses_and_gradients(loss, recurrent)
    agents = {name: entry.transpose(0, 1) for name, entry in as_loss_arguments(rollout._asdict()).items() if entry is not None}
    agents["observation"], agents["next_observation"] = (
        agents[name].unsqueeze(2) for name in ("observation", "next_observation")
    )
    agents["action"] = agents["action"].unsqueeze(2)
    with pytest.raises(ValueError, match=message.format("a value estimator of several agents")):
        make_loss("two", value_estimator=estimators.MultiAgentGAE())(**agents)
