"""GaussianArray: an array whose elements are independent Gaussians, in the place of an array.

A weight is one, by its posterior; a product of it with an input of mean m and variance v is another, with

    mean = product(m, W)        variance = product(m**2 + v, Var W) + product(v, W**2)

``MOMENTS`` has a rule for every primitive that is known: ``combinations.py`` sums, products and selections,
``elementwise.py`` functions of one element, ``functions.py`` functions under ``jax.jit``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import quax
from jax import Array
from jax.core import ShapedArray
from jax.scipy.special import ndtri
from jax.tree_util import Partial

from pyro_vd.numpyro.estimators import WeightNoise, independent_noise, safe_sqrt
from pyro_vd.numpyro.operations import TABLE
from pyro_vd.numpyro.weights.views import compose

# primitive -> (operands, parameters) -> result; NotImplemented where it does not cover a call
MOMENTS: dict[Any, Callable[[Sequence[Any], dict[str, Any]], Any]] = {}


class Pass:
    """The state of one pass of a net.

    Args:
        key: a random key, for what is drawn.
        on_unknown: "error", or "sample" to draw the inputs of an operation without a rule once.
    """

    def __init__(self, key: Array, on_unknown: str):
        self.key, self.on_unknown = key, on_unknown
        self.sampled: list[str] = []  # operations that drew their input

    def next_key(self, name: str) -> Array:
        """A new key, for a draw by the operation ``name``."""
        self.sampled.append(name)
        return jax.random.fold_in(self.key, len(self.sampled))


class UnknownOperation(ValueError):
    """Raised by an operation without a rule."""


class GaussianArray(quax.ArrayValue):
    """An array of independent Gaussian elements, usable inside ``quax.quaxify`` in what one pass of moments knows.

    Attributes:
        mean_value, variance: of each element.
        of: the pass that it is of.
        weight: whether it is a weight, for the rules of the table of operations.
        origin, view: mean and variance of the Gaussian that it is a function of, and that function; None where it is
            taken for a Gaussian itself. At a likelihood the origin is drawn.
        elementwise: whether the view is a function of each element by itself.
        gaussian: whether the view, if any, is affine: the array is a Gaussian itself.
        root, path: where the source is a view of another Gaussian: mean and variance of that one, and the view of its
            values. Parameters of a likelihood with one root share its noise.

    Raises:
        ValueError: by an operation without a rule.

    Example:
        >>> x = GaussianArray(jnp.zeros(3), jnp.ones(3), Pass(jax.random.key(0), "error"))
        >>> y = quax.quaxify(lambda x: jnp.maximum(2 * x, 0.0))(x)
        >>> f"{y.mean_value[0]:.4f}", f"{y.variance[0]:.4f}"
        ('0.7979', '1.3634')
    """

    mean_value: Array
    variance: Array
    of: Pass = eqx.field(static=True)
    weight: bool = eqx.field(static=True, default=False)
    origin: tuple[Array, Array] | None = None
    view: Partial | None = None
    elementwise: bool = eqx.field(static=True, default=True)
    gaussian: bool = eqx.field(static=True, default=True)
    root: tuple[Array, Array] | None = None
    path: Partial | None = None

    def aval(self) -> Any:
        return ShapedArray(self.mean_value.shape, self.mean_value.dtype)

    def materialise(self) -> Array:
        raise TypeError(
            'mode="moments": expected an operation on arrays inside the model, got one that asks for the values of a '
            'Gaussian; write mode="weights"'
        )

    @staticmethod
    def default(primitive: Any, values: Sequence[Any], params: dict[str, Any]) -> Any:
        rule = MOMENTS.get(primitive)
        result = NotImplemented if rule is None else rule(values, params)
        if result is NotImplemented:
            result = _by_the_table(primitive, values, params)
        return without_rule(primitive, values, params) if result is NotImplemented else result

    def like(self, mean: Array, variance: Array, weight: bool = False) -> GaussianArray:
        """Another array of the same pass, drawn as a Gaussian."""
        return GaussianArray(mean, jnp.broadcast_to(variance, mean.shape).astype(mean.dtype), self.of, weight)

    @property
    def source(self) -> tuple[Array, Array]:
        """Mean and variance of the Gaussian that this array is a function of."""
        return (self.mean_value, self.variance) if self.origin is None else self.origin

    def then(self, function: Callable[[Array], Array]) -> Partial:
        """``function`` of this array, as a function of its source."""
        function = function if isinstance(function, Partial) else Partial(function)
        return function if self.view is None else compose(function, self.view)

    def function(
        self,
        mean: Array,
        variance: Array,
        function: Callable[[Array], Array],
        elementwise: bool = True,
        affine: bool = False,
    ) -> GaussianArray:
        """``function`` of this array, drawn as the function of draws of this array."""
        elementwise, gaussian = elementwise and self.elementwise, affine and self.gaussian
        variance = jnp.broadcast_to(variance, mean.shape)
        whole = self.then(function)
        return GaussianArray(
            mean, variance, self.of, False, self.source, whole, elementwise, gaussian, self.root, self.path
        )

    def viewed(self, view: Callable[[Array], Array], of_variance: Callable[[Array], Array] | None = None) -> Any:
        """A view: each element of one element; of a weight again a weight."""
        mean, variance = view(self.mean_value), (of_variance or view)(self.variance)
        if self.gaussian:
            view = view if isinstance(view, Partial) else Partial(view)
            whole = view if self.whole is None else compose(view, self.whole)
            variance = jnp.broadcast_to(variance, mean.shape).astype(mean.dtype)
            return GaussianArray(mean, variance, self.of, self.weight, root=self.drawn_from, path=whole)
        return self.function(mean, variance, view, elementwise=False)

    @property
    def drawn_from(self) -> tuple[Array, Array]:
        """Mean and variance of the Gaussian whose draws are those of this array."""
        return self.source if self.root is None else self.root

    @property
    def whole(self) -> Partial | None:
        """The array as a function of the values of that Gaussian; None if it is the Gaussian itself."""
        if self.path is None or self.view is None:
            return self.view if self.path is None else self.path
        return compose(self.view, self.path)

    def draws(self, number: int, key: Array) -> Array:
        """``number`` draws, first, of each element by Latin hypercube: their mean and variance are exact."""
        mean, variance = self.drawn_from
        shape = (number, *mean.shape)
        if number == 1:
            noise = jax.random.normal(key, shape, mean.dtype)
        else:
            places = ndtri((jnp.arange(number, dtype=mean.dtype) + 0.5) / number)
            places = places / jnp.sqrt(jnp.square(places).mean())
            noise = places[jnp.argsort(jax.random.uniform(key, shape), axis=0)]
        values = mean + safe_sqrt(variance) * noise
        return values if self.whole is None else jax.vmap(self.whole)(values)


def drawn(parameters: Sequence[Any], number: int, key: Array) -> list[Array]:
    """``number`` draws of parameters of likelihoods; of a constant, itself. Functions of one Gaussian share noise."""
    keys: list[tuple[tuple[Array, Array], Array]] = []
    found = []
    for parameter in parameters:
        if not isinstance(parameter, GaussianArray):
            found.append(jnp.broadcast_to(parameter, (number, *jnp.shape(parameter))))
            continue
        mean, variance = parameter.drawn_from
        own = next((k for (m, v), k in keys if m is mean and v is variance), None)
        if own is None:
            own = jax.random.fold_in(key, len(keys))
            keys.append(((mean, variance), own))
        found.append(parameter.draws(number, own))
    return found


def rule(*primitives: Any) -> Callable[[Callable], Callable]:
    """Enter the moments of ``primitives``: a decorator for ``(operands, parameters) -> result``."""

    def register(function: Callable) -> Callable:
        MOMENTS.update(dict.fromkeys(primitives, function))
        return function

    return register


def moments_of(operand: Any) -> tuple[Any, Any]:
    """Mean and variance of an operand; 0 where it is not a Gaussian."""
    return (operand.mean_value, operand.variance) if isinstance(operand, GaussianArray) else (operand, 0.0)


def first_of(operands: Sequence[Any]) -> GaussianArray:
    """The first Gaussian among the operands."""
    return next(one for one in operands if isinstance(one, GaussianArray))


def without_rule(primitive: Any, values: Sequence[Any], params: dict[str, Any]) -> Any:
    """The operation at one draw of its Gaussian operands, or an error that names it."""
    random = [value for value in values if isinstance(value, GaussianArray)]
    of, name = random[0].of, primitive.name
    if of.on_unknown == "error":
        raise UnknownOperation(
            f'mode="moments": expected operations with a rule for a Gaussian input, got {name} on shapes '
            f'{[one.shape for one in random]}; write on_unknown="sample" to draw its input once a pass, or '
            'mode="weights"'
        )
    drawn = [v.draws(1, of.next_key(name))[0] if isinstance(v, GaussianArray) else v for v in values]
    return primitive.bind(*drawn, **params)


def _by_the_table(primitive: Any, values: Sequence[Any], params: dict[str, Any]) -> Any:
    """A linear operation of a weight that only :func:`pyro_vd.numpyro.register_rule` knows."""
    weights = [i for i, one in enumerate(values) if isinstance(one, GaussianArray) and one.weight]
    if primitive not in TABLE or len(weights) != 1:
        return NotImplemented
    (place,) = weights
    weight = values[place]
    noise: WeightNoise = independent_noise(weight.mean_value, weight.variance)
    op = TABLE[primitive].rule(*values[:place], noise, *values[place + 1 :], **params)
    if op is None:
        return NotImplemented
    x, x_variance = moments_of(op.x)
    mean = op.apply(x, weight.mean_value)
    if op.apply_variance is not None:
        if isinstance(op.x, GaussianArray):
            return NotImplemented
        return weight.like(mean, op.apply_variance(x, weight.variance))
    variance = op.apply(jnp.square(x) + x_variance, weight.variance)
    if isinstance(op.x, GaussianArray):
        variance = variance + op.apply(x_variance, jnp.square(weight.mean_value))
    return weight.like(mean, variance)
