"""Labels of a shape that would be broadcast against their likelihood are refused, from a loss and from a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI

import pyro_vd.numpyro as vd

KEY = jax.random.key(0)
N = 4
MEAN, LOGITS = jnp.arange(4.0), jnp.arange(12.0).reshape(4, 3)
Y, CLASSES = MEAN + 0.1, jnp.array([0, 1, 2, 0])
COUNTS = jnp.array([[2, 0, 0]] * 4)
TWO = jnp.stack([MEAN, MEAN], -1)

# likelihood, labels that are right, labels that are not.
CASES = {
    "Normal": (lambda: dist.Normal(MEAN, 1.0), Y, [Y[:, None], Y[None], Y[:1], jnp.float32(0.5), Y[:, None, None]]),
    "Normal, one scale each": (lambda: dist.Normal(0.0, MEAN + 1), Y, [Y[:, None], Y[:1], 0.5]),
    "Categorical": (lambda: dist.Categorical(logits=LOGITS), CLASSES, [CLASSES[:, None], CLASSES[:1], 1]),
    "Bernoulli": (lambda: dist.Bernoulli(logits=MEAN), CLASSES % 2, [(CLASSES % 2)[:, None], jnp.array([1])]),
    "Poisson": (lambda: dist.Poisson(MEAN + 1), CLASSES, [CLASSES[:, None]]),
    "outputs as event": (lambda: dist.Normal(TWO, 1.0).to_event(1), TWO, [Y[:, None], Y, TWO[:1], TWO[..., None]]),
    "MultivariateNormal": (lambda: dist.MultivariateNormal(TWO, jnp.eye(2)), TWO, [TWO[0], Y[:, None], TWO[:, None]]),
    "Multinomial": (lambda: dist.Multinomial(2, logits=LOGITS), COUNTS, [COUNTS[0]]),
    "masked": (lambda: dist.Normal(MEAN, 1.0).mask(MEAN > 0), Y, [Y[:, None], Y[:1]]),
    "a mask of another shape": (lambda: dist.Normal(MEAN, 1.0).mask((MEAN > 0)[:, None]), None, [Y, Y[:, None]]),
    "a column of means": (lambda: dist.Normal(MEAN[:, None], 1.0), None, [Y, Y[:, None]]),
    "one mean for all": (lambda: dist.Normal(0.0, 1.0), Y, [Y[:, None], Y[:1]]),
}  # fmt: skip


def program(likelihood):
    def model(y):
        numpyro.sample("w", dist.Normal(0.0, 1.0))
        with vd.data_plate(100, N):
            numpyro.sample("y", likelihood(), obs=y)

    def guide(y):
        numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    return model, guide


@pytest.mark.parametrize(("likelihood", "right", "wrong"), CASES.values(), ids=CASES)
def test_labels_that_would_be_broadcast_are_refused(likelihood, right, wrong):
    model, guide = program(likelihood)
    elbo, params = vd.TraceVD_ELBO(), {"loc": jnp.zeros(())}
    if right is not None:
        assert jnp.isfinite(elbo.loss(KEY, params, model, guide, right))
    for labels in wrong:
        with pytest.raises(ValueError, match="site 'y': expected an observed value of shape .*, got .*broadcast"):
            elbo.loss(KEY, params, model, guide, labels)


@pytest.mark.parametrize("jit", [False, True])
def test_a_step_refuses_them_and_leaves_its_state(jit):
    model, guide = program(CASES["Normal"][0])
    svi = SVI(model, guide, optax.adam(0.01), vd.TraceVD_ELBO())
    state = svi.init(KEY, Y)
    before = svi.get_params(state)
    step = jax.jit(svi.update) if jit else svi.update
    with pytest.raises(ValueError, match=r"shape \(4,\).*got \(4, 1\).*write obs=y.reshape\(\(4,\)\)"):
        step(state, Y[:, None])
    assert svi.get_params(state) == before
    assert jnp.isfinite(step(state, Y)[1])


def test_what_has_its_shape_is_taken():
    """Factors, samples of several at once, masks of the labels, and sites in a scan."""

    def model(y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.factor("factor", -(w**2))
        numpyro.sample("several", dist.Normal(w, 1.0), obs=jnp.zeros((3, 2)), sample_shape=(3, 2))
        numpyro.sample("one", dist.Normal(w, 1.0), obs=0.3)
        with numpyro.plate("N", N), handlers.mask(mask=jnp.array([True, True, False, False])):
            numpyro.sample("y", dist.Normal(w, 1.0), obs=y)
        with numpyro.plate("M", N, dim=-2):
            numpyro.sample("column", dist.Normal(w, 1.0), obs=y[:, None])
        scan(lambda c, x: (c, numpyro.sample("steps", dist.Normal(w, 1.0), obs=x)), 0.0, y)

    def guide(y):
        numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    terms = vd.TraceVD_ELBO().terms(KEY, {"loc": jnp.zeros(())}, model, guide, Y)
    assert set(terms.nll) == {"factor", "several", "one", "y", "column", "steps"} and jnp.isfinite(terms.loss)


def test_a_mask_of_minus_infinity_is_no_fault_where_the_loss_is_finite():
    def model(x, mask):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        weights = jax.nn.softmax(w * x + mask)
        numpyro.sample("y", dist.Normal(weights.sum(-1), 1.0), obs=jnp.zeros(4))

    def guide(x, mask):
        numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    mask = jnp.where(jnp.tril(jnp.ones((4, 4))) > 0, 0.0, -jnp.inf)
    params = {"loc": jnp.zeros(())}
    for given in (mask, {"of": mask}):
        program = model if given is mask else lambda x, mask: model(x, mask["of"])
        assert jnp.isfinite(vd.TraceVD_ELBO().loss(KEY, params, program, guide, jnp.ones((4, 4)), given))
    with pytest.raises(ValueError, match="data argument 0 holds 16 NaN or infinite"):
        vd.TraceVD_ELBO().loss(KEY, params, model, guide, jnp.full((4, 4), jnp.nan), mask)

    def faulty(x, mask):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="non-finite input: data argument 1 .*; its error was: something else"):
        vd.TraceVD_ELBO().loss(KEY, params, faulty, guide, jnp.ones((4, 4)), mask)
