"""Common networks of flax and equinox: attention, a recurrent cell scanned, BatchNorm, a tied embedding.

Each is run, not only traced. Without noise the data term is that of the plain net; the KL of a weight that is used
twice counts once. Exact.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from numpyro.infer import SVI

import pyro_vd.numpyro as vd
from helpers.mirror_nets import KEY, LIBRARIES
from pyro_vd.guides.numpyro import AutoMeanField

pytestmark = pytest.mark.slow  # compiles many programs

NO_NOISE = -30.0  # log variance, at which draws are their means to 1e-6
ROWS = jax.random.normal(KEY, (4, 5, 8))
PICTURES = jax.random.normal(KEY, (4, 6, 6, 1))
TOKENS = jnp.array([[0, 1, 2, 1, 6], [3, 4, 0, 2, 5], [0, 1, 2, 1, 6], [6, 5, 4, 3, 2]])
LABELS = jnp.array([0, 1, 2, 1])


class LinenAttention(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        x = x + linen.Dense(8)(linen.gelu(linen.Dense(16)(linen.LayerNorm()(x))))
        return linen.Dense(3)(x.mean(1))


class LinenRecurrent(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.RNN(linen.OptimizedLSTMCell(6))(x)[:, -1])


class LinenConvolution(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.BatchNorm(use_running_average=False)(linen.Conv(4, (3, 3), use_bias=False)(x)))
        x = x + linen.relu(linen.BatchNorm(use_running_average=False)(linen.Conv(4, (3, 3), use_bias=False)(x)))
        return linen.Dense(3)(x.mean((1, 2)))


class LinenTied(linen.Module):
    @linen.compact
    def __call__(self, x):
        words = linen.Embed(7, 4)
        return words.attend(linen.tanh(linen.Dense(4)(words(x).mean(1))))


class NnxAttention(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.down(nnx.gelu(self.up(self.norm2(x))))).mean(1))


class NnxRecurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn, self.head = nnx.RNN(nnx.LSTMCell(8, 6, rngs=rngs)), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class NnxConvolution(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm1, self.norm2 = nnx.BatchNorm(4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        return self.head((x + nnx.relu(self.norm2(self.conv2(x)))).mean((1, 2)))


class NnxTied(nnx.Module):
    def __init__(self, rngs):
        self.words, self.fc = nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.words.attend(nnx.tanh(self.fc(self.words(x).mean(1))))


class EquinoxAttention(eqx.Module):
    layers: list

    def __init__(self, key):
        sizes = ((8, 16), (16, 8), (8, 3))
        self.layers = [eqx.nn.LayerNorm(8), eqx.nn.MultiheadAttention(2, 8, key=key), eqx.nn.LayerNorm(8)]
        self.layers += [eqx.nn.Linear(*size, key=key) for size in sizes]

    def __call__(self, x):
        norm1, attention, norm2, up, down, head = self.layers
        normed = jax.vmap(norm1)(x)
        x = x + attention(normed, normed, normed)
        x = x + jax.vmap(lambda row: down(jax.nn.gelu(up(norm2(row)))))(x)
        return head(x.mean(0))


class EquinoxRecurrent(eqx.Module):
    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, key):
        self.cell, self.head = eqx.nn.LSTMCell(8, 6, key=key), eqx.nn.Linear(6, 3, key=key)

    def __call__(self, x):
        (hidden, _), _ = jax.lax.scan(lambda h, row: (self.cell(row, h), None), (jnp.zeros(6),) * 2, x)
        return self.head(hidden)


class EquinoxConvolution(eqx.Module):
    convs: list
    norms: list
    head: eqx.nn.Linear

    def __init__(self, key):
        self.convs = [eqx.nn.Conv2d(size, 4, 3, padding=1, use_bias=False, key=key) for size in (1, 4)]
        self.norms = [eqx.nn.BatchNorm(4, axis_name="batch", mode="batch") for _ in range(2)]
        self.head = eqx.nn.Linear(4, 3, key=key)

    def __call__(self, x, state):
        x, state = self.norms[0](self.convs[0](jnp.moveaxis(x, -1, 0)), state)
        x = jax.nn.relu(x)
        more, state = self.norms[1](self.convs[1](x), state)
        return self.head((x + jax.nn.relu(more)).mean((1, 2))), state


class EquinoxTied(eqx.Module):
    words: eqx.nn.Embedding
    fc: eqx.nn.Linear

    def __init__(self, key):
        self.words, self.fc = eqx.nn.Embedding(7, 4, key=key), eqx.nn.Linear(4, 4, key=key)

    def __call__(self, x):
        return self.words.weight @ jnp.tanh(self.fc(self.words.weight[x].mean(0)))


KINDS = {
    "attention": (LinenAttention, NnxAttention, EquinoxAttention, ROWS, ()),
    "recurrent": (LinenRecurrent, NnxRecurrent, EquinoxRecurrent, ROWS, ()),
    "convolution": (LinenConvolution, NnxConvolution, EquinoxConvolution, PICTURES, ()),
    "tied": (LinenTied, NnxTied, EquinoxTied, TOKENS, ("Embed_0.embedding", "words.embedding", "words.weight")),
}


def made(kind, library):
    """A net, its output on the data of its kind, and the sites that it uses twice."""
    *nets, x, twice = KINDS[kind]
    place = LIBRARIES.index(library)
    shared = [f"net.{twice[place]}"] if twice else []
    if library == "linen":
        net = nets[place]()
        variables = jax.jit(net.init)(KEY, x)
        return net.bind(variables), net.apply(variables, x, mutable=["batch_stats"])[0], shared
    if library == "nnx":
        return nets[place](nnx.Rngs(0)), nets[place](nnx.Rngs(0))(x), shared
    if kind != "convolution":
        net = nets[place](KEY)
        return net, jax.vmap(net)(x), shared
    net, state = eqx.nn.make_with_state(nets[place])(KEY)
    output, _ = jax.vmap(net, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, state)
    return (net, state), output, shared


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_network_has_the_loss_of_the_plain_net_without_noise_and_a_gradient_for_every_weight(library, kind):
    net, plain, shared = made(kind, library)
    x = KINDS[kind][3]
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(40, len(x)):
            return numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = AutoMeanField(model, init_log_sigma2=NO_NOISE)
    elbo = vd.TraceVD_ELBO(shared_sites=shared, strict=True)
    svi = SVI(model, guide, optax.sgd(1.0), elbo)
    state = svi.init(KEY, x, LABELS)
    params, fixed = svi.get_params(state), state.mutable_state or {}

    def loss(params):
        terms = elbo.terms(KEY, {**params, **fixed}, model, guide, x, LABELS)
        return terms.data, terms

    (value, terms), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = -10 * jnp.take_along_axis(jax.nn.log_softmax(plain), LABELS[:, None], 1).sum()
    np.testing.assert_allclose(terms.data, expected, rtol=1e-3)
    kl = {
        site: (0.5 * (params[f"auto.locs.{site}"] ** 2 + jnp.exp(NO_NOISE) - NO_NOISE - 1)).sum()
        for site in map(bnn.site, bnn.weight_names)
    }
    assert terms.kl.keys() == kl.keys()
    for site, one in kl.items():
        np.testing.assert_allclose(terms.kl[site], one, rtol=1e-5)
    assert jnp.isfinite(value) and all(jnp.isfinite(one).all() for one in gradients.values())
    assert all(gradients[f"auto.locs.{site}"].any() for site in kl)
    assert bool(fixed) == (kind == "convolution")
    if shared:
        with pytest.raises(ValueError, match=rf"site '{shared[0]}': expected one use of the weight in a trace"):
            vd.TraceVD_ELBO().loss(KEY, params, model, guide, x, LABELS)
