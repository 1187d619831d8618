"""The tutorials: programs in docs/tutorials/*.py, and the pages that are made of them.

    python docs/tutorials.py                      run all of them, write docs/tutorials/*.md with output and pictures
    python docs/tutorials.py regression           one of them
    python docs/tutorials.py --notebooks FOLDER   write them as notebooks instead, without running them

A program is in the percent format: ``# %% [markdown]`` begins a text, ``# %%`` a step.
Each runs in less than a minute on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
FOLDER = DOCS / "tutorials"
STYLE = DOCS.parent / "examples" / "figures.mplstyle"
QUICK = (
    r"range\(\d{3,}\)",
    "range(3)",
)  # fewer steps: for tests, which ask whether a program runs, not how well it trains


class Cell(NamedTuple):
    """A text or a step of a program."""

    is_code: bool
    source: str


def programs() -> list[Path]:
    return sorted(FOLDER.glob("*.py"))


def cells(program: Path) -> list[Cell]:
    """The texts and steps of a program, in order."""
    head, *parts = re.split(r"^# %%(.*)\n", program.read_text(), flags=re.M)
    if head.strip():
        raise ValueError(f"{program}: expected '# %% [markdown]' or '# %%' in the first line, got {head[:40]!r}")
    found = []
    for kind, source in zip(parts[::2], parts[1::2], strict=True):
        is_code = "[markdown]" not in kind
        found.append(Cell(is_code, (source if is_code else re.sub(r"^# ?", "", source, flags=re.M)).strip()))
    return found


def run(program: Path, quick: bool = False) -> Iterator[tuple[Cell, str, list[Any]]]:
    """Run the steps of a program in one namespace; yields each cell with what it printed and the figures it drew."""
    names: dict[str, Any] = {"__name__": program.stem}
    with plt.style.context(STYLE):
        for i, cell in enumerate(cells(program)):
            printed = io.StringIO()
            if cell.is_code:
                source = re.sub(*QUICK, cell.source) if quick else cell.source
                with contextlib.redirect_stdout(printed):
                    exec(compile(source, f"{program.name}, cell {i}", "exec"), names)
            yield cell, printed.getvalue().rstrip(), [plt.figure(number) for number in plt.get_fignums()]
            plt.close("all")


def write_page(program: Path, folder: Path = FOLDER, quick: bool = False) -> Path:
    """Run a program and write its page and pictures."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    blocks, pictures = [], 0
    for cell, output, figures in run(program, quick):
        blocks.append(block(cell))
        if output:
            blocks.append(f"```text\n{output}\n```")
        for figure in figures:
            pictures += 1
            picture = folder / "images" / f"{program.stem}-{pictures}.png"
            figure.savefig(picture, dpi=100)
            titles = [axes.get_title() for axes in figure.axes]
            blocks.append(f"![{'; '.join(filter(None, titles))}](images/{picture.name})")
    blocks.append(
        f"*This page is the program `docs/tutorials/{program.name}` with what it printed. "
        f"[The tutorials](../tutorials.md) says how to open it as a notebook.*"
    )
    page = folder / f"{program.stem}.md"
    page.write_text("\n\n".join(blocks) + "\n")
    return page


def block(cell: Cell) -> str:
    """A cell as it stands on its page."""
    return f"```python\n{cell.source}\n```" if cell.is_code else cell.source


def notebook(program: Path) -> dict[str, Any]:
    """A program as a notebook of the format 4.4, without outputs."""
    made: list[dict[str, Any]] = []
    for cell in cells(program):
        extra = {"execution_count": None, "outputs": []} if cell.is_code else {}
        kind = "code" if cell.is_code else "markdown"
        made.append({"cell_type": kind, "metadata": {}, "source": cell.source.splitlines(keepends=True)} | extra)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--notebooks", type=Path, metavar="FOLDER", help="write notebooks there, and run nothing")
    args = parser.parse_args(argv)
    found = {program.stem: program for program in programs()}
    if unknown := set(args.names) - set(found):
        parser.error(f"expected names of tutorials, {', '.join(found)}; got {', '.join(sorted(unknown))}")
    for program in (found[name] for name in args.names or found):
        start = time.perf_counter()
        if args.notebooks:
            args.notebooks.mkdir(parents=True, exist_ok=True)
            written = args.notebooks / f"{program.stem}.ipynb"
            written.write_text(json.dumps(notebook(program), indent=1))
        else:
            written = write_page(program)
        print(f"{written} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
