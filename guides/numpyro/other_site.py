"""Latent sites other than weights, such as a noise scale: a Gaussian on the real line, mapped to their support."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints, transforms

from pyro_vd.guides.numpyro.coverage import check_supports
from pyro_vd.guides.numpyro.quantiles import mapped_quantiles
from pyro_vd.numpyro.arguments import check_names
from pyro_vd.numpyro.checks import describe

INIT_SCALE = 0.1  # of numpyro.infer.autoguide.AutoNormal


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["transform", "start"],
    meta_fields=["name", "prefix", "event_dim", "frames"],
)
@dataclass(frozen=True)
class OtherSite:
    """One site, covered as NumPyro's ``AutoNormal`` covers it: the same distribution, parameters and names.

    ``value = transform(loc + scale * e)``. Its KL to the prior has no closed form in general: TraceVD_ELBO estimates
    it from the draw.

    Attributes:
        name: of the site.
        prefix: of the guide.
        transform: from the real line to the support.
        start: where ``loc`` starts, on the real line.
        event_dim: number of dimensions of an event there.
        frames: the plates around it.
    """

    name: str
    prefix: str
    transform: Any
    start: Array
    event_dim: int
    frames: tuple[Any, ...]

    def sample(self) -> Any:
        """The sample statement of a guide; its plates are opened by the guide."""
        parameters = {
            self._loc: numpyro.param(self._loc, self.start, event_dim=self.event_dim),
            self._scale: numpyro.param(
                self._scale,
                jnp.full_like(self.start, INIT_SCALE),
                constraint=constraints.softplus_positive,
                event_dim=self.event_dim,
            ),
        }
        self._check_shapes(parameters)
        return numpyro.sample(self.name, self._distribution(parameters), infer={"estimate_kl": True})

    def median(self, params: Any) -> Array:
        """The median of the site."""
        self._check(params)
        return self.transform(jnp.asarray(params[self._loc]))

    def quantiles(self, params: Any, probabilities: list[float]) -> Array:
        """Quantiles of every element, shape ``(number of probabilities, *shape of the site)``."""
        self._check(params)
        return mapped_quantiles(self.name, self.transform, params[self._loc], params[self._scale], probabilities)

    def sample_posterior(self, key: Array, params: Any, sample_shape: tuple[int, ...]) -> Array:
        """Draws, shape ``sample_shape + shape of the site``."""
        self._check(params)
        return jnp.asarray(self._distribution(params).sample(key, sample_shape))

    def _distribution(self, params: Any) -> dist.Distribution:
        normal = dist.Normal(params[self._loc], params[self._scale]).to_event(self.event_dim)
        is_real = isinstance(self.transform, transforms.IdentityTransform)
        return normal if is_real else dist.TransformedDistribution(normal, self.transform)

    def _check(self, params: Any) -> None:
        check_names(f"site {self.name!r}", params, (self._loc, self._scale), params)
        self._check_shapes(params)

    def _check_shapes(self, params: Any) -> None:
        for name in (self._loc, self._scale):
            if params[name] is not None and jnp.shape(params[name]) != jnp.shape(self.start):
                raise ValueError(
                    f"parameter {name!r}: expected a value of shape {jnp.shape(self.start)}, as this guide starts it, "
                    f"got {jnp.shape(params[name])}; give the parameters that were trained with this model and guide"
                )

    @property
    def _loc(self) -> str:
        return f"{self.name}_{self.prefix}_loc"

    @property
    def _scale(self) -> str:
        return f"{self.name}_{self.prefix}_scale"


def other_sites(
    guide: str, prefix: str, program: Callable, trace: dict[str, Any], names: list[str], args: tuple, kwargs: dict
) -> dict[str, OtherSite]:
    """The covers of the sites with these ``names``, from a run of the model that :func:`check_supports` describes."""
    check_supports(program, trace, names, args, kwargs)
    return {name: other_site(name, trace[name], prefix, guide) for name in names}


def other_site(name: str, message: Any, prefix: str, guide: str) -> OtherSite:
    """The cover of a site, from its message in a trace of the model.

    Raises:
        ValueError: a discrete site, or one on a support that no map from the real line reaches.
    """
    fn, value = message["fn"], message["value"]
    support = fn.support
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if fn.support.is_discrete:
        raise ValueError(
            f"site {name!r}: expected a continuous latent site for {guide}, got {describe(fn)}, which is discrete; sum "
            "it out in the model (dist.MixtureSameFamily), or give the guide where= and write a guide of this site"
        )
    if base is constraints.real:
        transform: Any = transforms.IdentityTransform()
    else:
        try:
            transform = transforms.biject_to(support)
        except NotImplementedError:
            raise ValueError(
                f"site {name!r}: expected a support that the real line is mapped to for {guide}, got {support} of "
                f"{describe(fn)}; give the guide where= and write a guide of this site"
            ) from None
    with jax.ensure_compile_time_eval():
        start = jnp.asarray(transform.inv(jnp.asarray(value)))
    event_dim = fn.event_dim + start.ndim - jnp.ndim(value)
    return OtherSite(name, prefix, transform, start, event_dim, tuple(message["cond_indep_stack"]))
