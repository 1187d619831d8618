"""LossProgram: evaluates a loss eagerly or while it is recorded, and computes the key of its compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_vd._pyro import Unvalidated, parameters_met, store_dicts, store_tables
from pyro_vd._torch import tree_flatten, tree_map_only
from pyro_vd.arguments import check_programs
from pyro_vd.common.options import check_number, shown
from pyro_vd.compiled.surroundings import Surroundings
from pyro_vd.compiled.walk import surroundings_of
from pyro_vd.elbo import TraceVD_ELBO

if TYPE_CHECKING:
    from pyro_vd.compiled.recording import Substitute

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class LossProgram:
    """The loss of a model and a guide.

    Args:
        model, guide: Pyro model and guide.
        loss: an ELBO with ``differentiable_loss``.

    Raises:
        TypeError: loss has none.
    """

    def __init__(self, model: Callable, guide: Callable, loss: ELBO):
        check_programs(model, guide)
        if isinstance(loss, type) or not hasattr(loss, "differentiable_loss"):
            raise TypeError(
                "loss: expected an ELBO with differentiable_loss, such as pyro_vd.TraceVD_ELBO(), got "
                f"{shown(loss) if isinstance(loss, type) else type(loss).__name__}"
            )
        self.model, self.guide, self.loss = model, guide, loss
        self._kl_weight: Tensor | None = None
        self._value: Any = None

    def __call__(self, args: tuple, kwargs: dict) -> Tensor:
        """The loss, differentiable; where the loss checks its terms, an error names one that is not finite."""
        if isinstance(self.loss, TraceVD_ELBO):
            return self.loss.checked_terms(self.model, self.guide, *args, **kwargs).loss
        return self.unchecked(args, kwargs)

    def unchecked(self, args: tuple, kwargs: dict) -> Tensor:
        """The loss without a host synchronisation; of Pyro, a number where model and guide have no site."""
        try:
            loss = self.loss.differentiable_loss(self.model, self.guide, *args, **kwargs)  # type: ignore[attr-defined]
        except ValueError as error:
            if "cannot be differentiated" not in str(error):  # of TraceEnum_ELBO
                raise
            raise ValueError(
                f"loss: expected a model and a guide with something to train, got a loss of {type(self.loss).__name__} "
                f"that depends on no parameter ({error}); step with pyro.infer.SVI, which takes such a loss"
            ) from error
        return loss if isinstance(loss, Tensor) else torch.tensor(float(loss))

    def with_parameters(self, args: tuple, kwargs: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the unconstrained parameters that it met, by name."""
        capture: Any
        with poutine.trace(param_only=True) as capture:
            loss = self(args, kwargs)
        met = parameters_met(capture.trace)
        return loss, {name: value for name, value in met.items() if value.requires_grad}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """A context in which the loss can be recorded: nothing is validated, and ``kl_weight`` is a tensor."""
        loss: Any = self.loss
        tables = store_tables()
        entries = [dict(table) for table in tables]  # put back at the end: a parameter made in a recording is not one
        kl_weight = getattr(loss, "kl_weight", None)
        try:
            if self._kl_weight is not None:
                loss.kl_weight = self._kl_weight
            with pyro.validation_enabled(False), Unvalidated():
                yield
        finally:
            if self._kl_weight is not None:
                loss.kl_weight = kl_weight
            for table, before in zip(tables, entries, strict=True):
                table.clear()
                table.update(before)  # type: ignore

    def inputs(self, like: Tensor) -> list[Tensor]:
        """What the loss reads besides parameters and data, with the value it has now: ``kl_weight``, if it has one."""
        value = getattr(self.loss, "kl_weight", None)
        if value is None:
            return []
        if self._kl_weight is None:
            self._kl_weight = torch.ones((), dtype=like.dtype, device=like.device)
            self._value = None
        if isinstance(value, Tensor):
            if not value.is_cuda:  # a look at its value would wait for the device
                check_number("kl_weight", value, at_least=0)
            self._kl_weight.copy_(value)
            self._value = None
        elif value != self._value:
            self._kl_weight.fill_(value)
            self._value = value
        return [self._kl_weight]

    def surroundings(
        self, options: Iterable[dict] = (), kept: Iterable[dict | list] = (), read: tuple[str, ...] = ()
    ) -> Surroundings:
        """Everything that a recording of the loss freezes.

        Args:
            options: of an optimizer, which are frozen too, but for the learning rate.
            kept: what else is watched and put back.
            read: names of options that are not frozen either.
        """
        roots = [("the guide", self.guide), ("the model", self.model), ("the loss", self.loss)]
        left_out = ("_kl_weight", "warned", "_met", "params", "lr", "initial_lr", *read)
        return surroundings_of(roots, left_out=left_out, options=options, kept=[*store_dicts(), *kept])

    def gradients(
        self, copies: list[Tensor], number: int, substitute: Substitute, args: tuple, kwargs: dict, inputs: list[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """The loss, its data term, and its gradient to the first ``number`` of ``copies``, while it is recorded.

        ``inputs`` are put in the place of the tensors among the arguments. An ELBO without terms has its loss for
        a data term.
        """
        given = iter(inputs)
        args, kwargs = tree_map_only(Tensor, lambda _: next(given), (args, kwargs))
        leaves = [copy.detach().requires_grad_() for copy in copies[:number]]
        with substitute([*leaves, *copies[number:]]), self.recorded():
            if isinstance(self.loss, TraceVD_ELBO):
                terms = self.loss.terms(self.model, self.guide, *args, **kwargs)
                loss, data_term = terms.loss, terms.data
            else:
                loss = data_term = self.unchecked(args, kwargs)
        return loss.detach(), data_term.detach(), torch.autograd.grad(loss, leaves, allow_unused=True)


def signature(args: tuple, kwargs: dict) -> tuple[list[Tensor], Hashable]:
    """The tensors among the arguments, and everything else about the arguments that a recording freezes.

    That is shapes, strides, dtypes and devices, the other arguments with what they hold, and autocast.

    Raises:
        TypeError: an argument that is neither a tensor nor hashable.
    """
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    described = tuple(map(_described, leaves))
    kinds = {tensor.device.type for tensor in tensors}
    autocast = tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind))
    key = (structure, described, autocast, torch.get_default_dtype())
    hash(key)
    return tensors, key


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return type(leaf), leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    if isinstance(leaf, _PLAIN):
        return type(leaf), leaf  # 1, 1.0 and True are equal
    hash(leaf)
    return leaf, surroundings_of([("an argument", leaf)]).key


def all_finite(values: Iterable[Tensor]) -> Tensor:
    """Whether every element of every floating point tensor is finite; 0-dim, no host synchronisation."""
    # x - x, because compilers fold x * 0. Its sum is 0 unless an element is NaN or infinite; additions vectorise, a
    # reduction of truth values does not.
    zeros = torch.stack([(value - value).sum().float() for value in values if value.is_floating_point()])
    return zeros.sum() == 0
