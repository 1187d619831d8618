"""Checks of the options of a prediction, and the choice of its sites."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Any

from pyro_vd.common.examples import batch_bounds, number_of_examples, take_examples
from pyro_vd.common.options import as_number, check_choice, check_count, check_names, shown
from pyro_vd.common.shapes import check_sizes

MODES = ("weights", "local", "mean")
SAMPLES = 4000  # for quantiles of a likelihood without a cdf
MOST_STEPS = 200  # of a bisection, each of which halves the bracket; float64 needs fewer
MOST_OUTCOMES = 4096  # of a support that is enumerated
# Places in (-1, 1) and weights of the Gauss-Legendre rule of four points.
LEGENDRE = (
    (-0.8611363115940526, 0.3478548451374538),
    (-0.3399810435848563, 0.6521451548625461),
    (0.3399810435848563, 0.6521451548625461),
    (0.8611363115940526, 0.3478548451374538),
)


def check_prediction(modes: Collection[str], mode: str, num_samples: int, batch_size: int | None) -> None:
    """Raise ValueError for an unknown mode, and for fewer than one draw or example."""
    check_choice("mode", mode, modes)
    if check_count("num_samples", num_samples) < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
    if batch_size is not None and check_count("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")


def check_on_unknown(mode: str, on_unknown: str) -> None:
    """Raise ValueError for an unknown choice, and for one that the mode does not use."""
    if mode != "moments" and on_unknown != "error":
        raise ValueError(
            f"on_unknown: expected mode='moments', the only one it is for, got mode={mode!r}; leave it out"
        )
    if on_unknown not in ("error", "sample"):
        raise ValueError(f"on_unknown: expected 'error' or 'sample', got {on_unknown!r}")


def check_probability(probability: Any) -> None:
    """Raise TypeError for a value that is not a number, ValueError unless it lies between 0 and 1."""
    try:
        inside = 0 < float(probability) < 1
        number = not isinstance(probability, str)
    except (TypeError, ValueError, RuntimeError):
        inside = number = False
    if not number:
        raise TypeError(f"probability: expected a number between 0 and 1, got {probability!r}; write 0.9")
    if not inside:
        raise ValueError(f"probability: expected a number between 0 and 1, got {probability!r}")


def check_quantiles(quantiles: Any) -> list[float]:
    """The probabilities of one quantile or several, or ValueError unless they are numbers between 0 and 1."""
    several = (
        list(quantiles)
        if getattr(quantiles, "ndim", None) == 1 or isinstance(quantiles, (list, tuple))
        else [quantiles]
    )
    numbers = [as_number(one) for one in several]
    found = [number for number in numbers if number is not None and 0 < number < 1]
    if len(found) < len(numbers) or not numbers:
        raise ValueError(
            f"quantiles: expected one number or several between 0 and 1, got {shown(quantiles)}; write [0.05, 0.95]"
        )
    return found


def check_shape(site: str, value: Any, shape: Iterable[int], sampled: bool = True) -> None:
    """Raise ValueError unless a value of a site has its shape, with or without samples before it."""
    shape, got = tuple(shape), tuple(value.shape)
    if got[len(got) - len(shape) :] != shape or (not sampled and got != shape):
        before = ", any sample shape before it" if sampled else ""
        raise ValueError(f"site {site!r}: expected a value of shape {shape}{before}, got {got}")


def several_draws(site: str, sample_shape: Any) -> tuple[int, ...]:
    """The sample shape of draws from a site, given as a number of them or as a tuple of sizes."""
    is_number = not hasattr(sample_shape, "__iter__") or getattr(sample_shape, "ndim", None) == 0
    sizes = (sample_shape,) if is_number else sample_shape
    return check_sizes(f"site {site!r}", "sample_shape", sizes, "10 or (10,)")


def pieces_of(args: tuple, kwargs: dict, batch_size: int | None) -> tuple[list[tuple[tuple, dict]], list[int]]:
    """The arguments in pieces of ``batch_size`` examples, and the number of examples of each; 0 for one uncut piece."""
    if batch_size is None:
        return [(args, kwargs)], [0]
    bounds = batch_bounds(number_of_examples(args, kwargs), batch_size)
    pieces = [take_examples(args, kwargs, slice(*ends)) for ends in pairwise(bounds)]
    return pieces, [end - start for start, end in pairwise(bounds)]


def wanted_sites(sites: Collection[str], predicted: Iterable[str], guided: Iterable[str]) -> list[str]:
    """The sites to keep: all that are predicted, or the named ones.

    Raises:
        ValueError: a name that is not predicted; nothing that is.
    """
    predicted, guided = list(predicted), list(guided)
    if not predicted:
        raise ValueError(
            "expected a model with a sample site that the guide does not sample, whose likelihood is the prediction, "
            f"got none: the guide samples {guided}; add a site with obs=y to the model, or leave it out of the guide"
        )
    names = [sites] if isinstance(sites, str) else list(check_names("sites", sites))
    unknown = [name for name in names if name not in predicted]
    if unknown:
        hint = " (sites of the guide: posterior_predictive returns their draws)" if set(unknown) & set(guided) else ""
        raise ValueError(f"sites: expected names of {predicted}, got {unknown}{hint}")
    return names or predicted


def check_cut(guide_sites_in_plates: list[str], pieces: int, caller: str) -> None:
    """Raise ValueError where a guide that has a value for every example is asked for pieces of them."""
    if guide_sites_in_plates and pieces > 1:
        raise ValueError(
            f"batch_size: expected a guide without sites inside a plate, got {guide_sites_in_plates}, which cannot be "
            f"cut; call {caller} once for each piece of the data instead"
        )
