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
from numpyro_cases import KEY, LIBRARIES, images, lenet5, perceptron, program

import pyro_vd.numpyro as vd
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


class BatchNormLinen(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Dense(3)(x))
        return linen.Dense(2)(x)


class BatchNormNnx(nnx.Module):
    def __init__(self, rngs):
        self.fc1, self.fc2 = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.fc2(self.norm(self.fc1(x)))


class BatchNormEquinox(eqx.Module):
    fc1: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    fc2: eqx.nn.Linear

    def __init__(self, key):
        self.fc1, self.fc2 = eqx.nn.Linear(4, 3, key=key), eqx.nn.Linear(3, 2, key=key)
        self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="ema", momentum=0.9)

    def __call__(self, x, state):
        x, state = self.norm(self.fc1(x), state)
        return self.fc2(x), state


def batch_norm(library):
    if library == "linen":
        return BatchNormLinen()
    return BatchNormNnx(nnx.Rngs(0)) if library == "nnx" else eqx.nn.make_with_state(BatchNormEquinox)(KEY)


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


@pytest.mark.parametrize("library", LIBRARIES)
def test_state_is_kept_by_training(library):
    """BatchNorm's averages after svi.init and two steps are those of the exact recursion, and prediction needs them."""
    _, model, guide, svi = program(batch_norm(library), lr=1e-9, init_log_sigma2=-60.0)
    x = 3.0 + X
    state = svi.init(KEY, x, jnp.zeros(5, int))
    params = svi.get_params(state)
    (name,) = state.mutable_state
    assert name == "net.state"
    kernel, bias = params[f"auto.locs.net.{_first(library)}"], params[f"net.{_first(library)[:-6]}bias"]
    hidden = x @ (kernel.T if library == "equinox" else kernel) + bias
    update = jax.jit(svi.update)
    for _ in range(2):
        state, _ = update(state, x, jnp.zeros(5, int))
    averages = [a for a in jax.tree.leaves(state.mutable_state) if a.shape == (3,)]
    if library != "equinox":  # whose first step sets the average
        np.testing.assert_allclose(averages[0], (1 - 0.9**3) * hidden.mean(0), rtol=1e-4)
    else:
        np.testing.assert_allclose(averages[0], hidden.mean(0), rtol=1e-4)
    trained = {**svi.get_params(state), **state.mutable_state}
    drawn = vd.posterior_predictive(KEY, trained, model, guide, x, num_samples=2)["y"]
    assert drawn.shape == (2, 5)
    with pytest.raises(
        ValueError, match="expected the state of the net beside its parameters.*svi_state.mutable_state"
    ):
        vd.posterior_predictive(KEY, svi.get_params(state), model, guide, x, num_samples=2)
    with pytest.raises(ValueError, match="site 'net.state': expected the state of the net beside its parameters"):
        svi.evaluate(state, x, jnp.zeros(5, int))


def _first(library):
    return {"linen": "Dense_0.kernel", "nnx": "fc1.kernel", "equinox": "fc1.weight"}[library]


def test_linen_nets_are_called_with_their_own_keywords():
    _, model, guide, svi = program(BatchNormLinen())
    state = svi.init(KEY, X, jnp.zeros(5, int))
    params = {**svi.get_params(state), **state.mutable_state}
    evaluated, _ = (
        svi.loss.loss_with_mutable_state(KEY, params, model, guide, X, jnp.zeros(5, int), train=train)["mutable_state"]
        for train in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, evaluated, state.mutable_state)


def test_an_update_of_the_state_that_is_not_finite_is_not_kept():
    _, model, guide, svi = program(BatchNormNnx(nnx.Rngs(0)))
    state = svi.init(KEY, X, jnp.zeros(5, int))
    after, loss = jax.jit(svi.update)(state, X.at[0, 0].set(jnp.nan), jnp.zeros(5, int))
    assert not jnp.isfinite(loss)
    jax.tree.map(np.testing.assert_array_equal, after.mutable_state, state.mutable_state)
    after, _ = jax.jit(svi.update)(state, X, jnp.zeros(5, int))
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after[1], state[1])), strict=True))


def test_nets_without_their_state():
    with pytest.raises(ValueError, match=r"expected the state of BatchNormEquinox beside it.*eqx.nn.make_with_state"):
        vd.BayesianModule(BatchNormEquinox(KEY), dist.Normal(0.0, 1.0))
    variables = BatchNormLinen().init(KEY, X)
    net = BatchNormLinen().bind({"params": variables["params"]})
    with pytest.raises(ValueError, match=r"expected a net bound to all its variables, got none of \['batch_stats'\]"):
        handlers.seed(vd.BayesianModule(net, dist.Normal(0.0, 1.0)), 0)(X)
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


class DropoutNnx(nnx.Module):
    def __init__(self, rngs):
        self.fc, self.dropout = nnx.Linear(4, 200, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.fc(x))


@pytest.mark.parametrize("net", [
    linen.Sequential([linen.Dense(200), linen.Dropout(0.5, deterministic=False)]),
    DropoutNnx(nnx.Rngs(0)),
], ids=["linen", "nnx"])  # fmt: skip
def test_dropout_of_a_net_has_its_key_from_the_model(net):
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    weight = handlers.trace(handlers.seed(bnn, 0)).get_trace(X)
    values = {name: site["value"] for name, site in weight.items() if site["type"] == "sample"}
    first, again, other = (handlers.seed(handlers.substitute(bnn, values), seed)(X) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert abs((first == 0).mean() - 0.5) < 0.1  # of 1000 fair coins: 6 standard errors


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


@pytest.mark.parametrize("shape", ["LeNet-300-100", "LeNet-5"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_unmodified_nets_train_under_lrt_without_retracing(library, shape, recwarn):
    """The loss falls, every weight moves, a step is traced once, and no operation falls back to a draw."""
    net = perceptron(library) if shape == "LeNet-300-100" else lenet5(library)
    x, y = images(20, None if shape == "LeNet-300-100" else 16)
    _, _, guide, svi = program(net, lr=3e-3, elbo=vd.TraceVD_ELBO(kl_weight=0.0, strict=True))
    state = jax.jit(svi.init)(KEY, x, y)
    before = svi.get_params(state)
    traced = []

    @jax.jit
    def update(state, x, y):
        traced.append(1)
        return svi.update(state, x, y)

    losses = []
    for _ in range(80):
        state, loss = update(state, x, y)
        losses.append(float(loss))
    assert len(traced) == 1
    assert np.mean(losses[-5:]) < 0.5 * losses[0], losses
    after = svi.get_params(state)
    assert all((after[name] != before[name]).any() for name in before), guide.weight_sites
    assert not [w for w in recwarn if "drawn once" in str(w.message)]


def test_svi_run_update_and_scan_are_the_same_training():
    """``svi.run``, a loop of ``svi.update`` under jit, and ``lax.scan`` over the batches of an epoch."""
    x, y = images(8)
    _, _, _, svi = program(perceptron("nnx", (64, 16, 10)))
    start = jax.jit(svi.init)(KEY, x, y)
    state, update = start, jax.jit(svi.update)
    losses = []
    for _ in range(5):
        state, loss = update(state, x, y)
        losses.append(loss)
    batches = jax.tree.map(lambda a: jnp.stack([a] * 5), (x, y))
    scanned, scanned_losses = jax.lax.scan(lambda state, batch: svi.update(state, *batch), start, batches)
    ran = svi.run(KEY, 5, x, y, init_state=start, progress_bar=False)
    np.testing.assert_allclose(scanned_losses, losses, rtol=1e-4)
    np.testing.assert_allclose(ran.losses, losses, rtol=1e-4)
    for name, value in svi.get_params(state).items():
        np.testing.assert_allclose(svi.get_params(scanned)[name], value, rtol=1e-3, atol=1e-5)
    assert np.std(losses) > 0


def test_hand_written_guide_and_an_unbound_net_in_one_program():
    net = linen.Sequential([linen.Dense(3), linen.relu, linen.Dense(2)])
    _, _, guide, svi = program(net, guide=AutoSparseVD)
    state = svi.init(KEY, X, jnp.zeros(5, int))
    assert guide.weight_sites == ("net.layers_0.kernel", "net.layers_2.kernel")
    assert jnp.isfinite(jax.jit(svi.update)(state, X, jnp.zeros(5, int))[1])
