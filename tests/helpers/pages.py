"""README and the pages of docs/: their programs, headings and links."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.paths import README

DOCS = README.parent / "docs"
PAGES = [README, README.parent / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))] if README.exists() else []


def programs(page: Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Targets of links and pictures that are no addresses."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"\w+:", target)]
