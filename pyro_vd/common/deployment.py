"""What was measured of the forms of a pruned net, of both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DeployRow:
    """One form of the net: median ms a call, elements and bytes of its arrays, or why it cannot be used."""

    form: str
    milliseconds: float
    elements: int
    bytes: int
    problem: str = ""


@dataclass(frozen=True)
class Deployment:
    """What ``deploy`` returns; prints as a table of what was measured.

    Attributes:
        net: the fastest form: a module in eval mode; on NumPyro a compiled function of a batch.
        form: its name.
        rows: a row for each form: ``.form``, ``.milliseconds``, ``.elements``, ``.bytes``, ``.problem``.

    Example:
        See :func:`pyro_vd.deploy`.

    See also:
        :func:`pyro_vd.deploy`, :func:`pyro_vd.numpyro.deploy`.
    """

    net: Any
    form: str
    rows: tuple[DeployRow, ...]

    def __str__(self) -> str:
        lines = [f"{'form':<10}{'ms':>10}{'elements':>12}{'bytes':>12}"]
        for row in self.rows:
            if row.problem:
                lines.append(f"{row.form:<10}{'-':>10}{'-':>12}{'-':>12}  {row.problem}")
                continue
            end = "fastest" if row.form == self.form else ""
            lines.append(f"{row.form:<10}{row.milliseconds:>10.4f}{row.elements:>12,}{row.bytes:>12,}  {end}".rstrip())
        return "\n".join(lines)
