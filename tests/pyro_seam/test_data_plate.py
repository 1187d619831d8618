"""data_plate: its scale, the sizes it refuses, and that a net stays outside a plate."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vd as vd
from helpers.programs import Program, data, two_layer_net
from pyro_vd import TraceVD_ELBO
from pyro_vd.guides import AutoSparseVD

X, Y = data()
PRIOR = dist.Normal(torch.zeros(()).double(), 1.0)


def test_data_plate_scales_and_draws_nothing():
    def program(plate):
        state = torch.get_rng_state()
        with plate as index:
            assert index.tolist() == [0, 1, 2, 3, 4]
            pyro.sample("y", dist.Normal(torch.zeros(5), 1.0), obs=torch.zeros(5))
        assert torch.equal(torch.get_rng_state(), state)  # pyro.plate(subsample_size=) permutes all indices

    trace = poutine.trace(program).get_trace(vd.data_plate(1000, 5))
    assert trace.nodes["y"]["scale"] == 200 and trace.nodes["y"]["cond_indep_stack"][0].name == "data"
    named = poutine.trace(program).get_trace(vd.data_plate(10, 5, name="rows", dim=-1))
    assert named.nodes["y"]["cond_indep_stack"][0].name == "rows"


def test_data_plate_of_the_whole_set_has_scale_one():
    with vd.data_plate(5, 5):
        trace = poutine.trace(lambda: pyro.sample("y", dist.Normal(torch.zeros(5), 1.0))).get_trace()
    assert trace.nodes["y"]["scale"] == 1


@pytest.mark.parametrize(("dataset_size", "batch_size"), [(4, 5), (5, 0), (-1, -1)])
def test_data_plate_refuses_sizes_that_cannot_be(dataset_size, batch_size):
    message = f"expected 1 <= batch_size <= dataset_size, got batch_size={batch_size} and dataset_size={dataset_size};"
    with pytest.raises(ValueError, match=message):
        vd.data_plate(dataset_size, batch_size)


def test_a_net_called_inside_a_plate_is_refused_with_advice():
    program = Program(two_layer_net())

    def inside(x, y):
        with vd.data_plate(30, len(x)):
            pyro.sample("y", dist.Normal(program.bnn(x), 1.0).to_event(1), obs=y)

    message = r"site 'net.0.weight': expected .*plate.*call it before the plate, and put only the likelihood inside"
    with pytest.raises(ValueError, match=message):
        TraceVD_ELBO().loss(inside, AutoSparseVD(inside, where="net.*"), X, Y)
    # By its shape, where the guide has the site outside:
    with pytest.raises(ValueError, match="site 'net.0.weight': expected .* shape .*before the plate, and put only"):
        TraceVD_ELBO().loss(inside, program.guide, X, Y)
