"""The trunk that actor and critic share is computed once, and losses and gradients are those of two networks that run one by one."""

import copy

import onnx
import pytest
import torch
from loss_cases import CHOICES, FEATURES, GIVEN, INSIDE, MASKED, make_loss_steps, make_rollout, of
from torch import nn

from a2c_compiled import A2CLoss, ActorCritic, TrainStep, distributions, export
from a2c_compiled.export.graphs.policies import SampledPolicy
from a2c_compiled.losses import PopArt
from a2c_compiled.recurrent import MinGRU, Recurrent, initial_hidden, run_step
from a2c_compiled.rollouts.acting import act

DISTRIBUTION = distributions.Categorical(CHOICES)


class Counted(nn.Module):
    """Counts the calls of a module. TorchScript and exporters do not see the counter, because they do not run this class."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, observation):
        self.calls += 1
        return self.module(observation)


class Apart(nn.Module):
    """Runs a network as one module, so that the loss does not find the layers that it shares with another one."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, observation):
        return self.network(observation)


def make_network(trunk=None, dtype=torch.float64, critic_head=None):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()) if trunk is None else trunk
    critic_head = nn.Linear(8, 1) if critic_head is None else critic_head
    return ActorCritic(trunk, nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CHOICES)), critic_head).to(dtype)


def counted_network():
    return make_network(Counted(nn.Linear(FEATURES, 8)), torch.float32)


def losses_of(network, **options):
    """Returns the loss of ``network``, and a loss that runs copies of its two networks one by one."""
    both = copy.deepcopy(network)
    apart = Apart(both.actor_network), Apart(both.critic_network)
    extra = {"value_norm": both.critic_head} if "value_norm" in options else {}
    return A2CLoss(network, distribution=DISTRIBUTION, **options), A2CLoss(*apart, DISTRIBUTION, **{**options, **extra})


def results(loss, arguments):
    """Returns the losses, and the gradients of their sum in the order of the parameters."""
    losses = loss(**arguments)
    total = losses.loss_objective + losses.loss_critic + losses.loss_entropy
    trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    return losses, torch.autograd.grad(total, trained)


def assert_close_updates(step, other, rollout, updates=2):
    for _ in range(updates):
        torch.testing.assert_close(step(rollout).grad_norm, other(rollout).grad_norm)
    for one, expected in zip(step.loss.parameters(), other.loss.parameters(), strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, INSIDE),
        ({"clip_value": 0.2, "value_estimator": "vtrace"}, MASKED),
        ({"separate_losses": True}, INSIDE),
        ({"separate_losses": True, "clip_value": 0.2}, GIVEN),
        ({"value_chunk_size": 2}, INSIDE),
        ({"num_chunks": 3}, GIVEN),
        ({"target_critic_network": make_network().critic_network}, INSIDE),
        ({"shifted": True, "shifted_budget": 4}, INSIDE),
        ({"shifted": True, "separate_losses": True}, MASKED),
        ({"value_norm": PopArt(nn.Linear(8, 1))}, INSIDE),
    ],
    ids=lambda value: "-".join(value),
)
def test_losses_are_equal_to_the_bit_and_gradients_to_rounding(options, names):
    loss, apart = losses_of(make_network(critic_head=options.get("value_norm")), **options)
    arguments = of(make_loss_steps(dtype=torch.float64), *names)
    (losses, gradients), (expected, expected_gradients) = results(loss, arguments), results(apart, arguments)
    assert all(torch.equal(one, other) for one, other in zip(losses, expected, strict=True) if other is not None)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_networks_and_names_are_those_of_two_sequences():
    network = make_network()
    loss = A2CLoss(network, distribution=DISTRIBUTION)
    pair = A2CLoss(
        nn.Sequential(network.trunk, network.actor_head), nn.Sequential(network.trunk, network.critic_head), DISTRIBUTION
    )
    assert type(loss.actor_network) is type(loss.critic_network) is nn.Sequential
    assert loss.actor_network[0] is loss.critic_network[0] is network.trunk
    assert list(loss.state_dict()) == list(pair.state_dict())
    observation = torch.randn(5, FEATURES, dtype=torch.float64)
    params, value = network(observation)
    assert torch.equal(params, loss.actor_network(observation))
    assert torch.equal(value, loss.critic_network(observation))


def test_the_trunk_runs_once_for_the_observations_and_once_for_the_next_ones():
    network = counted_network()
    trunk, steps = network.trunk, make_loss_steps()
    plain = nn.Sequential(trunk, *network.actor_head), nn.Sequential(trunk, network.critic_head), DISTRIBUTION
    target = make_network(dtype=torch.float32).critic_network
    for loss, names, calls in (
        (A2CLoss(network, distribution=DISTRIBUTION), INSIDE, 2),
        (A2CLoss(network, distribution=DISTRIBUTION), GIVEN, 1),
        (A2CLoss(network, distribution=DISTRIBUTION, shifted=True), INSIDE, 2),
        (A2CLoss(network, distribution=DISTRIBUTION, target_critic_network=target), INSIDE, 1),
        (A2CLoss(*plain), INSIDE, 2),
        (copy.deepcopy(A2CLoss(*plain)), INSIDE, 2),
    ):
        counter = loss.actor_network[0]
        counter.calls = 0
        loss(**of(steps, *names))
        assert counter.calls == calls


def test_the_trunk_runs_once_for_an_action_and_its_value():
    network = counted_network()
    loss = A2CLoss(network, distribution=DISTRIBUTION, clip_value=0.2)
    output = act(loss, torch.randn(7, FEATURES))
    assert network.trunk.calls == 1
    assert output.state_value.shape == (7,)
    SampledPolicy(loss.actor_network, loss.critic_network, DISTRIBUTION)(torch.randn(7, FEATURES), torch.rand(7, 1))
    assert network.trunk.calls == 2


def test_a_recurrent_trunk_runs_once_for_a_step_and_reports_its_state():
    trunk = Counted(Recurrent(MinGRU(FEATURES, 8)))
    network = make_network(trunk, torch.float32)
    networks = [network.actor_network, network.critic_network]
    x, hidden = torch.randn(3, FEATURES), torch.randn(3, 8)
    assert initial_hidden(nn.ModuleList(networks), 3).shape == hidden.shape
    one, expected = run_step(networks, x, hidden), run_step([Apart(part) for part in networks], x, hidden)
    assert trunk.calls == 1 + 2
    assert torch.equal(one.hidden, expected.hidden)
    assert all(map(torch.equal, one.outputs, expected.outputs))

    class Sequence(nn.Module):
        """Makes features the observation of a further cell."""

        def forward(self, features):
            return features, hidden.unsqueeze(0), torch.ones(1, 3, dtype=torch.bool)

    lower, upper = Recurrent(MinGRU(FEATURES, 8)), Recurrent(MinGRU(8, 8))
    again = ActorCritic(
        nn.Sequential(lower, Sequence(), upper), nn.Linear(8, 2), nn.Sequential(Sequence(), upper, nn.Linear(8, 1))
    )
    with pytest.raises(ValueError, match="expected one call of each Recurrent layer in a step, got two"):
        run_step([again.actor_network, again.critic_network], x, hidden)


def test_a_trunk_is_shared_only_where_both_networks_are_sequences_without_hooks():
    def calls(change, make=lambda network: (nn.Sequential(network.trunk, network.actor_head), network.critic_network)):
        network = counted_network()
        loss = A2CLoss(*make(network), DISTRIBUTION)
        change(loss)
        loss(**of(make_loss_steps(), *GIVEN))
        return network.trunk.calls

    def hook(*_):
        return None

    assert calls(lambda loss: None) == 1
    assert calls(lambda loss: loss.actor_network[0].register_forward_hook(hook)) == 2
    assert calls(lambda loss: loss.critic_network.register_forward_pre_hook(hook)) == 2
    assert calls(lambda loss: None, lambda network: (network.actor_network, Apart(network.critic_network))) == 2
    assert calls(lambda loss: None, lambda network: (network, None)) == 1
    # An ActorCritic declares its trunk, so that the trunk's own hooks run once.
    assert calls(lambda loss: loss.actor_network[0].register_forward_hook(hook), lambda network: (network, None)) == 1
    assert calls(lambda loss: loss.actor_network.register_forward_hook(hook), lambda network: (network, None)) == 2
    assert calls(lambda loss: setattr(loss, "critic_network", nn.Linear(FEATURES, 1))) == 1


def test_separate_losses_detach_parameters_that_the_heads_share_too():
    shared = nn.Linear(8, 8)
    trunk = nn.Linear(FEATURES, 8)
    heads = nn.Sequential(shared, nn.Linear(8, CHOICES)), nn.Sequential(shared, nn.Linear(8, 1))
    loss = A2CLoss(ActorCritic(trunk, *heads), distribution=DISTRIBUTION, separate_losses=True)
    critic_loss = loss(**of(make_loss_steps(), *GIVEN)).loss_critic
    gradients = torch.autograd.grad(critic_loss, [trunk.weight, shared.weight, heads[1][1].weight], allow_unused=True)
    assert [gradient is None for gradient in gradients] == [True, True, False]


def test_wrong_parts_and_a_second_critic_are_refused_by_name():
    network = make_network()
    with pytest.raises(ValueError, match=r"critic_network: expected None with an ActorCritic.*got Categorical"):
        A2CLoss(network, DISTRIBUTION)
    with pytest.raises(TypeError, match="actor_head: expected a module, got"):
        ActorCritic(network.trunk, 3, network.critic_head)


@pytest.mark.parametrize("options", [{}, {"separate_losses": True, "minibatches": 2}], ids=["plain", "separate-minibatches"])
def test_training_steps_equal_those_of_networks_that_run_one_by_one(options):
    minibatches = options.pop("minibatches", 1)
    loss, apart = losses_of(make_network(), **options)
    steps = (TrainStep(one, compile=False, minibatches=minibatches) for one in (loss, apart))
    assert_close_updates(*steps, make_rollout(dtype=torch.float64))


@pytest.mark.slow
def test_a_compiled_loss_equals_eager_at_every_size():
    loss = losses_of(make_network(), clip_value=0.2)[0]
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((4, 5), (3, 2)):
        arguments = of(make_loss_steps(shape, dtype=torch.float64), *INSIDE)
        for one, expected in zip(compiled(**arguments), loss(**arguments), strict=True):
            torch.testing.assert_close(one, expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"separate_losses": True}, {"shifted": True}], ids=lambda value: "-".join(value))
def test_a_scripted_loss_equals_eager_with_the_same_names(options):
    loss = losses_of(make_network(), **options)[0]
    scripted = torch.jit.script(loss)
    assert list(scripted.state_dict()) == [name for name in loss.state_dict() if name in scripted.state_dict()]
    assert not any("trunk" in name for name in scripted.state_dict())
    arguments = of(make_loss_steps(dtype=torch.float64), *INSIDE)
    (losses, gradients), (expected, expected_gradients) = results(scripted, arguments), results(loss, arguments)
    torch.testing.assert_close([part for part in losses if part is not None], [part for part in expected if part is not None])
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "trunks"), [("loss", 2), ("policy", 1), ("step", 2)])
def test_an_exported_graph_holds_the_trunk_once_for_each_observation(graph, trunks, tmp_path):
    loss = A2CLoss(make_network(dtype=torch.float32), distribution=DISTRIBUTION)
    rollout, path = make_rollout(), tmp_path / "graph.onnx"
    if graph == "step":
        export.export_train_step(TrainStep(loss, compile=False), rollout, path)
    elif graph == "loss":
        arguments = {name: entry for name, entry in rollout._asdict().items() if entry is not None}
        export.export_onnx(loss, arguments, path, dynamic_axes=("T", "N"))
    else:
        observation = torch.randn(7, FEATURES)
        inputs = {"observation": observation, "noise": DISTRIBUTION.noise(loss.actor_network(observation))}
        export.export_onnx(
            SampledPolicy(loss.actor_network, loss.critic_network, DISTRIBUTION), inputs, path, dynamic_axes=("N",)
        )
    assert export.verify(path).passed
    assert sum(node.op_type == "Tanh" for node in onnx.load(path).graph.node) == trunks


@pytest.mark.slow
def test_a_scripted_policy_runs_the_trunk_once():
    loss = A2CLoss(make_network(dtype=torch.float32), distribution=DISTRIBUTION)
    policy, observation = SampledPolicy(loss.actor_network, loss.critic_network, DISTRIBUTION), torch.randn(7, FEATURES)
    noise = DISTRIBUTION.noise(loss.actor_network(observation))
    scripted = torch.jit.script(policy)
    torch.testing.assert_close(tuple(scripted(observation, noise)), tuple(policy(observation, noise)))
    graph = torch.jit.freeze(scripted.eval()).inlined_graph
    assert sum(node.kind() == "aten::tanh" for node in graph.findAllNodes("aten::tanh")) == 1
