"""Running statistics of observations and of discounted returns, against numpy, gymnasium and Stable-Baselines3."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.utils import RunningMeanStd
from torch import nn

from a2c_compiled.networks.for_spaces import TupleEncoder
from a2c_compiled.networks.observation_norm import ObservationNorm, RunningMoments, update_norms
from a2c_compiled.rollouts.reward_scale import RewardScale

PEERS_COUNT = 1e-4  # what gymnasium and Stable-Baselines3 begin to count from
GAMMA = 0.9


def observations(*batch, shape=(3,), seed=0, offset=5.0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return offset + scale * torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)


def assert_exact(mine, expected):
    torch.testing.assert_close(mine, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def assert_moments(moments, rows):
    """``moments`` are those of ``rows``, ``[K, *shape]``."""
    rows = rows.double().numpy()
    assert_exact(moments.mean, rows.mean(0))
    assert_exact(moments.var, rows.var(0))
    assert moments.count.item() == len(rows)


# Moments


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1,)])
def test_moments_of_several_updates_equal_those_of_all_observations(shape):
    moments = RunningMoments(shape)
    pieces = [
        observations(7, shape=shape),
        observations(4, 5, shape=shape, seed=1, offset=-2.0),
        observations(shape=shape, seed=2),
        observations(0, shape=shape),
        observations(1, 1, 1, shape=shape, seed=3),
    ]
    for piece in pieces:
        moments.update(piece)
    assert_moments(moments, torch.cat([piece.reshape(-1, *shape) for piece in pieces]))


def test_moments_far_from_zero_keep_their_precision():
    moments = RunningMoments([3])
    for seed in range(20):
        moments.update(observations(50, seed=seed, offset=1e8, scale=0.1))
    rows = torch.cat([observations(50, seed=seed, offset=1e8, scale=0.1) for seed in range(20)])
    torch.testing.assert_close(moments.var, torch.as_tensor(rows.numpy().var(0)), rtol=1e-6, atol=0)


def test_observations_outside_the_mask_do_not_change_the_moments():
    moments, x = RunningMoments([3]), observations(6, 4)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    moments.update(x.masked_fill(~mask.unsqueeze(-1), float("nan")), mask)
    assert_moments(moments, x[mask])
    moments.update(x, torch.zeros(6, 4, dtype=torch.bool))
    assert_moments(moments, x[mask])


def test_a_norm_without_observations_only_clips():
    norm, x = ObservationNorm([3]), observations(4)
    norm.update(x[:0])
    torch.testing.assert_close(norm(x), x.clamp(-10, 10))


def test_moments_equal_those_of_gymnasium_and_stable_baselines3():
    theirs = pytest.importorskip("stable_baselines3.common.running_mean_std").RunningMeanStd(PEERS_COUNT, (3,))
    gymnasiums, moments = RunningMeanStd(PEERS_COUNT, (3,)), RunningMoments([3])
    moments.count.fill_(PEERS_COUNT)
    for seed in range(5):
        x = observations(8, seed=seed)
        moments.update(x)
        for other in (theirs, gymnasiums):
            other.update(x.numpy())
            assert_exact(moments.mean, other.mean)
            assert_exact(moments.var, other.var)


# Observations


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)]
)
def test_observations_are_standardised_and_clipped(dtype, tolerance):
    norm, x = ObservationNorm([3], clip=1.5, epsilon=1e-2), observations(6, 4)
    norm.update(x)
    x = x.to(dtype)
    expected = np.clip((x.double().numpy() - norm.mean.numpy()) / np.sqrt(norm.var.numpy() + 1e-2), -1.5, 1.5)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x).double(), torch.as_tensor(expected), rtol=0, atol=tolerance)
    assert (norm(x).abs() == 1.5).any()


@pytest.mark.parametrize("mode", ["eager", "scripted"])
def test_large_observations_that_differ_little_are_standardised_exactly(mode):
    """Their mean lies between two float32 numbers."""
    norm = ObservationNorm([3])
    x = 1e6 + 0.0625 * (torch.arange(30).reshape(10, 3) % 2).float()
    norm.update(x)
    expected = (x.double() - norm.mean) / (norm.var + norm.epsilon).sqrt()
    function = torch.jit.script(norm) if mode == "scripted" else norm
    torch.testing.assert_close(function(x).double(), expected, rtol=1e-6, atol=0)


def test_conversion_to_another_precision_leaves_the_moments_alone():
    norm = ObservationNorm([3])
    norm.update(observations(6))
    before = copy.deepcopy(norm.state_dict())
    norm.half()
    assert norm.mean.dtype == torch.float64
    other = ObservationNorm([3])
    other.load_state_dict(norm.state_dict())
    assert all(torch.equal(other.state_dict()[name], before[name]) for name in before)


def normalized_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm, linear = ObservationNorm([3]), nn.Linear(3, 2)
    norm.update(observations(50))
    return nn.Sequential(norm, linear)


def test_normalization_is_scripted():
    network, x = normalized_network(), observations(4, 5).float()
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


@pytest.mark.slow
def test_an_exported_network_normalises_observations(tmp_path):
    from a2c_compiled import export  # here, since the processes below import this file

    path = export.export_onnx(normalized_network(), (observations(4, 5).float(),), tmp_path / "network.onnx")
    assert export.verify(path).passed


@pytest.mark.slow
def test_normalization_and_its_update_compile_as_one_graph():
    eager, x = normalized_network(), observations(4, 5, seed=1).float()
    network = copy.deepcopy(eager)

    @torch.compile(fullgraph=True)
    def updated(x):
        network[0].update(x)
        return network(x)

    for step in range(3):
        eager[0].update(x + step)
        torch.testing.assert_close(updated(x + step), eager(x + step))
    for mine, expected in zip(network.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_shared_norm_is_updated_once():
    norm = ObservationNorm([3])
    both = nn.ModuleList([nn.Sequential(norm, nn.Linear(3, 2)), nn.Sequential(norm, nn.Linear(3, 1))])
    x = observations(4, 5)
    update_norms(both, x)
    assert_moments(norm, x.reshape(-1, 3))


def test_each_norm_is_updated_with_its_own_part_of_the_observation():
    network = TupleEncoder([ObservationNorm([3], part=0), nn.Identity(), ObservationNorm([2], part=2)])
    parts = observations(4), observations(4, shape=(7,)), observations(4, shape=(2,), seed=1)
    mask = torch.tensor([True, False, True, True])
    update_norms(network, parts, mask)
    assert_moments(network.encoders[0], parts[0][mask])
    assert_moments(network.encoders[2], parts[2][mask])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RunningMoments([]), "shape: expected at least one dimension, got none"),
        (lambda: RunningMoments([3]).update(torch.ones(5, 2)), r"x: expected shape \[\.\.\., 3\], got \[5, 2\]"),
        (lambda: RunningMoments([2, 3]).update(torch.ones(3)), r"x: expected shape \[\.\.\., 2, 3\], got \[3\]"),
        (lambda: RunningMoments([3]).update(torch.ones(5, 3), torch.ones(4).bool()), r"mask: expected shape \[5\], got \[4\]"),
        (lambda: RewardScale(3).scale(torch.ones(2, 4), torch.ones(2, 4).bool()), r"reward: expected shape \[T, 3\]"),
        (lambda: RewardScale(3).scale(torch.ones(0, 3), torch.ones(0, 3).bool()), r"reward: .* got \[0, 3\]"),
        (lambda: RewardScale(3).scale(torch.ones(2, 3), torch.ones(3).bool()), r"done: expected shape \[2, 3\], got \[3\]"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Rewards


def rewards(steps=24, envs=4):
    generator = torch.Generator().manual_seed(0)
    reward = 2 + 3 * torch.randn(steps, envs, generator=generator)
    return reward, torch.rand(steps, envs, generator=generator) < 0.15


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_observations_that_are_no_real_numbers_are_refused(dtype):
    with pytest.raises(TypeError, match=f"x: expected a floating dtype, got {dtype}"):
        ObservationNorm([3])(torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize("steps", [1, 4, 24])
def test_rewards_are_scaled_as_stable_baselines3_does(steps):
    """Its statistics are those of each step so far; here a whole rollout's come first, so that its last step is the same."""
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    theirs = vec_env.VecNormalize(
        vec_env.DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 4), gamma=GAMMA, clip_reward=0.7
    )
    mine, (reward, done) = RewardScale(4, GAMMA, clip=0.7), rewards()
    mine.moments.count.fill_(PEERS_COUNT)
    for rows, ends in zip(reward.split(steps), done.split(steps), strict=True):
        for row, end in zip(rows.numpy(), ends.numpy(), strict=True):
            theirs._update_reward(row)
            expected = theirs.normalize_reward(row)
            theirs.returns[end] = 0.0
        scaled = mine.scale(rows, ends)
        assert scaled.dtype == torch.float32
        np.testing.assert_allclose(scaled[-1].numpy(), expected, rtol=1e-6)
        assert_exact(mine.moments.mean, [theirs.ret_rms.mean])
        assert_exact(mine.moments.var, [theirs.ret_rms.var])
        assert_exact(mine.running, theirs.returns)
    theirs.close()


def test_rewards_are_divided_by_the_deviation_of_all_discounted_returns():
    scale, (reward, done) = RewardScale(4, GAMMA, clip=100.0), rewards()
    running, returns = np.zeros(4), []
    for row, end in zip(reward.double().numpy(), done.numpy(), strict=True):
        running = row + GAMMA * running
        returns.append(running)
        running = np.where(end, 0.0, running)
    scaled = scale.scale(reward, done)
    torch.testing.assert_close(scaled, (reward / np.std(returns)).float())
    assert_exact(scale.running, running)


def test_steps_outside_the_mask_do_not_change_the_reward_scale():
    scale, (reward, done) = RewardScale(4, GAMMA), rewards()
    mask = torch.ones_like(done)
    mask[3:5] = False
    scale.scale(reward, done, mask)
    everything = RewardScale(4, GAMMA)
    everything.scale(reward, done)
    assert scale.moments.count.item() == mask.sum()
    assert scale.moments.var.item() != everything.moments.var.item()


def test_a_restored_reward_scale_continues_exactly():
    reward, done = rewards()
    whole, first, second = (RewardScale(4, GAMMA) for _ in range(3))
    whole.scale(reward[:10], done[:10])
    expected = whole.scale(reward[10:], done[10:])
    first.scale(reward[:10], done[:10])
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.scale(reward[10:], done[10:]), expected)


# Over processes


def in_one_of_two_processes(rank, folder):
    """Updates the statistics with one half of the environments; they have to equal those of all environments."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    norm, scale = ObservationNorm([3]), RewardScale(2, GAMMA)
    (reward, done), half = rewards(), slice(2 * rank, 2 * rank + 2)
    norm.update(observations(6, 4, offset=1e4)[:, half])
    norm.update(observations(6, 4, seed=1)[:, half], done[:6, half])
    scaled = scale.scale(reward[:, half], done[:, half])
    torch.save((norm.state_dict(), scaled), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_statistics_of_two_processes_equal_those_of_one_with_all_data(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("no gloo")
    torch.multiprocessing.spawn(in_one_of_two_processes, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    norm, scale = ObservationNorm([3]), RewardScale(4, GAMMA)
    reward, done = rewards()
    norm.update(observations(6, 4, offset=1e4))
    norm.update(observations(6, 4, seed=1), done[:6])
    for name, expected in norm.state_dict().items():
        assert torch.equal(found[0][0][name], found[1][0][name])
        assert_exact(found[0][0][name], expected)
    torch.testing.assert_close(torch.cat([scaled for _, scaled in found], 1), scale.scale(reward, done))
