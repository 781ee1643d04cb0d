"""Files of compiled code: another process does not compile, gets the same results, and is refused what does not fit it."""

import contextlib
import copy
import importlib
import json
import operator
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from loss_cases import assert_same, compile_backend, graphs_compiled, make_loss, make_networks, make_rollout
from torch_step import parameters_of

from a2c_compiled.update import TrainStep, saved_code

TESTS = Path(__file__).parents[1]

COMPILES = "a2c_compiled: no loaded code fits this call, which is compiled. Torch's reason for the first graph: "

pytestmark = pytest.mark.xdist_group("saved code")


def make_step(**options):
    return TrainStep(make_loss(), "adam", lr=1e-2, **options)


def calls(step):
    """Calls a training step with rollouts of several sizes, and with minibatches. Returns all metrics and parameters."""
    metrics = [step(make_rollout(shape)) for shape in ((5, 6), (3, 4), (7, 2))]
    metrics.append(step.epochs(make_rollout(), epochs=2, minibatch_size=8, generator=torch.Generator().manual_seed(0)))
    found = {f"{name} of call {i}": metric for i, each in enumerate(metrics) for name, metric in each._asdict().items()}
    return {**found, **parameters_of(step.loss)}


@pytest.fixture(scope="module", autouse=True)
def without_earlier_shapes():
    """torch remembers shapes and numbers of earlier tests, and may compile for all of them what is then different."""
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def step(without_earlier_shapes):
    """A compiled training step that was called."""
    step = make_step()
    calls(step)
    return step


@pytest.fixture(scope="module")
def path(step, tmp_path_factory):
    """The file of its code."""
    path = tmp_path_factory.mktemp("code") / "step.code"
    step.save_compiled(path)
    return path


IN_ANOTHER_PROCESS = """
import sys, torch
from loss_cases import graphs_compiled
from test_saved_code import calls, make_step
torch.set_num_threads(int(sys.argv[3]))  # code is compiled for a number of threads
step = make_step()
step.load_compiled(sys.argv[1])
found = calls(step)
assert graphs_compiled() == 0
torch.save(found, sys.argv[2])
"""


@pytest.mark.slow
def test_another_process_does_not_compile_and_computes_the_same(path, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(Path(__file__).parent), *sys.path]),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "CXX": "no-compiler",
    }
    results = tmp_path / "results.pt"
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(path), str(results), str(torch.get_num_threads())]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert_same(torch.load(results), calls(make_step(compile=False)), 1e-5)


@pytest.mark.slow
def test_a_loaded_step_saves_its_code_again_and_compiles_other_shapes(path, tmp_path):
    with compile_backend():
        step, eager = make_step(), make_step(compile=False)
        step.load_compiled(path)
        again = tmp_path / "again.code"
        step.save_compiled(again)
        assert saved_code.read_graphs(again) == saved_code.read_graphs(path)
        column = make_rollout((1, 1))  # T = 1 and N = 1 are compiled apart
        with pytest.warns(RuntimeWarning, match=f"{COMPILES}(tensor .* expected 5, actual 1|conditions on sizes and strides)"):
            assert_same(step(column), eager(column), 1e-5)
        assert graphs_compiled() == 1


@pytest.mark.slow
def test_code_is_saved_in_evaluation_mode_and_for_doubles(tmp_path):
    path, rollout = tmp_path / "step.code", make_rollout(dtype=torch.float64)
    make = lambda **options: TrainStep(make_loss(dtype=torch.float64), "sgd", **options).eval()  # noqa: E731
    step = make()
    step(rollout)
    step.save_compiled(path)
    loaded, eager = make(), make(compile=False)
    loaded.load_compiled(path)
    with compile_backend():
        assert_same(loaded(rollout), eager(rollout), 1e-12)
        assert graphs_compiled() == 0


@pytest.mark.slow
def test_code_for_numbers_that_may_change_is_saved(tmp_path):
    path, rollout, step = tmp_path / "step.code", make_rollout(), make_step(dynamic=True)
    step(rollout)
    step.save_compiled(path)
    loaded, eager = make_step(dynamic=True), make_step(compile=False)
    loaded.load_compiled(path)
    with compile_backend():
        assert_same(loaded(rollout), eager(rollout), 1e-5)
        assert graphs_compiled() == 0


# Code of users


NETWORKS = """
    import torch.nn.functional as F
    from torch import nn

    SCALE = 2.0
    OPTIONS = {"shift": False}
    ACTIVATION = F.silu
    LARGEST = max


    def scaled(x):
        return x * SCALE


    def doubled(x):
        return x * 2


    def shifted(x, shift=0.5):
        return x + shift


    def bounded(limit):
        def decorated(forward):
            return lambda self, x: forward(self, x.clamp(-limit, limit))

        return decorated


    class Network(nn.Module):
        gain = 0.5
        squared = staticmethod(lambda x: x * x)

        def __init__(self, network, function):
            super().__init__()
            self.network, self.function = network, function

        @property
        def offset(self):
            return 1

        @bounded(2.5)
        def forward(self, observation):
            x = self.function(ACTIVATION(self.network(observation)))
            x = x + self.offset + LARGEST(0.25, 0.75) + (1 if OPTIONS["shift"] else 0)
            return scaled(shifted(x)) + self.gain * self.squared(x)
"""


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A module of a user, with networks that depend on functions and variables."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "networks_of_a_user.py").write_text(textwrap.dedent(NETWORKS))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("networks_of_a_user")
    sys.modules.pop("networks_of_a_user")


def step_of(networks, function=None, **options):
    function = networks.doubled if function is None else function
    return TrainStep(make_loss(networks=[networks.Network(network, function) for network in make_networks()]), **options)


@pytest.fixture(scope="module")
def code_of_a_user(networks, tmp_path_factory):
    path, step = tmp_path_factory.mktemp("code") / "step.code", step_of(networks)
    step(make_rollout())
    step.save_compiled(path)
    return path


def other_forward(self, observation):
    return -self.network(observation)


PLACE = r"G\['__import_networks_of_a_user'\]\."
AS_IT_IS = "path: expected compiled code of networks_of_a_user.{} as it is, got code of another definition; save it again"
CODE_FOR = "path: expected compiled code for {}, got code for {}; save it again"
# What changes, its new value, the error if it has changed before the code is loaded, and the reason for compiling if it changes after that.
CHANGES = {
    "a function": ("scaled", lambda networks: networks.doubled, AS_IT_IS.format("scaled"), f"{PLACE}scaled is the same object"),
    "the code of a function": ("scaled.__code__", lambda networks: networks.doubled.__code__, AS_IT_IS.format("scaled"), None),
    "a default value": ("shifted.__defaults__", lambda networks: (0.75,), AS_IT_IS.format("shifted"), None),
    "a number": (
        "SCALE",
        lambda networks: 3.0,
        CODE_FOR.format(f"{PLACE}SCALE == 3.0", f"{PLACE}SCALE == 2.0"),
        f"{PLACE}SCALE == 2.0",
    ),
    "an entry of a dict": (
        "OPTIONS",
        lambda networks: {"shift": True},
        CODE_FOR.format(rf"{PLACE}OPTIONS\['shift'\] == True", rf"{PLACE}OPTIONS\['shift'\] == False"),
        rf"{PLACE}OPTIONS\['shift'\] == False",
    ),
    "a variable with a function of torch": (
        "ACTIVATION",
        lambda networks: networks.F.relu,
        None,
        f"{PLACE}ACTIVATION is the same object",
    ),
    "an attribute of a class": (
        "Network.gain",
        lambda networks: 0.25,
        CODE_FOR.format(r".*\['gain'\] == 0.25", r".*\['gain'\] == 0.5"),
        r".*\['gain'\] == 0.5",
    ),
    "a method": ("Network.forward", lambda networks: other_forward, AS_IT_IS.format("Network"), None),
    "a property": ("Network.offset", lambda networks: property(lambda self: 2), AS_IT_IS.format("Network"), None),
    "an anonymous function": ("Network.squared", lambda networks: staticmethod(lambda x: -x), AS_IT_IS.format("Network"), None),
}


@pytest.mark.slow
def test_code_of_a_user_is_used(networks, code_of_a_user):
    step, eager, rollout = step_of(networks), step_of(networks, compile=False), make_rollout()
    step.load_compiled(code_of_a_user)
    with compile_backend():
        assert_same(step(rollout), eager(rollout), 1e-5)
        assert graphs_compiled() == 0


def assert_compiles(step, eager, reason):
    with compile_backend(), pytest.warns(RuntimeWarning, match=f"{COMPILES}{reason}$"):
        assert_same(step(make_rollout()), eager(make_rollout()), 1e-5)


def change(networks, monkeypatch, name):
    """Changes the module. Returns the expected error and the expected reason."""
    path, value, error, reason = CHANGES[name]
    owner, _, attribute = path.rpartition(".")
    monkeypatch.setattr(operator.attrgetter(owner)(networks) if owner else networks, attribute, value(networks))
    return error, reason


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_code_is_not_used_if_the_module_has_changed_before_it_is_loaded(name, networks, code_of_a_user, monkeypatch):
    step, eager = step_of(networks), step_of(networks, compile=False)
    error, reason = change(networks, monkeypatch, name)
    if error is None:
        step.load_compiled(code_of_a_user)
        assert_compiles(step, eager, reason)
    else:
        with pytest.raises(ValueError, match=f"^{error}$"):
            step.load_compiled(code_of_a_user)


# torch takes the methods of a class, the code of a function and, in some versions, its default values for constant, also without a file.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (*_, reason) in CHANGES.items() if reason is not None])
def test_code_is_not_used_if_the_module_changes_after_it_is_loaded(name, networks, code_of_a_user, monkeypatch):
    step, eager = step_of(networks), step_of(networks, compile=False)
    step.load_compiled(code_of_a_user)
    _, reason = change(networks, monkeypatch, name)
    assert_compiles(step, eager, reason)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a2c_compiled. no loaded code fits:RuntimeWarning")
@pytest.mark.parametrize("is_loaded", [False, True])
def test_code_is_not_used_for_another_builtin(is_loaded, networks, code_of_a_user, monkeypatch):
    step, eager = step_of(networks), step_of(networks, compile=False)
    if is_loaded:
        step.load_compiled(code_of_a_user)
    monkeypatch.setattr(networks, "LARGEST", min)
    if not is_loaded:
        with contextlib.suppress(ValueError):  # refused in some versions of torch
            step.load_compiled(code_of_a_user)
    with compile_backend():
        assert_same(step(make_rollout()), eager(make_rollout()), 1e-5)
        assert graphs_compiled() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaled", "F.relu"])
def test_code_is_not_used_for_a_network_with_another_function(name, networks, code_of_a_user):
    function = operator.attrgetter(name)(networks)
    step, eager = step_of(networks, function), step_of(networks, function, compile=False)
    step.load_compiled(code_of_a_user)
    assert_compiles(step, eager, r"L\['self'\].*actor_network'\].function is the same object")


@pytest.mark.slow
def test_code_is_not_used_for_a_network_of_another_class(networks, code_of_a_user):
    loss = make_loss()
    step, eager = TrainStep(loss), TrainStep(copy.deepcopy(loss), compile=False)
    step.load_compiled(code_of_a_user)
    assert_compiles(step, eager, ".*actor_network.*")


@pytest.mark.slow
def test_code_of_a_function_without_a_name_is_not_saved(networks, tmp_path):
    step = step_of(networks, lambda x: 2 * x)
    step(make_rollout())
    with pytest.raises(
        RuntimeError, match=r"expected functions and classes that a module defines .*, got test_saved_code.*<lambda>$"
    ):
        step.save_compiled(tmp_path / "step.code")
    assert not list(tmp_path.iterdir())


# Files that are refused


class Bomb:
    """What must not be unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled a file that does not fit",)


REFUSED = {
    "another format": ({"format": 0}, "expected compiled code in format 1, got another format; save it again"),
    "another torch": (
        {"torch": "1.0"},
        rf"expected compiled code for torch {torch.__version__}, got code for 1.0; save it again",
    ),
    "another Python": ({"python": "2.7"}, "expected compiled code for python .*, got code for 2.7; save it again"),
    "another machine": ({"machine": "pdp11"}, "expected compiled code for machine .*, got code for pdp11; save it again"),
    "a newer processor": ({"features": ["avx1024"]}, "this processor, got code for one with avx1024; save it again"),
    "another version": (
        {"a2c_compiled": "0"},
        "expected compiled code for a2c_compiled [0-9a-f]*, got code for 0; save it again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_refused_and_not_unpickled(case, tmp_path):
    other, message = REFUSED[case]
    path = tmp_path / "step.code"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("about.json", json.dumps({**saved_code._this_process(), "features": [], **other}))
        file.writestr("graphs.pickle", pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        make_step().load_compiled(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "step.code"
    torch.save({"a": torch.zeros(3)}, path)
    (tmp_path / "text").write_text("about")
    for other in (path, tmp_path / "text"):
        with pytest.raises(ValueError, match=r"^path: expected a file of TrainStep.save_compiled, got .*(code|text)$"):
            make_step().load_compiled(other)
    with pytest.raises(FileNotFoundError):
        make_step().load_compiled(tmp_path / "nothing")
    with pytest.raises(TypeError, match="path: expected a path, got 3"):
        make_step().load_compiled(3)


@pytest.mark.slow
def test_a_damaged_file_is_refused(path, tmp_path):
    content = path.read_bytes()
    damaged = tmp_path / "step.code"
    for size in (0, 100, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"^path: expected a file of TrainStep.save_compiled, got"):
            make_step().load_compiled(damaged)
    for place in (200, len(content) // 2):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"^path: expected a file of TrainStep.save_compiled, got"):
            make_step().load_compiled(damaged)


@pytest.mark.slow
def test_code_that_does_not_load_is_refused(path, tmp_path):
    damaged = [graph._replace(code=graph.code[:100]) for graph in saved_code.read_graphs(path)["_run"]]
    saved_code.write_graphs(tmp_path / "step.code", lambda: {"_run": damaged})
    with pytest.raises(
        RuntimeError, match=r"^load_compiled: expected code that loads, got UnpicklingError: pickle data was truncated$"
    ):
        make_step().load_compiled(tmp_path / "step.code")


@pytest.mark.slow
def test_code_with_fewer_conditions_is_refused(path, tmp_path):
    graphs = saved_code.read_graphs(path)["_run"]
    fewer = [graph._replace(guards=graph.guards.rstrip().rpartition("\n")[0]) for graph in graphs]
    saved_code.write_graphs(tmp_path / "step.code", lambda: {"_run": fewer})
    with pytest.raises(
        ValueError, match=r"^path: expected compiled code for .*, got code for fewer conditions; save it again$"
    ):
        make_step().load_compiled(tmp_path / "step.code")


@pytest.mark.parametrize("method", ["save_compiled", "load_compiled"])
def test_a_step_without_compiled_code_is_refused(method, tmp_path):
    with pytest.raises(ValueError, match=r"^compile: expected True for compiled code in files, got False$"):
        getattr(make_step(compile=False), method)(tmp_path / "step.code")
    step = make_step()
    step.step_count = step.step_count.to("meta")
    with pytest.raises(ValueError, match=r"^device: expected parameters on the CPU for compiled code in files, got meta$"):
        getattr(step, method)(tmp_path / "step.code")


def test_a_step_that_was_not_called_has_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match=r"^save_compiled: expected a call that has compiled code before, got none$"):
        make_step().save_compiled(tmp_path / "step.code")
