"""The page docs/smaller_files.md: the int8 and float16 files of a policy choose nearly as the float32 file, and runtime.py loads them."""

import re
from pathlib import Path

import numpy as np
import pytest

from a2c_compiled.export import verify
from a2c_compiled.export.on_device import runtime

PAGE = Path(__file__).parents[2] / "docs" / "smaller_files.md"
# Largest share of the float32 file's size, and smallest share of equal choices. The networks of the page are untrained.
EXPECTED = {"int8": (0.35, 0.97), "dynamic": (0.35, 0.97), "float16": (0.6, 0.995)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_files_of_the_page_are_smaller_and_choose_nearly_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    page = {}
    exec(compile(block, PAGE.name, "exec"), page)
    assert verify(tmp_path / "policy.onnx").passed
    whole, size = page["choices"]("policy.onnx"), (tmp_path / "policy.onnx").stat().st_size
    assert len(np.unique(whole)) > 1
    for name, (share, equal) in EXPECTED.items():
        path = tmp_path / f"policy.{name}.onnx"
        assert path.stat().st_size < share * size, name
        assert np.mean(page["choices"](path.name) == whole) > equal, name
        action = runtime.Policy.load(path, provider="cpu").act(page["unseen"])
        np.testing.assert_array_equal(action, page["choices"](path.name), err_msg=name)
