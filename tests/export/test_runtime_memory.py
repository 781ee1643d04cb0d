"""Policies with memory in the runtime: they keep the hidden state from one call to the next, until they are reset."""

import numpy as np
import pytest
import torch
from memory_cases import CHOICES, FEATURES, KINDS, make_actor_and_critic, make_memory_loss, plain_run

pytest.importorskip("onnxruntime")
from a2c_compiled import export
from a2c_compiled.export.on_device.runtime import Policy, PolicyOutput

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("runtime_memory")]
T, N, KIND = 8, 3, "mixture"


@pytest.fixture(scope="module")
def networks():
    return make_actor_and_critic(KIND)


@pytest.fixture(scope="module")
def greedy(networks, tmp_path_factory):
    policy = export.RecurrentPolicy(networks[0], make_memory_loss(networks).distribution)
    inputs = torch.randn(2, FEATURES), torch.randn(2, KINDS[KIND])
    return export.export_onnx(policy, inputs, tmp_path_factory.mktemp("greedy") / "policy.onnx", ("N",))


def sequence(networks):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(T, N, FEATURES, generator=generator)
    start = torch.rand(T, N, generator=generator) < 0.3
    outputs, _, _ = plain_run(networks, x, torch.zeros(N, 2 * KINDS[KIND]), start)
    return x.numpy(), start.numpy(), outputs


def test_a_greedy_policy_remembers_until_its_episodes_end(networks, greedy):
    x, start, (params, _) = sequence(networks)
    policy = Policy.load(greedy)
    for _ in range(2):
        for t in range(T):
            if t > 0:
                policy.reset(start[t])
            np.testing.assert_array_equal(policy.act(x[t]), params[t].argmax(-1))
        policy.reset()
    forgetful = []
    for t in range(T):
        policy.reset()
        forgetful.append(policy.act(x[t]))
    assert (np.stack(forgetful) != params.argmax(-1).numpy()).any(), "a policy without memory would pass this test"


def test_one_observation_without_a_batch_has_a_memory_of_its_own(networks, greedy):
    x, start, (params, _) = sequence(networks)
    policy = Policy.load(greedy)
    for t in range(T):
        if t > 0:
            policy.reset(bool(start[t, 0]))
        assert policy.act(x[t, 0]) == params[t, 0].argmax()


def test_a_sampled_policy_remembers_too(networks, tmp_path):
    loss = make_memory_loss(networks)
    policy = export.RecurrentSampledPolicy(*networks, loss.distribution)
    inputs = torch.randn(2, FEATURES), torch.randn(2, 2 * KINDS[KIND]), torch.randn(2, CHOICES)
    path = export.export_onnx(policy, inputs, tmp_path / "policy.onnx", ("N",))
    x, start, (params, values) = sequence(networks)
    noise = np.random.default_rng(0).gumbel(size=(T, N, CHOICES))
    loaded = Policy.load(path)
    for t in range(T):
        if t > 0:
            loaded.reset(start[t])
        output = loaded.act(x[t], noise[t])
        assert isinstance(output, PolicyOutput)
        action = (params[t] + torch.from_numpy(noise[t])).argmax(-1)
        np.testing.assert_array_equal(output.action, action)
        expected = params[t].log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        np.testing.assert_allclose(output.log_prob, expected.detach(), atol=1e-5)
        np.testing.assert_allclose(output.state_value, values[t].squeeze(-1).detach(), atol=1e-5)
    assert Policy.load(path, seed=0).act(x[0]).action.shape == (N,)


def test_another_number_of_observations_and_other_flags_are_refused(greedy):
    policy = Policy.load(greedy)
    policy.act(np.zeros((N, FEATURES), np.float32))
    with pytest.raises(ValueError, match=r"observation: expected N = 3, as in the last act, .* got N = 2 \(call reset\(\)"):
        policy.act(np.zeros((2, FEATURES), np.float32))
    with pytest.raises(ValueError, match=r"done: expected shape \[3\], as in the last act, got \[2\]"):
        policy.reset([True, False])
    with pytest.raises(TypeError, match="done: expected bool, got float64"):
        policy.reset([1.0, 0.0, 0.0])
    policy.reset()
    assert policy.act(np.zeros((2, FEATURES), np.float32)).shape == (2,)
