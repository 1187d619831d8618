"""Where the files are that tests read: beside the tests, and in the repository if they lie in it."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
DATA = TESTS / "data"
README = TESTS.parent / "README.md"
EXAMPLES = TESTS.parent / "examples"
