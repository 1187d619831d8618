"""A label whose support has no map from the real line: a guide sees its model without it, and leaves it alone."""

import jax
import numpyro
import numpyro.distributions as dist
from flax import linen
from numpyro import handlers

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField


def test_a_guide_sees_its_model_without_a_direction():
    bnn = vd.BayesianModule(linen.Dense(3), prior=dist.Normal(0.0, 1.0))

    def model(x, y=None):
        output = bnn(x)
        with vd.data_plate(60, len(x)):
            return numpyro.sample("y", dist.ProjectedNormal(output), obs=y)

    assert list(handlers.seed(AutoMeanField(model), jax.random.key(0))(jax.numpy.ones((6, 3)))) == ["net.kernel"]
