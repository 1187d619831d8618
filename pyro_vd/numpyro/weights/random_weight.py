"""RandomWeight: a weight that is a distribution, in the place of an array.

Inside ``quax.quaxify`` a linear operation on it returns its output sampled by the estimator of the trace
(``estimators.py``); ``operations/`` is the table of those operations. A view of it (transpose, slice, reshape,
scaling by a constant, ...) is again a random weight. Any other operation draws the weight once for the trace.
``rules.py`` registers this with Quax.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import quax
from jax import Array
from jax.core import ShapedArray
from jax.tree_util import Partial

from pyro_vd.numpyro._jax import asked_by_jax_numpy
from pyro_vd.numpyro.estimators import SAMPLERS, LinearOp, WeightNoise
from pyro_vd.numpyro.weights.state import WeightState
from pyro_vd.numpyro.weights.views import Region

# The key of a site is folded with 0 for its one coherent draw, 1, 2, ... for its uses, and this for log_probs.
_SCORED = 2**31

_OUTSIDE = (
    "site {site!r}: expected a use of the random weight inside quax.quaxify, got {function} outside, where only @ "
    "works; call the net through BayesianModule, or write quax.quaxify(fn)(x, weight), or shared_sites=[{site!r}] to "
    "draw this weight once a step"
)


def _whole(weight: Array) -> Array:
    return weight


class RandomWeight(quax.ArrayValue):
    """A weight that is a distribution, usable wherever the weight array was, inside ``quax.quaxify``.

    Products (``@``, ``jnp.dot``, ``einsum``, any ``dot_general``), convolutions, transposed ones too, lookups
    (``jnp.take``, indexing by an array) and ``+`` (as a bias) return locally sampled outputs. Views act on the
    moments. Any other operation uses one coherent draw for the rest of the trace, with a warning that names site
    and operation (``strict``: a ValueError). The same elements used twice raise, since their noise is one and the
    same. Outside ``quaxify`` only ``@`` works; every other function of JAX raises TypeError.

    Made by :func:`pyro_vd.numpyro.lrt` and :class:`pyro_vd.numpyro.TraceVD_ELBO`; rarely by hand. A pytree; its
    noise is a function of ``key``, one fold of it for every use.

    Attributes:
        loc: mean of each weight, shape of the weight.
        variance: variance of each weight, shape of the weight.
        site: the name of its sample site.

    Example:
        >>> noise = WeightNoise(jnp.ones((2, 3)), jnp.zeros((2, 3)))
        >>> weight = RandomWeight(noise, jnp.zeros((2, 3)), jax.random.key(0), WeightState("w"))
        >>> weight @ jnp.ones(3)
        Array([3., 3.], dtype=float32)

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.3.

    See also:
        :func:`pyro_vd.numpyro.lrt`, :class:`pyro_vd.numpyro.LinearOp`, :func:`pyro_vd.numpyro.register_rule`.
    """

    noise: WeightNoise
    variance: Array
    key: Array
    state: WeightState = eqx.field(static=True)
    _origin: WeightNoise
    _view: Partial
    _region: Region = eqx.field(static=True)
    _repeated: tuple[int, ...] | None = eqx.field(static=True)

    __array_ufunc__ = None  # numpy leaves ``array @ weight`` to __rmatmul__

    def __init__(
        self,
        noise: WeightNoise,
        variance: Array,
        key: Array,
        state: WeightState,
        *,
        origin: WeightNoise | None = None,
        view: Partial | None = None,
        region: Region | None = None,
        repeated: tuple[int, ...] | None = None,
    ):
        self.noise, self.variance, self.key, self.state = noise, variance, key, state
        self._origin = noise if origin is None else origin
        self._view = Partial(_whole) if view is None else view
        self._region = Region(tuple(noise.loc.shape)) if region is None else region
        self._repeated = repeated

    @property
    def loc(self) -> Array:
        return jnp.broadcast_to(self.noise.loc, self.shape)

    @property
    def site(self) -> str:
        return self.state.site

    def aval(self) -> Any:
        shape = self.noise.loc.shape if self._repeated is None else self._repeated
        return ShapedArray(shape, self.noise.loc.dtype)

    def materialize(self) -> Array:
        """The weight as an ordinary array: one draw, the same for every view and the rest of the trace."""
        return _materialize(self, "materialize()")

    def materialise(self) -> Array:
        """As :meth:`materialize`, under the name that Quax uses."""
        return self.materialize()

    def scored_draw(self) -> Array:
        """A draw at which to evaluate log_probs of the weight, one for the trace; not a use by the model."""
        return _draw(self, _SCORED)

    def __matmul__(self, other: Any) -> Array:
        product: Any = quax.quaxify(jnp.matmul)
        return product(self, other)

    def __rmatmul__(self, other: Any) -> Array:
        product: Any = quax.quaxify(jnp.matmul)
        return product(other, self)

    def _outside(self, *others: Any, **options: Any) -> Any:
        raise TypeError(_OUTSIDE.format(site=self.site, function="an operator or a conversion"))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _outside
    __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __abs__ = _outside
    __lt__ = __le__ = __gt__ = __ge__ = __getitem__ = __iter__ = __len__ = __float__ = __bool__ = __array__ = _outside

    def __getattr__(self, name: str) -> Any:
        # A method of that name would draw the weight silently; without one JAX does not say what to write.
        if name == "__jax_array__" and asked_by_jax_numpy():
            raise TypeError(_OUTSIDE.format(site=self.site, function="a function of jax.numpy"))
        raise AttributeError(f"RandomWeight has no attribute {name!r}; inside quax.quaxify it has those of an array")

    @staticmethod
    def default(primitive: Any, values: Any, params: dict[str, Any]) -> Any:
        return without_rule(primitive, values, params)

    def __repr__(self) -> str:
        return f"RandomWeight(site={self.site!r}, shape={self.shape}, estimator={self.state.estimator!r})"


def sample(build: Callable[[Any, WeightNoise], LinearOp | None], x: Any, weight: RandomWeight, operation: str) -> Any:
    """The sampled output of the operation that ``build`` describes, or None where its noise has no local form."""
    state = weight.state
    op = None if state.drawn else build(x, weight.noise)
    if op is None or (state.estimator != "local" and op.example is None):
        return None
    if weight.noise.draw_units is not None and weight.noise.unit_dim not in (*op.weight_units, *op.weight_outs):
        return None
    state.claim(weight._region, operation)
    return SAMPLERS[state.estimator](op, jax.random.fold_in(weight.key, len(state.used)))


def without_rule(primitive: Any, values: Any, params: dict[str, Any]) -> Any:
    """Use one draw of every random weight among the operands, with a warning or an error."""
    operation = primitive.name
    drawn = [_drawn(value, operation) if isinstance(value, RandomWeight) else value for value in values]
    return primitive.bind(*drawn, **params)


def _draw(weight: RandomWeight, fold: int) -> Array:
    # Drawn again each time: the same key gives the same draw, and the compiler merges the draws.
    draw = weight._view(weight._origin.draw(jax.random.fold_in(weight.key, fold)))
    return jnp.broadcast_to(draw, weight.shape)


def _materialize(weight: RandomWeight, operation: str) -> Array:
    state = weight.state
    if weight.key.dtype == jax.dtypes.float0:
        raise ValueError(
            f"site {state.site!r}: expected an operation that JAX differentiates by itself, got {operation} in the "
            f"derivative rule of a function with one of its own (jax.custom_jvp); write weight.materialize() before "
            f"it, or shared_sites=[{state.site!r}]"
        )
    if not state.drawn:
        state.claim(weight._region, operation)
        state.drawn = True
    return _draw(weight, 0)


def _drawn(weight: RandomWeight, operation: str) -> Array:
    state = weight.state
    if not state.drawn:
        expected = f"site {state.site!r}: expected an operation with a rule for estimator {state.estimator!r}, got "
        if state.strict:
            raise ValueError(
                f"{expected}{operation}; write shared_sites=[{state.site!r}] to draw this weight once a step"
            )
        if (state.site, operation) not in state.warned:
            state.warned.add((state.site, operation))
            warnings.warn(
                f"{expected}{operation}; the weight is drawn once for this trace. Write "
                f"shared_sites=[{state.site!r}] to ask for that, or strict=True to make it an error",
                stacklevel=4,
            )
    return _materialize(weight, operation)
