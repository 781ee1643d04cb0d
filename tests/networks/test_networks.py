"""Networks for the spaces of an environment: vectors, images, choices, and several of these."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import nn
from torch.nn import functional

from a2c_compiled import A2CLoss, export
from a2c_compiled.distributions import Categorical
from a2c_compiled.environments import observation_tensor
from a2c_compiled.networks.for_spaces import ImageEncoder, OneHot, TupleEncoder, encoder_for, make_networks, mlp
from a2c_compiled.networks.observation_norm import ObservationNorm, update_norms
from a2c_compiled.shared_trunk import trunk_length
from a2c_compiled.update import Rollout, TrainStep


class Spaces:
    """The attributes of environments that ``make_networks`` reads."""

    def __init__(self, observations, actions=None):
        self.observation_space = observations
        self.action_space = spaces.Discrete(3) if actions is None else actions


def box(*shape, dtype=np.float32, high=1.0):
    return spaces.Box(0, high, shape, dtype)


def pixels(*shape):
    return box(*shape, dtype=np.uint8, high=255)


def some_observations(space, *batch):
    """Random observations of ``space`` as an environment returns them, with the leading dimensions ``batch``."""
    for size in reversed(batch):
        space = batch_space(space, size)
    space.seed(0)
    return observation_tensor(space.sample())


MANY = spaces.Dict({"image": pixels(4, 4, 3), "choice": spaces.Discrete(5), "place": box(3)})
OBSERVATIONS = {
    "vector": (box(7), 7),
    "vector_float64": (box(7, dtype=np.float64), 7),
    "stacked_vectors": (box(4, 7), 28),
    "minatar": (box(10, 10, 4, dtype=np.bool_), 128),
    "as_many_channels_as_pixels": (box(10, 10, 10, dtype=np.bool_), 128),
    "colours": (pixels(12, 9, 3), 128),
    "grey": (pixels(9, 8), 128),
    "stacked_grey": (pixels(4, 9, 8), 128),
    "stacked_minatar": (box(2, 10, 10, 4, dtype=np.bool_), 128),
    "floats": (box(5, 5, 2), 128),
    "atari": (pixels(4, 84, 84), 512),
    "choice": (spaces.Discrete(5), 5),
    "tuple": (spaces.Tuple([box(2), box(6, 6, 2, dtype=np.bool_), box(2, 3)]), 136),
    "dict": (MANY, 136),
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_networks_accept_any_number_of_leading_dimensions(name, normalize):
    space, _ = OBSERVATIONS[name]
    actor, critic, distribution = make_networks(Spaces(space), (8,), normalize)
    for batch in ((2,), (3, 2), ()) if name != "atari" else ((2,),):
        # gymnasium's batch of no dimensions is the space itself; a choice is then a plain number.
        observation = some_observations(space, *batch) if batch else first_of(some_observations(space, 1))
        assert actor(observation).shape == (*batch, distribution.num_params) == (*batch, 3)
        assert critic(observation).shape == (*batch, 1)


def first_of(observation):
    return tuple(part[0] for part in observation) if isinstance(observation, tuple) else observation[0]


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_encoders_have_the_width_that_encoder_for_returns(name):
    space, width = OBSERVATIONS[name]
    encoder, said = encoder_for(space)
    assert said == width
    assert (encoder is None) == (name in ("vector", "vector_float64"))
    if encoder is not None:
        assert encoder(some_observations(space, 2)).shape == (2, width)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({}),
        spaces.Tuple([box(3), spaces.Text(3)]),
        spaces.Dict({"inner": MANY}),
        spaces.MultiBinary(3),
        pixels(8),
        box(),
        box(2, 3, 4, 5, 6),
        spaces.Graph(box(3), None),
    ],
    ids=str,
)
def test_observations_without_an_encoder_are_refused(space):
    with pytest.raises(ValueError, match="observation_space: expected float32 or float64 vectors, images"):
        make_networks(Spaces(space), (8,))


@pytest.mark.parametrize("space", [pixels(2, 8, 1), box(2, 2, 1, dtype=np.bool_)], ids=str)
def test_images_that_are_too_small_are_refused(space):
    with pytest.raises(ValueError, match="shape: expected images of at least 3 x 3"):
        make_networks(Spaces(space), (8,))


def test_actor_and_critic_of_images_share_the_encoder_as_their_trunk():
    actor, critic, _ = make_networks(Spaces(pixels(84, 84, 4)), [])
    assert trunk_length(actor, critic) == 1
    assert isinstance(actor[0], ImageEncoder)


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_networks_for_vector_environments_are_those_for_the_spaces_of_one_environment(mode):
    envs = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode=mode)
    actor, critic, distribution = make_networks(envs, (8,))
    assert (actor[0].in_features, critic[0].in_features) == (4, 4)
    assert isinstance(distribution, Categorical)
    assert distribution.num_params == 2
    envs.close()


def test_what_has_no_spaces_is_refused_by_name():
    for wrong, got in (("CartPole-v1", "'CartPole-v1'"), (box(4), r"gymnasium.spaces.box.Box"), (None, "None")):
        with pytest.raises(
            TypeError, match=f"envs: expected a gymnasium VectorEnv or Environments, which have spaces, got {got}"
        ):
            make_networks(wrong, (8,))


def test_networks_for_vectors_have_no_encoder():
    torch.manual_seed(0)
    actor, critic, _ = make_networks(Spaces(box(4)), (16, 8))
    torch.manual_seed(0)
    expected = mlp(4, (16, 8), 3, 0.01), mlp(4, (16, 8), 1, 1.0)
    for mine, other in zip((actor, critic), expected, strict=True):
        assert [type(layer) for layer in mine] == [type(layer) for layer in other]
        assert all(torch.equal(*both) for both in zip(mine.parameters(), other.parameters(), strict=True))


# Images


def by_hand(encoder, images):
    """The encoder's features of float images ``[N, C, H, W]``."""
    for layer in encoder.convolutions:
        images = layer(images)
    return functional.relu(functional.linear(images.flatten(1), encoder.linear.weight, encoder.linear.bias))


def test_pixels_are_scaled_to_one():
    encoder, image = encoder_for(pixels(9, 8, 3))[0], some_observations(pixels(9, 8, 3), 4)
    assert image.max() > 200
    torch.testing.assert_close(encoder(image), by_hand(encoder, image.permute(0, 3, 1, 2) / 255))


def test_bool_images_become_zeros_and_ones():
    space = box(10, 10, 4, dtype=np.bool_)
    encoder, image = encoder_for(space)[0], some_observations(space, 4)
    torch.testing.assert_close(encoder(image), by_hand(encoder, image.float().permute(0, 3, 1, 2)))


def test_stacked_images_are_channels():
    """Frames first, the channels of each beside each other."""
    encoder, image = encoder_for(pixels(2, 9, 8))[0], some_observations(pixels(2, 9, 8), 4)
    torch.testing.assert_close(encoder(image), by_hand(encoder, image / 255))
    space = box(2, 5, 6, 3)
    encoder, image = encoder_for(space)[0], some_observations(space, 4)
    channels = torch.stack([image[:, k, :, :, c] for k in range(2) for c in range(3)], 1)
    torch.testing.assert_close(encoder(image), by_hand(encoder, channels))


def test_large_images_have_the_convolutions_of_the_nature_dqn():
    encoder, width = encoder_for(pixels(4, 84, 84))
    shapes = [tuple(layer.weight.shape) for layer in encoder.convolutions if isinstance(layer, nn.Conv2d)]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    assert tuple(encoder.linear.weight.shape) == (512, 7 * 7 * 64)
    assert width == 512


def test_no_images_give_no_features():
    encoder = ImageEncoder([10, 10, 4])
    assert encoder(torch.zeros(0, 10, 10, 4)).shape == (0, 128)
    assert encoder(torch.zeros(5, 0, 10, 10, 4)).shape == (5, 0, 128)


def test_convolutions_stay_in_channels_last_and_equal_contiguous_ones():
    encoder, loaded = ImageEncoder([4, 84, 84]), ImageEncoder([4, 84, 84])
    loaded.load_state_dict({name: x.contiguous() for name, x in encoder.state_dict().items()})
    weights = [layer.weight for layer in loaded.convolutions if hasattr(layer, "weight")]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    images = torch.rand(2, 4, 84, 84)
    features = encoder(images)
    assert torch.equal(loaded(images), features)
    torch.testing.assert_close(encoder.to(memory_format=torch.contiguous_format)(images), features)


@pytest.mark.parametrize("name", ["minatar", "stacked_grey", "stacked_minatar", "choice"])
def test_one_input_is_scripted(name):
    space, _ = OBSERVATIONS[name]
    actor, _, _ = make_networks(Spaces(space), (8,))
    scripted = torch.jit.script(actor)
    for batch in ((2,), (3, 2)):
        observation = some_observations(space, *batch)
        torch.testing.assert_close(scripted(observation), actor(observation))


@pytest.mark.slow
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_an_actor_over_the_space_is_exported(tmp_path, name):
    space, _ = OBSERVATIONS[name]
    actor, _, _ = make_networks(Spaces(space), (8,))
    path = export.export_onnx(actor, (some_observations(space, 2),), tmp_path / "actor.onnx", ("N",))
    assert export.verify(path).passed


# Choices and several inputs


def test_a_choice_is_a_one_hot_vector():
    assert torch.equal(OneHot(3, start=-1)(torch.tensor([[-1, 1], [0, 0]])), torch.eye(3)[torch.tensor([[0, 2], [1, 1]])])
    several = OneHot([2, 3])
    expected = torch.tensor([[1.0, 0, 0, 0, 1], [0, 1, 1, 0, 0]])
    for module in (several, torch.jit.script(several)):
        assert torch.equal(module(torch.tensor([[0, 2], [1, 0]])), expected)


def test_encoded_parts_are_concatenated_in_their_order():
    encoder, _ = encoder_for(MANY)
    choice, image, place = some_observations(MANY, 4)
    assert list(MANY.spaces) == ["choice", "image", "place"]
    expected = [functional.one_hot(choice, 5).float(), encoder.encoders[1](image), place]
    torch.testing.assert_close(encoder((choice, image, place)), torch.cat(expected, -1))
    for wrong in ((choice, image), image):
        with pytest.raises(ValueError, match="observation: expected a tuple of 3 parts, got"):
            encoder(wrong)


# Normalisation


def test_each_vector_has_a_norm_of_its_own_that_both_networks_share():
    space = spaces.Tuple([box(2), pixels(6, 6, 1), box(2, 3)])
    actor, critic, _ = make_networks(Spaces(space), (8,), normalize_observations=True)
    norms = [module for module in nn.ModuleList([actor, critic]).modules() if isinstance(module, ObservationNorm)]
    assert [(norm.part, tuple(norm.mean.shape)) for norm in norms] == [(0, (2,)), (2, (2, 3))]
    observation = some_observations(space, 5, 4)
    before = actor(observation)
    update_norms(nn.ModuleList([actor, critic]), observation)
    assert [norm.count.item() for norm in norms] == [20, 20]
    first = observation[0].double()
    torch.testing.assert_close(norms[0].mean, first.mean((0, 1)))
    assert not torch.allclose(actor(observation), before)


def test_a_vector_network_begins_with_its_norm():
    actor, critic, _ = make_networks(Spaces(box(4)), (8,), normalize_observations=True)
    assert actor[0] is critic[0]
    assert isinstance(actor[0], ObservationNorm)
    assert [type(layer) for layer in actor[1:]] == [nn.Linear, nn.Tanh, nn.Linear]


# Trained


@pytest.mark.parametrize("name", ["minatar", "tuple"])
def test_encoders_learn_from_actor_and_critic(name):
    space, _ = OBSERVATIONS[name]
    actor, critic, distribution = make_networks(Spaces(space), (8,), normalize_observations=True)
    assert isinstance(actor[0], (ImageEncoder, TupleEncoder))
    loss = A2CLoss(actor, critic, distribution)
    observation, following = some_observations(space, 5, 4), some_observations(space, 5, 4)
    action, flags = torch.randint(3, (5, 4)), torch.zeros(5, 4, dtype=torch.bool)
    rollout = Rollout(observation, action, torch.randn(5, 4), following, flags, flags)
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    metrics = TrainStep(loss, "adam", 1e-2, 0.5, compile=False)(rollout)
    assert all(value.isfinite().all() for value in metrics if value is not None)
    assert all(not torch.equal(*both) for both in zip(before, loss.parameters(), strict=True))
