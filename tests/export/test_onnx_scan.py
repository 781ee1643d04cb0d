"""The linear scan in ONNX files: it equals the definition of the scan, step by step and in blocks."""

import numpy as np
import onnx
import oracle
import pytest
import torch
from export_cases import load_onnx, scan_arguments
from onnx.reference import ReferenceEvaluator
from tolerances import assert_close
from torch import nn

from a2c_compiled import export
from a2c_compiled.export.onnx_model import onnx_scan
from a2c_compiled.ops import linear_scan

NAN = float("nan")
LIMIT = onnx_scan._MAX_SCAN_STEPS
DIRECTIONS = {"reverse": True, "transposed": False}

pytestmark = pytest.mark.slow


class BothScans(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor, decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_scan(x, decay, self.dim, True), linear_scan(x, decay, self.dim, False)


def exported(folder, example, dim=-2, axes=("T", "N")):
    return export.export_onnx(BothScans(dim), example, folder / "scans.onnx", axes, output_names=tuple(DIRECTIONS))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("scan"), scan_arguments((3, 2), torch.float32))


@pytest.fixture(scope="module")
def run(path):
    return load_onnx(path)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, LIMIT, LIMIT + 1, LIMIT + 2, LIMIT + 3, 64, 65, 100, 1001])
def test_equals_the_definition_at_every_length(run, steps, rows):
    x, decay = scan_arguments((steps, rows), torch.float32)
    outputs = run({"x": x, "decay": decay})
    for name, reverse in DIRECTIONS.items():
        assert_close(outputs[name], oracle.linear_scan(x, decay, -2, reverse), what=name)


@pytest.mark.parametrize("steps", [4, 40])
def test_the_reference_evaluator_of_onnx_agrees(path, steps):
    x, decay = scan_arguments((steps, 3), torch.float32)
    results = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x.numpy(), "decay": decay.numpy()})
    for result, reverse in zip(results, DIRECTIONS.values(), strict=True):
        assert_close(torch.from_numpy(np.asarray(result)), oracle.linear_scan(x, decay, -2, reverse))


@pytest.mark.parametrize("garbage", [NAN, float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("steps", [12, 50])
def test_a_zero_decay_stops_nan_and_infinity(run, steps, garbage):
    x, decay = scan_arguments((steps, 3), torch.float32)
    cut = steps // 2
    decay[cut] = 0.0  # between a step and the next one
    for name, reverse in DIRECTIONS.items():
        spoilt_x, spoilt_decay = x.clone(), decay.clone()
        spoilt = slice(cut + 1, None) if reverse else slice(None, cut + 1)
        kept = slice(None, cut + 1) if reverse else slice(cut + 1, None)
        spoilt_x[spoilt] = garbage
        spoilt_decay[cut + 1 if reverse else 0 : None if reverse else cut] = NAN
        result = run({"x": spoilt_x, "decay": spoilt_decay})[name]
        assert_close(result[kept], oracle.linear_scan(x, decay, -2, reverse)[kept], what=name)
        assert not result[spoilt].isfinite().any()


@pytest.mark.parametrize("unread", [NAN, float("inf")], ids=str)
@pytest.mark.parametrize("steps", [12, 50])
def test_the_last_decay_is_not_read(run, steps, unread):
    x, decay = scan_arguments((steps, 3), torch.float32)
    expected = {name: oracle.linear_scan(x, decay, -2, reverse) for name, reverse in DIRECTIONS.items()}
    decay[-1] = unread
    for name, result in run({"x": x, "decay": decay}).items():
        assert_close(result, expected[name], what=name)


def test_a_product_of_decays_that_overflows_changes_no_zero(run):
    x, decay = torch.zeros(80, 2), torch.full((80, 2), 1e10)
    for result in run({"x": x, "decay": decay}).values():
        assert torch.equal(result, x)


@pytest.mark.parametrize("decay_of", [0.99, 1.0])
def test_errors_are_at_most_a_millionth_of_the_scan_over_absolute_values(run, decay_of):
    generator = torch.Generator().manual_seed(0)
    x, decay = torch.randn(20_000, 2, generator=generator), torch.full((20_000, 2), decay_of)
    for name, result in run({"x": x, "decay": decay}).items():
        reverse = DIRECTIONS[name]
        error = (result - oracle.linear_scan(x.double(), decay.double(), -2, reverse)).abs()
        assert (error <= 1e-6 * oracle.linear_scan(x.double().abs(), decay.double(), -2, reverse)).all()


@pytest.mark.parametrize(
    ("shape", "dim", "dtype"),
    [((5,), -1, torch.float32), ((2, 5), -1, torch.float64), ((2, 5, 3), -2, torch.float16), ((5, 2, 3), -3, torch.float32)],
    ids=str,
)
def test_every_dimension_and_dtype(tmp_path, shape, dim, dtype):
    axes = [None] * len(shape)
    axes[dim] = "T"
    run = load_onnx(exported(tmp_path, scan_arguments(shape, dtype), dim, {"x": tuple(axes), "decay": tuple(axes)}))
    for steps in (7, 45):
        size = list(shape)
        size[dim] = steps
        x, decay = scan_arguments(size, dtype)
        for name, result in run({"x": x, "decay": decay}).items():
            assert result.dtype == dtype
            assert_close(result, oracle.linear_scan(x, decay, dim, DIRECTIONS[name]), what=name)


def nodes_of(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def test_has_standard_operators_that_most_runtimes_support(path):
    model = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions
    nodes = list(nodes_of(model.graph))
    steps_of_slices = {name for node in nodes if node.op_type == "Slice" for name in node.input[4:]}
    assert not steps_of_slices
    assert {attribute.name for node in nodes if node.op_type == "Scan" for attribute in node.attribute} == {
        "body",
        "num_scan_inputs",
    }
