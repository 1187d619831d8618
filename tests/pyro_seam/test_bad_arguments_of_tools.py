"""Bad arguments of predictions, reports, compiled steps, conversion and rules: each a clear error."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.bad_arguments import (
    INF,
    LOC,
    NAN,
    NO_PROGRAMS,
    PRIOR,
    WRONG_COUNTS,
    WRONG_NUMBERS,
    Cases,
    Setting,
    X,
    Y,
    check,
)
from pyro_vd.guides import AutoSparseVD

ADAM = functools.partial(torch.optim.Adam, lr=0.1)
KERNEL = "auto.locs.other.kernel"

CASES = Cases()


@pytest.fixture
def setting():
    return Setting()


def called(net):
    guide = AutoSparseVD(vd.BayesianModule(net, PRIOR, name="other"))
    guide(X)
    return guide


def linear():
    return called(nn.Linear(3, 2))


def two_layers():
    return called(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))


def params_with(value, name=KERNEL):
    guide = linear()
    return {**vd.to_numpyro(guide), name: value}, guide


# predictions and reports
PREDICT = {
    "mode": ({"mode": "Weights"}, "mode: expected one of 'weights', 'local', 'mean'"),
    "mode None": ({"mode": None}, "mode: expected one of 'weights'"),
    "sites": ({"return_sites": ["lable"]}, "return_sites: expected names among the sites ['net.0.weight', "),
    "site": ({"return_sites": "lable"}, "return_sites: expected names among the sites"),
    "sites 3": ({"return_sites": 3}, "return_sites: expected a list of site names, got 3"),
    "sites None": ({"return_sites": None}, "return_sites: expected a list of site names, got None"),
}
for name in ("num_samples", "batch_size"):
    PREDICT |= {f"{name} {k}": ({name: v}, f"{name}: expected ") for k, v in WRONG_COUNTS.items() if (name, k) != (
        "batch_size", "None")}  # fmt: skip
for kind, (options, words) in PREDICT.items():
    call = functools.partial(vd.posterior_predictive, **{"num_samples": 2, **options})
    CASES.add(f"posterior_predictive, {kind}", lambda s, c=call: c(s.model, s.guide, X), words)
for kind, value in NO_PROGRAMS.items():
    call = functools.partial(vd.posterior_predictive, num_samples=2)
    CASES.add(f"prediction with model {kind}", lambda s, v=value, c=call: c(v, s.guide, X), "model: expected a Pyro mo")
    CASES.add(f"prediction with guide {kind}", lambda s, v=value, c=call: c(s.model, v, X), "guide: expected a Pyro gu")
    CASES.add(f"lrt_report of {kind}", lambda s, v=value: vd.lrt_report(v, s.guide, X, Y), "model: expected a Pyro mod")
CASES.add(
    "lrt_report without weights", lambda s: vd.lrt_report(lambda x: None, lambda x: None, X), "a guide that samples ran"
)
for kind, value in {**WRONG_COUNTS, "1": 1}.items():
    CASES.add(
        f"num_draws {kind}",
        lambda s, v=value: vd.gradient_variance(s.model, s.guide, s.elbo, X, Y, num_draws=v),
        "num_draws: expected ",
    )
for kind, value in {"None": None, "class": vd.TraceVD_ELBO, "text": "local"}.items():
    CASES.add(
        f"gradient_variance with loss {kind}",
        lambda s, v=value: vd.gradient_variance(s.model, s.guide, v, X, Y, num_draws=2),
        "loss: expected",
    )
    CASES.add(
        f"CompiledSVI with loss {kind}",
        lambda s, v=value: vd.CompiledSVI(s.model, s.guide, ADAM, v),
        "loss: expected an",
    )
    CASES.add(
        f"compile_loss of {kind}",
        lambda s, v=value: vd.compile_loss(v),
        "loss: expected the module that TraceVD_ELBO()",
    )

# compiled steps
for kind, value in {
    "None": None,
    "text": "adam",
    "number": 0.1,
    "instance": torch.optim.SGD([LOC.clone()], 0.1),
}.items():
    CASES.add(
        f"optim {kind}", lambda s, v=value: vd.CompiledSVI(s.model, s.guide, v, s.elbo), "optim: expected a pyro.optim"
    )
for kind, value in WRONG_COUNTS.items():
    CASES.add(
        f"accumulate {kind}",
        lambda s, v=value: vd.CompiledSVI(s.model, s.guide, ADAM, s.elbo, accumulate=v),
        "accumulate: expected a whole number >= 1",
    )
for kind, value in {**WRONG_NUMBERS, "0": 0, "-1": -1}.items():
    if kind != "None":
        CASES.add(
            f"clip_norm {kind}",
            lambda s, v=value: vd.CompiledSVI(s.model, s.guide, ADAM, s.elbo, clip_norm=v),
            "clip_norm: expected a number > 0 or None",
        )
CASES.add(
    "CompiledSVI strict",
    lambda s: vd.CompiledSVI(s.model, s.guide, ADAM, s.elbo, strict="yes"),
    "strict: expected True",
)
for kind, value in NO_PROGRAMS.items():
    CASES.add(
        f"CompiledSVI of {kind}",
        lambda s, v=value: vd.CompiledSVI(v, s.guide, ADAM, s.elbo),
        "model: expected a Pyro mo",
    )

# conversion
for kind, value in {"NaN": np.ones((3, 2)) * NAN, "inf": np.ones((3, 2)) * INF}.items():
    CASES.add(
        f"from_numpyro of {kind}",
        lambda s, v=value: vd.from_numpyro(*params_with(v)),
        f"{KERNEL}': expected finite val",
    )
for kind, value in {"complex": np.ones((3, 2)) * 1j, "text": np.full((3, 2), "a"), "None": None,
                    "bool": np.ones((3, 2), bool)}.items():  # fmt: skip
    CASES.add(
        f"from_numpyro of {kind}", lambda s, v=value: vd.from_numpyro(*params_with(v)), "expected an array of real numb"
    )
CASES.add(
    "from_numpyro of a shape",
    lambda s: vd.from_numpyro(*params_with(np.ones((2, 3)))),
    "in the layout of torch, got (3, 2)",
)
CASES.add(
    "from_numpyro of a list",
    lambda s: vd.from_numpyro([1], linear()),
    "params: expected a mapping from names to arrays",
)
CASES.add("from_numpyro of nothing", lambda s: vd.from_numpyro({}, linear()), "expected the parameters of this AutoSpa")
CASES.add(
    "library",
    lambda s: vd.to_numpyro(linear(), "flax"),
    "library: expected one of 'linen', 'nnx', 'equinox', got 'flax'",
)
CASES.add(
    "layers unknown",
    lambda s: vd.to_numpyro(two_layers(), layers={"O": "a"}),
    "layers: expected names among the layers ['0', ",
)
CASES.add(
    "layers twice",
    lambda s: vd.to_numpyro(two_layers(), layers={"0": "a", "1": "a"}),
    "a path of its own for every layer",
)
CASES.add("layers list", lambda s: vd.to_numpyro(linear(), layers=["a"]), "layers: expected a mapping from path to pat")
CASES.add(
    "layers of numbers",
    lambda s: vd.to_numpyro(linear(), layers={0: "a"}),
    "layers: expected a mapping from path to path",
)
for kind, value in {**NO_PROGRAMS, "function": (lambda x: None)}.items():
    CASES.add(f"to_numpyro of {kind}", lambda s, v=value: vd.to_numpyro(v), "guide: expected a guide of pyro_vd.guides")

# rules
for kind, value in {"None": None, "text": "rule", "class": nn.Linear}.items():
    register = vd.register_rule(torch.cosh)
    CASES.add(f"rule {kind}", lambda s, v=value, r=register: r(v), "register_rule: expected rule to be a function")
CASES.add("rule for nothing", lambda s: vd.register_rule(), "expected the operations the rule is for, got none")
CASES.add(
    "kind of a rule", lambda s: vd.register_rule(torch.cosh, kind="exactly"), "expected kind to be 'exact' or 'approxim"
)
for kind in ("net", "guide", "model"):
    CASES.add(
        f"prune, bnn is the {kind}",
        lambda s, k=kind: vd.prune(getattr(s, k), s.guide),
        "prune: expected bnn to be the BayesianModule of the model, got",
    )


def test_there_are_many():
    assert len(CASES) >= 100


@pytest.mark.parametrize("label", CASES)
def test_bad_arguments_are_clear_errors_that_change_nothing(setting, label):
    check(setting, *CASES[label])
