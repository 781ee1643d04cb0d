"""``other_runtimes.py`` compares a file with its reference cases, and passes arrays to node and back unchanged."""

import shutil

import numpy as np
import onnx
import pytest
from earlier_cases import FIXTURES
from onnx import numpy_helper
from other_runtimes import Node, in_onnxruntime, outcome

POLICY = FIXTURES / "exported" / "policy_sampled.onnx"
# A package in which a session returns its inputs.
ECHO = """
class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
const session = { run: async (feeds) => feeds, release: async () => {} };
const create = async (bytes) => { if (bytes.length === 0) throw new Error("empty file"); return session; };
module.exports = { Tensor, InferenceSession: { create }, env: { wasm: {} } };
"""


def test_a_right_file_is_equal_and_a_wrong_one_or_one_that_does_not_load_is_named(tmp_path):
    assert outcome(in_onnxruntime, POLICY) == "equal"
    path = tmp_path / "policy.onnx"
    shutil.copy(f"{POLICY}.cases.npz", f"{path}.cases.npz")
    model = onnx.load(POLICY)
    for weights in model.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT:
            weights.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(weights), weights.name))
    onnx.save(model, path)
    assert outcome(in_onnxruntime, path).startswith("differs in ")
    path.write_bytes(b"no model")
    assert outcome(in_onnxruntime, path).startswith("does not run: ")


@pytest.mark.slow
def test_arrays_of_every_dtype_reach_node_and_come_back(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    package, file = tmp_path / "onnxruntime-web", tmp_path / "file.onnx"
    package.mkdir()
    (package / "index.js").write_text(ECHO)
    file.write_bytes(b"")
    dtypes = (np.float32, np.float64, np.int64, np.int32, np.int8, np.uint8, np.bool_)
    inputs = {np.dtype(dtype).name: np.arange(6).reshape(2, 3).astype(dtype) for dtype in dtypes} | {"empty": np.zeros((0, 2))}
    node = Node(package)
    try:
        with pytest.raises(RuntimeError, match="empty file"):
            node(file)
        file.write_bytes(b"content")
        outputs = node(file)(inputs)
    finally:
        node.close()
    assert list(outputs) == list(inputs)
    for name, array in inputs.items():
        np.testing.assert_array_equal(outputs[name], array, strict=True)
