"""Settings of every test."""

import importlib.util
import os
import signal

import pytest
import torch
from extended import is_extended

if not torch.cuda.is_available():
    # Triton reads this variable once, when it is imported. Nothing has imported Triton yet.
    os.environ.setdefault("TRITON_INTERPRET", "1")


# The tests that need a package of the extras, by package. A bare machine with a GPU may lack these packages.
_ABOUT_EXPORT = ("benchmarks", "export", "project/test_earlier_files.py", "training/test_cli.py")
_ABOUT_EXTRAS = {
    "gymnasium": (
        "environments",
        "export/test_runtime.py",
        "export/test_runtime_js.py",
        "export/test_web_chromium.py",
        "export/test_web_environments.py",
        "export/test_web_page.py",
        "export/test_web_training.py",
        "networks/test_networks.py",
        "networks/test_observation_norm.py",
        "project/test_earlier_files.py",
        "rollouts",
        "training",
    ),
    "onnx": _ABOUT_EXPORT,
    "onnxruntime": _ABOUT_EXPORT,
    "stable_baselines3": ("integrations/test_integration_stable_baselines3.py",),
}
collect_ignore = [
    place for package, places in _ABOUT_EXTRAS.items() if importlib.util.find_spec(package) is None for place in places
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests of ``extended.py``, and sorts slow tests to the front.

    With several workers, short tests then fill the gaps at the end. Slow tests that share a compiled or exported graph have the same mark
    ``xdist_group``: one worker builds the graph and runs all of these tests. The tests of a file that are not slow stay together.
    """
    for item in items:
        if is_extended(item.nodeid):
            item.add_marker(pytest.mark.extended)
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow") is None and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def terminal_signals():
    """SIGINT and SIGHUP act as in a process of a terminal: the workers of pytest-xdist ignore SIGINT, nohup ignores SIGHUP."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The data is small, and the tests run several processes at once."""
    torch.set_num_threads(1)


@pytest.fixture
def taken_action_vtrace(monkeypatch):
    """Makes TorchRL's V-trace read the log-probability of the action taken, instead of a newly sampled action."""
    advantages = pytest.importorskip("torchrl.objectives.value.advantages")

    def log_prob(actor_net, data, params, log_prob_key):
        return actor_net.get_dist(data.select(*actor_net.in_keys, strict=False)).log_prob(data["action"])

    monkeypatch.setattr(advantages, "_call_actor_net", log_prob)
