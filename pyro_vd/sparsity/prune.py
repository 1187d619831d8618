"""The pruned net: posterior means for weights, zero where the noise is too large."""

from __future__ import annotations

import torch
from torch import nn

from pyro_vd.held import copied, refresh_derived_weights
from pyro_vd.module import BayesianModule
from pyro_vd.sparsity.report import Posteriors, keep_mask, posteriors_of


def prune(bnn: BayesianModule, guide: Posteriors, log_alpha_threshold: float = 3.0) -> nn.Module:
    """A plain copy of the net with posterior means for weights, zero where ``log_alpha > log_alpha_threshold``.

    Args:
        bnn: the module of the model.
        guide: a guide of :mod:`pyro_vd.guides`, or the dict that :func:`weight_posteriors` returns.
        log_alpha_threshold: see :func:`sparsity_report`; ``math.inf`` gives the mean network.

    Returns:
        A deep copy of ``bnn.net``: no Pyro, deterministic parameters and buffers as trained.

    Raises:
        ValueError: the guide has no posterior for a weight of ``bnn``.
    """
    posteriors = posteriors_of(guide)
    net = copied(bnn.net)
    parameters = dict(net.named_parameters())
    for name in bnn.weight_names:
        if bnn.site(name) not in posteriors:
            raise ValueError(
                f"prune: expected a guide with a weight at site {bnn.site(name)!r}, got one with {list(posteriors)}; "
                "pass the guide that was trained with this module"
            )
        posterior = posteriors[bnn.site(name)]
        weight, fixed = posterior.mean * keep_mask(posterior, log_alpha_threshold), bnn.fixed(name)
        with torch.no_grad():
            parameters[name].copy_(weight if fixed is None else fixed.imposed_on(weight))
    refresh_derived_weights(net)
    return net
