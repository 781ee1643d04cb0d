"""README.md is short, its example runs, and its links and its picture lead to files."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    session: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, README.name, "exec"), session)
    assert "equal to eager" in capsys.readouterr().out
    assert session["action"].shape == (64,)  # type: ignore[attr-defined]


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_a_newcomer_reads_it_in_a_minute() -> None:
    text = README.read_text()
    assert len(text.encode()) <= 8 * 1024
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert [len(block.strip().splitlines()) <= 25 for block in blocks] == [True]


def test_the_figures_of_speed_are_those_of_the_page_about_performance() -> None:
    def rows(text: str) -> dict[str, list[str]]:
        cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| "))
        return {name: figures for name, *figures in cells}

    short, full = rows(README.read_text()), rows((README.parent / "docs" / "performance.md").read_text())
    gae = {
        "this library, eager": "GAE, `[T, N]`: this library, eager",
        "TorchRL": "TorchRL, loop",
        "numba loop": "numba loop, tensors in and out",
    }
    steps = {
        "this library, compiled": "`TrainStep`, compiled",
        "this library, eager": "`TrainStep`, eager",
        "this library, exported, onnxruntime": "exported, `runtime.py` on onnxruntime",
        "written by hand in torch, compiled": "written by hand in torch, compiled",
        "TorchRL": "TorchRL",
    }
    for name, row in gae.items():
        assert short[name][0] == full[row][1]
    for name, row in steps.items():
        assert short[name][1:] == [full[row][0], full[row][1], full[row][3]]
