"""BayesianModule: any torch module as a Pyro model, and data_plate, which scales the likelihood."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.func import functional_call

from pyro_vd._pyro import adopt_stored_value
from pyro_vd._torch import tree_leaves
from pyro_vd.arguments import check_finite_state, data_explained
from pyro_vd.common.options import check_count, shown
from pyro_vd.devices import placed_like

Where = Callable[[str, nn.Module], bool] | type | str | tuple | list | None
Prior = (
    TorchDistributionMixin
    | Mapping[str, TorchDistributionMixin]
    | Callable[[str, nn.Parameter], TorchDistributionMixin]
)

# The matrices of layers that are linear in them, or are recurrent; no biases, no gains of normalisation layers.
_DEFAULT_WEIGHTS: dict[tuple[type[nn.Module], ...], str] = {
    (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag): "weight",
    (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d): "weight",
    (nn.MultiheadAttention,): "*_proj_weight",
    (nn.RNNBase, nn.RNNCellBase): "weight_*",
}


class BayesianModule(nn.Module):
    """An unmodified ``nn.Module`` whose chosen parameters are sample sites of a Pyro model.

    Calling it samples the chosen parameters, registers the others with Pyro as deterministic parameters, and
    calls ``net`` with both. The net itself is not changed: its own values of the chosen parameters stay
    where they are, and are where a guide of :mod:`pyro_vd.guides` starts. Buffers (BatchNorm) are updated
    as always; an update that is not finite is not kept.

    Args:
        net: any torch module.
        prior: a distribution for every weight, expanded to the shape of each parameter; or a mapping from
            parameter name or pattern (``"0.*"``, first match) to distributions; or a callable
            ``(parameter_name, parameter) -> distribution``.
        name: prefix of the sites, ``f"{name}.{parameter_name}"``.
        where: which parameters are random. None: the weights, no biases and no gains of normalisation: ``weight`` of
            Linear, Bilinear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Embedding and EmbeddingBag (without ``max_norm``),
            the projections of MultiheadAttention, ``weight_*`` of recurrent layers; of a masked
            (``torch.nn.utils.prune``) or parametrized weight the tensor that the mask or parametrization is applied
            to. A module type, or several: those weights of these types. A parameter name or pattern, or several. A
            callable ``(parameter_name, owning_module) -> bool``.

    Attributes:
        net: the module as given.
        weight_names: names of the random parameters, in parameter order; tied ones once.

    Raises:
        ValueError: no parameter is chosen; a name or pattern that matches nothing; a parameter without a prior;
            data on another device; use inside a plate.
        TypeError: a chosen parameter that is not of floating point.

    Example:
        >>> bnn = BayesianModule(nn.Linear(3, 2), prior=pyro.distributions.Normal(0.0, 1.0))
        >>> bnn.weight_names, bnn(torch.ones(5, 3)).shape
        (('weight',), torch.Size([5, 2]))
    """

    def __init__(self, net: nn.Module, prior: Prior, name: str = "net", where: Where = None):
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"BayesianModule: expected net to be a torch.nn.Module, got {type(net).__name__}")
        if not isinstance(name, str) or not name:
            raise TypeError(f"BayesianModule: expected name to be text, got {shown(name)}; write name='net'")
        self.net = net
        self.name = name
        self.register_load_state_dict_pre_hook(check_finite_state)
        parameters = dict(net.named_parameters())
        self.weight_names = tuple(_chosen(net, parameters, where))
        self.priors = {weight: _prior_for(prior, weight, parameters[weight]) for weight in self.weight_names}
        if isinstance(prior, Mapping):
            unmatched = [key for key in prior if not fnmatch.filter(self.weight_names, key)]
            if unmatched:
                raise ValueError(
                    f"prior: expected names or patterns of the random parameters {list(self.weight_names)}, got "
                    f"{unmatched}, which match none; correct or remove them, or make more parameters random with where="
                )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parameters = dict(self.net.named_parameters())
        self._check_devices(parameters, args, kwargs)
        values = {}
        for parameter_name, parameter in parameters.items():
            if parameter_name in self.priors:
                values[parameter_name] = self._sample(parameter_name, parameter)
            elif parameter.requires_grad:
                full_name = f"{self.name}.{parameter_name}"
                adopt_stored_value(full_name, parameter)
                values[parameter_name] = pyro.param(full_name, parameter)
        # Copies of the buffers go in: their update is judged before it is kept, and autograd may hold what went in.
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()} if self.net.training else {}
        with data_explained(f"BayesianModule {self.name!r}", args, kwargs, parameters.values()):
            output = functional_call(self.net, {**values, **buffers}, args, kwargs)
        self._keep_finite(buffers)
        return output

    def site(self, parameter_name: str) -> str:
        """The sample site of a random parameter."""
        return f"{self.name}.{parameter_name}"

    def sample_weights(self) -> dict[str, Tensor]:
        """Sample every random parameter, by its name in the net, without calling the net."""
        parameters = dict(self.net.named_parameters())
        return {name: self._sample(name, parameters[name]) for name in self.weight_names}

    def _sample(self, parameter_name: str, parameter: nn.Parameter) -> Tensor:
        site = self.site(parameter_name)
        prior = placed_like(self.priors[parameter_name], parameter).expand(parameter.shape).to_event(parameter.dim())
        infer: Any = {"net_parameter": parameter}  # where a guide starts
        value = pyro.sample(site, prior, infer=infer)
        if value.shape != parameter.shape:
            raise ValueError(
                f"site {site!r}: expected a weight of shape {tuple(parameter.shape)}, got {tuple(value.shape)}: the "
                "net was called inside a plate (or with vectorize_particles=True), which repeats its weights and "
                "scales its KL; call it before the plate, and put only the likelihood inside"
            )
        return value

    @torch.no_grad()
    def _keep_finite(self, updated: dict[str, Tensor]) -> None:
        """Take over updated buffers, all or none, without a host synchronisation."""
        floating = [torch.isfinite(buffer).all() for buffer in updated.values() if buffer.is_floating_point()]
        for name, buffer in self.net.named_buffers() if updated else ():
            new = updated[name]
            buffer.copy_(torch.where(torch.stack(floating).all(), new, buffer) if floating else new)

    def _check_devices(self, parameters: dict[str, nn.Parameter], args: tuple, kwargs: dict) -> None:
        devices = {parameter.device for parameter in parameters.values()}
        for leaf in tree_leaves((args, kwargs)):
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
        ValueError: unless ``1 <= batch_size <= dataset_size``.

    Example:
        >>> with data_plate(60000, 100) as index:
        ...     len(index)
        100
    """
    dataset_size = check_count("dataset_size", dataset_size, owner="data_plate")
    batch_size = check_count("batch_size", batch_size, owner="data_plate")
    if dim is not None and check_count("dim", dim, owner="data_plate") >= 0:
        raise ValueError(f"data_plate: expected dim to be negative, counted from the right, got {dim}; write dim=-1")
    if not isinstance(name, str):
        raise TypeError(f"data_plate: expected name to be text, got {shown(name)}; write name='data'")
    if not 1 <= batch_size <= dataset_size:
        raise ValueError(
            f"data_plate: expected 1 <= batch_size <= dataset_size, got batch_size={batch_size} and "
            f"dataset_size={dataset_size}; dataset_size is the number of training examples (to predict on more than "
            "those at once, pass batch_size= to posterior_predictive)"
        )
    return pyro.plate(name, dataset_size, dim=dim, subsample=torch.arange(batch_size))


def _chosen(net: nn.Module, parameters: Mapping[str, nn.Parameter], where: Where) -> list[str]:
    owners = {name: net.get_submodule(name.rpartition(".")[0]) for name in parameters}
    if where is None:
        chosen = [name for name in parameters if _is_weight(net, name)]
        return _checked(chosen, parameters)
    several: list[Any] = list(where) if isinstance(where, (tuple, list)) else [where]
    if several and all(isinstance(one, type) for one in several):
        types = tuple(several)
        chosen = [n for n in parameters if _is_weight(net, n, types)]
    elif several and all(isinstance(one, str) for one in several):
        unmatched = [pattern for pattern in several if not fnmatch.filter(parameters, pattern)]
        if unmatched:
            raise ValueError(f"where: expected parameter names or patterns of {list(parameters)}, got {unmatched}")
        chosen = [n for n in parameters if any(fnmatch.fnmatchcase(n, pattern) for pattern in several)]
    elif len(several) == 1 and callable(several[0]):
        chosen = [n for n in parameters if several[0](n, owners[n])]
    else:
        raise TypeError(f"where: expected module types, parameter names or one callable, got {where!r}")
    return _checked(chosen, parameters)


def _is_weight(net: nn.Module, parameter_name: str, types: tuple[type, ...] = (nn.Module,)) -> bool:
    """Whether a parameter is the weight of a layer of the ``types``."""
    path, _, name = parameter_name.rpartition(".")
    parent, _, last = path.rpartition(".")
    if parent.rpartition(".")[2] == "parametrizations" or parent == "parametrizations":
        # torch.nn.utils.parametrize: the layer holds a list in the place of its weight. The direction that weight_norm
        # makes of it, "original1", is divided by its norm: no linear map.
        path, name = parent.rpartition(".")[0], last if name == "original" else name
    name = name.removesuffix("_orig")  # torch.nn.utils.prune
    layer = net.get_submodule(path)
    if not isinstance(layer, types) or getattr(layer, "max_norm", None) is not None:
        return False
    known = [pattern for kinds, pattern in _DEFAULT_WEIGHTS.items() if isinstance(layer, kinds)]
    if not known and types != (nn.Module,):
        known = ["weight"]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in known)


def _checked(chosen: list[str], parameters: Mapping[str, nn.Parameter]) -> list[str]:
    if not chosen:
        raise ValueError(
            f"where: expected at least one parameter to be random, got none of {list(parameters)}; choose with "
            "where=torch.nn.Linear, where='0.weight' or where=lambda name, module: ..."
        )
    for name in chosen:
        if not parameters[name].is_floating_point():
            raise TypeError(
                f"where: expected random parameters of floating point, got {name!r} of {parameters[name].dtype}; leave "
                "it out of where=, or write .float()"
            )
    return chosen


def _prior_for(prior: Prior, name: str, parameter: nn.Parameter) -> TorchDistributionMixin:
    if isinstance(prior, Mapping):
        wrong = [key for key in prior if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"prior: expected names or patterns for keys, got {shown(wrong[0])}; write '0.weight'")
        found = next((p for pattern, p in prior.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if found is None:
            raise ValueError(f"prior: expected a prior for parameter {name!r}, got priors for {list(prior)} only")
    elif isinstance(prior, TorchDistributionMixin):
        found = prior
    elif isinstance(prior, type) or not callable(prior):
        raise TypeError(
            f"prior: expected a Pyro distribution, a mapping of names to them or a function, got {shown(prior)}; write "
            "pyro_vd.ImproperLogUniform() or pyro.distributions.Normal(0.0, 1.0)"
        )
    else:
        found = prior(name, parameter)
    if not isinstance(found, TorchDistributionMixin):
        raise TypeError(
            f"prior: expected a Pyro distribution for parameter {name!r}, got {type(found).__name__}; write "
            "pyro.distributions.Normal(0.0, 1.0)"
        )
    shape = tuple(parameter.shape)
    if found.event_shape:
        raise ValueError(
            f"prior: expected a distribution of single weights for parameter {name!r}, got one with events of shape "
            f"{tuple(found.event_shape)}; leave out to_event, which is added"
        )
    try:
        found.expand(parameter.shape)
    except (RuntimeError, ValueError):
        raise ValueError(
            f"prior: expected a distribution that expands to the shape {shape} of parameter {name!r}, got one of shape "
            f"{tuple(found.batch_shape)}; write one for all weights, or sizes that broadcast"
        ) from None
    return found
