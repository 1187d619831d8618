"""Distributions of random weights and priors in NumPyro: the numbers of the Pyro side, for the same noise."""

from __future__ import annotations

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as ndist
import pyro.distributions as dist
import pytest
import torch
from numpyro.distributions.kl import kl_divergence
from torch.distributions import kl_divergence as torch_kl

import pyro_vd as vd
import pyro_vd.numpyro as nvd
from helpers.mirror_numbers import DTYPES, assert_same
from helpers.mirror_parity import Noise
from pyro_vd import posteriors as ours
from pyro_vd.numpyro import posteriors as theirs
from pyro_vd.posteriors.normal import KL_METHODS, LOG_UNIFORM_METHODS

SHAPE = (4, 5)
PARAMETERS = {
    "loc": SHAPE, "log_alpha": SHAPE, "log_sigma2": SHAPE, "shared": (1, 5), "units": (5,), "outs": (4,),
    "unit_loc": (5,), "factor": (2, *SHAPE), "one": (1,),
}  # fmt: skip

# One row for every way to make every distribution: its class, and its arguments from the parameters p.
ROWS = {
    "log_alpha": ("DropoutNormal", lambda p: ((p["loc"], p["log_alpha"]), {})),
    "log_alpha shared": ("DropoutNormal", lambda p: ((p["loc"], p["shared"]), {})),
    "log_alpha number": ("DropoutNormal", lambda p: ((p["loc"], -0.5), {})),
    "log_sigma2": ("DropoutNormal", lambda p: ((p["loc"],), {"log_sigma2": p["log_sigma2"]})),
    "correlated": ("CorrelatedDropoutNormal", lambda p: ((p["loc"], p["units"]), {})),
    "correlated outputs": ("CorrelatedDropoutNormal", lambda p: ((p["loc"], p["outs"]), {"unit_dim": 0})),
    "correlated number": ("CorrelatedDropoutNormal", lambda p: ((p["loc"], -0.7), {})),
    "binary": ("BernoulliDropout", lambda p: ((p["loc"], 0.3), {})),
    "binary units": ("BernoulliDropout", lambda p: ((p["loc"], [0.1] * 5), {})),
    "concrete": ("ConcreteDropout", lambda p: ((p["loc"], p["one"]), {"temperature": 0.4})),
    "concrete units": ("ConcreteDropout", lambda p: ((p["loc"], p["units"]), {"temperature": 0.4})),
    "group": ("GroupNormal", lambda p: ((p["loc"], p["log_sigma2"], p["unit_loc"], p["units"]), {})),
    "low rank": ("LowRankNormal", lambda p: ((p["loc"], p["log_sigma2"], p["factor"]), {})),
    "low rank shared": ("LowRankNormal", lambda p: ((p["loc"], p["shared"], p["factor"]), {})),
}
# The priors that each class has a KL to, and the formulas that its KL to the log-uniform prior may have.
KLS = {
    "DropoutNormal": {"log-uniform": KL_METHODS, "normal": LOG_UNIFORM_METHODS},
    "CorrelatedDropoutNormal": {"log-uniform": LOG_UNIFORM_METHODS},
    "BernoulliDropout": {"log-uniform": (None,), "normal": (None,)},
    "ConcreteDropout": {"normal": (None,)},
    "GroupNormal": {"log-uniform": LOG_UNIFORM_METHODS},
    "LowRankNormal": {"log-uniform": KL_METHODS, "normal": ("sigmoid",)},
}
PAIRS = [(row, prior, methods) for row, (owner, _) in ROWS.items() for prior, methods in KLS[owner].items()]


def parameters(dtype):
    rng = np.random.default_rng(3)
    return {name: (0.6 * rng.standard_normal(shape) - 0.3).astype(dtype) for name, shape in PARAMETERS.items()}


def make(side, row, p, **options):
    owner, arguments = ROWS[row]
    args, kwargs = arguments(p)
    return getattr(side, owner)(*args, **kwargs, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS)
def test_moments_and_draws_and_their_gradients_are_those_of_the_pyro_side(row, dtype, monkeypatch):
    noise = Noise(monkeypatch)

    def of(q, sample):
        noise.again()
        rate = q.dropout_rate
        density = [q.entropy(), q.log_prob(q.loc + 0.3)] if hasattr(q, "_log_sigma2") else []
        return [q.loc, q.mean, q.variance, q.scale, q.log_alpha, rate, sample(q), sample(q, (6,)), *density]

    assert_same(
        parameters(dtype),
        dtype,
        lambda p: of(make(ours, row, p), lambda q, shape=(): q.rsample(torch.Size(shape))),
        lambda p: of(make(theirs, row, p), lambda q, shape=(): q.sample(jax.random.key(0), shape)),
    )
    assert sum(noise.drawn.values()) > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row, prior, methods", PAIRS, ids=lambda v: v if isinstance(v, str) else "")
def test_kl_and_its_gradients_are_those_of_the_pyro_side(row, prior, methods, dtype):
    """By every formula that the pair has, all of them in one program."""
    options = [{} if kl is None else {"kl": kl} for kl in methods]
    one = np.ones((), dtype)

    def torch_side(p):
        base = vd.ImproperLogUniform() if prior == "log-uniform" else dist.Normal(*map(torch.tensor, (0.2 * one, one)))
        qs = [make(ours, row, p, **formula) for formula in options]
        return [torch_kl(q if q.event_shape else q.to_event(2), base.expand(SHAPE).to_event(2)) for q in qs]

    def jax_side(p):
        base = nvd.ImproperLogUniform() if prior == "log-uniform" else ndist.Normal(jnp.asarray(0.2 * one), one)
        qs = [make(theirs, row, p, **formula) for formula in options]
        return [kl_divergence(q if q.event_shape else q.to_event(2), base.expand(SHAPE).to_event(2)) for q in qs]

    assert_same(parameters(dtype), dtype, torch_side, jax_side)


def concrete(side):
    return {n: c for n, c in vars(side).items() if inspect.isclass(c) and not inspect.isabstract(c) and n[0] != "_"}


def test_every_distribution_has_a_row_and_its_keywords():
    made = {owner for owner, _ in ROWS.values()}
    assert made == set(concrete(ours)) == set(KLS)
    for name, owner in concrete(ours).items():
        mirror = getattr(theirs, name)
        assert list(inspect.signature(owner).parameters) == list(inspect.signature(mirror).parameters), name
        assert owner.estimators == mirror.estimators


def test_normal_posteriors_have_a_kl_to_the_log_uniform_prior():
    q, p = ndist.Normal(jnp.array([0.5, -1.0]), jnp.array([0.1, 2.0])), nvd.ImproperLogUniform()
    ours_ = torch_kl(dist.Normal(torch.tensor([0.5, -1.0]), torch.tensor([0.1, 2.0])), vd.ImproperLogUniform())
    np.testing.assert_allclose(kl_divergence(q, p), ours_, rtol=1e-5)
    # The expanded Normal of NumPyro is a distribution of its own.
    expanded = ndist.Normal(0.5, 0.1).expand((2,)).to_event(1)
    np.testing.assert_allclose(kl_divergence(expanded, p.expand((2,)).to_event(1)), 2 * float(ours_[0]), rtol=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_distributions_are_pytrees_that_keep_what_they_are(row):
    p = {name: jnp.asarray(value) for name, value in parameters("float32").items()}
    q = make(theirs, row, p)
    back = jax.jit(lambda q: q)(q)
    assert type(back) is type(q) and back.batch_shape == q.batch_shape and back.event_shape == q.event_shape
    for leaf, other in zip(jax.tree.leaves(q), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert getattr(back, "kl", None) == getattr(q, "kl", None)
    key = jax.random.key(1)
    np.testing.assert_allclose(back.sample(key), q.sample(key), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda q: q.variance)(q), q.variance, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_priors_are_those_of_the_pyro_side(dtype, monkeypatch):
    value = np.array([-2.0, -1.2, -0.3, 0.4, 0.9, 3.0], dtype)
    low, high = np.array(0.25, dtype), np.array(2.0, dtype)
    noise = Noise(monkeypatch)

    def torch_side(p):
        noise.again()
        q = vd.TruncatedLogUniform(torch.tensor(low), torch.tensor(high))
        inside = p["value"].clamp(-1.9, 1.9)
        draws = q.rsample(torch.Size((4,)))
        density = vd.ImproperLogUniform().log_prob(p["value"])
        return [density, q.log_prob(p["value"][1:5]), q.cdf(inside), q.icdf(p["value"].sigmoid()), draws, q.variance]

    def jax_side(p):
        noise.again()
        q = nvd.TruncatedLogUniform(jnp.asarray(low), jnp.asarray(high))
        inside = jnp.clip(p["value"], -1.9, 1.9)
        draws = q.sample(jax.random.key(0), (4,)).astype(dtype)
        density = nvd.ImproperLogUniform().log_prob(p["value"])
        icdf = q.icdf(jax.nn.sigmoid(p["value"]))
        return [density, q.log_prob(p["value"][1:5]), q.cdf(inside), icdf, draws, q.variance]

    assert_same({"value": value}, dtype, torch_side, jax_side)
    with jax.enable_x64(dtype == "float64"):
        outside = nvd.TruncatedLogUniform(low, high).log_prob(jnp.asarray([-2.1, 0.1], dtype))
    assert np.isneginf(outside).all()


def test_float16_weights_have_a_float32_variance():
    loc = jnp.full((2,), 1e-4, jnp.float16)
    q = theirs.DropoutNormal(loc, log_sigma2=jnp.full((2,), 2 * math.log(1e-4), jnp.float16))
    variance = q.noise().variance
    assert variance.dtype == jnp.float32
    np.testing.assert_allclose(variance, 1e-8, rtol=0.02)  # log_sigma2 itself has 11 bits


LOC = jnp.ones((2, 3))
BAD = {
    "neither": (lambda: theirs.DropoutNormal(LOC), "exactly one of log_alpha and log_sigma2, got neither"),
    "both": (lambda: theirs.DropoutNormal(LOC, 0.0, log_sigma2=0.0), "got both"),
    "kl": (lambda: theirs.DropoutNormal(LOC, 0.0, kl="cubed"), "expected kl to be one of 'sigmoid'.*got 'cubed'"),
    "shape": (lambda: theirs.DropoutNormal(LOC, jnp.ones(2)), r"log_alpha to broadcast with loc of shape \(2, 3\)"),
    "float64": (
        lambda: theirs.DropoutNormal(np.ones((2, 3)), 0.0),
        "expected loc in float32, got float64 .*switched off.*jax_enable_x64",
    ),
    "float64 parameter": (
        lambda: theirs.DropoutNormal(LOC, np.zeros((2, 3))),
        "expected log_alpha in float32, got float64",
    ),
    "no key": (
        lambda: theirs.DropoutNormal(LOC, 0.0).sample(None),
        "expected a random key, got none",
    ),
    "a number for a key": (lambda: theirs.BernoulliDropout(LOC, 0.5).sample(3), "random key, got int"),
    "rate": (lambda: theirs.BernoulliDropout(LOC, 1.0), r"expected dropout_rate in \[0, 1\).*got 1.0"),
    "temperature": (lambda: theirs.ConcreteDropout(LOC, 0.0, temperature=0.0), "expected temperature > 0"),
    "unit_dim": (lambda: theirs.BernoulliDropout(jnp.ones(3), 0.5), "weight with dimension 1 for its units"),
    "unit values": (
        lambda: theirs.CorrelatedDropoutNormal(LOC, jnp.zeros(2)),
        r"one number or of shape \(3,\).*got shape \(2,\)",
    ),
    "unit kl": (lambda: theirs.CorrelatedDropoutNormal(LOC, 0.0, kl="ard"), "got 'ard'"),
    "group kl": (lambda: theirs.GroupNormal(LOC, LOC, jnp.ones(3), jnp.ones(3), kl="ard"), "got 'ard'"),
    "factor": (lambda: theirs.LowRankNormal(LOC, 0.0, jnp.ones((1, 3, 2))), r"factor of shape \(rank, \*\(2, 3\)\)"),
    "rank": (lambda: theirs.LowRankNormal(LOC, 0.0, jnp.ones((7, 2, 3))), "a rank between 1 and the 6 weights"),
    "density": (lambda: theirs.BernoulliDropout(LOC, 0.5).log_prob(LOC), "has no density"),
    "batch": (lambda: theirs.BernoulliDropout(LOC, 0.5).expand((4,)), r"one weight, got a batch of shape \(4,\)"),
    "low rank batch": (lambda: theirs.LowRankNormal(LOC, 0.0, LOC[None]).expand((4,)), "one weight, got a batch"),
    "no draws": (lambda: nvd.ImproperLogUniform().sample(jax.random.key(0)), "improper density .*TruncatedLogUniform"),
    "low": (lambda: nvd.TruncatedLogUniform(2.0, 1.0), "expected 0 < low < high"),
    "prior": (
        lambda: kl_divergence(theirs.BernoulliDropout(LOC, 0.5), ndist.Cauchy().expand((2, 3)).to_event(2)),
        r"ImproperLogUniform or Normal with .to_event\(2\), got Cauchy",
    ),
    "part of the weight": (
        lambda: kl_divergence(theirs.BernoulliDropout(LOC, 0.5), ndist.Normal().expand((2, 3)).to_event(1)),
        r"got Normal with .to_event\(1\)",
    ),
    "ard": (lambda: kl_divergence(theirs.DropoutNormal(LOC, 0.0, kl="ard"), ndist.Normal()), "kl='ard' fits the var"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_an_error_that_says_what_to_write(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("loc", [jnp.ones(2, int), "1.0", torch.ones(2)])
def test_loc_that_is_no_floating_point_array_is_a_type_error(loc):
    with pytest.raises(TypeError, match="expected loc to be a floating point array"):
        theirs.DropoutNormal(loc, 0.0)
