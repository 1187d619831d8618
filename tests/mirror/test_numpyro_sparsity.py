"""Reports and pruned nets on NumPyro, and parameters that travel between the two sides."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pyro
import pytest
import torch
from flax import nnx
from numpyro import handlers
from safetensors.numpy import load_file, save_file
from torch import nn

import pyro_vd as torch_vd
import pyro_vd.numpyro as vd
from helpers.mirror_nets import KEY, LIBRARIES, EquinoxLeNet5, NnxLeNet5, images, perceptron, program
from pyro_vd.convert import from_numpyro, to_numpyro
from pyro_vd.guides import AutoSparseVD, AutoVariationalDropout, mixed_guide
from pyro_vd.guides import numpyro as guides

pytestmark = pytest.mark.slow  # compiles many programs

X = jax.random.normal(KEY, (5, 4))


@pytest.mark.parametrize("library", LIBRARIES)
def test_report_and_pruned_net(library):
    """A weight of 2 in 3 over the threshold is zero in the net, the rest is the mean; biases are as trained."""
    bnn, _, guide, svi = program(perceptron(library, (4, 3, 2)))
    params = dict(svi.get_params(jax.jit(svi.init)(KEY, X, jnp.zeros(5, int))))
    for name in params:
        if ".locs." in name:
            size = params[name].size
            params[name] = jnp.where(jnp.arange(size) % 3 == 0, 1.0, -1e-4).reshape(params[name].shape)
        elif name.endswith("bias"):
            params[name] = params[name] + 0.75
    report = vd.sparsity_report(guide, 3.0, params=params)
    assert [(row.weights, row.kept) for row in report.rows] == [(12, 4), (6, 2)]
    assert report.compression == 3.0 and str(report) == str(vd.sparsity_report(guide.posteriors(params)))
    net = vd.prune(bnn, guide, params=params)
    call = jax.vmap(net) if library == "equinox" else net
    kept = {site: jnp.where(q.loc == 1.0, 1.0, 0.0) for site, q in guide.posteriors(params).items()}
    expected = handlers.substitute(handlers.substitute(bnn, kept), params)(X)
    np.testing.assert_allclose(call(X), expected, rtol=1e-5)
    dense = vd.prune(bnn, guide, math.inf, params=params)
    assert not np.allclose((jax.vmap(dense) if library == "equinox" else dense)(X), expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="params: expected a value for 'net..*bias'"):
        vd.prune(bnn, guide.posteriors(params), params={})
    with pytest.raises(ValueError, match="params: expected the parameters of AutoSparseVD, got none"):
        vd.sparsity_report(guide)
    with pytest.raises(TypeError, match="expected a guide of pyro_vd.guides.numpyro or a dict of posteriors"):
        vd.sparsity_report(lambda: None)
    with pytest.raises(ValueError, match="guide: expected the posterior of at least one weight, got none"):
        vd.prune(bnn, {}, params=params)
    (first, posterior), *_ = guide.posteriors(params).items()
    with pytest.raises(ValueError, match="prune: expected a guide with a weight at site"):
        vd.prune(bnn, {first: posterior}, params=params)


def test_a_weight_is_kept_up_to_the_threshold_itself():
    q = vd.DropoutNormal(jnp.ones(5), jnp.array([-5.0, 0.0, 2.9, 3.0, 3.1]))
    assert [vd.sparsity_report({"w": q}, threshold).total.kept for threshold in (3.0, 2.95, -1.0, math.inf)] == [
        4,
        3,
        1,
        5,
    ]


def test_a_pruned_net_keeps_its_state():
    class Net(nnx.Module):
        def __init__(self):
            self.fc, self.norm = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(self.fc(x))

    net = Net()
    bnn, _, guide, svi = program(net)
    state, _ = jax.jit(lambda *data: svi.update(svi.init(KEY, *data), *data))(X, jnp.zeros(5, int))
    params = {**svi.get_params(state), **state.mutable_state}
    pruned = vd.prune(bnn, guide, params=params)
    np.testing.assert_array_equal(pruned.norm.mean[...], state.mutable_state["net.state"]["values"]["norm.mean"])
    assert (pruned.norm.mean[...] != net.norm.mean[...]).all()
    with pytest.raises(ValueError, match="params: expected a value for 'net.state'.*svi_state.mutable_state"):
        vd.prune(bnn, guide, params=svi.get_params(state))


def test_posteriors_of_a_guide_by_hand():
    def guide(x):
        loc = numpyro.param("loc", jnp.ones((3, 1)))
        numpyro.sample("scale", dist.Gamma(2.0, 2.0))
        numpyro.sample("w", vd.DropoutNormal(loc, log_sigma2=-2.0).to_event(2))

    found = vd.weight_posteriors(KEY, {"loc": jnp.full((3, 1), 5.0)}, guide, X)
    assert list(found) == ["w"] and (found["w"].loc == 5.0).all()
    with pytest.raises(ValueError, match="weight_posteriors: expected a random key"):
        vd.weight_posteriors(None, {}, guide, X)


class TorchLeNet5(nn.Module):
    """The LeNet-5 of ``mirror_nets``, its channels first."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(24, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = nn.functional.avg_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.avg_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


FAMILIES = {
    "sparse": lambda model, g: g.AutoSparseVD(model),
    "groups": lambda model, g: g.AutoGroupSparse(model),
    "low rank": lambda model, g: g.AutoLowRank(model, rank=2),
    "type B": lambda model, g: g.AutoVariationalDropout(model, correlated=True),
}


def torch_program(family):
    import pyro_vd.guides as torch_guides

    torch.manual_seed(0)
    bnn = torch_vd.BayesianModule(TorchLeNet5(), torch_vd.ImproperLogUniform())
    guide = FAMILIES[family](bnn, torch_guides)
    guide(torch.ones(1, 1, 16, 16))
    with torch.no_grad():
        for parameter in [*guide.parameters(), *bnn.net.parameters()]:
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return bnn, guide


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("library", ["nnx", "equinox"])
def test_a_trained_lenet5_is_the_same_function_on_both_sides(library, family, tmp_path):
    """Mean network, KL and noise ratios agree after a file; a flatten between has its channels where each side has."""
    bnn, guide = torch_program(family)
    path = tmp_path / "guide.safetensors"
    save_file(to_numpyro(guide, library), path)
    params = {name: jnp.asarray(value) for name, value in load_file(path).items()}
    net = NnxLeNet5(nnx.Rngs(0)) if library == "nnx" else EquinoxLeNet5(KEY)
    other = vd.BayesianModule(net, vd.ImproperLogUniform())
    mirror = FAMILIES[family](other, guides)
    x, _ = images(3, 16)
    handlers.seed(mirror, 0)(x)
    with torch.no_grad():
        pixels = torch.tensor(np.moveaxis(np.asarray(x), -1, 1))
        expected = torch_vd.prune(bnn, guide, math.inf)(pixels)
    plain = vd.prune(other, mirror, math.inf, params=params)
    call = jax.jit(jax.vmap(plain) if library == "equinox" else lambda x: plain(x))
    np.testing.assert_allclose(call(x), expected, rtol=1e-4, atol=1e-4)
    ours = torch_vd.TraceVD_ELBO().terms(bnn, guide, pixels).kl
    theirs = jax.jit(lambda params: vd.TraceVD_ELBO().terms(KEY, params, other, mirror, x).kl)(params)
    by_layer = {site.split(".")[1]: float(value) for site, value in theirs.items()}
    assert by_layer == pytest.approx({s.split(".")[1]: v.item() for s, v in ours.items()}, rel=1e-4)
    # And back, into another guide.
    _, back = torch_program(family)
    trained = {name: value + 1.0 for name, value in params.items()}
    from_numpyro(trained, back)
    got = to_numpyro(back, library)
    assert set(got) == set(params)
    for name in params:
        np.testing.assert_allclose(got[name], trained[name], rtol=1e-6)


def test_names_of_a_sequential_and_of_other_layers():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    bnn = torch_vd.BayesianModule(net, torch_vd.ImproperLogUniform())
    first = AutoVariationalDropout(bnn, correlated=True, where="net.0.weight")
    guide = mixed_guide(bnn, first, AutoSparseVD(bnn, where="net.2.weight"))
    guide(torch.ones(1, 4))
    names = {library: set(to_numpyro(guide, library)) for library in LIBRARIES}
    assert "auto.log_alphas.net.layers_0.kernel" in names["linen"] and "net.layers_2.bias" in names["linen"]
    assert "auto.log_sigma2s.net.layers.2.kernel" in names["nnx"]
    assert "auto.locs.net.layers.2.weight" in names["equinox"]
    layers = {"0": "Dense_0", "2": "Dense_1"}
    named = to_numpyro(guide, layers=layers)
    assert named["auto.log_alphas.net.Dense_0.kernel"].shape == (4, 1) and named["net.Dense_1.bias"].shape == (2,)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    with pytest.raises(ValueError, match="the parameters of this MixedGuide, got none named .*; give layers="):
        from_numpyro(named, guide)
    wrong = {**named, "net.Dense_1.bias": np.ones(3)}
    with pytest.raises(ValueError, match=r"parameter 'net.Dense_1.bias': expected the shape .2,. of .* got .3,."):
        from_numpyro(wrong, guide, layers=layers)
    assert all((p == before[name]).all() for name, p in guide.named_parameters())
    from_numpyro({name: value + 1 for name, value in named.items()}, guide, layers=layers)
    assert all(torch.allclose(p, before[name] + 1) for name, p in guide.named_parameters())


def test_what_cannot_travel():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    guide = AutoSparseVD(torch_vd.BayesianModule(net, torch_vd.ImproperLogUniform()))
    with pytest.raises(ValueError, match="that was called once; write guide"):
        to_numpyro(guide)
    guide(torch.ones(2, 4))
    with pytest.raises(ValueError, match="parameter 'net.1.weight': expected weight or bias of a Linear or Conv"):
        to_numpyro(guide)
    for layer, x in (  # whose weights lie otherwise
        (nn.Embedding(4, 3), torch.tensor([1, 2])),
        (nn.ConvTranspose1d(2, 3, 2), torch.ones(1, 2, 4)),
        (nn.GRUCell(2, 3), torch.ones(1, 2)),
    ):
        pyro.clear_param_store()
        other = AutoSparseVD(torch_vd.BayesianModule(nn.Sequential(layer), torch_vd.ImproperLogUniform()))
        other(x)
        with pytest.raises(ValueError, match="parameter 'net.0.weight.*': expected weight or bias of a Linear or Conv"):
            to_numpyro(other)
    with pytest.raises(ValueError, match="library: expected one of 'linen', 'nnx', 'equinox', got 'haiku'"):
        to_numpyro(guide, "haiku")
    pooled = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(10, 2))
    guide = AutoSparseVD(torch_vd.BayesianModule(pooled[2], torch_vd.ImproperLogUniform()))
    guide(torch.ones(2, 10))
    assert to_numpyro(guide)["auto.locs.net.kernel"].shape == (10, 2)
