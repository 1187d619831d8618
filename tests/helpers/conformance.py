"""One row for each distribution of this library, with its arguments by name, for tests after Pyro's own suite."""

from __future__ import annotations

import torch

import pyro_vd as vd

SHAPE = (2, 3)


def values(*shape, scale=0.7, shift=0.4):
    make = torch.Generator().manual_seed(sum(shape) + len(shape))
    return (scale * torch.randn(shape, generator=make, dtype=torch.float64) + shift).requires_grad_()


def between(*shape, low=0.2, high=0.6):
    make = torch.Generator().manual_seed(5)
    return low + (high - low) * torch.rand(shape, generator=make, dtype=torch.float64)


# One row for each distribution, its arguments by their names and what else it is given.
ROWS = {
    "DropoutNormal, additive": (vd.DropoutNormal, {"loc": values(*SHAPE), "log_sigma2": values(3)}, {}),
    "DropoutNormal": (vd.DropoutNormal, {"loc": values(*SHAPE), "log_alpha": values(2, 1)}, {"kl": "exact"}),
    "CorrelatedDropoutNormal": (
        vd.CorrelatedDropoutNormal, {"loc": values(*SHAPE), "log_alpha": values(3, shift=-1.0)}, {}),
    "BernoulliDropout": (vd.BernoulliDropout, {"loc": values(*SHAPE), "dropout_rate": between(3)}, {}),
    "ConcreteDropout": (
        vd.ConcreteDropout, {"loc": values(*SHAPE), "logit_dropout_rate": values(2)},
        {"unit_dim": 0, "temperature": 0.002}),
    "GroupNormal": (
        vd.GroupNormal, {"v_loc": values(*SHAPE), "v_log_sigma2": values(*SHAPE), "unit_loc": values(3),
                         "unit_log_sigma2": values(3, shift=-1.0)}, {}),
    "LowRankNormal": (
        vd.LowRankNormal, {"loc": values(*SHAPE), "log_sigma2": values(1, 3), "factor": values(2, *SHAPE)}, {}),
    "TruncatedLogUniform": (
        vd.TruncatedLogUniform, {"low": between(2).requires_grad_(), "high": (1 + between(3, 1)).requires_grad_()}, {}),
}  # fmt: skip
POSTERIORS = [row for row in ROWS if row != "TruncatedLogUniform"]
WITH_DENSITY = ["DropoutNormal, additive", "DropoutNormal", "LowRankNormal", "TruncatedLogUniform"]
ONE_WEIGHT = [row for row in POSTERIORS if not row.startswith("DropoutNormal")]  # events: they have no batch


def make(row, **options):
    cls, arguments, more = ROWS[row]
    return cls(**arguments, **more, **options)


def fixed(row, dtype=torch.float64, **options):
    """With arguments that are detached."""
    cls, arguments, more = ROWS[row]
    return cls(**{name: value.detach().to(dtype) for name, value in arguments.items()}, **more, **options)
