"""GaussianTensor: a tensor whose elements are independent Gaussians, in the place of a tensor.

A weight is one, by its posterior; a linear operation on it returns another, with

    mean = apply(m, W)        variance = apply(m**2 + v, Var W) + apply(v, W**2)

for an input of mean m and variance v. Other operations are in ``elementwise.py``, ``combinations.py`` and
``layers.py``; which are linear in a weight is in the one table of :mod:`pyro_vd.operations`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vd._torch import DisableTorchFunctionSubclass, new_wrapper, tree_leaves, tree_map
from pyro_vd.estimators import LinearOp, WeightNoise, independent_noise
from pyro_vd.operations import TABLE
from pyro_vd.weights.views import COMMUTATIVE, METADATA, SCALINGS, is_view

# operation -> what it returns where an argument is a GaussianTensor; NotImplemented where it does not cover a call
MOMENTS: dict[Callable[..., Any], Callable[..., Any]] = {}


class GaussianTensor(Tensor):
    """A tensor of independent Gaussian elements, usable in the operations that one pass of moments knows.

    Args:
        mean, variance: of each element.
        noise: of a weight, for the rules of the table, which find the weight by it.
        on_unknown: "error", or "sample" to draw it once where an operation has no rule.
        drawn: values of ``root`` -> values at a likelihood, where they are better drawn than as a Gaussian: the
            softmax of draws of the logits rather than draws around the softmax of their mean.
        sampled: takes the names of operations that drew their input.
        root: the Gaussian that this tensor is a function of; itself if it is None. Parameters of a likelihood with one
            root share its noise.

    Raises:
        ValueError: by an operation without a rule.

    Example:
        >>> x = GaussianTensor(torch.zeros(3), torch.ones(3))
        >>> y = torch.relu(2 * x)
        >>> y.mean_value, y.variance
        (tensor([0.7979, 0.7979, 0.7979]), tensor([1.3634, 1.3634, 1.3634]))
    """

    mean_value: Tensor
    variance: Tensor
    on_unknown: str
    sums_to_one: int | None = None  # a negative axis
    drawn: Callable[[Tensor], Tensor] | None
    sampled: list[str]
    root: GaussianTensor | None

    @staticmethod
    def __new__(
        cls,
        mean: Tensor,
        variance: Tensor,
        noise: WeightNoise | None = None,
        on_unknown: str = "error",
        drawn: Callable[[Tensor], Tensor] | None = None,
        sampled: list[str] | None = None,
        root: GaussianTensor | None = None,
    ) -> GaussianTensor:
        new = new_wrapper(cls, mean.shape, mean.dtype, mean.device)
        new.mean_value, new.variance, new.on_unknown, new.drawn = mean, variance, on_unknown, drawn
        new.sampled, new.root = [] if sampled is None else sampled, root
        if noise is not None:
            new.noise = noise
        return new

    def like(self, mean: Tensor, variance: Tensor, drawn: Callable[[Tensor], Tensor] | None = None) -> GaussianTensor:
        """Another tensor of the same pass; a function of this one if it is drawn by it."""
        root = None if drawn is None else self.source
        return GaussianTensor(mean, variance, None, self.on_unknown, drawn, self.sampled, root)

    @property
    def source(self) -> GaussianTensor:
        """The Gaussian that this tensor is a function of."""
        return self if self.root is None else self.root

    def draws(self, number: int) -> Tensor:
        """``number`` draws, first, of each element by Latin hypercube: their mean and variance are exact."""
        return self.at(self.source.values(number))

    def values(self, number: int) -> Tensor:
        """``number`` draws, first, as a Gaussian."""
        if number == 1:
            noise = torch.randn((1, *self.shape), dtype=self.dtype, device=self.device)
        else:
            places = torch.special.ndtri((torch.arange(number, dtype=torch.float64) + 0.5) / number)
            places = places / places.square().mean().sqrt()
            order = torch.rand((number, *self.shape), device=self.device).argsort(0)
            noise = places.to(self.device, self.dtype)[order]
        return self.mean_value + self.variance.clamp_min(0.0).sqrt() * noise

    def at(self, values: Tensor) -> Tensor:
        """What this tensor is at values of its source, draws first."""
        return values if self.drawn is None else self.drawn(values)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"GaussianTensor(shape={tuple(self.shape)})"

    def __format__(self, format_spec: str) -> str:
        return format(repr(self), format_spec)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else None
        if isinstance(first, GaussianTensor) and is_view(func, first, args[1:], kwargs) and func not in SCALINGS:
            return _viewed(func, first, args[1:], kwargs)
        known = _known(func, args, kwargs)
        if known is not NotImplemented:
            return known
        return _unknown(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(
            'mode="moments": expected an operation that PyTorch dispatches on the type of its arguments, got '
            f'{func} from below that layer (a C++ extension or a custom autograd function); write mode="weights"'
        )


def rule(*operations: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the moments of ``operations``: a decorator for a function with their arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        MOMENTS.update(dict.fromkeys(operations, function))
        return function

    return register


def moments_of(argument: Any) -> tuple[Any, Any]:
    """Mean and variance of an argument; 0 where it is not a Gaussian."""
    if isinstance(argument, GaussianTensor):
        return argument.mean_value, argument.variance
    return argument, 0.0


def _known(func: Any, args: tuple, kwargs: dict) -> Any:
    """The result by a rule, NotImplemented without one."""
    entry = TABLE.get(func)
    weights = [one for one in tree_leaves((args, kwargs)) if isinstance(getattr(one, "noise", None), WeightNoise)]
    if entry is not None and entry.rule is not None and weights:
        call = entry(getattr(func, "__name__", str(func)), args, kwargs)
        if isinstance(call, LinearOp):
            return _linear(call, weights[0])
        if call is not None:
            return call()
    moments = MOMENTS.get(func)
    if moments is None:
        return NotImplemented
    if func in COMMUTATIVE and not isinstance(args[0], GaussianTensor):
        args = (args[1], args[0], *args[2:])
    try:
        inspect.signature(moments).bind(*args, **kwargs)
    except TypeError:  # an option that the rule does not cover
        return NotImplemented
    return moments(*args, **kwargs)


def _linear(op: LinearOp, like: GaussianTensor) -> Any:
    """A linear operation on a random weight, its input random or not."""
    (x, x_variance), (weight, weight_variance) = moments_of(op.x), moments_of(op.weight)
    bias, bias_variance = moments_of(op.bias)
    random_x = isinstance(op.x, GaussianTensor)
    mean = op.apply(x, weight, bias)
    zero = torch.zeros_like(weight)
    weight_variance = weight_variance if isinstance(weight_variance, Tensor) else zero
    bias_variance = bias_variance if isinstance(bias_variance, Tensor) or bias is None else torch.zeros_like(bias)
    if op.apply_variance is not None:
        if random_x:
            return NotImplemented
        return like.like(mean, op.apply_variance(x, weight_variance, None if bias is None else bias_variance))
    variance = op.apply(x.square() + x_variance, weight_variance, None if bias is None else bias_variance)
    if random_x:
        variance = variance + op.apply(x_variance, weight.square(), None)
    return like.like(mean, variance)


def _viewed(func: Any, tensor: GaussianTensor, args: tuple, kwargs: dict) -> Any:
    """A view, of mean and variance alike; of a weight again a weight."""

    def view(part: Tensor) -> Any:
        return func(part, *args, **kwargs)

    means, variances = view(tensor.mean_value), view(tensor.variance)
    parts = [(means, variances)] if isinstance(means, Tensor) else list(zip(means, variances, strict=True))
    single = isinstance(means, Tensor)
    result = []
    for index, (mean, variance) in enumerate(parts):
        drawn = _through(tensor, (lambda part: view(part)) if single else (lambda part, i=index: view(part)[i]))
        result.append(tensor.like(mean, variance, drawn))
        if hasattr(tensor, "noise"):
            result[-1].noise = independent_noise(mean, variance)
    return result[0] if single else tuple(result)


def _through(tensor: GaussianTensor, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """How a view of a tensor is drawn: as the view of its draws."""
    return lambda values: torch.func.vmap(function)(tensor.at(values))


def _unknown(func: Any, args: tuple, kwargs: dict) -> Any:
    name = getattr(func, "__name__", str(func)).strip("_")
    random = [one for one in tree_leaves((args, kwargs)) if isinstance(one, GaussianTensor)]
    if random[0].on_unknown == "error":
        raise ValueError(
            f'mode="moments": expected operations with a rule for a Gaussian input, got {name} on shapes '
            f'{[tuple(one.shape) for one in random]}; write on_unknown="sample" to draw its input once a pass, '
            'or mode="weights"'
        )
    random[0].sampled.append(name)

    def once(argument: Any) -> Any:
        if not isinstance(argument, GaussianTensor):
            return argument
        return argument.draws(1)[0]

    return func(*tree_map(once, args), **tree_map(once, kwargs))


def at_least_zero(variance: Tensor) -> Tensor:
    """``max(variance, 0)``, with the gradient of ``variance``: what is below 0 is so by rounding."""
    return torch.where(variance < 0, variance - variance.detach(), variance)  # NaN stays NaN
