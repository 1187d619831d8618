"""Which weights a guide knows before its first call: those of every net that a model refers to."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from numpyro import handlers
from numpyro.infer import SVI

import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY, X, Y, regression
from pyro_vd.guides import numpyro as guides
from pyro_vd.guides.numpyro.nets import nets_of


def start(svi):
    state = svi.init(KEY, X, Y)
    return svi.get_params(state), float(svi.evaluate(state, X, Y))


class Convolutional(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.Conv(2, (2,))(x[..., None]).reshape(len(x), -1))


@pytest.mark.parametrize("where, sites", [
    (None, ("net.Conv_0.kernel", "net.Dense_0.kernel")), ("Dense_0.*", ("net.Dense_0.bias", "net.Dense_0.kernel")),
    (["Conv_0.kernel"], ("net.Conv_0.kernel",)), (linen.Dense, ("net.Dense_0.kernel",)),
])  # fmt: skip
def test_a_bound_linen_net_is_known_by_the_names_of_its_parameters(where, sites):
    """Its layers are known from the first call on."""
    net = Convolutional().bind(Convolutional().init(KEY, X))

    def make(family=guides.AutoSparseVD):
        bnn = vd.BayesianModule(net, vd.ImproperLogUniform(), where=where)
        guide = family(bnn)
        return bnn, guide, SVI(bnn, guide, optax.adam(0.01), vd.TraceVD_ELBO())

    _, trained, svi = make()
    params = svi.get_params(svi.init(KEY, X))
    assert set(trained.weight_sites) == set(sites)
    fresh = make()[1]
    if where is linen.Dense:
        with pytest.raises(ValueError, match="expected a guide that has seen its model once"):
            fresh.posteriors(params)
    else:
        assert set(fresh.posteriors(params)) == set(sites)
    if where is None:
        with pytest.raises(ValueError, match="site 'net.Conv_0.kernel': expected a linen net that was called once"):
            _ = make(guides.AutoGroupSparse)[1].weight_sites


def test_an_unbound_net_is_known_from_the_first_call_on():
    _, _, guide, svi = regression("unbound")
    with pytest.raises(ValueError, match="expected a guide that has seen its model once, or a model with a Bayesian"):
        _ = guide.weight_sites
    params = start(svi)[0]
    assert guide.weight_sites == ("net.kernel",) and set(guide.posteriors(params)) == {"net.kernel"}


def test_what_cannot_be_known_yet_is_an_error():
    bnn = regression()[0]

    def model(x, y=None):
        gain = numpyro.sample("gain", vd.ImproperLogUniform())
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        mean = gain * bnn(x).squeeze(-1)
        with vd.data_plate(40, len(x)):
            numpyro.sample("y", dist.Normal(mean, scale), obs=y)

    def make():
        guide = guides.AutoSparseVD(model)
        return guide, SVI(model, guide, optax.adam(0.01), vd.TraceVD_ELBO())

    svi = make()[1]
    params = svi.get_params(svi.init(KEY, X, Y))
    fresh = make()[0]
    with pytest.raises(ValueError, match="found in the nets of its model, got 'auto.locs.gain'.*call svi.init"):
        fresh.posteriors(params)
    without = {name: value for name, value in params.items() if "gain" not in name}
    assert set(fresh.posteriors(without)) == {"net.weight"}
    with pytest.raises(ValueError, match=r"expected a guide that has seen its model once.*'scale_auto_loc'"):
        fresh.median(without)


class Held:
    """A model that is an object."""

    def __init__(self, bnn):
        self.nets = {"only": bnn}

    def __call__(self, x, y=None):
        return self.nets["only"](x)

    def method(self, x, y=None):
        return self(x)


def test_a_net_is_found_wherever_a_model_refers_to_it():
    bnn = regression()[0]

    def closure(x):
        return bnn(x)

    def inner(x):
        return closure(x)

    def given(net, x):
        return net(x)

    @functools.wraps(inner)
    def wrapped(*args):
        return inner(*args)

    held = Held(bnn)
    programs = {
        "itself": bnn, "closure": closure, "function of a function": inner, "partial": functools.partial(given, bnn),
        "default": lambda x, net=bnn: net(x), "handler": handlers.scale(closure, scale=2.0), "wrapper": wrapped,
        "object": held, "method": held.method, "lambda in a lambda": lambda x: (lambda z: bnn(z))(x),
        "jitted": jax.jit(closure), "a list": functools.partial(lambda nets, x: nets[0](x), [bnn]),
    }  # fmt: skip
    assert {name: [net is bnn for net in nets_of(program)] for name, program in programs.items()} == {
        name: [True] for name in programs
    }
    assert guides.AutoMeanField(inner).weight_sites == ("net.weight",)
    unrelated = vd.BayesianModule(linen.Dense(1), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="expected a guide that has seen its model once"):
        _ = guides.AutoMeanField(lambda x: unrelated(x)).weight_sites


def test_where_chooses_among_the_known_weights():
    _, model, _, _ = regression()
    assert guides.AutoMeanField(model, where="net.*").weight_sites == ("net.weight",)
    with pytest.raises(ValueError, match="expected a guide that has seen its model once"):
        _ = guides.AutoMeanField(model, where="other.*").weight_sites


def test_mixed_guides_are_known_too():
    bnn, model, _, svi = regression()
    params = start(svi)[0]
    mixed = guides.mixed_guide(model, guides.AutoMeanField(model, where="net.*"))
    assert set(mixed.posteriors(params)) == {"net.weight"}
    assert vd.sparsity_report(mixed, params=params).total.weights == 3


def test_what_is_learnable_may_be_said_before_the_first_call():
    _, _, guide, svi = regression(guide=guides.AutoGaussianDropout, prior=vd.ImproperLogUniform())
    guide.set_learnable("log_alphas", params={"auto.log_alphas.net.weight": jnp.full((1, 1), -2.0)})
    params = start(svi)[0]
    assert params["auto.log_alphas.net.weight"].item() == -2.0


@pytest.mark.parametrize("first", [jax.jit, lambda fn: fn], ids=["jitted", "eager"])
def test_the_first_call_leaves_nothing_of_its_trace_behind(first):
    """Priors that are arrays made in the model: their values are not known while only shapes are looked at."""
    bnn = regression()[0]

    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(3), jnp.ones(3)).to_event(1))
        scale = numpyro.sample("scale", dist.Uniform(jnp.full(2, 0.1), 2.0).to_event(1))
        mean = bnn(x).squeeze(-1) + x @ w
        with vd.data_plate(40, len(x)):
            numpyro.sample("y", dist.Normal(mean, scale.sum()), obs=y)

    guide = guides.AutoMeanField(model)
    svi = SVI(model, guide, optax.adam(0.01), vd.TraceVD_ELBO())
    state = first(svi.init)(KEY, X, Y)
    state, loss = jax.jit(svi.update)(state, X, Y)
    params = svi.get_params(state)
    assert jnp.isfinite(loss) and jnp.isfinite(svi.evaluate(state, X, Y))
    assert set(guide.posteriors(params)) == {"net.weight"} and set(guide.median(params)) == {"net.weight", "w", "scale"}
    assert ((guide.median(params)["scale"] > 0.1) & (guide.median(params)["scale"] < 2)).all()
