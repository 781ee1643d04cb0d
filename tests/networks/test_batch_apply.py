"""BatchApply, and the errors of networks that do not accept the observations of a loss or a rollout."""

import re

import pytest
import torch
from loss_cases import CHOICES, FEATURES, compile_backend, make_loss, make_rollout
from torch import nn

from a2c_compiled import A2CLoss, TrainStep, distributions, environments
from a2c_compiled.networks import BatchApply
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.rollouts.acting import act
from a2c_compiled.training.evaluation import evaluate, greedy_policy

T, N = 5, 6
IMAGE = (2, 6, 7)


def cnn(outputs):
    """A convolutional network as everyone writes it."""
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 5, outputs))


def image_rollout():
    observation, next_observation = torch.randn(2, T, N, *IMAGE, generator=torch.Generator().manual_seed(0))
    return make_rollout((T, N))._replace(observation=observation, next_observation=next_observation)


def image_loss(wrap):
    torch.manual_seed(0)
    return A2CLoss(wrap(cnn(CHOICES)), wrap(cnn(1)), distributions.Categorical(CHOICES))


@pytest.mark.parametrize("lead", [(), (3,), (T, N), (2, 0), (2, 3, 4)], ids=str)
def test_a_network_of_batches_accepts_any_leading_dimensions(lead):
    network = cnn(4)
    images = torch.randn(*lead, *IMAGE)
    output = BatchApply(network, 3)(images)
    assert output.shape == (*lead, 4)
    torch.testing.assert_close(output.reshape(-1, 4), network(images.reshape(-1, *IMAGE)))


def test_a_training_step_learns_from_images():
    step = TrainStep(image_loss(lambda network: BatchApply(network, 3)), compile=False)
    first, *_, last = (step(image_rollout()).loss_critic for _ in range(60))
    assert last < 0.5 * first


@pytest.mark.slow
def test_wrapped_networks_script_and_compile():
    loss = image_loss(lambda network: BatchApply(network, 3))
    rollout = image_rollout()
    arguments = rollout._asdict()
    arguments = {name: arguments[name] for name in ("observation", "action", "reward", "next_observation", "done")}
    expected = loss(**arguments)
    for outputs in (torch.jit.script(loss)(**arguments), torch.compile(loss, fullgraph=True, backend="eager")(**arguments)):
        torch.testing.assert_close(outputs.loss_critic, expected.loss_critic)
        torch.testing.assert_close(outputs.loss_objective, expected.loss_objective)


def test_wrong_arguments_are_refused_by_name():
    for arguments, error, message in (
        ((cnn, 3), TypeError, "network: expected a module, got function"),
        ((cnn(1), 0), ValueError, "event_dims: expected at least 1, got 0"),
        ((cnn(1), 1.5), TypeError, "event_dims: expected an integer, got 1.5"),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            BatchApply(*arguments)
    with pytest.raises(ValueError, match=r"^observation: expected at least 3 dimensions, got shape \[4, 4\]"):
        BatchApply(cnn(1), 3)(torch.zeros(4, 4))
    with pytest.raises(TypeError, match=r"^observation: expected a torch\.Tensor, got 1"):
        BatchApply(cnn(1), 3)(1)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_error_of_a_network_of_batches_names_the_remedy(compile):
    message = (
        r"^actor_network: expected a network that accepts observations of shape \[5, 6, 2, 6, 7\], .*"
        r"networks\.BatchApply\(actor_network, 3\)"
    )
    with compile_backend(), pytest.raises(ValueError, match=message):
        TrainStep(image_loss(lambda network: network), compile=compile)(image_rollout())
    actor = BatchApply(cnn(CHOICES), 3)
    with compile_backend(), pytest.raises(ValueError, match=r"^critic_network: .*networks\.BatchApply\(critic_network, 3\)"):
        TrainStep(A2CLoss(actor, cnn(1), distributions.Categorical(CHOICES)), compile=compile)(image_rollout())


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_observations_of_another_dtype_than_the_networks_are_named(compile):
    rollout = make_rollout()
    remedy = r" \(convert it with {0}\.to\(torch\.float32\), or the networks with loss\.to\(torch\.float64\)\)"
    message = r"^{0}: expected torch\.float32, the dtype of {1}_network\.0\.0\.weight, got torch\.float64" + remedy
    for name, network in (("observation", "actor"), ("next_observation", "critic")):
        wrong = rollout._replace(**{name: getattr(rollout, name).double()})
        with compile_backend(), pytest.raises(ValueError, match=message.format(name, network)):
            TrainStep(make_loss(), compile=compile)(wrong)


def test_a_part_of_an_observation_is_named():
    class OfParts(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.layer = nn.Linear(FEATURES, outputs)

        def forward(self, observation):
            return self.layer(observation[0]) + self.layer(observation[1])

    loss = A2CLoss(OfParts(CHOICES), OfParts(1), distributions.Categorical(CHOICES))
    rollout = make_rollout()
    parts = rollout.observation, rollout.observation.double()
    with pytest.raises(
        ValueError, match=r"^observation\[1\]: expected torch\.float32, the dtype of actor_network\.layer\.weight"
    ):
        TrainStep(loss, compile=False)(rollout._replace(observation=parts, next_observation=parts))


def test_a_rollout_names_the_dtype_too():
    envs = environments.CartPole(2)
    envs.observe = lambda physics: physics.double()
    loss = A2CLoss(nn.Linear(4, 2), nn.Linear(4, 1), distributions.Categorical(2))
    with pytest.raises(
        ValueError, match=r"^observation: expected torch\.float32, the dtype of actor_network\.weight, got torch\.float64"
    ):
        RolloutCollector(envs, loss, 3, seed=0).collect()


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        (
            torch.bfloat16,
            "convert the networks with loss.to(torch.float32); TrainStep(loss, autocast=torch.bfloat16) computes in",
        ),
        (torch.float64, "convert the networks with loss.to(torch.float32))"),
    ],
)
def test_a_rollout_says_how_networks_get_the_dtype_of_the_environments(dtype, remedy):
    loss = A2CLoss(nn.Linear(4, 2), nn.Linear(4, 1), distributions.Categorical(2)).to(dtype)
    message = f"observation: expected {dtype}, the dtype of actor_network.weight, got torch.float32 ({remedy}"
    with pytest.raises(ValueError, match=re.escape(message)):
        RolloutCollector(environments.CartPole(2), loss, 3, seed=0).collect()


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_observations_of_another_size_than_the_network_takes_are_named(compile):
    wide = nn.Sequential(nn.Linear(FEATURES + 1, CHOICES), nn.Tanh())
    message = (
        rf"^{{}}: expected {FEATURES + 1} numbers in the last dimension, as {{}}_network\.0 takes, got shape \[.*{FEATURES}\]$"
    )
    for actor, critic, name in ((wide, nn.Linear(FEATURES, 1), "actor"), (nn.Linear(FEATURES, CHOICES), wide, "critic")):
        loss = A2CLoss(actor, critic, distributions.Categorical(CHOICES))
        with compile_backend(), pytest.raises(ValueError, match=message.format("observation", name)):
            TrainStep(loss, compile=compile)(make_rollout())


def test_a_rollout_and_an_evaluation_name_the_size_too():
    loss = A2CLoss(nn.Linear(5, 2), nn.Linear(4, 1), distributions.Categorical(2))
    message = r"^observation: expected 5 numbers in the last dimension, as actor_network takes, got shape \[2, 4\]"
    with pytest.raises(ValueError, match=message):
        RolloutCollector(environments.CartPole(2), loss, 3, seed=0).collect()
    with pytest.raises(ValueError, match=message):
        evaluate(greedy_policy(loss), "CartPole-v1", episodes=2)


def test_a_network_that_refuses_a_size_within_is_named():
    inner = nn.Sequential(nn.Linear(FEATURES, 7), nn.Linear(8, CHOICES))
    loss = A2CLoss(inner, nn.Linear(FEATURES, 1), distributions.Categorical(CHOICES))
    message = r"^actor_network: expected a network that accepts observations of shape \[.*\], got an error \(.*mat1 and mat2 .*x7 and 8x"
    with pytest.raises(ValueError, match=message):
        TrainStep(loss, compile=False)(make_rollout())
    with pytest.raises(
        ValueError, match=r"^actor_network: .* observations of shape \[2, 3, 6, 7\], got an error \(Given groups=1"
    ):
        act(image_loss(lambda network: network), torch.zeros(2, 3, 6, 7))


def test_other_errors_of_a_network_stay():
    class Wrong(nn.Linear):
        def forward(self, observation):
            raise RuntimeError("the device is lost")

    loss = A2CLoss(Wrong(FEATURES, CHOICES), nn.Linear(FEATURES, 1), distributions.Categorical(CHOICES))
    with pytest.raises(RuntimeError, match="the device is lost"):
        TrainStep(loss, compile=False)(make_rollout())
