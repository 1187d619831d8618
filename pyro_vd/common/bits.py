"""Bits that a weight needs, from its posterior; for both backends."""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOAT_BITS = 32  # more are not counted: a weight is a float32 then


@dataclass(frozen=True)
class BitsRow:
    """One site: its weights, how many are kept, the step of its grid, and the bits of a kept weight on it."""

    site: str
    weights: int
    kept: int
    step: float
    bits: int


@dataclass(frozen=True)
class BitsReport:
    """What :func:`weight_bits` returns; prints as a table.

    Attributes:
        rows: a :class:`BitsRow` for each site.

    Example:
        >>> row = bits_row("net.weight", weights=100, kept=10, largest=1.0, variance=0.01)
        >>> report = BitsReport((row,))
        >>> report.bits, report.compression
        (5.0, 64.0)

    See also:
        :func:`pyro_vd.weight_bits`.
    """

    rows: tuple[BitsRow, ...]

    @property
    def bits(self) -> float:
        """Bits of a kept weight, on average."""
        return sum(row.bits * row.kept for row in self.rows) / max(sum(row.kept for row in self.rows), 1)

    @property
    def compression(self) -> float:
        """Bits of all weights as float32, over those of the kept ones; what says where they are is not counted."""
        used = sum(row.bits * row.kept for row in self.rows)
        return FLOAT_BITS * sum(row.weights for row in self.rows) / used if used else math.inf

    def __str__(self) -> str:
        width = max(len(name) for name in ("total", *(row.site for row in self.rows)))
        lines = [f"{'site':<{width}}  {'weights':>9}  {'kept':>9}  {'step':>10}  {'bits':>5}"]
        for row in self.rows:
            lines.append(f"{row.site:<{width}}  {row.weights:>9,}  {row.kept:>9,}  {row.step:>10.3g}  {row.bits:>5}")
        total = (sum(row.weights for row in self.rows), sum(row.kept for row in self.rows))
        lines.append(f"{'total':<{width}}  {total[0]:>9,}  {total[1]:>9,}  {'':>10}  {self.bits:>5.1f}")
        return "\n".join(lines)


def bits_row(site: str, weights: int, kept: int, largest: float, variance: float) -> BitsRow:
    """The grid of a site: the largest power of two of which half is at most the standard deviation.

    Args:
        largest: the largest absolute mean of the kept weights.
        variance: the mean of their variances.
    """
    if not kept:
        return BitsRow(site, weights, 0, 0.0, 0)
    if variance <= 0:
        return BitsRow(site, weights, kept, 0.0, FLOAT_BITS)
    step = 2.0 ** math.floor(math.log2(2 * math.sqrt(variance)))
    return BitsRow(site, weights, kept, step, min(1 + math.ceil(math.log2(round(largest / step) + 1)), FLOAT_BITS))
