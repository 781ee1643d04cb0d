"""``make compat`` reads the bounds of pyproject.toml, and counts what pytest found; docs/versions.md has the versions that were run."""

import sys
from pathlib import Path

import compat
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PAGE = Path(__file__).parents[2] / "docs" / "versions.md"


def rows():
    """The rows of the page's table: the cells of each leg by the names of the columns."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def test_the_lowest_leg_pins_every_requirement_to_its_lower_bound():
    pins = compat.lowest()
    assert len(pins) == len(compat.requirements()) > 20
    for pin, requirement in zip(pins, compat.requirements(), strict=True):
        name, version = pin.split("==")
        assert name == requirement.name
        assert version in requirement.specifier
        assert f">={version}" in str(requirement.specifier)


def test_a_requirement_without_a_lower_bound_is_an_error():
    with pytest.raises(ValueError, match="expected one lower bound, got 0"):
        compat.lower_bound(Requirement("torch<3"))


def test_the_highest_leg_pins_the_torch_of_the_default_environment():
    (pin,) = compat.highest()
    assert Version(pin.removeprefix("torch==")) in Requirement("torch>=2.11,<2.16").specifier


def test_the_page_has_versions_of_legs_that_pyproject_allows():
    table = rows()
    assert {"lowest", "newest"} <= set(table) <= set(compat.LEGS)
    (torch,) = (requirement.specifier for requirement in compat.requirements() if requirement.name == "torch")
    for leg, cells in table.items():
        assert cells["torch"] in torch, leg
    for pin in compat.lowest():
        name, version = pin.split("==")
        if name in compat.SHOWN:
            assert Version(table["lowest"][name]) == Version(version), name


def test_an_unknown_leg_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compat.py", "oldest", "--", "tests"])
    with pytest.raises(SystemExit):
        compat.main()
    assert "expected any of lowest, highest, newest, got oldest" in capsys.readouterr().err


@pytest.mark.slow
def test_a_leg_counts_what_pytest_found(tmp_path, monkeypatch):
    tests = tmp_path / "test_three.py"
    tests.write_text("import pytest\ndef test_a(): pass\ndef test_b(): assert False\ndef test_c(): pytest.skip('no')\n")
    monkeypatch.setattr(compat, "ROOT", tmp_path)
    monkeypatch.setattr(compat, "environment", lambda leg, interpreter, folder: folder.mkdir(parents=True) or sys.executable)
    result = compat.tested("lowest", sys.executable, ["-q", str(tests)])
    assert (result.passed, result.failed, result.skipped, result.status) == (1, 1, 1, 1)
    assert result.row().startswith(f"| lowest | {sys.version.split()[0]} | ")
    assert result.row().endswith(" | 1 passed, 1 failed, 1 skipped | 0 min |")
