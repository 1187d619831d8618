"""Guides on NumPyro: which sites they cover, where they start, their bounds, and what they give with parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import torch
from flax import linen
from numpyro import handlers
from numpyro.infer import SVI, Predictive

import pyro_vd as torch_vd
import pyro_vd.numpyro as vd
from helpers.guide_cases import NAMES
from helpers.mirror_nets import KEY, perceptron
from helpers.mirror_parity import NORMAL_PRIOR, Pair, precision
from pyro_vd.guides import numpyro as guides

SITES = ("net.layers_0.kernel", "net.layers_2.kernel")
X = jax.random.normal(KEY, (6, 4))
Y = jnp.ones((6, 2))


def make(name, noise_site=False, **options):
    """Model, net, guide, SVI and the parameters it starts from."""
    net = linen.Sequential([linen.Dense(3), jnp.tanh, linen.Dense(2)])
    net = net.bind(jax.jit(net.init)(KEY, X))
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0) if name in NORMAL_PRIOR else vd.ImproperLogUniform())

    def model(x, y=None):
        scale = numpyro.sample("noise", dist.Gamma(2.0, 2.0)) if noise_site else 0.5
        output = bnn(x)
        with vd.data_plate(50, len(x)):
            return numpyro.sample("y", dist.Normal(output, scale).to_event(1), obs=y)

    guide = getattr(guides, name)(model, **options)
    svi = SVI(model, guide, optax.adam(1e-2), vd.TraceVD_ELBO(analytic_only=not noise_site))
    return model, net, guide, svi, svi.get_params(svi.init(KEY, X, Y))


@pytest.mark.parametrize("name", NAMES)
def test_every_guide_starts_at_the_net_and_samples_every_weight(name):
    model, net, guide, _, params = make(name)
    assert guide.weight_sites == SITES
    draw = handlers.seed(guide, 0)(X)
    assert {site: value.shape for site, value in draw.items()} == dict(zip(SITES, [(4, 3), (3, 2)], strict=True))
    for (site, posterior), layer in zip(guide.posteriors(params).items(), ("layers_0", "layers_2"), strict=True):
        np.testing.assert_allclose(posterior.mean, net.variables["params"][layer]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(guide.median(params)[site], posterior.mean)
        shape = jnp.broadcast_shapes(guide.log_alpha(params, site).shape, posterior.loc.shape)
        assert shape == posterior.loc.shape
        rate = guide.dropout_rate(params, site)
        np.testing.assert_allclose(jnp.log(rate / (1 - rate)), guide.log_alpha(params, site), rtol=1e-3)
    several = jax.jit(lambda key: guide.sample_posterior(key, params, sample_shape=(500,)))(KEY)
    assert [several[site].shape for site in SITES] == [(500, 4, 3), (500, 3, 2)]
    far = jnp.abs(several[SITES[0]].mean(0) - guide.median(params)[SITES[0]])
    spread = jnp.sqrt(guide.posteriors(params)[SITES[0]].variance / 500)
    assert (far <= 6 * spread + 1e-6).all() and several[SITES[0]].std(0).min() > 0
    predicted = Predictive(model, guide=guide, params=params, num_samples=3)(KEY, X)
    assert predicted["y"].shape == (3, 6, 2)
    with pytest.raises(ValueError, match="site: expected one of the weight sites"):
        guide.log_alpha(params, "net.nothing")


def test_parameters_and_noise_lie_where_flax_has_its_units():
    """In the order (output, input): 1 are the rows of a kernel of flax, 0 its columns."""
    shapes = {
        ("AutoVariationalDropout", "unit"): (1, 3),
        ("AutoVariationalDropout", "correlated"): (4, 1),
        ("AutoGroupSparse", 1): (4, 1),
        ("AutoGroupSparse", 0): (1, 3),
        ("AutoBernoulliDropout", 1): (4, 1),
    }
    for (name, option), shape in shapes.items():
        options = {"unit": {"granularity": "unit"}, "correlated": {"correlated": True}}.get(option) or {
            "unit_dim": option
        }
        *_, guide, _, params = make(name, **options)
        noise = guide.log_alpha(params, SITES[0])
        assert jnp.broadcast_shapes(noise.shape, shape) == shape, (name, option)
        draw = guide.sample_posterior(KEY, params)[SITES[0]] / guide.median(params)[SITES[0]]
        if option in (1, "correlated") and name != "AutoGroupSparse":
            assert draw.std(1).max() < 1e-5 < draw.std(0).min()


def test_where_and_mixed_guides():
    model = make("AutoSparseVD")[0]
    guide = guides.AutoSparseVD(model, where="net.layers_0.*")
    assert set(handlers.seed(guide, 0)(X)) == set(guide.weight_sites) == set(SITES[:1])
    with pytest.raises(ValueError, match="expected a latent site that matches where, got the sites"):
        handlers.seed(guides.AutoSparseVD(model, where="nothing"), 0)(X)
    first = guides.AutoVariationalDropout(model, correlated=True, where=SITES[0])
    mixed = guides.mixed_guide(model, first, guides.AutoSparseVD(model, where=[SITES[1]]))
    svi = SVI(model, mixed, optax.adam(1e-2), vd.TraceVD_ELBO())
    state = svi.init(KEY, X, Y)
    params = svi.get_params(state)
    posteriors = mixed.posteriors(params)
    assert [type(q).__name__ for q in posteriors.values()] == ["CorrelatedDropoutNormal", "DropoutNormal"]
    assert set(mixed.median(params)) == set(mixed.sample_posterior(KEY, params)) == set(SITES)
    assert vd.sparsity_report(mixed, params=params).total.weights == 18
    assert jnp.isfinite(jax.jit(svi.update)(state, X, Y)[1])


def test_other_sites_have_an_autonormal():
    model, _, guide, svi, params = make("AutoSparseVD", noise_site=True)
    assert guide.weight_sites == SITES and "noise_auto_loc" in params
    assert set(guide.median(params)) == {"noise", *SITES}
    assert guide.median(params)["noise"] > 0
    draws = guide.sample_posterior(KEY, params, sample_shape=(5,))
    assert draws["noise"].shape == (5,) and (draws["noise"] > 0).all()
    state = svi.init(KEY, X, Y)
    update = jax.jit(svi.update)
    first = None
    for _ in range(200):
        state, loss = update(state, X, Y)
        first = loss if first is None else first
    assert loss < first


def test_set_learnable():
    model, _, guide, svi, params = make("AutoGaussianDropout", dropout_rate=0.5)
    assert not any("log_alphas" in name for name in params)
    guide.set_learnable("log_alphas", where=SITES[0])
    after = svi.get_params(svi.init(KEY, X, Y))
    assert set(after) - set(params) == {f"auto.log_alphas.{SITES[0]}"}
    assert float(after[f"auto.log_alphas.{SITES[0]}"].squeeze()) == 0.0
    guide.set_learnable("log_alphas", False, params={f"auto.log_alphas.{SITES[0]}": jnp.full((1, 1), -2.0)})
    assert set(svi.get_params(svi.init(KEY, X, Y))) == set(params)
    assert float(guide.log_alpha(params, SITES[0]).squeeze()) == -2.0
    with pytest.raises(ValueError, match="set_learnable: expected one of .*'locs', 'log_alphas'.*, got 'rates'"):
        guide.set_learnable("rates")
    with pytest.raises(ValueError, match="expected where= to match one of"):
        guide.set_learnable("locs", where="nothing")
    with pytest.raises(ValueError, match="'dropout_rates' of AutoBernoulliDropout has no reparameterised gradient"):
        make("AutoBernoulliDropout")[2].set_learnable("dropout_rates")


@pytest.mark.parametrize("family, options", [
    ("AutoVariationalDropout", {"init_log_alpha": -0.05}), ("AutoSparseVD", {"zero_above": 0.5}),
])  # fmt: skip
def test_with_the_projection_in_the_optimizer_steps_are_those_of_the_pyro_side(family, options):
    """Ten steps of gradient descent on the loss at the posterior mean: the parameters stay the same."""
    with precision("float64"):
        pair = Pair(family, options)
        with torch.no_grad():
            for name, parameter in pair.guide.named_parameters():
                if name.startswith("log_alphas"):
                    parameter.add_(1.45)  # some start above their bound, some below
        pair.params = {name: jnp.asarray(value) for name, value in torch_vd.to_numpyro(pair.guide).items()}
        ours = torch_vd.TraceVD_ELBO("shared")
        parameters = [*pair.guide.parameters(), *(p for p in pair.net.parameters() if p.dim() == 1)]
        optimizer = torch.optim.SGD(parameters, lr=0.02)
        chained = optax.chain(optax.sgd(0.02), pair.other_guide.projection())
        state, params = chained.init(pair.params), pair.other_guide.project(pair.params)
        bounded = 0

        @jax.jit
        @jax.grad
        def gradient(params):
            # At the posterior mean: the gradient of the means, and of the KL.
            guide = vd.posterior_mean(pair.other_guide)
            return vd.TraceVD_ELBO("shared").loss(KEY, params, pair.other_model, guide, *pair.arrays)

        for _ in range(10):
            optimizer.zero_grad()
            ours.differentiable_loss(pair.model, torch_vd.posterior_mean(pair.guide), *pair.tensors).backward()
            optimizer.step()
            updates, state = chained.update(gradient(params), state, params)
            params = optax.apply_updates(params, updates)
            projected = pair.other_guide.project(params)
            assert all((projected[name] == params[name]).all() for name in params)
            pair.guide.posteriors()  # the projection of the Pyro side is at its next read
            named = torch_vd.to_numpyro(pair.guide)
            for name in params:
                np.testing.assert_allclose(params[name], named[name], rtol=1e-9, atol=1e-12)
            bound = "log_alphas" if family == "AutoVariationalDropout" else "locs"
            bounded += sum(int((value == 0).sum()) for name, value in params.items() if bound in name)
        assert bounded > 0


def test_bounds_are_read_with_the_gradient_of_the_value():
    *_, guide, _, params = make("AutoVariationalDropout")
    name = f"auto.log_alphas.{SITES[0]}"
    over = {**params, name: jnp.full((4, 3), 0.7)}
    value, gradient = jax.value_and_grad(lambda p: guide.log_alpha({**over, name: p}, SITES[0]).sum())(over[name])
    assert value == 0.0 and (gradient == 1.0).all()


def test_bad_input():
    model = make("AutoSparseVD")[0]
    guide = guides.AutoSparseVD(model)
    with pytest.raises(ValueError, match="params: expected the parameters of this AutoSparseVD, with 'auto.locs.net"):
        guide.posteriors({})
    with pytest.raises(ValueError, match="AutoSparseVD: expected a random key, got none"):
        guide(X)
    handlers.seed(guide, 0)(X)
    with pytest.raises(ValueError, match="params: expected the parameters of this AutoSparseVD, with 'auto.locs.net"):
        guide.posteriors({"loc": X})
    with pytest.raises(ValueError, match="sample_posterior: expected a random key"):
        guide.sample_posterior(0, {})
    bias = vd.BayesianModule(perceptron("nnx", (4, 3)), vd.ImproperLogUniform(), where="*bias")
    with pytest.raises(ValueError, match="expected a weight of two dimensions or more for AutoGroupSparse"):
        handlers.seed(guides.AutoGroupSparse(bias), 0)(X)

    def positive(x):
        numpyro.sample("w", dist.Gamma(2.0, 2.0).expand([4, 3]).to_event(2))

    with pytest.raises(ValueError, match="site 'w': expected a weight on the real line for AutoMeanField"):
        handlers.seed(guides.AutoMeanField(positive, where="w"), 0)(X)
    for name, options, message in (
        ("AutoVariationalDropout", {"granularity": "weight", "correlated": True}, "granularity: expected one of"),
        ("AutoVariationalDropout", {"init_log_alpha": 1.0}, "init_log_alpha: expected a number <= 0"),
        ("AutoGaussianDropout", {"dropout_rate": 1.0}, r"expected dropout_rate in \[0, 1\)"),
        ("AutoConcreteDropout", {"init_dropout_rate": 0.0}, r"expected init_dropout_rate in \(0, 1\)"),
        ("AutoLowRank", {"rank": 0}, "expected a rank between 1"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(guides, name)(model, **options)


def test_the_first_call_may_be_compiled():
    """``jax.jit(svi.init)``: what the guide keeps of its model are values, not those of the trace."""
    model = make("AutoSparseVD")[0]
    guide = guides.AutoSparseVD(model)
    svi = SVI(model, guide, optax.adam(1e-2), vd.TraceVD_ELBO())
    params = svi.get_params(jax.jit(svi.init)(KEY, X, Y))
    eager = svi.get_params(svi.init(KEY, X, Y))
    assert set(guide.posteriors(params)) == set(SITES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, eager)


def test_hand_written_sites_start_at_random():
    def model(x):
        w = numpyro.sample("w", vd.ImproperLogUniform().expand([4, 3]).to_event(2))
        numpyro.sample("y", dist.Normal(x @ w, 1.0).to_event(2), obs=jnp.zeros((6, 3)))

    guide = guides.AutoSparseVD(model)
    svi = SVI(model, guide, optax.adam(1e-2), vd.TraceVD_ELBO())
    start = svi.get_params(svi.init(KEY, X))["auto.locs.w"]
    assert 0 < jnp.abs(start).max() <= 0.5 and start.std() > 0.1
