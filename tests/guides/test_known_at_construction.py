"""A guide knows the weights of its nets before it has seen data, and the rest from one run or a state dict."""

from __future__ import annotations

import functools
import warnings
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule
from torch import nn

import pyro_vd as vd
from helpers.guide_cases import FAMILIES, SITES, X, Y, fresh_guide, make_model, two_parts
from pyro_vd import guides
from pyro_vd.guides import AutoMeanField, AutoSparseVD

ELBO = vd.TraceVD_ELBO(analytic_only=False)


@pytest.mark.parametrize("name, options", FAMILIES)
def test_everything_of_a_weight_is_there_before_the_first_call(name, options):
    model, net, guide = fresh_guide(name, options)
    before = {key: (tensor, tensor.detach().clone()) for key, tensor in guide.state_dict(keep_vars=True).items()}
    assert {key.partition(".")[2] for key in before} == set(SITES) and len(before) >= 4
    assert guide.weight_sites == tuple(guide.posteriors()) == SITES
    for site in SITES:
        assert torch.equal(guide.posterior(site).mean, net.get_parameter(site.removeprefix("net.")))
        assert guide.log_alpha(site).shape == guide.dropout_rate(site).shape
    assert vd.sparsity_report(guide).total.weights == 18
    assert repr(guide) == f"{name}(net.0.weight: (3, 4), net.2.weight: (2, 3))"
    guide(X, Y)
    after = guide.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[key] is tensor for key, (tensor, _) in before.items())
    assert all(torch.equal(after[key], value) for key, (_, value) in before.items())


def test_a_mixed_guide_knows_the_weights_of_its_parts():
    model, _ = make_model(vd.ImproperLogUniform())
    guide = two_parts(model)
    names = [key for key, _ in guide.named_parameters()]
    assert names == [f"0.{q}.net.0.weight" for q in ("locs", "log_sigma2s")] + [
        f"1.{q}.net.2.weight" for q in ("locs", "log_alphas")
    ]
    assert guide.weight_sites == SITES and guide.log_alpha(SITES[1]).eq(-3).all()
    assert vd.sparsity_report(guide).total.weights == 18
    with pytest.raises(ValueError, match=r"one of the weight sites \['net.0.weight', 'net.2.weight'\], got 'w'"):
        guide.log_alpha("w")
    with pytest.raises(ValueError, match=r"no two guides on one site, got two on \['net.0.weight'\]; .*where="):
        guide.append(AutoSparseVD(model, where=SITES[0]))
    assert repr(guide).startswith("mixed_guide(AutoSparseVD(net.0.weight: (3, 4)), AutoVar")
    expected = [id(parameter) for parameter in guide.parameters()]
    vd.TraceVD_ELBO().loss(model, guide, X, Y)
    assert [id(parameter) for parameter in guide.parameters()] == expected


class PyroNet(PyroModule):
    def __init__(self, bnn):
        super().__init__()
        self.bnn = bnn

    def forward(self, x):
        return self.bnn(x)


class Holder:
    def __init__(self, bnn):
        self.bnn = bnn

    def model(self, x):
        return self.bnn(x)

    def __call__(self, x):
        return self.model(x)


def of_global(x):
    return HELD.bnn(x)


def of_default(bnn):
    def model(x, bnn=bnn):
        return bnn(x)

    return model


HELD = SimpleNamespace()
REFERENCES = {
    "the module": lambda bnn: bnn,
    "a closure": lambda bnn: lambda x: bnn(x),
    "a default": of_default,
    "partial": lambda bnn: functools.partial(lambda net, x: net(x), bnn),
    "a method": lambda bnn: Holder(bnn).model,
    "a callable": Holder,
    "a PyroModule": PyroNet,
    "a list": lambda bnn: [bnn, bnn] and (lambda x, nets=(bnn,): nets[0](x)),
    "a dict": lambda bnn: lambda x, nets={"a": bnn}: nets["a"](x),  # noqa: B006
    "an inner function": lambda bnn: lambda x: (lambda: bnn(x))(),
    "a handler": lambda bnn: poutine.scale(lambda x: bnn(x), scale=2.0),
    "a global": lambda bnn: setattr(HELD, "bnn", bnn) or of_global,
}


@pytest.mark.parametrize("way", REFERENCES)
def test_the_nets_of_a_model_are_found_however_it_refers_to_them(way):
    bnn = vd.BayesianModule(nn.Linear(4, 2), vd.ImproperLogUniform(), name="here")
    model = REFERENCES[way](bnn)
    guide = AutoSparseVD(model)
    assert [key for key, _ in guide.named_parameters()] == ["locs.here.weight", "log_sigma2s.here.weight"]
    assert type(poutine.trace(vd.lrt(guide)).get_trace(X).nodes["here.weight"]["value"]) is vd.RandomWeight


def test_handlers_around_a_model_hide_and_observe_at_construction_as_they_do_later():
    model, _ = make_model(dist.Normal(0.0, 1.0))
    assert AutoMeanField(poutine.block(model, hide=[SITES[0]])).weight_sites == SITES[1:]
    conditioned = poutine.condition(model, data={SITES[1]: torch.ones(2, 3)})
    guide = AutoMeanField(conditioned)
    assert guide.weight_sites == SITES[:1] and vd.TraceVD_ELBO().terms(conditioned, guide, X, Y).kl.keys() == {SITES[0]}


@pytest.mark.parametrize("where, sites", [("net.0.*", SITES[:1]), (["net.2.weight"], SITES[1:]), ("*", SITES)])
def test_where_holds_at_construction(where, sites):
    model, _ = make_model(vd.ImproperLogUniform(), "before")
    guide = AutoSparseVD(model, where=where)
    assert guide.weight_sites == sites


def test_init_loc_fn_and_buffers():
    model, _ = make_model(dist.Normal(0.0, 1.0))
    guide = guides.AutoBernoulliDropout(model, init_loc_fn=init_to_value(values={SITES[0]: torch.full((3, 4), 2.0)}))
    assert guide.posterior(SITES[0]).loc.eq(2).all() and dict(guide.named_buffers())[f"dropout_rates.{SITES[1]}"] == 0.5


# Where the model is not what the module promises


def test_a_net_that_the_model_does_not_use_is_left_out_with_a_warning():
    unused, used = (vd.BayesianModule(nn.Linear(4, 2), vd.ImproperLogUniform(), name=n) for n in ("unused", "used"))

    def model(x, y=None, both=False):
        output = used(x) + (unused(x) if both else 0)
        with vd.data_plate(50, len(x)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y)

    guide = AutoSparseVD(model)
    assert guide.weight_sites == ("unused.weight", "used.weight")
    with pytest.warns(UserWarning, match=r"got a first run without \['unused.weight'\]; .*by where="):
        guide(X, Y)
    assert guide.weight_sites == ("used.weight",) and len(list(guide.parameters())) == 2
    vd.TraceVD_ELBO().loss(model, guide, X, Y)
    with pytest.raises(ValueError, match="site 'unused.weight': expected a guide that samples every latent site"):
        vd.TraceVD_ELBO().loss(model, guide, X, Y, both=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AutoSparseVD(model, where="used.*")(X, Y).keys() == {"used.weight"}


def test_two_nets_of_one_name_are_an_error_that_says_what_to_write():
    one, other = (vd.BayesianModule(nn.Linear(4, n), dist.Normal(0.0, 1.0)) for n in (4, 2))

    def model(x):
        return other(one(x))

    message = r"a name of its own, got two .*; write BayesianModule\(..., name=...\)"
    for make_guide in (AutoMeanField, lambda m: AutoMeanField(m, where="net.*"), lambda m: AutoMeanField(PyroNet(m))):
        with pytest.raises(ValueError, match=message):
            make_guide(model)

    def guide(x):
        pyro.sample("net.weight", vd.DropoutNormal(torch.zeros(4, 4), log_sigma2=-3.0).to_event(2))

    with pytest.raises(ValueError, match=message):
        vd.TraceVD_ELBO().loss(model, guide, X)


def test_a_net_that_is_called_twice_has_one_weight():
    bnn = vd.BayesianModule(nn.Linear(4, 4), dist.Normal(0.0, 1.0))
    guide = AutoMeanField(lambda x: bnn(bnn(x)))
    assert guide.weight_sites == ("net.weight",)
    terms = vd.TraceVD_ELBO(shared_sites=["net.weight"]).terms(lambda x: bnn(bnn(x)), guide, X)
    assert list(terms.kl) == ["net.weight"]


def test_a_net_that_is_replaced_by_one_of_another_shape_is_an_error():
    HELD.bnn = vd.BayesianModule(nn.Linear(4, 2), dist.Normal(0.0, 1.0))
    guide = AutoMeanField(of_global)
    HELD.bnn = vd.BayesianModule(nn.Linear(4, 3), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"site 'net.weight': expected the shape .*\(2, 4\), got \(3, 4\)"):
        guide(X)
