"""Which parameters of a net are random, and under which prior."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from pyro_vd.common.options import shown

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


def chosen_parameters(net: nn.Module, parameters: Mapping[str, nn.Parameter], where: Where) -> list[str]:
    """Names of the parameters that ``where`` of :class:`pyro_vd.BayesianModule` makes random."""
    owners = {name: net.get_submodule(name.rpartition(".")[0]) for name in parameters}
    free = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if where is None:
        return _checked([name for name in free if _is_weight(net, name)], parameters)
    several: list[Any] = list(where) if isinstance(where, (tuple, list)) else [where]
    if several and all(isinstance(one, type) for one in several):
        types = tuple(several)
        chosen = [n for n in free if _is_weight(net, n, types)]
    elif several and all(isinstance(one, str) for one in several):
        unmatched = [pattern for pattern in several if not fnmatch.filter(parameters, pattern)]
        if unmatched:
            raise ValueError(f"where: expected parameter names or patterns of {list(parameters)}, got {unmatched}")
        named = {n for n in parameters if n in several}
        chosen = [
            n for n in parameters if n in named or (n in free and any(fnmatch.fnmatchcase(n, p) for p in several))
        ]
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
        frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
        because = f", of which {frozen} are frozen (requires_grad=False)" if frozen else ""
        raise ValueError(
            f"where: expected at least one parameter to be random, got none of {list(parameters)}{because}; choose "
            "with where=torch.nn.Linear, where='0.weight' or where=lambda name, module: ..."
        )
    for name in chosen:
        if not parameters[name].is_floating_point():
            raise TypeError(
                f"where: expected random parameters of floating point, got {name!r} of {parameters[name].dtype}; leave "
                "it out of where=, or write .float()"
            )
    return chosen


def prior_for(prior: Prior, name: str, parameter: nn.Parameter) -> TorchDistributionMixin:
    """The prior of one parameter."""
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
