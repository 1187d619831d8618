"""Parameters of a guide and its net from Pyro to NumPyro and back, as NumPy arrays: layouts and names converted.

    layer     torch                    flax                     equinox
    Linear    (out, in)                (in, out)                (out, in)
    Conv      (out, in, *spatial)      (*spatial, in, out)      (out, in, *spatial), bias (out, 1, ...)

A Linear after a convolution sees its channels first in torch and equinox, last in flax: its input units are reordered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vd.arguments import finite_numbers
from pyro_vd.common.options import check_choice, check_known, shown
from pyro_vd.module import BayesianModule

LIBRARIES = ("linen", "nnx", "equinox")

_PREFIX = "auto"  # of the parameters of a NumPyro guide
_PER_UNIT = ("unit_locs", "unit_log_sigma2s")
_PER_FACTOR = ("factors",)
_KNOWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class _Layer:
    """A Linear or Conv layer: its path in the net, the shape of its weight, and the channels a flatten left it."""

    path: str
    shape: tuple[int, ...]
    channels: int | None


def to_numpyro(guide: Any, library: str = "linen", layers: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The trained parameters of a Pyro guide, and of the net of its model, as NumPyro has them.

    For nets of Linear and Conv layers. Start NumPyro from them with ``svi.init(rng_key, x, init_params=...)``; write
    them to a file that either side reads with ``safetensors.numpy.save_file(to_numpyro(guide), path)``.

    Args:
        guide: a guide of :mod:`pyro_vd.guides`, or :func:`pyro_vd.guides.mixed_guide` of several, called once.
        library: of the other net: "linen", "nnx" or "equinox".
        layers: path of each layer in the torch net to its path in the other, ``{"0": "Dense_0"}``. Without an
            entry a path is the same but for the numbers of a Sequential: ``layers_0`` in linen, ``layers.0`` in
            nnx and equinox.

    Returns:
        ``{name: array}``, e.g. ``auto.locs.net.layers_0.kernel`` and ``net.layers_0.bias``.

    Raises:
        ValueError: a guide that was not called; a parameter of another layer than Linear or Conv.

    Example:
        >>> from pyro_vd import BayesianModule, ImproperLogUniform, guides
        >>> guide = guides.AutoSparseVD(BayesianModule(torch.nn.Linear(3, 2), ImproperLogUniform()))
        >>> _ = guide(torch.ones(1, 3))
        >>> {name: array.shape for name, array in to_numpyro(guide).items()}  # doctest: +NORMALIZE_WHITESPACE
        {'auto.locs.net.kernel': (3, 2), 'auto.log_sigma2s.net.kernel': (3, 2), 'net.bias': (2,)}

    See also:
        :func:`pyro_vd.from_numpyro`.
    """
    check_choice("library", library, LIBRARIES)
    entries = _entries(guide)
    _check_layers(layers, entries)
    names = [_name(entry, library, layers or {}) for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"layers: expected a path of its own for every layer, got {twice} twice; write another path")
    return {
        name: _there(entry, entry.tensor.detach().cpu().numpy(), library).copy()
        for name, entry in zip(names, entries, strict=True)
    }


def from_numpyro(params: Mapping[str, Any], guide: Any, layers: Mapping[str, str] | None = None) -> None:
    """Set the parameters of a Pyro guide, and of the net of its model, to those of a NumPyro one.

    Args:
        params: as ``svi.get_params`` returns them, or as ``safetensors.numpy.load_file`` reads them.
        guide: a guide of :mod:`pyro_vd.guides` of the same family, called once; changed in place.
        layers: see :func:`to_numpyro`.

    Raises:
        ValueError: a parameter of the guide that ``params`` lacks, or has in another shape; nothing is changed then.

    Example:
        >>> from pyro_vd import BayesianModule, ImproperLogUniform, guides
        >>> guide = guides.AutoSparseVD(BayesianModule(torch.nn.Linear(3, 2), ImproperLogUniform()))
        >>> _ = guide(torch.ones(1, 3))
        >>> params = to_numpyro(guide)
        >>> from_numpyro({name: array + 1 for name, array in params.items()}, guide)
        >>> bool((to_numpyro(guide)["net.bias"] == params["net.bias"] + 1).all())
        True

    See also:
        :func:`pyro_vd.to_numpyro`.
    """
    if not isinstance(params, Mapping):
        raise TypeError(
            f"params: expected a mapping from names to arrays, got {shown(params)}; write svi.get_params(svi_state)"
        )
    entries = _entries(guide)
    _check_layers(layers, entries)
    names = {library: [_name(entry, library, layers or {}) for entry in entries] for library in LIBRARIES}
    library = next((library for library in LIBRARIES if set(names[library]) <= set(params)), None)
    if library is None:
        missing = {one: sorted(set(names[one]) - set(params)) for one in LIBRARIES}
        closest = min(LIBRARIES, key=lambda one: len(missing[one]))
        raise ValueError(
            f"from_numpyro: expected the parameters of this {type(guide).__name__}, got none named "
            f"{missing[closest]} among {sorted(params)}; give layers= where the layers have other names"
        )
    values = []
    for entry, name in zip(entries, names[library], strict=True):
        value = _back(entry, finite_numbers(name, params[name]), library, name)
        values.append(torch.from_numpy(value.copy()).to(entry.tensor))
    with torch.no_grad():
        for entry, value in zip(entries, values, strict=True):
            entry.tensor.copy_(value)


def _check_layers(layers: Any, entries: list[_Entry]) -> None:
    """Raise for a value that is not a mapping, or that names an unknown layer."""
    if layers is None:
        return
    if not isinstance(layers, Mapping) or not all(isinstance(one, str) for pair in layers.items() for one in pair):
        raise TypeError(f"layers: expected a mapping from path to path, got {shown(layers)}; write {{'0': 'Dense_0'}}")
    paths = dict.fromkeys(entry.layer.path for entry in entries)
    check_known("layers", layers, paths, "layers")


@dataclass(frozen=True)
class _Entry:
    """One parameter: of the guide, with its quantity, or of the net."""

    tensor: Tensor
    quantity: str | None
    root: str  # name of the BayesianModule
    leaf: str  # weight or bias
    layer: _Layer
    unit_dim: int | None = None

    @property
    def where(self) -> str:
        """In words, for errors."""
        return f"{self.quantity or 'the value'} of {'.'.join(filter(None, (self.root, self.layer.path, self.leaf)))}"


def _entries(guide: Any) -> list[_Entry]:
    parts = list(guide) if isinstance(guide, AutoGuideList) else [guide]
    if not parts or not all(isinstance(part, AutoGuide) and hasattr(type(part), "weight_sites") for part in parts):
        raise TypeError(
            f"guide: expected a guide of pyro_vd.guides, got {shown(guide)}; write AutoSparseVD(model), and give that"
        )
    if any(getattr(part, "prototype_trace", None) is None for part in parts):
        raise ValueError(f"expected a {type(guide).__name__} that was called once; write guide(*args) first")
    program = parts[0].prototype_trace.nodes["_INPUT"]  # type: ignore
    nets: dict[str, nn.Module] = {}

    def note(module: nn.Module, args: Any) -> None:
        if isinstance(module, BayesianModule):
            nets[module.name] = module.net

    hook = register_module_forward_pre_hook(note)
    try:
        run: Any = poutine.block(poutine.trace(parts[0].model).get_trace)(*program["args"], **program["kwargs"])  # type: ignore
    finally:
        hook.remove()
    sites = [name for part in parts for name in part.weight_sites]  # type: ignore
    roots = {name.partition(".")[0] for name in sites}
    shapes = {  # of all parameters of the nets, in their order
        name: tuple(node["value"].shape)
        for name, node in run.nodes.items()
        if node["type"] in ("sample", "param") and name.partition(".")[0] in roots
    }
    layers = _layers(shapes, nets)
    entries = []
    for part in parts:
        named = {name: p for name, p in part.named_parameters() if name.partition(".")[2] in part.weight_sites}  # type: ignore
        if len(named) < len(list(part.named_parameters())):
            raise ValueError(
                f"expected a guide of weights alone, got {type(part).__name__} with the latent sites "
                f"{sorted(set(part._others))} besides"  # type: ignore
            )
        for name, parameter in named.items():
            quantity, _, site = name.partition(".")
            entries.append(_entry(parameter, quantity, site, layers, getattr(part, "unit_dim", None)))
    deterministic = [name for name in shapes if name not in sites]
    store = pyro.get_param_store()
    return entries + [_entry(store[name].unconstrained(), None, name, layers) for name in deterministic]  # type: ignore


def _layers(shapes: Mapping[str, tuple[int, ...]], nets: Mapping[str, nn.Module]) -> dict[str, _Layer]:
    """The layers Linear and Conv; where the net is unknown, every layer with a weight of two dimensions or more."""
    layers: dict[str, _Layer] = {}
    channels: int | None = None
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        root, _, path = owner.partition(".")
        known = root not in nets or isinstance(nets[root].get_submodule(path), _KNOWN)
        if leaf != "weight" or len(shape) < 2 or not known:
            continue
        flat = channels if len(shape) == 2 else None
        if flat is not None and shape[1] % flat:
            raise ValueError(f"parameter {name!r}: expected inputs that are {flat} channels flattened, got {shape[1]}")
        layers[owner] = _Layer(path, shape, flat)
        channels = shape[0] if len(shape) > 2 else None
    return layers


def _entry(
    tensor: Tensor, quantity: str | None, name: str, layers: Mapping[str, _Layer], unit_dim: int | None = None
) -> _Entry:
    owner, _, leaf = name.rpartition(".")
    if owner not in layers or leaf not in ("weight", "bias"):
        raise ValueError(f"parameter {name!r}: expected weight or bias of a Linear or Conv layer, got another")
    return _Entry(tensor, quantity, owner.partition(".")[0], leaf, layers[owner], unit_dim)


def _name(entry: _Entry, library: str, layers: Mapping[str, str]) -> str:
    path = entry.layer.path
    if path in layers:
        path = layers[path]
    else:
        number = {"linen": "layers_{}", "nnx": "layers.{}", "equinox": "layers.{}"}[library]
        path = ".".join(number.format(part) if part.isdigit() else part for part in path.split("."))
    leaf = "kernel" if entry.leaf == "weight" and library != "equinox" else entry.leaf
    start = (_PREFIX, entry.quantity) if entry.quantity else ()
    return ".".join(part for part in (*start, entry.root, path, leaf) if part)


def _there(entry: _Entry, array: np.ndarray, library: str) -> np.ndarray:
    """An array of torch in the layout of ``library``."""
    if library == "equinox":
        spatial = len(entry.layer.shape) - 2
        return array.reshape(-1, *(1,) * spatial) if entry.leaf == "bias" and spatial else array
    for axis in _input_axes(entry, array):
        array = _swapped(array, axis, entry.layer.channels, first=True)
    lead = _lead(entry)
    return np.moveaxis(array, (lead, lead + 1), (-1, -2)) if _is_weight(entry, array) else array


def _back(entry: _Entry, array: np.ndarray, library: str, name: str) -> np.ndarray:
    """The reverse of :func:`_there`."""
    lead = _lead(entry)
    if library == "equinox":
        array = array.reshape(-1) if entry.leaf == "bias" else array
    elif _is_weight(entry, array):
        array = np.moveaxis(array, (-1, -2), (lead, lead + 1))
    if array.shape != tuple(entry.tensor.shape):
        raise ValueError(
            f"parameter {name!r}: expected the shape {tuple(entry.tensor.shape)} of {entry.where} in the layout of "
            f"torch, got {array.shape}"
        )
    if library != "equinox":
        for axis in _input_axes(entry, array):
            array = _swapped(array, axis, entry.layer.channels, first=False)
    return array


def _lead(entry: _Entry) -> int:
    return 1 if entry.quantity in _PER_FACTOR else 0


def _is_weight(entry: _Entry, array: np.ndarray) -> bool:
    """Whether an array has the dimensions of the weight of its layer, perhaps of size 1."""
    return entry.leaf == "weight" and array.ndim == len(entry.layer.shape) + _lead(entry)


def _input_axes(entry: _Entry, array: np.ndarray) -> Iterator[int]:
    """The axis of torch's layout that holds flattened channels, if any."""
    if entry.layer.channels is None or entry.leaf != "weight":
        return
    if _is_weight(entry, array) and array.shape[_lead(entry) + 1] > 1:
        yield _lead(entry) + 1
    elif entry.quantity in _PER_UNIT and entry.unit_dim in (1, -1):
        yield 0


def _swapped(array: np.ndarray, axis: int, channels: int | None, first: bool) -> np.ndarray:
    """Flattened input units with the channels last where they were first, or back."""
    assert channels is not None
    positions = array.shape[axis] // channels
    split = (channels, positions) if first else (positions, channels)
    parts = array.reshape(*array.shape[:axis], *split, *array.shape[axis + 1 :])
    return np.swapaxes(parts, axis, axis + 1).reshape(array.shape)
