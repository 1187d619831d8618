"""One canary for each private corner of JAX, Quax and NumPyro that the package uses: it names what broke."""

from __future__ import annotations

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
import quax
from jax import lax
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal

import pyro_vd.numpyro as vd
from helpers.paths import TESTS
from pyro_vd.numpyro import _jax as jax_corner
from pyro_vd.numpyro import _numpyro as numpyro_corner
from pyro_vd.numpyro.weights import WeightState

KEY = jax.random.key(0)


def primitives_of(function, *args):
    return {equation.primitive for equation in jax.make_jaxpr(function)(*args).eqns}


def test_a_function_under_jit_is_the_primitive_jit_p():
    assert jax_corner.jit_p in primitives_of(jax.jit(jnp.sin), 1.0), "jax.extend.core.primitives.jit_p changed"
    equation = jax.make_jaxpr(jax.jit(jnp.sin))(1.0).eqns[0]
    assert "jaxpr" in equation.params, "the parameters of jit_p changed: rules.py reads params['jaxpr']"


def test_a_function_under_checkpoint_is_the_primitive_remat_p():
    assert jax_corner.remat_p in primitives_of(jax.checkpoint(jnp.sin), 1.0), "jax.extend.core remat_p changed"
    equation = jax.make_jaxpr(jax.checkpoint(jnp.sin))(1.0).eqns[0]
    assert {"jaxpr", "prevent_cse", "policy"} <= set(equation.params), "the parameters of remat_p changed"


def test_what_keeps_elements_is_a_primitive_of_its_own():
    def constrained(x):
        mesh = jax.sharding.Mesh(jax.devices()[:1], ("x",))
        return lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    assert jax_corner.sharding_constraint_p in primitives_of(constrained, jnp.ones(2)), "sharding_constraint_p changed"
    assert jax_corner.stop_gradient_p.name == "stop_gradient", "jax.extend.core stop_gradient_p changed"


def test_jax_numpy_asks_for_jax_array_in_the_file_that_is_looked_for():
    noise = vd.DropoutNormal(jnp.ones(3), log_sigma2=-1.0).noise()
    weight = vd.RandomWeight(noise, noise.variance, KEY, WeightState("w"))
    with pytest.raises(TypeError, match="site 'w': expected a use of the random weight inside quax.quaxify"):
        jnp.sin(weight)  # else jax._src.numpy.util no longer asks, and the error says nothing of what to write
    assert not hasattr(weight, "__jax_array__")


def test_a_rule_with_precedence_comes_before_the_one_of_quax():
    seen = []

    class Value(quax.ArrayValue):
        array: jax.Array

        def aval(self):
            return jax.core.ShapedArray(self.array.shape, self.array.dtype)

        def materialise(self):
            return self.array

    @jax_corner.replace_rule(jax_corner.jit_p)
    def _(value: Value, **params):
        seen.append(params["name"])
        return [value.array]

    quax.quaxify(jax.jit(lambda x: x + 1))(Value(jnp.ones(2)))
    assert seen, "quax.register(precedence=) changed: rules of Quax for jit come first"


def test_the_signature_of_a_rule_may_be_made_up():
    """The table registers rules whose operands are known when they are entered (operations/table.py)."""
    noise = vd.DropoutNormal(jnp.ones((2, 3)), log_sigma2=-1.0).noise()
    weight = vd.RandomWeight(noise, noise.variance, KEY, WeightState("w"))
    output = quax.quaxify(lambda w, x: x @ w.T)(weight, jnp.ones((4, 3)))
    assert output.shape == (4, 2) and weight.state.used[0][0] == "dot_general", "plum no longer reads __signature__"


def test_a_traced_value_is_a_tracer():
    seen = []
    jax.jit(lambda x: seen.append(jax_corner.is_traced(x)) or x)(1.0)
    assert seen == [True] and not jax_corner.is_traced(jnp.ones(1)), "jax.core.Tracer changed"


def test_handlers_around_a_program_are_seen():
    seen = []

    def program():
        seen.append((numpyro_corner.handlers_are_active(), numpyro_corner.current_key() is not None))

    program()
    handlers.seed(program, 0)()
    handlers.block(program)()
    assert seen == [(False, False), (True, True), (True, False)], "numpyro.primitives._PYRO_STACK changed"


def test_sites_in_another_order_are_warned_of():
    def program(*names):
        for name in names:
            numpyro.sample(name, dist.Normal(0.0, 1.0))

    first, second = (handlers.trace(handlers.seed(program, 0)).get_trace(*names) for names in (("a", "b"), ("b", "a")))
    numpyro_corner.check_mean_field_requirement(first, first)
    with pytest.warns(UserWarning, match="Failed to verify mean field"):  # numpyro.infer.elbo._check_mean_field_...
        numpyro_corner.check_mean_field_requirement(first, second)


def test_a_guide_opens_the_plates_it_is_told_of():
    frame = numpyro.primitives.CondIndepStackFrame("data", -1, 3)
    guide = AutoNormal(lambda: None)
    numpyro_corner.note_plates(guide, {"data": frame}, {"data": 10})
    with handlers.seed(rng_seed=0):
        plates = guide._create_plates()
    assert plates["data"].size == 10 and plates["data"].subsample_size == 3, "AutoGuide._prototype_frames changed"


def test_no_other_file_reaches_into_private_corners():
    """By the names of attributes and modules in the code: ``jax._src``, ``_PYRO_STACK``, ``jax.extend`` primitives."""
    found = []
    for folder in ("pyro_vd/numpyro", "guides/numpyro"):
        for path in sorted(Path(TESTS.parent, folder).rglob("*.py")):
            if path.name in ("_jax.py", "_numpyro.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    hosts = (node.module or "").partition(".")[0] in ("jax", "numpyro", "quax")
                    names = [node.module or "", *(alias.name for alias in node.names)] if hosts else []
                elif isinstance(node, ast.Attribute):
                    names = [node.attr] if node.attr in ("_PYRO_STACK", "_src") else []
                else:
                    continue
                private = [n for n in names if any(part.startswith("_") for part in n.split(".")) or n == "primitives"]
                found += [f"{path.relative_to(TESTS.parent)}: {name}" for name in private]
    assert found == []
