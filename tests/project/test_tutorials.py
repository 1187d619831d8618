"""The tutorials run, and the pages in the repository are those of the programs."""

from __future__ import annotations

import importlib
import json
import re
import sys

import pytest

from helpers.pages import DOCS, anchors, links
from helpers.pages import programs as blocks
from helpers.paths import README

if not DOCS.exists():
    pytest.skip("the tests were taken out of the repository", allow_module_level=True)
pytest.importorskip("matplotlib")
sys.path.insert(0, str(DOCS))
tutorials = importlib.import_module("tutorials")
sys.path.remove(str(DOCS))

PROGRAMS = tutorials.programs()
IDS = [program.stem for program in PROGRAMS]
NEEDS = {"on_numpyro": ("flax",), "lora": ("peft", "transformers")}  # packages that a tutorial needs besides


def page_of(program):
    return program.with_suffix(".md")


def test_there_are_tutorials_and_each_has_a_page_in_the_list():
    assert len(PROGRAMS) >= 7
    assert {page.stem for page in tutorials.FOLDER.glob("*.md")} == set(IDS)
    listed = (DOCS / "tutorials.md").read_text()
    for name in IDS:
        assert f"(tutorials/{name}.md)" in listed and re.search(rf"^tutorials/{name}$", listed, flags=re.M), name


@pytest.mark.parametrize("program", PROGRAMS, ids=IDS)
def test_the_page_kept_is_that_of_the_program(program):
    cells = tutorials.cells(program)
    text, position = page_of(program).read_text(), 0
    assert blocks(page_of(program)) == [cell.source + "\n" for cell in cells if cell.is_code], "run docs/tutorials.py"
    for cell in cells:
        found = text.find(tutorials.block(cell), position)
        assert found >= 0, f"run python docs/tutorials.py {program.stem}: the page does not have {cell.source[:60]!r}"
        position = found + len(tutorials.block(cell))
    assert "```text\n" in text, "the page shows what the program printed"


@pytest.mark.parametrize("program", PROGRAMS, ids=IDS)
def test_links_and_pictures_of_the_page_exist(program):
    found = links(page_of(program))
    assert any(target.startswith("images/") for target in found)
    for target in found:
        path, _, anchor = target.partition("#")
        file = program.parent / path
        assert file.exists() and (not anchor or anchor in anchors(file)), target
        assert file.suffix != ".png" or file.stat().st_size < 100_000, target


def test_cells_are_told_apart_and_the_first_line_begins_one(tmp_path):
    program = tmp_path / "one.py"
    program.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n\n# %%\nprint(x)\n")
    cells = tutorials.cells(program)
    assert [tuple(cell) for cell in cells] == [(False, "# Title\n\nText."), (True, "x = 1"), (True, "print(x)")]
    assert [output for _, output, _ in tutorials.run(program)] == ["", "", "1"]
    program.write_text("x = 1\n# %%\n")
    with pytest.raises(ValueError, match="first line"):
        tutorials.cells(program)


def test_a_page_has_output_and_pictures_after_the_step_that_made_them(tmp_path):
    program = tmp_path / "one.py"
    program.write_text(
        "# %%\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.title('A line')\nprint('drawn')\n"
        "# %% [markdown]\n# The end.\n"
    )
    text = tutorials.write_page(program, tmp_path).read_text()
    assert re.search(r"```text\ndrawn\n```\n\n!\[A line\]\(images/one-1.png\)\n\nThe end\.", text)
    assert (tmp_path / "images" / "one-1.png").read_bytes().startswith(b"\x89PNG")


def test_the_notebooks_are_notebooks(tmp_path):
    tutorials.main(["--notebooks", str(tmp_path)])
    assert {file.stem for file in tmp_path.iterdir()} == set(IDS)
    for program in PROGRAMS:
        made = json.loads((tmp_path / f"{program.stem}.ipynb").read_text())
        sources = ["".join(cell["source"]) for cell in made["cells"]]
        assert sources == [cell.source for cell in tutorials.cells(program)]
        assert made["nbformat"] == 4 and {cell["cell_type"] for cell in made["cells"]} == {"code", "markdown"}


def test_an_unknown_name_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        tutorials.main(["regresion"])
    assert "regression" in capsys.readouterr().err.replace("regresion", "")


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=IDS)
def test_the_program_runs(program):
    for package in NEEDS.get(program.stem, ()):
        pytest.importorskip(package)
    steps = list(tutorials.run(program, quick=True))
    assert any(figures for _, _, figures in steps) and any(output for _, output, _ in steps)
    assert "nan" not in " ".join(output for _, output, _ in steps).lower()


def test_readme_and_the_index_lead_to_them():
    assert "docs/tutorials.md" in README.read_text() and "(tutorials.md)" in (DOCS / "index.md").read_text()
