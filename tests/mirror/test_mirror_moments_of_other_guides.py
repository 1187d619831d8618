"""NumPyro: mode="moments" with guides that are not of this library, as on the other side."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal

import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY, regression

pytestmark = pytest.mark.slow  # compiles
LOC, SCALE = jnp.array([[-1.0, 0.5, 1.0]]), jnp.array([[0.2, 0.5, 0.9]])
X = jnp.arange(12.0).reshape(4, 3) / 6
BIAS = {"net.bias": jnp.array([0.5])}


def model_of():
    bnn = regression()[0]

    def model(x, y=None):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(len(x), len(x)):
            numpyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    return model


def moments(fn, **options):
    def guide(x, y=None):
        numpyro.sample("net.weight", fn())

    options = {"mode": "moments", "num_samples": 400, **options}
    return vd.predictive_distribution(KEY, BIAS, model_of(), guide, X, **options)["y"]


@pytest.mark.parametrize("kind", ["Normal", "DropoutNormal"])
def test_the_variance_is_that_of_the_weights_and_the_likelihood(kind):
    normal, dropout = dist.Normal(LOC, SCALE), vd.DropoutNormal(LOC, log_sigma2=2 * jnp.log(SCALE))
    found = moments(lambda: (normal if kind == "Normal" else dropout).to_event(2))
    np.testing.assert_allclose(found.mean, (X @ LOC.T)[:, 0] + 0.5, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.variance, 0.3**2 + (X**2 @ (SCALE**2).T)[:, 0], rtol=1e-3)


def test_a_weight_of_another_kind_is_named_or_drawn():
    laplace = lambda: dist.Laplace(LOC, SCALE).to_event(2)  # noqa: E731
    with pytest.raises(ValueError, match="site 'net.weight': expected .* independent Gaussians .*, got Laplace; write"):
        moments(laplace)
    found = moments(laplace, on_unknown="sample", num_samples=2000)
    expected = 0.3**2 + (X**2 @ (2 * SCALE**2).T)[:, 0]
    np.testing.assert_allclose(found.variance, expected, rtol=0.25)  # 6 standard deviations at most


def test_automatic_guides_of_numpyro():
    model = model_of()
    for make, expected in ((AutoDelta, 0.09), (AutoNormal, None), (AutoDiagonalNormal, "a Delta of the sites")):
        guide = make(model)
        svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.1), vd.TraceVD_ELBO("shared", analytic_only=False))
        params = svi.get_params(svi.init(jax.random.key(0), X, jnp.zeros(4)))
        run = lambda guide=guide, params=params: vd.predictive_distribution(  # noqa: E731
            KEY, params, model, guide, X, mode="moments", num_samples=400
        )["y"]
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=f"site 'net.weight': expected .*, got {expected}"):
                run()
            continue
        variance = 0.09 if expected else 0.09 + (X**2 @ (params["net.weight_auto_scale"] ** 2).T)[:, 0]
        np.testing.assert_allclose(run().variance, variance, rtol=1e-3)
