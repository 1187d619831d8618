"""What the pictures share: axes, colours, lines and hatches."""

from __future__ import annotations

from typing import Any

from pyro_vd.common.extras import imported
from pyro_vd.common.options import shown

# Of Okabe and Ito's palette, which the colour-blind tell apart. Neighbours differ in lightness; lines and hatches tell
# all of them apart in grey. Black is for data, grey for lines that explain.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
FILL = "#56B4E9"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "\\\\\\", "...", "xxx")


def axes(ax: Any, owner: str) -> Any:
    """The axes that were given, or those of a new figure."""
    pyplot = imported("matplotlib.pyplot", "plots", owner)
    if ax is None:
        return pyplot.subplots(figsize=(6, 4.5), layout="constrained")[1]
    if not hasattr(ax, "fill_between"):
        raise TypeError(f"{owner}: expected ax to be axes of matplotlib, got {shown(ax)}; write plt.subplots()[1]")
    return ax


def finish(ax: Any, title: str, x: str, y: str, **options: Any) -> Any:
    """Title, labels, grid and legend."""
    ax.set(title=title, xlabel=x, ylabel=y, **options)
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.legend()
    return ax
