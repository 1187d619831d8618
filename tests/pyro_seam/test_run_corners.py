"""One canary for each private corner of Pyro that runs of a model use: it names what broke."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_vd._pyro import is_no_step, net_parameter, node_of_trace


def test_runs_that_are_no_steps_are_recognised():
    seen = []

    def model():
        seen.append(is_no_step())
        return pyro.sample("z", dist.Normal(0.0, 1.0))

    guide = AutoNormal(model)
    guide()
    assert seen == [True], "pyro.infer.autoguide.guides.AutoGuide._setup_prototype changed"
    seen.clear()
    Predictive(model, guide=guide, num_samples=1)()
    assert seen and all(seen), "pyro.infer.predictive._predictive changed"
    seen.clear()
    SVI(model, guide, pyro.optim.Adam({}), Trace_ELBO(num_particles=2, vectorize_particles=True)).step()
    assert seen[0] is True and seen[-1] is False, "pyro.infer.elbo.ELBO._guess_max_plate_nesting changed"


def test_a_parameter_of_a_net_is_a_param_site_and_carries_no_mark():
    parameter = torch.nn.Parameter(torch.ones(2))
    with poutine.trace() as capture:
        value = net_parameter("p", parameter)
    node = capture.trace.nodes["p"]
    assert node["type"] == "param" and node["value"].unconstrained() is parameter
    assert pyro.get_param_store()._params["p"] is parameter
    value.sum().backward()
    assert parameter.grad.tolist() == [1, 1]
    pickle.dumps(parameter)
    lifted = poutine.lift(lambda: net_parameter("p", parameter), prior=dist.Normal(torch.zeros(2), 1.0).to_event(1))
    assert poutine.trace(lifted).get_trace().nodes["p"]["type"] == "sample", "pyro.primitives.param changed"


def test_the_site_of_the_trace_that_is_being_made_is_found():
    def model():
        assert node_of_trace("z") is None
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return node_of_trace("z")["value"] is z

    with poutine.trace(param_only=True):
        assert poutine.trace(model).get_trace().nodes["_RETURN"]["value"]
    assert node_of_trace("z") is None


@pytest.mark.parametrize("where", ["infer"])
def test_a_replayed_site_has_the_infer_of_the_guide_s(where):
    """Why a site of a net notes what it says of its weight in the message itself."""
    trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
    model = poutine.replay(lambda: pyro.sample("z", dist.Normal(0.0, 1.0), infer={"mine": 1}), trace=trace)
    assert "mine" not in poutine.trace(model).get_trace().nodes["z"][where]
