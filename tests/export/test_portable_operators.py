"""Operators that some runtimes get wrong: an exported file has other operators with the same results."""

from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from a2c_compiled import export


class Results(NamedTuple):
    total: Tensor
    largest: Tensor
    mean: Tensor
    at_least: Tensor
    at_most: Tensor
    between: Tensor
    index: Tensor


class Reductions(nn.Module):
    def forward(self, x: Tensor, choice: Tensor) -> Results:
        return Results(
            x.sum(-1),
            x.amax(-1, keepdim=True),
            x.unsqueeze(-1).mean((-1, -2)),
            choice.clamp_min(1),
            choice.clamp_max(1),
            choice.clamp(-1, 1),
            (choice.unsqueeze(-1) * torch.arange(-1, 2)).argmax(-1),
        )


@pytest.mark.slow
def test_reductions_of_no_rows_and_clamped_integers_are_equal_in_every_runtime(tmp_path):
    inputs = {"x": torch.randn(4, 3), "choice": torch.arange(-2, 2)}
    path = export.export_onnx(Reductions(), inputs, tmp_path / "file.onnx", ("N",))
    assert export.verify(path).passed
    graph = onnx.load(path).graph
    numbers = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    axes = [numbers[node.input[1]] for node in graph.node if node.op_type.startswith("Reduce")]
    assert len(axes) == 3, "onnxruntime keeps negative axes of an empty tensor"
    assert all((array >= 0).all() for array in axes)
    assert [len(node.input) for node in graph.node if node.op_type == "Clip"] in ([], [3]), "OpenVINO needs both bounds"
    dtypes = {node.output[0]: node.attribute[0].i for node in graph.node if node.op_type == "Cast"}
    (argmax,) = (node for node in graph.node if node.op_type == "ArgMax")
    assert dtypes[argmax.input[0]] == onnx.TensorProto.DOUBLE, "onnxruntime 1.16 has no ArgMax of int64"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    empty = {name: tensor[:0] for name, tensor in inputs.items()}
    found = session.run(list(Results._fields), {name: tensor.numpy() for name, tensor in empty.items()})
    for name, one, expected in zip(Results._fields, found, Reductions()(**empty), strict=True):
        np.testing.assert_array_equal(one, expected.numpy(), err_msg=name, strict=True)
