"""AutoVariationalDropout: Kingma's variational dropout with learned rates, types A and B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vd.guides.base import Where, WeightGuide, init_to_net_value
from pyro_vd.posteriors import DropoutNormal, WeightPosterior

GRANULARITIES = ("weight", "unit", "layer")


class AutoVariationalDropout(WeightGuide):
    """Multiplicative Gaussian noise with a learned rate, ``N(loc, alpha * loc**2)`` with alpha <= 1.

    Type A: independent noise on every weight. ``log_alpha <= 0`` is kept by projection: the parameter is
    set back to 0 where a step took it above, and its gradient is left as it is. With
    ``TraceVD_ELBO(kl_weight=1 / 3)`` this is the paper's A2.

    Args:
        model: a Pyro model.
        granularity: one alpha per "weight", per output "unit", or per "layer".
        init_log_alpha: where log_alpha starts, <= 0.
        kl: a method of :func:`pyro_vd.kl.kl_log_uniform`; "cubic" is the paper's.
        where, init_loc_fn, create_plates: see :class:`pyro_vd.guides.base.WeightGuide`.

    Raises:
        ValueError: unknown granularity; init_log_alpha > 0.

    Example:
        >>> import pyro_vd as vd
        >>> bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())
        >>> guide = AutoVariationalDropout(bnn, granularity="unit")
        >>> _ = guide(torch.ones(1, 3))
        >>> guide.log_alpha("net.weight").squeeze()
        tensor([[-3., -3., -3.],
                [-3., -3., -3.]], grad_fn=<SqueezeBackward0>)

    References:
        Kingma, Salimans, Welling 2015, arXiv:1506.02557, sections 3 and 4.
    """

    def __init__(
        self,
        model: Callable,
        granularity: str = "weight",
        *,
        init_log_alpha: float = -3.0,
        kl: str = "cubic",
        where: Where = None,
        init_loc_fn: Callable[[Any], Tensor] = init_to_net_value,
        create_plates: Callable | None = None,
    ):
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity: expected one of {', '.join(map(repr, GRANULARITIES))}, got {granularity!r}")
        if not init_log_alpha <= 0:
            raise ValueError(f"init_log_alpha: expected a number <= 0 (alpha <= 1), got {init_log_alpha!r}")
        super().__init__(model, where=where, init_loc_fn=init_loc_fn, create_plates=create_plates)
        self.granularity = granularity
        self.init_log_alpha = float(init_log_alpha)
        self.kl = kl

    def posterior(self, site: str) -> WeightPosterior:
        log_alpha = self._read("log_alpha_raw", site)
        # On .data: the projection is no part of the graph, and must not count as a change of a tensor that
        # an earlier particle saved for its backward pass (it is the same value by then).
        log_alpha.data.clamp_(max=0.0)
        return DropoutNormal(self._read("loc", site), log_alpha, kl=self.kl)

    def _init_weight(self, site: str, value: Tensor, message: Any) -> None:
        self._store("loc", site, value)
        shape = {
            "weight": value.shape,
            "unit": (value.shape[0], *(1,) * (value.dim() - 1)),
            "layer": (1,) * value.dim(),
        }
        self._store("log_alpha_raw", site, torch.full(shape[self.granularity], self.init_log_alpha).to(value))
