"""Exported policies return actions in the environment's space, and the action that was drawn beside it."""

import numpy as np
import pytest
import torch
from action_space_cases import DIFFERS, FLOAT16, FLOAT64, HALF_BOUNDED, LENGTH, SERVED, SPACES, env_id, make_loss, outside
from earlier_cases import FIXTURES
from export_cases import EXPORTERS, LOADERS, UNCOMPILED, one_operator_table
from torch import nn

from a2c_compiled import distributions, export
from a2c_compiled.export.on_device import learn_policy, play_policy
from a2c_compiled.export.on_device.runtime import Learner, Policy, PolicyOutput
from a2c_compiled.export.run import export_run, jobs
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.update import TrainStep

__all__ = ["one_operator_table"]


def policies(name):
    loss = make_loss(name)
    networks = loss.actor_network, loss.critic_network, loss.distribution
    greedy = export.GreedyPolicy(networks[0], networks[2], action_space=SPACES[name])
    return loss, greedy, export.SampledPolicy(*networks, action_space=SPACES[name])


@pytest.mark.parametrize("name", SERVED)
def test_policies_return_actions_in_the_space_in_eager_mode_and_torchscript(name):
    loss, greedy, sampled = policies(name)
    observation = 3 * torch.randn(64, 4)
    noise = loss.distribution.noise(loss.actor_network(observation))
    plain = export.SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution)(observation, noise)
    assert plain._fields == ("action", "log_prob", "state_value")
    for policy in (sampled, torch.jit.script(sampled)):
        output = policy(observation, noise)
        for expected, actual in zip(plain, output, strict=False):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        assert output._fields[3:] == (("environment_action",) if name in DIFFERS else ())
        check(name, output.environment_action if name in DIFFERS else output.action)
    for policy in (greedy, torch.jit.script(greedy)):
        check(name, policy(observation).action)
    assert not greedy.state_dict().keys() - nn.ModuleDict({"actor_network": loss.actor_network}).state_dict().keys()


def check(name, action):
    array = torch.as_tensor(action).detach().numpy()
    assert array.dtype == SPACES[name].dtype
    assert all(SPACES[name].contains(row) for row in array)


@pytest.mark.slow
@pytest.mark.parametrize("format", UNCOMPILED)
@pytest.mark.parametrize("name", [HALF_BOUNDED, FLOAT16, FLOAT64, "MultiBinary(3)"])
def test_exported_policies_return_actions_in_the_space(name, format, tmp_path):
    loss, greedy, sampled = policies(name)
    observation = 3 * torch.randn(16, 4)
    inputs = {"observation": observation, "noise": loss.distribution.noise(loss.actor_network(observation))}
    path = EXPORTERS[format](sampled, inputs, tmp_path / f"sampled{format}", ("N",))
    assert export.verify(path).passed, str(export.verify(path))
    outputs = LOADERS[format](path)(inputs)
    assert list(outputs) == ["action", "log_prob", "state_value", "environment_action"]
    check(name, outputs["environment_action"])
    np.testing.assert_allclose(outputs["action"], sampled(**inputs).action, rtol=1e-5, atol=1e-5)
    path = EXPORTERS[format](greedy, {"observation": observation}, tmp_path / f"greedy{format}", ("N",))
    assert export.verify(path).passed, str(export.verify(path))
    check(name, LOADERS[format](path)({"observation": observation})["action"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The exported files of an untrained run in a half-bounded box, and the training step."""
    folder = tmp_path_factory.mktemp("exported")
    step = TrainStep(make_loss(HALF_BOUNDED, entropy_coef=0.01), "sgd", 1e-3)
    graphs = ("policy", "policy_sampled", "train_step")
    for file in export_run(step, env_id(HALF_BOUNDED), folder, jobs(graphs, ("onnx",))):
        assert file.report.passed, str(file.report)
    return folder, step


@pytest.mark.slow
@pytest.mark.xdist_group("action_space_files")
@pytest.mark.parametrize("file", ["policy", "policy_sampled"])
def test_exported_policies_play_in_the_strict_environment(exported, file):
    assert play_policy.play(exported[0] / f"{file}.onnx", env_id(HALF_BOUNDED), 4, 0) == [LENGTH] * 4


@pytest.mark.slow
@pytest.mark.xdist_group("action_space_files")
def test_a_learner_records_the_action_that_was_drawn_and_steps_the_environment_with_the_other(exported):
    folder, step = exported
    learner = Learner.load(folder / "train_step.onnx", "cpu", seed=0)
    rollout, _ = next(learn_policy.rollouts(learner, env_id(HALF_BOUNDED), 4, 10, 0))
    action, observation = (torch.from_numpy(rollout[name]) for name in ("action", "observation"))
    assert outside(SPACES[HALF_BOUNDED], action).any()
    log_prob = step.loss.distribution.log_prob(step.loss.actor_network(observation), action)
    torch.testing.assert_close(torch.from_numpy(rollout["log_prob"]), log_prob)
    assert np.isfinite(learner.step(rollout)["grad_norm"])
    assert learn_policy.greedy_return(learner, env_id(HALF_BOUNDED), 0, 3) == LENGTH
    for greedy in (False, True):
        output = learner.act(3 * observation[0].numpy(), greedy)
        np.testing.assert_array_equal(output.environment_action, output.action.clip(-0.1, None))
        drawn, score, _ = output
        params = learner_params(learner, 3 * observation[0])
        torch.testing.assert_close(torch.from_numpy(score), step.loss.distribution.log_prob(params, torch.from_numpy(drawn)))


def learner_params(learner, observation):
    """The output of the learner's actor network, which has trained."""
    actor = make_loss(HALF_BOUNDED).actor_network
    actor.load_state_dict(
        {name.removeprefix("actor_network."): torch.from_numpy(x) for name, x in learner.parameters.items() if "actor" in name}
    )
    return actor(observation)


def test_files_of_earlier_exports_act_and_have_one_action():
    observation = np.zeros((3, 4), np.float32)
    learner = Learner.load(FIXTURES / "exported" / "train_step.onnx", "cpu", seed=0)
    policy = Policy.load(FIXTURES / "exported" / "policy_sampled.onnx", "cpu", seed=0)
    for output in (learner.act(observation), learner.act(observation, greedy=True), policy.act(observation)):
        assert output.environment_action is output.action
        assert len(output) == 3


def test_an_output_of_the_runtime_that_a_user_makes_has_one_action():
    output = PolicyOutput(np.ones(2), np.zeros(2), np.zeros(2))
    assert output.environment_action is output.action


@pytest.mark.slow
def test_a_recurrent_policy_returns_both_actions_and_its_state_under_any_names(tmp_path):
    networks = [nn.Sequential(Recurrent(MinGRU(4, 3), offset=3 * i), nn.Linear(3, size)) for i, size in enumerate((4, 1))]
    normal, space = distributions.Normal(2), SPACES[HALF_BOUNDED]
    greedy, sampled = (
        export.RecurrentPolicy(networks[0], normal, space),
        export.RecurrentSampledPolicy(*networks, normal, space),
    )
    observation, hidden = 3 * torch.randn(7, 4), torch.randn(7, 6)
    drawn, (action, _) = sampled(observation, hidden, torch.zeros(7, 2)), greedy(observation, hidden)
    assert drawn._fields == ("action", "log_prob", "state_value", "next_hidden", "environment_action")
    torch.testing.assert_close(drawn.environment_action, drawn.action.clamp_min(-0.1), rtol=0, atol=0)
    assert torch.equal(action, export.RecurrentPolicy(networks[0], normal)(observation, hidden).action.clamp_min(-0.1))
    inputs = {"observation": observation, "hidden": hidden, "noise": torch.zeros(7, 2)}
    names = ["drawn", "score", "value", "state", "taken"]
    path = export.export_onnx(sampled, inputs, tmp_path / "policy.onnx", ("N",), output_names=names)
    assert export.verify(path).passed
    policy = Policy.load(path, seed=0)
    first, second = (policy.act(observation.numpy()) for _ in range(2))
    assert not np.array_equal(first.state_value, second.state_value), "the policy remembers"
    for output in (first, second):
        np.testing.assert_array_equal(output.environment_action, output.action.clip(-0.1, None))
