"""The results of several seeds as a table."""

from __future__ import annotations

import torch


def table(runs: list[dict[str, dict[str, float]]], digits: int = 2) -> str:
    """A line for each method, a cell for each column: mean over the runs +- its standard error."""
    columns = list(next(iter(runs[0].values())))
    first, width = 2 + max(map(len, runs[0])), 2 + max(14, *map(len, columns))
    lines = [" " * first + "".join(f"{column:>{width}}" for column in columns)]
    for name in runs[0]:
        cells = []
        for column in columns:
            values = torch.tensor([one[name][column] for one in runs], dtype=torch.float64)
            cells.append(mean_and_error(values, digits))
        lines.append(f"{name:<{first}}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def over_seeds(number: int) -> str:
    """What the numbers of a table or picture are, for its heading: one seed has no standard error."""
    return "1 seed" if number == 1 else f"mean +- standard error over {number} seeds"


def mean_and_error(values: torch.Tensor, digits: int = 2) -> str:
    """Mean over the seeds +- its standard error, which one seed does not have."""
    if len(values) == 1:
        return f"{values.item():.{digits}f}"
    return f"{values.mean():.{digits}f} +- {values.std() / len(values) ** 0.5:.{digits}f}"
