"""The loss as a torch module, for training with torch.optim."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from pyro import poutine
from torch import Tensor, distributed, nn

from pyro_vd._pyro import parameters_met
from pyro_vd.arguments import check_finite_state
from pyro_vd.checks import check_gradient, holds_non_finite
from pyro_vd.common.terms import LossTerms
from pyro_vd.late import MadeLate, forget_late, untrained
from pyro_vd.module import BayesianModule
from pyro_vd.references import referenced_modules as referenced_modules
from pyro_vd.rollback import undone

if TYPE_CHECKING:
    from pyro_vd.elbo import TraceVD_ELBO


class TrainedModule(nn.Module):
    """Abstract: a module whose parameters leave out a net's own values of its random weights.

    A guide has parameters of its own for these, and nothing that the loss computes depends on the values in the net:
    no gradient ever comes to them, which ``DistributedDataParallel`` takes for an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(check_finite_state)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        replaced = _replaced(self)
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if parameter not in replaced:
                yield name, parameter

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        # What DistributedDataParallel reads: it lists parameters module by module,
        # https://github.com/pytorch/pytorch/blob/main/torch/nn/parallel/distributed.py
        replaced = _replaced(self)
        return [
            f"{path}.{name}"
            for path, module in self.named_modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter in replaced
        ]


class LossModule(TrainedModule):
    """What ``TraceVD_ELBO()(model, guide)`` returns: its call is the loss, its parameters are to be trained.

    It is like Pyro's ``ELBOModule``, with the same attributes and names of parameters. A model or guide that is a
    function contributes the modules it refers to (see :func:`pyro_vd.references.referenced_modules`), as
    ``referenced``. A net's own values of its random weights are not parameters of the loss: nothing trains them. So it
    can be wrapped in ``torch.nn.parallel.DistributedDataParallel``, or sharded by ``fully_shard(loss)`` (FSDP2), as it
    is. Seed the processes differently after the guide is made, or all have the same noise.

    Where a guide has to see its model before it knows all its sites (a noise scale, weights of a hand-written model),
    call this module once before making the optimizer; a warning says so where that was forgotten.

    Args:
        model, guide: Pyro model and guide, modules or functions.
        elbo: the loss.

    Raises:
        ValueError: from the call, where a term of the loss is NaN or infinite, naming it.

    Example:
        >>> import torch
        >>> from pyro_vd import TraceVD_ELBO
        >>> loss = TraceVD_ELBO()(torch.nn.Identity(), torch.nn.Linear(2, 3))
        >>> [name for name, _ in loss.named_parameters()]
        ['guide.weight', 'guide.bias']
    """

    def __init__(self, model: Callable, guide: Callable, elbo: TraceVD_ELBO):
        super().__init__()
        self.model, self.guide, self.elbo = model, guide, elbo
        known = set(self.modules())
        found = [module for fn in self.callables for module in referenced_modules(fn) if module not in known]
        if found:
            self.referenced = nn.ModuleList(dict.fromkeys(found))
        self._listed: dict[str, nn.Parameter] | None = None  # the parameters when they were last asked for
        self.seen = False  # whether it has been called
        self._late: MadeLate | None = None  # parameters made in the first call, until a step has moved others

    @property
    def callables(self) -> tuple[Callable, Callable]:
        """Model and guide."""
        return self.model, self.guide

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._evaluated(args, kwargs)[1]

    def terms(self, *args: Any, **kwargs: Any) -> LossTerms:
        """The terms of the loss, differentiable; ``loss(*args)`` is ``loss.terms(*args).loss``."""
        return self._evaluated(args, kwargs)[0]

    def _evaluated(self, args: tuple, kwargs: dict) -> tuple[LossTerms, Tensor]:
        if distributed.is_available() and distributed.is_initialized():
            self._check_whole()
        self.check_stepped()
        before = self._own() if not self.seen else set()
        capture: Any
        with undone(only_on_failure=True):
            with nullcontext() if self.seen else poutine.trace(param_only=True) as capture:
                terms, loss = self.elbo._evaluated(*self.callables, args, kwargs)
            if not self.seen:
                self._check_listed(parameters_met(capture.trace), before)
            self._check_gradient(loss, args, kwargs)
        self.seen = True
        return terms, loss

    def _check_whole(self) -> None:
        """Raise for shards of parameters: only those of the module around all of it are put together for a call."""
        shards = [name for name, parameter in super().named_parameters() if hasattr(parameter, "to_local")]
        if shards:
            raise ValueError(
                f"expected every parameter of the loss as a whole within its call, got shards of {shards}, by FSDP2 "
                "around a part of it; write fully_shard(loss), around the loss module and nothing in it"
            )

    def _check_gradient(self, loss: Tensor, args: tuple, kwargs: dict) -> None:
        if loss.requires_grad and holds_non_finite(args, kwargs):
            check_gradient(loss, dict(super().named_parameters()), args, kwargs)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module, without a net's own values of its random weights."""
        self._listed = dict(super().named_parameters())
        return super().named_parameters(prefix, recurse, remove_duplicate)

    def check_stepped(self) -> None:
        """Warn of parameters made in the first call that the first step has left alone, while it moved others."""
        if self._late is not None and (names := self._late.left_alone()):
            warnings.warn(untrained(names, "the first call", "this loss"), stacklevel=5)

    def _own(self) -> set[Any]:
        return {parameter for module in self.modules() for parameter in module._parameters.values()}

    def _check_listed(self, met: dict[str, Tensor], before: set[Any]) -> None:
        """Warn of parameters that an optimizer over those listed so far does not have."""
        own = self._own()
        forget_late(self.modules())
        others = [name for name, parameter in met.items() if parameter not in own]
        if others:
            warnings.warn(
                f"expected every parameter in .parameters() of this loss, got others in model or guide: {others}; an "
                "optimizer over .parameters() does not train them. Write model and guide as pyro.nn.PyroModule, or "
                "train with pyro.infer.SVI",
                stacklevel=4,
            )
        listed: set[Any] = {p if not hasattr(p, "to_local") else name for name, p in (self._listed or {}).items()}
        # FSDP2 has other tensors in a call than an optimizer has: shards, which are compared by name.
        names: dict[Tensor, str] = {parameter: name for name, parameter in super().named_parameters()}
        late = [n for n, p in met.items() if p in names and not {p, names[p]} & listed]
        late = [] if self._listed is None else late
        if not late:
            self._late = MadeLate({name: p for name, p in met.items() if p in names}, before)
        else:
            warnings.warn(
                f"expected every parameter of this loss before its parameters were listed, for an optimizer say, got "
                f"new ones in the first call: {late}; that optimizer does not train them. Call the loss, or the guide, "
                "once before making the optimizer",
                stacklevel=4,
            )


def _replaced(module: nn.Module) -> set[nn.Parameter]:
    """The nets' own values of their random weights."""
    nets = [part for part in module.modules() if isinstance(part, BayesianModule)]
    return {net.net.get_parameter(name) for net in nets for name in net.weight_names}
