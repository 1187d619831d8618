"""A weight used twice: one error that names all such sites, or one draw for those that need it, said once."""

from __future__ import annotations

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from numpyro import handlers
from numpyro.infer import SVI, TraceMeanField_ELBO

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField

pytestmark = pytest.mark.slow  # compiles many programs

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (5, 4)), jnp.ones((5, 4))
SAID = r"the weights \['net.*'\] are used twice, and are drawn once a step"


class NnxTwice(nnx.Module):
    """Two layers used twice, one once."""

    def __init__(self):
        self.a, self.b, self.c = (nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(3))

    def __call__(self, x):
        for _ in range(2):
            x = self.b(jnp.tanh(self.a(x)))
        return self.c(x)


class LinenTwice(linen.Module):
    def setup(self):
        self.a, self.b, self.c = linen.Dense(4), linen.Dense(4), linen.Dense(4)

    def __call__(self, x):
        for _ in range(2):
            x = self.b(jnp.tanh(self.a(x)))
        return self.c(x)


class EquinoxTwice(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear
    c: eqx.nn.Linear

    def __init__(self):
        self.a, self.b, self.c = (eqx.nn.Linear(4, 4, key=jax.random.key(i)) for i in range(3))

    def __call__(self, x):
        for _ in range(2):
            x = self.b(jnp.tanh(self.a(x)))
        return self.c(x)


NETS = {"nnx": NnxTwice, "linen": lambda: LinenTwice().bind(LinenTwice().init(KEY, X)), "equinox": EquinoxTwice}


def sites(library):
    leaf = "weight" if library == "equinox" else "kernel"
    return [f"net.{layer}.{leaf}" for layer in "abc"]


def program(library="nnx", **options):
    bnn = vd.BayesianModule(NETS[library](), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean = bnn(x)
        with vd.data_plate(5, len(x)):
            numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    guide = AutoMeanField(model, init_log_sigma2=-1.0)
    svi = SVI(model, guide, optax.adam(0.01), vd.TraceVD_ELBO(**options))
    return model, guide, svi, svi.get_params(svi.init(KEY, X, Y))


def by_hand(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros((4, 4)), 1.0).to_event(2))
    v = numpyro.sample("v", dist.Normal(jnp.zeros((4, 4)), 1.0).to_event(2))
    u = numpyro.sample("u", dist.Normal(jnp.zeros((4, 4)), 1.0).to_event(2))
    numpyro.sample("y", dist.Normal(((x @ w) @ w + (x @ v) @ v) @ u, 1.0).to_event(2), obs=Y)


def guide_by_hand(x, y=None):
    for name in "wvu":
        loc = numpyro.param(f"loc_{name}", jnp.eye(4))
        numpyro.sample(name, vd.DropoutNormal(loc, log_sigma2=-1.0).to_event(2))


HAND_PARAMS = {f"loc_{name}": jnp.eye(4) for name in "wvu"}


def used(estimator, **options):
    """The model by hand under TraceVD_ELBO."""
    elbo = vd.TraceVD_ELBO(estimator=estimator, **options)
    return elbo.terms(KEY, HAND_PARAMS, by_hand, guide_by_hand, X)


@pytest.mark.parametrize("estimator", ["local", "per_example", "flipout"])
@pytest.mark.parametrize("library", NETS)
def test_one_error_names_every_site_and_the_line_to_paste(library, estimator):
    model, guide, svi, params = program(library, estimator=estimator)
    a, b, _ = sites(library)
    match = rf"sites '{a}', '{b}': expected one use of each weight.*Write shared_sites=\['{a}', '{b}'\]"
    with pytest.raises(ValueError, match=match):
        svi.loss.loss(KEY, params, model, guide, X, Y)
    with pytest.raises(ValueError, match=match):
        jax.jit(svi.loss.loss, static_argnums=(2, 3))(KEY, params, model, guide, X, Y)
    cured = vd.TraceVD_ELBO(estimator=estimator, shared_sites=[a, b])
    assert jnp.isfinite(cured.loss(KEY, params, model, guide, X, Y))


def _stock(params, model, guide):
    return TraceMeanField_ELBO().loss(KEY, params, model, guide, X, Y)


def _local(params, model, guide, **options):
    return vd.posterior_predictive(KEY, params, model, guide, X, num_samples=2, mode="local", **options)


def _variance(params, model, guide, **options):
    return vd.gradient_variance(KEY, params, model, guide, vd.TraceVD_ELBO(**options), X, Y, num_draws=2)


def test_the_error_of_everything_that_uses_weights_names_every_site():
    model, guide, _, params = program()
    a, b, _ = sites("nnx")
    calls = {
        "lrt with an ELBO of NumPyro": lambda **o: _stock(params, model, vd.lrt(guide, **o)),
        "predictive": lambda **o: _local(params, model, guide, **o),
        "report": lambda **o: vd.lrt_report(KEY, params, model, guide, X, **o),
        "variance": lambda **o: _variance(params, model, guide, **o),
    }  # fmt: skip
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"sites '{a}', '{b}'.*shared_sites=\['{a}', '{b}'\].*shared_sites=\"auto\""
        ):
            call()
        assert call(shared_sites=[a, b]) is not None, name
        with pytest.warns(UserWarning, match=SAID):
            assert call(shared_sites="auto") is not None, name
        with pytest.warns(UserWarning, match=SAID):
            assert call(reuse="shared") is not None, name
        assert call(reuse="independent") is not None, name


def test_one_site_is_named_as_one():
    with pytest.raises(ValueError, match=r"site 'v': expected one use of the weight.*Write shared_sites=\['v'\]"):
        used("local", shared_sites=["w"])
    with pytest.raises(ValueError, match=r"sites 'w', 'v': expected one use of each weight"):
        used("local")


@pytest.mark.parametrize("estimator", ["local", "per_example", "flipout"])
def test_auto_draws_those_and_only_those_that_are_used_twice(estimator):
    drawn = {}

    def model(x, y=None):
        by_hand(x)
        for name in "wvu":
            drawn[name] = isinstance(values[name], vd.RandomWeight) and not values[name].state.drawn

    values = {}

    class Seen(handlers.block):
        def postprocess_message(self, msg):
            if msg["type"] == "sample" and msg["name"] in "wvu":
                values[msg["name"]] = msg["value"]

    def seen(x, y=None):
        with Seen(hide_fn=lambda msg: False):
            model(x)

    elbo = vd.TraceVD_ELBO(estimator=estimator, shared_sites="auto")
    with pytest.warns(UserWarning, match=r"the weights \['w', 'v'\] are used twice"):
        elbo.terms(KEY, HAND_PARAMS, seen, guide_by_hand, X)
    assert drawn == {"w": False, "v": False, "u": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        elbo.terms(KEY, HAND_PARAMS, seen, guide_by_hand, X)


def test_the_loss_with_auto_is_that_of_one_draw_of_each_weight_used_twice():
    """At fixed noise: the outputs are those of a net whose shared weights are the draws that the trace kept."""
    model, guide, svi, params = program(shared_sites="auto")
    with pytest.warns(UserWarning, match=SAID):
        auto = jax.vmap(lambda key: svi.loss.terms(key, params, model, guide, X, Y).data)(jax.random.split(KEY, 4000))
    explicit = vd.TraceVD_ELBO(shared_sites=sites("nnx")[:2])
    named = jax.vmap(lambda key: explicit.terms(key, params, model, guide, X, Y).data)(jax.random.split(KEY, 4000))
    independent = vd.TraceVD_ELBO(reuse="independent")
    apart = jax.vmap(lambda key: independent.terms(key, params, model, guide, X, Y).data)(jax.random.split(KEY, 4000))
    error = 6 * np.sqrt((auto.var() + named.var()) / 4000)  # one failure in 5e8
    assert abs(auto.mean() - named.mean()) < error
    # The spread over draws shows that the noise is shared: with noise of its own for every use it is far less.
    assert 0.8 < auto.std() / named.std() < 1.25 and apart.std() < 0.8 * named.std()


def test_auto_leaves_a_net_without_reuse_as_it_is():
    net = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    guide = AutoMeanField(bnn)
    svi = SVI(bnn, guide, optax.adam(0.01), vd.TraceVD_ELBO())
    params = svi.get_params(svi.init(KEY, X))
    expected = handlers.seed(handlers.substitute(bnn, {**params, "net.kernel": params["auto.locs.net.kernel"]}), 0)(X)
    assert expected.shape == (5, 4)
    for options in ({"shared_sites": "auto"}, {"reuse": "shared"}):
        assert vd.TraceVD_ELBO(**options).loss(KEY, params, bnn, guide, X) == svi.loss.loss(KEY, params, bnn, guide, X)
        report = vd.lrt_report(KEY, params, bnn, guide, X, **options)
        assert report.share == 1.0


def test_auto_trains_under_jit_and_says_so_once():
    _, _, svi, _ = program(shared_sites="auto")
    state = svi.init(KEY, X, Y)
    with pytest.warns(UserWarning, match=SAID) as caught:
        update = jax.jit(svi.update)
        for _ in range(3):
            state, loss = update(state, X, Y)
        svi.evaluate(state, X, Y)
    assert jnp.isfinite(loss) and len(caught) == 1


def test_the_report_says_which_are_drawn():
    model, guide, _, params = program()
    with pytest.warns(UserWarning, match=SAID):
        report = vd.lrt_report(KEY, params, model, guide, X, shared_sites="auto")
    assert [row.how for row in report.rows] == ["one draw", "one draw", "local"] and report.share == pytest.approx(
        1 / 3
    )


def test_lrt_alone_does_not_see_a_second_use_in_a_model_by_hand():
    with pytest.raises(ValueError, match=r"site 'w': expected one use of the weight.*Write shared_sites=\['w'\]"):
        TraceMeanField_ELBO().loss(KEY, HAND_PARAMS, by_hand, vd.lrt(guide_by_hand, shared_sites="auto"), X)


def test_names_that_the_guide_does_not_have_and_options_that_contradict():
    model, guide, _, params = program()
    for estimator in ("local", "shared"):
        elbo = vd.TraceVD_ELBO(estimator=estimator, shared_sites=["net.a.kernl"])
        with pytest.raises(ValueError, match=r"names among the sites of the guide \['net.a.kernel', .*kernl"):
            elbo.loss(KEY, params, model, guide, X, Y)
    for make in (vd.TraceVD_ELBO, vd.lrt, vd.per_example, vd.flipout):
        with pytest.raises(ValueError, match="shared_sites: expected names with reuse='independent', got 'auto'"):
            make(shared_sites="auto", reuse="independent")
        with pytest.raises(TypeError, match="shared_sites: expected a list of site names, got 'net.a.kernel'"):
            make(shared_sites="net.a.kernel")
        with pytest.raises(TypeError, match="shared_sites: expected a list of site names, got 3"):
            make(shared_sites=3)
        with pytest.raises(ValueError, match="reuse: expected one of 'error', 'independent', 'shared', got 'auto'"):
            make(reuse="auto")
