"""The pages of docs/: their programs run, their links lead somewhere, and no public name is left out."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import pyro_vd as vd
from helpers.pages import DOCS, PAGES, anchors, links, programs, prose
from helpers.paths import README
from pyro_vd import guides
from pyro_vd.operations import TABLE

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the tests were taken out of the repository")

IDS = [page.stem for page in PAGES]
NEEDS = {"deploy": ("onnxruntime", "onnxscript", "torchao")}  # packages of extras, of the programs of a page


@pytest.fixture
def table():
    """The table of operations, which a program may add to, as it was."""
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem in ("compiled", "numpyro", "deploy", "judging") else ())
        for page in PAGES
        if page != README and programs(page)
    ],
    ids=lambda page: page.stem,
)
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")  # of PyTorch's exporter
def test_the_programs_of_a_page_run_one_after_another(page, table):
    for needed in NEEDS.get(page.stem, ()):
        pytest.importorskip(needed)
    names: dict = {"__name__": page.stem}
    for i, source in enumerate(programs(page)):
        # Fewer steps: what is tested is that the program runs as printed, not how well it trains.
        source = re.sub(r"range\((?:800|400)\)", "range(3)", source)
        exec(compile(source, f"{page.name}, program {i}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_links_are_found():
    assert len(links(README)) > 15 and "what-is-exact-and-what-is-not" in anchors(DOCS / "concepts.md")


def test_every_page_is_in_the_index_and_linked_from_readme_or_the_index():
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        if page.stem != "index":
            assert f"({page.name}" in index and re.search(rf"^{page.stem}$", index, flags=re.M), page.name


def documented(page: str) -> set[str]:
    return set(re.findall(r"^\.\. auto(?:class|function):: (\S+)$", (DOCS / page).read_text(), flags=re.M))


def test_every_public_name_is_in_the_reference():
    modules = {"__version__", "guides", "kl", "metrics", "numpyro", "operations", "plots", "posteriors", "training"}
    names = {f"pyro_vd.{name}" for name in dir(vd) if name not in modules}
    names |= {f"pyro_vd.guides.{name}" for name in vars(guides) if name.startswith("Auto") or name == "mixed_guide"}
    names |= {"pyro_vd.kl.kl_ard", "pyro_vd.kl.kl_log_uniform"}
    names |= {f"pyro_vd.training.{name}" for name in vars(vd.training) if inspect.isfunction(vars(vd.training)[name])}
    names |= {f"pyro_vd.training.lightning.{name}" for name in ("VariationalModule", "SparsityTable")}
    for module in (vd.metrics, vd.plots):
        made = {
            name: value for name, value in vars(module).items() if inspect.isfunction(value) or inspect.isclass(value)
        }
        names |= {f"{module.__name__}.{name}" for name, value in made.items() if not name.startswith("_")}
    assert names == documented("api.md")


def test_every_public_name_of_the_numpyro_side_is_in_its_reference():
    pytest.importorskip("jax")
    import pyro_vd.numpyro as mirror
    from pyro_vd.guides import numpyro as mirror_guides

    modules = {"guides", "kl", "metrics", "operations", "plots", "posteriors", "training"}
    listed = documented("api_numpyro.md")
    names = {f"pyro_vd.numpyro.{name}" for name in dir(mirror) if name not in modules}
    text = prose(DOCS / "api_numpyro.md")
    shared = {name for name in names if f"`{name.rpartition('.')[2]}`" in text}
    names = (names - shared) | {"pyro_vd.numpyro.kl.kl_ard", "pyro_vd.numpyro.kl.kl_log_uniform"}
    names |= {f"pyro_vd.guides.numpyro.{n}" for n in vars(mirror_guides) if n.startswith("Auto") or n == "mixed_guide"}
    assert names == listed
    assert all(f"pyro_vd.{name.rpartition('.')[2]}" in documented("api.md") for name in shared)


def test_every_guide_and_estimator_is_in_the_tables_of_choosing():
    text = (DOCS / "families.md").read_text()
    for name in vars(guides):
        assert not name.startswith("Auto") or f"`{name}" in text, name
    for estimator in vd.estimators.ESTIMATORS:
        assert f'`"{estimator}"`' in text


def test_every_section_of_results_has_a_command():
    sections = re.split(r"^## ", (DOCS / "results.md").read_text(), flags=re.M)[1:]
    assert len(sections) >= 9
    for section in sections:
        for command in re.findall(r"python (examples/\w+\.py)", section):
            assert (README.parent / command).exists(), command
        assert "python examples/" in section or "benchmark.py" in section, section[:40]


def test_pictures_are_small():
    pictures = list((DOCS / "images").iterdir())
    assert pictures and all(picture.stat().st_size < 100_000 for picture in pictures)


def test_the_picture_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(DOCS)
    importlib.import_module("draw").main(tmp_path, steps=(2, 2, 5))
    for picture in ("overview.png", "local.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "BayesianModule" in (tmp_path / "site" / "api.html").read_text()
