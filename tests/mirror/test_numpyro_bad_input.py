"""Float64 where JAX has it switched off: an error that says how to switch it on, in every place that takes numbers."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import torch
from flax import linen, nnx
from numpyro import handlers
from numpyro.infer import SVI

import pyro_vd as torch_vd
import pyro_vd.numpyro as vd
from helpers.mirror_nets import KEY, perceptron, program
from pyro_vd.guides import AutoSparseVD as TorchAutoSparseVD
from pyro_vd.guides.numpyro import AutoBernoulliDropout, AutoSparseVD

MESSAGE = r'expected {} in float32, got float64 .*switched off; write jax.config.update\("jax_enable_x64", True\)'
X, WIDE = jnp.ones((2, 3)), np.ones((3, 2))


def net_with(library, kernel):
    """One dense layer, its kernel given."""
    if library == "linen":
        return linen.Dense(2).bind({"params": {"kernel": kernel, "bias": jnp.zeros(2)}})
    if library == "nnx":
        net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        net.kernel = nnx.Param(kernel)
        return net
    return eqx.tree_at(lambda net: net.weight, eqx.nn.Linear(3, 2, key=KEY), kernel.T)


def run(net):
    return handlers.seed(vd.BayesianModule(net, dist.Normal(0.0, 1.0)), 0)(X)


@pytest.mark.parametrize("kernel", [WIDE, torch.ones(3, 2, dtype=torch.float64)], ids=["numpy", "torch"])
@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_parameters_of_a_net(library, kernel):
    name = "weight" if library == "equinox" else "kernel"
    with pytest.raises(ValueError, match="BayesianModule.*" + MESSAGE.format(f"parameter '{name}' of the net")):
        run(net_with(library, kernel))


@pytest.mark.parametrize("library", ["linen", "nnx", "equinox"])
def test_parameters_of_a_net_with_64_bits_or_in_32(library):
    assert run(net_with(library, jnp.asarray(WIDE))).dtype == jnp.float32
    with jax.enable_x64(True):
        net = net_with(library, jnp.asarray(WIDE))
        bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
        output = jax.eval_shape(lambda: handlers.seed(bnn, 0)(jnp.ones((2, 3))))
        assert output.dtype == jnp.float64


PLACES = {
    "loc": (lambda: vd.DropoutNormal(WIDE, 0.0), "loc"),
    "loc of torch": (lambda: vd.DropoutNormal(torch.tensor(WIDE), 0.0), "loc"),
    "log_alpha": (lambda: vd.DropoutNormal(X, np.zeros((2, 3))), "log_alpha"),
    "log_sigma2": (lambda: vd.DropoutNormal(X, log_sigma2=np.zeros((2, 3))), "log_sigma2"),
    "units": (lambda: vd.CorrelatedDropoutNormal(X, np.zeros(3)), "log_alpha"),
    "group": (lambda: vd.GroupNormal(X, X, np.ones(3), jnp.zeros(3)), "unit_loc"),
    "factor": (lambda: vd.LowRankNormal(X, X, np.ones((1, 2, 3))), "factor"),
    "low": (lambda: vd.TruncatedLogUniform(np.full(2, 0.1), 1.0), "low"),
    "high": (lambda: vd.TruncatedLogUniform(0.1, np.ones(2)), "high"),
}


@pytest.mark.parametrize("make, name", PLACES.values(), ids=PLACES)
def test_parameters_of_a_distribution(make, name):
    with pytest.raises(ValueError, match=MESSAGE.format(name)):
        make()


def test_numbers_have_no_precision_of_their_own():
    assert vd.DropoutNormal(X, np.float64(0.5)).log_alpha.dtype == jnp.float32
    assert vd.TruncatedLogUniform(np.float64(0.5), 1.0).variance.dtype == jnp.float32


def test_start_of_a_guide():
    def model(x):
        w = numpyro.sample("w", vd.ImproperLogUniform().expand([3, 2]).to_event(2))
        numpyro.sample("y", dist.Normal(x @ w, 1.0).to_event(2), obs=jnp.zeros((2, 2)))

    with pytest.raises(ValueError, match="site 'w': " + MESSAGE.format("the value that it starts from")):
        handlers.seed(AutoSparseVD(model, init_loc_fn=lambda site: WIDE if site["name"] == "w" else None), 0)(X)


def test_parameters_given_to_a_guide_and_to_a_step():
    _, model, guide, svi = program(perceptron("nnx", (3, 2)))
    y = jnp.zeros(2, int)
    params = dict(svi.get_params(svi.init(KEY, X, y)))
    for name in ("auto.locs.net.dense.0.kernel", "net.dense.0.bias"):
        wide = {**params, name: np.asarray(params[name], np.float64)}
        match = f"parameter '{name}': " + MESSAGE.format("its value")
        with pytest.raises(ValueError, match=match):
            svi.init(KEY, X, y, init_params=wide)
        with pytest.raises(ValueError, match=match):
            vd.TraceVD_ELBO().loss(KEY, wide, model, guide, X, y)
    with pytest.raises(ValueError, match="parameter 'auto.locs.net.dense.0.kernel'.*jax_enable_x64"):
        guide.posteriors({**params, "auto.locs.net.dense.0.kernel": torch.ones(3, 2, dtype=torch.float64)})
    fixed = AutoBernoulliDropout(model)
    SVI(model, fixed, optax.adam(0.1), vd.TraceVD_ELBO()).init(KEY, X, y)
    fixed.set_learnable("locs", False, params={"auto.locs.net.dense.0.kernel": WIDE})
    with pytest.raises(ValueError, match="parameter 'auto.locs.net.dense.0.kernel'.*jax_enable_x64"):
        fixed.posteriors({n: v for n, v in params.items() if "log_sigma2s" not in n})


def test_parameters_of_a_torch_guide_in_double_precision():
    bnn = torch_vd.BayesianModule(torch.nn.Sequential(torch.nn.Linear(3, 2)).double(), torch_vd.ImproperLogUniform())
    ours = TorchAutoSparseVD(bnn)
    ours(torch.ones(1, 3, dtype=torch.float64))
    _, _, _, svi = program(perceptron("nnx", (3, 2)))
    params = torch_vd.to_numpyro(ours, "nnx", layers={"0": "dense.0"})
    assert {array.dtype for array in params.values()} == {np.dtype("float64")}
    with pytest.raises(ValueError, match="parameter '.*net.dense.0.*': " + MESSAGE.format("its value")):
        svi.init(KEY, X, jnp.zeros(2, int), init_params=params)
    svi.init(KEY, X, jnp.zeros(2, int), init_params={n: a.astype("float32") for n, a in params.items()})
