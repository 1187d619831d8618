"""Sparse weights in nets of three libraries of JAX: the same outputs by sparse products, and the fastest is taken."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quax
from flax import linen, nnx

import pyro_vd.numpyro as vd
from pyro_vd.numpyro.sparsity.sparse import SparseWeight, sparse_weight

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 8))

pytestmark = pytest.mark.slow  # compiles many programs


def zeros(values):
    return jax.tree.map(lambda w: w * (jnp.arange(w.size).reshape(w.shape) % 7 == 0) if w.ndim == 2 else w, values)


def net(library):
    if library == "linen":
        made = linen.Sequential([linen.Dense(6), linen.relu, linen.LayerNorm(), linen.Dense(3)])
        return made.bind(zeros(made.init(KEY, X)))
    if library == "equinox":
        arrays, rest = eqx.partition(eqx.nn.MLP(8, 3, 6, 1, key=KEY), eqx.is_array)
        return eqx.combine(zeros(arrays), rest)
    rngs = nnx.Rngs(0)
    made = nnx.Sequential(
        nnx.Linear(8, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs), nnx.relu, nnx.Linear(6, 3, rngs=rngs)
    )
    made.eval()
    nnx.update(made, zeros(nnx.state(made, nnx.Param)))
    return made


def timer_for(form, forms):
    """1 s for this form, 2 s for the others."""
    seconds = iter([1.0 if one == form else 2.0 for one in forms])
    return lambda call: (call(), next(seconds))[1]


@pytest.mark.parametrize(
    ("library", "form"), [("linen", "bcsr"), ("nnx", "bcoo"), ("nnx", "dense"), ("equinox", "bcsr")]
)
def test_the_same_outputs_by_sparse_products(library, form, monkeypatch):
    given, forms = net(library), ("dense", "bcoo", "bcsr")
    monkeypatch.setattr(SparseWeight, "materialise", None)  # the dense matrix would be an error
    found = vd.deploy(given, X, forms=forms, min_sparsity=0.8, timer=timer_for(form, forms))
    assert found.form == form and [row.milliseconds for row in found.rows] == [1e3 if f == form else 2e3 for f in forms]
    other = jax.random.normal(jax.random.key(1), (2, 8))
    expected = jax.vmap(given)(other) if library == "equinox" else given(other)
    np.testing.assert_allclose(found.net(other), expected, rtol=1e-5, atol=1e-6)
    dense, bcoo, bcsr = (row.bytes for row in found.rows)
    assert bcoo < dense and bcsr < dense


@pytest.mark.parametrize("form", ["bcoo", "bcsr"])
@pytest.mark.parametrize("in_axis", [0, 1])
@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: x @ w, lambda x, w: w.T @ x.mT, lambda x, w: (x @ w.T.T).sum(), lambda x, w: w.sum(0),
        lambda x, w: jnp.einsum("bti,io->tob", x, w), lambda x, w: x.astype(jnp.float16) @ w, lambda x, w: w[1] + w[0],
        lambda x, w: jnp.tile(x, 2)[..., :4] @ w.T, lambda x, w: x[0, 0] @ w, lambda x, w: jnp.kron(w, w),
        lambda x, w: jnp.broadcast_to(x[0, 0], (2, 3)) @ jnp.broadcast_to(w, (2, 3, 4)),
    ],
)  # fmt: skip
def test_any_use_of_a_weight(use, in_axis, form):
    dense = zeros(jax.random.normal(KEY, (3, 4)))
    x = jax.random.normal(KEY, (2, 5, 3))
    weight = sparse_weight(dense, in_axis, form)
    assert weight.shape == (3, 4) and (weight.materialise() == dense).all()
    np.testing.assert_allclose(quax.quaxify(use)(x, weight), use(x, dense), rtol=2e-3, atol=1e-5)


def test_what_is_refused():
    given = net("nnx")
    bnn = vd.BayesianModule(given, vd.ImproperLogUniform())
    for bad, text in (
        (bnn, r"got a BayesianModule.*prune\(bnn, guide, params"),
        (None, "deploy: expected net to be a flax"),
    ):
        with pytest.raises(TypeError, match=text):
            vd.deploy(bad, X)
    for options, kind, text in (
        ({"forms": "dense"}, ValueError, "forms: expected several of"),
        ({"forms": ("csr",)}, ValueError, "forms: expected several of"),
        ({"min_sparsity": 2}, ValueError, "min_sparsity: expected a share in 0..1, got 2"),
        ({"timer": 1}, TypeError, "deploy: expected timer to be a function, got 1"),
        ({"timer": lambda call: math.nan}, ValueError, "timer: expected a number, got nan"),
        (
            {"forms": ("bcoo",), "min_sparsity": 0.99},
            ValueError,
            "expected a form that works, got .*zeros of 0.99 or more",
        ),
    ):
        with pytest.raises(kind, match=text):
            vd.deploy(given, X, **options)
    with pytest.raises(ValueError, match=r"deploy: expected example_inputs that the net takes, got \[\(5, 9\)\]"):
        vd.deploy(given, jnp.ones((5, 9)))
