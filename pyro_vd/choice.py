"""Which parameters of a torch net are random unless the user says otherwise, and why: by what its layers do."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from pyro_vd.common.choice import (
    LEAST_SHARE,
    as_where,
    check_prior_keys,
    layers_named,
    matching,
    prior_for,
)
from pyro_vd.common.reports import ModuleReport, ParameterRow
from pyro_vd.fixed import Fixed
from pyro_vd.priors import check_no_nan
from pyro_vd.reading import Reading, is_of_torch, kind_of

Where = Callable[[str, nn.Module], bool] | type | str | tuple | list | None
Prior = (
    TorchDistributionMixin
    | Mapping[str, TorchDistributionMixin]
    | Mapping[type, TorchDistributionMixin]
    | Mapping[str | type, TorchDistributionMixin]
    | Callable[[str, nn.Parameter], TorchDistributionMixin]
    | Callable[[str, nn.Parameter, nn.Module], TorchDistributionMixin]
)

# The matrices of layers of PyTorch that are linear in them, or are recurrent; no biases, no gains of normalisation.
LAYERS: dict[tuple[type[nn.Module], ...], str] = {
    (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag): "weight",
    (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d): "weight",
    (nn.MultiheadAttention,): "*_proj_weight",
    (nn.RNNBase, nn.RNNCellBase): "weight_*",
}
_HOLDERS = (nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Choice:
    """The random parameters of a net, in parameter order.

    Attributes:
        random: name -> why it is random.
        deterministic: name -> why it is not, of every other parameter.
        owners: name -> the layer that a parameter belongs to.
        rows: name -> the row that the code of the net keeps fixed, of random parameters that have one.
    """

    random: dict[str, str]
    deterministic: dict[str, str]
    owners: dict[str, nn.Module] = field(repr=False)
    rows: dict[str, int] = field(default_factory=dict)


def choose(net: nn.Module, where: Any, parameters: Mapping[str, nn.Parameter], name: str = "net") -> Choice:
    """The random parameters of a net.

    Args:
        net: the net.
        where: as in :class:`pyro_vd.BayesianModule`.
        parameters: those to choose from.
        name: that of the BayesianModule, for warnings.

    Raises:
        ValueError: none is chosen; a name or pattern that matches nothing.
        TypeError: a ``where`` of another type; a chosen parameter that is not of floating point.
    """
    layers = _Layers(net, parameters)
    frozen = {key for key, parameter in parameters.items() if not parameter.requires_grad}
    if where is None:
        random = {key: why for key, why in layers.weights.items() if key not in frozen}
        layers.say_what_is_left_out(random, name)
    else:
        raw = {key: net.get_submodule(key.rpartition(".")[0]) for key in parameters}
        random = matching(
            where, list(parameters), raw, lambda types: layers.weights_of(types) - frozen, frozen, "module"
        )
    _check(random, layers, frozen)
    reasons = {key: layers.why_not(key, where) for key in parameters if key not in random}
    owners = {key: layers.owner(key)[1] for key in parameters}
    return Choice(random, reasons, owners, layers.reading.padding.of_all(random, name))


def priors_of(
    prior: Prior, parameters: Mapping[str, nn.Parameter], choice: Choice
) -> dict[str, TorchDistributionMixin]:
    """The priors of the random parameters; see :func:`pyro_vd.common.choice.prior_for`.

    Raises:
        ValueError: a parameter without a prior; a key of a mapping that matches none; a prior of another shape; NaN.
        TypeError: not a distribution.
    """
    owners, kind = {name: choice.owners[name] for name in choice.random}, TorchDistributionMixin
    priors = {name: prior_for(prior, name, parameters[name], own, _is_layer, kind) for name, own in owners.items()}
    check_prior_keys(prior, owners, _is_layer)
    for name, one in priors.items():
        check_no_nan(f"prior of {name!r}", one)
    return priors


def report_of(
    net: nn.Module, why: Mapping[str, str], priors: Mapping[str, Any], fixed: Mapping[str, Fixed]
) -> ModuleReport:
    """The report of a net, as it is now.

    Args:
        net: the net.
        why: name of a parameter -> why it is random, or is not.
        priors: those of the random parameters.
        fixed: what layers keep fixed of those.
    """
    parameters = dict(net.named_parameters())
    layers = _Layers(net, parameters)
    rows = []
    for name, parameter in parameters.items():
        kind = "random" if name in priors else "deterministic" if parameter.requires_grad else "frozen"
        known = why.get(name, "of a BayesianModule inside, or made since")
        known = "frozen since: requires_grad=False" if kind == "frozen" and not known.startswith("frozen") else known
        prior = str(priors[name]) if name in priors else ""
        layer = kind_of(layers.owner(name)[1]).__name__
        held = int(fixed[name].mask.expand(parameter.shape).sum()) if name in fixed else 0
        rows.append(ParameterRow(name, layer, tuple(parameter.shape), kind, known, prior, held))
    return ModuleReport(tuple(rows))


def _is_layer(owner: Any, types: tuple[type, ...]) -> bool:
    return isinstance(owner, types)


class _Layers:
    """The layers of a net, and which of their parameters are weights."""

    def __init__(self, net: nn.Module, parameters: Mapping[str, nn.Parameter]):
        self.net, self.parameters = net, parameters

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.net)

    @cached_property
    def weights(self) -> dict[str, str]:
        """The weights of all layers, each with the reason in words."""
        found = {}
        for name, parameter in self.parameters.items():
            if not parameter.is_floating_point():
                continue
            _, layer, key = self.owner(name)
            operation = self.reading.used.get(name)
            if _is_known_weight(layer, key):
                if operation or not self._is_of_positions(layer):
                    found[name] = f"weight of {kind_of(layer).__name__}"
            elif operation is not None and parameter.dim() > 1 and getattr(layer, "max_norm", None) is None:
                found[name] = f"weight in {operation}"
        return found

    def weights_of(self, types: tuple[type, ...]) -> set[str]:
        """The weights of the layers of the ``types``; of a layer without known ones, what looks like a weight."""
        owned: dict[nn.Module, list[str]] = {}
        for name in self.parameters:
            if isinstance(self.owner(name)[1], types):
                owned.setdefault(self.owner(name)[1], []).append(name)
        chosen: set[str] = set()
        for layer, names in owned.items():
            if getattr(layer, "max_norm", None) is not None:
                continue
            keys = {name: self.owner(name)[2] for name in names}
            known = [name for name in names if _is_known_weight(layer, keys[name])]
            known = known or [name for name in names if name in self.weights]
            known = known or [name for name in names if keys[name] == "weight"]
            chosen.update(known or [name for name in names if self.parameters[name].dim() > 1])
        return chosen

    def owner(self, name: str) -> tuple[str, nn.Module, str]:
        """Path, layer and name in it of a parameter: of one masked, parametrized or in a list, where it is used."""
        path, _, key = name.rpartition(".")
        parent, _, last = path.rpartition(".")
        if parent.rpartition(".")[2] == "parametrizations":
            # torch.nn.utils.parametrize: the layer holds a list in the place of its weight; the direction of a weight
            # norm is "original1".
            path = parent.rpartition(".")[0]
            return path, self.net.get_submodule(path), last if key in ("original", "original1") else f"{last}.{key}"
        layer = self.net.get_submodule(path)
        while isinstance(layer, _HOLDERS) and path:
            path, _, last = path.rpartition(".")
            layer, key = self.net.get_submodule(path), f"{last}.{key}"
        for suffix, other in (("_orig", "_orig"), ("_v", "_g")):  # of masks, and of weight norms of the old style
            if key.endswith(suffix) and key.removesuffix(suffix) + other in layer._parameters:
                return path, layer, key.removesuffix(suffix)
        return path, layer, key

    def _is_of_positions(self, layer: nn.Module) -> bool:
        """Whether a layer is an embedding of positions: every look-up that the net's code makes is of those."""
        if not isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            return False
        if type(layer).forward not in (nn.Embedding.forward, nn.EmbeddingBag.forward):  # it has code of its own
            return layer not in self.reading.unread
        return all(self.reading.lookups.get(layer, [False]))

    def why_not(self, name: str, where: Any) -> str:
        """Why a parameter is not random."""
        parameter, (_, layer, key) = self.parameters[name], self.owner(name)
        if not parameter.requires_grad:
            return "frozen: requires_grad=False"
        if where is not None:
            return "not in where="
        if parameter.dim() < 2:
            return "a bias or a gain" if parameter.dim() else "a scalar"
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and key == "weight":
            return "an embedding of positions" if layer.max_norm is None else "rescaled in place: max_norm"
        if not parameter.is_floating_point():
            return f"of {parameter.dtype}, and weights are real"
        if layer in self.reading.unread:
            return f"the code of {kind_of(layer).__name__} has no source to read"
        if name in self.reading.met:
            return f"used with data in {self.reading.met[name]}, which is no operation of the table"
        if self._is_unread(name):
            return f"no code of {kind_of(layer).__name__} that can be read multiplies by it"
        return "not multiplied by data in an operation of the table"

    def _is_unread(self, name: str) -> bool:
        """Whether a parameter is not real, or its use was not found or is not known: nothing says it is no weight."""
        unseen = (name in self.reading.unseen or name in self.reading.met) and not is_of_torch(
            kind_of(self.owner(name)[1])
        )
        return unseen or not self.parameters[name].is_floating_point()

    def say_what_is_left_out(self, random: Mapping[str, str], name: str) -> None:
        """Warn where most of the matrices are deterministic, or some belong to layers of an unknown kind."""
        matrices = {key: one.numel() for key, one in self.parameters.items() if one.requires_grad and one.dim() > 1}
        left_out = [key for key in matrices if key not in random]
        share = sum(matrices[key] for key in random if key in matrices) / max(sum(matrices.values()), 1)
        unread = [key for key in left_out if self.owner(key)[1] in self.reading.unread or self._is_unread(key)]
        if not random or not left_out or (share >= LEAST_SHARE and not unread):
            return
        named = left_out if share < LEAST_SHARE else unread
        real = [key for key in named if self.parameters[key].is_floating_point()]
        others = [key for key in self.parameters if key not in random and key not in real]
        warnings.warn(
            f"BayesianModule {name!r}: expected the matrices of the net to be random, got {share:.1%} of their "
            f"elements; deterministic are those of {layers_named(self.by_class(named))} "
            f"({', '.join(dict.fromkeys(self.why_not(key, None) for key in named))}); write "
            f"where={as_where([*random, *real], others)} to make {'them' if real == named else 'the real ones'} random "
            f"too, where={as_where(random, [*others, *real])} for this choice without the warning. print(bnn.report()) "
            "shows every parameter",
            stacklevel=4,
        )

    def by_class(self, names: Any) -> dict[str, list[str]]:
        """Class of a layer -> paths of such layers."""
        layers: dict[str, dict[str, None]] = {}
        for name in names:
            path, layer, _ = self.owner(name)
            layers.setdefault(kind_of(layer).__name__, {}).setdefault(path)
        return {kind: list(paths) for kind, paths in layers.items()}


def _is_known_weight(layer: nn.Module, key: str) -> bool:
    if getattr(layer, "max_norm", None) is not None:
        return False
    known = [pattern for kinds, pattern in LAYERS.items() if isinstance(layer, kinds)]
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in known) and not key.endswith("_g")


def _check(random: Mapping[str, str], layers: _Layers, frozen: set[str]) -> None:
    parameters = layers.parameters
    if not random:
        because = f", of which {sorted(frozen)} are frozen (requires_grad=False)" if frozen else ""
        matrices = [
            name for name, parameter in parameters.items()
            if parameter.dim() > 1 and parameter.is_floating_point() and name not in frozen
            and getattr(layers.owner(name)[1], "max_norm", None) is None
        ]  # fmt: skip
        advice = "none of them is a matrix that a linear operation uses; name what is to be random with where="
        if matrices:
            kind = kind_of(layers.owner(matrices[0])[1])
            advice = (
                f"the matrices are those of {layers_named(layers.by_class(matrices))}; choose with "
                f"where={as_where(matrices, [name for name in parameters if name not in matrices])}, "
                f"where={'torch.nn.' if is_of_torch(kind) else ''}{kind.__name__} or where=lambda name, module: ..."
            )
        raise ValueError(
            f"where: expected at least one parameter to be random, got none of {list(parameters)}{because}; {advice}"
        )
    for name in random:
        if not parameters[name].is_floating_point():
            raise TypeError(
                f"where: expected random parameters of floating point, got {name!r} of {parameters[name].dtype}; leave "
                "it out of where=, or write .float()"
            )
