"""The messages that docs/errors.md quotes are messages of the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pyro_vd
import pyro_vd.guides
from helpers.pages import DOCS

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the tests were taken out of the repository")


def quoted() -> list[str]:
    return re.findall(r"^> `(.*)`$", (DOCS / "errors.md").read_text(), flags=re.M)


def texts() -> str:
    """The string literals of the package, one a line; what stands in braces is left as an ellipsis."""
    files = [file for package in (pyro_vd, pyro_vd.guides) for file in Path(package.__path__[0]).rglob("*.py")]
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


def test_each_message_that_is_quoted_is_in_the_source():
    source = texts()
    for message in quoted():
        assert re.search(re.escape(message).replace(r"\.\.\.", ".*"), source), message


def test_there_are_twenty_messages_and_each_has_a_cure():
    assert len(quoted()) >= 20 and len(set(quoted())) == len(quoted())
    parts = re.split(r"^> `.*`$", (DOCS / "errors.md").read_text(), flags=re.M)[1:]
    assert all(len(part.strip()) > 60 for part in parts)


def test_a_message_that_no_source_has_would_be_found():
    assert not re.search("expected a guide that likes its model", texts())
