"""The table and the picture of an error against the pruning threshold, for both backends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_vd.common.options import as_number, is_scalar, shown

# Shares pruned at the thresholds that are tried unless others are given: closer together where few weights stay.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.998)


@dataclass(frozen=True)
class ThresholdRow:
    """One pruned net: its threshold on log_alpha (natural log), how many weights stay, and its error.

    ``metrics`` holds all that ``evaluate`` returned, "error" first.
    """

    log_alpha_threshold: float
    weights: int
    kept: int
    error: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.weights


@dataclass(frozen=True)
class ThresholdCurve:
    """What :func:`threshold_curve` returns; prints as a table.

    Attributes:
        rows: a :class:`ThresholdRow` for each threshold, the sparsest first, the unpruned net last.

    Example:
        >>> rows = ThresholdRow(0.0, 100, 5, 9.0), ThresholdRow(3.0, 100, 20, 2.2), ThresholdRow(math.inf, 100, 90, 2.0)
        >>> curve = ThresholdCurve(rows)
        >>> curve.choose(tolerance=0.5).log_alpha_threshold, curve.unpruned.error
        (3.0, 2.0)

    See also:
        :func:`pyro_vd.threshold_curve`, :func:`pyro_vd.prune`.
    """

    rows: tuple[ThresholdRow, ...]

    @property
    def unpruned(self) -> ThresholdRow:
        """The mean network: the row of the threshold infinity."""
        return self.rows[-1]

    def choose(self, tolerance: float) -> ThresholdRow:
        """The sparsest net whose error is at most that of the unpruned one plus ``tolerance``.

        Args:
            tolerance: in the unit of the error, 0 or more.

        Raises:
            ValueError: a tolerance that is negative or not finite; an unpruned net whose error is infinite.
        """
        if isinstance(tolerance, (bool, str)) or not 0 <= float(tolerance) < math.inf:
            raise ValueError(
                f"choose: expected a tolerance of 0 or more in the unit of the error, got {tolerance!r}; write 0.1 "
                "for a tenth of a percent of errors in percent"
            )
        if not math.isfinite(self.unpruned.error):
            raise ValueError(
                f"choose: expected an unpruned net with a finite error, got {self.unpruned.error}, within which every "
                "net is; train the net, or correct evaluate"
            )
        return next(row for row in self.rows if row.error <= self.unpruned.error + tolerance)

    def plot(self) -> Any:
        """Every metric, and the share of the weights that stay, against the threshold; a figure of matplotlib."""
        try:
            from matplotlib import pyplot
        except ImportError:
            raise ImportError("plot: expected matplotlib, found none; write pip install matplotlib") from None
        rows = [row for row in self.rows if math.isfinite(row.log_alpha_threshold)]
        x = [row.log_alpha_threshold for row in rows]
        names = list(self.unpruned.metrics)
        figure, axes = pyplot.subplots(
            1, len(names), figsize=(5.5 * len(names), 4), layout="constrained", squeeze=False
        )
        for axis, name in zip(axes[0], names, strict=True):
            lines = axis.plot(x, [row.metrics[name] for row in rows], marker=".", label=name)
            lines.append(axis.axhline(self.unpruned.metrics[name], color="gray", linestyle="--", label="unpruned"))
            axis.set(xlabel="log_alpha threshold", ylabel=name)
            axis.grid(alpha=0.3)
            right = axis.twinx()
            kept = [100 * row.kept / row.weights or math.nan for row in rows]
            lines += right.plot(x, kept, marker=".", color="tab:orange", label="weights kept")
            right.set(ylabel="weights kept (%)", yscale="log")
            axis.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3, frameon=False)
        return figure

    def __str__(self) -> str:
        names = list(self.unpruned.metrics)
        lines = [f"{'threshold':>9}  {'kept':>9}  {'sparsity':>8}" + "".join(f"  {name:>10}" for name in names)]
        for row in self.rows:
            cells = "".join(f"  {row.metrics[name]:>10.4g}" for name in names)
            lines.append(f"{row.log_alpha_threshold:>9.3f}  {row.kept:>9,}  {row.sparsity:>8.2%}{cells}")
        return "\n".join(lines)


def build_curve(
    row_of: Callable[[float], tuple[int, int, Callable[[], Any]]],
    default_thresholds: Callable[[], Sequence[float]],
    thresholds: Sequence[float] | None,
) -> ThresholdCurve:
    """Prune and evaluate at every threshold; ``row_of`` gives weights, kept ones, and the evaluation of a threshold."""
    if thresholds is None:
        chosen = list(default_thresholds())
    else:
        several = isinstance(thresholds, Iterable) and not isinstance(thresholds, str) and not is_scalar(thresholds)
        chosen = list(thresholds) if several else []
        if not chosen or any(as_number(threshold) is None for threshold in chosen):
            raise ValueError(f"thresholds: expected numbers, got {shown(thresholds)}; write thresholds=[1.0, 2.0, 3.0]")
    rows: dict[float, ThresholdRow] = {}
    names: list[str] = []
    for threshold in sorted({*map(float, chosen), math.inf}):
        weights, kept, evaluate = row_of(threshold)
        metrics = _metrics(evaluate(), threshold)
        if names and list(metrics) != names:
            raise ValueError(
                f"evaluate: expected {names} for every net, got {list(metrics)} at threshold {threshold:g}"
            )
        names = list(metrics)
        rows[threshold] = ThresholdRow(threshold, weights, kept, metrics["error"], metrics)
    return ThresholdCurve(tuple(rows.values()))


def _metrics(returned: Any, threshold: float) -> dict[str, float]:
    metrics = dict(returned) if isinstance(returned, Mapping) else {"error": returned}
    if "error" not in metrics:
        raise ValueError(f"evaluate: expected a number, or a mapping with 'error' among its names, got {list(metrics)}")
    try:
        found = {name: float(metrics[name]) for name in ("error", *(name for name in metrics if name != "error"))}
    except (TypeError, ValueError):
        raise TypeError(f"evaluate: expected a number, or a mapping to numbers, got {returned!r}") from None
    if math.isnan(found["error"]):
        raise ValueError(
            f"evaluate: expected an error, lower is better, got NaN at threshold {threshold:g}; return a large number "
            "or math.inf for a net that fails"
        )
    return found
