"""What an error says to write instead is what works."""

from __future__ import annotations

import re

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vd as vd


def loss(y, shape, to_event=0):
    """Of a model whose likelihood has ``shape``, within plates of the dimensions that are not its event's."""

    def model():
        sizes = shape[: len(shape) - to_event]
        plates = [pyro.plate(f"plate {i}", size, dim=i - len(sizes)) for i, size in enumerate(sizes)]
        for plate in plates:
            plate.__enter__()
        pyro.sample("y", dist.Normal(torch.zeros(shape), 1.0).to_event(to_event), obs=y)
        for plate in reversed(plates):
            plate.__exit__(None, None, None)

    return vd.TraceVD_ELBO().loss(model, lambda: None)


@pytest.mark.parametrize(
    ("got", "shape", "to_event", "cure"),
    [
        ((3,), (3, 1), 0, "y.reshape((3, 1))"),
        ((3, 1), (1, 3), 0, "y.reshape((1, 3))"),
        ((2,), (4, 2), 0, "y.expand((4, 2))"),  # a plate of particles around the data, say
        ((4, 1), (4, 2), 0, "y.expand((4, 2))"),
        ((), (4,), 1, "y.expand((4,))"),
        ((3,), (1,), 1, None),
    ],
)
def test_a_shape_that_would_be_broadcast(got, shape, to_event, cure):
    y = torch.arange(1.0, 1.0 + torch.Size(got).numel()).reshape(got)
    with pytest.raises(ValueError, match="which would be broadcast") as caught:
        loss(y, shape, to_event)
    found = re.search(r"write obs=(y\.\w+\(\(.*?\)\))", str(caught.value))
    assert (found and found[1]) == cure
    assert "give the distribution the shape of y" in str(caught.value)
    if cure is not None:
        value = eval(cure, {"y": y})
        expected = -dist.Normal(0.0, 1.0).log_prob(value).sum().item()
        assert loss(value, shape, to_event) == pytest.approx(expected)


@pytest.mark.parametrize("given", [{}, {"has_rsample": False}])
def test_a_factor_whose_gradient_is_not_known(given):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(**given):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.tensor(3.0), **given)

    with pytest.raises(NotImplementedError, match=r"site 'f'.*got Unit: a factor; write pyro.factor\(..., has_rsample"):
        vd.TraceVD_ELBO().loss(model, lambda: guide(**given))
    assert vd.TraceVD_ELBO().loss(model, lambda: guide(has_rsample=True)) == pytest.approx(3.0)
