"""BayesianModule: any torch module as a Pyro model, and data_plate, which scales the likelihood."""

from __future__ import annotations

import functools
import warnings
from operator import attrgetter
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vd._pyro import (
    Noted,
    adopt_stored_value,
    is_no_step,
    is_prediction,
    net_parameter,
    node_of_trace,
    parameters_are_seen,
)
from pyro_vd._torch import in_backward_pass, is_recording, leaves_of
from pyro_vd.arguments import FAILURES, check_finite_state, explain
from pyro_vd.choice import Prior, Where, choose, priors_of, report_of
from pyro_vd.common.options import check_known, shown
from pyro_vd.common.plates import check_data_plate
from pyro_vd.common.reports import ModuleReport
from pyro_vd.devices import placed_like
from pyro_vd.exchange import ONE_RUN, call_with, check_net, in_use
from pyro_vd.fixed import Fixed, fixed_elements
from pyro_vd.layout import Layout
from pyro_vd.one_name import check_parameter, value_so_far
from pyro_vd.operations.embeddings import with_dense_gradient
from pyro_vd.rollback import undone
from pyro_vd.weights import RandomWeight
from pyro_vd.weights.drawn import one_warning
from pyro_vd.weights.reuse import all_reuses

_DEVICE = attrgetter("device")


class BayesianModule(nn.Module):
    """An unmodified ``nn.Module`` whose chosen parameters are sample sites of a Pyro model.

    Calling it samples the chosen parameters, registers the others with Pyro as deterministic parameters, and
    calls ``net`` with both. The net itself is not changed: its own values of the chosen parameters stay
    where they are, and are where a guide of :mod:`pyro_vd.guides` starts. A call leaves every attribute of the net as
    it was, but for what the net itself notes in one. Buffers (BatchNorm) are updated in steps; an update that is not
    finite, of a step that fails or of a prediction is not kept. (Pyro's own ELBOs score the labels after the net has
    run: a step of theirs that fails there keeps it, one of TraceVD_ELBO does not.)

    Args:
        net: any torch module.
        prior: a distribution for every weight, expanded to the shape of each parameter; or a mapping from
            parameter name, pattern (``"0.*"``) or module type to distributions, of which the first match counts; or a
            callable ``(parameter_name, parameter) -> distribution``, or ``(parameter_name, parameter, owning_module)``.
        name: prefix of the sites, ``f"{name}.{parameter_name}"``.
        where: which parameters are random. None: the weights of the net, by what its layers do: ``weight`` of Linear,
            Bilinear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Embedding and EmbeddingBag (without ``max_norm``), the
            projections of MultiheadAttention, ``weight_*`` of recurrent layers; and of any other module every
            parameter of two dimensions or more that its source is seen to multiply data by, in an operation that
            random weights have a rule for (``F.linear``, ``@``, ``torch.einsum``, ...). No biases, no gains, no
            class tokens and no embeddings of positions. Of a masked (``torch.nn.utils.prune``) or parametrized weight
            it is the tensor that the mask or parametrization is applied to. A warning names the layers left out where
            less than half of the elements of matrices are chosen, the source of a layer cannot be read, or an operation
            without a rule (``torch.cdist``) gets one with data.
            A module type, or several: the weights of modules of these types. A parameter name or pattern, or several.
            A callable ``(parameter_name, owning_module) -> bool``. A frozen parameter (``requires_grad=False``) is
            random only by its full name or a callable; its own value never changes.

    Attributes:
        net: the module as given.
        weight_names: names of the random parameters, in parameter order; tied ones once.

    Raises:
        ValueError: no parameter is chosen; a name or pattern, or a key of ``prior``, that matches nothing; a
            parameter without a prior or, in a lazy module, without a shape; data on another device; use inside a
            plate, or in a backward pass.
        TypeError: a chosen parameter that is not of floating point; a net with DataParallel or ScriptModules in it.
        RuntimeError: a call while another thread has weights in the net.

    Example:
        >>> bnn = BayesianModule(nn.Linear(3, 2), prior=pyro.distributions.Normal(0.0, 1.0))
        >>> bnn.weight_names, bnn(torch.ones(5, 3)).shape
        (('weight',), torch.Size([5, 2]))

    See also:
        :func:`pyro_vd.data_plate`, :func:`pyro_vd.prune`, :class:`pyro_vd.guides.AutoSparseVD`.
    """

    def __init__(self, net: nn.Module, prior: Prior, name: str = "net", where: Where = None):
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"BayesianModule: expected net to be a torch.nn.Module, got {type(net).__name__}")
        if not isinstance(name, str) or not name:
            raise TypeError(f"BayesianModule: expected name to be text, got {shown(name)}; write name='net'")
        if isinstance(net, BayesianModule):
            raise TypeError("net: expected a plain net, got a BayesianModule; pass its .net, or call it as it is")
        check_net(net)
        self.net = net
        self.name = name
        self.register_load_state_dict_pre_hook(check_finite_state)
        parameters = dict(net.named_parameters())
        # A BayesianModule inside the net has weights and parameters of its own.
        self._nested = tuple(f"{path}." for path, module in net.named_modules() if isinstance(module, BayesianModule))
        candidates = {key: value for key, value in parameters.items() if not key.startswith(self._nested)}
        choice = choose(net, where, candidates, name)
        self._why = {**choice.random, **choice.deterministic}
        self.weight_names, self._rows = tuple(choice.random), choice.rows
        self._owners = {
            weight: [(m, key) for m in net.modules() for key, own in m._parameters.items() if own is parameters[weight]]
            for weight in self.weight_names
        }
        self.priors = priors_of(prior, parameters, choice)
        self._sparse = {
            weight for weight, owners in self._owners.items() if any(getattr(m, "sparse", False) for m, _ in owners)
        }
        self._trainable = {weight for weight in self.weight_names if parameters[weight].requires_grad}
        self._layout = Layout()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if in_backward_pass():
            raise ValueError(
                f"BayesianModule {self.name!r}: expected a call in a forward pass, got one in a backward pass, "
                "where no handler gives it weights: activation checkpointing (torch.utils.checkpoint) of the whole "
                "module. Checkpoint layers inside the net instead"
            )
        with ONE_RUN:
            layout = self._layout.of(self.net)
            parameters = layout.parameters
            self._check_devices(parameters, args, kwargs)
            values = self._values(parameters)
            with one_warning(), all_reuses(), undone(only_on_failure=True):
                try:
                    return call_with(layout, values, args, kwargs, is_no_step)
                except FAILURES as error:
                    explain(error, f"BayesianModule {self.name!r}", args, kwargs, parameters.values())
                    raise

    def site(self, parameter_name: str) -> str:
        """The sample site of a random parameter."""
        return f"{self.name}.{parameter_name}"

    def report(self) -> ModuleReport:
        """Which parameters of the net are random, under which prior; which are not, and why.

        Returns:
            A row for each parameter; prints as a table.

        Example:
            >>> bnn = BayesianModule(nn.Linear(3, 2), prior=pyro.distributions.Normal(0.0, 1.0))
            >>> print(bnn.report())
            parameter  layer   shape  is             prior                         why
            weight     Linear  2x3    random         Normal(loc: 0.0, scale: 1.0)  weight of Linear
            bias       Linear  2      deterministic                                a bias or a gain
            1 of 2 parameters are random (6 elements, 100.0% of the matrices); deterministic 1, frozen 0
        """
        fixed = {name: one for name in self.weight_names if (one := self.fixed(name)) is not None}
        return report_of(self.net, self._why, self.priors, fixed)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, {self.report().summary}"

    def sample_weights(self) -> dict[str, Tensor]:
        """Sample every random parameter, by its name in the net, without calling the net."""
        parameters = dict(self.net.named_parameters())
        return {name: self._sample(name, parameters[name]) for name in self.weight_names}

    def _values(self, parameters: dict[str, nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """The values that replace the net's own parameters in a call."""
        if self.priors.keys() - parameters.keys():
            gone = [name for name in self.priors if name not in parameters]
            raise ValueError(
                f"BayesianModule {self.name!r}: expected a net with the random parameters {list(self.priors)}, got one "
                f"without {gone}, which has changed since; make a new BayesianModule (and guide) after masks, norms or "
                "layers are added to a net"
            )
        values: dict[nn.Parameter, Tensor] = {}
        for name, parameter in parameters.items():
            if not isinstance(parameter, nn.Parameter):
                raise in_use()
            if name in self.priors:
                values[parameter] = self._sample(name, parameter)
            elif parameter.requires_grad and not name.startswith(self._nested):
                full_name = f"{self.name}.{name}"
                if adopt_stored_value(full_name, parameter):
                    check_parameter(self.name, full_name, parameter)
                if not parameters_are_seen():
                    continue
                value: Any = net_parameter(full_name, parameter, self.name)
                unconstrained = getattr(value, "unconstrained", None)
                if unconstrained is None or unconstrained() is not parameter:
                    values[parameter] = value  # a handler has given another
        return values

    def _sample(self, parameter_name: str, parameter: nn.Parameter) -> Tensor:
        site, infer = self.site(parameter_name), self.site_infer(parameter_name, parameter)
        if (earlier := node_of_trace(site)) is not None:
            value: Any = value_so_far(self.name, site, parameter, earlier)
        else:
            prior = placed_like(self.priors[parameter_name], parameter).expand(parameter.shape)
            with Noted(infer):
                value = pyro.sample(site, prior.to_event(parameter.dim()), infer=infer)  # type: ignore[arg-type]
        if value.shape != parameter.shape:
            raise ValueError(
                f"site {site!r}: expected a weight of shape {tuple(parameter.shape)}, got {tuple(value.shape)}: the "
                "net was called inside a plate (or with vectorize_particles=True), which repeats its weights and "
                "scales its KL; call it before the plate, and put only the likelihood inside"
            )
        if not parameter.requires_grad and parameter_name in self._trainable:
            self._say_frozen(parameter_name, value)
        if "fixed" in infer:
            fixed = infer["fixed"]()
            is_random = isinstance(value, RandomWeight)
            value = value.pinned(fixed.mask, fixed.value) if is_random else fixed.imposed_on(value)
        return with_dense_gradient(value) if parameter_name in self._sparse else value

    def _say_frozen(self, parameter_name: str, value: Tensor) -> None:
        """Warn, once, of a weight that was frozen after it was chosen, and whose distribution is trained still."""
        mean = value.loc if isinstance(value, RandomWeight) else value
        # A leaf is a parameter, or the value with which a guide sees its model.
        trained = mean.grad_fn is not None or (mean.requires_grad and isinstance(mean, nn.Parameter))
        if trained and torch.is_grad_enabled() and not is_recording() and not is_no_step():
            self._trainable.discard(parameter_name)
            site = self.site(parameter_name)
            warnings.warn(
                f"site {site!r}: expected a weight of the net that is trained, got one that was frozen "
                "(requires_grad=False) after BayesianModule had chosen it: its distribution has parameters of its own, "
                "which are trained all the same. Freeze before BayesianModule(net, ...), which then leaves it out, or "
                f"freeze the guide's, guide.set_learnable(quantity, False, where={site!r}) for each quantity it has",
                stacklevel=2,
            )

    def site_infer(self, parameter_name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """What a site says of its weight: ``net_parameter``, where a guide starts, and what is ``fixed`` of it."""
        infer: dict[str, Any] = {"net_parameter": parameter, "net_name": self.name}
        of_weight = self._owners[parameter_name], self._rows.get(parameter_name)
        if fixed_elements(*of_weight) is not None:
            infer["fixed"] = functools.partial(fixed_elements, *of_weight)
        return infer

    def fixed(self, parameter_name: str) -> Fixed | None:
        """The elements of a random parameter that its layers keep fixed: padding rows, masked elements; None without.

        They are constants in every draw, and have no KL. The ``padding_idx`` of ``F.embedding(x, self.table,
        padding_idx=...)`` is read in the code of the net, where it is a number, an attribute or a global.

        Raises:
            ValueError: not a random parameter of the net.
        """
        check_known("parameter_name", [parameter_name], list(self._owners), "random parameters of the net")
        return fixed_elements(self._owners[parameter_name], self._rows.get(parameter_name))

    def __getstate__(self) -> dict[str, Any]:
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)  # of Pyro's store, a weak reference: as PyroModule does
        return vars(self).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(
            {"_layout": Layout(), "_trainable": set(), "_sparse": set(), "_rows": {}, **state}
        )  # pickled before there was one

    def _check_devices(self, parameters: dict[str, nn.Parameter], args: tuple, kwargs: dict) -> None:
        devices = set(map(_DEVICE, parameters.values()))
        for leaf in leaves_of(args, kwargs):
            if isinstance(leaf, Tensor) and devices and leaf.device not in devices and leaf.dim() > 0:
                own = ", ".join(sorted(map(str, devices)))
                raise ValueError(
                    f"BayesianModule {self.name!r}: expected data on the device of the net, {own}, got {leaf.device}; "
                    f"write x.to({own!r}), or net.to({str(leaf.device)!r}) before the guide is made"
                )


def data_plate(dataset_size: int, batch_size: int, name: str = "data", dim: int | None = None) -> pyro.plate:
    """A plate over a minibatch that scales its log likelihood by ``dataset_size / batch_size``.

    As ``pyro.plate(name, dataset_size, subsample_size=batch_size)``, without the permutation of all
    indices that the latter draws each time: the loader has chosen the batch already.

    Args:
        dataset_size: number of examples in the data set.
        batch_size: number of examples in this batch.
        name: name of the plate.
        dim: batch dimension of the plate, negative; the rightmost free one if not given.

    Raises:
        ValueError: unless ``1 <= batch_size <= dataset_size``; a ``dim`` that is not negative.

    Example:
        >>> with data_plate(60000, 100) as index:
        ...     len(index)
        100

    See also:
        :class:`pyro_vd.BayesianModule`, :class:`pyro_vd.TraceVD_ELBO`.
    """
    dataset_size, batch_size = check_data_plate(dataset_size, batch_size, name, dim, is_prediction())
    return pyro.plate(name, dataset_size, dim=dim, subsample=torch.arange(batch_size))
