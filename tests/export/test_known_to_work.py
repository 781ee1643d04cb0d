"""The page docs/known_to_work.md: each line of its tables names cases that tests or commands run, and no case is missing."""

import re
from pathlib import Path
from typing import List

import pytest
from many_networks import EQUAL, GRAPHS, REFUSED, files, outcomes
from network_cases import NETWORKS
from networks.test_networks import OBSERVATIONS
from other_runtimes import IN_NODE, IN_PYTHON

from a2c_compiled import distributions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "known_to_work.md"


def rows(section: str) -> List[List[str]]:
    """Returns the cells of the lines of a section's table."""
    text = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (found,) = (part for part in text if part.startswith(f"{section}\n"))
    lines = [line for line in found.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell: str) -> List[str]:
    """Returns what a cell has in backticks."""
    return re.findall(r"`(.*?)`", cell)


REFUSALS = [(name, file) for _, names, _, refused in rows("Networks") for name in code(names) for file in code(refused)]
FIRST = [code(names)[0] for _, names, _, _ in rows("Networks")]


def test_every_network_is_in_one_line_and_every_line_names_networks():
    named = [name for _, names, _, _ in rows("Networks") for name in code(names)]
    named += [name for _, network, _, _ in rows("Distributions") for name in code(network)]
    assert sorted(named) == sorted(NETWORKS)
    assert all(code(names) for _, names, _, _ in rows("Networks"))
    assert {file for _, file in REFUSALS} <= set(files(GRAPHS, ["onnx", "torchscript", "pt2"]))


def test_every_distribution_is_in_one_line_with_a_network_over_it_or_a_test():
    named = [name for classes, _, _, _ in rows("Distributions") for name in code(classes)]
    public = [getattr(distributions, name) for name in distributions.__all__]
    classes = [x.__name__ for x in public if issubclass(x, distributions.Distribution) and x is not distributions.Distribution]
    assert sorted(named) == sorted(classes)
    for classes, network, _, _ in rows("Distributions"):
        for name in code(network):
            assert [type(NETWORKS[name].distribution).__name__] == code(classes)


def test_every_observation_space_is_in_one_line():
    assert sorted(name for names, _ in rows("Spaces") for name in code(names)) == sorted(OBSERVATIONS)


def test_every_runtime_is_one_that_a_test_or_the_command_runs():
    measured = [
        re.findall(r"other_runtimes\.py ([\w-]+)", how)[0] for _, _, _, how in rows("Runtimes") if "other_runtimes" in how
    ]
    assert set(measured) == {*IN_PYTHON, *IN_NODE}
    for _, version, _, how in rows("Runtimes"):
        assert re.search(r"\d", version)
        for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", how):
            assert f"def {test}" in (ROOT / file).read_text()
        assert "other_runtimes" in how or "tests/" in how


def test_every_linked_file_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_the_first_network_of_a_line_is_exported(name, tmp_path):
    ((_, outcome),) = outcomes(NETWORKS[name], tmp_path, ["policy"], ["onnx"])
    assert outcome == (EQUAL, "")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), REFUSALS)
def test_what_the_page_calls_refused_is_refused(name, file, tmp_path):
    graph, format = files(GRAPHS, ["onnx", "torchscript", "pt2"])[file]
    ((_, outcome),) = outcomes(NETWORKS[name], tmp_path, [graph], [format])
    assert outcome.word == REFUSED, outcome.message
