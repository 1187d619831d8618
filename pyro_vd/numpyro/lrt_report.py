"""What a model does with its random weights: which operations use them, and which share is sampled locally."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array
from numpyro.distributions import Normal
from numpyro.handlers import replay, seed, substitute, trace

from pyro_vd.common.reports import LRTReport, WeightUse
from pyro_vd.numpyro.arguments import check_call
from pyro_vd.numpyro.checks import check_parameter_sites, latent_sites
from pyro_vd.numpyro.handlers import Reuse, SharedSites, base_distribution, lrt
from pyro_vd.numpyro.posteriors import WeightPosterior
from pyro_vd.numpyro.weights import RandomWeight, run_counted


def lrt_report(
    rng_key: Array,
    params: Mapping[str, Any],
    model: Callable,
    guide: Callable,
    *args: Any,
    shared_sites: SharedSites = (),
    reuse: Reuse = "error",
    **kwargs: Any,
) -> LRTReport:
    """Run guide and model once under local reparameterization, and say what became of every random weight.

    Args:
        rng_key: a random key.
        params: parameters of model and guide, as ``svi.get_params`` returns them; for a net with a state together
            with ``svi_state.mutable_state``.
        model, guide: NumPyro model and guide.
        *args, **kwargs: their arguments.
        shared_sites, reuse: see :func:`pyro_vd.numpyro.lrt`.

    Returns:
        A row for every weight of the guide, and for every vector that it draws from a plain ``Normal``, once a step.
        Operations without a rule warn, as in training.

    Raises:
        ValueError: a guide without random weights; a weight used twice; a parameter that is missing or unknown.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro, pyro_vd.numpyro as vd
        >>> from pyro_vd.guides.numpyro import AutoSparseVD
        >>> bnn = vd.BayesianModule(eqx.nn.Linear(3, 2, key=jax.random.key(0)), vd.ImproperLogUniform())
        >>> guide, x = AutoSparseVD(bnn), jnp.ones((5, 3))
        >>> svi = numpyro.infer.SVI(bnn, guide, numpyro.optim.Adam(1e-3), vd.TraceVD_ELBO())
        >>> params = svi.get_params(svi.init(jax.random.key(0), x))
        >>> print(vd.lrt_report(jax.random.key(0), params, bnn, guide, x))
        site                 shape    weights  sampled   operations
        net.weight             2x3          6  local     dot_general
        100.0% of the weights are sampled locally

    See also:
        :class:`pyro_vd.numpyro.LRTReport`, :func:`pyro_vd.numpyro.operations_table`,
        :meth:`pyro_vd.numpyro.BayesianModule.report`.
    """
    owner = "lrt_report"
    params = check_call(owner, rng_key, params, model, guide, args, kwargs)
    local = lrt(guide, shared_sites=shared_sites, reuse=reuse)
    guide_trace = trace(substitute(seed(local, rng_key), data=dict(params))).get_trace(*args, **kwargs)

    def run(drawn: Mapping[str, Any]) -> Any:
        ran = {name: {**site, "value": drawn[name]} if name in drawn else site for name, site in guide_trace.items()}
        replayed = substitute(replay(seed(model, rng_key), ran), data=dict(params))  # type: ignore[arg-type]
        return trace(replayed).get_trace(*args, **kwargs)

    model_trace = run_counted(run, {name: site["value"] for name, site in latent_sites(guide_trace)})
    check_parameter_sites(owner, params, guide_trace, model_trace)
    rows = []
    for name, site in latent_sites(guide_trace):
        if not isinstance(base_distribution(site["fn"]), WeightPosterior) and not _is_plain_vector(site):
            continue
        value: Any = site["value"]
        operations, how = (), "one draw"
        if isinstance(value, RandomWeight):
            operations = tuple(operation for operation, _ in value.state.used)
            how = "one draw" if value.state.drawn else "local" if operations else "not used"
        rows.append(WeightUse(name, tuple(value.shape), value.size, operations, how))
    if not rows:
        raise ValueError(
            "lrt_report: expected a guide that samples random weights, got the sites "
            f"{[name for name, _ in latent_sites(guide_trace)]}; use a guide of pyro_vd.guides.numpyro"
        )
    return LRTReport(tuple(rows))


def _is_plain_vector(site: Any) -> bool:
    fn = site["fn"]
    is_one = fn.event_dim == 1 and not fn.batch_shape and not site["cond_indep_stack"]
    return is_one and isinstance(base_distribution(fn), Normal) and not site["infer"].get("is_auxiliary")
