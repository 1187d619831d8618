"""How the output of a linear operation on a random weight is sampled: pure functions of tensors.

Every operation here is linear in its weight, ``y = apply(x, w, b)``, most with the input as coefficients: the output
under ``w ~ N(loc, variance)`` has ``mean = apply(x, loc, b)`` and ``variance = apply(x**2, variance, b_variance)``.

    local        one noise per output element (the local reparameterization trick)
    per_example  one weight draw per example
    flipout      one perturbation per step, its signs flipped per example
    shared       one weight draw per step, which needs no rule
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vd._torch import applied, reciprocal_or_zero, without_autocast

ESTIMATORS = ("local", "shared", "per_example", "flipout")
DrawUnits = Callable[[torch.Size], Tensor]


@dataclass(frozen=True)
class WeightNoise:
    """The parts of a random weight, ``w = s * (loc + sqrt(variance) * e) + sum_r factor[r] * z_r + constant``.

    Attributes:
        loc: mean, shape ``weight``.
        variance: variance of the part that is independent over elements, shape ``weight``; None for 0.
        draw: sample shape -> whole weights, shape ``sample_shape + weight``.
        unit_dim: the dimension of the weight along which its input units lie, where ``s`` is random.
        draw_units: sample shape -> ``s``, shape ``sample_shape + (units,)``; None where s = 1.
        factor: low-rank factor, shape ``(rank,) + weight``, of z ~ N(0, I); None without one.
        constant: a part without noise, None for 0 and without s. ``is_pinned``: whether elements are constants.
    """

    loc: Tensor
    variance: Tensor | None
    draw: Callable[[torch.Size], Tensor]
    unit_dim: int | None = None
    draw_units: DrawUnits | None = None
    factor: Tensor | None = None
    constant: Tensor | None = None
    is_pinned: bool = False

    @property
    def independent(self) -> bool:
        """True where the elements of the weight are independent Gaussians."""
        return self.draw_units is None and self.factor is None


def independent_noise(loc: Tensor, variance: Tensor | None) -> WeightNoise:
    """The noise of a weight whose elements are independent ``N(loc, variance)``; None is variance 0."""

    def draw(sample_shape: torch.Size) -> Tensor:
        noise = torch.randn((*sample_shape, *loc.shape), dtype=loc.dtype, device=loc.device)
        return loc if variance is None else loc + (safe_sqrt(variance) * noise).to(loc.dtype)

    return WeightNoise(loc, variance, draw)


def is_random(argument: Any) -> bool:
    """Whether an argument of an operation is a random weight."""
    return isinstance(getattr(argument, "noise", None), WeightNoise)


@dataclass(frozen=True)
class LinearOp:
    """One call of an operation linear in its weight and in its bias: what a rule returns.

    The defaults of the axes are those of ``F.linear`` on rows without a bias.

    Args:
        apply: ``(x, weight, bias or None) -> output``.
        x: the input, floating point, or whole numbers that choose rows of the weight.
        weight, bias: the arguments of the call as they came, random or not; bias None where absent.
        weight_units, weight_outs: the weight's dimension of input units (summed over), and of output units; None
            where there is not just one, and noise that is shared by units has no local form.
        x_units, out_units: the axis of input and output that holds their units (negative), None without one.
        example: the axis of x that holds the examples, None where there is none (no "per_example", no "flipout").
        out_example: the same axis of the output, if it is another.
        positions: number of trailing axes (of a convolution) that share the weight within an example.
        apply_variance: ``(x, weight variance, bias variance or None) -> output variance`` where that is not
            ``apply(x**2, weight variance, bias variance)``.

    Example:
        >>> op = LinearOp(torch.nn.functional.linear, torch.ones(5, 3), torch.ones(2, 3))
        >>> op.apply(op.x, op.weight, op.bias).shape
        torch.Size([5, 2])

    See also:
        :func:`pyro_vd.register_rule`, :func:`pyro_vd.operations_table`.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    x: Tensor
    weight: Any
    bias: Any = None
    weight_units: int | None = 1
    weight_outs: int | None = 0
    x_units: int | None = -1
    out_units: int | None = -1
    example: int | None = 0
    out_example: int | None = None
    positions: int = 0
    apply_variance: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None


class _SafeSqrt(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(variance: Tensor) -> Tensor:
        return variance.clamp(min=0.0).sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return 0.5 * grad_output * reciprocal_or_zero(root)


def safe_sqrt(variance: Tensor) -> Tensor:
    """``sqrt(max(variance, 0))`` with gradient 0 where the variance is not positive.

    Exact at 0: no floor under the root, which would add noise. Convolution algorithms can return a
    variance a little below 0; it is read as 0.
    """
    return applied(_SafeSqrt, variance)


def moments(op: LinearOp, x: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Mean and variance of the output from the independent part of weight and bias noise.

    The variance is computed in float32 at least, outside autocast: in half precision 300**2 overflows and
    (1e-4)**2 underflows. For convolutions it is exact per position; the covariance between
    positions, which share the weight, is dropped (as every published implementation does).

    Returns:
        mean, variance (None where neither weight nor bias has an independent part).
    """
    x = op.x if x is None else x
    (loc, weight_variance), (bias, bias_variance) = _moments_of(op.weight), _moments_of(op.bias)
    mean = op.apply(x, loc, bias)
    if weight_variance is None and bias_variance is None:
        return mean, None
    dtype = torch.promote_types(x.dtype if x.is_floating_point() else mean.dtype, torch.float32)
    with without_autocast(x.device.type):
        if weight_variance is None:
            weight_variance = torch.zeros_like(loc)
        weight_variance = weight_variance.to(dtype)
        bias_variance = None if bias_variance is None else bias_variance.to(dtype)
        if op.apply_variance is not None:
            return mean, op.apply_variance(x, weight_variance, bias_variance)
        return mean, op.apply(x.to(dtype).square(), weight_variance, bias_variance)


def local(op: LinearOp) -> Tensor:
    """Sample the output with noise of its own for every output element.

    Input-unit noise and low-rank noise are drawn per row (per example for a convolution, whose positions
    share the weight).

    References:
        Kingma et al. 2015, arXiv:1506.02557, equations 6 and (for unit noise) 8.
    """
    noise = op.weight if isinstance(op.weight, WeightNoise) else None
    if noise is not None and noise.draw_units is not None and noise.unit_dim != op.weight_units:
        return _output_units(op, noise, noise.draw_units)
    x = op.x
    if noise is not None and noise.draw_units is not None:
        assert op.x_units is not None
        x = x * _unit_noise(op, x.shape, op.x_units, noise.draw_units)
    mean, variance = moments(op, x)
    if variance is not None:
        mean = mean + (safe_sqrt(variance) * torch.randn_like(variance)).to(mean.dtype)
    if noise is not None and noise.factor is not None:
        assert op.out_units is not None
        factors = noise.factor.view_as(noise.factor)  # vmap looks at the tensor itself, which no function mode meets
        outputs = torch.func.vmap(lambda factor: op.apply(x, factor, None))(factors)
        shape = _ones_but(outputs.shape, range(1, outputs.dim() - op.positions), drop=op.out_units)
        rows = torch.randn((outputs.shape[0], *shape[1:]), dtype=mean.dtype, device=mean.device)
        mean = mean + (rows * outputs).sum(0)
    return mean if noise is None or noise.constant is None else mean + op.apply(op.x, noise.constant, None)


def per_example(op: LinearOp) -> Tensor:
    """Sample the output with one whole weight draw for every example, by one batched product.

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.2 (the slow way to uncorrelated examples).
    """
    assert op.example is not None
    number = torch.Size([op.x.shape[op.example]])
    axis = op.example - op.x.dim()
    if op.bias is not None and _loc(op.bias).dim() >= -axis:  # has an axis of examples itself
        bias, is_noise = op.bias, isinstance(op.weight, WeightNoise)
        output = per_example(replace(op, bias=None)) if is_noise else op.apply(op.x, op.weight, None)
        if isinstance(bias, WeightNoise):
            one = bias.loc.shape[axis] == 1
            bias = bias.draw(number).transpose(0, axis).squeeze(0) if one else bias.draw(torch.Size())
        return output + bias
    weight, weight_dim = _draws(op.weight, number)
    bias, bias_dim = _draws(op.bias, number)
    example, out_example = op.example, _out_example(op)

    def apply_to_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return op.apply(x.unsqueeze(example), weight, bias).squeeze(out_example)

    batched = torch.func.vmap(apply_to_one, in_dims=(example, weight_dim, bias_dim), out_dims=out_example)
    return batched(op.x, weight, bias)


def flipout(op: LinearOp) -> Tensor:
    """Sample the output with one perturbation of the weight, its signs flipped per example and unit.

    ``y = apply(x, loc, b) + apply(x * r, w - loc) * s`` with r, s in {-1, 1} per example and input or output
    unit, the same for all positions of an example.

    References:
        Wen et al. 2018, arXiv:1803.04386, equation 3.
    """
    assert op.example is not None
    mean = op.apply(op.x, _loc(op.weight), _loc(op.bias))
    weight = _perturbation(op.weight)
    bias = None if op.bias is None else _perturbation(op.bias)
    # An index has no sign: there the signs of the outputs alone keep the examples apart.
    x = op.x * _random_signs(op.x, op.example, op.x_units) if op.x.is_floating_point() else op.x
    return mean + op.apply(x, weight, bias) * _random_signs(mean, _out_example(op), op.out_units)


SAMPLERS: dict[str, Callable[[LinearOp], Tensor]] = {"local": local, "per_example": per_example, "flipout": flipout}


def _loc(weight):
    return weight.loc if isinstance(weight, WeightNoise) else weight


def _moments_of(weight) -> tuple[Any, Tensor | None]:
    return (weight.loc, weight.variance) if isinstance(weight, WeightNoise) else (weight, None)


def _output_units(op: LinearOp, noise: WeightNoise, draw_units: DrawUnits) -> Tensor:
    """The local form of noise on output units: the output without its bias is multiplied, then the bias added."""
    output = local(replace(op, weight=independent_noise(noise.loc, noise.variance), bias=None))
    assert op.out_units is not None
    output = output * _unit_noise(op, output.shape, op.out_units, draw_units)
    if noise.constant is not None:
        output = output + op.apply(op.x, noise.constant, None)
    if op.bias is None:
        return output
    # The bias in the shape of the output: the operation at x = 0, on one example where all have the same bias.
    one = op.example is not None and not isinstance(op.bias, WeightNoise)
    x = op.x.narrow(op.example or 0, 0, 1) if one else op.x
    return output + local(replace(op, x=torch.zeros_like(x), weight=torch.zeros_like(noise.loc)))


def _unit_noise(op: LinearOp, shape: torch.Size, units: int, draw_units: DrawUnits) -> Tensor:
    """Unit noise for a tensor of ``shape``: independent per row, shared by the positions of an example."""
    rows = _ones_but(shape, range(len(shape) - op.positions), drop=units)
    noise = draw_units(torch.Size(rows)).transpose(units - 1, -1).squeeze(-1)
    noise = noise.to(op.x.dtype if op.x.is_floating_point() else _loc(op.weight).dtype)
    # Grouped convolution: the input units of every group carry the same noise, as in weight space.
    repeats = shape[units] // noise.shape[units]
    return torch.cat([noise] * repeats, dim=units) if repeats > 1 else noise


def _ones_but(shape: torch.Size, keep: range, drop: int) -> list[int]:
    """``shape`` with 1 in place of every axis that is not in ``keep``, and of the axis ``drop``."""
    drop %= len(shape)
    return [size if axis in keep and axis != drop else 1 for axis, size in enumerate(shape)]


def _out_example(op: LinearOp) -> int:
    axis = op.example if op.out_example is None else op.out_example
    assert axis is not None
    return axis


def _random_signs(tensor: Tensor, example: int, units: int | None) -> Tensor:
    keep = {example} if units is None else {example, units % tensor.dim()}
    shape = [size if axis in keep else 1 for axis, size in enumerate(tensor.shape)]
    return torch.randint(0, 2, shape, device=tensor.device).to(tensor.dtype) * 2 - 1


def _draws(weight, number: torch.Size):
    return (weight.draw(number), 0) if isinstance(weight, WeightNoise) else (weight, None)


def _perturbation(weight) -> Tensor:
    if not isinstance(weight, WeightNoise):
        return torch.zeros_like(weight)
    return weight.draw(torch.Size()) - weight.loc
