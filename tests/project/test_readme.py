"""The README's Python examples run one after the other in one session."""

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
    assert session["greedy_action"].shape == (3,)  # type: ignore[attr-defined]


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
