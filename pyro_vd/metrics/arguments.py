"""What a metric is given, as tensors of PyTorch on the CPU: predictions of either backend, arrays of any library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vd.common.examples import is_array
from pyro_vd.common.inference_data import as_numpy
from pyro_vd.common.options import shown
from pyro_vd.predict import Predictive
from pyro_vd.predict.stacking import take_apart


def is_predictive(value: Any) -> bool:
    """Whether a value is a ``Predictive``, of this backend or of NumPyro."""
    return hasattr(value, "draws") and hasattr(value, "log_likelihood")


def predictive(owner: str, value: Any) -> Any:
    """The ``Predictive``, or an error; a mask counts in no metric, so that one with hidden examples is refused."""
    if not is_predictive(value):
        raise TypeError(
            f"{owner}: expected a Predictive, got {shown(value)}; write predictive_distribution(model, guide, x)[site]"
        )
    if not math.prod(value.batch_shape):
        raise ValueError(f"{owner}: expected at least one example, got none at site {value.site!r}; predict some")
    draws = value.draws
    while draws is not None:
        mask = getattr(draws, "_mask", None)
        if mask is not None and not bool(tensor(owner, "mask", mask if is_array(mask) else np.asarray(mask)).all()):
            raise ValueError(
                f"{owner}: expected a likelihood without masked examples, got some at site {value.site!r}; predict "
                "those that are observed by themselves"
            )
        draws = getattr(draws, "base_dist", None)
    return value


def tensor(owner: str, name: str, value: Any) -> Tensor:
    """An array of torch, JAX or NumPy as a tensor on the CPU, without a gradient."""
    if not isinstance(value, Tensor):
        if not is_array(value):
            raise TypeError(f"{owner}: expected {name} to be an array, got {shown(value)}; write torch.tensor(...)")
        value = torch.from_numpy(as_numpy(value).copy())
    unsigned = value.dtype in (torch.uint16, torch.uint32, torch.uint64)  # of which torch knows few operations
    return (value.long() if unsigned else value).detach().cpu()


def like(prediction: Any, value: Tensor) -> Any:
    """A tensor as the backend of a ``Predictive`` takes it."""
    if not isinstance(prediction, Predictive):
        return value.numpy()
    return value.to(take_apart(prediction.draws)[1][0].device)


def probabilities(owner: str, prediction: Any) -> Tensor:
    """Shape (*batch, classes), in float64. One axis, or a Bernoulli: of two classes that of the second alone."""
    if is_predictive(prediction):
        probs = tensor(owner, "probs", predictive(owner, prediction).probs)
        is_binary = "Bernoulli" in type(prediction._elements).__name__
    else:
        probs = tensor(owner, "prediction", prediction)
        is_binary = probs.dim() == 1
    if not probs.is_floating_point() or not probs.numel():
        raise ValueError(
            f"{owner}: expected probabilities of shape (examples, classes), at least one, got {shown(probs)}; write "
            "logits.softmax(-1)"
        )
    probs = torch.stack([1 - probs, probs], -1).double() if is_binary else probs.double()
    if not (bool((probs >= 0).all()) and bool(((probs.sum(-1) - 1).abs() < 1e-3).all())):  # NaN is neither
        raise ValueError(
            f"{owner}: expected probabilities that are not negative and sum to 1, got rows that sum to "
            f"{probs.sum(-1).min():g} to {probs.sum(-1).max():g}, least value {probs.min():g}; write logits.softmax(-1)"
        )
    # Where one is above 1 torchmetrics takes all for logits.
    return (probs / probs.sum(-1, keepdim=True)).clamp(0.0, 1.0)


def classes(owner: str, prediction: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Probabilities, shape (examples, classes), in float64, and labels, shape (examples,)."""
    probs, targets = probabilities(owner, prediction), tensor(owner, "labels", labels)
    if is_predictive(prediction) and "OneHot" in type(prediction._elements).__name__:
        targets = targets.long().argmax(-1) if targets.shape == probs.shape else targets
    if targets.shape != probs.shape[:-1]:
        raise ValueError(
            f"{owner}: expected labels of shape {tuple(probs.shape[:-1])}, one for each row of probabilities, got "
            f"{tuple(targets.shape)}; of draws take the mean over them first, of one-hot labels argmax(-1)"
        )
    probs, targets = probs.reshape(-1, probs.shape[-1]), targets.reshape(-1)
    whole = targets.long()
    if not bool((whole == targets).all()) or int(whole.min()) < 0 or int(whole.max()) >= probs.shape[-1]:
        raise ValueError(
            f"{owner}: expected labels from 0 to {probs.shape[-1] - 1}, got {targets.min().item():g} to "
            f"{targets.max().item():g}; number the classes from 0"
        )
    return probs, whole
