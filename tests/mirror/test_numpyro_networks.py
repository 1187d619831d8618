"""What is random in a net of flax or equinox by default, and weights that are used at every step of a sequence."""

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

import pyro_vd.numpyro as vd
from helpers.mirror_nets import KEY
from pyro_vd.numpyro.handlers import EstimatorMessenger

X = jax.random.normal(KEY, (5, 4))


class LinenSequence(linen.Module):
    cell: type = linen.GRUCell

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.RNN(self.cell(3))(linen.Embed(5, 4)(x))[:, -1])


class NnxSequence(nnx.Module):
    def __init__(self, cell, rngs):
        self.embed, self.fc = nnx.Embed(5, 4, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        self.rnn = nnx.RNN(cell(4, 3, rngs=rngs))

    def __call__(self, x):
        return self.fc(self.rnn(self.embed(x))[:, -1])


class EquinoxSequence(eqx.Module):
    embed: eqx.nn.Embedding
    cell: eqx.Module
    fc: eqx.nn.Linear

    def __init__(self, cell):
        self.embed, self.fc = eqx.nn.Embedding(5, 4, key=KEY), eqx.nn.Linear(3, 2, key=KEY)
        self.cell = cell(4, 3, key=KEY)

    def __call__(self, x):
        start = (jnp.zeros(3),) * 2 if isinstance(self.cell, eqx.nn.LSTMCell) else jnp.zeros(3)
        end, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, jax.vmap(self.embed)(x))
        return self.fc(jax.tree.leaves(end)[0])


TOKENS = jnp.array([[0, 1, 2, 1], [3, 4, 0, 2], [0, 1, 2, 1]])  # the first and the last are equal
SEQUENCES = {
    "linen GRU": (lambda: LinenSequence(), 6),
    "linen LSTM": (lambda: LinenSequence(linen.OptimizedLSTMCell), 8),
    "nnx GRU": (lambda: NnxSequence(nnx.GRUCell, nnx.Rngs(0)), 2),
    "nnx LSTM": (lambda: NnxSequence(nnx.LSTMCell, nnx.Rngs(0)), 8),
    "equinox GRU": (lambda: EquinoxSequence(eqx.nn.GRUCell), 2),
    "equinox LSTM": (lambda: EquinoxSequence(eqx.nn.LSTMCell), 2),
}


def random_net(net, x):
    """A BayesianModule that has seen its data, and ``values(estimator, **options)``: a random weight at every site."""
    net = net.bind(jax.jit(net.init)(KEY, x)) if isinstance(net, linen.Module) else net
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    jax.eval_shape(lambda: handlers.seed(bnn, 0)(x))

    def guide():
        for name in bnn.weight_names:
            parameter = bnn.adapted.parameters[name]
            numpyro.sample(bnn.site(name), vd.DropoutNormal(parameter, log_sigma2=-1.0).to_event(parameter.ndim))

    def values(estimator="local", strict=True):
        trace = handlers.trace(handlers.seed(EstimatorMessenger(guide, estimator, strict=strict), 1)).get_trace()
        return {site: message["value"] for site, message in trace.items()}

    return bnn, values


@pytest.mark.parametrize(
    "name, estimator", [*((name, "local") for name in SEQUENCES), *(("nnx GRU", e) for e in ("per_example", "flipout"))]
)
def test_recurrent_weights_have_one_draw_for_all_steps_and_examples(name, estimator):
    """Under ``strict`` and every estimator; the layers around them are sampled as ever."""
    make, matrices = SEQUENCES[name]
    bnn, values = random_net(make(), TOKENS)
    recurrent = [bnn.site(name) for name in bnn.weight_names if name in bnn.adapted.recurrent]
    assert len(recurrent) == matrices and len(bnn.weight_names) == matrices + 2
    states = []

    @jax.jit
    def outputs():
        first, second = values(estimator), values(estimator)
        states.append({site: weight.state for site, weight in first.items()})
        second |= {site: second[site].materialize() for site in recurrent}
        return [handlers.seed(handlers.substitute(bnn, weights), 2)(TOKENS) for weights in (first, second)]

    random, drawn = outputs()
    np.testing.assert_allclose(random, drawn, rtol=1e-6)
    assert (random[0] != random[2]).all()  # the noise of the last layer
    assert all(state.drawn == (site in recurrent) and len(state.used) == 1 for site, state in states[0].items())


class LinenScan(linen.Module):
    @linen.compact
    def __call__(self, x):
        def step(layer, h, x):
            return jnp.tanh(layer(h) + x), None

        scan = linen.scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1)
        return scan(linen.Dense(4), jnp.zeros((len(x), 4)), x)[0]


class NnxScan(nnx.Module):
    def __init__(self):
        self.fc = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.StateAxes({...: None}), nnx.Carry, 1), out_axes=nnx.Carry)
        def scan(layer, h, x):
            return jnp.tanh(layer(h) + x)

        return scan(self.fc, jnp.zeros((len(x), 4)), x)


class EquinoxScan(eqx.Module):
    fc: eqx.nn.Linear
    unrolled: bool = False

    def __call__(self, x):
        h = jnp.zeros(4)
        if self.unrolled:
            for one in x:
                h = jnp.tanh(self.fc(h) + one)
            return h
        return jax.lax.scan(lambda h, x: (jnp.tanh(self.fc(h) + x), None), h, x)[0]


SCANS = {
    "linen": LinenScan, "nnx": NnxScan, "equinox": lambda: EquinoxScan(eqx.nn.Linear(4, 4, key=KEY)),
}  # fmt: skip


@pytest.mark.parametrize("make", SCANS.values(), ids=SCANS)
def test_a_layer_scanned_along_a_sequence_has_one_draw_for_all_steps_and_says_so(make):
    x = jax.random.normal(KEY, (2, 3, 4))
    bnn, values = random_net(make(), x)
    (weight,) = (values(strict=False)).values()
    with pytest.warns(UserWarning, match="site 'net.*got scan; the weight is drawn once"):
        found = handlers.seed(handlers.substitute(bnn, {weight.site: weight}), 2)(x)
    drawn = handlers.seed(handlers.substitute(bnn, {weight.site: weight.materialize()}), 2)(x)
    np.testing.assert_allclose(found, drawn, rtol=1e-6)
    with pytest.raises(ValueError, match="got scan; write shared_sites="):
        handlers.seed(handlers.substitute(bnn, values(strict=True)), 2)(x)


def test_a_layer_used_at_every_step_of_a_loop_is_an_error():
    x = jax.random.normal(KEY, (2, 3, 4))
    bnn, values = random_net(EquinoxScan(eqx.nn.Linear(4, 4, key=KEY), unrolled=True), x)
    with pytest.raises(ValueError, match="site 'net.fc.weight': expected one use of the weight.*shared_sites="):
        handlers.seed(handlers.substitute(bnn, values()), 2)(x)


class EveryLinenLayer(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm()(linen.Embed(5, 4)(x))
        x = linen.MultiHeadDotProductAttention(2)(linen.RNN(linen.SimpleCell(4))(x))
        x = linen.Einsum((4, 4), "bti,io->bto")(linen.DenseGeneral((4,))(linen.Dense(4)(x)))
        x = linen.ConvTranspose(4, (2,))(linen.Conv(4, (2,))(x))
        return x + self.param("gain", linen.initializers.ones, (4,))


class EveryNnxLayer(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.norm = nnx.Embed(5, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.rnn = nnx.RNN(nnx.SimpleCell(4, 4, rngs=rngs))
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.fc, self.general = nnx.Linear(4, 4, rngs=rngs), nnx.LinearGeneral(4, 4, rngs=rngs)
        self.einsum = nnx.Einsum("bti,io->bto", (4, 4), (4,), rngs=rngs)
        self.conv, self.up = nnx.Conv(4, 4, (2,), rngs=rngs), nnx.ConvTranspose(4, 4, (2,), rngs=rngs)
        self.gain = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        x = self.attention(self.rnn(self.norm(self.embed(x))))
        return self.up(self.conv(self.einsum(self.general(self.fc(x))))) + self.gain


class EveryEquinoxLayer(eqx.Module):
    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    cells: tuple
    attention: eqx.nn.MultiheadAttention
    fc: eqx.nn.Linear
    conv: eqx.nn.Conv1d
    up: eqx.nn.ConvTranspose1d
    gain: jax.Array

    def __init__(self):
        self.embed, self.norm = eqx.nn.Embedding(5, 4, key=KEY), eqx.nn.LayerNorm(4)
        self.cells = (eqx.nn.GRUCell(4, 4, key=KEY), eqx.nn.LSTMCell(4, 4, key=KEY))
        self.attention, self.fc = eqx.nn.MultiheadAttention(2, 4, key=KEY), eqx.nn.Linear(4, 4, key=KEY)
        self.conv, self.up = eqx.nn.Conv1d(4, 4, 2, key=KEY), eqx.nn.ConvTranspose1d(4, 4, 2, key=KEY)
        self.gain = jnp.ones(4)

    def __call__(self, x):
        x = jax.vmap(self.norm)(jax.vmap(self.embed)(x))
        h, _ = jax.lax.scan(lambda h, x: (self.cells[0](x, h), None), jnp.zeros(4), x)
        h, _ = self.cells[1](h, (h, h))
        x = jax.vmap(self.fc)(self.attention(x, x, x)) + h
        return self.up(self.conv(x.T)).T + self.gain


EVERY = {
    "linen": (EveryLinenLayer, {
        "Embed_0.embedding", "SimpleCell_0.h.kernel", "SimpleCell_0.i.kernel",
        *(f"MultiHeadDotProductAttention_0.{name}.kernel" for name in ("query", "key", "value", "out")),
        "Dense_0.kernel", "DenseGeneral_0.kernel", "Einsum_0.kernel", "Conv_0.kernel", "ConvTranspose_0.kernel",
    }),
    "nnx": (lambda: EveryNnxLayer(nnx.Rngs(0)), {
        "embed.embedding", "rnn.cell.dense_h.kernel", "rnn.cell.dense_i.kernel",
        *(f"attention.{name}.kernel" for name in ("query", "key", "value", "out")),
        "fc.kernel", "general.kernel", "einsum.kernel", "conv.kernel", "up.kernel",
    }),
    "equinox": (EveryEquinoxLayer, {
        "embed.weight", *(f"cells.{cell}.weight_{of}h" for cell in (0, 1) for of in "ih"),
        *(f"attention.{name}_proj.weight" for name in ("query", "key", "value", "output")),
        "fc.weight", "conv.weight", "up.weight",
    }),
}  # fmt: skip


@pytest.mark.parametrize("make, expected", EVERY.values(), ids=EVERY)
def test_every_weight_of_a_linear_or_recurrent_layer_is_random_and_no_bias_or_gain(make, expected):
    """By default; such a net runs under ``strict``: every one of its weights has a rule, or one draw."""
    bnn, values = random_net(make(), TOKENS)
    assert set(bnn.weight_names) == expected
    weights = values()
    output = jax.eval_shape(lambda: handlers.seed(handlers.substitute(bnn, values()), 2)(TOKENS))
    assert output.shape[0] == 3 and set(weights) == {bnn.site(name) for name in expected}


def test_input_units_of_a_projection_of_attention_are_its_first_dimension():
    """Of shape (inputs, heads, size) in flax: what families with noise of units share their noise over."""
    for library, name in (("linen", "MultiHeadDotProductAttention_0.query"), ("nnx", "attention.query")):
        bnn, _ = random_net(EVERY[library][0](), TOKENS)
        assert bnn.adapted.parameters[f"{name}.kernel"].shape == (4, 2, 2)
        assert bnn.adapted.unit_dims(f"{name}.kernel") == (2, 0)
        conv = "Conv_0.kernel" if library == "linen" else "conv.kernel"
        assert bnn.adapted.parameters[conv].ndim == 3 and bnn.adapted.unit_dims(conv) == (2, 1)
