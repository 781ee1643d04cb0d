"""The files that are copied to a device cannot import the library. The constants that they repeat equal the library's."""

import json
import re

import pytest

from a2c_compiled import export
from a2c_compiled.distributions.base import NOISE_KINDS
from a2c_compiled.environments import goal_of
from a2c_compiled.export import on_device
from a2c_compiled.export.checking import metadata
from a2c_compiled.export.on_device import learn_policy, play_policy, runtime
from a2c_compiled.export.on_device.runtime import Learner, Policy
from a2c_compiled.export.tracing import call
from a2c_compiled.training import TrainConfig, evaluation, trainer


def test_every_file_of_the_folder_is_copied():
    files = {runtime.__file__, play_policy.__file__, learn_policy.__file__}
    assert {str(path) for path in (on_device.RUNTIME, *on_device.SCRIPTS)} == files
    assert {path.name for path in on_device.RUNTIME.parent.glob("*.py")} == {
        "__init__.py",
        *(path.name for path in (on_device.RUNTIME, *on_device.SCRIPTS)),
    }
    assert {*on_device.RUNTIME.parent.glob("*.js"), *on_device.RUNTIME.parent.glob("*.ts")} == set(on_device.JAVASCRIPT)


def test_the_runtime_draws_every_kind_of_noise():
    assert set(runtime._DRAWN_BY) == set(NOISE_KINDS)


def test_the_runtime_has_the_names_of_the_exporter():
    networks, recurrent = (
        pytest.importorskip(f"a2c_compiled.integrations.stable_baselines3.{module}")
        for module in ("policy_networks", "recurrent_networks")
    )
    greedy = {export.GreedyPolicy, export.RecurrentPolicy, networks.PredictPolicy, networks.PredictFromFrames}
    greedy |= {recurrent.RecurrentPredictPolicy}
    sampled = {export.SampledPolicy, export.RecurrentSampledPolicy, networks.SampledPredictPolicy}
    assert (runtime._PREFIX, runtime._NEW) == (metadata.PREFIX, call.NEW)
    assert set(runtime._GREEDY) == {cls.__name__ for cls in greedy}
    assert set(runtime._POLICIES) == {cls.__name__ for cls in greedy | sampled}


def test_the_runtime_in_javascript_has_the_names_of_the_one_in_python():
    program = on_device.JAVASCRIPT[0].read_text()

    def constant(name):
        return re.search(rf"^const {name} = (.*?);", program, re.DOTALL | re.MULTILINE).group(1)

    for name in ("PREFIX", "NEW", "POLICY_ENDING", "STATE_ENDING"):
        assert json.loads(constant(name)) == getattr(runtime, name if name.endswith("ENDING") else f"_{name}")
    greedy = json.loads(constant("GREEDY"))
    policies = json.loads(constant("POLICIES").replace("...GREEDY", json.dumps(greedy)[1:-1]))
    assert (greedy, policies) == (list(runtime._GREEDY), list(runtime._POLICIES))
    drawn = re.search(r"^const DRAWN_BY = (.*?)^};", program, re.DOTALL | re.MULTILINE).group(1)
    assert set(re.findall(r"^  (\w+)", drawn, re.MULTILINE)) == set(runtime._DRAWN_BY)
    types = on_device.JAVASCRIPT[1].read_text()
    others = {"rollout_entries", "time_dim", "release"}  # Python frees memory by itself
    for cls in (Policy, Learner):
        names = {name for name in vars(cls) if not name.startswith("_")}
        described = types.partition(f"export class {cls.__name__} ")[2].partition("\n}")[0]
        assert names == set(re.findall(r"^  (?:static |readonly )?(\w+)[(:]", described, re.MULTILINE)) - others


def test_learning_evaluates_the_greedy_policy_like_training():
    assert (learn_policy.NEAR, learn_policy.EVALUATION_TRIALS) == (trainer.NEAR, trainer.EVALUATION_TRIALS)
    assert play_policy.EVALUATION_SEED == evaluation.EVALUATION_SEED
    assert (TrainConfig.final_lr, TrainConfig.log_interval) == (learn_policy.FINAL_LR, learn_policy.EVALUATION_INTERVAL)


def test_learning_has_the_defaults_of_training():
    arguments = vars(learn_policy.parser().parse_args(["train_step.onnx"]))
    for name in ("num_envs", "num_steps", "total_steps", "seed", "env"):
        assert arguments[name] == getattr(TrainConfig, name), name
    assert arguments["solved_return"] == goal_of(TrainConfig.env)


def test_playing_has_the_defaults_of_evaluation():
    arguments = play_policy.parser().parse_args(["policy.onnx"])
    assert (arguments.env, arguments.seed) == (TrainConfig.env, evaluation.EVALUATION_SEED)
