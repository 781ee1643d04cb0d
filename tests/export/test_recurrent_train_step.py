"""Training steps of recurrent networks in onnxruntime: they learn from rollouts that the learner collected with its memory."""

import copy
import re

import numpy as np
import pytest
import torch
from memory_cases import FEATURES, KINDS, make_actor_and_critic, make_memory_loss
from torch import nn

pytest.importorskip("onnxruntime")
from a2c_compiled import TrainStep, export
from a2c_compiled.export.on_device.runtime import Learner
from a2c_compiled.export.tracing import gradients
from a2c_compiled.export.tracing.call import Call
from a2c_compiled.recurrent import MinGRU, Recurrent, hidden_size, run_step
from a2c_compiled.update import Rollout

N, STEPS = 3, 2


def make_networks(kind):
    """Networks that share one MinGRU, or the stacks of other cells."""
    if kind != "min_gru":
        return make_actor_and_critic(kind)
    torch.manual_seed(0)
    trunk = Recurrent(MinGRU(8, 6), nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()))
    return nn.ModuleList([nn.Sequential(trunk, nn.Linear(6, 2)), nn.Sequential(trunk, nn.Linear(6, 1))])


def make_example(width, steps=STEPS):
    x, hidden = torch.randn(steps, N, FEATURES), 0.1 * torch.randn(steps, N, width)
    start, done = torch.zeros(2, steps, N, dtype=torch.bool)
    observation = x, hidden, start
    return Rollout(observation, torch.zeros(steps, N, dtype=torch.long), torch.randn(steps, N), observation, done, done)


@pytest.fixture(scope="module", params=["min_gru", "mixture"])
def exported(request, tmp_path_factory):
    networks = make_networks(request.param)
    step = TrainStep(make_memory_loss(networks), "sgd", 0.1, compile=False)  # rmsprop amplifies rounding errors at first
    path = tmp_path_factory.mktemp(request.param) / "step.onnx"
    return request.param, export.export_train_step(step, make_example(hidden_size(networks)), path), step


@pytest.mark.slow
@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_gradients_through_cells_are_written_out_for_any_number_of_environments(cell):
    torch.manual_seed(0)
    trunk = Recurrent(cell(FEATURES, 5))
    networks = [nn.Sequential(trunk, nn.Linear(5, 2)), nn.Sequential(trunk, nn.Linear(5, 1))]
    step = TrainStep(make_memory_loss(networks), "sgd", 1e-2, compile=False)
    graph = export.TrainStepGraph(step, make_example(trunk.state_size))
    call = Call(graph, graph.example_inputs, graph.dynamic_axes)
    written_out = gradients.with_gradients_written_out(call)
    for size in (1, 8):
        inputs = call.resized({"N": size}, torch.Generator().manual_seed(size))
        expected = call.eager(inputs)
        assert expected["grad_norm"] > 0
        with torch.no_grad():
            actual = written_out(**inputs)
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def played(learner, steps, seed):
    """A rollout that the learner plays with random observations, rewards and ends of episodes. Arrays by name."""
    generator = np.random.default_rng(seed)
    entries = []
    start = np.ones(N, bool)
    for _ in range(steps):
        x, next_x = generator.standard_normal((2, N, FEATURES), dtype=np.float32)
        before = learner.hidden(N)
        output = learner.act(x)
        done = generator.random(N) < 0.3
        entries.append(
            {
                "observation": (x, before, start),
                "action": output.action,
                "reward": generator.standard_normal(N, dtype=np.float32),
                "next_observation": (next_x, learner.hidden(N), np.ones(N, bool)),
                "done": done,
                "terminated": done & (generator.random(N) < 0.5),
            }
        )
        learner.reset(done)
        start = done

    def stacked(values):
        return tuple(map(np.stack, zip(*values, strict=True))) if isinstance(values[0], tuple) else np.stack(values)

    return {name: stacked([entry[name] for entry in entries]) for name in entries[0]}


def in_torch(rollout):
    tensors = {
        name: tuple(map(torch.from_numpy, x)) if isinstance(x, tuple) else torch.from_numpy(x) for name, x in rollout.items()
    }
    return Rollout(**tensors)


@pytest.mark.slow
@pytest.mark.xdist_group("recurrent_train_step")
def test_the_files_of_a_recurrent_training_step_pass_verification(exported):
    _, path, _ = exported
    for file in (path, path.with_suffix(".policy.onnx")):
        report = export.verify(file)
        assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.xdist_group("recurrent_train_step")
def test_a_learner_with_memory_plays_and_trains_as_eager_does(exported):
    kind, path, original = exported
    learner, eager = Learner.load(path, seed=0), copy.deepcopy(original)
    for seed, steps in enumerate((STEPS, 1, 5) if kind == "min_gru" else (STEPS,) * 3):
        rollout = played(learner, steps, seed)
        tensors = in_torch(rollout)
        (x, before, start), after = tensors.observation, tensors.next_observation[1]
        loss = eager.loss
        for t in range(steps):
            with torch.no_grad():
                _, expected = run_step([loss.actor_network, loss.critic_network], x[t], before[t])
            np.testing.assert_allclose(after[t], expected, atol=1e-5)
            if t > 0:
                torch.testing.assert_close(before[t], after[t - 1].masked_fill(start[t].unsqueeze(-1), 0.0))
        metrics, expected_metrics = learner.step(rollout), eager(tensors)
        assert metrics["grad_norm"] == pytest.approx(float(expected_metrics.grad_norm), rel=1e-4)
        learner.reset()
    for name, parameter in eager.loss.named_parameters():
        np.testing.assert_allclose(learner.parameters[name], parameter.detach(), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.xdist_group("recurrent_train_step")
def test_the_hidden_states_outlast_a_training_step_and_end_with_the_episodes(exported):
    kind, path, _ = exported
    learner = Learner.load(path, seed=0)
    width = 6 if kind == "min_gru" else 2 * KINDS[kind]
    np.testing.assert_array_equal(learner.hidden(N), np.zeros((N, width), np.float32))
    rollout = played(learner, STEPS, seed=0)
    learner.reset()
    learner.act(rollout["observation"][0][0])
    before = learner.hidden(N)
    assert np.abs(before).max() > 0
    learner.step(rollout)
    np.testing.assert_array_equal(learner.hidden(N), before)
    learner.reset(np.array([True, False, False]))
    np.testing.assert_array_equal(learner.hidden(N), before * [[0.0], [1.0], [1.0]])
    with pytest.raises(ValueError, match="num_envs: expected N = 3, as in the last act"):
        learner.hidden(2)


@pytest.mark.slow
@pytest.mark.xdist_group("recurrent_train_step")
def test_a_graph_that_contains_every_step_refuses_another_number_of_steps(exported):
    kind, path, _ = exported
    learner = Learner.load(path)
    rollout = played(learner, STEPS + 1, seed=0)
    if kind == "min_gru":
        learner.step(rollout)
        return
    with pytest.raises(
        ValueError, match=re.escape("rollout['observation.0']: expected float32 [2, N, 4], got shape [3, 3, 4]")
    ):
        learner.step(rollout)
