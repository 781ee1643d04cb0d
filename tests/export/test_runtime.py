"""The runtime without torch: exported policies that act, an exported training step that learns, and the scripts that use them."""

import copy
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from on_device_files import OnDeviceFiles, as_tensors
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export
from a2c_compiled.demo.bare_environment import make_bare_environment
from a2c_compiled.export.on_device import learn_policy, play_policy, runtime
from a2c_compiled.export.on_device.runtime import Learner, Policy
from a2c_compiled.training import TrainConfig
from a2c_compiled.training.construction import make_loss
from a2c_compiled.update import TrainStep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("runtime")]

FEATURES, CHOICES, DIM, SAMPLES = 4, 2, 3, 2
NAN = float("nan")


# Exported files


@dataclass(frozen=True)
class Exported(OnDeviceFiles):
    """Exported files, and the training step that was exported."""

    step: TrainStep

    @property
    def actor(self):
        return self.step.loss.actor_network

    @property
    def distribution(self):
        return self.step.loss.distribution


def make_rollout(vectors=False, steps=6, envs=5, seed=0):
    """Random steps as arrays, time first."""
    generator = np.random.default_rng(seed)
    observation, next_observation = generator.standard_normal((2, steps, envs, FEATURES), dtype=np.float32)
    done = generator.random((steps, envs)) < 0.2
    action = (
        np.tanh(generator.standard_normal((steps, envs, DIM))) if vectors else generator.integers(CHOICES, size=(steps, envs))
    )
    return {
        "observation": observation,
        "action": action.astype(np.float32) if vectors else action,
        "reward": generator.standard_normal((steps, envs), dtype=np.float32),
        "next_observation": next_observation,
        "done": done,
        "terminated": done & (generator.random((steps, envs)) < 0.5),
    }


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """A training step for CartPole's spaces with RMSprop, its policies, and the scripts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("choices")
    step = TrainStep(make_loss(TrainConfig(hidden=(8,), device="cpu")), "rmsprop", 5e-3, 0.5, compile=False)
    with torch.no_grad():
        for parameter in step.loss.parameters():  # as after training: new biases are 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    exported = Exported(folder, step)
    exported.write(step, as_tensors(make_rollout()))
    for script in (runtime, learn_policy, play_policy):
        shutil.copy(script.__file__, folder)
    return exported


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A training step with Adam whose actions are vectors and whose entropy is estimated from samples."""
    torch.manual_seed(0)
    distribution = distributions.TanhNormal(DIM)
    actor, critic = nn.Linear(FEATURES, distribution.num_params), nn.Linear(FEATURES, 1)
    loss = A2CLoss(actor, critic, distribution, estimators.GAE(), entropy_coef=0.1, samples_mc_entropy=SAMPLES)
    exported = Exported(tmp_path_factory.mktemp("vectors"), TrainStep(loss, "adam", 1e-2, 0.5, compile=False))
    export.export_train_step(exported.step, as_tensors(make_rollout(vectors=True)), exported.graph)
    return exported


@pytest.fixture(params=["choices", "vectors"])
def exported(request):
    return request.getfixturevalue(request.param)


def rollout_for(exported, **options):
    return make_rollout(isinstance(exported.distribution, distributions.TanhNormal), **options)


def observations(envs=5, seed=0):
    return np.random.default_rng(seed).standard_normal((envs, FEATURES), dtype=np.float32)


def eager_update(step, rollout, noise=None):
    """The metrics of an update in torch, which uses ``noise`` instead of drawing it."""
    if noise is not None:
        step.loss.distribution.noise = lambda params: torch.from_numpy(noise)
    metrics = step(as_tensors(rollout))
    return {name: float(value) for name, value in metrics._asdict().items() if value is not None}


def assert_same_parameters(one, other):
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_acts_alike(one, other):
    for mine, its in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, its)


# Learning


@pytest.mark.parametrize(
    "provider",
    ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])],
)
def test_updates_equal_those_of_eager_mode(exported, provider):
    learner, eager = Learner.load(exported.graph, provider), copy.deepcopy(exported.step)
    for update in range(20):
        rollout = rollout_for(exported, steps=1 + update % 7, envs=1 + update % 5, seed=update)
        noise = None
        if "noise" in learner._graph.inputs:
            noise = np.random.default_rng(update).standard_normal((SAMPLES, *rollout["reward"].shape, DIM), dtype=np.float32)
        metrics = learner.step(rollout if noise is None else {**rollout, "noise": noise})
        assert metrics == pytest.approx(eager_update(eager, rollout, noise), rel=1e-5, abs=1e-5)
    expected = dict(eager.loss.named_parameters())
    assert list(learner.parameters) == list(expected)
    for name, parameter in learner.parameters.items():
        np.testing.assert_allclose(parameter, expected[name].detach(), rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_learner_acts_as_eager_mode_does(exported):
    learner, rollout = Learner.load(exported.graph), rollout_for(exported)
    learner.step(rollout)
    eager = copy.deepcopy(exported.step)
    eager.loss.load_state_dict({name: torch.from_numpy(x) for name, x in learner.parameters.items()}, strict=False)
    observation = torch.from_numpy(observations())
    with torch.no_grad():
        params = eager.loss.actor_network(observation)
        noise = eager.loss.distribution.noise(params)
        action = eager.loss.distribution.sample(params, noise)
        log_prob = eager.loss.distribution.log_prob(params, action)
        value, greedy = eager.loss.critic_network(observation).squeeze(-1), eager.loss.distribution.mode(params)
        greedy_log_prob = eager.loss.distribution.log_prob(params, greedy)
    for expected, output in (
        ((action, log_prob, value), learner.act(observation.numpy(), noise=noise.numpy())),
        ((greedy, greedy_log_prob, value), learner.act(observation.numpy(), greedy=True)),
    ):
        for name, mine, its in zip(output._fields, output, expected, strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5, err_msg=name)
            assert mine.dtype == its.numpy().dtype


def test_a_learner_starts_with_the_exported_learning_rate_and_accepts_another(choices):
    learner, eager, rollout = Learner.load(choices.graph), copy.deepcopy(choices.step), make_rollout()
    assert learner.lr == pytest.approx(5e-3)
    learner.lr = eager.lr = 0.25
    assert learner.lr == 0.25
    learner.step(rollout)
    eager_update(eager, rollout)
    for name, parameter in eager.loss.named_parameters():
        np.testing.assert_allclose(learner.parameters[name], parameter.detach(), rtol=1e-5, atol=1e-5)
    before = learner.parameters
    learner.lr = 0
    learner.step(rollout)
    assert_same_parameters(learner.parameters, before)


@pytest.mark.parametrize(
    ("lr", "error"),
    [
        (-1.0, ValueError),
        (NAN, ValueError),
        (math.inf, ValueError),
        (1e39, ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_a_learning_rate_is_a_finite_number_from_0_up(choices, lr, error):
    learner = Learner.load(choices.graph)
    with pytest.raises(error, match=r"^lr: expected a .*number"):
        learner.lr = lr
    assert learner.lr == pytest.approx(5e-3)


@pytest.mark.parametrize("reward", [NAN, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_state_as_it_was(choices, reward):
    learner, other = Learner.load(choices.graph), Learner.load(choices.graph)
    rollout = make_rollout()
    learner.step(rollout), other.step(rollout)
    bad = make_rollout(seed=1)
    bad["reward"][0, 0] = reward
    with pytest.raises(FloatingPointError, match="finite gradient"):
        learner.step(bad)
    assert_same_parameters(learner.parameters, other.parameters)
    assert learner.step(rollout) == other.step(rollout)
    assert_same_parameters(learner.parameters, other.parameters)


def test_the_seed_determines_the_noise_of_an_update(vectors):
    rollout = make_rollout(vectors=True)
    entropies = [Learner.load(vectors.graph, seed=seed).step(rollout)["entropy"] for seed in (1, 1, 2)]
    assert entropies[0] == entropies[1] != entropies[2]


def test_rollout_entries_of_other_dtypes_and_layouts_are_converted(choices):
    rollout = make_rollout()
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in rollout.items()}
    wide["action"] = rollout["action"].astype(np.int32)
    wide["done"] = rollout["done"].tolist()
    wide["observation"] = np.asfortranarray(wide["observation"])
    one, other = Learner.load(choices.graph), Learner.load(choices.graph)
    assert one.step(wide) == other.step(rollout)
    assert_same_parameters(one.parameters, other.parameters)


def test_results_and_parameters_are_copies(choices):
    learner = Learner.load(choices.graph, seed=0)
    output, parameters = learner.act(observations()), learner.parameters
    kept = copy.deepcopy((output, parameters))
    parameters["actor_network.0.bias"][:] += 0.0
    for seed in (1, 2):
        learner.step(make_rollout(seed=seed))
        learner.act(observations(seed=seed))
    assert_acts_alike(output, kept[0])
    assert_same_parameters(parameters, kept[1])
    learner.parameters["actor_network.0.bias"][:] = NAN
    assert np.isfinite(learner.step(make_rollout())["grad_norm"])


WRONG_ROLLOUTS = {
    "no mapping": (lambda rollout: list(rollout.values()), TypeError, "rollout: expected a mapping"),
    "missing": (lambda rollout: rollout.pop("done"), ValueError, r"rollout: expected observation, .*missing: \['done'\]"),
    "unknown": (lambda rollout: rollout.update(mask=rollout["done"]), ValueError, r"unknown: \['mask'\]"),
    "noise that is not read": (lambda rollout: rollout.update(noise=rollout["done"]), ValueError, r"unknown: \['noise'\]"),
    "rank": (
        lambda rollout: rollout.update(reward=np.zeros(6)),
        ValueError,
        r"rollout\['reward'\]: .*\[6, 5\], got shape \[6\]",
    ),
    "features": (
        lambda rollout: rollout.update(observation=np.zeros((6, 5, 7))),
        ValueError,
        r"rollout\['observation'\]: expected float32 \[T, N, 4\], got shape \[6, 5, 7\]",
    ),
    "other T": (
        lambda rollout: rollout.update(reward=np.zeros((7, 5))),
        ValueError,
        r"rollout\['reward'\]: .*\[6, 5\].* \[7, 5\]",
    ),
    "other N": (lambda rollout: rollout.update(done=np.zeros((6, 1), bool)), ValueError, r"rollout\['done'\]: .*\[6, 1\]"),
    "no steps": (
        lambda rollout: rollout.update({n: x[:0] for n, x in rollout.items()}),
        ValueError,
        r"at least one.*\[0, 5, 4\]",
    ),
    "no environments": (
        lambda rollout: rollout.update({n: x[:, :0] for n, x in rollout.items()}),
        ValueError,
        r"at least one.*\[6, 0, 4\]",
    ),
    "actions in floats": (
        lambda rollout: rollout.update(action=rollout["action"] * 1.0),
        TypeError,
        r"rollout\['action'\]: expected int64 .*, got float64",
    ),
    "flags in integers": (
        lambda rollout: rollout.update(done=rollout["done"].astype(int)),
        TypeError,
        r"rollout\['done'\]: expected bool .*, got int64",
    ),
    "text": (lambda rollout: rollout.update(reward=[["a"] * 5] * 6), TypeError, r"rollout\['reward'\]: expected float32"),
    "None": (lambda rollout: rollout.update(reward=None), TypeError, r"rollout\['reward'\]: expected float32 .*, got object"),
    "ragged": (
        lambda rollout: rollout.update(reward=[[1.0], [1.0, 2.0]]),
        ValueError,
        r"rollout\['reward'\]: expected an array",
    ),
    "no such choice": (
        lambda rollout: rollout["action"].fill(2),
        ValueError,
        r"rollout\['action'\]: expected choices from 0 to 1, got 2",
    ),
    "a choice below 0": (lambda rollout: rollout["action"].fill(-1), ValueError, "got -1 to -1"),
}


@pytest.mark.parametrize("case", WRONG_ROLLOUTS)
def test_an_invalid_rollout_is_an_error_that_names_the_entry_and_changes_nothing(choices, case):
    change, error, message = WRONG_ROLLOUTS[case]
    learner, rollout = Learner.load(choices.graph), make_rollout()
    before = learner.parameters
    changed = change(rollout)
    with pytest.raises(error, match=message):
        learner.step(changed if case == "no mapping" else rollout)
    assert_same_parameters(learner.parameters, before)
    assert learner.step(make_rollout()) == Learner.load(choices.graph).step(make_rollout())


@pytest.mark.parametrize("shape", [(SAMPLES, 6, 5, 1), (SAMPLES, 1, 1, DIM), (6, 5, DIM)])
def test_noise_of_a_wrong_shape_is_an_error_when_learning(vectors, shape):
    with pytest.raises(ValueError, match=r"rollout\['noise'\]: expected float32 \[2, 6, 5, 3\]"):
        Learner.load(vectors.graph).step({**make_rollout(vectors=True), "noise": np.zeros(shape)})


def test_rollout_entries_lists_the_entries_that_a_learner_reads(exported):
    assert sorted(Learner.load(exported.graph).rollout_entries) == sorted(rollout_for(exported))


# Saved states


def go_on(learner, exported):
    """Outputs, metrics and parameters of a learner that acts and learns."""
    outputs = []
    for update in range(3):
        outputs += [*learner.act(observations(seed=update)), *learner.step(rollout_for(exported, seed=update)).values()]
        learner.lr *= 0.5
    return [*outputs, *learner.parameters.values()]


def test_a_resumed_run_equals_one_that_never_stopped(exported, tmp_path):
    stopped = Learner.load(exported.graph, seed=1)
    go_on(stopped, exported)
    stopped.save_state(tmp_path / "state.npz")
    expected = go_on(stopped, exported)
    resumed = Learner.load(exported.graph, seed=2)
    resumed.load_state(str(tmp_path / "state.npz"))
    assert_acts_alike(go_on(resumed, exported), expected)


def test_a_saved_state_contains_no_pickled_objects(exported, tmp_path):
    Learner.load(exported.graph).save_state(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_save_changes_no_file(choices, tmp_path, monkeypatch, older, error):
    learner, path = Learner.load(choices.graph), tmp_path / "state.npz"
    if older:
        learner.save_state(path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fill_the_disk(file, **arrays):
        file.write(b"half of it")
        raise error("no space left")

    monkeypatch.setattr(np, "savez", fill_the_disk)
    with pytest.raises(error, match="no space left"):
        learner.save_state(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("path", "error"), [("none/state.npz", FileNotFoundError), (".", FileNotFoundError), (3, TypeError)])
def test_saving_to_an_invalid_path_is_an_error(choices, tmp_path, path, error):
    with pytest.raises(error, match=r"^path: expected"):
        Learner.load(choices.graph).save_state(path if path == 3 else tmp_path / path)


def flipped(path):
    """Flips one bit in the last weights of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("ending", [".onnx", ".policy.onnx", ".state.npz"])
def test_a_damaged_file_of_an_export_is_refused_by_name(choices, vectors, tmp_path, ending):
    folder = shutil.copytree(choices.graph.parent, tmp_path / "files")
    flipped(folder / f"train_step{ending}")
    with pytest.raises(
        ValueError, match=rf"path: expected the .*train_step\{ending} that was exported, .* than in train_step\.onnx\.sha256"
    ):
        Learner.load(folder / "train_step.onnx")
    shutil.copy(vectors.graph.with_name(f"train_step{ending}"), folder)  # a file of another export
    with pytest.raises(ValueError, match=rf"path: expected the .*train_step\{ending} that was exported"):
        Learner.load(folder / "train_step.onnx")


def test_a_policy_that_was_changed_on_purpose_loads_without_the_check(choices, tmp_path):
    for file in choices.policy.parent.glob(f"{choices.policy.name}*"):
        shutil.copy(file, tmp_path)
    path, observation = tmp_path / choices.policy.name, observations()
    model = onnx.load(path)
    model.doc_string = "simplified"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"path: expected the .* that was exported, .* check=False"):
        Policy.load(path)
    expected = Policy.load(choices.policy).act(observation)
    np.testing.assert_array_equal(Policy.load(path, check=False).act(observation), expected)
    path.with_name(f"{path.name}.sha256").unlink()
    np.testing.assert_array_equal(Policy.load(path).act(observation), expected)
    with pytest.raises(TypeError, match="check: expected a bool, got str"):
        Policy.load(path, check="no")


def altered(**changes):
    """Returns a function that replaces entries of a saved state, or removes those that are None."""

    def alter(path):
        with np.load(path) as arrays:
            entries = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
        np.savez(path, **entries)

    return alter


def not_an_array(path):
    """Adds an entry that np.load does not take for an array: it returns the bytes."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("lr", b"0.1")


BIAS = "actor_network.0.bias"
WRONG_STATES = {
    "missing": (os.remove, FileNotFoundError, "path: expected a file, found none"),
    "empty": (lambda path: path.write_bytes(b""), ValueError, "path: expected an .npz file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), ValueError, "path: expected an .npz file"),
    "damaged": (
        lambda path: path.write_bytes(path.read_bytes()[:2000].ljust(9000, b"x")),
        ValueError,
        "path: expected an .npz file",
    ),
    "pickled": (altered(lr=np.array({})), ValueError, "path: expected an .npz file"),
    "not an array": (
        not_an_array,
        ValueError,
        r"path: expected an \.npz file of arrays, got .*state\.npz \(expected arrays, got bytes for lr\)",
    ),
    "no state": (altered(graph=None), ValueError, "path: expected a state that was saved with this very train_step.onnx"),
    "another graph's": (altered(graph=np.array("0" * 64)), ValueError, "path: expected a state that was saved with this very"),
    "without an entry": (altered(**{BIAS: None}), ValueError, rf"got one without {BIAS}"),
    "another shape": (altered(**{BIAS: np.zeros(3, np.float32)}), ValueError, rf"{BIAS} .* float32 \[8\], got float32 \[3\]"),
    "another dtype": (altered(**{BIAS: np.zeros(8)}), ValueError, rf"{BIAS} .* float32 \[8\], got float64 \[8\]"),
    "no learning rate": (altered(lr=None), ValueError, "path: expected a learning rate"),
    "a learning rate below 0": (altered(lr=np.array(-1.0)), ValueError, "lr: expected a finite number of at least 0"),
    "no random numbers": (altered(random=None), ValueError, "path: expected the state of a random generator"),
    "other random numbers": (altered(random=np.array('{"bit_generator": "X"}')), ValueError, "random generator"),
}


@pytest.mark.parametrize("case", WRONG_STATES)
def test_an_invalid_state_is_an_error_that_changes_nothing(choices, tmp_path, case):
    spoil, error, message = WRONG_STATES[case]
    path = tmp_path / "state.npz"
    learner, other = Learner.load(choices.graph, seed=3), Learner.load(choices.graph, seed=3)
    learner.save_state(path)
    spoil(path)
    for one in (learner, other):
        one.step(make_rollout())
    with pytest.raises(error, match=message):
        learner.load_state(path)
    assert_acts_alike(go_on(learner, choices), go_on(other, choices))


def test_the_state_of_another_graph_is_an_error(choices, vectors, tmp_path):
    Learner.load(vectors.graph).save_state(tmp_path / "state.npz")
    with pytest.raises(
        ValueError, match=r"path: expected a state that was saved with this very train_step\.onnx, got .*state\.npz"
    ):
        Learner.load(choices.graph).load_state(tmp_path / "state.npz")


# Policies


def test_a_greedy_policy_acts_as_in_torch(choices):
    observation = observations(200)
    expected = choices.distribution.mode(choices.actor(torch.from_numpy(observation)))
    action = Policy.load(choices.policy).act(observation)
    np.testing.assert_array_equal(action, expected)
    assert action.dtype == np.int64


def test_a_single_observation_gives_the_same_action_as_in_a_batch(choices):
    greedy, sampled, learner = Policy.load(choices.policy), Policy.load(choices.sampled), Learner.load(choices.graph)
    observation, noise = observations(7), np.random.default_rng(0).gumbel(size=(7, CHOICES))
    batches = [(greedy.act(observation),), sampled.act(observation, noise), learner.act(observation, noise=noise)]
    for i in range(7):
        singles = [
            (greedy.act(observation[i]),),
            sampled.act(observation[i], noise[i]),
            learner.act(observation[i], noise=noise[i]),
        ]
        for single, batch in zip(singles, batches, strict=True):
            for one, many in zip(single, batch, strict=True):
                assert np.shape(one) == ()
                np.testing.assert_allclose(one, many[i], rtol=1e-6)


def test_the_action_for_a_single_observation_has_no_batch_dimension(vectors):
    output = Learner.load(vectors.graph).act(observations()[0])
    assert [np.shape(array) for array in output] == [(DIM,), (), ()]


def test_a_policy_accepts_batches_of_changing_sizes(choices):
    policy = Policy.load(choices.policy)
    for envs in (3, 1, 64, 3):
        expected = choices.distribution.mode(choices.actor(torch.from_numpy(observations(envs))))
        np.testing.assert_array_equal(policy.act(observations(envs)), expected)


def test_the_seed_determines_the_noise_of_actions(choices):
    first, again, other = (Policy.load(choices.sampled, seed=seed).act(observations(100)) for seed in (5, 5, 6))
    assert_acts_alike(first, again)
    assert (first.action != other.action).any()
    given = np.random.Generator(np.random.PCG64(5)).gumbel(size=(100, CHOICES))
    assert_acts_alike(first, Policy.load(choices.sampled).act(observations(100), given))
    assert_acts_alike(first[:2], Learner.load(choices.graph, seed=5).act(observations(100))[:2])
    assert (Policy.load(choices.sampled).act(observations(100)).action != first.action).any()


def test_drawn_actions_have_the_probabilities_of_the_policy(choices):
    observation = observations(1)
    many = np.repeat(observation, 20_000, 0)
    parameters = {name: array * 3 for name, array in Learner.load(choices.graph).parameters.items()}
    output = Policy.load(choices.sampled, parameters=parameters, seed=0).act(many)
    frequency = (output.action == 1).mean()
    expected = np.exp(output.log_prob[output.action == 1][0])
    assert 0.05 < expected < 0.95
    assert frequency == pytest.approx(expected, abs=0.02)


def test_drawn_vectors_have_the_mean_and_deviation_of_the_distribution(vectors):
    many = np.repeat(observations(1), 20_000, 0)
    action = Learner.load(vectors.graph, seed=0).act(many).action
    params = vectors.actor(torch.from_numpy(observations(1)))
    loc, scale = vectors.distribution.loc_and_scale(params.detach())
    before_tanh = np.arctanh(action)
    np.testing.assert_allclose(before_tanh.mean(0), loc[0], atol=0.05)
    np.testing.assert_allclose(before_tanh.std(0), scale[0], rtol=0.05)


def test_a_policy_accepts_the_parameters_of_a_learner(choices):
    learner = Learner.load(choices.graph)
    learner.lr = 0.1
    for seed in range(5):
        learner.step(make_rollout(seed=seed))
    observation, noise = observations(200), np.random.default_rng(0).gumbel(size=(200, CHOICES))
    greedy = Policy.load(choices.policy, parameters=learner.parameters)
    sampled = Policy.load(choices.sampled, parameters=learner.parameters)
    np.testing.assert_array_equal(greedy.act(observation), learner.act(observation, greedy=True).action)
    assert (greedy.act(observation) != Policy.load(choices.policy).act(observation)).any()
    for mine, its in zip(sampled.act(observation, noise), learner.act(observation, noise=noise), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)


def test_parameters_replace_weights_that_onnxruntime_rearranges(tmp_path):
    def make_actor():
        return nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

    old, new, distribution, images = make_actor(), make_actor(), distributions.Normal(1), torch.randn(3, 4, 6, 6)
    policy = export.GreedyPolicy(old, distribution)
    path = export.export_onnx(policy, {"observation": images}, tmp_path / "policy.onnx", ("N",))
    parameters = {f"actor_network.{name}": parameter.detach().numpy() for name, parameter in new.named_parameters()}
    action = Policy.load(path, parameters=parameters).act(images.numpy())
    np.testing.assert_allclose(action, distribution.mode(new(images)).detach(), rtol=1e-5, atol=1e-6)


def test_parameters_replace_biases_that_were_0_when_they_were_exported(tmp_path):
    actor, distribution = nn.Linear(FEATURES, CHOICES), distributions.Categorical(CHOICES)
    nn.init.zeros_(actor.bias)
    policy = export.GreedyPolicy(actor, distribution)
    path = export.export_onnx(policy, {"observation": torch.randn(5, FEATURES)}, tmp_path / "policy.onnx", ("N",))
    parameters = {"actor_network.weight": np.zeros((CHOICES, FEATURES)), "actor_network.bias": np.array([0.0, 1.0])}
    assert (Policy.load(path, parameters=parameters).act(observations()) == 1).all()


def test_a_greedy_policy_ignores_parameters_of_the_distribution(choices):
    scale = {"distribution.log_std": np.zeros(2, np.float32)}
    assert Policy.load(choices.policy, parameters=scale).act(observations()).shape == (5,)
    with pytest.raises(ValueError, match=r"parameters: expected names among .*, got 'distribution\.log_std'"):
        Policy.load(choices.sampled, parameters=scale)


def test_integers_out_of_range_of_the_input_dtype_are_an_error(tmp_path):
    class Bytes(nn.Module):
        def forward(self, observation):
            return observation.float()

    policy = export.GreedyPolicy(Bytes(), distributions.Categorical(CHOICES))
    example = {"observation": torch.zeros(5, CHOICES, dtype=torch.int8)}
    policy = Policy.load(export.export_onnx(policy, example, tmp_path / "policy.onnx", ("N",)))
    assert policy.act(np.eye(CHOICES, dtype=np.int64)[1]) == 1
    with pytest.raises(ValueError, match="observation: expected numbers that int8 holds, got 0 to 200"):
        policy.act(200 * np.eye(CHOICES, dtype=np.int64)[1])


def test_parameters_that_are_not_passed_keep_their_exported_values(choices):
    learner = Learner.load(choices.graph)
    critics = {name: array * 2 for name, array in learner.parameters.items() if name.startswith("critic_network")}
    noise = np.zeros((5, CHOICES))
    before, after = (Policy.load(choices.sampled, parameters=given).act(observations(), noise) for given in (None, critics))
    np.testing.assert_array_equal(before.log_prob, after.log_prob)
    assert (before.state_value != after.state_value).all()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ([np.zeros(8)], TypeError, "parameters: expected a mapping"),
        ({"actor_network.7.bias": np.zeros(8)}, ValueError, r"parameters: expected names among .*got 'actor_network\.7\.bias'"),
        ({BIAS: np.zeros(3)}, ValueError, rf"parameters\['{BIAS}'\]: expected float32 \[8\], got shape \[3\]"),
        ({BIAS: np.zeros(8, complex)}, TypeError, rf"parameters\['{BIAS}'\]: expected float32 .*, got complex128"),
        ({BIAS: [[1.0], [1.0, 2.0]]}, ValueError, rf"parameters\['{BIAS}'\]: expected an array"),
    ],
)
def test_parameters_of_another_shape_or_dtype_are_an_error(choices, parameters, error, message):
    with pytest.raises(error, match=message):
        Policy.load(choices.policy, parameters=parameters)


WRONG_OBSERVATIONS = {
    "features": (np.zeros((2, 7)), ValueError, r"observation: expected float32 \[N, 4\], got shape \[2, 7\]"),
    "features of one": (np.zeros(7), ValueError, r"observation: expected float32 \[N, 4\], got shape \[1, 7\]"),
    "rank": (np.zeros((2, 2, 4)), ValueError, r"observation: expected float32 \[N, 4\], got shape \[2, 2, 4\]"),
    "a number": (1.0, ValueError, r"observation: expected float32 \[N, 4\]"),
    "none at all": (np.zeros((0, 4)), ValueError, r"observation: .*at least one.*\[0, 4\]"),
    "complex": (np.zeros((2, 4), complex), TypeError, "observation: expected float32 .*, got complex128"),
    "text": (["a", "b", "c", "d"], TypeError, "observation: expected float32"),
    "None": (None, TypeError, "observation: expected float32 .*, got object"),
    "ragged": ([[0.0], [0.0, 1.0]], ValueError, "observation: expected an array"),
}


@pytest.mark.parametrize("case", WRONG_OBSERVATIONS)
def test_an_invalid_observation_is_an_error(choices, case):
    observation, error, message = WRONG_OBSERVATIONS[case]
    for policy in (Policy.load(choices.policy), Policy.load(choices.sampled), Learner.load(choices.graph)):
        with pytest.raises(error, match=message):
            policy.act(observation)
        policy.act(observations())


@pytest.mark.parametrize(
    ("noise", "error"),
    [
        (np.zeros((5, 3)), ValueError),
        (np.zeros((1, 2)), ValueError),
        (np.zeros(2), ValueError),
        (np.zeros((5, 2), complex), TypeError),
    ],
)
def test_noise_of_a_wrong_shape_or_dtype_is_an_error_when_acting(choices, noise, error):
    for policy in (Policy.load(choices.sampled), Learner.load(choices.graph)):
        with pytest.raises(error, match=r"^noise: expected float32"):
            policy.act(observations(), noise=noise)


def test_a_greedy_action_takes_no_noise(choices):
    with pytest.raises(ValueError, match=r"^noise: expected None"):
        Policy.load(choices.policy).act(observations(), np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"^noise: expected None"):
        Learner.load(choices.graph).act(observations(), greedy=True, noise=np.zeros((5, 2)))


def test_greedy_actions_do_not_change_the_random_state(choices):
    one, other = Learner.load(choices.graph, seed=1), Learner.load(choices.graph, seed=1)
    one.act(observations(), greedy=True)
    assert_acts_alike(one.act(observations(50)), other.act(observations(50)))


# Files


def test_a_file_of_another_kind_is_an_error_that_says_what_it_is(choices):
    for load, file, message in (
        (
            Policy.load,
            choices.graph,
            "expected an exported GreedyPolicy or .*SampledPolicy.*, got .*TrainStepGraph, which Learner.load takes",
        ),
        (Policy.load, choices.folder / "train_step.policy.onnx", "an exported ActingPolicy, which Learner.load finds"),
        (Learner.load, choices.policy, "expected an exported TrainStepGraph, got .*GreedyPolicy, which Policy.load takes"),
        (Learner.load, choices.folder / "train_step.policy.onnx", "got .*ActingPolicy, which Learner.load finds"),
    ):
        with pytest.raises(ValueError, match=f"^path: .*{message}"):
            load(file)


def foreign(path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [onnx.ValueInfoProto(name="y")]
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)


@pytest.mark.parametrize("load", [Policy.load, Learner.load])
@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (os.remove, FileNotFoundError, "path: expected a file, found none at"),
        (lambda path: path.write_text("no graph"), ValueError, "path: expected an ONNX file that onnxruntime can read"),
        (lambda path: path.write_bytes(b""), ValueError, "path: expected an ONNX file that onnxruntime can read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), ValueError, "path: expected an ONNX file"),
        (foreign, ValueError, "path: .*which a2c_compiled did not export"),
    ],
    ids=["missing", "text", "empty", "truncated", "foreign"],
)
def test_a_file_that_is_not_an_exported_graph_is_an_error(choices, tmp_path, capfd, load, write, error, message):
    path = tmp_path / "train_step.onnx"
    shutil.copy(choices.policy, path)
    write(path)
    with pytest.raises(error, match=message):
        load(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("load", [Policy.load, Learner.load])
@pytest.mark.parametrize("path", [3, None, b"train_step.onnx"])
def test_a_path_of_another_type_is_an_error(load, path):
    with pytest.raises(TypeError, match=r"^path: expected a path, got"):
        load(path)


@pytest.mark.parametrize("name", ["train_step.policy.onnx", "train_step.state.npz"])
def test_a_learner_needs_the_files_beside_its_graph(choices, vectors, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(choices.folder, folder)
    shutil.copy(vectors.folder / name, folder / name)
    with pytest.raises(ValueError, match=r"^path: expected .*train_step"):
        Learner.load(folder / "train_step.onnx")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^path: expected {name} beside"):
        Learner.load(folder / "train_step.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "tpu"}, "provider: expected 'auto', 'cpu', 'cuda', 'tensorrt', .* got 'tpu'"),
        ({"threads": 0}, "threads: expected an integer of at least 1, got 0"),
        ({"threads": 1.5}, "threads: expected an integer of at least 1, got 1.5"),
        ({"seed": -1}, "seed: expected an integer of at least 0 or None, got -1"),
        ({"seed": "x"}, "seed: expected an integer of at least 0 or None, got 'x'"),
    ],
)
def test_an_invalid_option_is_an_error(choices, options, message):
    for load, path in ((Policy.load, choices.policy), (Learner.load, choices.graph)):
        with pytest.raises(ValueError, match=message):
            load(path, **options)


@pytest.mark.parametrize("available", [True, False])
def test_without_cuda_auto_selects_the_cpu_and_cuda_is_an_error(choices, monkeypatch, capfd, available):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if available else ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(runtime.ctypes, "CDLL", no_driver)
    assert Learner.load(choices.graph, "auto").act(observations()).action.shape == (5,)
    for load, path in ((Policy.load, choices.policy), (Learner.load, choices.graph)):
        with pytest.raises(ValueError, match=r"^provider: expected one that works on this machine, got 'cuda'"):
            load(path, "cuda")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("provider", ["tensorrt", "coreml", "openvino", "directml"])
def test_a_provider_that_is_absent_is_named_in_the_error(choices, monkeypatch, capfd, provider):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = rf"^provider: expected one that works on this machine, got '{provider}' \(this onnxruntime is built without \w+,"
    with pytest.raises(ValueError, match=message):
        Policy.load(choices.policy, provider)
    with pytest.raises(ValueError, match=f"^provider: expected 'auto', 'cpu' or 'cuda' for a training step, got '{provider}'"):
        Learner.load(choices.graph, provider)
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_does_not_start_is_an_error_with_its_reason(choices, monkeypatch, capfd):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime.ctypes, "CDLL", no_driver)
    with pytest.raises(ValueError, match=r"^provider: .* got 'tensorrt' \(lib.* cannot open shared object file\)"):
        Policy.load(choices.policy, "tensorrt")
    assert capfd.readouterr() == ("", "")


class OnAnotherProvider(onnxruntime.InferenceSession):
    """A session on the CPU that reports OpenVINO first."""

    def get_providers(self):
        return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]


def test_a_policy_on_another_provider_acts_as_on_the_cpu(choices, monkeypatch):
    expected = Policy.load(choices.policy, "cpu").act(observations())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OpenVINOExecutionProvider", "CPUExecutionProvider"])
    started = []

    def session(source, options, providers, **others):
        started.append([entry[0] if isinstance(entry, tuple) else entry for entry in providers])
        return OnAnotherProvider(source, options, providers=["CPUExecutionProvider"], **others)

    monkeypatch.setattr(runtime, "InferenceSession", session)
    policy = Policy.load(choices.policy, "openvino")
    assert started == [["OpenVINOExecutionProvider", "CPUExecutionProvider"]]
    np.testing.assert_array_equal(policy.act(observations()), expected)
    np.testing.assert_array_equal(policy.act(-observations()), Policy.load(choices.policy, "cpu").act(-observations()))


def no_driver(name):
    raise OSError(f"{name}: cannot open shared object file")


# The scripts


def test_rollouts_hold_the_last_observation_of_an_episode_and_come_with_its_return(choices):
    learner = Learner.load(choices.graph, seed=0)
    made = itertools.islice(learn_policy.rollouts(learner, "CartPole-v1", 4, 50, seed=0), 3)
    parts, returns = zip(*made, strict=True)
    rollout = {name: np.concatenate([part[name] for part in parts]) for name in learner.rollout_entries}
    assert {array.shape[:2] for array in rollout.values()} == {(150, 4)}
    done, following = rollout["done"], rollout["next_observation"]
    assert done.any(0).all()
    np.testing.assert_array_equal(following[:-1][~done[:-1]], rollout["observation"][1:][~done[:-1]])
    # Where CartPole ends an episode: too far to a side, or fallen over. A first observation is within 0.05.
    assert (np.abs(following[rollout["terminated"]]) > [2.4, np.inf, 0.209, np.inf]).any(-1).all()
    assert (np.abs(rollout["observation"][1:][done[:-1]]) <= 0.05).all()
    # Every step is worth 1: an environment's returns add up to its steps until the last end.
    last_ends = [np.flatnonzero(done[:, env])[-1] for env in range(4)]
    assert sum(map(sum, returns)) == sum(last_ends) + 4
    assert sum(map(len, returns)) == done.sum()


def test_rewards_are_scaled_and_returns_are_not(choices):
    learner = Learner.load(choices.graph, seed=0)
    (rollout, returns), (scaled, scaled_returns) = (
        next(learn_policy.rollouts(learner, "CartPole-v1", 4, 50, 0, scale)) for scale in (1.0, 0.25)
    )
    assert (rollout["reward"] == 1.0).all()
    assert (scaled["reward"] == 0.25).all()
    assert returns
    assert scaled_returns
    assert all(result == round(result) >= 8.0 for result in returns + scaled_returns)


def test_learning_ends_when_the_greedy_policy_is_good_enough(choices):
    learner = Learner.load(choices.graph, seed=0)
    result = learn_policy.learn(learner, "CartPole-v1", 8, 16, 1_000_000, solved_return=5.0, seed=0)
    assert result["solved"]
    assert result["return"] >= 5.0
    assert result["steps"] == 10 * 8 * 16


def test_learning_ends_when_the_steps_are_spent(choices):
    learner = Learner.load(choices.graph, seed=0)
    result = learn_policy.learn(learner, "CartPole-v1", 8, 16, 5 * 8 * 16, solved_return=500.0, seed=0)
    assert not result["solved"]
    assert result["steps"] == 5 * 8 * 16
    assert learner.lr == pytest.approx(5e-3 * (1 - 0.9 * 4 / 5))


@pytest.fixture(scope="module")
def in_bare_python(tmp_path_factory):
    """Run Python with arguments where torch and this package are not installed, and return what it printed."""
    interpreter = make_bare_environment(tmp_path_factory.mktemp("bare"))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*arguments):
        command = [interpreter, *map(str, arguments)]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    return run


def printed(process):
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_bare_environment_lacks_the_packages_that_devices_lack(in_bare_python):
    names = ["torch", "a2c_compiled", "onnx", "pip"]
    code = f"from importlib.util import find_spec; print([name for name in {[*names, 'numpy']} if find_spec(name)])"
    assert printed(in_bare_python("-c", code)) == "['numpy']\n"
    process = in_bare_python("-c", "import torch")
    assert process.returncode == 1
    assert "ModuleNotFoundError: No module named 'torch'" in process.stderr


def test_a_bare_environment_with_a_module_that_is_not_installed_is_an_error(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="modules: expected installed modules, got no_such_module"):
        make_bare_environment(tmp_path / "bare", ["numpy", "no_such_module"])


def test_the_scripts_learn_and_play_without_torch(choices, in_bare_python, tmp_path):
    out, folder = tmp_path / "learned.npz", choices.folder
    options = ["--num-envs", 8, "--total-steps", 4096, "--seed", 1, "--out", out]
    *progress, last = printed(in_bare_python(folder / "learn_policy.py", choices.graph, *options)).splitlines()
    result = json.loads(last)
    assert list(result) == ["return", "steps", "seconds", "solved"]
    assert (result["steps"], result["solved"], len(progress)) == (4096, False, 0)
    learner = Learner.load(choices.graph)
    learner.load_state(out)
    assert learn_policy.greedy_return(learner, "CartPole-v1", *learn_policy.EVALUATION_TRIALS[1]) == result["return"]
    code = f"""
import sys; sys.path.insert(0, {str(folder)!r})
from runtime import Learner, Policy
learner = Learner.load({str(choices.graph)!r})
learner.load_state({str(out)!r})
policy = Policy.load({str(choices.policy)!r}, parameters=learner.parameters)
print(learner.act([0.1, 0.2, 0.3, 0.4], greedy=True).action, policy.act([0.1, 0.2, 0.3, 0.4]))
"""
    learnt = int(learner.act([0.1, 0.2, 0.3, 0.4], greedy=True).action)
    assert printed(in_bare_python("-c", code)).split() == [str(learnt)] * 2
    played = in_bare_python(folder / "play_policy.py", choices.policy, "--episodes", 7)
    returns = json.loads(printed(played))
    assert played.stderr.splitlines()[-1] == f"mean return: {np.mean(returns):.6g}"
    assert returns == play_policy.play(str(choices.policy), "CartPole-v1", 7, 10_000)


def test_a_sampled_policy_plays_the_same_episodes_each_time(choices):
    one, again = (play_policy.play(str(choices.sampled), "CartPole-v1", 9, 3) for _ in range(2))
    assert one == again
    assert one != play_policy.play(str(choices.policy), "CartPole-v1", 9, 3)


def test_a_wrong_call_of_a_script_ends_with_one_line_that_names_what_is_wrong(choices, in_bare_python, tmp_path):
    text = tmp_path / "text.onnx"
    text.write_text("no graph")
    np.savez(tmp_path / "state.npz", lr=1.0)
    for script, *arguments, message in (
        ("play_policy.py", tmp_path / "none.onnx", f"path: expected a file, found none at {tmp_path / 'none.onnx'}"),
        ("play_policy.py", text, "text.onnx"),
        ("play_policy.py", choices.graph, "path: expected an exported GreedyPolicy or"),
        ("play_policy.py", choices.policy, "--env", "Nothing-v0", "Nothing"),
        (
            "play_policy.py",
            choices.policy,
            "--env",
            "no_such_module:Thing-v0",
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "play_policy.py",
            choices.policy,
            "--env",
            "Acrobot-v1",
            "env: expected an environment with the observations of the policy, got Acrobot-v1"
            " (observation: expected float32 [N, 4], got shape [100, 6]); --env selects another",
        ),
        (
            "play_policy.py",
            choices.policy,
            "--env",
            "json:Thing",
            "env: expected Thing in module json, or an environment of this name",
        ),
        (
            "learn_policy.py",
            choices.graph,
            "--env",
            "Acrobot-v1",
            "--out",
            tmp_path / "learned.npz",
            "got Acrobot-v1 (observation: ",
        ),
        ("play_policy.py", choices.policy, "--episodes", 0, "expected an integer of at least 1, got '0'"),
        ("play_policy.py", choices.policy, "--seed", -1, "expected an integer from 0 to below 2 ** 32, got '-1'"),
        ("learn_policy.py", choices.policy, "path: expected an exported TrainStepGraph"),
        ("learn_policy.py", choices.graph, "--out", tmp_path / "none" / "learned.npz", "existing folder"),
        (
            "learn_policy.py",
            choices.graph,
            "--out",
            tmp_path / "state.npz",
            f"path: expected a state that was saved with this very train_step.onnx, got {tmp_path / 'state.npz'}; --overwrite begins"
            " anew, --out names another file",
        ),
        ("learn_policy.py", choices.graph, "--num-steps", 0.5, "expected an integer of at least 1, got '0.5'"),
        ("learn_policy.py", choices.graph, "--reward-scale", 0, "expected a positive number, got '0'"),
    ):
        process = in_bare_python(choices.folder / script, *arguments)
        *usage, last = process.stderr.splitlines()
        assert process.returncode == 2, process.stderr
        assert last.startswith(f"{script}: "), process.stderr
        assert message in last
        assert "Traceback" not in process.stderr, usage


@pytest.mark.parametrize("env", ["NoSuch-v0", "Acrobot-v1"])
def test_a_start_that_fails_changes_no_file(choices, tmp_path, monkeypatch, capsys, env):
    out = tmp_path / "learned.npz"
    options = ["learn_policy.py", str(choices.graph), "--env", env, "--out", str(out)]
    for before in (None, b"a state of another run"):
        if before is not None:
            out.write_bytes(before)
        monkeypatch.setattr(sys, "argv", [*options, "--overwrite"])
        with pytest.raises(SystemExit) as exit:
            play_policy.run(learn_policy.main)
        assert exit.value.code == 2
        assert f"got {env}" in capsys.readouterr().err
        assert (out.read_bytes() if out.exists() else None) == before


def test_a_signal_saves_the_learner_and_the_next_start_continues(choices, tmp_path, terminal_signals):
    out, folder = tmp_path / "learned.npz", choices.folder
    command = [
        sys.executable,
        folder / "learn_policy.py",
        choices.graph,
        "--num-envs",
        8,
        "--solved-return",
        "inf",
        "--out",
        out,
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for number, *options in ((signal.SIGTERM,), (signal.SIGHUP,), (signal.SIGINT, "--overwrite")):
        with subprocess.Popen(
            [*map(str, command), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            first = process.stdout.readline()
            assert first.startswith("continues from the state") == (number == signal.SIGHUP), first
            while " steps, " not in first:
                first = process.stdout.readline()
            process.send_signal(number)
            assert process.wait(60) == 128 + number
            assert process.stderr.read() == f"stopped; {out} holds the state of the learner so far\n"
        learner = Learner.load(choices.graph)
        exported = learner.parameters
        learner.load_state(out)
        assert any((learner.parameters[name] != exported[name]).any() for name in exported)


@pytest.mark.parametrize("value", ["[" * 100_000, "[]", "7", '{"inputs": 3}', "no json", "null"], ids=lambda value: value[:10])
def test_metadata_of_another_kind_is_refused_by_name(choices, tmp_path, value):
    model = onnx.load(choices.policy)
    for entry in model.metadata_props:
        if entry.key == "a2c_compiled.shapes":
            entry.value = value
    model.metadata_props.add(key="a2c_compiled.renamed", value=value)
    onnx.save(model, tmp_path / "policy.onnx")
    with pytest.raises(
        ValueError, match=r"path: expected metadata a2c_compiled\.renamed as the export writes it in .*policy\.onnx"
    ):
        Policy.load(tmp_path / "policy.onnx")
