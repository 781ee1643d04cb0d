"""Exports in several threads at once, while another one trains."""

import copy
import logging
import threading
import warnings

import pytest
import torch
from torch import nn

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, export
from a2c_compiled import functional as F
from a2c_compiled._exporting import exporting, is_exporting
from a2c_compiled.export.tracing.program import exporting_without_logs

STEPS = 5


def make_loss():
    """A loss whose networks share their first layer."""
    trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
    return A2CLoss(nn.Sequential(trunk, nn.Linear(8, 2)), nn.Sequential(trunk, nn.Linear(8, 1)), distributions.Categorical(2))


def make_rollout(steps=4, envs=3):
    flags = torch.zeros(steps, envs, dtype=torch.bool)
    shape = (steps, envs, 3)
    return Rollout(
        torch.randn(shape), torch.randint(2, (steps, envs)), torch.randn(steps, envs), torch.randn(shape), flags, flags
    )


def in_threads(*functions):
    """Runs all functions at the same time, and raises the first error."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.slow
def test_two_threads_export_while_another_trains(tmp_path):
    loss, rollout = make_loss(), make_rollout()
    inputs = {name: entry for name, entry in rollout._asdict().items() if entry is not None}
    first = {optimizer: TrainStep(copy.deepcopy(loss), optimizer, compile=False) for optimizer in ("sgd", "adam")}

    def trained(optimizer):
        step = copy.deepcopy(first[optimizer])
        for _ in range(STEPS):
            step(rollout)
        return step.state_dict()

    @torch.compile(fullgraph=True)
    def compiled(reward):
        return F.reward2go(reward, rollout.done, 0.9).tanh()

    expected, returns = {optimizer: trained(optimizer) for optimizer in first}, compiled(rollout.reward)
    exported, rounds = threading.Event(), []

    def train():
        while not exported.wait(0.05):
            rounds.append(None)
            for optimizer, state in expected.items():
                assert all(map(torch.equal, trained(optimizer).values(), state.values())), optimizer
            assert torch.equal(compiled(rollout.reward), returns)

    def both_exports():
        try:
            in_threads(export_onnx, export_step_and_program)
        finally:
            exported.set()

    def export_onnx():
        assert export.verify(export.export_onnx(loss, inputs, tmp_path / "loss.onnx")).passed

    def export_step_and_program():
        export.export_train_step(first["sgd"], rollout, tmp_path / "step.onnx")
        assert export.verify(export.export_pt2(loss, inputs, tmp_path / "loss.pt2")).passed

    in_threads(both_exports, train)
    assert len(rounds) > 1, "the training ran several times during the exports"
    assert torch.compiler.is_exporting() is torch.compiler.is_compiling() is False
    assert not is_exporting()


@pytest.mark.slow
def test_an_export_does_not_change_the_module(tmp_path):
    """The exporter changes the mode and the hooks of its own copy."""
    seen = []

    class Recording(nn.Linear):
        def forward(self, x):
            seen.append((self is policy, self.training))
            return super().forward(x)

    policy = Recording(3, 2)
    export.export_pt2(policy, {"x": torch.randn(4, 3)}, tmp_path / "policy.pt2", ("N",))
    assert seen
    assert set(seen) == {(False, False)}
    assert policy.training
    assert not policy._forward_hooks


def test_other_threads_are_not_in_exporting_mode():
    elsewhere = []
    with exporting():
        in_threads(lambda: elsewhere.append(is_exporting()))
    assert elsewhere == [False]


@pytest.mark.slow
def test_torch_export_of_the_caller_traces_the_definitions():
    class Returns(nn.Module):
        def forward(self, reward, done):
            return F.reward2go(reward, done, 0.9)

    reward, done = torch.randn(5, 2), torch.zeros(5, 2, dtype=torch.bool)
    program = torch.export.export(Returns(), (reward, done))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "a2c_compiled.linear_scan.default" in called
    assert "a2c_compiled.reward2go.default" not in called


def test_only_the_exporting_thread_is_silenced(monkeypatch):
    logger = logging.getLogger("torch.onnx._internal.another_threads")
    spoken = []
    handler = logging.Handler()
    handler.emit = spoken.append
    # Not of the root logger: torch 2.11 does not pass records on to it.
    monkeypatch.setattr(logging.getLogger("torch.onnx"), "handlers", [handler])

    def log_and_warn():
        logger.error("spoken")
        warnings.warn("warned", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with exporting_without_logs():
            log_and_warn()
            assert not heard
            assert not spoken
            in_threads(log_and_warn)
        assert [str(warning.message) for warning in heard] == ["warned"]
        log_and_warn()
    assert len(heard) == 2
    assert len(spoken) == 2


@pytest.mark.slow
def test_an_export_without_access_to_the_tolerance_of_the_optimizer_only_folds_constants(tmp_path):
    from onnxscript import rewriter

    from a2c_compiled.export.onnx_model import onnxscript_internals

    class Nearly(nn.Module):
        def forward(self, x):
            return (x + 1e-8) * 0.99999 * 1.0

    x = 1e-8 * torch.ones(4)
    assert export.verify(export.export_onnx(Nearly(), {"x": x}, tmp_path / "exact.onnx", ("N",))).passed
    for name in ("_DEFAULT_REWRITE_RULES", "_rel_tol"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "_rel_tol":
                patch.setattr(rewriter, "_DEFAULT_REWRITE_RULES", rewriter._DEFAULT_REWRITE_RULES[-1:])
            else:
                patch.delattr(rewriter, name)
            onnxscript_internals._exact_rules.cache_clear()
            try:
                with pytest.warns(RuntimeWarning, match="hides its rules' tolerance"):
                    assert onnxscript_internals._exact_rules() is None
                path = export.export_onnx(Nearly(), {"x": x}, tmp_path / f"{name}.onnx", ("N",))
            finally:
                onnxscript_internals._exact_rules.cache_clear()
        assert export.verify(path).passed
