"""The Python blocks of pages in docs/ run one after the other, with fewer steps where a page trains for long."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FEWER = {"torchrl_mujoco.md": ("total_frames = 640, 64, 100_480", "total_frames = 640, 64, 1_280"), "own_loop.md": ("", "")}


@pytest.mark.slow
@pytest.mark.parametrize("page", FEWER)
def test_the_blocks_of_a_page_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page == "torchrl_mujoco.md":
        pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    assert FEWER[page][0] in text
    session: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text.replace(*FEWER[page]) if FEWER[page][0] else text, re.DOTALL):
        exec(compile(block, page, "exec"), session)
    printed = capsys.readouterr().out
    if page == "own_loop.md":
        assert "done: expected the shape of reward, [32, 8], got [31, 8]" in printed
        assert session["logits"].shape == (5, 2, 4)  # type: ignore[attr-defined]
    else:
        assert session["step"].step_count == 20  # type: ignore[attr-defined]


def test_every_page_is_linked_and_links_to_files() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f"docs/{page.name}" in readme
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target
