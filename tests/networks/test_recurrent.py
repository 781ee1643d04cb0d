"""Networks with memory: over sequences, in the loss, in the training step, in a policy that acts and one that is exported."""

import copy

import numpy as np
import pytest
import torch
from cases import make_steps
from loss_cases import assert_same, gradients, present
from torch import nn

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, estimators
from a2c_compiled.recurrent import MinGRU, Recurrent, hidden_size, next_hidden

T, N, FEATURES, WIDTH, HIDDEN, CHOICES = 7, 3, 4, 8, 6, 2
CELLS = {"MinGRU": MinGRU, "GRUCell": nn.GRUCell, "LSTMCell": nn.LSTMCell, "RNNCell": nn.RNNCell}
every_cell = pytest.mark.parametrize("cell", CELLS)


def make_networks(cell, shared=True):
    """Actor and critic over one cell, or over one each."""
    torch.manual_seed(0)
    trunk = Recurrent(CELLS[cell](WIDTH, HIDDEN), nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh()))
    other = trunk if shared else Recurrent(CELLS[cell](FEATURES, HIDDEN), offset=trunk.state_size)
    networks = nn.ModuleList([nn.Sequential(trunk, nn.Linear(HIDDEN, CHOICES)), nn.Sequential(other, nn.Linear(HIDDEN, 1))])
    return networks.double()


class Played:
    """Steps as a policy lives through them, its state carried by hand; ``values`` are what the critic says of each and of the next."""

    def __init__(self, networks, steps=T, seed=0):
        actor, critic = networks
        made = make_steps((steps, N), seed=seed)
        self.reward, self.done, self.terminated = made.reward, made.done, made.terminated
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(steps, N, FEATURES, generator=generator).double()
        self.next_x = torch.randn(steps, N, FEATURES, generator=generator).double()
        self.next_x[:-1] = torch.where(self.done[:-1, :, None], self.next_x[:-1], self.x[1:])
        self.action = torch.randint(CHOICES, (steps, N), generator=generator)
        hidden = torch.randn(N, hidden_size(networks), generator=generator).double()
        start = torch.zeros(steps, N, dtype=torch.bool)
        before, after, outputs, values, next_values = [], [], [], [], []
        for t in range(steps):
            before.append(hidden)
            outputs.append(self.answer(actor, self.x[t], hidden))
            values.append(self.answer(critic, self.x[t], hidden))
            hidden = next_hidden(networks, self.x[t], hidden)
            after.append(hidden.detach())
            next_values.append(self.answer(critic, self.next_x[t], hidden))
            start[t] = self.done[t - 1] if t else False
            hidden = torch.where(self.done[t, :, None], 0.0, hidden)
        self.outputs = torch.stack(outputs)
        self.values, self.next_values = torch.stack(values).squeeze(-1), torch.stack(next_values).squeeze(-1)
        self.observation = self.x, torch.stack(before).detach(), start
        self.next_observation = self.next_x, torch.stack(after), torch.ones_like(start)

    @staticmethod
    def answer(network, x, hidden):
        """Of a network to one step: its head on the cell's output."""
        recurrent, head = network
        return head(recurrent.step(x, hidden)[..., :HIDDEN])

    def arguments(self):
        return {
            "observation": self.observation,
            "action": self.action,
            "reward": self.reward,
            "next_observation": self.next_observation,
            "done": self.done,
            "terminated": self.terminated,
        }

    def rollout(self):
        return Rollout(**self.arguments())


def make_loss(networks, **options):
    return A2CLoss(*networks, distributions.Categorical(CHOICES), estimators.GAE(0.9, 0.8), **options)


@every_cell
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
def test_a_sequence_equals_its_steps_one_by_one_with_states_reset(cell, shared):
    networks = make_networks(cell, shared)
    played = Played(networks)
    assert_same({"actor": networks[0](played.observation)}, {"actor": played.outputs}, 1e-12)
    assert_same({"critic": networks[1](played.observation)}, {"critic": played.values.unsqueeze(-1)}, 1e-12)


@every_cell
@pytest.mark.parametrize("options", [{}, {"shifted": True, "shifted_budget": T}], ids=["two_passes_in_one", "shifted"])
def test_the_loss_and_its_gradients_through_time_equal_those_of_single_steps(cell, options):
    networks = make_networks(cell, shared=False)
    loss = make_loss(networks, **options)
    played = Played(networks)
    outputs = loss(**played.arguments())

    values, next_values = played.values, played.next_values.detach()
    estimate = loss.value_estimator(values.detach(), next_values, played.reward, played.done, played.terminated)
    log_prob = loss.distribution.log_prob(played.outputs, played.action)
    entropy = loss.distribution.entropy(played.outputs)
    expected = {
        "loss_objective": -(log_prob * estimate.advantage).mean(),
        "loss_critic": nn.functional.smooth_l1_loss(values, estimate.value_target),
        "entropy": entropy.mean().detach(),
        "loss_entropy": -0.01 * entropy.mean(),
    }
    assert_same(present(outputs), expected, 1e-10)
    assert_same(gradients(outputs, networks), gradients(expected, networks), 1e-10)


def test_an_episode_does_not_influence_the_next_one():
    networks = make_networks("GRUCell")
    played = Played(networks)
    x, hidden, start = played.observation
    start = start.clone()
    start[3] = True
    other = x.clone()
    other[:3] += 1.0
    first, second = (networks[0]((each, hidden, start)) for each in (x, other))
    assert torch.equal(first[3:], second[3:])
    assert not torch.equal(first[:3], second[:3])


@pytest.mark.slow
def test_compiled_training_step_equals_eager():
    networks = make_networks("GRUCell")
    played = Played(networks, steps=3)
    eager, compiled = (
        TrainStep(make_loss(copy.deepcopy(networks), shifted=True), compile=compiles) for compiles in (False, True)
    )
    for _ in range(2):
        metrics, expected = compiled(played.rollout()), eager(played.rollout())
        assert_same(present(metrics), present(expected), 1e-9)
    assert_same(dict(compiled.named_parameters()), dict(eager.named_parameters()), 1e-9)


@pytest.mark.slow
def test_min_gru_compiles_once_for_any_number_of_steps():
    networks = make_networks("MinGRU")
    compiled = torch.compile(networks[0], fullgraph=True, dynamic=True)
    for steps in (5, 9):
        observation = Played(networks, steps).observation
        with torch.compiler.set_stance("default" if steps == 5 else "fail_on_recompile"):
            assert_same({"out": compiled(observation)}, {"out": networks[0](observation)}, 1e-12)


def test_min_gru_is_differentiable_in_its_inputs_and_states():
    cell = MinGRU(3, 2).double()
    start = torch.tensor([[False, True], [True, False], [False, False], [False, True]])
    x, hidden = torch.randn(4, 2, 3).double().requires_grad_(), torch.randn(4, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, hidden: cell.over_time(x, hidden, start), (x, hidden))


@pytest.mark.slow
@every_cell
def test_an_exported_policy_returns_the_actions_and_states_of_the_network(cell, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    networks = make_networks(cell).float()
    policy = export.RecurrentPolicy(networks[0], distributions.Categorical(CHOICES))
    inputs = {"observation": torch.randn(5, FEATURES), "hidden": torch.zeros(5, hidden_size(networks))}
    export.export_onnx(policy, inputs, tmp_path / "policy.onnx", dynamic_axes=("N",))
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    hidden, remembered = torch.zeros(2, hidden_size(networks)), np.zeros((2, hidden_size(networks)), np.float32)
    for _ in range(10):
        x = torch.randn(2, FEATURES)
        action, remembered = session.run(["action", "next_hidden"], {"observation": x.numpy(), "hidden": remembered})
        expected = policy(x, hidden)
        hidden = expected.next_hidden
        assert (action == expected.action.numpy()).all()
        np.testing.assert_allclose(remembered, hidden.detach().numpy(), atol=1e-5)


# -- Environments -----------------------------------------------------------------------------------------------------------


def recall_environments(autoreset="SAME_STEP", num_envs=16):
    """A bit is shown at the first of 4 steps, and asked for at the last: who does not remember it is right half of the time."""
    gymnasium = pytest.importorskip("gymnasium")

    class Recall(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.bit, self.t = int(self.np_random.integers(2)), 0
            return self.seen(), {}

        def seen(self):
            return np.array([2 * self.bit - 1 if self.t == 0 else 0, self.t == 0, self.t == 3], np.float32)

        def step(self, action):
            self.t += 1
            ended = self.t == 4
            return self.seen(), float(ended and action == self.bit), ended, False, {}

    mode = gymnasium.vector.AutoresetMode[autoreset]
    return gymnasium.vector.SyncVectorEnv([Recall] * num_envs, autoreset_mode=mode)


@pytest.mark.parametrize("autoreset", ["SAME_STEP", "NEXT_STEP"])
def test_a_collected_rollout_has_the_states_that_its_networks_recompute(autoreset):
    collector_module = pytest.importorskip("a2c_compiled.rollouts.collector")
    trunk = Recurrent(nn.GRUCell(3, HIDDEN))
    loss = make_loss((nn.Sequential(trunk, nn.Linear(HIDDEN, 2)), nn.Sequential(trunk, nn.Linear(HIDDEN, 1))))
    collector = collector_module.RolloutCollector(recall_environments(autoreset, 3), loss, 9, seed=0)
    collector.collect()
    rollout = collector.collect()
    x, hidden, start = rollout.observation
    mask = torch.ones_like(start) if rollout.mask is None else rollout.mask
    with torch.no_grad():
        for t in range(9):
            after = next_hidden(loss, x[t], hidden[t])
            torch.testing.assert_close(rollout.next_observation[1][t], after)
            if t + 1 < 9:
                torch.testing.assert_close(hidden[t + 1], torch.where(start[t + 1, :, None], 0.0, after))
    # An episode shows its bit at its first step.
    assert (start[1:] & mask[1:]).sum() > 0
    assert ((x[..., 1] == 1)[mask] <= start[mask] | (torch.arange(9) == 0).unsqueeze(-1).expand_as(start)[mask]).all()
    assert (hidden[start] == 0).all()


def test_a_recurrent_policy_learns_a_task_that_needs_memory():
    collector_module = pytest.importorskip("a2c_compiled.rollouts.collector")
    torch.manual_seed(0)
    trunk = Recurrent(MinGRU(16, 16), nn.Sequential(nn.Linear(3, 16), nn.Tanh()))
    networks = nn.Sequential(trunk, nn.Linear(16, 2)), nn.Sequential(trunk, nn.Linear(16, 1))
    loss = A2CLoss(*networks, distributions.Categorical(2), estimators.GAE(1.0, 0.95), shifted=True)
    step = TrainStep(loss, "adam", lr=1e-2, compile=False)
    collector = collector_module.RolloutCollector(recall_environments(), loss, 8, seed=0)
    returns = []
    for _ in range(100):
        step(collector.collect())
        returns += collector.returns
    assert np.mean(returns[:100]) < 0.7
    assert np.mean(returns[-100:]) > 0.95


# -- Errors -----------------------------------------------------------------------------------------------------------------


def test_wrong_cells_and_observations_are_refused_by_name():
    with pytest.raises(TypeError, match="cell: expected a MinGRU, GRUCell, RNNCell or LSTMCell, got GRU"):
        Recurrent(nn.GRU(3, 2))
    recurrent = Recurrent(nn.GRUCell(3, 2))
    x, hidden, start = torch.zeros(4, 2, 3), torch.zeros(4, 2, 2), torch.zeros(4, 2, dtype=torch.bool)
    with pytest.raises(
        TypeError, match=r"observation: expected a tuple of x, hidden and start, got a tensor of .*export\.RecurrentPolicy"
    ):
        recurrent(x)
    with pytest.raises(TypeError, match=r"start: expected dtype torch\.bool, got torch\.float32"):
        recurrent((x, hidden, start.float()))
    with pytest.raises(ValueError, match="observation: expected x, hidden and start with the same leading"):
        recurrent((x, hidden[:3], start))
    with pytest.raises(ValueError, match="offset: expected 2, the end of the previous layer's state, got 3"):
        hidden_size(nn.ModuleList([recurrent, Recurrent(nn.GRUCell(3, 2), offset=3)]))


def test_overlapping_offsets_and_narrow_states_are_refused():
    twice = nn.ModuleList([Recurrent(nn.GRUCell(3, 2)), Recurrent(nn.GRUCell(3, 2))])
    with pytest.raises(ValueError, match="offset: expected 2, the end of the previous layer's state, got 0"):
        hidden_size(twice)
    x, start = torch.zeros(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="hidden: expected a last dimension of at least 4, got 2"):
        Recurrent(nn.LSTMCell(3, 2))((x, torch.zeros(4, 2, 2), start))


def test_chunks_are_refused_for_a_recurrent_critic():
    with pytest.raises(ValueError, match="value_chunk_size, num_chunks: expected None for a critic with memory"):
        make_loss(make_networks("GRUCell"), num_chunks=2)


@every_cell
def test_an_empty_sequence_gives_empty_outputs(cell):
    networks = make_networks(cell)
    empty = tuple(part[:0] for part in Played(networks).observation)
    assert networks[0](empty).shape == (0, N, CHOICES)


def test_a_target_critic_does_not_change_the_recorded_states():
    collector_module = pytest.importorskip("a2c_compiled.rollouts.collector")
    trunk = Recurrent(nn.GRUCell(3, HIDDEN))
    networks = nn.Sequential(trunk, nn.Linear(HIDDEN, 2)), nn.Sequential(trunk, nn.Linear(HIDDEN, 1))
    target = copy.deepcopy(networks[1])
    with torch.no_grad():
        target[0].cell.weight_ih.add_(1.0)
    loss = make_loss(networks, target_critic_network=target)
    rollout = collector_module.RolloutCollector(recall_environments(num_envs=2), loss, 3, seed=0).collect()
    x, hidden, _ = rollout.observation
    torch.testing.assert_close(rollout.next_observation[1][0], trunk.step(x[0], hidden[0]))
