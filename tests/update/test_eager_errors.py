"""Compiled training steps and rollouts raise the errors of eager mode."""

import copy
from functools import partial
from typing import Any, Callable, NamedTuple

import gymnasium
import pytest
import torch
from loss_cases import CHOICES, FEATURES, assert_same, compile_backend, make_loss, make_rollout
from torch import nn

from a2c_compiled import A2CLoss, TrainStep, _torch_internals, distributions, environments, estimators
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.update.compilation import CompiledFunction

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """A call that fails: entries that replace those of the rollout, and options of the loss and of the step."""

    entries: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    step: dict[str, Any] = {}


CASES = {
    "done: expected the shape of reward": Case({"done": torch.zeros(5, 7, dtype=torch.bool)}),
    "done: expected dtype torch.bool": Case({"done": torch.zeros(5, 6)}),
    "mask: expected dtype torch.bool": Case({"mask": torch.ones(5, 6)}),
    "mask: expected the shape of log_prob": Case({"mask": torch.ones(5, 1, dtype=torch.bool)}),
    "action: ": Case({"action": torch.zeros(5, 6, 2)}),
    "reward: expected one entry for each of the 5 leading entries": Case({"reward": torch.zeros(4, 6)}),
    "state_value: expected": Case({"state_value": torch.zeros(5, 3)}, {"clip_value": 0.2}),
    "sample_log_prob: expected a tensor": Case(loss={"value_estimator": "vtrace"}),
    "time_dim: expected a dimension": Case(loss={"value_estimator": estimators.GAE(time_dim=2)}),
    "steps_to_next_obs: expected None with shifted": Case(
        {"steps_to_next_obs": torch.ones(5, 6, dtype=torch.long)}, {"shifted": True}
    ),
    "minibatches: expected a number that divides the 6 environments": Case(step={"minibatches": 4}),
}


def error_of(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the test compares type and message with those of eager mode
        call()
    return raised.value


@pytest.mark.parametrize("message", CASES)
def test_a_compiled_step_raises_the_error_of_eager_mode_and_changes_nothing(message):
    case = CASES[message]
    rollout = make_rollout()._replace(**case.entries)
    step = TrainStep(make_loss(**case.loss), compile=False, **case.step)
    expected = error_of(lambda: step(rollout))
    assert str(expected).startswith(message)
    with compile_backend():
        step = TrainStep(make_loss(**case.loss), **case.step)
        before, random = copy.deepcopy(step.state_dict()), torch.get_rng_state()
        found = error_of(lambda: step(rollout))
        assert (type(found), str(found)) == (type(expected), str(expected))
        assert found.__cause__ is found.__context__ is None
        assert_same(dict(step.state_dict()), dict(before), 0)
        assert torch.equal(torch.get_rng_state(), random)


def test_many_updates_and_epochs_raise_the_error_of_eager_mode_and_the_step_still_works():
    wrong, right = make_rollout()._replace(done=torch.zeros(5, 6)), make_rollout()
    with compile_backend():
        step, eager = (TrainStep(make_loss(), compile=compile) for compile in (True, False))
        stacked = type(wrong)(*(None if entry is None else torch.stack([entry, entry]) for entry in wrong))
        for call in (lambda s: s.many(stacked), lambda s: s.epochs(wrong, 1, 10)):
            found, expected = error_of(partial(call, step)), error_of(partial(call, eager))
            assert (type(found), str(found)) == (TypeError, str(expected))
        # After another shape, sizes are symbols.
        for rollout in (right, make_rollout((4, 3)), make_rollout((7, 2))):
            assert_same(step(rollout), eager(rollout), 1e-5)
        found, expected = (error_of(partial(s, right._replace(done=right.done[:, :3]))) for s in (step, eager))
        assert str(found) == str(expected) == "done: expected the shape of reward, [5, 6], got [5, 3]"


class Remembering(nn.Module):
    """Keeps its last output, the number of its calls and all outputs, and draws random numbers."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.last, self.calls, self.outputs = layer, None, 0, []
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, observation):
        self.last = self.layer(observation)
        self.mean = 0.9 * self.mean + self.last.mean().detach()
        self.calls += 1
        self.outputs.append(self.last)
        return self.last + 0 * torch.rand_like(self.last)


def test_what_a_network_keeps_is_the_same_after_an_error():
    actor = Remembering(nn.Linear(FEATURES, CHOICES))
    loss = A2CLoss(actor, nn.Linear(FEATURES, 1), distributions.Categorical(CHOICES))
    rollout = make_rollout()
    with compile_backend():
        mean, random = actor.mean, torch.get_rng_state()
        error_of(lambda: TrainStep(loss)(rollout._replace(done=rollout.done[:, :3])))
    assert (actor.last, actor.calls, actor.outputs) == (None, 0, [])
    assert actor.mean is mean
    assert torch.equal(torch.get_rng_state(), random)


def test_the_error_of_an_operator_has_one_line_and_no_symbols():
    actor = nn.Sequential(nn.Linear(FEATURES, CHOICES), nn.Unflatten(-1, (CHOICES, 2)))
    loss = A2CLoss(actor, nn.Linear(FEATURES, 1), distributions.Categorical(CHOICES))
    with compile_backend():
        found = error_of(lambda: TrainStep(loss)(make_rollout()))
    assert type(found) is RuntimeError
    assert "unflatten" in str(found)
    assert len(str(found).splitlines()) == 1


def test_observations_of_another_size_are_the_error_of_eager_mode():
    loss = A2CLoss(nn.Linear(FEATURES + 1, CHOICES), nn.Linear(FEATURES, 1), distributions.Categorical(CHOICES))
    with compile_backend():
        found = error_of(lambda: TrainStep(loss)(make_rollout()))
    assert type(found) is ValueError
    expected = f"observation: expected {FEATURES + 1} numbers in the last dimension, as actor_network takes, got shape "
    assert str(found).startswith(expected)
    assert len(str(found).splitlines()) == 1


@pytest.mark.parametrize("kind", ["gymnasium", "torch"])
def test_a_compiled_collector_raises_the_error_of_eager_mode(kind):
    def collect(compile):
        torch.manual_seed(0)
        loss = A2CLoss(nn.Linear(4, 3), nn.Linear(4, 1), distributions.Categorical(2))
        envs = environments.CartPole(2)
        if kind == "gymnasium":
            envs = gymnasium.make_vec(
                "CartPole-v1",
                2,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
            )
        collector = RolloutCollector(envs, loss, 3, seed=0, compile=compile)
        return collector.collect()

    expected = error_of(lambda: collect(False))
    assert isinstance(expected, ValueError)
    with compile_backend():
        found = error_of(lambda: collect(True))
    assert (type(found), str(found)) == (type(expected), str(expected))


def test_the_error_of_torch_compile_stays_if_eager_mode_raises_none():
    def reads_data(x):
        return x + 1 if float(x.sum()) > 0 else x - 1

    def breaks(x):
        torch._dynamo.graph_break()
        return x

    with compile_backend():
        for function in (reads_data, breaks):
            assert isinstance(
                error_of(partial(CompiledFunction(function), torch.ones(3))), torch._dynamo.exc.TorchDynamoException
            )


@pytest.mark.parametrize("missing", ["torch._subclasses.fake_tensor.FakeTensorMode", "torch._dynamo.exc.TorchDynamoException"])
def test_without_a_private_name_the_error_of_torch_compile_stays(missing, monkeypatch):
    lookup = _torch_internals._lookup
    monkeypatch.setattr(_torch_internals, "_lookup", lambda path: None if path == missing else lookup(path))
    _torch_internals.tracing_errors.cache_clear()
    with compile_backend():
        found = error_of(lambda: TrainStep(make_loss())(make_rollout()._replace(done=torch.zeros(5, 6))))
    _torch_internals.tracing_errors.cache_clear()
    assert isinstance(found, torch._dynamo.exc.Unsupported)
