"""to_arviz: groups, dimensions and log likelihoods, read back by arviz; refusals; both backends."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyro_vd as vd

LOCS = torch.linspace(-1.0, 1.0, 40)[:, None] + torch.arange(3.0)


def forecast(event: bool = False) -> vd.Predictive:
    draws = dist.Normal(LOCS, 0.5)
    return vd.Predictive(draws.to_event(1) if event else draws, "y")


def test_a_distribution_has_values_and_log_likelihoods_of_its_draws():
    pytest.importorskip("arviz_base")
    y = torch.tensor([0.1, 1.2, 2.0])
    tree = vd.to_arviz({"y": forecast()}, observed={"y": y}, posterior={"w": torch.zeros(40, 2)},
                       dims={"y": ["city"]}, coords={"city": ["a", "b", "c"]})  # fmt: skip
    assert set(tree.children) == {"posterior_predictive", "log_likelihood", "posterior", "observed_data"}
    logs = tree["log_likelihood"]["y"]
    assert logs.dims == ("chain", "draw", "city") and list(logs["city"].values) == ["a", "b", "c"]
    np.testing.assert_allclose(logs[0], stats.norm(LOCS.numpy(), 0.5).logpdf(y.numpy()), rtol=1e-5)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y)
    values = tree["posterior_predictive"]["y"].values[0]
    assert values.shape == (40, 3)
    # A value belongs to its own draw: 120 residuals of standard deviation 0.5, none beyond 6 of them (odds 2e-7).
    assert np.abs(values - LOCS.numpy()).max() < 3.0
    assert tree["posterior"]["w"].dims == ("chain", "draw", "w_dim_0")


def test_an_event_is_one_term_of_the_log_likelihood():
    pytest.importorskip("arviz_base")
    tree = vd.to_arviz({"y": forecast(event=True)}, observed={"y": torch.zeros(3)}, dims={"y": ["city"]})
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "city")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw")
    expected = stats.norm(LOCS.numpy(), 0.5).logpdf(0.0).sum(1)
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], expected, rtol=1e-5)


def test_draws_of_sites_and_of_what_a_model_returns():
    pytest.importorskip("arviz_base")
    draws = {"y": torch.ones(5, 2, dtype=torch.long), "_RETURN": torch.zeros(5, 2, 4, dtype=torch.bfloat16)}
    tree = vd.to_arviz(draws, group="predictions", dims={"_RETURN": ["example", "class"]})
    assert list(tree.children) == ["predictions"] and tree["predictions"]["y"].dtype == np.int64
    assert dict(tree["predictions"]["_RETURN"].sizes) == {"chain": 1, "draw": 5, "example": 2, "class": 4}
    prior = vd.to_arviz({"y": forecast()}, observed={"y": torch.zeros(3)}, group="prior_predictive")
    assert set(prior.children) == {"prior_predictive", "observed_data"}, "no leaving one out of a prior"


@pytest.mark.slow
def test_loo_is_that_of_an_exact_posterior():
    """Draws of the exact posterior of a mean, y ~ N(w, 1): LOO is the sum of log p(y_i | the others), to 0.1 nats."""
    arviz_stats = pytest.importorskip("arviz_stats")
    y = np.random.default_rng(0).normal(size=30)
    w = torch.tensor(y.mean() + np.random.default_rng(1).normal(size=4000) / np.sqrt(30))
    prediction = vd.Predictive(dist.Normal(w[:, None].expand(-1, 30), 1.0), "y")
    found = arviz_stats.loo(vd.to_arviz({"y": prediction}, observed={"y": torch.tensor(y)}), reff=1.0)
    others = (y.sum() - y) / 29
    assert found.elpd == pytest.approx(stats.norm(others, np.sqrt(1 + 1 / 29)).logpdf(y).sum(), abs=0.1)
    assert found.n_samples == 4000 and found.n_data_points == 30


BAD = {
    "a bare tensor": (dict(draws=torch.zeros(4, 3)), TypeError, r"draws to be a dict .* got .*torch Tensor"),
    "a bare prediction": (dict(draws=forecast()), TypeError, r"draws to be a dict"),
    "nothing": (dict(draws={}), ValueError, "to have a site, got an empty dict"),
    "a list": (dict(draws={"y": [1.0]}), TypeError, "draws: expected a tensor for site 'y'"),
    "a group": (dict(draws={"y": torch.zeros(4, 3)}, group="posterior"), ValueError, "'predictions'.* got 'posterior'"),
    "a site": (dict(draws={"y": torch.zeros(4, 3)}, observed={"z": 0}), ValueError, r"sites \['y'\], got \['z'\]"),
    "a shape": (
        dict(draws={"y": torch.zeros(4, 3)}, observed={"y": torch.zeros(1)}),
        ValueError,
        r"site 'y' of shape \(3,\), got \(1,\)",
    ),
    "a shape of a prediction": (
        dict(draws={"y": forecast()}, observed={"y": torch.zeros(2, 3)}),
        ValueError,
        r"site 'y' of shape \(3,\), got \(2, 3\)",
    ),
    "unequal draws": (
        dict(draws={"y": torch.zeros(4, 3)}, posterior={"w": torch.zeros(5)}),
        ValueError,
        r"as many draws of every site.*'y': 4, 'w': 5",
    ),
    "no draws": (dict(draws={"y": torch.tensor(1.0)}), ValueError, r"no axis in \['y'\]"),
    "data of predictions": (
        dict(draws={"y": torch.zeros(4, 3)}, observed={"y": torch.zeros(3)}, group="predictions"),
        ValueError,
        "expected none with group 'predictions'",
    ),
    "dims of no site": (dict(draws={"y": torch.zeros(4, 3)}, dims={"z": ["a"]}), ValueError, r"\['y'\], got \['z'\]"),
    "too many dims": (dict(draws={"y": torch.zeros(4, 3)}, dims={"y": ["a", "b"]}), ValueError, "expected 1 names"),
    "a name for names": (dict(draws={"y": torch.zeros(4, 3)}, dims={"y": "a"}), ValueError, "expected 1 names"),
    "a dim of two sizes": (
        dict(draws={"y": torch.zeros(4, 3), "z": torch.zeros(4, 2)}, dims={"y": ["a"], "z": ["a"]}),
        ValueError,
        "'a' to have one size, got 3 and 2",
    ),
    "coords of no dim": (
        dict(draws={"y": torch.zeros(4, 3)}, coords={"city": [1, 2, 3]}),
        ValueError,
        r"dimensions \['y_dim_0'\], got \['city'\]",
    ),
    "coords too long": (dict(draws={"y": torch.zeros(4, 3)}, coords={"y_dim_0": [1]}), ValueError, "expected 3 values"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        vd.to_arviz(**arguments)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r"to_arviz: expected arviz_base, found none; .*pyro_vd\[arviz\]"):
        vd.to_arviz({"y": torch.zeros(4, 3)})


@pytest.mark.slow
def test_the_numpyro_side_has_the_same_tree():
    pytest.importorskip("arviz_base")
    jnp = pytest.importorskip("jax.numpy")
    import jax
    import numpyro.distributions as ndist

    import pyro_vd.numpyro as mirror

    locs, y = jnp.asarray(LOCS.numpy()), np.zeros(3, np.float32)
    theirs = {"y": mirror.Predictive(ndist.Normal(locs, 0.5), "y")}
    ours = vd.to_arviz({"y": forecast()}, observed={"y": torch.zeros(3)})
    with pytest.raises(ValueError, match="to_arviz: expected a random key, got none"):
        mirror.to_arviz(theirs)
    tree = mirror.to_arviz(theirs, rng_key=jax.random.key(0), observed={"y": y})
    assert set(tree.children) == set(ours.children)
    np.testing.assert_allclose(tree["log_likelihood"]["y"], ours["log_likelihood"]["y"], rtol=1e-5)
    assert np.abs(tree["posterior_predictive"]["y"].values[0] - LOCS.numpy()).max() < 3.0
    with pytest.raises(ValueError, match=r"sites \['y'\], got \['z'\]"):
        mirror.to_arviz({"y": locs}, observed={"z": y})


def test_a_value_outside_the_support_of_a_draw_has_no_likelihood_there():
    """Uniform likelihoods on (0, 1) and (0, 3), seen 0.5 and 2: the log of the mean over draws is that of the parts."""
    prediction = vd.Predictive(dist.Uniform(torch.zeros(2, 2), torch.tensor([[1.0], [3.0]]).expand(2, 2)), "y")
    found = prediction.log_likelihood(torch.tensor([0.5, 2.0]))
    expected = torch.tensor([[1.0, 0.0], [1 / 3, 1 / 3]]).log()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(prediction.log_prob(torch.tensor([0.5, 2.0])).exp(), torch.tensor([2 / 3, 1 / 6]))
