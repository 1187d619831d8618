"""AutoVariationalDropout: Kingma's variational dropout with learned rates, types A and B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from pyro_vd.common.guide_options import checked_options
from pyro_vd.common.options import LogUniformKL
from pyro_vd.guides.base import WeightGuide
from pyro_vd.posteriors import CorrelatedDropoutNormal, DropoutNormal, WeightPosterior
from pyro_vd.posteriors.fixed import with_fixed_ratio


class AutoVariationalDropout(WeightGuide):
    """Multiplicative Gaussian noise with a learned rate, alpha <= 1: Kingma's variational dropout.

    Type A: independent noise on every weight, ``N(loc, alpha * loc**2)``. Type B (``correlated=True``):
    one noise for each input unit, ``W = s * loc``, ``s_i ~ N(1, alpha_i)``. ``log_alpha <= 0`` is kept by
    projection: the parameter is set back to 0 where a step took it above, and its gradient is left as
    it is. Type A with ``TraceVD_ELBO(kl_weight=1 / 3)`` is the paper's A2.

    Args:
        model: a Pyro model.
        granularity: one alpha per "weight", per "unit" (type A: output unit, type B: input unit) or per
            "layer"; "weight" for type A and "unit" for type B if not given.
        correlated: type B.
        init_log_alpha: where log_alpha starts, <= 0.
        kl: a method of :func:`pyro_vd.kl.kl_log_uniform`; "cubic" is the paper's.
        unit_dim: for type B, the dimension of the weight where its input units lie.
        **options: ``where``, ``init_loc_fn``, ``create_plates`` of :class:`pyro_vd.guides.base.WeightGuide`.

    Raises:
        ValueError: unknown granularity; "weight" for type B; init_log_alpha > 0; for type B, a site without input
            units.

    Example:
        >>> import torch, pyro_vd as vd
        >>> bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())
        >>> guide = AutoVariationalDropout(bnn, granularity="unit")
        >>> _ = guide(torch.ones(1, 3))
        >>> guide.log_alpha("net.weight").shape
        torch.Size([2, 1])

    References:
        Kingma, Salimans, Welling 2015, arXiv:1506.02557, sections 3 and 4.

    See also:
        :class:`pyro_vd.guides.AutoSparseVD`, :class:`pyro_vd.guides.AutoGaussianDropout`,
        :class:`pyro_vd.DropoutNormal`.
    """

    @checked_options
    def __init__(
        self,
        model: Callable,
        granularity: Literal["weight", "unit", "layer"] | None = None,
        *,
        correlated: bool = False,
        init_log_alpha: float = -3.0,
        kl: LogUniformKL = "cubic",
        unit_dim: int = 1,
        **options: Any,
    ):
        allowed = ("unit", "layer") if correlated else ("weight", "unit", "layer")
        granularity = allowed[0] if granularity is None else granularity
        if not isinstance(granularity, str) or granularity not in allowed:
            raise ValueError(
                f"granularity: expected one of {', '.join(map(repr, allowed))} with correlated={correlated}, got "
                f"{granularity!r}"
            )
        if not init_log_alpha <= 0:
            raise ValueError(f"init_log_alpha: expected a number <= 0 (alpha <= 1), got {init_log_alpha!r}")
        self.granularity = granularity
        self.correlated = correlated
        self.init_log_alpha = float(init_log_alpha)
        self.kl: LogUniformKL = kl
        self.unit_dim = unit_dim if correlated else None
        super().__init__(model, **options)

    def _free_posterior(self, site: str) -> WeightPosterior:
        loc, log_alpha = self._read("locs", site), self._projected(site)
        if self.correlated:
            return CorrelatedDropoutNormal(loc, log_alpha, unit_dim=self.unit_dim, kl=self.kl)
        return DropoutNormal(loc, log_alpha, kl=self.kl)

    def log_alpha(self, site: str) -> Tensor:
        return with_fixed_ratio(self._projected(self._known(site)), self._fixed(site))

    def _projected(self, site: str) -> Tensor:
        log_alpha = self._read("log_alphas", site)
        # On .data: the projection is not part of the graph, and must not count as a change of a tensor that
        # an earlier particle saved for its backward pass (it is the same value by then).
        log_alpha.data.clamp_(max=0.0)
        return log_alpha

    def _init_weight(self, site: str, value: Tensor) -> None:
        self._store("locs", site, value)
        shape = list(value.shape) if self.granularity == "weight" else [1] * value.dim()
        if self.granularity == "unit":
            dim = self.unit_dim if self.correlated else 0
            shape[dim] = value.shape[dim]
        self._store("log_alphas", site, value.new_full(shape, self.init_log_alpha))
