"""A random weight in the place of an array of JAX: second uses, operations without a rule, and outside Quax."""

from __future__ import annotations

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quax
from flax import linen
from jax import lax

import pyro_vd.numpyro as vd
from helpers.mirror_operations import inside, keyed, make, random_weight, weight_of
from pyro_vd.numpyro.estimators import WeightNoise

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(3)


USES = {
    "twice": lambda x, w: x @ w + x @ w,
    "through a view": lambda x, w: x @ w + x @ w.T.T,
    "a row in common": lambda x, w: (x @ w[:2].T).sum() + (x @ w[1:].T).sum(),
}


@pytest.mark.parametrize("twice", USES.values(), ids=USES)
def test_second_use_of_the_same_elements_is_an_error_with_two_ways_out(twice):
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"site 'w': expected one use .* dot_general.*shared_sites=\['w'\].*reuse="):
        inside(twice, x, make(3, 3))
    inside(twice, x, make(3, 3, reuse="independent"))


def test_second_use_is_noticed_through_jit_whose_body_is_traced_once():
    product = jax.jit(jnp.dot)
    x = jnp.ones((2, 3))
    for _ in range(2):  # the second time the compiled body is known
        with pytest.raises(ValueError, match="expected one use of the weight"):
            inside(lambda x, w: product(x, w) + product(x, w), x, make(3, 3))


def test_uses_of_different_elements_have_noise_of_their_own():
    x, weight = jnp.ones((2, 3)), random_weight(jnp.zeros((4, 3)), jnp.ones((4, 3)))
    first, second = inside(lambda x, w: (x @ w[:2].T, x @ w[2:].T), x, weight)
    assert not jnp.allclose(first, second) and len(weight.state.used) == 2
    independent = random_weight(jnp.zeros((4, 3)), jnp.ones((4, 3)), reuse="independent")
    first, second = inside(lambda x, w: (x @ w.T, x @ w.T), x, independent)
    assert not jnp.isclose(first, second).any()


def test_noise_is_a_function_of_the_key():
    x = jnp.ones((2, 3))
    assert jnp.array_equal(x @ make(3, 4), jax.jit(lambda x: x @ make(3, 4))(x))
    other = keyed(make(3, 4), jax.random.key(8))
    assert not jnp.isclose(x @ make(3, 4), x @ other).any()


WITHOUT_RULE = {
    "abs": lambda w: jnp.abs(w).sum(),
    "mul": lambda w: (w * w).sum(),
    "sort": lambda w: jnp.sort(w, axis=0)[0].sum(),
    "add": lambda w: (w + jnp.ones((3, 3))).sum(),
    "scan": lambda w: lax.scan(lambda carry, _: (carry @ w, None), jnp.ones(3), length=3)[0].sum(),
    "while": lambda w: lax.while_loop(lambda c: c.sum() < 1e3, lambda c: c + jnp.abs(c @ w) + 1, jnp.ones(3)).sum(),
    "cond": lambda w: lax.cond(jnp.array(True), lambda: (jnp.ones(3) @ w).sum(), lambda: 0.0),
    "concatenate": lambda w: (jnp.ones(3) @ jnp.concatenate([w, w], axis=1)).sum(),
    "mul by a row of examples": lambda w: (w * jnp.ones((2, 1, 1))).sum(),
}


@pytest.mark.parametrize("call", WITHOUT_RULE.values(), ids=WITHOUT_RULE)
def test_operation_without_a_rule_uses_one_coherent_draw_and_says_so_once(call):
    loc, variance = make(3, 3).loc, make(3, 3).variance
    warned = set()
    weight = random_weight(loc, variance, strict=False, warned=warned)
    x = jnp.ones((2, 3))
    with pytest.warns(UserWarning, match=r"site 'w'.*; the weight is drawn once.*shared_sites=\['w'\].*strict") as seen:
        first, product = inside(lambda x, w: (call(w), x @ w.T), x, weight)
    assert len(seen) == 1
    draw = weight.materialize()
    np.testing.assert_allclose(first, call(draw), rtol=1e-9)
    np.testing.assert_allclose(product, x @ draw.T, rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # another trace, the same handler: told already
        inside(call, random_weight(loc, variance, strict=False, warned=warned))
    with pytest.raises(ValueError, match=r"site 'w': expected an operation with a rule .*shared_sites=\['w'\]"):
        inside(call, random_weight(loc, variance, strict=True))


def test_gradient_of_a_coherent_draw_is_that_of_the_weight():
    @quax.quaxify
    def norm(w):
        return jnp.abs(w).sum()

    def loss(loc, log_sigma2):
        q = vd.DropoutNormal(loc, log_sigma2=log_sigma2)
        return norm(weight_of(q.noise(), strict=False))

    loc, log_sigma2 = make(3, 3).loc, jnp.full((3, 3), -1.0)
    with pytest.warns(UserWarning, match="abs"):
        found = jax.grad(loss, (0, 1))(loc, log_sigma2)
    draw = random_weight(loc, jnp.exp(log_sigma2)).materialize()
    np.testing.assert_allclose(found[0], jnp.sign(draw), rtol=1e-12)
    np.testing.assert_allclose(found[1], jnp.sign(draw) * (draw - loc) / 2, rtol=1e-9)


def test_function_with_a_derivative_rule_of_its_own_is_drawn_before_it_or_refused():
    def loss(loc):
        return quax.quaxify(lambda w: jax.nn.relu(w).sum())(random_weight(loc, jnp.ones(3), strict=False))

    with pytest.raises(ValueError, match="site 'w': expected an operation that JAX differentiates by itself"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jax.grad(loss)(jnp.ones(3))


OUTSIDE = {
    "sum": jnp.sum,
    "dot": lambda w: jnp.dot(jnp.ones(3), w),
    "matmul of jnp": lambda w: jnp.matmul(w, jnp.ones(3)),
    "einsum": lambda w: jnp.einsum("ij,j", w, jnp.ones(3)),
    "reshape": lambda w: jnp.reshape(w, -1),
    "asarray": jnp.asarray,
    "relu": jax.nn.relu,
    "w + 1": lambda w: w + 1,
    "2 * w": lambda w: 2 * w,
    "array - w": lambda w: jnp.ones((3, 3)) - w,
    "numpy array * w": lambda w: np.ones((3, 3)) * w,
    "w[0]": lambda w: w[0],
    "w // 2": lambda w: w // 2,
    "w > 0": lambda w: w > 0,
    "abs": abs,
    "len": len,
    "concatenate": lambda w: jnp.concatenate([w, w]),
    "stack": lambda w: jnp.stack([w, w]),
    "where": lambda w: jnp.where(True, w, 0.0),
    "sum in jit": jax.jit(jnp.sum),
    "numpy": np.asarray,
}


@pytest.mark.parametrize("call", OUTSIDE.values(), ids=OUTSIDE)
def test_outside_quax_a_function_of_jax_is_a_type_error_that_says_what_to_do(call):
    weight = make(3, 3)
    with pytest.raises(TypeError, match=r"site 'w': .* outside.*BayesianModule, or write quax.quaxify\(fn\)"):
        call(weight)
    assert not weight.state.used and not weight.state.drawn
    assert not hasattr(weight, "__jax_array__")


def test_outside_quax_a_product_by_operator_is_sampled_locally():
    x = jnp.ones((2, 3))
    local = inside(lambda x, w: x @ w, x, make(3, 4))
    assert jnp.array_equal(x @ make(3, 4), local) and jnp.array_equal(np.ones((2, 3)) @ make(3, 4), local)
    assert jnp.array_equal(make(4, 3) @ x.T, inside(lambda x, w: w @ x.T, x, make(4, 3)))
    with pytest.raises(AttributeError, match="has no attribute 'T'; inside quax.quaxify"):
        make(3, 4).T  # noqa: B018
    assert repr(make(3, 4)) == "RandomWeight(site='w', shape=(3, 4), estimator='local')"


def test_weight_is_a_pytree_that_crosses_jit():
    x, weight = jnp.ones((2, 3)), make(3, 4)
    expected = x @ make(3, 4)
    assert jnp.array_equal(jax.jit(lambda x, w: x @ w)(x, weight), expected)
    leaves = jax.tree.leaves(weight)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_checkpointed_product_is_sampled_locally_with_the_same_noise_and_gradient():
    x, loc = jnp.ones((2, 3)), make(3, 4).loc

    def loss(loc, wrap):
        product = wrap(lambda x, w: jnp.sin(x @ w))
        return inside(product, x, random_weight(loc, jnp.exp(loc))).sum()

    losses = [jax.value_and_grad(lambda loc, wrap=wrap: loss(loc, wrap)) for wrap in (jax.checkpoint, lambda f: f)]
    found, expected = jax.jit(lambda loc: [loss(loc) for loss in losses])(loc)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_zero_variance_gives_the_mean_and_a_finite_gradient():
    def output(loc, log_sigma2, x):
        return (x @ weight_of(vd.DropoutNormal(loc, log_sigma2=log_sigma2).noise())).sum()

    loc, log_sigma2, x = make(3, 2).loc, jnp.zeros((3, 2)), jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    gradients = jax.jit(jax.grad(output, (0, 1, 2)))(loc, log_sigma2, x)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
    assert jnp.array_equal((x @ weight_of(vd.DropoutNormal(loc, log_sigma2=log_sigma2).noise()))[0], jnp.zeros(2))


@pytest.mark.slow
def test_attention_of_flax_and_of_equinox_runs_under_strict():
    def sited(site, kernel):
        return weight_of(WeightNoise(kernel, jnp.ones_like(kernel)), site=site)

    x = jnp.ones((2, 3, 4), jnp.float32)
    attention = linen.MultiHeadDotProductAttention(num_heads=2, deterministic=True)
    params = attention.init(KEY, x)["params"]
    params = {name: group | {"kernel": sited(name, group["kernel"])} for name, group in params.items()}
    assert inside(lambda p: attention.apply({"params": p}, x), params).shape == x.shape
    assert all(len(group["kernel"].state.used) == 1 for group in params.values())
    attention = eqx.nn.MultiheadAttention(2, 4, dtype=jnp.float32, key=KEY)
    weight = sited("query", attention.query_proj.weight)
    attention = eqx.tree_at(lambda layer: layer.query_proj.weight, attention, weight)
    assert inside(jax.vmap(lambda x, layer: layer(x, x, x), (0, None)), x, attention).shape == x.shape
    assert len(weight.state.used) == 1 and not weight.state.drawn


def test_compiled_step_draws_no_weight_and_one_noise_for_each_layer():
    """What a step costs: two products forward for each layer, and random numbers for its outputs alone."""
    sizes = (784, 300, 100, 10)
    weights = [jnp.zeros(pair) for pair in zip(sizes[:-1], sizes[1:], strict=True)]

    @quax.quaxify
    def net(x, weights):
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ weights[-1]

    def loss(params, x, key):
        drawn = [
            vd.RandomWeight(q.noise(), q.variance, jax.random.fold_in(key, i), type(weight_of(q.noise()).state)("w"))
            for i, q in enumerate(vd.DropoutNormal(loc, log_sigma2=s) for loc, s in params)
        ]
        return net(x, drawn).sum()

    x = jnp.ones((100, 784))
    jaxpr = jax.make_jaxpr(loss)([(w, w) for w in weights], x, KEY)
    counts = {"dot_general": [], "random_bits": []}
    for equation in equations(jaxpr.jaxpr):
        if equation.primitive.name in counts:
            counts[equation.primitive.name].append(equation.outvars[0].aval.shape)
    outputs = [(100, size) for size in sizes[1:]]
    assert sorted(counts["dot_general"]) == sorted(2 * outputs)
    assert sorted(counts["random_bits"]) == sorted(outputs)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from equations(inner)
