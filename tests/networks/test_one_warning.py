"""Weights that go through an operation without a rule: one coherent draw of each, and one warning for a net. Exact."""

from __future__ import annotations

import copy
import warnings

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pyro_vd as vd
from helpers.plain_nets import StandardNet
from helpers.programs import run_locally

X = torch.randn(4, 3)


def normed() -> nn.Module:
    return nn.Sequential(*(parametrizations.weight_norm(nn.Linear(3, 3)) for _ in range(3)))


def spectral() -> nn.Module:
    return nn.Sequential(*(parametrizations.spectral_norm(nn.Linear(3, 3)) for _ in range(3))).eval()


NETS = {"standardised": (StandardNet, torch.randn(2, 1, 5, 5), 2), "weight norm": (normed, X, 3)}


@pytest.mark.parametrize("name", NETS)
def test_a_net_warns_once_with_a_count_and_uses_one_draw_of_each_weight(name):
    make, data, number = NETS[name]
    net = make()
    with pytest.warns(
        UserWarning, match=rf"{number} sites: expected an operation with a rule .* shared_sites=\['net"
    ) as said:
        output, states = run_locally(net, data, where=None, log_sigma2=-1.0)
    assert len(said) == 1 and all(site in str(said[0].message) for site in (s.site for s in states.values()))
    drawn = {key: state.draw for key, state in states.items()}
    assert len(drawn) == number and all(draw is not None for draw in drawn.values())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            parameter.copy_(drawn.get(key, parameter))
    torch.testing.assert_close(output, twin(data), rtol=1e-5, atol=1e-6)


def test_a_spectral_norm_uses_its_weight_twice_which_is_refused_with_a_cure():
    net = spectral()
    with pytest.raises(ValueError, match=r"Write shared_sites=\['net.0.parametrizations.weight.original'") as refused:
        run_locally(net, X, where=None)
    assert "expected one use of" in str(refused.value)
    sites = [f"net.{i}.parametrizations.weight.original" for i in range(3)]
    output, states = run_locally(net, X, where=None, log_sigma2=-60.0, handler=vd.lrt(shared_sites=sites))
    assert not states
    torch.testing.assert_close(output, net(X))


def test_a_slice_of_positions_is_sampled_locally_without_a_warning():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.mix[: x.shape[1], : x.shape[1]] @ x

    _, states = run_locally(Sliced(), torch.randn(2, 4, 3), where=None)
    assert states["mix"].draw is None and states["mix"].used


def test_a_run_that_fails_does_not_swallow_the_warning():
    class Failing(StandardNet):
        fails = True

        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if self.fails:
                raise RuntimeError("later in the net")
            return output

    bnn = vd.BayesianModule(Failing(), vd.ImproperLogUniform())

    def guide(x: Tensor) -> None:
        for key in bnn.weight_names:
            loc = bnn.net.get_parameter(key)
            pyro.sample(bnn.site(key), vd.DropoutNormal(loc, log_sigma2=-3.0).to_event(loc.dim()))

    handler = vd.lrt()
    data = torch.randn(2, 1, 5, 5)

    def run() -> None:
        with handler:
            trace = poutine.trace(guide).get_trace(data)
        poutine.replay(bnn, trace)(data)

    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="later in the net"):
        warnings.simplefilter("error")
        run()
    bnn.net.fails = False
    with pytest.warns(UserWarning, match="2 sites: expected an operation with a rule"):
        run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()  # said already
