"""Bad arguments of distributions and their KL: each a clear error."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import pyro_vd as vd
from helpers.bad_arguments import INF, LOC, NAN, NO_TENSORS, WRONG_NUMBERS, Cases, Setting, check
from pyro_vd.kl import kl_additive, kl_ard, kl_log_uniform

FACTOR = torch.ones(1, 2, 3)

CASES = Cases()


@pytest.fixture
def setting():
    return Setting()


# kl
for kind, value in NO_TENSORS.items():
    CASES.add(f"kl_log_uniform of {kind}", lambda s, v=value: kl_log_uniform(v), "kl_log_uniform: expected log_alpha t")
for kind in ("numpy", "int", "number"):
    CASES.add(f"kl_ard of {kind}", lambda s, v=NO_TENSORS[kind]: kl_ard(v), "kl_ard: expected log_alpha to be a floati")
    CASES.add(f"kl_additive of {kind}", lambda s, v=NO_TENSORS[kind]: kl_additive(v, LOC), "kl_additive: expected loc")
for method in ("Sigmoid", "ard", None, 3, ["exact"]):
    CASES.add(f"kl method {method}", lambda s, m=method: kl_log_uniform(LOC, m), "expected method to be one of 'sigmoi")

# priors
for kind, value in {"text": "ab", "number": 3, "negative": (-1,), "float": (2.5,), "tensor": torch.ones(2)}.items():
    CASES.add(f"ImproperLogUniform of {kind}", lambda s, v=value: vd.ImproperLogUniform(v), "batch_shape to be")
for low, high in ((0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (NAN, 1.0), (1.0, NAN), (1.0, INF)):
    CASES.add(f"TruncatedLogUniform {low} {high}", lambda s, a=low, b=high: vd.TruncatedLogUniform(a, b), "0 < low < h")
for kind, value in {"None": None, "text": "1", "True": True, "list": [1.0], "int": torch.ones(2).long()}.items():
    CASES.add(f"low is {kind}", lambda s, v=value: vd.TruncatedLogUniform(v, 9.0), "TruncatedLogUniform: expected low")
    CASES.add(f"high is {kind}", lambda s, v=value: vd.TruncatedLogUniform(0.1, v), "expected high to be a number or a")

# posteriors
for kind, value in NO_TENSORS.items():
    CASES.add(
        f"DropoutNormal loc {kind}", lambda s, v=value: vd.DropoutNormal(v, 0.0), "expected loc to be a floating point"
    )
for kind, value in NO_TENSORS.items():
    if kind not in ("None", "number", "list"):
        CASES.add(f"factor {kind}", lambda s, v=value: vd.LowRankNormal(LOC, 0.0, v), "expected factor to be")
for kind, value in WRONG_NUMBERS.items():
    if kind not in ("None", "list"):
        CASES.add(
            f"log_alpha {kind}", lambda s, v=value: vd.DropoutNormal(LOC, v), "DropoutNormal: expected log_alpha to be"
        )
        CASES.add(f"log_sigma2 {kind}", lambda s, v=value: vd.DropoutNormal(LOC, log_sigma2=v), "expected log_sigma2 t")
        CASES.add(
            f"unit log_alpha {kind}", lambda s, v=value: vd.CorrelatedDropoutNormal(LOC, v), "expected log_alpha to be"
        )
for kind, value in {**WRONG_NUMBERS, "0": 0.0, "-1": -1}.items():
    CASES.add(f"temperature {kind}", lambda s, v=value: vd.ConcreteDropout(LOC, 0.0, temperature=v), "expected tempera")
for kind, value in {"1": 1, "1.5": 1.5, "-0.1": -0.1, "nan": NAN, "inf": INF, "text": "0.5", "None": None, "True": True,
                    "list": [0.5, 1.5, 0.1], "float32": np.float32(1.5), "tensor": torch.tensor([0.5, 1.0, 0.1]),
                    "tensor of nan": torch.tensor([0.5, NAN, 0.1]), "0-dim": torch.tensor(1.0)}.items():  # fmt: skip
    CASES.add(f"dropout_rate {kind}", lambda s, v=value: vd.BernoulliDropout(LOC, v), "expected dropout_rate in [0, 1)")
CASES.add(
    "dropout_rate of numpy", lambda s: vd.BernoulliDropout(LOC, np.full(3, 0.5)), "expected dropout_rate to be a number"
)
CASES.add(
    "dropout_rate of int",
    lambda s: vd.BernoulliDropout(LOC, torch.zeros(3).long()),
    "dropout_rate to be floating point",
)
for kind, value in {"float": 1.5, "text": "1", "None": None, "True": True}.items():
    CASES.add(
        f"unit_dim {kind}",
        lambda s, v=value: vd.BernoulliDropout(LOC, 0.5, unit_dim=v),
        "expected unit_dim to be a whole",
    )
CASES.add("unit_dim 2", lambda s: vd.ConcreteDropout(LOC, 0.0, unit_dim=2), "a weight with dimension 2 for its units")
CASES.add(
    "units of another number", lambda s: vd.CorrelatedDropoutNormal(LOC, torch.zeros(2)), "one number or of shape (3,)"
)
CASES.add("log_alpha shape", lambda s: vd.DropoutNormal(LOC, torch.zeros(2)), "expected log_alpha to broadcast with lo")
CASES.add("both", lambda s: vd.DropoutNormal(LOC, 0.0, log_sigma2=0.0), "exactly one of log_alpha and log_sigma2, got")
CASES.add("neither", lambda s: vd.DropoutNormal(LOC), "exactly one of log_alpha and log_sigma2, got neither")
CASES.add("factor shape", lambda s: vd.LowRankNormal(LOC, 0.0, LOC), "expected factor of shape (rank, *(2, 3)), got (2")
CASES.add("rank", lambda s: vd.LowRankNormal(LOC, 0.0, torch.ones(7, 2, 3)), "expected a rank between 1 and the 6 weig")
CASES.add(
    "v_loc", lambda s: vd.GroupNormal([1.0], LOC, torch.ones(3), torch.ones(3)), "expected v_loc to be a floating point"
)
CASES.add("unit_loc", lambda s: vd.GroupNormal(LOC, LOC, torch.ones(2), torch.ones(3)), "expected unit_loc to be one n")
for kl in ("bogus", "Sigmoid", None, 3):
    CASES.add(f"DropoutNormal kl {kl}", lambda s, k=kl: vd.DropoutNormal(LOC, 0.0, kl=k), "DropoutNormal: expected kl")
    CASES.add(
        f"LowRankNormal kl {kl}", lambda s, k=kl: vd.LowRankNormal(LOC, 0.0, FACTOR, kl=k), "LowRankNormal: expected kl"
    )
    CASES.add(
        f"GroupNormal kl {kl}",
        lambda s, k=kl: vd.GroupNormal(LOC, LOC, LOC[0], LOC[0], kl=k),
        "GroupNormal: expected kl",
    )
for name, arguments in {"DropoutNormal": (0.0,), "CorrelatedDropoutNormal": (0.0,), "BernoulliDropout": (0.5,),
                        "ConcreteDropout": (0.0,), "LowRankNormal": (0.0, FACTOR),
                        "GroupNormal": (LOC, LOC[0], LOC[0])}.items():  # fmt: skip
    for value in (NAN, INF):
        make = functools.partial(getattr(vd, name), LOC * value, *arguments, validate_args=True)
        CASES.add(f"{name} of {value}, validated", lambda s, m=make: m(), "to be finite, got 6 NaN or infinite of 6 va")
CASES.add(
    "log_prob without density", lambda s: vd.BernoulliDropout(LOC, 0.5).log_prob(LOC), "has no density; choose a prior"
)
CASES.add("log_prob of NaN", lambda s: vd.DropoutNormal(LOC, 0.0).log_prob(LOC * NAN), "Expected value argument")


def test_there_are_many():
    assert len(CASES) >= 100


@pytest.mark.parametrize("label", CASES)
def test_bad_arguments_are_clear_errors_that_change_nothing(setting, label):
    check(setting, *CASES[label])
