"""One exported training step and one exported loss with the options that the tests in export/ leave out."""

import pytest
import torch
from loss_cases import make_clipped_loss, make_networks, make_rollout

pytest.importorskip("onnxruntime")
import onnxruntime

from a2c_compiled import TrainStep, export
from a2c_compiled.losses import PercentileNorm

pytestmark = pytest.mark.slow

DIAGNOSTICS = {"explained_variance", "kl_approx"}


def assert_verified(path):
    """Every output equals eager mode, diagnostics included."""
    outputs = export.verify(path).outputs
    assert all(output.passed for output in outputs.values()), path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {output.name for output in session.get_outputs()} >= DIAGNOSTICS
    assert set(outputs) >= DIAGNOSTICS


def test_a_training_step_with_another_objective_shifted_values_diagnostics_and_fixed_statistics_is_exported(tmp_path):
    norm = PercentileNorm(rate=0.5)
    norm.update(torch.tensor([-20.0, 20.0]))
    norm.eval()
    loss = make_clipped_loss(shifted=True, shifted_budget=2, clip_value=0.2, diagnostics=True, advantage_norm=norm)
    step = TrainStep(loss, "sgd", lr=0.1, compile=False)
    rollout = make_rollout((5, 6), options=("log_prob", "state_value"))
    assert_verified(export.export_train_step(step, rollout, tmp_path / "step.onnx"))


def test_a_loss_with_another_objective_a_target_network_chunks_and_diagnostics_is_exported(tmp_path):
    loss = make_clipped_loss(target_critic_network=make_networks(seed=7)[1], num_chunks=2, diagnostics=True)
    graph = export.graphs_of(loss, make_rollout((6, 4), options=("log_prob",)))["loss"]
    assert "sample_log_prob" in graph.example_inputs
    assert_verified(export.export_onnx(*graph[:2], tmp_path / "loss.onnx", graph.dynamic_axes))
