"""Faster forms of ONNX operations: the results are the same, and the slow forms are gone."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from a2c_compiled.export.checking.onnx_file import cpu_session
from a2c_compiled.export.onnx_model.faster_forms import use_faster_forms

# By name: a graph, and the operators of its fast form.
GRAPHS = {
    "a product with a transposed matrix": (
        "(float[B,6] a, float[B,2] b) => (float[6,2] y) {t = Transpose<perm=[1,0]>(a) y = MatMul(t, b)}",
        ["Transpose", "MatMul", "Transpose"],
    ),
    "a product whose other matrix is as wide": (
        "(float[B,6] a, float[B,6] b) => (float[6,6] y) {t = Transpose<perm=[1,0]>(a) y = MatMul(t, b)}",
        ["Transpose", "MatMul"],
    ),
    "a number in every entry": (
        """(float s, float[T,N,4] x) => (float[T,N,4] y) <int64[1] last = {2}, float c = {0.3}> {
            shape = Shape(x) leading = Shape<start=0, end=2>(x)
            e = Expand(s, leading) d = Mul(e, c) n = Neg(d) u = Unsqueeze(n, last) f = Expand(u, shape) y = Mul(x, f)}""",
        ["Mul", "Neg", "Mul"],
    ),
    "a number in every entry that an output has": (
        "(float s, float[T,N] x) => (float[T,N] y) {shape = Shape(x) e = Expand(s, shape) y = Neg(e)}",
        ["Shape", "Expand", "Neg"],
    ),
    "a number beside a row": (
        "(float s, float[T,4] x, float[4] r) => (float[T,4] y) {shape = Shape(x) e = Expand(s, shape) y = Mul(r, e)}",
        ["Shape", "Expand", "Mul"],
    ),
    "numbers and columns": (
        """(bool[T,N] cut, float[T,N] x) => (float[T,N] y) <float zero = {0.0}, float c = {0.3}> {
            w = Where(cut, zero, x) m = Mul(c, w) s = Sub(m, x) y = Add(s, c)}""",
        ["Reshape", "Reshape", "Where", "Shape", "Mul", "Sub", "Add", "Reshape"],
    ),
    "numbers alone under a flag": (
        "(bool[N,T,1] cut) => (float[N,T,1] y) <float zero = {0.0}, float c = {0.3}> {y = Where(cut, zero, c)}",
        ["Reshape", "Where", "Shape", "Reshape"],
    ),
    "a number and rows": ("(float[T,4] x) => (float[T,4] y) <float c = {0.3}> {y = Mul(c, x)}", ["Mul"]),
    "a number and different columns": (
        "(bool[T,1] cut, float[T,N] x) => (float[T,N] y) <float zero = {0.0}> {y = Where(cut, zero, x)}",
        ["Where"],
    ),
}
SIZES = {"B": 7, "T": 3, "N": 1}


def random_inputs(model, sizes):
    generator = np.random.default_rng(0)
    for value in model.graph.input:
        dims = [dim.dim_value or sizes[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        numbers = generator.standard_normal(dims).astype(np.float32)
        yield value.name, numbers > 0 if value.type.tensor_type.elem_type == onnx.TensorProto.BOOL else numbers


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_in_its_fast_form_has_the_same_results(name):
    graph, operators = GRAPHS[name]
    slow = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> graph {graph}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(slow, strict_mode=True))
    use_faster_forms(model.graph)
    RemoveUnusedNodesPass()(model)
    fast = ir.to_proto(model)
    onnx.checker.check_model(fast, full_check=True)
    assert [node.op_type for node in fast.graph.node] == operators
    for sizes in (SIZES, {**SIZES, "N": 5}, {**SIZES, "T": 1, "B": 1}):
        inputs = dict(random_inputs(slow, sizes))
        (expected,), (result,) = (cpu_session(each.SerializeToString()).run(None, inputs) for each in (slow, fast))
        assert result.shape == expected.shape
        assert np.allclose(result, expected, rtol=1e-6, atol=1e-6) if "MatMul" in operators else (result == expected).all()
