"""Draws of what a net makes of one example, without draws of its weights.

A weight that enters one output, ``y = sum over i of w_i x_i``, is seen by the rest of the model in that output alone: a
draw of y given x is as good as one of w. Where a layer sees one row of inputs, all of its weights are such, and local
reparameterization is exact. The number of random numbers is then that of the outputs, not that of the weights.
"""

from __future__ import annotations

from collections.abc import Callable

from pyro_vd.common.examples import number_of_examples
from pyro_vd.handlers import EstimatorMessenger


def guide_of_one_row(guide: Callable, mode: str, args: tuple, kwargs: dict) -> Callable | None:
    """The guide with random weights that stay coherent; None unless draws of weights meet a single example.

    A layer that sees more than one row of it (a convolution, tokens) draws its weight, once.
    """
    try:
        one = mode == "weights" and number_of_examples(args, kwargs) == 1
    except ValueError:  # no arrays
        return None
    return EstimatorMessenger("local", strict=True, coherent=True)(guide) if one else None
