"""Two BayesianModules of one name in a model are refused in words, by whatever runs the model. Exact."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X = torch.ones(4, 3)
PRIOR = dist.Normal(0.0, 1.0)
SAME = "expected every BayesianModule of a model to have a name of its own, got two .*named 'net'.*; write .*name="


def model_of(*modules):
    def model(x):
        for module in modules:
            x = module(x)
        with vd.data_plate(4, len(x)):
            pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=X)

    return model


def same_sites():
    return [vd.BayesianModule(nn.Linear(3, 3), PRIOR) for _ in range(2)]


def same_biases():
    """Their weights have sites of their own, and their biases one name."""
    nets = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nets[1][0].weight.requires_grad_(False)
    return [vd.BayesianModule(nets[0], PRIOR), vd.BayesianModule(nets[1], PRIOR, where="1.weight")]


def weight_and_parameter(first="1.weight", second="0.weight"):
    """A weight of one is a deterministic parameter of the other."""
    return [vd.BayesianModule(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), PRIOR, where=w) for w in (first, second)]


def by_hand(x):
    for name in ("net.weight", "net.0.weight", "net.1.weight"):
        pyro.sample(name, dist.Normal(torch.zeros(3, 3), 1.0).to_event(2), infer={"is_auxiliary": True})


def stepped(make, loss, kind=SVI):
    return lambda model: kind(model, make(model), pyro.optim.Adam({"lr": 0.1}), loss()).step(X)


RUNS = {
    "trace": lambda model: poutine.trace(model).get_trace(X),
    "AutoNormal": stepped(AutoNormal, Trace_ELBO),
    "AutoNormal, TraceVD_ELBO": stepped(AutoNormal, vd.TraceVD_ELBO),
    "AutoDelta": stepped(AutoDelta, Trace_ELBO),
    "AutoDiagonalNormal": stepped(AutoDiagonalNormal, Trace_ELBO),
    "AutoNormal, compiled": stepped(AutoNormal, vd.TraceVD_ELBO, vd.CompiledSVI),
    "ours": AutoMeanField,
    "by hand": stepped(lambda model: by_hand, Trace_ELBO),
    "by hand, mean field": stepped(lambda model: by_hand, TraceMeanField_ELBO),
    "by hand, graph": stepped(lambda model: by_hand, TraceGraph_ELBO),
    "by hand, TraceVD_ELBO": stepped(lambda model: by_hand, vd.TraceVD_ELBO),
    "by hand, compiled": stepped(lambda model: by_hand, vd.TraceVD_ELBO, vd.CompiledSVI),
    "by hand, loss module": lambda model: vd.TraceVD_ELBO()(model, by_hand)(X),
    "lrt": stepped(lambda model: vd.lrt(by_hand), TraceMeanField_ELBO),
    "Predictive": lambda model: Predictive(model, num_samples=1)(X),
    "posterior_predictive": lambda model: vd.posterior_predictive(model, by_hand, X, num_samples=1),
    "NUTS": lambda model: MCMC(NUTS(model), 1, 1, disable_progbar=True).run(X),
}


@pytest.mark.parametrize("modules", [same_sites, same_biases, weight_and_parameter])
@pytest.mark.parametrize("run", RUNS)
def test_two_modules_of_one_name(run, modules):
    with pytest.raises(ValueError, match=SAME):
        RUNS[run](model_of(*modules()))


def test_a_weight_under_the_name_of_an_earlier_parameter():
    with pytest.raises(ValueError, match="site 'net.0.weight': .* two BayesianModules named 'net'"):
        poutine.trace(model_of(*weight_and_parameter())).get_trace(X)
    with pytest.raises(ValueError, match="parameter 'net.0.weight': .* two BayesianModules named 'net'"):
        poutine.trace(model_of(*weight_and_parameter("0.weight", "1.weight"))).get_trace(X)


def test_other_names_of_one_site_and_a_site_of_the_model():
    first = vd.BayesianModule(nn.Sequential(nn.Sequential(nn.Linear(3, 3))), PRIOR, name="a")
    second = vd.BayesianModule(nn.Sequential(nn.Linear(3, 3)), PRIOR, name="a.0")
    with pytest.raises(ValueError, match="'a.0.0.weight': .* in each of the BayesianModules 'a' and 'a.0'; .*name="):
        poutine.trace(model_of(first, second)).get_trace(X)

    def model():
        pyro.sample("a.0.0.weight", PRIOR)
        first(X)

    with pytest.raises(ValueError, match="a pyro.sample of the model and a weight of the BayesianModule 'a'"):
        poutine.trace(model).get_trace()

    def with_parameter():
        pyro.param("a.0.0.bias", torch.zeros(3))
        first(X)

    pyro.clear_param_store()
    with pytest.raises(ValueError, match="a pyro.param of the model and a weight of the BayesianModule 'a'"):
        poutine.trace(with_parameter).get_trace()


def test_one_module_called_twice_and_two_with_names_of_their_own():
    one, other = vd.BayesianModule(nn.Linear(3, 3), PRIOR), vd.BayesianModule(nn.Linear(3, 3), PRIOR, name="other")
    model = model_of(one, other, one)
    for make, loss in ((AutoNormal, Trace_ELBO), (AutoMeanField, TraceMeanField_ELBO)):
        before = one.net.bias.detach().clone(), other.net.bias.detach().clone()
        svi = SVI(model, make(model), pyro.optim.Adam({"lr": 0.1}), loss())
        assert all(svi.step(X) > 0 for _ in range(2))
        assert not torch.equal(before[0], one.net.bias) and not torch.equal(before[1], other.net.bias)
