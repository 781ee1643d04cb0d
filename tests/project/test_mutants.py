"""The faults of ``tests/mutants.py`` can be planted."""

import pytest
from mutants import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_one_place_of_its_file_and_names_tests(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.before) == 1
    assert fault.before != fault.after
    assert all((ROOT / tests).exists() for tests in fault.tests)
