"""Networks with several recurrent layers: each layer's state advances on what the layer below it gives."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from loss_cases import assert_same, gradients, present
from memory_cases import CHOICES, FEATURES, KINDS, Stacked, make_actor_and_critic, make_memory_loss, plain_run
from torch import nn

from a2c_compiled.recurrent import MinGRU, Recurrent, hidden_size, next_hidden, run_step

T, N = 6, 3
every_kind = pytest.mark.parametrize("kind", KINDS)
shared_or_apart = pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])


def make_sequence(networks, seed=1, steps=T):
    """Observations, the state before the first step, and the first steps of episodes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, N, FEATURES, generator=generator).double()
    hidden = torch.randn(N, hidden_size(networks), generator=generator).double()
    start = torch.rand(steps, N, generator=generator) < 0.3
    return x, hidden, start


@every_kind
@shared_or_apart
def test_one_step_gives_the_outputs_and_states_of_a_plain_loop(kind, shared):
    networks = make_actor_and_critic(kind, shared).double()
    x, first, start = make_sequence(networks)
    outputs, before, after = plain_run(networks, x, first, start)
    for t in range(T):
        step = run_step(list(networks), x[t], before[t])
        assert_same(
            {"actor": step.outputs[0], "critic": step.outputs[1]}, {"actor": outputs[0][t], "critic": outputs[1][t]}, 1e-12
        )
        for module in (networks, make_memory_loss(networks)):
            assert_same({"hidden": next_hidden(module, x[t], before[t])}, {"hidden": after[t]}, 1e-12)


@every_kind
def test_a_network_advances_its_own_states_and_keeps_those_of_others(kind):
    networks = make_actor_and_critic(kind).double()
    x, hidden, start = make_sequence(networks)
    after = plain_run(networks, x, hidden, start)[2][0]
    own = KINDS[kind]
    step = next_hidden(networks[0], x[0], hidden)
    assert_same({"own": step[:, :own], "others": step[:, own:]}, {"own": after[:, :own], "others": hidden[:, own:]}, 1e-12)
    step = next_hidden(networks[1], x[0], hidden)
    assert_same({"own": step[:, own:], "others": step[:, :own]}, {"own": after[:, own:], "others": hidden[:, :own]}, 1e-12)


@every_kind
@pytest.mark.parametrize("options", [{}, {"shifted": True, "shifted_budget": T}], ids=["two_passes", "shifted"])
def test_the_loss_and_its_gradients_through_time_equal_those_of_a_plain_loop(kind, options):
    networks = make_actor_and_critic(kind).double()
    loss = make_memory_loss(networks, **options)
    x, first, start = make_sequence(networks)
    generator = torch.Generator().manual_seed(2)
    done = start.roll(-1, 0)
    reward, action = torch.randn(T, N, generator=generator).double(), torch.randint(CHOICES, (T, N), generator=generator)
    last_x = torch.randn(T, N, FEATURES, generator=generator).double()
    next_x = torch.where(done[:-1, :, None], last_x[:-1], x[1:])
    next_x = torch.cat([next_x, last_x[-1:]])

    # The oracle of the gradients: the same loop over the networks themselves.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memory_cases.copy.deepcopy", lambda modules: modules)
        (params, values), before, after = plain_run(networks, x, first, start)
        next_values = [plain_run(networks, next_x[t : t + 1], after[t], start[:1])[0][1][0] for t in range(T)]
    values, next_values = values.squeeze(-1), torch.stack(next_values).squeeze(-1).detach()
    estimate = loss.value_estimator(values.detach(), next_values, reward, done, done)
    entropy = loss.distribution.entropy(params)
    expected = {
        "loss_objective": -(loss.distribution.log_prob(params, action) * estimate.advantage).mean(),
        "loss_critic": nn.functional.smooth_l1_loss(values, estimate.value_target),
        "entropy": entropy.mean().detach(),
        "loss_entropy": -0.01 * entropy.mean(),
    }
    observation = x, before.detach(), start
    next_observation = next_x, after.detach(), torch.ones_like(start)
    outputs = loss(observation, action, reward, next_observation, done, done)
    assert_same(present(outputs), expected, 1e-10)
    assert_same(gradients(outputs, networks), gradients(expected, networks), 1e-10)


# Rollouts and evaluation


def assert_recorded(networks, rollout):
    """The states of a rollout are those of a plain loop over its observations."""
    x, hidden, start = rollout.observation
    _, before, after = plain_run(networks, x, hidden[0], start)
    torch.testing.assert_close(hidden.double(), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rollout.next_observation[1].double(), after, rtol=1e-5, atol=1e-5)
    assert (hidden[start] == 0).all()
    assert start.any()
    assert rollout.next_observation[2].all()


def collector(networks, kind_of_environments, compile=False):
    pytest.importorskip("gymnasium")
    from a2c_compiled.environments import CartPole, make_vector
    from a2c_compiled.rollouts import RolloutCollector

    envs = CartPole(N) if kind_of_environments == "torch" else make_vector("CartPole-v1", N)
    return RolloutCollector(envs, make_memory_loss(networks), 30, seed=0, compile=compile)


@every_kind
@shared_or_apart
@pytest.mark.parametrize("environments", ["torch", "gymnasium"])
def test_a_rollout_records_the_states_of_a_plain_loop(kind, shared, environments):
    networks = make_actor_and_critic(kind, shared)
    collecting = collector(networks, environments)
    rollouts = [collecting.collect() for _ in range(2)]
    for rollout in rollouts:
        assert_recorded(networks, rollout)
    is_last = rollouts[0].done[-1] if rollouts[0].mask is None else rollouts[0].done[-1] | ~rollouts[0].mask[-1]
    following = torch.where(is_last.unsqueeze(-1), 0.0, rollouts[0].next_observation[1][-1])
    assert torch.equal(rollouts[1].observation[1][0], following)
    assert torch.equal(rollouts[1].observation[2][0], is_last)


@pytest.mark.slow
@pytest.mark.parametrize("environments", ["torch", "gymnasium"])
def test_a_compiled_rollout_records_the_states_of_a_plain_loop(environments):
    networks = make_actor_and_critic("two_cells", shared=True)
    collecting = collector(networks, environments, compile=True)
    for _ in range(2):
        assert_recorded(networks, collecting.collect())


def test_states_have_the_dtype_of_the_cells():
    networks = make_actor_and_critic("two_cells").double()
    collecting = collector(networks, "torch")
    assert collecting.state_dict()["memory.hidden"].dtype == torch.float64


@every_kind
@shared_or_apart
def test_an_evaluated_policy_takes_the_actions_of_a_plain_loop(kind, shared):
    pytest.importorskip("gymnasium")
    from a2c_compiled.training.evaluation import greedy_policy

    networks = make_actor_and_critic(kind, shared)
    x = 3 * torch.randn(20, N, FEATURES)
    hidden = torch.zeros(N, hidden_size(networks))
    expected, forgetful = (
        plain_run(networks, x, hidden, torch.full((20, N), forgets))[0][0].argmax(-1) for forgets in (False, True)
    )
    assert (expected != forgetful).any(), "a policy without memory would pass this test"
    policy = greedy_policy(make_memory_loss(networks))
    assert [policy(step.numpy()).tolist() for step in x] == expected.tolist()


# Compiled and exported


@pytest.mark.slow
def test_a_compiled_step_equals_a_plain_loop_for_any_number_of_environments_and_in_every_thread():
    networks = make_actor_and_critic("mixture").double()
    compiled = torch.compile(run_step, fullgraph=True, dynamic=True, backend="aot_eager")
    x, first, start = make_sequence(networks)
    (actor, critic), _, after = plain_run(networks, x, first, start)
    with ThreadPoolExecutor(1) as pool:
        steps = {
            N: compiled(list(networks), x[0], first),
            2: pool.submit(compiled, list(networks), x[0, :2], first[:2]).result(),
        }
    for envs, step in steps.items():
        expected = {"actor": actor[0, :envs], "critic": critic[0, :envs], "hidden": after[0, :envs]}
        assert_same({"actor": step.outputs[0], "critic": step.outputs[1], "hidden": step.hidden}, expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".pt2"])
@pytest.mark.parametrize(("kind", "shared"), [("two_cells", True), ("mixture", False)])
def test_exported_policies_carry_the_states_of_a_plain_loop(kind, shared, ending, tmp_path):
    pytest.importorskip("onnxruntime")
    from export_cases import LOADERS

    from a2c_compiled import export

    export_to = {".onnx": export.export_onnx, ".pt": export.export_torchscript, ".pt2": export.export_pt2}[ending]
    networks = make_actor_and_critic(kind, shared)
    loss = make_memory_loss(networks)
    x, _, start = make_sequence(networks)
    x, noise = x.float(), torch.zeros(T, N, CHOICES)
    policies = {
        "greedy": (export.RecurrentPolicy(networks[0], loss.distribution), KINDS[kind]),
        "sampled": (export.RecurrentSampledPolicy(*networks, loss.distribution), KINDS[kind] if shared else 2 * KINDS[kind]),
    }
    for name, (policy, width) in policies.items():
        hidden = torch.zeros(N, width)
        parts = networks[:1] if name == "greedy" else networks
        outputs, _, after = plain_run(parts, x, hidden, torch.zeros_like(start))
        extra = {"noise": noise[0]} if name == "sampled" else {}
        inputs = {"observation": x[0], "hidden": hidden, **extra}
        path = export_to(policy, inputs, tmp_path / f"{name}{ending}", dynamic_axes=("N",))
        assert export.verify(path).passed
        run = LOADERS[ending](path)
        for t in range(T):
            got = run({**inputs, "observation": x[t], "hidden": hidden})
            hidden = got["next_hidden"]
            torch.testing.assert_close(hidden.double(), after[t], rtol=1e-5, atol=1e-5)
            assert torch.equal(got["action"], outputs[0][t].argmax(-1))  # noise of 0 selects the mode
            if name == "sampled":
                value = outputs[1][t].squeeze(-1)
                torch.testing.assert_close(got["state_value"].double(), value, rtol=1e-5, atol=1e-5)


def test_one_step_of_min_gru_has_no_scan(tmp_path):
    onnx = pytest.importorskip("onnx")
    from a2c_compiled import distributions, export

    policy = export.RecurrentPolicy(Stacked(Recurrent(MinGRU(FEATURES, 3)), nn.Linear(3, 2)), distributions.Categorical(2))
    path = export.export_onnx(policy, (torch.randn(2, FEATURES), torch.randn(2, 3)), tmp_path / "policy.onnx", ("N",))
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "Sigmoid" in operators
    assert not operators & {"Scan", "Loop", "If"}


# Errors and threads


def test_a_layer_that_runs_twice_in_a_step_is_refused():
    layer = Recurrent(nn.GRUCell(FEATURES, FEATURES), offset=2)
    x, hidden = torch.zeros(N, FEATURES), torch.zeros(N, 6)
    with pytest.raises(
        ValueError, match="network: expected one call of each Recurrent layer in a step, got two of the layer with offset 2"
    ):
        next_hidden(Stacked(layer, nn.Tanh(), layer), x, hidden)


def test_layers_with_overlapping_states_are_refused():
    layers = [Recurrent(nn.GRUCell(FEATURES, FEATURES), offset=offset) for offset in (0, 3)]
    with pytest.raises(ValueError, match="offset: expected at least 4, the end of the previous layer's state, got 3"):
        next_hidden(Stacked(*layers), torch.zeros(N, FEATURES), torch.zeros(N, 7))


def test_a_step_that_fails_and_steps_of_other_threads_change_no_other_run():
    networks = make_actor_and_critic("mixture").double()
    x, first, start = make_sequence(networks)
    outputs, before, after = plain_run(networks, x, first, start)
    inside, ran = threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, x):
            inside.set()
            assert ran.wait(30)
            return x

    waiting = Stacked(*networks[0].layers, Waiting())
    results = []
    thread = threading.Thread(target=lambda: results.append(next_hidden(waiting, x[0], first)))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(ValueError, match="hidden: expected a last dimension of at least"):
        next_hidden(networks[0], x[0], first[:, :2])
    sequence = networks[0]((x, before, start))
    ran.set()
    thread.join()
    assert_same({"sequence": sequence}, {"sequence": outputs[0]}, 1e-12)
    own = KINDS["mixture"]
    assert_same({"step": results[0][:, :own]}, {"step": after[0][:, :own]}, 1e-12)
