"""Checkpoints of NumPyro: a training goes on bit for bit; a file that does not fit is named."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
import optax  # noqa: E402
from numpyro.infer import SVI  # noqa: E402

import pyro_vd.numpyro as vd  # noqa: E402
from pyro_vd.numpyro.training import load_checkpoint, save_checkpoint  # noqa: E402


def training(optim):
    def model(x):
        weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        numpyro.sample("y", dist.Normal(x @ weight.T, 1.0).to_event(2), obs=jnp.ones((4, 2)))

    def guide(x):
        loc = numpyro.param("loc", jnp.zeros((2, 3)))
        scale = numpyro.param("scale", jnp.full((2, 3), 0.1), constraint=dist.constraints.positive)
        numpyro.sample("weight", dist.Normal(loc, scale).to_event(2))

    return SVI(model, guide, optim, vd.TraceVD_ELBO())


def raw(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.mark.filterwarnings("ignore:site 'weight'")  # which a guide of plain Normals draws once a step
@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
@pytest.mark.parametrize("optim", [lambda: numpyro.optim.Adam(0.1), lambda: optax.adam(0.1)], ids=["numpyro", "optax"])
def test_a_new_program_goes_on_bit_for_bit(optim, key, tmp_path):
    x = jnp.arange(12.0).reshape(4, 3)
    svi = training(optim())
    update = jax.jit(svi.update)
    state = svi.init(key(1), x)
    for _ in range(3):
        state, _ = update(state, x)
    save_checkpoint(tmp_path / "run", state, step=3, extra=[1, {"a": None}])
    for _ in range(3):
        state, loss = update(state, x)

    svi = training(optim())
    found = load_checkpoint(tmp_path / "run", like=svi.init(key(2), x))
    assert (found.step, found.extra) == (3, [1, {"a": None}])
    other, update = found.state, jax.jit(svi.update)
    for _ in range(3):
        other, found_loss = update(other, x)
    assert found_loss == loss and update._cache_size() == 1
    assert jax.tree_util.tree_structure(other) == jax.tree_util.tree_structure(state)
    for one, two in zip(jax.tree_util.tree_leaves(other), jax.tree_util.tree_leaves(state), strict=True):
        assert one.dtype == two.dtype and np.array_equal(raw(one), raw(two))


def test_every_kind_of_leaf(tmp_path):
    state = {
        "half": jnp.array([1.5, -jnp.inf], jnp.bfloat16),
        "weak": jnp.asarray(0.1),
        "empty": jnp.zeros((0, 3)),
        "numbers": (3, True, 0.1, np.float64(0.1), np.arange(4).reshape(2, 2).T),
    }
    save_checkpoint(tmp_path / "run", state)
    found = load_checkpoint(tmp_path / "run", like=state).state
    for one, two in zip(jax.tree_util.tree_leaves(found), jax.tree_util.tree_leaves(state), strict=True):
        assert type(one) is type(two) and np.array_equal(one, two)
        assert getattr(one, "weak_type", None) == getattr(two, "weak_type", None)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": jnp.ones(2), "k": jax.random.key(0)}, r"\(3,\)\).* got .*\(2,\)\)"),
        ({"a": jnp.ones(3, jnp.int32), "k": jax.random.key(0)}, "float32.* got .*int32"),
        ({"a": jnp.ones(3), "k": jax.random.key(0, impl="rbg")}, "fry.* got .*rbg"),
        ({"a": jnp.ones(3)}, r"got \[\] besides and none of .*'k'"),
        ({"a": jnp.ones(3), "b": 1, "k": jax.random.key(0)}, "got .*'b'.* besides"),
    ],
)
def test_another_program(like, message, tmp_path):
    save_checkpoint(tmp_path / "run", {"a": jnp.ones(3), "k": jax.random.key(0)})
    with pytest.raises(ValueError, match=f"like: expected.*{message}"):
        load_checkpoint(tmp_path / "run", like=like)


@pytest.mark.parametrize("state", [None, {}, ()], ids=str)
def test_a_state_of_nothing(state, tmp_path):
    with pytest.raises(ValueError, match="save_checkpoint: expected the state of a training, got .* without an array"):
        save_checkpoint(tmp_path / "run", state)
    assert not list(tmp_path.iterdir())


def test_nan_truncated_and_foreign_files(tmp_path):
    state = {"a": jnp.ones(3)}
    save_checkpoint(tmp_path / "run", state)
    content = (tmp_path / "run").read_bytes()
    for spoiled in (jnp.array([1.0, jnp.nan]), jnp.array([jnp.nan], jnp.bfloat16)):
        with pytest.raises(ValueError, match="got NaN in .*'a'.*nothing is written"):
            save_checkpoint(tmp_path / "run", {"a": spoiled})
    assert (tmp_path / "run").read_bytes() == content
    for cut in (0, 30, len(content) - 1):
        (tmp_path / "run").write_bytes(content[:cut])
        with pytest.raises(ValueError, match="load_checkpoint: expected .*run.*truncated"):
            load_checkpoint(tmp_path / "run", like=state)
    with pytest.raises(TypeError, match="'a'.*expected an array or a number, got str"):
        save_checkpoint(tmp_path / "run", {"a": "b"})
