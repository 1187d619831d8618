"""predictive_distribution on NumPyro: the mixture of the likelihoods of the draws, by family, and its quantities."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro.distributions
import pytest
import torch
from jax.scipy.special import logsumexp
from scipy import stats

import helpers.mirror_compiling  # noqa: F401
import pyro_vd.numpyro as vd
import pyro_vd.predict
from helpers.oracles import standard_errors
from pyro_vd.numpyro.predict import Predictive, likelihoods

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
N, DRAWS = 5, 4
PARAMS = {"loc": jnp.array([0.5, 1.0, -1.0])}

FAMILIES = {
    "bernoulli event": lambda o: dist.Bernoulli(logits=o).to_event(1),
    "binomial": lambda o: dist.Binomial(5, logits=o[..., 0]),
    "categorical": lambda o: dist.Categorical(logits=o),
    "masked": lambda o: dist.Normal(o[..., 0], 1.0).mask(o[..., 1] > 0),
    "mixture": lambda o: dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros_like(o)), dist.Normal(o, 1.0)),
    "multivariate normal": lambda o: dist.MultivariateNormal(o, jnp.eye(3) + 0.5),
    "normal": lambda o: dist.Normal(o[..., 0], 0.3),
    "normal event": lambda o: dist.Normal(o, jnp.exp(o)).to_event(1),
    "student": lambda o: dist.StudentT(5.0, o[..., 0], jnp.exp(o[..., 1])),
    "transformed": lambda o: dist.TransformedDistribution(
        dist.Normal(o[..., 0], 1.0),
        [dist.transforms.AffineTransform(1.0, jnp.exp(o[..., 1])), dist.transforms.ExpTransform()],
    ),
    "zero inflated": lambda o: dist.ZeroInflatedDistribution(dist.Poisson(jnp.exp(o[..., 0])), gate_logits=o[..., 1]),
}


def program(family):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        numpyro.deterministic("w again", w)
        with vd.data_plate(4, len(x)):
            numpyro.sample("y", family(0.4 * x * w), obs=y)

    def guide(x, y=None):
        loc = numpyro.param("loc", jnp.array([1.0, -0.5, 0.2]))
        numpyro.sample("w", vd.DropoutNormal(loc, log_sigma2=-1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_mixture_is_that_of_the_likelihoods_of_the_draws(name, batch_size):
    """Against a loop over draws, at the weights that the same keys draw; more points than the plate has examples."""
    family, x = FAMILIES[name], jax.random.normal(jax.random.key(1), (N, 1))
    model, guide = program(family)
    y = vd.predictive_distribution(KEY, PARAMS, model, guide, x, num_samples=DRAWS, batch_size=batch_size)["y"]
    each = []
    for key in jax.random.split(KEY, DRAWS):
        draw_key = jax.random.split(key, 2 if batch_size is None else 4)[0]
        seeded = numpyro.handlers.substitute(numpyro.handlers.seed(guide, draw_key), data=PARAMS)
        each.append(family(0.4 * x * numpyro.handlers.trace(seeded).get_trace(x)["w"]["value"]))
    assert y.draws.batch_shape == (DRAWS, N) and y.draws.event_shape == each[0].event_shape
    value = each[0].sample(KEY)
    by_hand = logsumexp(jnp.stack([one.log_prob(value) for one in each]), 0) - math.log(DRAWS)
    np.testing.assert_allclose(y.log_prob(value), by_hand, rtol=1e-4, atol=1e-5)
    assert len(jnp.unique(jnp.stack([one.log_prob(value) for one in each]), axis=0)) == DRAWS
    assert y.sample(KEY, (2,)).shape == (2, N, *each[0].event_shape)
    try:
        means = jnp.stack([one.mean for one in each])
    except NotImplementedError:
        return
    if name != "categorical":
        np.testing.assert_allclose(y.mean, means.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(y.epistemic_variance, means.var(0), rtol=1e-3, atol=1e-5)


def test_a_mixture_of_gaussians(x64):
    """Quantiles against scipy's root, entropy against the Pyro side's quadrature, to 1e-8."""
    locs, scales = np.array([[0.0, -4.0], [0.2, 5.0], [1.0, 0.0]]), np.array([[0.1, 1.0], [1.0, 0.5], [3.0, 2.0]])
    y = Predictive(dist.Normal(jnp.array(locs), jnp.array(scales)), "y")
    other = pyro_vd.predict.Predictive(pyro.distributions.Normal(torch.tensor(locs), torch.tensor(scales)), "y")
    for p, end in zip((0.05, 0.95), y.interval(0.9), strict=True):
        for i in range(2):
            parts = stats.norm(locs[:, i], scales[:, i])
            assert abs(parts.cdf(float(end[i])).mean() - p) < 1e-10
    for name in ("entropy", "expected_entropy", "mutual_information"):
        np.testing.assert_allclose(getattr(y, name)(), getattr(other, name)().numpy(), rtol=1e-8)
    for name in ("mean", "variance", "aleatoric_variance", "epistemic_variance"):
        np.testing.assert_allclose(getattr(y, name), getattr(other, name).numpy(), rtol=1e-12)
    assert y.quantile_method == "bisection"
    gammas = Predictive(dist.Gamma(jnp.array([[2.0], [5.0]]), 1.0), "y")  # a cdf without its inverse
    cdf = np.mean([stats.gamma(a).cdf(float(gammas.quantile(0.3)[0])) for a in (2, 5)])
    assert abs(cdf - 0.3) < 1e-9


def test_parts_of_entropy():
    probs = jnp.array([[[0.9, 0.1, 0.0]], [[0.1, 0.4, 0.5]]])
    y = Predictive(dist.Categorical(probs=probs), "y")
    mixture, parts = np.array([0.5, 0.25, 0.25]), np.asarray(probs)[:, 0]
    np.testing.assert_allclose(y.probs[0], mixture, rtol=1e-5)
    np.testing.assert_allclose(y.entropy(), -np.sum(mixture * np.log(mixture)), rtol=1e-5)
    each = -np.sum(parts * np.log(np.where(parts > 0, parts, 1.0)), 1).mean()
    np.testing.assert_allclose(y.expected_entropy(), each, rtol=1e-5)
    np.testing.assert_allclose(y.mutual_information(), y.entropy() - each, rtol=1e-4)
    bits = Predictive(dist.Bernoulli(probs).to_event(1), "y")
    joint = np.zeros(8)
    for draw in parts:
        joint += np.array([np.prod(np.where([i & 4, i & 2, i & 1], draw, 1 - draw)) for i in range(8)]) / 2
    np.testing.assert_allclose(bits.entropy(), stats.entropy(joint), rtol=1e-4)


@pytest.mark.parametrize("mode", ["weights", "local", "mean"])
def test_modes(mode):
    """Equal rows: one function in mode "weights", unrelated in "local", and no spread at all in "mean"."""

    def model(x):
        w = numpyro.sample("w", vd.ImproperLogUniform().expand([3, 1]).to_event(2))
        numpyro.sample("y", dist.Normal((x @ w).squeeze(-1), 0.1))

    def guide(x):
        numpyro.sample("w", vd.DropoutNormal(jnp.full((3, 1), 2.0), log_sigma2=0.0).to_event(2))

    n = 400
    y = vd.predictive_distribution(KEY, {}, model, guide, jnp.ones((2, 3)), num_samples=n, mode=mode)["y"]
    loc = y.draws.loc
    if mode == "mean":
        assert y.num_samples == 1 and (loc == 6.0).all()
        return
    assert (loc[:, 0] == loc[:, 1]).all() == (mode == "weights")
    assert abs(float(y.mean[0]) - 6.0) < standard_errors() * math.sqrt(3 / n)
    assert abs(float(y.epistemic_variance[0]) / 3 - 1) < standard_errors() * math.sqrt(2 / n)
    if mode == "local":
        assert abs(np.corrcoef(loc.T)[0, 1]) < standard_errors() / math.sqrt(n)


def test_labels_containers_and_sites():
    def model(inputs, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(inputs["a"])):
            rate = numpyro.sample("rate", dist.LogNormal(inputs["a"] * w + inputs["b"][0], 0.1))
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    def guide(inputs, y=None):
        numpyro.sample("w", vd.DropoutNormal(jnp.array(0.5), log_sigma2=-1.0))

    inputs = {"a": jnp.arange(5.0), "b": [jnp.ones(5)]}
    for batch_size in (None, 2):
        call = (KEY, {}, model, guide, inputs)
        both = vd.predictive_distribution(*call, num_samples=3, batch_size=batch_size)
        assert set(both) == {"rate", "y"} and both["y"].mean.shape == (5,)
        labelled = vd.predictive_distribution(*call, y=jnp.zeros(5), num_samples=3, sites="y", batch_size=batch_size)
        assert set(labelled) == {"y"} and labelled["y"].draws.rate.shape == (3, 5)


def test_blocks(monkeypatch):
    """The same distribution whatever number of draws runs at a time."""
    model, guide = program(FAMILIES["normal"])
    x, found = jnp.ones((N, 1)), []
    for budget in (1, 400, 2**25):
        monkeypatch.setattr(likelihoods, "BLOCK_BYTES", budget)
        found.append(vd.predictive_distribution(KEY, PARAMS, model, guide, x, num_samples=7)["y"].draws.loc)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-6)


def test_bad_input():
    model, guide = program(FAMILIES["categorical"])
    x = jnp.ones((N, 1))
    for options, message in (
        ({"mode": "draws"}, "mode: expected one of 'weights', 'local', 'mean'"),
        ({"num_samples": 0}, "num_samples: expected at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"sites": ["label"]}, r"sites: expected names of \['y'\], got \['label'\]"),
        ({"sites": ["w"]}, "posterior_predictive returns their draws"),
    ):
        with pytest.raises(ValueError, match=message):
            vd.predictive_distribution(KEY, PARAMS, model, guide, x, **options)
    with pytest.raises(ValueError, match="expected a random key, got int"):
        vd.predictive_distribution(0, PARAMS, model, guide, x)
    y = Predictive(dist.Categorical(logits=jnp.zeros((2, 3, 4))), "y")
    with pytest.raises(ValueError, match="site 'y': expected a likelihood with a mean, got Cat.*; there is log"):
        _ = y.mean
    with pytest.raises(ValueError, match=r"expected a value of shape \(3,\), any sample shape before it, got \(3, 1\)"):
        y.log_prob(jnp.zeros((3, 1), int))
    with pytest.raises(ValueError, match="in the support of CategoricalLogits, got 1 of 3 outside"):
        y.log_prob(jnp.array([0, 4, 1]))
    mixed = program(lambda o: dist.MixtureGeneral(dist.Categorical(logits=o[..., :1]), [dist.Normal(o[..., 0], 1.0)]))
    with pytest.raises(TypeError, match="site 'y': expected a likelihood whose draws can be stacked"):
        vd.predictive_distribution(KEY, PARAMS, *mixed, x, num_samples=2)
