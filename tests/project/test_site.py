"""The checks that ``make docs`` makes of the finished site find what they look for; the site has the page of ``make web``."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "extensions"))

from site_checks import broken_formulas, external_requests, missing_names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.html", '<script src="https://example.org/x.js"></script>'),
        ("page.html", '<link rel="stylesheet" href="//example.org/x.css">'),
        ("page.html", '<img alt="a" src="http://example.org/x.png">'),
        ("page.html", '<p style="background: url(https://example.org/x.png)">'),
        ("page.css", "@import 'https://example.org/x.css';"),
        ("page.css", "a { background: url(//example.org/x.png) }"),
    ],
)
def test_an_external_request_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    ((page, address),) = external_requests(tmp_path)
    assert page == name
    assert "example.org/x" in address


def test_a_link_that_the_reader_follows_is_no_request(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<a href="https://example.org">x</a><img src="made/x.svg"><script src="x.js"></script>')
    assert list(external_requests(tmp_path)) == []


@pytest.mark.parametrize(("inner", "found"), [("<mi>a</mi><mo>=</mo>", 0), (r"<mi>\foo</mi>", 1), ("<mi>&</mi>", 1)])
def test_a_formula_that_was_not_converted_is_found(tmp_path: Path, inner: str, found: int) -> None:
    (tmp_path / "page.html").write_text(f"<p>a \\ b</p><math>{inner}</math>")
    assert len(list(broken_formulas(tmp_path))) == found


def test_a_public_name_without_an_entry_is_found() -> None:
    assert missing_names(["a.b", "a.c"], ["a.c", "a.d"]) == ["a.d"]


def test_the_site_has_the_page_of_make_web_where_it_was_built_and_no_older_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sphinx")
    live_page = importlib.import_module("live_page")
    built, site = tmp_path / "built", tmp_path / "site"
    built.mkdir()
    live_page.copy_page(site, built)
    assert "make web builds it" in capsys.readouterr().out
    assert not site.exists()
    (built / "page.json").write_text('{"learner": "train_step.onnx"}')
    loaded = live_page.downloads(built)
    for file in loaded.values():
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (built / "train_step.onnx.cases.npz").touch()
    live_page.copy_page(site, built)
    copied = {path.relative_to(site / "web").as_posix() for path in site.rglob("*") if path.is_file()}
    assert copied == set(loaded)
    assert capsys.readouterr().out == ""
    (built / "page.json").unlink()
    live_page.copy_page(site, built)
    assert list(site.iterdir()) == []
