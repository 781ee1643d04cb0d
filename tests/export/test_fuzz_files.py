"""Changed exported files: a part of the campaign in campaigns/fuzz_files.py, and errors that it found."""

import pytest
from fuzz_files import READERS, campaign, is_wrong, make_files

from a2c_compiled.export.on_device.runtime import Policy

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fuzz_files")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_files(folder)
    return folder


def test_changed_files_are_read_or_refused_with_documented_errors(files):
    results = [(case, result) for case, result, _ in campaign(files, list(READERS), 2, seed=1)]
    assert len(results) == 8 * len(READERS)
    assert [result for result in results if is_wrong(result[1])] == []


def test_metadata_that_is_not_text_is_refused_with_the_name_of_the_file(files, tmp_path):
    path = tmp_path / "policy.onnx"
    path.write_bytes((files / "policy.onnx").read_bytes().replace(b"a2c_compiled.version", b"a2c_comp\xe9led.version"))
    with pytest.raises(
        ValueError, match=r"^path: expected a file as the export writes it, got .*policy\.onnx \(UnicodeDecodeError"
    ):
        Policy.load(path)
