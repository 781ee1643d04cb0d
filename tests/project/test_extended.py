"""The patterns of ``tests/extended.py`` name tests that exist."""

import re
from pathlib import Path

import pytest
from extended import EXTENDED, is_extended

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("pattern", [pattern for patterns in EXTENDED.values() for pattern in patterns])
def test_a_pattern_names_a_file_and_a_test_in_it(pattern: str) -> None:
    file, test = pattern.split("::")
    (path,) = TESTS.rglob(file)
    name, star, _ = test.partition("[")[0].partition("*")
    assert re.search(rf"def {name}{'' if star else '[(]'}", path.read_text())


def test_a_pattern_matches_the_whole_name_below_any_folder() -> None:
    assert is_extended("tests/project/test_readme.py::test_the_examples_run_in_order")
    assert is_extended("test_export.py::test_any[UPGO-float64-TN-1-1]")
    assert not is_extended("tests/project/test_readme.py::test_the_examples_run_in_order_again")
    assert not is_extended("tests/export/test_export.py::test_any[GAE-float32-TN-1-1]")
