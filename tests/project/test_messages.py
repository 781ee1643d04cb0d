"""Errors of wrong input say what was expected and what came."""

import ast
import re
from typing import Iterator

import pytest
from project.test_architecture import MODULES, where

# What came: a value or nothing.
CAME = re.compile(r"\bgot\b|\bfound (none|no|nothing)\b|\bmissing\b|pip install")
WRAPS_ANOTHER = re.compile(r"\{error\}|\{summary\(error\)\}")


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every ValueError and TypeError that ``source`` raises with a message of its own."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and ast.unparse(node.exc.func) in ("ValueError", "TypeError")
        ):
            text = ast.unparse(node.exc)
            if re.search(r"""['"]""", text):
                yield node.lineno, text


def unclear(source: str) -> list[tuple[int, str]]:
    """The messages that do not say what was expected, or not what came."""
    return [
        (line, text)
        for line, text in messages(source)
        if not (WRAPS_ANOTHER.search(text) or (CAME.search(text) and "expected" in text))
    ]


def test_every_error_of_wrong_input_says_what_was_expected_and_what_came():
    found = [f"{where(module, line)}: {text}" for module in MODULES.values() for line, text in unclear(module.path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("statement", "is_clear"),
    [
        ('raise ValueError(f"gamma: expected a number from 0 to 1, got {gamma}")', True),
        ('raise ValueError(f"run: {file} is not readable ({error})")', True),
        ('raise ValueError(f"gamma: {gamma} is out of range")', False),
        ('raise TypeError("reward: expected a tensor")', False),
    ],
)
def test_an_unclear_message_is_found(statement, is_clear):
    assert (unclear(statement) == []) == is_clear
