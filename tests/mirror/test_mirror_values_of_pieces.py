"""NumPyro: pieces of the examples, samples that nobody may use, and parameters outside their domain."""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import pyro_vd.numpyro as vd
from pyro_vd.numpyro.predict.one_pass import NotSampled

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 6)


def guide(x):
    numpyro.sample("w", vd.DropoutNormal(jnp.zeros(1), log_sigma2=-1.0).to_event(1))


def with_a_plate(extra):
    def model(x):
        w, value = numpyro.sample("w", dist.Normal(jnp.zeros(1), 1.0).to_event(1)), extra(x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(x * w, 1.0))
        return value * w.sum()

    return model


def latent(x):
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    return 1.0


def in_a_short_piece(x):
    if len(x) == 2:
        numpyro.sample("late", dist.Normal(0.0, 1.0))
    return 1.0


def in_a_long_piece(x):
    if len(x) == 4:
        numpyro.sample("late", dist.Normal(0.0, 1.0))
    return 1.0


@pytest.mark.parametrize(
    "extra, sites, name",
    [
        (latent, (), "z"),
        (lambda x: x.sum(), "_RETURN", "_RETURN"),
        (in_a_short_piece, (), "late"),
        (in_a_long_piece, (), "late"),
    ],
)
def test_a_value_that_pieces_do_not_share_is_refused(extra, sites, name):
    with pytest.raises(ValueError, match=f"'{name}'.*leave batch_size out"):
        vd.posterior_predictive(KEY, {}, with_a_plate(extra), guide, X, num_samples=2, batch_size=4, return_sites=sites)


def test_likelihoods_of_pieces():
    def total(x):
        numpyro.sample("total", dist.Normal(x.sum(), 1.0))
        return 1.0

    with pytest.raises(ValueError, match="'total'.*leave batch_size out"):
        vd.predictive_distribution(KEY, {}, with_a_plate(total), guide, X, num_samples=3, batch_size=3)


@pytest.mark.parametrize(
    "use",
    [
        lambda z: jnp.where(z == 1, 100.0, 0.0), lambda z: jnp.where(1 == z, 1.0, 0.0), lambda z: z != 1,
        lambda z: z & True, lambda z: True | z, lambda z: True ^ z, lambda z: ~z, int, operator.index, complex,
        lambda z: [1, 2][z], lambda z: 1 in z, lambda z: +z, round, lambda z: divmod(z, 2), lambda z: 1 << z,
    ],
)  # fmt: skip
def test_a_sample_that_nobody_may_use(use):
    with pytest.raises(ValueError, match="goes on to use it"):
        use(NotSampled("z"))


def test_a_comparison_in_one_pass():
    def model(x):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(x * w + jnp.where(z == 1, 100.0, 0.0), 1.0))

    with pytest.raises(ValueError, match="'z'.*goes on to use it"):
        vd.predictive_distribution(KEY, {}, model, guide, X, mode="moments")


def test_a_scale_that_is_drawn_below_zero():
    def model(x):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(x * w, x * w))

    with numpyro.validation_enabled(True), pytest.raises(ValueError, match="'y'.*mode=\"weights\""):
        vd.predictive_distribution(KEY, {}, model, guide, X, mode="moments")
