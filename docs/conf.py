"""The site: pip install -c constraints.txt -e ".[docs]", then sphinx-build -W docs docs/_build."""

from __future__ import annotations

import re

import pyro_vd

project = "pyro_vd"
author = "The pyro_vd developers"
copyright = author  # the name that Sphinx asks for  # noqa: A001
version = release = pyro_vd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyro_vd {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
myst_heading_anchors = 3
# Links out of docs/, to README, CONTRIBUTING and examples, are files of the repository and no pages of the site.
suppress_warnings = ["myst.xref_missing"]

autodoc_typehints = "none"  # units and shapes are in the text
autodoc_member_order = "bysource"


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Escape ``**kwargs`` and ``|z|`` in docstrings, outside of literals and doctests, to show them as written."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("``")
            parts[::2] = [
                re.sub(r"(?<![\w\\*])(\*{1,2}|\|)(?=\w)", lambda m: "\\" + "\\".join(m[0]), p) for p in parts[::2]
            ]
            lines[i] = "``".join(parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon
