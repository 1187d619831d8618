"""BayesianModule.report of the mirror: what every parameter is, under which prior, and why. Exact."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro import handlers

import pyro_vd.numpyro as vd

PRIOR = dist.Normal(0.0, 1.0)


class Pieces(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed, self.cell, self.out = (
            nnx.Embed(5, 4, rngs=rngs), nnx.GRUCell(4, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        )  # fmt: skip
        self.gain, self.mix = nnx.Param(jnp.ones(())), nnx.Param(jnp.ones((2, 2)))

    def __call__(self, x):
        return x


def rows(bnn):
    return {row.name: (row.layer, row.kind, row.why, row.prior) for row in bnn.report().rows}


def test_the_report_says_what_every_parameter_is_and_why():
    found = rows(vd.BayesianModule(Pieces(), {nnx.Embed: PRIOR, "*": vd.ImproperLogUniform()}))
    once = "; one draw for all steps of a sequence"
    improper = "ImproperLogUniform()"
    assert found == {
        "embed.embedding": ("Embed", "random", "embedding of Embed", "Normal(loc: 0.0, scale: 1.0)"),
        "cell.dense_i.kernel": ("Linear", "random", f"kernel of Linear{once}", improper),
        "cell.dense_i.bias": ("Linear", "deterministic", "a bias or a gain", ""),
        "cell.dense_h.kernel": ("Linear", "random", f"kernel of Linear{once}", improper),
        "out.kernel": ("Linear", "random", "kernel of Linear", improper),
        "out.bias": ("Linear", "deterministic", "a bias or a gain", ""),
        "gain": ("Pieces", "deterministic", "a scalar", ""),
        "mix": ("Pieces", "deterministic", "no weight of Pieces is known", ""),
    }


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("weight", "where='weight'"),
        (eqx.nn.Linear, "where=Linear"),
        (lambda name, layer: name == "weight", "where=, a function"),
    ],
)
def test_what_was_asked_for_is_said(where, why):
    bnn = vd.BayesianModule(eqx.nn.Linear(3, 2, key=jax.random.key(0)), PRIOR, where=where)
    assert rows(bnn) == {
        "weight": ("Linear", "random", why, "Normal(loc: 0.0, scale: 1.0)"),
        "bias": ("Linear", "deterministic", "not in where=", ""),
    }
    assert repr(bnn) == f"BayesianModule(Linear, name='net', {bnn.report().summary})"
    assert bnn.report().share == 1.0


def test_a_linen_net_that_was_not_called_has_no_report():
    bnn = vd.BayesianModule(linen.Dense(2), PRIOR)
    assert repr(bnn) == "BayesianModule(Dense, name='net', not called yet)"
    with pytest.raises(ValueError, match="expected a linen net that was called once"):
        vd.prune(bnn, {}, params={})
    with pytest.raises(ValueError, match="expected a linen net that was called once, got a new one"):
        bnn.report()
    handlers.seed(bnn, 0)(jnp.ones((1, 3)))
    assert {row.name: row.kind for row in bnn.report().rows} == {"kernel": "random", "bias": "deterministic"}
