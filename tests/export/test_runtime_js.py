"""``runtime.js`` against ``runtime.py`` on the same files: it acts, learns, keeps its state and refuses the same inputs."""

import hashlib
import http.server
import io
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import javascript
import numpy as np
import onnx
import pytest
import torch
from on_device_files import OnDeviceFiles, as_tensors
from torch import nn

from a2c_compiled import A2CLoss, distributions, estimators, export, networks
from a2c_compiled.export.on_device import JAVASCRIPT
from a2c_compiled.export.on_device.runtime import Learner, Policy
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.update import TrainStep

REASON = javascript.missing(*javascript.PACKAGES)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("runtime_js"),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]

CHOICES, DIM, HIDDEN = 3, 2, 5
IMAGE = (2, 6, 6)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=javascript.PACKAGES)
def node(request):
    """``runtime.js`` with one of the packages of onnxruntime."""
    process = javascript.JavaScript(JAVASCRIPT[0], request.param)
    yield process
    process.close()


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """``runtime.js`` whose internal functions can be called."""
    script = tmp_path_factory.mktemp("inside") / "runtime.js"
    script.write_text(JAVASCRIPT[0].read_text() + "\nexport { Random, own_sha256, read_arrays, write_arrays };\n")
    process = javascript.JavaScript(script, javascript.PACKAGES[0])
    yield process
    process.close()


# Exported files


def make_mlp(size):
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, size))


def make_convolution(size):
    return networks.BatchApply(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, size)), 3)


def make_recurrent(size):
    return nn.Sequential(Recurrent(MinGRU(4, HIDDEN), offset=HIDDEN * (size == 1)), nn.Linear(HIDDEN, size))


class Case(NamedTuple):
    """A kind of networks, the optimizer, and the distribution of actions that are vectors."""

    networks: Any
    optimizer: str
    distribution: Any = None
    samples: int = 0

    @property
    def vectors(self):
        return self.distribution is not None

    @property
    def shape(self):
        return IMAGE if self.networks is make_convolution else (4,)


CASES = {
    "MLP, choices": Case(make_mlp, "rmsprop"),
    "MLP, vectors": Case(make_mlp, "adam", distributions.TanhNormal, samples=2),
    "convolution, choices": Case(make_convolution, "adam"),
    "convolution, vectors": Case(make_convolution, "rmsprop", distributions.Normal),
    "memory": Case(make_recurrent, "sgd"),
}


def make_rollout(case, steps, envs, seed):
    """Random steps as arrays, time first."""
    generator = np.random.default_rng(seed)
    observation, next_observation = generator.standard_normal((2, steps, envs, *case.shape), dtype=np.float32)
    action = np.tanh(generator.standard_normal((steps, envs, DIM), dtype=np.float32))
    done = generator.random((steps, envs)) < 0.2
    if case.networks is make_recurrent:
        hidden = 0.1 * generator.standard_normal((steps, envs, 2 * HIDDEN), dtype=np.float32)
        start = np.concatenate([np.ones((1, envs), bool), done[:-1]])
        observation, next_observation = (observation, hidden, start), (next_observation, hidden, np.ones_like(start))
    return {
        "observation": observation,
        "action": action if case.vectors else generator.integers(CHOICES, size=(steps, envs)),
        "reward": generator.standard_normal((steps, envs), dtype=np.float32),
        "next_observation": next_observation,
        "done": done,
        "terminated": done & (generator.random((steps, envs)) < 0.5),
    }


@dataclass(frozen=True)
class Exported(OnDeviceFiles):
    """Exported files of a case."""

    case: Case

    def observations(self, envs, seed=0):
        return np.random.default_rng(seed).standard_normal((envs, *self.case.shape), dtype=np.float32)


def exported_case(case, folder):
    import gymnasium

    torch.manual_seed(0)
    distribution = case.distribution(DIM) if case.vectors else distributions.Categorical(CHOICES)
    actor, critic = case.networks(distribution.num_params if case.vectors else CHOICES), case.networks(1)
    sampled = {"samples_mc_entropy": case.samples} if case.samples else {}
    loss = A2CLoss(actor, critic, distribution, estimators.GAE(), entropy_coef=0.01, **sampled)
    step = TrainStep(loss, case.optimizer, 1e-3, 0.5, compile=False)
    space = gymnasium.spaces.Box(-0.5, 2.0, (DIM,)) if case.vectors else None
    exported = Exported(folder, case)
    exported.write(step, as_tensors(make_rollout(case, 6, 5, 0)), space)
    return exported


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The exported files of a case, by the name of the case. Each is exported once."""
    made = {}

    def files_of(name):
        if name not in made:
            made[name] = exported_case(CASES[name], tmp_path_factory.mktemp("case"))
        return made[name]

    return files_of


def assert_same_output(actual, expected):
    expected = {**expected._asdict(), "environment_action": expected.environment_action}
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, err_msg=name, **TOLERANCE)
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name


def assert_same_arrays(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, err_msg=name, **TOLERANCE)
        assert actual[name].dtype == array.dtype, name


# Acting and learning


@pytest.mark.parametrize("name", CASES)
def test_a_hundred_updates_equal_those_of_python_and_so_does_the_noise(node, files, name):
    case, path = files(name).case, files(name).graph
    mine, its = Learner.load(path, seed=7), node.load("Learner", path, seed=7)
    assert its.call("rollout_entries") == list(mine.rollout_entries)
    assert its.call("time_dim") == mine.time_dim
    assert its.call("lr") == mine.lr
    for update in range(100):
        # The noise of a training step that estimates the entropy from samples is drawn on both sides.
        rollout = make_rollout(case, 1 + update % 7, 1 + update % 5, update)
        assert its.call("step", rollout) == pytest.approx(mine.step(rollout), rel=1e-5, abs=1e-5)
        if update % 25 == 0:
            mine.reset()
            its.call("reset")
            assert_same_output(
                its.call("act", files(name).observations(3, update)), mine.act(files(name).observations(3, update))
            )
    assert_same_arrays(its.call("parameters"), mine.parameters)
    observation = files(name).observations(3)
    assert_same_output(its.call("act", observation, {"greedy": True}), mine.act(observation, greedy=True))


@pytest.mark.parametrize("name", CASES)
def test_policies_act_as_in_python_with_the_parameters_of_the_file_and_with_others(node, files, name):
    exported = files(name)
    learner = Learner.load(exported.graph, seed=0)
    for seed in range(3):
        learner.step(make_rollout(exported.case, 4, 3, seed))
    for parameters in ({}, {"parameters": learner.parameters}):
        greedy, its_greedy = Policy.load(exported.policy, **parameters), node.load("Policy", exported.policy, **parameters)
        sampled = Policy.load(exported.sampled, seed=3, **parameters)
        its_sampled = node.load("Policy", exported.sampled, seed=3, **parameters)
        for envs in (4, 4, 1):
            for policy in (greedy, sampled):
                policy.reset()
            for its in (its_greedy, its_sampled):
                its.call("reset")
            observation = exported.observations(envs, envs)
            np.testing.assert_allclose(its_greedy.call("act", observation), greedy.act(observation), **TOLERANCE)
            assert_same_output(its_sampled.call("act", observation), sampled.act(observation))
            noise = np.zeros((envs, DIM if exported.case.vectors else CHOICES), np.float32)
            assert_same_output(its_sampled.call("act", observation, noise), sampled.act(observation, noise))
        for policy in (greedy, sampled):
            policy.reset()
        for its in (its_greedy, its_sampled):
            its.call("reset")
        single = exported.observations(1)[0]
        np.testing.assert_allclose(its_greedy.call("act", single), greedy.act(single), **TOLERANCE)
        assert_same_output(its_sampled.call("act", single), sampled.act(single))
        assert_same_output(its_sampled.call("act", single, noise[0]), sampled.act(single, noise[0]))
    assert its_sampled.call("act", single.tolist())["action"].shape == ((DIM,) if exported.case.vectors else ())


def test_what_was_released_fails_and_leaves_others_alone(node, files):
    exported = files("MLP, choices")
    observation = exported.observations(2)
    for kind, path in (("Policy", exported.sampled), ("Learner", exported.graph)):
        released, other = (node.load(kind, path, seed=0) for _ in range(2))
        released.call("act", observation)
        released.call("release")
        with pytest.raises(javascript.JavaScriptError, match="onnxruntime failed"):
            released.call("act", observation)
        other.call("act", observation)


class OfMapping(nn.Module):
    """A network over a mapping with a tuple in it."""

    def __init__(self, size):
        super().__init__()
        self.first, self.second = nn.Linear(4, size), nn.Linear(2, size)

    def forward(self, observation):
        return self.first(observation["vectors"][0]) + self.second(observation["goal"]) * observation["vectors"][1]


def test_a_policy_with_several_inputs_other_names_and_several_kinds_of_noise_acts_as_in_python(node, tmp_path):
    torch.manual_seed(0)
    distribution = distributions.Composite(distributions.Categorical(3), distributions.Normal(2))
    policy = export.SampledPolicy(OfMapping(distribution.num_params), OfMapping(1), distribution)
    shapes = {"goal": (2,), "vectors.0": (4,), "vectors.1": (1,)}

    def observation(size, dtype):
        arrays = {
            name: np.random.default_rng(size).standard_normal((size, *shape)).astype(dtype) for name, shape in shapes.items()
        }
        return {"goal": arrays["goal"], "vectors": (arrays["vectors.0"], arrays["vectors.1"])}

    for dtype in (torch.float32, torch.float64):
        policy.to(dtype)
        given = observation(5, str(dtype)[6:])
        tensors = {"vectors": tuple(map(torch.from_numpy, given["vectors"])), "goal": torch.from_numpy(given["goal"])}
        noise = distribution.noise(policy.actor_network(tensors))
        path = export.export_onnx(
            policy,
            {"observation": tensors, "noise": noise},
            tmp_path / f"{dtype}.onnx",
            ("N",),
            input_names=["obs_0", "obs_1", "obs_2", "epsilon"],
            output_names=["a", "b", "c"],
        )
        parameters = {name: 0.5 * tensor.detach().numpy() for name, tensor in policy.named_parameters()}
        for options in ({}, {"parameters": parameters}):
            mine, its = Policy.load(path, seed=2, **options), node.load("Policy", path, seed=2, **options)
            for size in (3, 1):
                assert_same_output(its.call("act", observation(size, "float32")), mine.act(observation(size, "float32")))
        for wrong in ({"goal": given["goal"]}, {**given, "vectors": given["goal"]}, {**given, "vectors": (given["goal"],)}, {}):
            with pytest.raises((ValueError, TypeError)) as expected:
                mine.act(wrong)
            with pytest.raises(javascript.JavaScriptError) as caught:
                its.call("act", wrong)
            assert caught.value.message.replace("got NdArray", "got ndarray") == str(expected.value)


def test_several_choices_are_checked_at_the_steps_that_the_mask_keeps(node, tmp_path):
    torch.manual_seed(0)
    distribution = distributions.MultiCategorical([3, 2])
    loss = A2CLoss(make_mlp(distribution.num_params), make_mlp(1), distribution, estimators.GAE())
    rollout = {**make_rollout(CASES["MLP, choices"], 4, 3, 0), "mask": np.random.default_rng(1).random((4, 3)) < 0.5}
    rollout["action"] = np.random.default_rng(2).integers([3, 2], size=(4, 3, 2))
    step = TrainStep(loss, "sgd", 0.1, compile=False)
    path = export.export_train_step(step, as_tensors(rollout), tmp_path / "train_step.onnx")
    mine, its = Learner.load(path, seed=4), node.load("Learner", path, seed=4)
    masked, kept = (tuple(np.argwhere(rollout["mask"] == flag)[0]) for flag in (False, True))
    rollout["action"][(*masked, 1)] = 2
    assert its.call("step", rollout) == pytest.approx(mine.step(rollout), rel=1e-5, abs=1e-5)
    assert_same_arrays(its.call("parameters"), mine.parameters)
    assert_same_output(its.call("act", np.ones((3, 4), np.float32)), mine.act(np.ones((3, 4), np.float32)))
    rollout["action"][(*kept, 1)] = 2
    with pytest.raises(ValueError, match="choices from 0 to 2 and 1, got 2 to 2") as expected:
        mine.step(rollout)
    with pytest.raises(javascript.JavaScriptError) as caught:
        its.call("step", rollout)
    assert caught.value.message == str(expected.value)


def test_a_memory_forgets_the_episodes_that_ended(node, files):
    exported = files("memory")
    mine, its = Learner.load(exported.graph, seed=1), node.load("Learner", exported.graph, seed=1)
    np.testing.assert_array_equal(its.call("hidden", 3), mine.hidden(3))
    for step in range(4):
        assert_same_output(its.call("act", exported.observations(3, step)), mine.act(exported.observations(3, step)))
        done = np.arange(3) == step
        mine.reset(done)
        its.call("reset", done if step % 2 else done.tolist())
        np.testing.assert_allclose(its.call("hidden", 3), mine.hidden(3), **TOLERANCE)
    for call in (lambda: its.call("act", exported.observations(2)), lambda: its.call("hidden", 2)):
        with pytest.raises(javascript.JavaScriptError, match=r"expected N = 3, as in the last act, .* got N = 2"):
            call()


def test_arrays_may_be_nested_lists_typed_arrays_and_tensors_of_onnxruntime(node, files):
    body = """
    const learner = await runtime.Learner.load(values[0], { onnxruntime, seed: 0 });
    const rows = [[0.5, -1, 2, 0], [1, 0, 0, -3]];
    const forms = [
        rows,
        rows.map((row) => Float32Array.from(row)),
        rows.map((row) => new runtime.NdArray("float64", [4], Float64Array.from(row))),
        [Float64Array.from(rows[0]), rows[1]],
        new onnxruntime.Tensor("float32", Float32Array.from(rows.flat()), [2, 4]),
        { data: Float32Array.from(rows.flat()), shape: [2, 4] },
    ];
    const outputs = [];
    for (const form of forms) outputs.push((await learner.act(form, { greedy: true })).state_value.tolist());
    return outputs;
    """
    outputs = node.run(body, str(files("MLP, choices").graph))
    assert len(outputs) == 6
    assert all(output == outputs[0] for output in outputs)


def test_calls_without_await_run_one_after_the_other(node, files):
    exported = files("MLP, choices")
    rollouts = [make_rollout(exported.case, 3, 2, seed) for seed in range(4)]
    body = """
    const learner = await runtime.Learner.load(values[0], { onnxruntime });
    const failing = learner.step({}).catch((error) => error.name);
    await Promise.all(values[1].map((rollout) => learner.step(rollout)));
    return [await failing, learner.parameters];
    """
    failure, parameters = node.run(body, str(exported.graph), rollouts)
    mine = Learner.load(exported.graph)
    for rollout in rollouts:
        mine.step(rollout)
    assert failure == "ValueError"
    assert_same_arrays(parameters, mine.parameters)


# State


@pytest.mark.parametrize("name", ["MLP, vectors", "convolution, choices"])
def test_a_state_moves_to_python_and_back_and_learning_goes_on_the_same(node, files, name, tmp_path):
    exported = files(name)
    its = node.load("Learner", exported.graph, seed=11)
    for seed in range(5):
        its.call("step", make_rollout(exported.case, 4, 3, seed))
    its.set("lr", 0.003)
    (tmp_path / "state.npz").write_bytes(its.call("save_state"))
    mine = Learner.load(exported.graph)
    mine.load_state(tmp_path / "state.npz")
    assert mine.lr == 0.003
    for parameter, array in its.call("parameters").items():
        np.testing.assert_array_equal(mine.parameters[parameter], array)
    rollout = make_rollout(exported.case, 4, 3, 9)
    assert its.call("step", rollout) == pytest.approx(mine.step(rollout), rel=1e-5, abs=1e-5)
    assert_same_output(its.call("act", exported.observations(3)), mine.act(exported.observations(3)))
    mine.save_state(tmp_path / "back.npz")
    other = node.load("Learner", exported.graph)
    other.call("load_state", (tmp_path / "back.npz").read_bytes())
    for parameter, array in other.call("parameters").items():
        np.testing.assert_array_equal(mine.parameters[parameter], array)
    assert_same_output(other.call("act", exported.observations(3)), mine.act(exported.observations(3)))
    # What JavaScript writes is what Python wrote, array by array.
    with np.load(tmp_path / "back.npz") as before, np.load(io.BytesIO(other_state(other, node, exported, tmp_path))) as after:
        assert list(after) == list(before)
        for key in before:
            np.testing.assert_array_equal(after[key], before[key], strict=True)


def other_state(learner, node, exported, folder):
    """The bytes that JavaScript writes for a state, after it has read them."""
    learner.call("load_state", (folder / "back.npz").read_bytes())
    return learner.call("save_state")


def test_a_state_that_does_not_fit_is_refused_and_the_learner_is_unchanged(node, files):
    exported = files("MLP, choices")
    learner = node.load("Learner", exported.graph, seed=0)
    state = learner.call("save_state")
    with np.load(io.BytesIO(state)) as arrays:
        arrays = dict(arrays)
    first = next(iter(arrays))

    def saved(save=np.savez, **changes):
        file = io.BytesIO()
        save(file, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
        return file.getvalue()

    weight = arrays[first]
    for wrong, message in (
        (b"", "expected an .npz file of arrays, got bytes (not a zip file)"),
        (state[:200], "not a zip file"),
        (state[:150] + bytes([state[150] ^ 1]) + state[151:], "is damaged"),
        (saved(graph=np.array("another")), "expected one that was saved with this very train_step.onnx"),
        (saved(**{first: None}), f"expected a state of train_step.onnx, got one without {first}"),
        (saved(**{first: weight[:, :2]}), f"expected {first} of train_step.onnx to be float32 [16, 4], got float32 [16, 2]"),
        (saved(**{first: weight.astype(">f4")}), "got the header"),
        (saved(lr=np.array([1.0])), "expected a learning rate in the state"),
        (saved(lr=np.array(-1.0)), "lr: expected a finite number of at least 0, got -1"),
        (saved(random=np.array("{}")), "expected the state of a random generator in the file, got {}"),
    ):
        with pytest.raises(javascript.JavaScriptError) as caught:
            learner.call("load_state", wrong)
        assert message in caught.value.message
        assert caught.value.name == "ValueError"
        assert learner.call("save_state") == state
    # What numpy writes in other ways is read: compressed, and column by column.
    for right in (saved(np.savez_compressed), saved(**{first: np.asfortranarray(weight)})):
        learner.set("lr", 0.5)
        learner.call("load_state", right)
        assert learner.call("save_state") == state


def test_a_browser_that_cannot_decompress_says_so(inside):
    file = io.BytesIO()
    np.savez_compressed(file, weight=np.zeros(100))
    body = "delete globalThis.DecompressionStream; return runtime.read_arrays(values[0], 'state', 'bytes');"
    with pytest.raises(javascript.JavaScriptError, match=r"no DecompressionStream; save the file with numpy\.savez"):
        inside.run(body, file.getvalue())


def test_arrays_of_every_dtype_and_order_are_read_and_written(inside):
    generator = np.random.default_rng(0)
    arrays = {
        f"{dtype} {number}": (100 * generator.standard_normal(shape)).astype(dtype)
        for dtype in ("float32", "float64", "int64", "int32", "uint8", "bool")
        for number, shape in enumerate([(), (3,), (2, 3), (2, 3, 4)])
    }
    arrays |= {f"{name} by columns": np.asfortranarray(array) for name, array in arrays.items()}
    arrays |= {"a text é": np.array("text ü"), "empty": np.zeros((0, 2))}
    file = io.BytesIO()
    np.savez(file, **arrays)
    body = "return runtime.write_arrays(await runtime.read_arrays(values[0], 'state', 'bytes'));"
    with np.load(io.BytesIO(inside.run(body, file.getvalue()))) as after:
        assert list(after) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name, strict=True)


# Noise and digests


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 5])
def test_noise_is_that_of_numpy(inside, seed):
    kinds = {"normal": "standard_normal", "gumbel": "gumbel", "logistic": "logistic", "uniform": "random"}
    body = """
    const random = new runtime.Random(values[0]);
    return values[1].map((kind) => random.draw({ noise: [{ kind, size: 0 }] }, [500, 100]));
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    for kind, array in zip(kinds, inside.run(body, seed, list(kinds)), strict=True):
        np.testing.assert_allclose(array, getattr(generator, kinds[kind])(size=(500, 100)), rtol=1e-13, atol=1e-14)


def test_noise_of_several_kinds_is_that_of_python_and_no_seed_gives_other_noise_each_time(inside):
    body = """
    const noise = [{ kind: "gumbel", size: 3 }, { kind: "normal", size: 2 }];
    return [4n ** 80n, undefined, undefined].map((seed) => new runtime.Random(seed).draw({ noise }, [2, 7, 5]));
    """
    seeded, one, other = inside.run(body)
    generator = np.random.Generator(np.random.PCG64(4**80))
    expected = np.concatenate([generator.gumbel(size=(2, 7, 3)), generator.standard_normal(size=(2, 7, 2))], -1)
    np.testing.assert_allclose(seeded, expected, rtol=1e-13)
    assert (one != other).all()


def test_the_own_digest_is_sha256(inside):
    contents = [np.random.default_rng(size).bytes(size) for size in (*range(130), 1000, 65536)]
    digests = inside.run("return values[0].map((bytes) => runtime.own_sha256(bytes));", contents)
    assert digests == [hashlib.sha256(content).digest() for content in contents]


def test_a_file_that_is_not_the_exported_one_is_refused_also_without_crypto_subtle(node, files, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(files("MLP, choices").folder, folder)
    state = folder / "train_step.state.npz"
    with np.load(state) as arrays:
        np.savez(state, **{**arrays, "lr": np.array(0.5)})
    hide = 'Object.defineProperty(globalThis, "crypto", { value: { getRandomValues: (words) => words.fill(1) }, configurable: true });'
    body = "const { crypto } = globalThis; %s try { await runtime.Learner.load(values[0], { onnxruntime, check: values[1] }); }"
    body += ' finally { Object.defineProperty(globalThis, "crypto", { value: crypto, configurable: true }); }'
    for hidden in ("", hide):
        with pytest.raises(javascript.JavaScriptError) as caught:
            node.run(body % hidden, str(folder / "train_step.onnx"), True)
        with pytest.raises(ValueError, match="another SHA-256") as expected:
            Learner.load(folder / "train_step.onnx")
        assert caught.value.message == str(expected.value).replace("check=False", "check: false")
        node.run(body % hidden, str(folder / "train_step.onnx"), False)
        node.run(body % hidden, str(files("MLP, choices").graph), True)


# Errors


def wrong_steps(rollout):
    """Rollouts that are refused."""
    few = {name: array for name, array in rollout.items() if name != "reward"}
    yield few
    yield {**few, "rewards": rollout["reward"]}
    yield {**rollout, "reward": rollout["reward"][:, :1]}
    yield {**rollout, "reward": rollout["reward"][0]}
    yield {**rollout, "done": rollout["done"].astype(np.float32)}
    yield {**rollout, "action": rollout["action"].astype(np.float32)}
    yield {**rollout, "action": np.full_like(rollout["action"], CHOICES)}
    yield {**rollout, "action": rollout["action"] - 1}
    yield {**rollout, "observation": rollout["observation"][..., :3]}
    yield {name: array[:0] for name, array in rollout.items()}
    yield {**rollout, "reward": np.full_like(rollout["reward"], np.nan)}


def test_wrong_rollouts_get_the_errors_of_python(node, files):
    exported = files("MLP, choices")
    mine, its = Learner.load(exported.graph), node.load("Learner", exported.graph)
    before = its.call("parameters")
    for rollout in wrong_steps(make_rollout(exported.case, 3, 2, 0)):
        with pytest.raises((ValueError, TypeError, FloatingPointError)) as expected:
            mine.step(rollout)
        with pytest.raises(javascript.JavaScriptError) as caught:
            its.call("step", rollout)
        assert caught.value.message.replace("norm NaN", "norm nan") == str(expected.value)
        assert caught.value.name == type(expected.value).__name__
    for name, array in its.call("parameters").items():
        np.testing.assert_array_equal(array, before[name])


def test_wrong_observations_and_files_get_the_errors_of_python(node, files, tmp_path):
    exported, memory = files("MLP, choices"), files("memory")
    observation, path = exported.observations(3), str(exported.policy)
    junk, plain = tmp_path / "junk.onnx", tmp_path / "plain.onnx"
    junk.write_bytes(b"no model")
    shutil.copy(exported.graph, plain)
    mine, its = Policy.load(path), node.load("Policy", path)
    sampled, its_sampled = Policy.load(exported.sampled), node.load("Policy", exported.sampled)
    learner, its_learner = Learner.load(exported.graph), node.load("Learner", exported.graph)
    remembering, its_remembering = Learner.load(memory.graph), node.load("Learner", memory.graph)
    for it in (remembering.act(observation), its_remembering.call("act", observation)):
        del it
    weight = {"actor_network.0.weight": np.zeros((2, 2), np.float32)}
    for attempt, its_attempt in (
        (lambda: mine.act(observation[:, :2]), lambda: its.call("act", observation[:, :2])),
        (lambda: mine.act(observation[0, 0]), lambda: its.call("act", observation[0, 0].item())),
        (lambda: mine.act(observation[:0]), lambda: its.call("act", observation[:0])),
        (lambda: sampled.act(observation, noise=observation), lambda: its_sampled.call("act", observation, observation)),
        (lambda: setattr(learner, "lr", -1), lambda: its_learner.set("lr", -1)),
        (lambda: setattr(learner, "lr", True), lambda: its_learner.set("lr", True)),
        (lambda: remembering.reset([True]), lambda: its_remembering.call("reset", [True])),
        (lambda: remembering.reset(np.ones(3)), lambda: its_remembering.call("reset", np.ones(3))),
        (lambda: Policy.load(exported.graph), lambda: node.load("Policy", exported.graph)),
        (lambda: Learner.load(path), lambda: node.load("Learner", path)),
        (lambda: Policy.load(tmp_path / "none.onnx"), lambda: node.load("Policy", tmp_path / "none.onnx")),
        (lambda: Learner.load(plain), lambda: node.load("Learner", plain)),
        (lambda: Policy.load(path, parameters={"a": 1.0}), lambda: node.load("Policy", path, parameters={"a": 1.0})),
        (lambda: Policy.load(path, parameters=weight), lambda: node.load("Policy", path, parameters=weight)),
        (lambda: Policy.load(path, threads=0), lambda: node.load("Policy", path, threads=0)),
    ):
        with pytest.raises((ValueError, TypeError, FileNotFoundError)) as expected:
            attempt()
        with pytest.raises(javascript.JavaScriptError) as caught:
            its_attempt()
        same = str(expected.value).replace("got bool", "got boolean")
        assert caught.value.message == same
        assert caught.value.name == type(expected.value).__name__


def test_what_only_javascript_can_get_wrong_is_named(node, files, tmp_path):
    exported = files("MLP, choices")
    (tmp_path / "junk.onnx").write_bytes(b"no model")
    body = """
    const [path, junk] = values;
    const policy = await runtime.Policy.load(path, { onnxruntime });
    const learner = await runtime.Learner.load(path.replace("policy", "train_step"), { onnxruntime });
    const attempts = [
        () => policy.act(undefined), () => policy.act([[1, 2], [3]]), () => policy.act("text"), () => policy.act([1, 2, 3, 4], [1]),
        () => policy.act({ data: new Float32Array(3), shape: [4] }), () => learner.load_state("state.npz"), () => learner.step([]),
        () => runtime.Policy.load(path, { onnxruntime, sead: 1 }), () => runtime.Policy.load(path, { onnxruntime, seed: 0.5 }),
        () => runtime.Policy.load(path, { onnxruntime: {} }), () => runtime.Policy.load(7, { onnxruntime }),
        () => runtime.Policy.load(junk, { onnxruntime }), () => new runtime.NdArray("text", [1], [1]),
        () => new runtime.NdArray("float32", [2, 2], new Float32Array(3)),
    ];
    const messages = [];
    for (const attempt of attempts) {
        try { await attempt(); messages.push("no error"); } catch (error) { messages.push(`${error.name} ${error.message}`); }
    }
    return messages;
    """
    messages = node.run(body, str(exported.policy), str(tmp_path / "junk.onnx"))
    expected = [
        "TypeError observation: expected an array, got undefined",
        "ValueError observation: expected an array, got entries of the shapes [2] and [1]",
        "TypeError observation: expected an array, got string",
        "ValueError noise: expected undefined for policy.onnx, which has no noise input, got an array",
        "ValueError observation: expected an array, got Object (data: expected 4 numbers for shape [4], got 3)",
        "TypeError state: expected the bytes of an .npz file, got string",
        "TypeError rollout: expected a mapping of names to arrays, got Array",
        "TypeError load: expected the options threads, parameters, seed, check and onnxruntime, got sead",
        "ValueError seed: expected an integer of at least 0 or undefined, got 0.5",
        "ValueError onnxruntime: expected the module onnxruntime-web or onnxruntime-node, got another",
        "TypeError path: expected a URL or path, got number",
        "ValueError path: expected an ONNX file that onnxruntime can read, got",
        "ValueError dtype: expected float32, float64",
        "ValueError data: expected 4 numbers for shape [2, 2], got 3",
    ]
    for message, start in zip(messages, expected, strict=True):
        assert message.startswith(start)


def test_weights_beside_the_file_and_half_precision_are_refused(node, files, tmp_path):
    model = onnx.load(files("MLP, choices").policy)
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="large.onnx.0.data", size_threshold=0)
    with pytest.raises(javascript.JavaScriptError, match=r"expected an ONNX file that onnxruntime can read, got .*large.onnx"):
        node.load("Policy", tmp_path / "large.onnx")
    half, shape = onnx.TensorProto.FLOAT16, ["N", 4]
    tensors = [onnx.helper.make_tensor_value_info(name, half, shape) for name in ("observation", "action")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["observation"], ["action"])], "half", *([x] for x in tensors)
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.helper.set_model_props(model, {"a2c_compiled.module": "GreedyPolicy"})
    onnx.save(model, tmp_path / "half.onnx")
    with pytest.raises(javascript.JavaScriptError, match=r"expected tensors of float32, .* got observation of float16"):
        node.load("Policy", tmp_path / "half.onnx")


def test_files_load_from_a_server(node, files):
    handler = partial(Silent, directory=str(files("MLP, choices").folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        learner = node.load("Learner", f"{address}/train_step.onnx?version=1", seed=0)
        with pytest.raises(javascript.JavaScriptError, match=r"expected a file, found none at http://.*/none.onnx") as caught:
            node.load("Policy", f"{address}/none.onnx")
        server.shutdown()
    assert caught.value.name == "FileNotFoundError"
    mine = Learner.load(files("MLP, choices").graph, seed=0)
    assert_same_output(learner.call("act", np.ones((2, 4), np.float32)), mine.act(np.ones((2, 4), np.float32)))


def test_the_programs_of_the_page_run(tmp_path, monkeypatch):
    page = (javascript.ROOT.parent / "docs" / "javascript.md").read_text()
    python, in_node, in_page, state = re.findall(r"```(?:python|js)\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(python, {})
    site, modules = tmp_path / "site", javascript.ROOT.resolve() / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    for file in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(modules / "onnxruntime-web" / "dist" / file, site)
    for name, program in (("node", in_node), ("page", in_page)):
        (site / f"{name}.mjs").write_text(f"{program}\n{state}\nconsole.log(bytes.length);")
        done = subprocess.run(["node", f"{name}.mjs"], cwd=site, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) > 4 * 2 * (4 * 64 + 64)  # bytes of the first layers


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *arguments):
        pass
