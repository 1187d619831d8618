"""Nets of flax.linen, flax.nnx and equinox as NumPyro models: names, values, state, and training of unmodified nets."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro import handlers

import pyro_vd.numpyro as vd
from helpers.mirror_nets import KEY, LIBRARIES, perceptron, program
from pyro_vd.guides.numpyro import AutoSparseVD

NAMES = {
    "linen": ("Dense_0.kernel", "Dense_1.kernel"),
    "nnx": ("dense.0.kernel", "dense.1.kernel"),
    "equinox": ("layers.0.weight", "layers.2.weight"),
}
X = jax.random.normal(KEY, (5, 4))


def small(library):
    return perceptron(library, (4, 3, 2))


def call(net, x):
    return jax.vmap(net)(x) if isinstance(net, eqx.Module) else net(x)


@pytest.mark.parametrize("library", LIBRARIES)
def test_sites_parameters_and_output(library):
    """Weights are sample sites, the rest parameters; with the net's own values the output is the net's."""
    net = small(library)
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    trace = handlers.trace(handlers.seed(bnn, 0)).get_trace(X)
    samples = {name: site for name, site in trace.items() if site["type"] == "sample"}
    assert tuple(samples) == tuple(f"net.{name}" for name in NAMES[library])
    assert bnn.weight_names == NAMES[library]
    params = sorted(name for name, site in trace.items() if site["type"] == "param")
    assert params == sorted(
        f"net.{name}".replace("kernel", "bias").replace("weight", "bias") for name in NAMES[library]
    )
    values = {name: site["infer"]["net_parameter"] for name, site in samples.items()}
    assert [v.shape for v in values.values()] == ([(3, 4), (2, 3)] if library == "equinox" else [(4, 3), (3, 2)])
    np.testing.assert_allclose(handlers.substitute(bnn, values)(X), call(net, X), rtol=1e-5)
    drawn = {name: site["value"] for name, site in samples.items()}
    assert not np.allclose(handlers.substitute(bnn, drawn)(X), call(net, X))


@pytest.mark.parametrize("library", LIBRARIES)
def test_where(library):
    first, second = NAMES[library]
    types = {"linen": linen.Dense, "nnx": nnx.Linear, "equinox": eqx.nn.Linear}
    biases = tuple(name.replace("kernel", "bias").replace("weight", "bias") for name in NAMES[library])

    def names(where):
        bnn = vd.BayesianModule(small(library), dist.Normal(0.0, 1.0), where=where)
        handlers.seed(bnn, 0)(X)
        return bnn.weight_names

    assert names(types[library]) == names([types[library]]) == (first, second)
    assert names(second) == names([second]) == names(f"*{second[-8:]}") == (second,)
    assert set(names("*bias")) == set(biases)
    assert names(lambda name, layer: name == first and layer is not None) == (first,)
    with pytest.raises(ValueError, match="where: expected parameter names or patterns"):
        names("nothing.*")
    with pytest.raises(ValueError, match="expected at least one parameter to be random"):
        names(lambda name, layer: False)
    with pytest.raises(TypeError, match="where: expected layer types, parameter names or one callable, got 3"):
        names(3)


def test_prior_by_name_and_callable():
    first, second = NAMES["nnx"]
    bnn = vd.BayesianModule(small("nnx"), {"dense.0.*": dist.Normal(0.0, 1.0), "*": dist.Laplace(0.0, 1.0)})
    assert isinstance(bnn.priors[first], dist.Normal) and isinstance(bnn.priors[second], dist.Laplace)
    bnn = vd.BayesianModule(small("nnx"), lambda name, parameter: dist.Normal(0.0, float(parameter.shape[0])))
    assert (bnn.priors[first].scale, bnn.priors[second].scale) == (4.0, 3.0)
    with pytest.raises(ValueError, match=f"prior: expected a prior for parameter '{second}'"):
        vd.BayesianModule(small("nnx"), {first: dist.Normal(0.0, 1.0)})
    with pytest.raises(TypeError, match="prior: expected a NumPyro distribution .* got int"):
        vd.BayesianModule(small("nnx"), lambda name, parameter: 3)


def test_an_unbound_linen_net_is_initialised_once_and_knows_its_names_then():
    net = linen.Sequential([linen.Dense(3), linen.relu, linen.Dense(2)])
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="expected a linen net that was called once"):
        _ = bnn.weight_names
    first, second = (handlers.trace(handlers.seed(bnn, seed)).get_trace(X) for seed in (0, 1))
    assert bnn.weight_names == ("layers_0.kernel", "layers_2.kernel")
    for name in ("net.layers_0.kernel", "net.layers_2.kernel"):
        starts = [t[name]["infer"]["net_parameter"] for t in (first, second)]
        assert (starts[0] == starts[1]).all() and starts[0].std() > 0.1
    with pytest.raises(ValueError, match="a first call outside of jit, got an unbound net inside it; write net.bind"):
        jax.jit(lambda key: handlers.seed(vd.BayesianModule(net, dist.Normal(0.0, 1.0)), key)(X))(KEY)


def test_what_is_no_net():
    with pytest.raises(TypeError, match="expected net to be a flax.linen, flax.nnx or equinox module.*got function"):
        vd.BayesianModule(small, dist.Normal(0.0, 1.0))


def test_a_model_without_a_key():
    bnn = vd.BayesianModule(small("nnx"), dist.Normal(0.0, 1.0))
    for run in (bnn, handlers.trace(bnn)):
        with pytest.raises(ValueError, match=r"site 'net.dense.0.kernel': expected a random key.*handlers.seed"):
            run(X)


def test_a_net_inside_a_plate():
    bnn = vd.BayesianModule(small("nnx"), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="got .5, 4, 3.: the net was called inside a plate"):
        with handlers.seed(rng_seed=0), numpyro.plate("data", 5):
            bnn(X)


def test_data_plate():
    with vd.data_plate(60, 6, "examples", dim=-2) as index:
        assert (index == jnp.arange(6)).all()
    with handlers.trace() as trace, vd.data_plate(60, 6):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.ones(6))
    assert trace["y"]["scale"] == 10.0 and trace["y"]["cond_indep_stack"][0].size == 6
    for size, batch in ((5, 6), (5, 0)):
        with pytest.raises(ValueError, match=f"got batch_size={batch} and dataset_size=5"):
            vd.data_plate(size, batch)
    jaxpr = str(jax.make_jaxpr(lambda key: handlers.seed(_draw, key)())(KEY))
    assert "sort" not in jaxpr  # a permutation of the data set


def _draw():
    with vd.data_plate(60, 6):
        return numpyro.sample("y", dist.Normal(0.0, 1.0))


def test_hand_written_guide_and_an_unbound_net_in_one_program():
    net = linen.Sequential([linen.Dense(3), linen.relu, linen.Dense(2)])
    _, _, guide, svi = program(net, guide=AutoSparseVD)
    state = svi.init(KEY, X, jnp.zeros(5, int))
    assert guide.weight_sites == ("net.layers_0.kernel", "net.layers_2.kernel")
    assert jnp.isfinite(jax.jit(svi.update)(state, X, jnp.zeros(5, int))[1])
