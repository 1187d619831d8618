"""One canary for each private corner of Pyro that the seam uses: it names what broke."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_vd import _pyro as corner


def test_the_parameter_store_has_its_three_tables():
    store = pyro.get_param_store()
    pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
    assert set(store._params) == {"scale"}, "ParamStoreDict._params is no table of unconstrained tensors by name"
    assert store._params["scale"] is pyro.param("scale").unconstrained()
    assert set(store._param_to_name.values()) == {"scale"}, "ParamStoreDict._param_to_name changed"
    assert set(store._constraints) == {"scale"}, "ParamStoreDict._constraints changed"


def test_active_handlers_are_seen():
    assert not corner.handlers_are_active()
    with poutine.trace():
        assert corner.handlers_are_active(), "pyro.poutine.runtime._PYRO_STACK changed"


def test_the_evaluation_of_a_trace_is_recognised():
    seen = []

    class Watched(dist.Normal):
        def log_prob(self, value):
            seen.append(corner.is_scoring())
            return super().log_prob(value)

    trace = poutine.trace(lambda: pyro.sample("x", Watched(0.0, 1.0))).get_trace()
    Watched(0.0, 1.0).log_prob(torch.zeros(()))
    trace.compute_log_prob()
    for node in trace.nodes.values():
        node.pop("log_prob", None), node.pop("log_prob_sum", None)
    trace.compute_score_parts()
    for node in trace.nodes.values():
        node.pop("log_prob", None), node.pop("log_prob_sum", None)
    trace.log_prob_sum()
    assert seen == [False, True, True, True], "Trace.compute_log_prob, compute_score_parts or log_prob_sum changed"


def test_dependence_between_sites_is_checked_as_pyro_does():
    model = poutine.trace(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))).get_trace()
    assert corner.check_mean_field_requirement(model, model) is None
