"""What the guides of the noise families refuse: sites, shapes, rates and priors, each error by its text."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
from torch import nn

import pyro_vd as vd
from helpers.family_guides import X, make
from pyro_vd import guides

UNIT_GUIDES = [(name, {}) for name in ("AutoBernoulliDropout", "AutoConcreteDropout", "AutoGroupSparse")]
UNIT_GUIDES += [(name, {"correlated": True}) for name in ("AutoGaussianDropout", "AutoVariationalDropout")]


@pytest.mark.parametrize(("name", "options"), UNIT_GUIDES)
def test_families_of_unit_noise_refuse_a_bias_and_say_which_cover_it(name, options):
    bnn = vd.BayesianModule(nn.Linear(4, 2), dist.Normal(0.0, 1.0), where="*")
    reason = r"whose noise is shared by the units of a layer, got shape \(2,\); cover it with AutoSparseVD"
    with pytest.raises(ValueError, match=rf"site 'net.bias': .*two dimensions or more for {name}, {reason}"):
        getattr(guides, name)(bnn, **options)


@pytest.mark.parametrize(("name", "options"), UNIT_GUIDES)
def test_a_dimension_that_the_weight_does_not_have_is_an_error_that_names_the_site(name, options):
    with pytest.raises(ValueError, match="site 'net.0.weight'.*dimension 2"):
        make(name, {**options, "unit_dim": 2})


@pytest.mark.parametrize("name", sorted(name for name in vars(guides) if name.startswith("Auto")))
def test_every_family_refuses_a_positive_site_and_says_which_guide_covers_it(name):
    def model(x):
        pyro.sample("scale", dist.Gamma(2.0, 2.0).expand([3, 3]).to_event(2))

    guide = getattr(guides, name)(model, where="scale")
    match = rf"site 'scale': expected a weight on the real line for {name}, got a prior Gamma.*autoguide\.AutoNormal"
    with pytest.raises(ValueError, match=match):
        guide(X)


@pytest.mark.parametrize(("name", "argument", "value"), [("AutoBernoulliDropout", "dropout_rate", 1.0),
    ("AutoBernoulliDropout", "dropout_rate", -0.1), ("AutoGaussianDropout", "dropout_rate", 1.5),
    ("AutoGaussianDropout", "dropout_rate", math.nan), ("AutoConcreteDropout", "init_dropout_rate", 1.0)])  # fmt: skip
def test_a_rate_outside_its_range_is_refused(name, argument, value):
    with pytest.raises(ValueError, match=rf"{name}: expected dropout_rate in \[0, 1\), .*, got {value}"):
        make(name, {argument: value})


def test_other_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"AutoConcreteDropout: expected init_dropout_rate in \(0, 1\), got 0"):
        make("AutoConcreteDropout", {"init_dropout_rate": 0.0})
    with pytest.raises(ValueError, match="AutoLowRank: expected a rank between 1 and .*, got 0"):
        make("AutoLowRank", {"rank": 0})
    with pytest.raises(ValueError, match="site 'net.2.weight': .*rank between 1 and the 6 weights of the layer, got 7"):
        make("AutoLowRank", {"rank": 7})  # the layers have 12 and 6 weights


@pytest.mark.parametrize(("name", "prior", "classes"), [
    ("AutoConcreteDropout", vd.ImproperLogUniform(), ("ConcreteDropout", "ImproperLogUniform")),
    ("AutoConcreteDropout", dist.Laplace(0.0, 1.0), ("ConcreteDropout", "Laplace")),
    ("AutoBernoulliDropout", dist.Laplace(0.0, 1.0), ("BernoulliDropout", "Laplace")),
    ("AutoGroupSparse", dist.Normal(0.0, 1.0), ("GroupNormal", "Normal")),
    ("AutoARD", dist.Normal(0.0, 1.0), ("AutoARD", "Normal")),
    ("AutoLowRank", dist.StudentT(3.0), ("LowRankNormal|DropoutNormal", "StudentT"))])  # fmt: skip
def test_a_prior_without_a_kl_rule_is_an_error_that_names_site_and_classes(name, prior, classes):
    bnn = vd.BayesianModule(nn.Linear(4, 2), prior)
    with pytest.raises(ValueError, match=r"^site 'net.weight'") as error:
        vd.TraceVD_ELBO().loss(bnn, getattr(guides, name)(bnn), X)
    posterior, prior_name = classes
    assert any(one in str(error.value) for one in posterior.split("|")) and prior_name in str(error.value)
