"""What ``benchmark.py`` prints and writes: tables, exponents of the growth of time, CSV and figure."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import _figures
import numpy as np
from _programs import PROGRAMS

Row = dict[str, Any]
Curves = dict[str, tuple[list[float], list[float]]]  # program: (sizes, ms)

AXES = {"weights": "width", "depth": "depth", "batch": "batch"}  # what time is drawn against: what varies
COLUMNS = {  # of a table: heading, width, digits
    "ms": ("ms", 10, 3),
    "fastest_ms": ("fastest", 10, 3),
    "device_ms": ("GPU ms", 10, 3),
    "over_lrt": ("/ lrt-comp.", 13, 2),
    "over_graph": ("/ lrt-graph", 13, 2),
    "over_jax": ("/ lrt-jax", 11, 2),
    "over_deterministic": ("/ det.-comp.", 14, 2),
    "floor_ms": ("floor ms", 10, 3),
    "peak_MB": ("peak MB", 9, 1),
    "first_s": ("first s", 9, 1),
    "cold_s": ("cold s", 8, 1),
    "warm_s": ("warm s", 8, 1),
}


def table(rows: list[Row]) -> str:
    """One problem: a line for each program, a column for each quantity that any of them has."""
    columns = {key: column for key, column in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    lines = [f"{'program':<24}" + "".join(heading.rjust(width) for heading, width, _ in columns.values())]
    for row in rows:
        cells = [
            "-".rjust(width) if row[key] is None else f"{row[key]:{width}.{digits}f}"
            for key, (_, width, digits) in columns.items()
        ]
        lines.append(f"{row['program']:<24}{''.join(cells)}   {PROGRAMS[row['program']][0]}")
    work = {tuple(f"{row[key]:.3g}" for key in ("GFLOP", "MB_moved", "floor_ms")): row["program"] for row in rows}
    lines += [f"floor of {name} and the like: {g} GFLOP, {m} MB moved: {t} ms" for (g, m, t), name in work.items()]
    return "\n".join(lines)


def write(rows: list[Row], base: dict[str, int], out: Path) -> None:
    """CSV; and where a size of "mlp" varies around ``base``, exponents and the figure."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = {axis: curves(rows, axis, base) for axis in AXES}
    found = {axis: programs for axis, programs in found.items() if programs}
    for axis, programs in found.items():
        print(f"\n{exponents(axis, programs)}")
    if found:
        _figures.time_against_size(found, out / "benchmark.png")
    print(f"\nbenchmark.csv {'and benchmark.png are' if found else 'is'} in {out}/")


def curves(rows: list[Row], axis: str, base: dict[str, int]) -> Curves:
    """Time of every program and the floor against one size of "mlp", the others as in ``base``; empty for one point."""
    fixed = [name for name in base if name != AXES[axis]]
    chosen = [row for row in rows if row["ms"] and row["net"] == "mlp" and all(row[n] == base[n] for n in fixed)]
    points: dict[str, dict[int, float]] = {}
    for row in sorted(chosen, key=lambda row: row[axis]):
        points.setdefault(row["program"], {})[row[axis]] = row["ms"]
    for row in sorted(chosen, key=lambda row: row[axis]):
        kind = "deterministic" if row["program"].startswith("deterministic") else "LRT"
        points.setdefault(f"floor, {kind}", {})[row[axis]] = row["floor_ms"]
    return {name: (list(ms), list(ms.values())) for name, ms in points.items() if len(ms) > 1}


def exponents(axis: str, programs: Curves) -> str:
    """Least squares slopes of log time against log size: over all sizes, and over their upper half."""
    sizes = next(iter(programs.values()))[0]
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    lines = [f"time ~ {axis} ** exponent: over {sizes[0]:,} to {sizes[-1]:,}, and from {sizes[half]:,} on"]
    for name, (x, y) in programs.items():
        slopes = [np.polyfit(np.log(x[i:]), np.log(y[i:]), 1)[0] for i in (0, half)]
        lines.append(f"{name:<24}" + "".join(f"{slope:8.2f}" for slope in slopes))
    return "\n".join(lines)
