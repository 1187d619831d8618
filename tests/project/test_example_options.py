"""The options of the examples: alike everywhere, and what --quick stands for."""

from __future__ import annotations

import importlib
import re
import runpy
import sys

import pytest

from helpers.paths import EXAMPLES

if not EXAMPLES.exists():
    pytest.skip("the tests were taken out of the repository", allow_module_level=True)
pytest.importorskip("sklearn")

# mini_vd.py is plain Pyro in one file; gpu_report.py has a time to keep.
OTHERS = {"mini_vd.py", "gpu_report.py"}


@pytest.fixture(scope="module")
def options():
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("_options")
    sys.path.remove(str(EXAMPLES))


def test_every_example_has_them():
    for file in EXAMPLES.glob("[!_]*.py"):
        source = file.read_text()
        if "_options.parser(" in source:
            assert re.search(rf'_options\.parser\(__doc__, (None|"{file.stem}")', source), file.name
            assert "_options.parse(parser, " in source, file.name
        elif file.name not in OTHERS:
            assert all(f'{option}"' in source for option in ("--quick", "seed", "--out")), file.name


def test_every_option_says_what_it_is(options):
    shown = options.parser("What it does.", "folder", seeds=3).format_help()
    for option in ("--quick", "--seed ", "--seeds ", "--out ", "--quiet", "--dataset ", "--data-dir "):
        assert option in shown
    assert "What it does." in shown and "out/folder" in shown
    fewer = options.parser("", None, bar=False).format_help()
    assert "--quiet" not in fewer and "--out" not in fewer


def test_quick_changes_defaults_and_nothing_that_was_asked_for(options):
    parser = options.parser("", "folder", seeds=3)
    parser.add_argument("--epochs", type=int, default=100)
    given = ([], ["--quick"], ["--quick", "--epochs", "7"])
    parsed = [options.parse(parser, argv, epochs=2, seeds=1) for argv in given]
    assert [(one.epochs, one.seeds) for one in parsed] == [(100, 3), (2, 1), (7, 1)]


def test_quick_is_said_to_the_parser_alone():
    """What reads it elsewhere undoes options that were given; in deploy.py it leaves out forms, which none names."""
    readers = {file.name: len(re.findall(r"\.quick\b", file.read_text())) for file in EXAMPLES.glob("*.py")}
    assert {name: count for name, count in readers.items() if count} == {"_options.py": 1, "deploy.py": 2}


@pytest.mark.parametrize(
    ("arguments", "package", "install"),
    [
        (["lightning_digits.py"], "lightning", '-e ".[lightning]"'),
        (["uncertainty.py", "--quick"], "torchmetrics", '-e ".[metrics]"'),
        (["deploy.py", "--quick"], "safetensors", '-e ".[safetensors]"'),
        (["lora.py", "--quick"], "peft", '-e ".[networks]"'),
        (["sparse_mlp.py", "--quick", "--backend", "numpyro"], "flax", "flax"),
        (["compare_backends.py", "--quick"], "numpyro", '-e ".[numpyro]"'),
    ],
    ids=lambda value: value[0].removesuffix(".py") if isinstance(value, list) else None,
)
def test_what_an_example_needs_besides_is_said_at_once(arguments, package, install, options, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", arguments)
    file = EXAMPLES / arguments[0]
    with pytest.raises(SystemExit) as found:
        runpy.run_path(str(file), run_name="__main__")
    assert found.value.code == f"this example needs {package}, which is not installed; write pip install {install}"
    assert "pip install -e" in file.read_text().split('"""')[1]
