"""Parameters that are missing, misspelt, one too many, of another shape or no parameters: an error that names one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import numpyro.infer.svi
import pytest

import pyro_vd.numpyro as vd
from helpers.guide_cases import NAMES
from helpers.mirror_parity import NORMAL_PRIOR
from helpers.mirror_regression import KEY, X, Y, regression
from pyro_vd.guides import numpyro as guides


@pytest.fixture(scope="module")
def trained():
    """BayesianModule, model, guide, SVI, state and parameters, of a net with a bias and a noise site."""
    bnn, model, guide, svi = regression(
        guide=guides.AutoSparseVD, prior=vd.ImproperLogUniform(), noise=dist.HalfNormal(1.0)
    )
    state = svi.init(KEY, X, Y)
    return bnn, model, guide, svi, state, svi.get_params(state)


def calls(bnn, model, guide):
    """Everything that reads the parameters of model and guide."""
    elbo = vd.TraceVD_ELBO()
    return {
        "loss": lambda p: elbo.loss(KEY, p, model, guide, X, Y),
        "terms": lambda p: elbo.terms(KEY, p, model, guide, X, Y),
        "checked_terms": lambda p: elbo.checked_terms(KEY, p, model, guide, X, Y),
        "jitted loss": lambda p: jax.jit(lambda q: elbo.loss(KEY, q, model, guide, X, Y))(p),
        "particles": lambda p: vd.TraceVD_ELBO(num_particles=2).loss(KEY, p, model, guide, X, Y),
        "posterior_predictive": lambda p: vd.posterior_predictive(KEY, p, model, guide, X, num_samples=1),
        "mode local": lambda p: vd.posterior_predictive(KEY, p, model, guide, X, num_samples=1, mode="local"),
        "mode mean": lambda p: vd.posterior_predictive(KEY, p, model, guide, X, num_samples=1, mode="mean"),
        "gradient_variance": lambda p: vd.gradient_variance(KEY, p, model, guide, elbo, X, Y, num_draws=2),
        "lrt_report": lambda p: vd.lrt_report(KEY, p, model, guide, X, Y),
    }


def readers(bnn, guide):
    """What reads the parameters of the guide alone; those of the model may be among them."""
    return {
        "posteriors": guide.posteriors,
        "median": guide.median,
        "sample_posterior": lambda p: guide.sample_posterior(KEY, p),
        "sparsity_report": lambda p: vd.sparsity_report(guide, params=p),
        "prune": lambda p: vd.prune(bnn, guide, params=p),
    }


def without(params, name):
    return {other: value for other, value in params.items() if other != name}


CALLS = list(calls(None, None, None))
READERS = list(readers(None, guides.AutoSparseVD(lambda: None)))
NAMED = ("auto.locs.net.weight", "auto.log_sigma2s.net.weight", "net.bias", "scale_auto_loc", "scale_auto_scale")


@pytest.mark.parametrize("call", CALLS)
def test_a_program_names_what_is_missing_misspelt_or_too_much(trained, call):
    bnn, model, guide, _, _, params = trained
    run = calls(bnn, model, guide)[call]
    for name in NAMED:
        with pytest.raises(ValueError, match=f"none named '{name}' among"):
            run(without(params, name))
        with pytest.raises(ValueError, match=f"none named '{name}' among .*'{name}s'"):
            run({**without(params, name), f"{name}s": params[name]})
    with pytest.raises(ValueError, match="none named '.*' among"):
        run({})
    for extra in ("bogus", "net.bais", "auto.locs.net.other.weight", "auto.rates.net.weight"):
        with pytest.raises(ValueError, match=rf"{extra}.* as well"):
            run({**params, extra: jnp.zeros(1)})


@pytest.mark.parametrize("call", CALLS[:5] + CALLS[5:6] + CALLS[8:])
def test_a_value_of_another_shape_is_an_error_that_names_it(trained, call):
    bnn, model, guide, _, _, params = trained
    run = calls(bnn, model, guide)[call]
    for name in ("auto.locs.net.weight", "auto.log_sigma2s.net.weight", "net.bias"):
        for wrong in (jnp.zeros(1) if params[name].ndim > 1 else jnp.zeros((1, 1)), jnp.zeros((2, 3)), 0.0):
            with pytest.raises(ValueError, match=f"parameter '{name}': expected a value of shape"):
                run({**params, name: wrong})


@pytest.mark.parametrize("reader", READERS)
def test_what_reads_a_guide_names_what_is_missing_or_of_another_family(trained, reader):
    bnn, _, guide, _, _, params = trained
    run = readers(bnn, guide)[reader]
    assert run({**params, "of.the.model": jnp.zeros(1)}) is not None
    for name in NAMED[:2]:
        with pytest.raises(ValueError, match=f"params: expected the parameters of this AutoSparseVD, with '{name}'"):
            run(without(params, name))
        with pytest.raises(ValueError, match=f"parameter '{name}': expected a value of shape"):
            run({**params, name: jnp.zeros(1)})
    with pytest.raises(ValueError, match="'auto.rates.net.weight' as well; are they those of another family"):
        run({**params, "auto.rates.net.weight": jnp.zeros(1)})
    if reader in ("median", "sample_posterior"):
        with pytest.raises(ValueError, match="none named 'scale_auto_loc'"):
            run(without(params, "scale_auto_loc"))
    if reader == "prune":
        with pytest.raises(ValueError, match="expected a value for 'net.bias'"):
            run(without(params, "net.bias"))
        with pytest.raises(ValueError, match=r"\['net.2.bias'\] as well"):
            run({**params, "net.2.bias": jnp.zeros(1)})


@pytest.mark.parametrize("call", [*CALLS, *READERS])
def test_what_is_no_mapping_of_arrays_is_an_error(trained, call):
    bnn, model, guide, svi, state, params = trained
    run = {**calls(bnn, model, guide), **readers(bnn, guide)}[call]
    if call == "jitted loss":
        return  # jax.jit asks for arrays itself
    wrong = {
        "none": None, "list": list(params.values()), "SVIState": state, "str": "params.npz", "ArrayImpl": X,
        "SVI": svi, "set": set(params),
    }  # fmt: skip
    for got, value in wrong.items():
        match = f"(expected params to be a dict from names to arrays, got .*{got}|expected the parameters of .*none)"
        with pytest.raises((TypeError, ValueError), match=match):
            run(value)
    with pytest.raises(TypeError, match="'net.bias'.*to be an array of JAX, got str"):
        run({**params, "net.bias": "0"})
    with pytest.raises(TypeError, match="expected the names in params to be text, got 0"):
        run({**params, 0: X})
    with pytest.raises(TypeError, match="params\\['net.bias'\\] to be an array, got None"):
        run({**params, "net.bias": None})


def test_parameters_are_as_they_were_after_all_errors(trained):
    bnn, model, guide, svi, state, params = trained
    before = {name: value.copy() for name, value in params.items()}
    loss = svi.evaluate(state, X, Y)
    for run in calls(bnn, model, guide).values():
        with pytest.raises(ValueError):
            run({**params, "bogus": X})
    assert all((params[name] == value).all() for name, value in before.items())
    assert svi.evaluate(state, X, Y) == loss


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("AutoMeanField", "AutoSparseVD", "AutoARD")])
def test_parameters_of_one_family_are_refused_by_another(name):
    """Even where they have all that it needs: AutoGaussianDropout has no trained parameter but its means."""
    prior = dist.Normal(0.0, 1.0) if name in NORMAL_PRIOR else vd.ImproperLogUniform()
    _, model, guide, svi = regression(guide=getattr(guides, name), prior=prior)
    svi.init(KEY, X, Y)
    *_, other = regression(guide=guides.AutoMeanField)
    params = other.get_params(other.init(KEY, X, Y))
    with pytest.raises(ValueError, match="auto|log_sigma2s"):
        guide.posteriors(params)
    with pytest.raises(ValueError, match="auto|log_sigma2s"):
        vd.TraceVD_ELBO().loss(KEY, params, model, guide, X, Y)


def test_a_hand_written_program_and_its_state_are_checked_too():
    def model(x):
        loc, count = numpyro.param("loc", jnp.zeros(3)), numpyro.primitives.mutable("count", {"n": jnp.zeros(())})
        count["n"] = count["n"] + 1
        numpyro.sample("w", dist.Normal(loc, 1.0).to_event(1))

    def guide(x):
        numpyro.sample("w", dist.Normal(numpyro.param("mean", jnp.zeros(3)), 1.0).to_event(1))

    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.1), vd.TraceVD_ELBO())
    state, _ = svi.update(svi.init(KEY, X), X)
    params = svi.get_params(state)
    assert state.mutable_state["count"]["n"] == 2 and set(params) == {"loc", "mean"}
    assert jnp.isfinite(svi.evaluate(state, X))
    for name in params:
        with pytest.raises(ValueError, match=f"none named '{name}' among"):
            svi.loss.loss(KEY, without(params, name), model, guide, X)
    with pytest.raises(ValueError, match="'men' as well"):
        svi.loss.loss(KEY, {**params, "men": X}, model, guide, X)
