"""A weight that is used twice: an error under "local", the right correlation as a shared site.

Exact where the draw is one; the statistical test allows the standard errors of ``oracles.standard_errors``.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

import pyro_vd as vd
from helpers.oracles import assert_mean_close
from helpers.programs import run_locally

X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


class Siamese(nn.Module):
    """The distance of two inputs after one and the same layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.layer(x) - self.layer(other)


class TiedAutoencoder(nn.Module):
    """The decoder is the transpose of the encoder, by a view or by a parameter in two layers."""

    def __init__(self, by_view: bool):
        super().__init__()
        self.encoder = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        self.decoder = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        self.decoder.weight = self.encoder.weight
        self.by_view = by_view

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encoder(x), self.encoder.weight.T) if self.by_view else self.decoder(self.encoder(x))


class Unrolled(nn.Module):
    """A recurrent net written by hand."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        for _ in range(3):
            state = torch.tanh(self.layer(state) + x)
        return state


class TiedEmbedding(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 3, dtype=torch.float64)
        self.out = nn.Linear(3, 5, bias=False, dtype=torch.float64)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x))


NETS = {
    "siamese": (Siamese, (X, X.flip(0)), "layer.weight"),
    "tied by a view": (lambda: TiedAutoencoder(True), (X,), "encoder.weight"),
    "tied parameter": (lambda: TiedAutoencoder(False), (X,), "encoder.weight"),
    "unrolled": (Unrolled, (X,), "layer.weight"),
    "tied embedding": (TiedEmbedding, (torch.tensor([[0, 1], [4, 4]]),), "words.weight"),
}


@pytest.mark.parametrize(("make", "args", "name"), NETS.values(), ids=NETS)
def test_second_use_is_an_error_and_a_shared_site_one_coherent_draw(make, args, name):
    net = make()
    with pytest.raises(ValueError, match=rf"site 'net.{name}': expected one use .*shared_sites=\['net.{name}'\]"):
        run_locally(net, *args, where=name)
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0), where=name)
    assert bnn.weight_names == (name,)

    def guide(*args):
        pyro.sample(f"net.{name}", vd.DropoutNormal(net.get_parameter(name), log_sigma2=0.0).to_event(2))

    trace = poutine.trace(vd.lrt(guide, shared_sites=[f"net.{name}"])).get_trace(*args)
    draw = trace.nodes[f"net.{name}"]["value"]
    tied = {other: draw for other, p in net.named_parameters(remove_duplicate=False) if p is net.get_parameter(name)}
    expected = torch.func.functional_call(net, tied, args)
    torch.testing.assert_close(poutine.replay(bnn, trace)(*args), expected, rtol=0, atol=1e-12)


def test_tied_parameter_is_one_site_with_one_kl():
    bnn = vd.BayesianModule(TiedEmbedding(), vd.ImproperLogUniform())

    def model(x):
        mean = bnn(x)
        with vd.data_plate(2, 2):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(2), obs=torch.zeros(2, 2, 5).double())

    def guide(x):
        pyro.sample("net.words.weight", vd.DropoutNormal(torch.ones(5, 3).double(), 0.0).to_event(2))

    terms = vd.TraceVD_ELBO(shared_sites=["net.words.weight"]).terms(model, guide, torch.tensor([[0, 1], [4, 4]]))
    assert list(terms.kl) == ["net.words.weight"]
    expected = 15 * vd.kl.kl_log_uniform(torch.zeros(()).double())
    torch.testing.assert_close(terms.kl_total, expected, rtol=1e-12, atol=0)


def test_difference_of_a_siamese_net_has_the_variance_of_weight_space_as_a_shared_site():
    """``w (x - x')`` has variance ``sum (x - x')**2``: not that of two independent outputs, ``sum x**2 + x'**2``."""
    net, near = Siamese(), X + 0.1
    differences = []
    for _ in range(500):
        output, _ = run_locally(net, X, near, where="layer.weight", log_sigma2=0.0,
                                handler=lambda guide: vd.lrt(guide, shared_sites=["net.layer.weight"]))  # fmt: skip
        differences.append(output.detach() - F.linear(X - near, net.layer.weight.detach()))
    assert_mean_close(torch.stack(differences).square(), (X - near).square().sum(-1, keepdim=True).expand(4, 3))
