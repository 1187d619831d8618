"""Bad arguments of automatic guides: each a clear error."""

from __future__ import annotations

import pytest
from torch import nn

import pyro_vd as vd
from helpers.bad_arguments import NAN, NO_PROGRAMS, PRIOR, WRONG_COUNTS, WRONG_NUMBERS, Cases, Setting, X, check
from pyro_vd import guides

CASES = Cases()


@pytest.fixture
def setting():
    return Setting()


def plain():
    return vd.BayesianModule(nn.Linear(3, 2), PRIOR)


FAMILIES = {name: getattr(guides, name) for name in vars(guides) if name.startswith("Auto")}
for family, make in FAMILIES.items():
    for kind, value in {"None": None, "class": nn.Linear, "text": "model"}.items():
        CASES.add(f"{family} of {kind}", lambda s, m=make, v=value: m(v), "model: expected a model, a function or modu")
    for kind, value in {"3": 3, "empty": [], "class": nn.Linear, "types": [nn.Linear]}.items():
        CASES.add(
            f"{family} where {kind}", lambda s, m=make, v=value: m(s.bnn, where=v), "where: expected site names or patt"
        )
    CASES.add(
        f"{family} where unknown", lambda s, m=make: m(plain(), where="net.9.*")(X), "got the sites ['net.weight']"
    )
    CASES.add(
        f"{family} init_loc_fn", lambda s, m=make: m(s.bnn, init_loc_fn=3), "init_loc_fn: expected a function of a site"
    )
for family in ("AutoSparseVD", "AutoMeanField", "AutoARD", "AutoLowRank", "AutoGroupSparse"):
    for kind, value in WRONG_NUMBERS.items():
        CASES.add(
            f"{family} init_log_sigma2 {kind}",
            lambda s, m=FAMILIES[family], v=value: m(s.bnn, init_log_sigma2=v),
            "init_log_sigma2: expected a finite number",
        )
for family in ("AutoSparseVD", "AutoLowRank", "AutoGroupSparse", "AutoVariationalDropout"):
    for kl in ("bogus", None, 3):
        CASES.add(f"{family} kl {kl}", lambda s, m=FAMILIES[family], k=kl: m(s.bnn, kl=k), "kl: expected one of 'sigmo")
for family in ("AutoBernoulliDropout", "AutoConcreteDropout", "AutoGaussianDropout"):
    for value in (1.0, -0.1, NAN, "0.5", None, True):
        CASES.add(
            f"{family} rate {value}",
            lambda s, m=FAMILIES[family], v=value: m(s.bnn, v),
            f"{family}: expected dropout_rate",
        )
for kind, value in {"nan": NAN, "text": "3", "True": True}.items():
    CASES.add(
        f"zero_above {kind}",
        lambda s, v=value: guides.AutoSparseVD(s.bnn, zero_above=v),
        "zero_above: expected a number",
    )
for kind, value in {**WRONG_NUMBERS, "0.5": 0.5}.items():
    CASES.add(
        f"init_log_alpha {kind}",
        lambda s, v=value: guides.AutoVariationalDropout(s.bnn, init_log_alpha=v),
        "init_log_alpha: expected a ",
    )
for kind, value in {**WRONG_NUMBERS, "0": 0.0}.items():
    CASES.add(
        f"guide temperature {kind}",
        lambda s, v=value: guides.AutoConcreteDropout(s.bnn, temperature=v),
        "temperature: expected a finite number > 0",
    )
for kind, value in WRONG_COUNTS.items():
    CASES.add(f"rank {kind}", lambda s, v=value: guides.AutoLowRank(s.bnn, rank=v), "rank")
CASES.add(
    "granularity",
    lambda s: guides.AutoVariationalDropout(s.bnn, "weights"),
    "granularity: expected one of 'weight', 'u",
)
CASES.add(
    "unit_dim text", lambda s: guides.AutoGroupSparse(s.bnn, unit_dim="1"), "unit_dim: expected a whole number, got '1'"
)
CASES.add("correlated", lambda s: guides.AutoGaussianDropout(s.bnn, correlated="B"), "correlated: expected True or Fal")
CASES.add(
    "log_alpha of a site",
    lambda s: s.guide.log_alpha("net.0.wieght"),
    "the weight sites ['net.0.weight', 'net.2.weight']",
)
CASES.add("dropout_rate of a site", lambda s: s.guide.dropout_rate("weight"), "site: expected one of the weight sites")
CASES.add(
    "set_learnable quantity",
    lambda s: s.guide.set_learnable("loc"),
    "set_learnable: expected one of ['locs', 'log_sigma2s']",
)
CASES.add("set_learnable where", lambda s: s.guide.set_learnable("locs", where="net.9.*"), "expected where= to match o")
CASES.add("mixed_guide of nothing", lambda s: guides.mixed_guide(s.bnn), "mixed_guide: expected one guide or more")
for kind, value in NO_PROGRAMS.items():
    CASES.add(f"mixed_guide of {kind}", lambda s, v=value: guides.mixed_guide(s.bnn, v), "mixed_guide: expected guide")


def test_there_are_many():
    assert len(CASES) >= 150


@pytest.mark.parametrize("label", CASES)
def test_bad_arguments_are_clear_errors_that_change_nothing(setting, label):
    check(setting, *CASES[label])
