"""What a user prints: tables of sparsity, of gradient variance, of weights and their uses, and of operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SparsityRow:
    """One site, or the total: number of weights, how many are kept, and the two ratios of them.

    ``sparsity = 1 - kept / weights``; ``compression = weights / kept``, infinite where none is kept.
    """

    site: str
    shape: tuple[int, ...]
    weights: int
    kept: int

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.weights

    @property
    def compression(self) -> float:
        return self.weights / self.kept if self.kept else float("inf")


@dataclass(frozen=True)
class SparsityReport:
    """What :func:`sparsity_report` returns: a row for each site, and the total. Prints as a table.

    ``log_alpha_threshold`` is the threshold, given or found for a share; by site where each has a share of its own.
    """

    rows: tuple[SparsityRow, ...]
    log_alpha_threshold: float | Mapping[str, float]

    @property
    def total(self) -> SparsityRow:
        return SparsityRow("total", (), sum(r.weights for r in self.rows), sum(r.kept for r in self.rows))

    @property
    def sparsity(self) -> float:
        return self.total.sparsity

    @property
    def compression(self) -> float:
        return self.total.compression

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """``{site: {"shape", "weights", "kept", "sparsity", "compression"}}``, "total" last."""
        rows = {}
        for row in (*self.rows, self.total):
            fields = asdict(row) | {"sparsity": row.sparsity, "compression": row.compression}
            rows[fields.pop("site")] = fields
        return rows

    def __str__(self) -> str:
        width = max(len(row.site) for row in (*self.rows, self.total))
        lines = [f"{'site':<{width}}  {'shape':>14}  {'weights':>9}  {'kept':>9}  {'sparsity':>8}  {'compression':>11}"]
        for row in (*self.rows, self.total):
            shape = "x".join(map(str, row.shape))
            lines.append(
                f"{row.site:<{width}}  {shape:>14}  {row.weights:>9,}  {row.kept:>9,}  {row.sparsity:>8.2%}  "
                f"{row.compression:>10.1f}x"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of a net.

    Attributes:
        name: in the net.
        layer: class of the layer it belongs to.
        shape: its shape.
        kind: "random", "deterministic" or "frozen".
        why: what makes it so.
        prior: that of a random one, in words; else empty.
        fixed: how many of its elements are constants: padding rows, masked ones.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    kind: str
    why: str
    prior: str = ""
    fixed: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModuleReport:
    """What :meth:`BayesianModule.report` returns: a row for each parameter of the net. Prints as a table."""

    rows: tuple[ParameterRow, ...]

    def of_kind(self, kind: str) -> tuple[ParameterRow, ...]:
        """The rows of one kind: "random", "deterministic" or "frozen"."""
        return tuple(row for row in self.rows if row.kind == kind)

    @property
    def share(self) -> float:
        """Random elements / elements of all parameters that are not frozen and have two dimensions or more, in 0..1.

        Random parameters of one dimension count too.
        """
        random = sum(row.elements for row in self.of_kind("random"))
        return random / max(random + sum(r.elements for r in self.of_kind("deterministic") if len(r.shape) > 1), 1)

    @property
    def summary(self) -> str:
        """One line: how many parameters and elements are random."""
        random = self.of_kind("random")
        elements = sum(row.elements for row in random)
        return (
            f"{len(random)} of {len(self.rows)} parameters are random ({elements:,} elements, {self.share:.1%} of the "
            f"matrices); deterministic {len(self.of_kind('deterministic'))}, frozen {len(self.of_kind('frozen'))}"
        )

    def __str__(self) -> str:
        cells = [("parameter", "layer", "shape", "is", "prior", "why")]
        for row in self.rows:
            why = f"{row.why}; {row.fixed} fixed elements" if row.fixed else row.why
            cells.append((row.name, row.layer, "x".join(map(str, row.shape)) or "scalar", row.kind, row.prior, why))
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = ["  ".join(f"{cell:<{n}}" for cell, n in zip(line, widths, strict=True)).rstrip() for line in cells]
        return "\n".join([*lines, self.summary])


@dataclass(frozen=True)
class GradientVariance:
    """What :func:`gradient_variance` returns. Prints as a table.

    Attributes:
        parameters: for each parameter, the variance of its gradient over draws, elementwise, in the shape
            of the parameter; for a loss in nats.
        sites: names of the sites of the guide.
        num_draws: number of gradients it is from; its relative standard error is near ``sqrt(2 / num_draws)``
            for one element, and far less for a mean over many.

    Example:
        See :func:`pyro_vd.gradient_variance`.

    See also:
        :func:`pyro_vd.gradient_variance`.
    """

    parameters: dict[str, Any]
    sites: tuple[str, ...]
    num_draws: int

    def per_parameter(self) -> dict[str, float]:
        """Mean over the elements of each parameter."""
        return {name: float(variance.mean()) for name, variance in self.parameters.items()}

    def per_layer(self) -> dict[str, float]:
        """Mean over the elements of all parameters of a layer: those of one site up to its last dot."""
        layers: dict[str, list[tuple[float, int]]] = {}
        for name, mean in self.per_parameter().items():
            site = next((site for site in self.sites if name.endswith(site)), name)
            layers.setdefault(site.rpartition(".")[0] or site, []).append((mean, self._elements(name)))
        return {
            layer: sum(mean * number for mean, number in parts) / sum(number for _, number in parts)
            for layer, parts in layers.items()
        }

    def _elements(self, name: str) -> int:
        return math.prod(self.parameters[name].shape)

    def __str__(self) -> str:
        rows = self.per_parameter()
        width = max(map(len, rows))
        lines = [f"{'parameter':<{width}}  {'elements':>9}  mean variance over {self.num_draws} draws"]
        lines += [f"{n:<{width}}  {self._elements(n):>9,}  {value:.4e}" for n, value in rows.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class WeightUse:
    """One site: its number of weights, the operations that used them, in order, and how they were sampled.

    ``how`` is "local", "one draw", or "not used".
    """

    site: str
    shape: tuple[int, ...]
    weights: int
    operations: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class LRTReport:
    """What :func:`lrt_report` returns: ``rows``, one for each site. Prints as a table.

    Example:
        See :func:`pyro_vd.lrt_report`.

    See also:
        :func:`pyro_vd.lrt_report`.
    """

    rows: tuple[WeightUse, ...]

    @property
    def share(self) -> float:
        """Weights sampled locally / all random weights, in 0..1."""
        return sum(row.weights for row in self.rows if row.how == "local") / sum(row.weights for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.site) for row in self.rows)
        lines = [f"{'site':<{width}}  {'shape':>14}  {'weights':>9}  {'sampled':<8}  operations"]
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            operations = ", ".join(dict.fromkeys(row.operations))
            lines.append(f"{row.site:<{width}}  {shape:>14}  {row.weights:>9,}  {row.how:<8}  {operations}")
        return "\n".join([*lines, f"{self.share:.1%} of the weights are sampled locally"])


def markdown_table(rows: Iterable[tuple[tuple[str, ...], tuple[str, ...], str, str]]) -> str:
    """The table of operations in Markdown; a row has operations, weight arguments, kind, and what is dropped."""
    lines = ['| operation | weight argument | under "local" | what is dropped |', "|---|---|---|---|"]
    for operations, weights, kind, drops in rows:
        names, arguments = (", ".join(f"`{name}`" for name in several) for several in (operations, weights))
        lines.append(f"| {names} | {arguments} | {kind} | {drops} |")
    return "\n".join(lines)
