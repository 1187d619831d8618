"""RandomWeight: a weight that is a distribution, in the place of a tensor.

A linear operation on it returns its output sampled by the estimator of the trace (``estimators.py``);
``operations/`` is the table of those operations. A view of it (transpose, slice, chunk, scaling by a
constant, ...) is again a random weight. Any other operation draws the weight once for the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_vd._torch import DisableTorchFunctionSubclass, new_wrapper, tree_leaves, tree_map
from pyro_vd.estimators import SAMPLERS, LinearOp, WeightNoise, independent_noise
from pyro_vd.fixed import pinned
from pyro_vd.operations import TABLE
from pyro_vd.weights.drawn import note_draw
from pyro_vd.weights.state import Region, WeightState, region_of
from pyro_vd.weights.views import CASTS, COMMUTATIVE, METADATA, SCALINGS, TRANSPOSES, is_view, repeats


class RandomWeight(Tensor):
    """A weight that is a distribution, usable wherever the weight tensor was.

    The operations of the table in docs (products, convolutions, embeddings, attention, ...) return locally sampled
    outputs; views act on the moments. Recurrent nets use one coherent draw by design. So does any operation
    that is not in the table, with a warning that names site and operation (``strict``: a ValueError). The same elements
    used twice raise, since their noise is one and the same; so does a product that would repeat a matrix for every
    example.

    Made by :func:`pyro_vd.lrt` and :class:`pyro_vd.TraceVD_ELBO`; rarely by hand.

    Attributes:
        loc: mean of each weight, shape of the weight.
        variance: variance of each weight, shape of the weight.
        site: the name of its sample site.

    Example:
        >>> noise = WeightNoise(torch.ones(2, 3), torch.zeros(2, 3), draw=lambda shape: torch.ones(2, 3))
        >>> weight = RandomWeight(noise, torch.zeros(2, 3), WeightState("w", noise))
        >>> torch.nn.functional.linear(torch.ones(3), weight)
        tensor([3., 3.])

    References:
        Kingma et al. 2015, arXiv:1506.02557, section 2.3.

    See also:
        :func:`pyro_vd.lrt`, :class:`pyro_vd.LinearOp`, :func:`pyro_vd.register_rule`.
    """

    loc: Tensor
    variance: Tensor
    site: str
    noise: WeightNoise
    state: WeightState
    _view: Callable[[Tensor], Tensor]
    _region: Region | None

    @staticmethod
    def __new__(
        cls,
        noise: WeightNoise,
        variance: Tensor,
        state: WeightState,
        view: Callable[[Tensor], Tensor] = lambda weight: weight,
        region: Region | None = None,
    ) -> RandomWeight:
        loc = noise.loc
        if not loc.is_floating_point():
            raise TypeError(
                f"site {state.site!r}: expected a random weight of floating point, got {loc.dtype}; write loc.float()"
            )
        new = new_wrapper(cls, loc.shape, loc.dtype, loc.device)
        new.loc, new.variance, new.noise, new.state, new.site = loc, variance, noise, state, state.site
        new._view, new._region = view, region
        return new

    # What every rule asks for, without a way through __torch_function__.
    shape: torch.Size = property(lambda self: self.loc.shape)  # type: ignore[assignment]

    def dim(self) -> int:
        return self.loc.dim()

    def materialize(self) -> Tensor:
        """The weight as an ordinary tensor: one draw, the same for every view and the rest of the trace."""
        return self._materialize("materialize()")

    def _materialize(self, operation: str) -> Tensor:
        state = self.state
        if state.is_scoring():
            # A log_prob of the weight, which an ELBO with analytic KL discards. It gets a draw of its
            # own: the mean over draws is right for the ELBOs that do use it.
            return self.scored_draw()
        return self._view(state.drawn(self._region, operation))

    def pinned(self, mask: Tensor, value: Tensor | float) -> RandomWeight:
        """The weight with constants in the place of the elements under ``mask``."""
        if self.noise.is_pinned:
            return self
        self.state.noise = pinned(self.state.noise, mask, value)
        return RandomWeight(self.state.noise, torch.where(mask, 0.0, self.variance), self.state)

    def scored_draw(self) -> Tensor:
        """A draw at which log_probs of the weight are evaluated, one for the trace; not a use by the model."""
        if self.state.scored_draw is None:
            self.state.scored_draw = self.state.noise.draw(torch.Size())
        return self._view(self.state.scored_draw)

    def _viewed(self, function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """The view ``function(self, *args, **kwargs)``: a random weight, or a tuple of them."""

        def view(tensor: Tensor) -> Any:
            return function(tensor, *args, **kwargs)

        loc = view(self.loc)
        if function in CASTS:
            # In half precision the square of a standard deviation of 1e-4 is 0.
            variance = self.variance.to(loc.device, torch.promote_types(loc.dtype, torch.float32))
        else:
            variance = view(view(self.variance)) if function in SCALINGS else view(self.variance)
        if isinstance(loc, Tensor):
            return self._rewrap(loc, variance, view)
        return tuple(
            self._rewrap(*parts, view=lambda tensor, i=i: view(tensor)[i])
            for i, parts in enumerate(zip(loc, variance, strict=True))
        )

    def _rewrap(self, loc: Tensor, variance: Tensor, view: Callable[[Tensor], Tensor]) -> RandomWeight:
        noise = independent_noise(loc, variance) if self.noise.independent else _transposed(self.noise)
        region = region_of(loc, self.state.noise.loc, self._region)
        return RandomWeight(noise, variance, self.state, lambda weight: view(self._view(weight)), region)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"RandomWeight(site={self.site!r}, shape={tuple(self.shape)}, estimator={self.state.estimator!r})"

    def __format__(self, format_spec: str) -> str:
        return format(repr(self), format_spec)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        entry = TABLE.get(func)
        if entry is not None and entry.rule is None:
            return _with_draws(func, args, kwargs)
        if entry is not None:
            operation = _name(func)
            call = entry(operation, args, kwargs)
            if isinstance(call, LinearOp):
                if _is_one_draw(call) and not (entry.kind == "exact" and _sees_one_row(call)):
                    return _with_draws(func, args, kwargs)
                sampled = _sample(call, operation)
                if sampled is not None:
                    return sampled
            elif call is not None:
                return call()
        if func in COMMUTATIVE and set(kwargs) <= {"input", "other"}:
            args, kwargs = (*args, *kwargs.values()), {}
            args = args if isinstance(args[0], RandomWeight) else args[::-1]
        first = args[0] if args else None
        if isinstance(first, RandomWeight) and is_view(func, first, args[1:], kwargs):
            if first.noise.independent or (func in TRANSPOSES and first.dim() == 2):
                return first._viewed(func, args[1:], kwargs)
        if isinstance(first, RandomWeight) and func in SCALINGS:
            _check_repeats(first, _name(func), args[1:])
        return _without_rule(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sites = [a.site for a in tree_leaves((args, kwargs)) if isinstance(a, RandomWeight)]
        raise TypeError(
            f"site {sites[0]!r}: expected an operation that PyTorch dispatches on the type of its arguments, got "
            f"{func} from below that layer (a C++ extension or a custom autograd function); write "
            f"weight.materialize() before it, or shared_sites=[{sites[0]!r}]"
        )


def _sample(op: LinearOp, operation: str) -> Tensor | None:
    """The sampled output of ``op``, or None where its noise has no local form for this operation."""
    parts: dict[str, Any] = {}
    random: list[RandomWeight] = []
    for name, weight in (("weight", op.weight), ("bias", op.bias)):
        if not isinstance(weight, RandomWeight):
            continue
        if weight.state.draw is not None:  # by an operation without a rule, before: it stays that draw
            parts[name] = weight.materialize()
            continue
        random.append(weight)
        parts[name] = noise = weight.noise
        if not noise.independent and not _covers(op, name, noise):
            return None
    if isinstance(op.x, RandomWeight) or not random:
        return None
    estimator = random[0].state.estimator
    if estimator != "local" and op.example is None:
        return None
    for weight in random:
        weight.state.claim(weight._region, operation)
    return SAMPLERS[estimator](_with(op, parts))


def _with(op: LinearOp, parts: dict[str, Any]) -> LinearOp:
    """``dataclasses.replace(op, **parts)``, in a tenth of the time."""
    new = object.__new__(type(op))
    vars(new).update(vars(op), **parts)
    return new


def _is_one_draw(op: LinearOp) -> bool:
    for one in (op.weight, op.bias):
        if isinstance(one, RandomWeight) and one.state.coherent:
            return True
    return False


def _sees_one_row(op: LinearOp) -> bool:
    """Whether each element of the weights enters one output element: their noise is then no other one's."""
    if op.x_units is None or op.positions or not op.x.is_floating_point() or not op.x.dim():
        return False
    return op.x.numel() == op.x.shape[op.x_units]


def _covers(op: LinearOp, name: str, noise: WeightNoise) -> bool:
    """Whether noise that is shared by elements of a weight has a local form in ``op``."""
    if name == "bias" or op.weight_units is None or op.weight_outs is None or op.out_units is None:
        return False
    if noise.draw_units is None or noise.unit_dim == op.weight_outs:
        return True
    return noise.unit_dim == op.weight_units and op.x_units is not None and op.x.is_floating_point()


def _check_repeats(weight: RandomWeight, operation: str, factors: tuple) -> None:
    """Raise for a product that repeats a matrix of weights, for every example as a rule, before any sum is taken."""
    shape = repeats(weight, factors)
    if shape is None or weight.state.draw is not None or weight.state.is_scoring():
        return
    raise ValueError(
        f"site {weight.site!r}: expected {operation} with a factor that broadcasts to the weight of shape "
        f"{tuple(weight.shape)}, got one of shape {shape}, which repeats the weight for every example, with noise for "
        "each copy; write the product and the sum that follows as one operation (F.linear, @, torch.einsum), or "
        f"shared_sites=[{weight.site!r}] to draw this weight once a step"
    )


def _without_rule(func: Any, args: Any, kwargs: Any) -> Any:
    """Use one draw of every random weight among the arguments, with a warning or an error."""
    operation = _name(func)
    for weight in tree_leaves((args, kwargs)):
        if not isinstance(weight, RandomWeight) or weight.state.draw is not None or weight.state.is_scoring():
            continue
        if weight.state.strict:
            # Not a TypeError: the operators of Tensor would replace it by one that names neither site nor operation.
            raise ValueError(
                f"site {weight.site!r}: expected an operation with a rule for estimator {weight.state.estimator!r}, "
                f"got {operation}; write shared_sites=[{weight.site!r}] to draw this weight once a step"
            )
        note_draw(weight.state, operation)
    return _with_draws(func, args, kwargs)


def _with_draws(func: Any, args: Any, kwargs: Any) -> Any:
    """``func`` on one draw of every random weight among its arguments."""

    def drawn(argument: Any) -> Any:
        return argument._materialize(_name(func)) if isinstance(argument, RandomWeight) else argument

    return func(*tree_map(drawn, args), **tree_map(drawn, kwargs))


def _transposed(noise: WeightNoise) -> WeightNoise:
    """The noise of the transpose of a matrix."""
    return replace(
        noise,
        loc=noise.loc.mT,
        variance=None if noise.variance is None else noise.variance.mT,
        draw=lambda shape: noise.draw(shape).mT,
        unit_dim=None if noise.unit_dim is None else 1 - noise.unit_dim,
        factor=None if noise.factor is None else noise.factor.mT,
        constant=None if noise.constant is None else noise.constant.mT,
    )


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func)).strip("_")
