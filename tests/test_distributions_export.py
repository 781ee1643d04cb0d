"""Policies over every distribution as ONNX and TorchScript."""

from typing import Any, Callable

import pytest
import torch
from distribution_cases import CASES, Case
from torch import nn

pytest.importorskip("onnxruntime")
from a2c_compiled import export

each = pytest.mark.parametrize("case", CASES, ids=str)


@each
@pytest.mark.parametrize("exporter", [export.export_onnx, export.export_torchscript], ids=["onnx", "torchscript"])
def test_policies_are_exported(case: Case, exporter: Callable[..., Any], tmp_path: Any) -> None:
    actor, critic = nn.Linear(3, case.distribution.num_params), nn.Linear(3, 1)
    observation = torch.randn(5, 3)
    noise = case.distribution.noise(actor(observation)).detach()
    greedy, sampled = export.GreedyPolicy(actor, case.distribution), export.SampledPolicy(actor, critic, case.distribution)
    suffix = {export.export_onnx: ".onnx"}.get(exporter, ".pt")
    for module, inputs in ((greedy, {"observation": observation}), (sampled, {"observation": observation, "noise": noise})):
        path = tmp_path / f"{type(module).__name__}{suffix}"
        exporter(module, inputs, path, ("N",))
        report = export.verify(path)
        assert report.passed, str(report)
