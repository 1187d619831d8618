"""Checks of models, guides and their arguments: not callable, data of another library or type, not finite."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide.guides import AutoGuide
from torch import Tensor, nn

from pyro_vd._pyro import innermost
from pyro_vd._torch import is_under_torch_compile, tree_leaves
from pyro_vd.common.options import check_callable, shown

# Errors of PyTorch, Pyro and Python that data of the wrong kind run into.
FAILURES = (TypeError, AttributeError, RuntimeError, ValueError, IndexError, KeyError)
# Types that PyTorch calls by other names in some of its errors.
_IN_C = {"Byte": "unsigned char", "Char": "signed char", "ComplexFloat": "complex<float>"}

_A_MODEL = "a Pyro model, a function or module", "write def model(x, y=None): ... , or BayesianModule(...)"
_A_GUIDE = "a Pyro guide, a function or module", "write AutoSparseVD(model), or def guide(x, y=None): ..."


class _WrongData(TypeError):
    """Data that a model cannot take, found after it failed on them."""


def check_model(model: Any) -> None:
    """TypeError unless the model is a function or module, and no automatic guide, in handlers or not."""
    check_callable("model", model, *_A_MODEL)
    if is_under_torch_compile(model):
        raise _compiled()
    if isinstance(own := innermost(model), AutoGuide):
        raise _guide_in_place_of_model(own)


def _compiled() -> TypeError:
    return TypeError(
        "expected a model, a guide and a loss that are not under torch.compile, which cannot follow pyro.sample; write "
        "pyro_vd.CompiledSVI(model, guide, optim, loss), or pyro_vd.compile_loss(loss), which compile it as a "
        "whole; a net within BayesianModule may be under torch.compile"
    )


def _guide_in_place_of_model(guide: AutoGuide) -> TypeError:
    return TypeError(
        f"model: expected a Pyro model, got the guide {type(guide).__name__}; write the model in its place, before the "
        "guide: AutoSparseVD(model), SVI(model, guide, ...)"
    )


def check_instance_given(kind: type, first: Any) -> None:
    """TypeError where the class of a loss is called with a model, as ``SVI`` calls what it is given as its loss."""
    if callable(first):
        raise TypeError(
            f"loss: expected an ELBO such as {kind.__name__}(), got the class {kind.__name__}, called with a model; "
            f"write SVI(model, guide, optim, {kind.__name__}()), or {kind.__name__}()(model, guide)"
        )


def check_programs(model: Any, guide: Any) -> None:
    """TypeError unless model and guide are functions or modules, each in its place."""
    check_callable("model", model, *_A_MODEL)
    if isinstance(model, AutoGuide):
        raise _guide_in_place_of_model(model)
    check_callable("guide", guide, *_A_GUIDE)
    if is_under_torch_compile(model, guide):
        raise _compiled()


def check_guide(guide: Any) -> Any:
    """The guide, or TypeError unless it is a function or module."""
    return check_callable("guide", guide, *_A_GUIDE)


def check_whole(owner: str, tensors: Iterable[tuple[str, Any]]) -> None:
    """Raise for shards of tensors: a sum over one is that of a part of the numbers."""
    shards = [name for name, tensor in tensors if hasattr(tensor, "to_local")]
    if shards:
        raise ValueError(
            f"{owner}: expected parameters as a whole, got shards of {shards}, by FSDP2; call loss.unshard() on every "
            "process before, and loss.reshard() afterwards"
        )


@contextmanager
def data_explained(owner: str, args: tuple, kwargs: Mapping[str, Any], parameters: Collection[Tensor] = ()) -> Iterator:
    """A context in which an error that comes from data of another library, type or precision says so.

    Args:
        owner, args, kwargs, parameters: see :func:`explain`.
    """
    try:
        yield
    except FAILURES as error:
        explain(error, owner, args, kwargs, parameters)
        raise


def explain(
    error: Exception, owner: str, args: tuple, kwargs: Mapping[str, Any], parameters: Collection[Tensor] = ()
) -> None:
    """Raise an error that says so where one of the ``FAILURES`` is over data of another library, type or precision.

    Data that a model does take are never refused: they are looked at after it has failed.

    Args:
        error: what the call has failed with.
        owner: what was called.
        args, kwargs: what it was called with.
        parameters: its own, whose type floating point data must have.
    """
    if isinstance(error, _WrongData):
        return
    for name, argument in (*enumerate(args), *kwargs.items()):
        problem = _problem(argument, parameters, str(error))
        if problem is not None:
            got, instead = problem
            raise _WrongData(
                f"{owner}: expected data argument {name!r} to be a tensor that the model can take, got {got}; "
                f"{instead} ({type(error).__name__}: {str(error)[:200]})"
            ) from error


def check_finite_state(module: Any, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """A hook before ``load_state_dict``: an error for NaN, infinity or complex numbers; nothing is loaded then.

    An element of a buffer that is not finite as it is, in the mask of an attention say, may be so in the checkpoint.
    """
    buffers = dict(module.named_buffers(remove_duplicate=False))
    # Those of nn.Module: a loss notes that it has been asked for its own, for an optimizer.
    known = {**dict(nn.Module.named_parameters(module, remove_duplicate=False)), **buffers}
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(
                f"load_state_dict: expected the names of tensors for keys, got {shown(name)}; write '0.bias'"
            )
        own = known.get(name.removeprefix(prefix))
        if isinstance(value, Tensor) and value.is_complex() and own is not None and not own.is_complex():
            raise TypeError(
                f"load_state_dict: {name!r}: expected real numbers, got {value.dtype}, whose imaginary parts would be "
                "lost; load the checkpoint of this net"
            )
        if name.startswith(prefix) and isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta:
            own, where = buffers.get(name.removeprefix(prefix)), f"load_state_dict: {name!r}"
            check_finite_tensor(where, value, "load a checkpoint from before training failed", own)


@torch.no_grad()
def check_finite_tensor(where: str, value: Tensor, instead: str, own: Tensor | None = None) -> None:
    """ValueError for a tensor with NaN or infinity where its ``own`` value, if there is one, has none."""
    finite = torch.isfinite(value)
    if own is not None and own.shape == value.shape and not own.is_meta:
        finite = finite | ~torch.isfinite(own).to(finite.device)
    bad = int((~finite).sum())
    if bad:
        raise ValueError(f"{where}: expected finite values, got {bad} NaN or infinite of {value.numel()}; {instead}")


def finite_numbers(name: str, value: Any) -> np.ndarray:
    """A parameter as an array of finite real numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":  # the numbers of JAX that NumPy lacks, such as bfloat16, are of kind V
        try:
            array = None if array.dtype.kind in "cOSUbM" else array.astype(np.float32)
        except (TypeError, ValueError):
            array = None
    if array is None:
        raise TypeError(
            f"parameter {name!r}: expected an array of real numbers, got {shown(value)}; write "
            "svi.get_params(svi_state)"
        )
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"parameter {name!r}: expected finite values, got {bad} NaN or infinite of {array.size}; take parameters "
            "from before training failed"
        )
    return array


def _problem(argument: Any, parameters: Collection[Tensor], error: str) -> tuple[str, str] | None:
    """What is wrong with an argument on which a model failed, and what to write instead; None if nothing is found."""
    kind = type(argument)
    if isinstance(argument, torch.utils.data.DataLoader):
        return "a DataLoader", "write for x, y in loader: svi.step(x, y)"
    if isinstance(argument, torch.utils.data.Dataset):
        return f"a data set, {kind.__name__}", "write DataLoader(dataset, batch_size=100), and give a batch of it"
    if isinstance(argument, (list, tuple)) and argument and all(isinstance(v, (int, float, list)) for v in argument):
        return f"a {kind.__name__} of numbers", "write torch.tensor(x)"
    if isinstance(argument, (str, bytes)):
        return f"text, {shown(argument)}", "write a tensor, such as the numbers of its tokens"
    for leaf in tree_leaves(argument):
        library = type(leaf).__module__.partition(".")[0]
        if library == "numpy":
            return shown(leaf), "write torch.as_tensor(x)"
        if library in ("jax", "jaxlib"):
            return shown(leaf), "write torch.as_tensor(numpy.asarray(x))"
        if library in ("pandas", "polars", "tensorflow"):
            return f"{library}'s {type(leaf).__name__}", "write torch.as_tensor(x.to_numpy())"
        if isinstance(leaf, Tensor) and "'indices'" in error and leaf.dtype not in (torch.int64, torch.int32):
            return f"a tensor of {leaf.dtype}, which are no indices", "write x.long()"
        if isinstance(leaf, Tensor) and _is_over(leaf, error):
            own = next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), leaf.dtype)
            if leaf.dtype != own:
                return f"a tensor of {leaf.dtype}, parameters are of {own}", f"write x.to({own})"
    if argument is None or (kind not in (bool, int, float) and not isinstance(argument, Tensor) and not _has(argument)):
        return shown(argument), "write a tensor"
    return None


def _is_over(tensor: Tensor, error: str) -> bool:
    """Whether an error of PyTorch is over the type of a tensor: it names that, in one of the ways PyTorch does."""
    word = tensor.type().rpartition(".")[-1].removesuffix("Tensor")
    names = str(tensor.dtype), word, word.lower(), _IN_C.get(word, word)
    return "mixed dtype" in error or any(re.search(rf"\b{re.escape(name)}(?![A-Za-z0-9])", error) for name in names)


def _has(argument: Any) -> bool:
    """Whether an argument holds a tensor."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(argument))
