"""A matrix that an operation without a rule is given with data is named, whatever its share is. Exact."""

from __future__ import annotations

import functools
import operator
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField


class Layer(nn.Module):
    """Calls a function of data and its kernel."""

    def __init__(self, function=None):
        super().__init__()
        self.function = function
        self.kernel = nn.Parameter(torch.rand(3, 3))

    def forward(self, x):
        return self.function(x, self.kernel)


class Index(Layer):
    def forward(self, x):
        return self.kernel[x.argmax(-1)]


class Method(Layer):
    def forward(self, x):
        return self.kernel.index_select(0, x.argmax(-1))


class InList(Layer):
    def forward(self, x):
        return torch.linalg.multi_dot([x, self.kernel])


class Fourier(Layer):
    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(self.kernel), n=3)


class Reduced(Layer):
    def forward(self, x):
        return functools.reduce(torch.matmul, [x, self.kernel])


class Mapped(Layer):
    def forward(self, x):
        return torch.vmap(torch.dot)(x, self.kernel)


class Token(Layer):
    def forward(self, x):
        return torch.cat([self.kernel[: len(x)].expand(len(x), 3), x], -1)


class Position(Layer):
    def forward(self, x):
        return x + self.kernel[torch.arange(len(x))]


class Mask(Layer):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, self.kernel) + F.scaled_dot_product_attention(
            x, x, x, attn_mask=self.kernel
        )


class CallOf:
    def __call__(self, x, weight):
        return x @ weight


FUNCTIONS = [
    torch.cdist, torch.kron, torch.dist, torch.take, torch.linalg.solve, torch.linalg.vecdot, torch.sparse.mm,
    torch.cosine_similarity, F.cosine_similarity, F.pairwise_distance, F.mse_loss, nn.CosineSimilarity(),
    nn.PairwiseDistance(), operator.matmul, torch.ops.aten.mm,
]  # fmt: skip
SAID = [*(functools.partial(Layer, one) for one in FUNCTIONS), Index, Method, InList, Fourier, Reduced, Mapped]
BESIDE = [torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.hypot, torch.where, F.prelu, torch.eq]


def choice(layer, **options):
    net = nn.Sequential(nn.Linear(3, 300), nn.Linear(300, 3), layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0), **options)
    return bnn, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("make", SAID)
def test_an_operation_without_a_rule_is_said(make):
    layer = make()
    bnn, said = choice(layer)
    assert bnn.weight_names == ("0.weight", "1.weight") and len(said) == 1
    assert f"deterministic are those of {type(layer).__name__} ('2') (used with data in " in said[0]
    assert "which is no operation of the table" in said[0] and "kernel" in said[0]
    named, said = choice(layer, where=["*.weight", "2.kernel"])
    assert named.weight_names == ("0.weight", "1.weight", "2.kernel") and not said


@pytest.mark.parametrize("make", [*(functools.partial(Layer, one) for one in BESIDE), Token, Position, Mask])
def test_nothing_is_said_of_positions_tokens_gains_and_masks(make):
    bnn, said = choice(make())
    assert bnn.weight_names == ("0.weight", "1.weight") and not said


@pytest.mark.parametrize("function", [F.linear, torch.inner, CallOf()])
def test_a_product_in_a_callable_is_a_weight(function):
    bnn, said = choice(Layer(function))
    assert bnn.weight_names == ("0.weight", "1.weight", "2.kernel") and not said


class Borrowed(nn.Module):
    """The weight of a Linear layer that is not called itself."""

    def __init__(self, function):
        super().__init__()
        self.other, self.linear, self.function = nn.Linear(3, 3), nn.Linear(3, 3), function

    def forward(self, x):
        return self.function(self.other(x), self.linear.weight)


@pytest.mark.parametrize("where", [None, "linear.weight", nn.Linear], ids=["default", "name", "type"])
@pytest.mark.parametrize("function", [torch.cdist, torch.kron, F.cosine_similarity, F.pairwise_distance])
def test_the_weight_of_a_layer_that_is_not_called_is_drawn(function, where):
    bnn, said = choice(Borrowed(function), where=where if where != "linear.weight" else "2.linear.weight")
    assert "2.linear.weight" in bnn.weight_names and (where == "linear.weight" or not said)
    x = torch.rand(3, 3)

    def model():
        output = bnn(x).flatten()
        pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=torch.zeros(len(output)))

    loss = vd.TraceVD_ELBO()(model, AutoMeanField(model, init_log_sigma2=0.0))
    with pytest.warns(UserWarning, match="'net.2.linear.weight': expected an operation with a rule"):
        loss().backward()
    kernel = dict(loss.guide.named_parameters())["log_sigma2s.net.2.linear.weight"]
    assert kernel.grad.abs().min() > 0
