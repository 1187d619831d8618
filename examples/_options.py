"""The options that every example has, and what ``--quick`` means."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import _data


def parser(
    doc: str | None, name: str | None, *, seeds: int | None = None, data: bool = True, bar: bool = True
) -> argparse.ArgumentParser:
    """A parser with --quick, --seed, --out and --quiet.

    Args:
        doc: the docstring of the example, which ``--help`` shows as it is.
        name: of the folder in ``out/`` that --out stands for; None for an example that prints and writes nothing.
        seeds: how many seeds a run takes unless told otherwise; adds --seeds.
        data: whether to add --dataset and --data-dir.
        bar: whether there is a progress bar, which --quiet leaves out; without it the example prints as it goes.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    made.add_argument("--seed", type=int, default=0, help="the first one" if seeds else None)
    if seeds:
        made.add_argument("--seeds", type=int, default=seeds, help=f"runs, one a seed; default {seeds}")
    if name:
        made.add_argument("--out", default=f"out/{name}", help=f"folder of pictures and numbers; default out/{name}")
    if bar:
        made.add_argument("--quiet", action="store_true", help="no progress bar")
    if data:
        made.add_argument("--dataset", choices=_data.NAMES, default="digits", help="default digits")
        made.add_argument("--data-dir", default="data", help="folder of the IDX files of mnist and fashion-mnist")
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None, **quick: Any) -> argparse.Namespace:
    """Parse; with --quick the values of ``quick`` are the defaults of the options that they name."""
    args = made.parse_args(argv)
    if args.quick:
        made.set_defaults(**quick)
        args = made.parse_args(argv)
    return args


def require(**packages: str) -> None:
    """Exit with one sentence where a package is missing that the extra ``examples`` does not bring.

    Args:
        packages: the name of each, with what ``pip install`` is to be given.
    """
    for package, install in packages.items():
        if find_spec(package) is None:
            raise SystemExit(f"this example needs {package}, which is not installed; write pip install {install}")
