"""Masks on NumPyro: as in torch, and zeros that stay zero under optax in nets of every library."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import pyro_vd as torch_vd
import pyro_vd.numpyro as vd
from helpers.mirror_nets import KEY, LIBRARIES, EquinoxLeNet5, images, lenet5, perceptron, program

X = jax.random.normal(KEY, (5, 4))


def pair(shape=(3, 4), units=False):
    log_alpha = np.random.default_rng(0).normal(2.0, 4.0, (3, 1) if units else shape).astype(np.float32)
    ours = torch_vd.DropoutNormal(torch.ones(shape), torch.tensor(log_alpha))
    return ours, vd.DropoutNormal(jnp.ones(shape), jnp.asarray(log_alpha))


GIVEN = [
    {},
    {"log_alpha_threshold": 1.0},
    {"log_alpha_threshold": math.inf},
    *({"sparsity": share} for share in (0.0, 0.7, 1.0)),
    {"sparsity": {"a": 0.2, "*": 2 / 3}},
]


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.filterwarnings("ignore:sparsity=.* is reached, since the next weights have one log_alpha")
def test_masks_are_those_of_torch(given):
    (a, mirrored_a), (b, mirrored_b) = pair(), pair(units=True)
    ours, theirs = (
        torch_vd.keep_masks({"a": a, "b": b}, **given),
        vd.keep_masks({"a": mirrored_a, "b": mirrored_b}, **given),
    )
    assert list(ours) == list(theirs)
    for site in ours:
        assert theirs[site].dtype == bool
        np.testing.assert_array_equal(ours[site], theirs[site])
    mine, other = (
        r
        for r in (
            torch_vd.sparsity_report({"a": a, "b": b}, **given),
            vd.sparsity_report({"a": mirrored_a, "b": mirrored_b}, **given),
        )
    )
    assert str(mine) == str(other) and mine.log_alpha_threshold == other.log_alpha_threshold
    jitted = jax.jit(lambda q: vd.keep_masks({"a": vd.DropoutNormal(jnp.ones((3, 4)), q), "b": mirrored_b}, **given))
    np.testing.assert_array_equal(jitted(mirrored_a.log_alpha)["a"], theirs["a"])


@pytest.mark.parametrize(("given", "kind", "text"), [
    (dict(log_alpha_threshold=math.nan), ValueError, "log_alpha_threshold: expected a number, got nan"),
    (dict(sparsity=90), ValueError, "sparsity: expected a share in 0..1, got 90"),
    (dict(sparsity={"c": 0.5}), ValueError, "sparsity: expected sites or patterns of"),
    (dict(sparsity={"b": 0.5}), ValueError, "sparsity: expected a share for every site .*, got none for 'a'"),
    (dict(log_alpha_threshold=1.0, sparsity=0.5), ValueError, "expected a threshold or a share"),
    (dict(log_alpha_threshold="3"), TypeError, "log_alpha_threshold: expected a number, got '3'"),
])  # fmt: skip
def test_bad_thresholds_and_shares(given, kind, text):
    posteriors = {"a": pair()[1], "b": pair()[1]}
    for function in (vd.keep_masks, vd.sparsity_report):
        with pytest.raises(kind, match=text):
            function(posteriors, **given)
    posteriors["b"] = vd.DropoutNormal(jnp.ones(2), jnp.array([1.0, jnp.nan]))
    for function in (vd.keep_masks, vd.sparsity_report):
        with pytest.raises(ValueError, match="site 'b': expected a log_alpha for every weight, got 1 NaN of 2"):
            function(posteriors)


def trained(net, *data, name="net"):
    """The net pruned to half of its weights, its masks."""
    bnn, _, guide, svi = program(net)
    params = dict(svi.get_params(jax.jit(svi.init)(KEY, *data)))
    for site in params:
        if "log_sigma2" in site:
            params[site] = params[site] + 6 * jax.random.uniform(jax.random.key(len(site)), params[site].shape)
    return vd.prune(bnn, guide, sparsity=0.5, params=params), vd.keep_masks(guide, sparsity=0.5, params=params)


def weights_of(library, net):
    """What optax trains, and a loss of it."""
    if library == "linen":
        module, variables = net.unbind()
        return variables["params"], lambda p, x: module.apply({"params": p}, x)
    if library == "nnx":
        graph, params, rest = nnx.split(net, nnx.Param, ...)
        return params, lambda p, x: nnx.merge(graph, p, rest)(x)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    return params, lambda p, x: jax.vmap(eqx.combine(p, static))(x)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.01), optax.sgd(0.1, momentum=0.9)], ids=["adamw", "momentum"])
@pytest.mark.parametrize(
    ("library", "kind"),
    [(library, "perceptron") for library in LIBRARIES]
    + [pytest.param(library, "lenet5", marks=pytest.mark.slow) for library in LIBRARIES],
)
def test_fine_tuning_keeps_zeros(library, kind, optimizer):
    data = (X, jnp.zeros(5, int)) if kind == "perceptron" else images(3, 16)
    net = perceptron(library, (4, 3, 2)) if kind == "perceptron" else lenet5(library)
    net, masks = trained(net, *data)
    params, call = weights_of(library, net)
    tune = optax.chain(optimizer, vd.keep_zeros(masks))

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean(call(p, data[0]) ** 2) + sum(jnp.sum(a) for a in jax.tree.leaves(p)))(
            params
        )
        updates, state = tune.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    start, state = params, tune.init(params)
    for _ in range(3):
        params, state = step(params, state)
    zeros = 0
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(params), strict=True):
        pruned = (before == 0) & (before.ndim > 1)
        zeros += int(pruned.sum())
        assert (np.asarray(after)[pruned] == 0).all()
        assert (np.asarray(after)[~pruned] != np.asarray(before)[~pruned]).all(), (
            "the rest, and biases of 0, are trained"
        )
    assert zeros == sum(int((~mask).sum()) for mask in masks.values()) > 0


def test_an_nnx_optimizer():
    net, masks = trained(perceptron("nnx", (4, 3, 2)), X, jnp.zeros(5, int))
    optimizer = nnx.Optimizer(net, optax.chain(optax.adam(0.1), vd.keep_zeros(masks)), wrt=nnx.Param)
    before = net.dense[0].kernel[...]
    optimizer.update(net, nnx.grad(lambda net: (net(X) ** 2).sum() + net.dense[0].kernel[...].sum())(net))
    after, mask = net.dense[0].kernel[...], masks["net.dense.0.kernel"]
    assert (after[~mask] == 0).all() and (after != before)[mask].all() and 0 < mask.sum() < 12


def test_parameters_of_an_svi_and_a_gradient_that_is_nan():
    masks = {"net.a": jnp.array([True, False])}
    params = {"net.a": jnp.array([1.0, 0.0]), "net.b": jnp.zeros(2)}
    updates, _ = vd.keep_zeros(masks).update(jax.tree.map(lambda a: jnp.array([1.0, jnp.nan]), params), None)
    assert updates["net.a"].tolist() == [1.0, 0.0] and math.isnan(updates["net.b"][1])


def test_masks_of_another_net():
    net, masks = trained(perceptron("linen", (4, 3, 2)), X, jnp.zeros(5, int))
    other, _ = weights_of("linen", perceptron("linen", (5, 3, 2)))
    with pytest.raises(
        ValueError, match=r"parameter '.*kernel': expected the shape of its mask, \(4, 3\), got \(5, 3\)"
    ):
        vd.keep_zeros(masks).init(other)
    params, _ = weights_of("equinox", EquinoxLeNet5(KEY))
    with pytest.raises(
        ValueError, match="keep_zeros: expected masks for the parameters .*'conv1.weight'.*, got masks for"
    ):
        vd.keep_zeros(masks).init(params)
    with pytest.raises(ValueError, match="keep_zeros: expected masks for the parameters"):
        vd.keep_zeros({}).init(params)
    bnn, _, guide, svi = program(perceptron("equinox", (4, 3, 2)))
    params = dict(svi.get_params(jax.jit(svi.init)(KEY, X, jnp.zeros(5, int))))
    q = guide.posteriors(params)
    site = next(iter(q))
    with pytest.raises(ValueError, match=rf"site '{site}': expected a posterior of shape \(3, 4\), got \(1, 4\)"):
        vd.prune(bnn, {**q, site: vd.DropoutNormal(jnp.ones((1, 4)), 0.0)}, params=params)
    with pytest.raises(ValueError, match=rf"site '{site}': expected finite means, got 12 of 12 that are not"):
        vd.prune(bnn, {**q, site: vd.DropoutNormal(jnp.full((3, 4), jnp.inf), jnp.zeros((3, 4)))}, params=params)


def test_the_curve_of_a_threshold_is_that_of_torch():
    (ours, theirs), loc = pair((3, 4)), np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    ours, theirs = torch_vd.DropoutNormal(torch.tensor(loc), ours.log_alpha), vd.DropoutNormal(loc, theirs.log_alpha)
    layer = torch.nn.Linear(4, 3, bias=False)
    bnn = torch_vd.BayesianModule(layer, torch_vd.ImproperLogUniform())
    other = vd.BayesianModule(eqx.nn.Linear(4, 3, use_bias=False, key=KEY), vd.ImproperLogUniform())
    for thresholds in (None, [1.0, 2.0]):
        first = torch_vd.threshold_curve(bnn, {"net.weight": ours}, lambda net: net(torch.ones(4)).sum(), thresholds)
        second = vd.threshold_curve(
            other, {"net.weight": theirs}, lambda net: net(jnp.ones(4)).sum(), thresholds, params={}
        )
        assert str(first) == str(second) and len(first.rows) > 2


def test_bits_are_those_of_torch():
    loc = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    for log_sigma2 in (-9.0, -2.0, 3.0):
        ours = torch_vd.weight_bits({"w": torch_vd.DropoutNormal(torch.tensor(loc), log_sigma2=log_sigma2)})
        theirs = vd.weight_bits({"w": vd.DropoutNormal(jnp.asarray(loc), log_sigma2=log_sigma2)})
        assert ours == theirs and ours.rows[0].kept < 31
