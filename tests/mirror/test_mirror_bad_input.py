"""More than a hundred invalid inputs: each is an error that says what was expected and what to write."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import torch
from flax import nnx

import pyro_vd as torch_vd
import pyro_vd.numpyro as vd
from helpers.mirror_regression import KEY, X, Y, regression
from pyro_vd.guides import numpyro as guides
from pyro_vd.guides.numpyro import AutoSparseVD

BNN, MODEL, GUIDE, SVI_ = regression(guide=AutoSparseVD, prior=vd.ImproperLogUniform())
STATE = SVI_.init(KEY, X, Y)
PARAMS = SVI_.get_params(STATE)
ELBO = vd.TraceVD_ELBO()
NET = eqx.nn.Linear(3, 1, key=KEY)
PRIOR = dist.Normal(0.0, 1.0)
TENSOR = torch.ones(12, 3)


def loss(key=KEY, params=PARAMS, model=MODEL, guide=GUIDE, x=X, y=Y, elbo=ELBO, **kwargs):
    return elbo.loss(key, params, model, guide, x, y, **kwargs)


def predict(key=KEY, params=PARAMS, model=MODEL, guide=GUIDE, x=X, num_samples=1, **options):
    return vd.posterior_predictive(key, params, model, guide, x, num_samples=num_samples, **options)


def variance(key=KEY, params=PARAMS, model=MODEL, guide=GUIDE, elbo=ELBO, x=X, num_draws=2, **options):
    return vd.gradient_variance(key, params, model, guide, elbo, x, Y, num_draws=num_draws, **options)


def report(key=KEY, params=PARAMS, model=MODEL, guide=GUIDE, x=X, **options):
    return vd.lrt_report(key, params, model, guide, x, **options)


PROGRAMS = {"loss": loss, "posterior_predictive": predict, "gradient_variance": variance, "lrt_report": report}


def with_plate(*args, **kwargs):
    with vd.data_plate(*args, **kwargs):
        pass


Bnn, Elbo, posteriors_of, mixed = vd.BayesianModule, vd.TraceVD_ELBO, vd.weight_posteriors, guides.mixed_guide

ROWS = {
    # what BayesianModule is made of
    "net of torch": (lambda: Bnn(torch.nn.Linear(3, 1), PRIOR), "expected net to be a flax.*torch's Linear"),
    "net is a function": (lambda: Bnn(lambda x: x, PRIOR), "expected net to be a flax.*got function"),
    "net is a class": (lambda: Bnn(nnx.Linear, PRIOR), "expected net to be a flax.*got the class Linear"),
    "net is None": (lambda: Bnn(None, PRIOR), "expected net to be a flax.*got NoneType"),
    "net is a module of Pyro's side": (lambda: Bnn(BNN, PRIOR), "expected net to be a flax.*BayesianModule"),
    "net is an array": (lambda: Bnn(X, PRIOR), "expected net to be a flax.*of float32"),
    "prior of torch": (lambda: Bnn(NET, torch.distributions.Normal(0.0, 1.0)), "expected prior.*torch's Normal"),
    "prior of the other side": (lambda: Bnn(NET, torch_vd.ImproperLogUniform()), "expected prior.*ImproperLog"),
    "prior is a class": (lambda: Bnn(NET, dist.Normal), "expected prior.*got the class Normal"),
    "prior is a number": (lambda: Bnn(NET, 1.0), "expected prior.*got float"),
    "prior is None": (lambda: Bnn(NET, None), "expected prior.*got NoneType"),
    "prior is text": (lambda: Bnn(NET, "normal"), "expected prior.*got str"),
    "prior of a name is no prior": (lambda: Bnn(NET, {"*": 1.0}), "expected prior.*got float"),
    "prior of a name is missing": (lambda: Bnn(NET, {"bias": PRIOR}), "prior: expected a prior.*'weight'"),
    "prior function returns a number": (lambda: Bnn(NET, lambda n, p: 1.0), "prior: expected a NumPyro.*float"),
    "prior function returns torch's": (
        lambda: Bnn(NET, lambda n, p: torch.distributions.Normal(0.0, 1.0)),
        "prior: expected a NumPyro.*torch",
    ),
    "name is a number": (lambda: Bnn(NET, PRIOR, name=3), "BayesianModule: expected name to be text, got int"),
    "name is None": (lambda: Bnn(NET, PRIOR, name=None), "expected name to be text, got NoneType"),
    "where matches nothing": (lambda: Bnn(NET, PRIOR, where="kernel"), "where: expected parameter names"),
    "where is a number": (lambda: Bnn(NET, PRIOR, where=3), "where: expected layer types"),
    "where is empty": (lambda: Bnn(NET, PRIOR, where=[]), "where: expected layer types"),
    "where is never true": (lambda: Bnn(NET, PRIOR, where=lambda n, m: False), "expected at least one param"),
    "where is a layer of torch": (lambda: Bnn(NET, PRIOR, where=torch.nn.Linear), "expected at least one param"),
    "where mixes kinds": (lambda: Bnn(NET, PRIOR, where=["weight", nnx.Linear]), "where: expected layer types"),
    "called with a tensor": (lambda: BNN(TENSOR), "data argument 0 to hold arrays.*torch's Tensor.*jnp.asarray"),
    "called with tensors in a dict": (lambda: BNN({"x": [TENSOR]}), "data argument 0 to hold arrays.*torch's Tensor"),
    "called without a key": (lambda: BNN(X), "expected a distribution that can be sampled, got the improper"),
    # data_plate
    "plate: size is a float": (
        lambda: with_plate(40.0, 12),
        "data_plate: expected dataset_size to be a whole number",
    ),
    "plate: size is an array": (lambda: with_plate(X, 12), "data_plate: expected dataset_size to be a whole number"),
    "plate: size is None": (lambda: with_plate(None, 12), "data_plate: expected dataset_size to be a whole number"),
    "plate: batch is a float": (lambda: with_plate(40, 12.0), "data_plate: expected batch_size to be a whole number"),
    "plate: batch is data": (lambda: with_plate(40, X), "data_plate: expected batch_size to be a whole number"),
    "plate: batch is True": (lambda: with_plate(40, True), "data_plate: expected batch_size to be a whole number"),
    "plate: batch above size": (lambda: with_plate(10, 12), "expected 1 <= batch_size <= dataset_size"),
    "plate: batch of 0": (lambda: with_plate(10, 0), "expected 1 <= batch_size <= dataset_size"),
    "plate: dim from the left": (lambda: with_plate(40, 12, dim=0), "data_plate: expected dim to be negative"),
    "plate: name is a number": (lambda: with_plate(40, 12, name=1), "data_plate: expected name to be text, got 1"),
    # the loss
    "elbo: unknown estimator": (lambda: Elbo("lokal"), "estimator: expected one of 'local'"),
    "elbo: no particles": (lambda: Elbo(num_particles=0), "num_particles: expected a whole number >= 1"),
    "elbo: half a particle": (lambda: Elbo(num_particles=1.5), "num_particles: expected a whole number"),
    "elbo: kl_weight negative": (lambda: Elbo(kl_weight=-1.0), "kl_weight: expected a finite number"),
    "elbo: kl_weight NaN": (lambda: Elbo(kl_weight=float("nan")), "kl_weight: expected a finite number"),
    "elbo: kl_weight a vector": (lambda: Elbo(kl_weight=jnp.ones(2)), "kl_weight: expected a number or a 0-dim"),
    "elbo: kl_weight text": (lambda: Elbo(kl_weight="1"), "kl_weight: expected a finite number"),
    "step: kl_weight of torch": (lambda: loss(kl_weight=torch.tensor(1.0)), "kl_weight|torch's Tensor"),
    "step: kl_weight infinite": (lambda: loss(kl_weight=float("inf")), "kl_weight: expected a finite number"),
    "labels of torch": (lambda: loss(y=torch.ones(12)), "data argument 1 to hold arrays.*torch's Tensor"),
    "labels of another length": (
        lambda: loss(y=Y[:5]),
        "site 'y': expected an observed value of shape .*, got \\(5,\\)",
    ),
    "labels in a column": (
        lambda: loss(y=Y[:, None]),
        "site 'y': expected an observed value of shape .*, got \\(12, 1\\)",
    ),
    "inputs with NaN": (lambda: loss(x=X.at[0].set(jnp.nan)), "data argument 0 holds 3 NaN"),
    "a prior of the site without a key": (
        lambda: vd.BayesianModule(NET, PRIOR)(X),
        "'net.weight': expected a random key",
    ),
    "no labels": (lambda: loss(y=None), "site 'y': expected a guide that samples every latent site"),
    "no guide": (lambda: loss(guide=lambda x, y=None: None), "site 'net.weight': expected a guide that samples"),
    # predictions
    "mode": (lambda: predict(mode="median"), "mode: expected one of 'weights', 'local', 'mean', got 'median'"),
    "num_samples of 0": (lambda: predict(num_samples=0), "num_samples: expected at least 1, got 0"),
    "num_samples a float": (lambda: predict(num_samples=2.0), "num_samples: expected a whole number, got 2.0"),
    "num_samples True": (lambda: predict(num_samples=True), "num_samples: expected a whole number, got True"),
    "num_samples None": (lambda: predict(num_samples=None), "num_samples: expected a whole number, got None"),
    "batch_size of 0": (lambda: predict(batch_size=0), "batch_size: expected at least 1, got 0"),
    "batch_size a float": (lambda: predict(batch_size=2.5), "batch_size: expected a whole number, got 2.5"),
    "return_sites unknown": (
        lambda: predict(return_sites=["lable"]),
        "return_sites: expected names among the sites .*'y'.*lable",
    ),
    "return_sites one name": (
        lambda: predict(return_sites="lable"),
        "return_sites: expected names among the sites .*'y'.*lable",
    ),
    "return_sites a number": (lambda: predict(return_sites=3), "return_sites: expected a list of site names, got 3"),
    "return_sites of numbers": (
        lambda: predict(return_sites=[3]),
        "return_sites: expected a list of site names, got \\[3\\]",
    ),
    "shared_sites a name": (lambda: predict(shared_sites="net.weight"), "shared_sites: expected a list of site names"),
    "shared_sites unknown": (
        lambda: predict(shared_sites=["w"], mode="local"),
        "shared_sites: expected names among the sites of the guide",
    ),
    "reuse unknown": (lambda: predict(reuse="once"), "reuse: expected one of"),
    "labels are given": (
        lambda: vd.posterior_predictive(KEY, PARAMS, MODEL, GUIDE, X, Y, num_samples=1),
        "observes \\['y'\\].*leave y out",
    ),
    # gradient_variance
    "num_draws of 1": (lambda: variance(num_draws=1), "num_draws: expected at least 2 to have a variance, got 1"),
    "num_draws a float": (lambda: variance(num_draws=2.0), "num_draws: expected a whole number, got 2.0"),
    "variance: batch_size of 0": (lambda: variance(batch_size=0), "batch_size: expected at least 1, got 0"),
    "loss is a class": (lambda: variance(elbo=vd.TraceVD_ELBO), "expected loss to be an ELBO.*the class TraceVD_ELBO"),
    "loss of Pyro": (lambda: variance(elbo=torch_vd.TraceVD_ELBO()), "expected loss to be an ELBO of NumPyro"),
    "loss is a function": (lambda: variance(elbo=loss), "expected loss to be an ELBO of NumPyro, got function"),
    # guides
    "guide of nothing": (lambda: AutoSparseVD(None), "model: expected a model, a function or module, got None"),
    "guide of a net": (lambda: AutoSparseVD(X), "model: expected a model, a function or module, got "),
    "guide of a class": (
        lambda: AutoSparseVD(vd.BayesianModule),
        "model: expected a model, a function or module, got .*BayesianModule",
    ),
    "guide: where a number": (
        lambda: AutoSparseVD(MODEL, where=3),
        "where: expected site names or patterns",
    ),
    "guide: where empty": (
        lambda: AutoSparseVD(MODEL, where=[]),
        "where: expected site names or patterns",
    ),
    "guide: where of numbers": (
        lambda: AutoSparseVD(MODEL, where=[1]),
        "where: expected site names or patterns",
    ),
    "guide: init_loc_fn a number": (
        lambda: AutoSparseVD(MODEL, init_loc_fn=0.0),
        "init_loc_fn: expected a function of a site",
    ),
    "guide: init_loc_fn None": (
        lambda: AutoSparseVD(MODEL, init_loc_fn=None),
        "init_loc_fn: expected a function of a site",
    ),
    "guide: create_plates": (
        lambda: AutoSparseVD(MODEL, create_plates="data"),
        "create_plates: expected a function of a site, got",
    ),
    "guide: unknown option": (
        lambda: AutoSparseVD(MODEL, learning_rate=0.1),
        "unexpected keyword argument 'learning_rate'",
    ),
    "guide: called with a tensor": (
        lambda: numpyro.handlers.seed(AutoSparseVD(MODEL), 0)(TENSOR),
        "AutoSparseVD: expected data argument 0 to hold arrays",
    ),
    "guide: no key": (lambda: AutoSparseVD(MODEL)(X), "AutoSparseVD: expected a random key, got none"),
    "guide: unknown site": (
        lambda: GUIDE.log_alpha(PARAMS, "net.wieght"),
        "site: expected one of .*'net.weight'.*wieght",
    ),
    "guide: rate of an unknown site": (
        lambda: GUIDE.dropout_rate(PARAMS, 3),
        "site: expected one of .*'net.weight'.*got 3",
    ),
    "guide: draws without a key": (
        lambda: GUIDE.sample_posterior(None, PARAMS),
        "sample_posterior: expected a random key",
    ),
    "guide: learnable unknown": (lambda: GUIDE.set_learnable("rates"), "set_learnable: expected one of"),
    "mixed: no guide": (lambda: mixed(MODEL), "mixed_guide: expected one guide or more"),
    "mixed: a function": (lambda: mixed(MODEL, loss), "mixed_guide: expected automatic guides.*got function"),
    "mixed: a class": (
        lambda: mixed(MODEL, AutoSparseVD),
        "expected guide to be automatic guides, got .*AutoSparseVD",
    ),
    "mixed: no model": (lambda: mixed(None, GUIDE), "mixed_guide: expected model to be .*, got NoneType"),
    "mixed: one site twice": (
        lambda: numpyro.handlers.seed(mixed(MODEL, GUIDE, AutoSparseVD(MODEL)), 0)(X),
        "no two guides on the same",
    ),
    # handlers
    "lrt of nothing callable": (lambda: vd.lrt(3), "local: expected guide to be .*, got int"),
    "lrt of a class": (lambda: vd.lrt(AutoSparseVD), "local: expected guide to be .*, got the class AutoSparseVD"),
    "flipout: reuse": (lambda: vd.flipout(GUIDE, reuse=True), "reuse: expected one of"),
    "per_example: shared_sites": (
        lambda: vd.per_example(GUIDE, shared_sites=[1]),
        "shared_sites: expected a list of site",
    ),
    # what becomes of a posterior
    "report of a model": (
        lambda: vd.sparsity_report(MODEL, params=PARAMS),
        "expected a guide of pyro_vd.guides.numpyro",
    ),
    "report without params": (
        lambda: vd.sparsity_report(GUIDE),
        "params: expected the parameters of AutoSparseVD, got none",
    ),
    "prune of a net": (
        lambda: vd.prune(NET, GUIDE, params=PARAMS),
        "prune: expected bnn to be .*BayesianModule.*equinox's",
    ),
    "prune of a guide": (lambda: vd.prune(GUIDE, BNN, params=PARAMS), "prune: expected bnn to be .*BayesianModule"),
    "posteriors without a key": (lambda: posteriors_of(None, PARAMS, GUIDE, X), "weight_posteriors: expected a random"),
    "posteriors with a tensor": (lambda: posteriors_of(KEY, PARAMS, GUIDE, TENSOR), "data argument 0 to hold arrays"),
    "posteriors, a parameter short": (lambda: posteriors_of(KEY, {}, GUIDE, X), "none named 'auto.locs.net.weight'"),
}

# Of every function that takes a key, parameters, a model, a guide and data.
for _name, _call in PROGRAMS.items():
    for _label, _bad, _match in (
        ("key None", {"key": None}, "expected a random key, got none"),
        ("key a number", {"key": 0}, "expected a random key, got int"),
        ("key of torch", {"key": torch.Generator()}, "expected a random key, got Generator"),
        ("two keys", {"key": jax.random.split(KEY)}, "expected a random key, got "),
        ("model None", {"model": None}, "expected model to be a NumPyro program that can be called, got NoneType"),
        ("model the net", {"model": X}, "expected model to be a NumPyro program that can be called, got "),
        ("model a class", {"model": vd.BayesianModule}, "expected model to be .* got the class BayesianModule"),
        ("guide None", {"guide": None}, "expected guide to be a NumPyro program that can be called, got NoneType"),
        (
            "guide a class",
            {"guide": AutoSparseVD},
            r"expected guide .* class AutoSparseVD; .*AutoSparseVD\(model",
        ),
        ("x of torch", {"x": TENSOR}, "expected data argument 0 to hold arrays of JAX or NumPy, got torch's Tensor"),
        ("params of torch", {"params": dict.fromkeys(PARAMS, TENSOR)}, "to be an array of JAX, got torch's Tensor"),
        ("params of text", {"params": dict.fromkeys(PARAMS, "0")}, "to be an array of JAX, got str"),
    ):
        ROWS[f"{_name}: {_label}"] = (lambda call=_call, bad=_bad: call(**bad), _match)


def test_there_are_more_than_a_hundred():
    assert len(ROWS) > 150


@pytest.mark.parametrize(("call", "match"), ROWS.values(), ids=ROWS)
def test_it_is_an_error_that_says_what_to_write_and_costs_nothing(call, match):
    before = {name: np.array(value) for name, value in PARAMS.items()}
    with pytest.raises((ValueError, TypeError), match=match):
        call()
    assert numpyro.primitives._PYRO_STACK == []
    assert all((PARAMS[name] == value).all() for name, value in before.items())
    assert set(SVI_.get_params(STATE)) == set(before) and GUIDE.weight_sites == ("net.weight",)


def test_after_all_of_them_a_step_is_as_before():
    """Run last in this file: the step of a program that none of the errors has touched."""
    *_, svi = regression(guide=AutoSparseVD, prior=vd.ImproperLogUniform())
    assert svi.update(svi.init(KEY, X, Y), X, Y)[1] == SVI_.update(STATE, X, Y)[1]
