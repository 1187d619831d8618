"""Plates, handlers, scans and guides together have the loss of NumPyro's own ELBO; two faults of them in words."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro import handlers, plate, sample
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField, mixed_guide

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (12, 3))
Y = X[:, 0] + 0.1
net = vd.BayesianModule(eqx.nn.Linear(3, 1, key=KEY), dist.Normal(0.0, 1.0))
first = vd.BayesianModule(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), dist.Normal(0.0, 1.0), name="first")


def scaled(x, y):
    mean = net(x)[:, 0]
    with plate("data", 12, subsample_size=4) as i, handlers.scale(scale=2.0), handlers.mask(mask=y[i] > 0):
        sample("y", dist.Normal(mean[i], 1.0), obs=y[i])


def two_plates(x, y):
    mean, several = net(x), jnp.stack([y, 2 * y, -y], -1)
    with plate("outputs", 3, dim=-1, subsample_size=2) as o, plate("data", 12, dim=-2, subsample_size=5) as i:
        sample("y", dist.Normal(mean[i], 1.0), obs=several[i][:, o])


def scanned(x, y):
    mean = net(x)[:, 0]

    def step(state, now):
        state = sample("state", dist.Normal(0.5 * state, 1.0))
        sample("y", dist.Normal(state + now[0], 1.0), obs=now[1])
        return state, None

    scan(step, 0.0, (mean, y))


def levels(x, y):
    mean = net(x)[:, 0]
    top = sample("top", dist.Normal(0.0, 1.0))
    shift = sample("shift", dist.Normal(top, 2.0))
    with plate("data", 12):
        sample("y", dist.Normal(mean + shift, 1.0), obs=y)


def mixed(model):
    return mixed_guide(
        model, AutoMeanField(model, where="net.*"), AutoNormal(handlers.block(model, expose=["top", "shift"]))
    )


PROGRAMS = {
    "scale, mask and subsample": (scaled, AutoMeanField),
    "two subsampled plates": (two_plates, AutoMeanField),
    "scan": (scanned, AutoMeanField),
    "a mixed guide": (levels, mixed),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_combination_has_the_loss_of_numpyro(name):
    """1000 draws and a bound of 6 standard errors: the four fail by chance with odds below 1e-6."""
    model, make = PROGRAMS[name]
    guide, elbo = make(model), vd.TraceVD_ELBO(analytic_only=False)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), elbo)
    params = svi.get_params(svi.init(KEY, X, Y))
    params = {n: value + 6.0 if "log_sigma2" in n else value for n, value in params.items()}  # noise that counts
    keys = jax.random.split(KEY, 1000)
    ours, theirs = (
        jax.jit(jax.vmap(lambda key, loss=loss: loss.loss(key, params, model, guide, X, Y)))(keys)
        for loss in (elbo, Trace_ELBO())
    )
    error = float(jnp.sqrt((ours.var() + theirs.var()) / len(keys)))
    assert error < 3.0 and abs(float(ours.mean() - theirs.mean())) < 6 * error


@pytest.mark.slow
def test_classes_that_are_no_whole_numbers_are_refused():
    def model(x, y):
        logits = first(x).reshape(12, 2, 2)
        with plate("data", 12, dim=-2), plate("outputs", 2, dim=-1):
            sample("y", dist.Categorical(logits=logits), obs=y)

    svi = SVI(model, AutoMeanField(model), numpyro.optim.Adam(0.01), vd.TraceVD_ELBO())
    classes = jnp.zeros((12, 2), int)
    state = svi.init(KEY, X, classes)
    with pytest.raises(
        TypeError, match=r"site 'y': expected classes as whole numbers for CategoricalLogits, got \w+; write"
    ):
        svi.update(state, X, classes.astype(float))


@pytest.mark.slow
def test_two_guides_on_one_site_are_refused():
    guide = mixed_guide(levels, AutoMeanField(levels, where="net.*"), AutoNormal(levels))
    with pytest.raises(ValueError, match="mixed_guide: expected no two guides on the same site, got .*net.weight"):
        SVI(levels, guide, numpyro.optim.Adam(0.01), vd.TraceVD_ELBO()).init(KEY, X, Y)
