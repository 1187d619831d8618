"""A parameter that is not finite, of a weight or a noise scale, is named by the loss and by a step outside of jit."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField

KEY = jax.random.key(0)
X = jnp.ones((4, 3))


@pytest.fixture(scope="module")
def program():
    bnn = vd.BayesianModule(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), dist.Normal(0.0, 1.0))

    def model(x):
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        mean = bnn(x)[:, 0]
        with vd.data_plate(4, len(x)):
            numpyro.sample("y", dist.Normal(mean, noise), obs=jnp.ones(4))

    svi = numpyro.infer.SVI(model, AutoMeanField(model), optax.sgd(0.0), vd.TraceVD_ELBO())
    return svi, svi.init(KEY, X)


@pytest.mark.parametrize("inside_grad", [False, True])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("noise_auto_loc", "the guide failed on non-finite input: parameter 'noise_auto_loc' holds 1 NaN"),
        ("noise_auto_scale", "the guide failed on non-finite input: parameter 'noise_auto_scale' holds 1 NaN"),
        ("auto.locs.net.kernel", "the model failed on non-finite input: loc of site 'net.kernel' holds 3 NaN"),
        ("net.bias", "the model failed on non-finite input: parameter 'net.bias' holds 1 NaN"),
    ],
)
def test_it_is_named(program, name, said, inside_grad):
    svi, state = program
    params = svi.get_params(state)
    wrong = {**params, name: params[name] * jnp.nan}

    def loss(params):
        return svi.loss.loss(KEY, params, svi.model, svi.guide, X)

    with pytest.raises(ValueError, match=said):
        (jax.grad(loss) if inside_grad else loss)(wrong)
