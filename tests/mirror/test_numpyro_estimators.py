"""The contract of local reparameterization in JAX: every operation that has a rule, with every estimator, exactly.

The noise is replaced by known numbers; no check here is statistical.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.mirror_operations import CASES, random_weight
from pyro_vd.numpyro.operations import TABLE

pytestmark = pytest.mark.usefixtures("x64")

# One case of each kind whose weight enters as it is given: no view stands between its noise and the test.
WITH_EXAMPLES = [
    CASES[name]
    for name in ("x @ w (3,)", "x @ w (2, 3)", "w @ x", "einsum two sums", "conv2d NHWC stride and padding",
                 "conv2d NC groups", "conv3d NC groups", "conv_transpose False", "take (3, 2)", "take columns",
                 "x + b (3, 4) (1, 4)")
]  # fmt: skip


class Noise:
    """In the place of ``jax.random.normal``: the numbers that the draws of a call are, and their shapes."""

    def __init__(self, monkeypatch, fill=None):
        self.drawn = []
        self.fill = fill
        monkeypatch.setattr(jax.random, "normal", self)

    def __call__(self, key, shape=(), dtype=float):
        rng = np.random.default_rng(len(self.drawn))
        self.drawn.append(rng.standard_normal(shape) if self.fill is None else np.full(shape, self.fill))
        return jnp.asarray(self.drawn[-1], dtype)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_local_output_has_the_moments_of_the_weights_and_one_noise_for_each_element(case, monkeypatch):
    x, loc, variance = case.inputs()
    noise = Noise(monkeypatch)
    output, (mean, out_variance) = jax.jit(
        lambda *inputs: (case(inputs[0], random_weight(*inputs[1:])), case.moments(*inputs))
    )(x, loc, variance)
    (z,) = noise.drawn
    assert output.shape == mean.shape and output.dtype == loc.dtype
    assert z.size == output.size
    assert_noise_of_its_own(output, mean, out_variance, z)


def assert_noise_of_its_own(output, mean, variance, z):
    """``output`` is ``mean + sqrt(variance) * z``, up to the order of z: each element has one of z to itself."""
    random = np.asarray(variance) > 1e-12
    close(output[~random], mean[~random])
    found = ((output - mean)[random] / jnp.sqrt(variance[random])).reshape(-1)
    distances = np.abs(np.asarray(found)[:, None] - z.reshape(1, -1))
    assert (distances.min(1) < 1e-7).all()
    assert len(set(distances.argmin(1))) == len(found)


def test_every_operation_has_a_case():
    assert {case.terms for case in CASES.values()} == {primitive.name for primitive in TABLE} | {"add"}


@pytest.mark.parametrize("case", WITH_EXAMPLES, ids=lambda case: case.name)
def test_per_example_output_is_that_of_a_weight_drawn_for_each_example(case, monkeypatch):
    x, loc, variance = case.inputs()
    noise = Noise(monkeypatch)
    output = jax.jit(lambda x: case(x, random_weight(loc, variance, "per_example")))(x)
    (z,) = noise.drawn
    weights = loc + jnp.sqrt(variance) * z
    axis, out_axis = case.example
    alone = jax.jit(jax.vmap(lambda x, w: case.call(jnp.expand_dims(x, axis), w), (axis, 0)))(x, weights)
    close(output, jnp.moveaxis(alone.squeeze(out_axis + 1), 0, out_axis))


@pytest.mark.parametrize("case", WITH_EXAMPLES, ids=lambda case: case.name)
def test_flipout_output_is_that_of_one_perturbation_with_signs_for_each_example_and_unit(case, monkeypatch):
    x, loc, variance = case.inputs()
    signs = []

    def rademacher(key, shape, dtype):
        signs.append(np.random.default_rng(3 + len(signs)).choice([-1.0, 1.0], shape))
        return jnp.asarray(signs[-1], dtype)

    noise = Noise(monkeypatch)
    monkeypatch.setattr(jax.random, "rademacher", rademacher)
    output, mean = jax.jit(lambda x: (case(x, random_weight(loc, variance, "flipout")), case.call(x, loc)))(x)
    (z,) = noise.drawn
    products = case.terms in ("dot_general", "conv_general_dilated")
    assert len(signs) == 1 + products
    # One perturbation for all, the signs of each example and unit on its input and on its output.
    flipped = x * signs[0] if products else jnp.zeros_like(x) if case.terms == "add" else x
    perturbation = jax.jit(lambda x: case.call(x, jnp.sqrt(variance) * z))(flipped)
    close(output, mean + perturbation * signs[-1])
    axis, units = case.example[1], [size for size in signs[-1].shape if size > 1]
    assert signs[-1].shape[axis] == output.shape[axis] and len(units) > 1
