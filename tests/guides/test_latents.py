"""Which latent sites of a model a guide covers, and what is refused."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD, AutoVariationalDropout, mixed_guide

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
REAL, CLASSES = X[:, :2].clone(), torch.tensor([0, 1, 1, 0, 1, 0])
ELBO = vd.TraceVD_ELBO(analytic_only=False)


def net(prior=None, name="net"):
    return vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, 1.0) if prior is None else prior, name=name)


def latent_in(model, *args, **options):
    guide = AutoMeanField(model, **options)
    guide(*args)
    return list(guide(*args))


@pytest.mark.parametrize("labels", [True, False])
def test_local_latents_of_a_plate_without_subsampling_are_covered(labels):
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with pyro.plate("rows", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(output + shift.unsqueeze(-1), 1.0).to_event(1), obs=y)

    assert latent_in(model, X, *([REAL] if labels else [])) == ["net.weight", "shift"]
    guide = AutoMeanField(model)
    for mode in ("weights", "local", "mean"):  # the guide opens the plate
        vd.posterior_predictive(model, guide, X, num_samples=1, mode=mode)
    terms = ELBO.terms(model, guide, X, REAL)
    assert set(terms.kl) == {"net.weight", "shift", "shift_unconstrained"}


def local_model(plate):
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with plate(len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(output + shift.unsqueeze(-1), 1.0).to_event(1), obs=y)

    return model


SUBSAMPLING = {
    "data_plate": lambda n: vd.data_plate(60, n),
    "data_plate of all": lambda n: vd.data_plate(n, n),
    "subsample_size": lambda n: pyro.plate("data", 60, subsample_size=n),
    "subsample": lambda n: pyro.plate("data", 60, subsample=torch.arange(n)),
}


@pytest.mark.parametrize("plate", SUBSAMPLING)
def test_a_local_latent_in_a_minibatch_is_left_to_a_guide_by_hand(plate):
    model = local_model(SUBSAMPLING[plate])
    guide = AutoMeanField(model)
    assert list(guide(X, REAL)) == ["net.weight"]
    with pytest.raises(ValueError, match=r"site 'shift': expected a guide that samples .*by hand \(pyro_vd.guides"):
        ELBO.loss(model, guide, X, REAL)
    for mode in ("weights", "local", "mean"):
        draws = vd.posterior_predictive(model, guide, X, num_samples=3, mode=mode)
        assert set(draws) == {"shift", "y"} and len(draws["shift"].unique()) == 18  # of its prior

    def by_hand(x, y=None):
        with SUBSAMPLING[plate](len(x)):
            pyro.sample("shift", dist.Normal(pyro.param("loc", torch.zeros(60))[: len(x)], 0.1))

    whole = mixed_guide(model, AutoMeanField(model, where="net.*"), by_hand)
    for size in (6, 4):
        assert set(ELBO.terms(model, whole, X[:size], REAL[:size]).kl) == {"net.weight", "shift"}
        draws = vd.posterior_predictive(model, whole, X[:size], num_samples=3)
        assert set(draws) == {"y"}


def test_a_latent_seen_through_a_factor_alone_and_one_that_a_pseudo_observation_depends_on():
    bnn = net()

    def model(x, y=None):
        pyro.factor("penalty", -pyro.sample("penalised", dist.Normal(0.0, 1.0)).square())
        centred = pyro.sample("centred", dist.Normal(0.0, 1.0))
        pyro.sample("constraint", dist.Normal(0.0, 1.0), obs=centred + bnn(x).mean())

    assert latent_in(model, X) == ["penalised", "centred", "net.weight"]


def test_what_obs_mask_hides_is_covered():
    bnn = net()

    def model(x, y=None, known=None):
        output = bnn(x)
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y, obs_mask=known)

    known = X[:, 0] > 0
    assert latent_in(model, X, REAL, known) == ["net.weight", "y_unobserved"]
    guide = AutoMeanField(model)
    guide(X)
    assert set(ELBO.terms(model, guide, X, REAL).kl) == {"net.weight"}


def test_a_prior_scale_of_hand_written_weights_is_covered():
    def model(x, y=None):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        weight = pyro.sample("w", dist.Normal(torch.zeros(3, 2), scale).to_event(2))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)

    guide = mixed_guide(model, AutoMeanField(model, where="w"), AutoNormal(poutine.block(model, expose=["scale"])))
    assert set(guide(X, REAL)) == {"w", "scale"}
    assert set(AutoMeanField(model, where=["w"])(X, REAL)) == {"w"}


def test_a_weight_of_a_model_without_data_is_covered_where_it_is_named():
    def model(x):
        return x @ pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))

    assert latent_in(model, X, where="w") == ["w"]
    with pytest.raises(ValueError, match=r"a latent site that is a weight.*, got the sites \['w'\]; name the weights"):
        AutoMeanField(model)(X)
    with pytest.raises(ValueError, match=r"a latent site that matches where, got the sites \['w'\]"):
        AutoMeanField(model, where="v")(X)


@pytest.mark.parametrize("kind, message", [
    (dist.Bernoulli(0.5), "cannot handle discrete sample site 'sign'.*enumerat"),
    (dist.Categorical(torch.ones(2)), "site 'sign': expected a guide that samples every latent site"),
])  # fmt: skip
def test_a_discrete_latent_is_an_error_that_names_it(kind, message):
    bnn = net()

    def model(x, y=None):
        sign = pyro.sample("sign", kind)
        with vd.data_plate(60, len(x)):
            pyro.sample("y", dist.Normal(bnn(x) * sign, 1.0).to_event(1), obs=y)

    guide = AutoMeanField(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            ELBO.loss(model, guide, X, REAL)
        assert list(guide.state_dict()) == ["locs.net.weight", "log_sigma2s.net.weight"]


def test_the_plates_of_covered_sites_are_opened_and_no_others():
    bnn = net()

    def model(x, y=None):
        output = bnn(x)
        with pyro.plate("groups", 2):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(output + shift, 1.0).to_event(1), obs=y)

    for guide in (AutoMeanField(model), mixed_guide(model, AutoMeanField(model))):
        for args in ((X,), (X, REAL), (X[:4], REAL[:4])):
            names = set(poutine.trace(guide).get_trace(*args).nodes)
            assert "groups" in names and "data" not in names
    for part in (AutoSparseVD, AutoVariationalDropout):
        names = set(poutine.trace(part(model, where="net.*")).get_trace(X).nodes)
        assert not {"groups", "data"} & names
