"""The report on the uses of random weights, and the table of operations, on the NumPyro side."""

from __future__ import annotations

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import quax
from flax import linen, nnx
from jax import lax
from jax.extend.core import Primitive
from numpyro.infer import SVI

import pyro_vd as torch_vd
import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoMeanField
from pyro_vd.numpyro.weights import WeightState

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 3))


def report(net, x, **options):
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    guide = AutoMeanField(bnn)
    svi = SVI(bnn, guide, optax.adam(0.01), vd.TraceVD_ELBO())
    state = svi.init(KEY, x)
    params = {**svi.get_params(state), **(state.mutable_state or {})}
    return vd.lrt_report(KEY, params, bnn, guide, x, **options)


class Mixed(nnx.Module):
    """A convolution, a product, a weight that is squared (no rule) and one that is not used."""

    def __init__(self):
        self.conv, self.dense = nnx.Conv(1, 2, (2,), rngs=nnx.Rngs(0)), nnx.Linear(6, 2, rngs=nnx.Rngs(1))
        self.squared, self.unused = nnx.Linear(2, 2, rngs=nnx.Rngs(2)), nnx.Linear(2, 2, rngs=nnx.Rngs(3))

    def __call__(self, x):
        x = self.dense(self.conv(x[..., None]).reshape(len(x), -1))
        return x @ jnp.square(self.squared.kernel[...])


def test_a_row_for_every_weight():
    with pytest.warns(UserWarning, match="'net.squared.kernel': expected an operation with a rule"):
        found = report(Mixed(), X)
    rows = {row.site: (row.shape, row.weights, row.operations[:1], row.how) for row in found.rows}
    squared = rows.pop("net.squared.kernel")
    assert rows == {
        "net.conv.kernel": ((2, 1, 2), 4, ("conv_general_dilated",), "local"),
        "net.dense.kernel": ((6, 2), 12, ("dot_general",), "local"),
        "net.unused.kernel": ((2, 2), 4, (), "not used"),
    }
    assert squared[3] == "one draw" and found.share == pytest.approx(16 / 24)
    assert str(found).splitlines()[-1] == "66.7% of the weights are sampled locally"


def test_recurrent_weights_are_one_draw_and_embeddings_are_local():
    lstm = linen.RNN(linen.LSTMCell(2))
    x = jnp.ones((2, 3, 2))
    assert {row.how for row in report(lstm.bind(lstm.init(KEY, x)), x).rows} == {"one draw"}
    assert report(eqx.nn.Embedding(4, 2, key=KEY), jnp.arange(3)).rows[0].operations == ("gather",)


def test_both_sides_print_the_same_report():
    assert vd.LRTReport is torch_vd.LRTReport
    assert type(report(eqx.nn.Linear(3, 2, key=KEY), X)) is torch_vd.LRTReport


def test_a_guide_without_weights_is_an_error():
    def model(x):
        numpyro.sample("w", dist.Normal(0.0, 1.0))

    def guide(x):
        numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    with pytest.raises(ValueError, match=r"lrt_report: expected a guide that samples random weights, got .* \['w'\]"):
        vd.lrt_report(KEY, {"loc": jnp.zeros(())}, model, guide, X)


def test_the_table_has_the_operations_that_are_sampled():
    table = vd.operations_table()
    lines = [line.split(" | ") for line in table.splitlines()[2:]]
    assert {line[0].strip("|` ") for line in lines} >= {"dot_general", "conv_general_dilated", "gather"}
    assert {line[2] for line in lines} <= {"exact", "approximate"}
    assert table.splitlines()[:2] == torch_vd.operations_table().splitlines()[:2]
    # what a command line prints
    done = subprocess.run([sys.executable, "-m", "pyro_vd.numpyro.operations"], capture_output=True, text=True)
    assert done.stdout == table + "\n"


def weight(shape=(2, 3)):
    noise = vd.DropoutNormal(jnp.ones(shape), log_sigma2=-1.0).noise()
    return vd.RandomWeight(noise, noise.variance, KEY, WeightState("w"))


def new_primitive(name):
    primitive = Primitive(name)
    primitive.def_impl(lambda x, w: x @ w.T)
    primitive.def_abstract_eval(lambda x, w: jax.core.ShapedArray((len(x), len(w)), x.dtype))
    return primitive


def linear_rule(primitive):
    def rule(x, weight):
        return vd.LinearOp(primitive.bind, x, weight, weight_units=(1,), weight_outs=(0,), x_units=(1,), out_units=(1,),
                           example=(0, 0))  # fmt: skip

    return rule


@pytest.fixture
def primitive():
    made = new_primitive("mirror_linear")
    yield made
    vd.operations.TABLE.pop(made, None)


def test_an_operation_without_a_rule_has_one_draw_and_with_one_its_own_noise(primitive):
    run = quax.quaxify(primitive.bind)
    with pytest.warns(
        UserWarning, match="'w': expected an operation with a rule for estimator 'local', got mirror_linear"
    ):
        shared = run(jnp.ones((4, 3)), weight())
    assert jnp.array_equal(shared[0], shared[1])
    vd.register_rule(primitive, drops="nothing")(linear_rule(primitive))
    x = jnp.ones((2000, 3))
    local = run(x, weight())
    assert local[0, 0] != local[1, 0]
    # Mean 3 and variance 3 exp(-1); six standard errors over 4000 outputs: one failure in 5e8.
    variance = 3 * np.exp(-1.0)
    assert abs(local.mean() - 3) < 6 * np.sqrt(variance / 4000)
    assert abs(local.var() - variance) < 6 * variance * np.sqrt(2 / 4000)
    assert "| `mirror_linear` | `weight` | exact | nothing |" in vd.operations_table()
    expected = quax.quaxify(lambda x, w: x @ w.T)(x, weight())
    assert jnp.allclose(local, expected)  # the rule of the product, from the same key


def test_a_rule_may_not_cover_a_call_and_may_be_replaced(primitive):
    run = quax.quaxify(primitive.bind)
    vd.register_rule(primitive)(lambda x, weight: None)
    with pytest.warns(UserWarning, match="the weight is drawn once"):
        run(X, weight())
    vd.register_rule(primitive, kind="approximate")(linear_rule(primitive))
    assert run(X, weight()).shape == (5, 2) and vd.operations.TABLE[primitive].kind == "approximate"
    vd.register_rule(primitive)(lambda x, weight: 3)
    with pytest.raises(TypeError, match="rule .* for mirror_linear: expected a LinearOp or None, got int"):
        run(X, weight())


def test_a_rule_of_the_library_may_be_replaced():
    before = vd.operations.TABLE[lax.dot_general_p]
    calls = []

    def rule(left, right, **params):
        calls.append(params)
        return before.rule(left, right, **params)

    try:
        vd.register_rule(lax.dot_general_p, weight=("left", "right"))(rule)
        weight() @ jnp.ones(3)
        jnp.ones((1, 2)) @ weight()
        assert len(calls) == 2
    finally:
        vd.register_rule(lax.dot_general_p, weight=before.weights, drops=before.drops)(before.rule)


def test_what_cannot_be_a_rule_is_an_error(primitive):
    for operations, options, rule, error, match in (
        ((), {}, None, ValueError, "register_rule: expected the operations the rule is for, got none"),
        (
            (jnp.dot,),
            {},
            None,
            TypeError,
            "expected an operation to be a primitive of JAX, got .*lax.dot_general_p",
        ),
        (("dot_general",), {}, None, TypeError, "expected an operation to be a primitive of JAX, got 'dot_general'"),
        (
            (primitive,),
            {"kind": "roughly"},
            None,
            ValueError,
            "expected kind to be 'exact' or .*, got 'roughly'",
        ),
        (
            (primitive,),
            {"weight": "w"},
            lambda x, weight: None,
            ValueError,
            r"operands .*\['x', 'weight'\], got \['w'\]",
        ),
        ((primitive,), {}, lambda x, w: None, ValueError, r"operands of .*\['x', 'w'\], got none"),
    ):
        with pytest.raises(error, match=match):
            vd.register_rule(*operations, **options)(rule)
    assert primitive not in vd.operations.TABLE
