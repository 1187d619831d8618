"""The library gives the loss, the gradients and the training path of examples/mini_vd.py, plain Pyro."""

from __future__ import annotations

import ast
import importlib.util
import re
from operator import attrgetter

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vd as vd
from helpers.paths import EXAMPLES
from pyro_vd.guides import AutoSparseVD

SOURCE = EXAMPLES / "mini_vd.py"
SPEC = importlib.util.spec_from_file_location("mini_vd", SOURCE)
assert SPEC is not None and SPEC.loader is not None
mini = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mini)

DATASET_SIZE = 640
PARTS = ("loc", "log_sigma2", "bias")


@pytest.fixture
def problem():
    """Parameters away from their start (log_alpha on both sides of the threshold), and one minibatch."""
    torch.set_default_dtype(torch.float64)
    parameters = mini.initial_parameters()
    for name, value in parameters.items():
        if name.endswith("log_sigma2"):
            value.uniform_(-8, 3)
        elif name.endswith("bias"):
            value.normal_()
        value.requires_grad_()
    return parameters, mini.make_data(32)


def library(parameters):
    """The same model and guide in pyro_vd, and its parameters in the order of ``parameters``."""
    hidden, output = (len(parameters[f"{layer}.bias"]) for layer in mini.LAYERS)
    net = nn.Sequential(nn.Linear(mini.INPUTS, hidden), nn.Tanh(), nn.Linear(hidden, output))
    with torch.no_grad():
        for layer, linear in zip(mini.LAYERS, (net[0], net[2]), strict=True):
            linear.weight.copy_(parameters[f"{layer}.loc"])
            linear.bias.copy_(parameters[f"{layer}.bias"])
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y):
        prediction = bnn(x).squeeze(-1)
        with vd.data_plate(DATASET_SIZE, len(x)):
            pyro.sample("y", dist.Normal(prediction, mini.NOISE_SCALE), obs=y)

    guide = AutoSparseVD(model)
    guide(*mini.make_data(4))  # makes its parameters
    own = []
    for layer, index in zip(mini.LAYERS, ("0", "2"), strict=True):
        log_sigma2 = attrgetter(f"net.{index}.weight")(guide.log_sigma2s)
        log_sigma2.data.copy_(parameters[f"{layer}.log_sigma2"])
        own += [attrgetter(f"net.{index}.weight")(guide.locs), log_sigma2, net[int(index)].bias]
    return model, guide, own


def gradients(loss, parameters):
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_loss_and_gradients_are_those_of_the_library(problem, kl_weight):
    parameters, batch = problem
    model, guide, own = library(parameters)
    pyro.set_rng_seed(7)
    expected = mini.loss(parameters, *batch, DATASET_SIZE, kl_weight)
    pyro.set_rng_seed(7)
    loss = vd.TraceVD_ELBO("local", kl_weight=kl_weight).differentiable_loss(model, guide, *batch)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    names = [f"{layer}.{part}" for layer in mini.LAYERS for part in PARTS]
    found = gradients(loss, dict(zip(names, own, strict=True)))
    for name, gradient in gradients(expected, parameters).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_loss_and_gradients_are_those_of_a_guide_written_by_hand(problem):
    parameters, batch = problem
    model, _, _ = library(parameters)

    def guide(x, y):
        for layer, site in zip(mini.LAYERS, ("net.0.weight", "net.2.weight"), strict=True):
            loc, log_sigma2 = parameters[f"{layer}.loc"], parameters[f"{layer}.log_sigma2"]
            pyro.sample(site, vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(2))

    weights = {name: value for name, value in parameters.items() if not name.endswith("bias")}
    results = []
    for loss in (
        lambda: mini.loss(parameters, *batch, DATASET_SIZE),
        lambda: vd.TraceVD_ELBO("local").differentiable_loss(model, guide, *batch),
        lambda: TraceMeanField_ELBO().differentiable_loss(model, vd.lrt(guide), *batch),
    ):
        pyro.set_rng_seed(3)
        value = loss()
        results.append((value, *gradients(value, weights).values()))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-8, atol=1e-10)


def test_svi_takes_the_same_path(problem):
    """Five steps of SVI from one start, each with its own noise, end at the same parameters."""
    parameters, _ = problem
    model, guide, own = library(parameters)
    batches = [mini.make_data(32) for _ in range(5)]
    for name, value in parameters.items():
        pyro.param(name, value.detach().clone())
    plain = SVI(mini.model, mini.guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
    ours = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO())
    for seed, batch in enumerate(batches):
        pyro.set_rng_seed(seed)
        expected = plain.step(*batch, DATASET_SIZE)
        pyro.set_rng_seed(seed)
        assert ours.step(*batch) == pytest.approx(expected, rel=1e-8)
    names = [f"{layer}.{part}" for layer in mini.LAYERS for part in PARTS]
    for name, value in zip(names, own, strict=True):
        assert (value - parameters[name]).abs().max() > 1e-3, f"{name} was not trained"
        torch.testing.assert_close(value.detach(), pyro.param(name).detach(), rtol=1e-7, atol=1e-9)


def test_kl_is_that_of_the_library():
    log_alpha = torch.linspace(-12, 12, 97, dtype=torch.float64)
    torch.testing.assert_close(
        mini.kl_log_uniform(log_alpha), vd.kl.kl_log_uniform(log_alpha, "sigmoid"), rtol=1e-8, atol=1e-12
    )


def test_noise_is_no_term_of_the_loss(problem):
    """The noise has one distribution in model and guide: a stochastic estimate of its KL is 0 as well."""
    parameters, batch = problem
    pyro.set_rng_seed(1)
    expected = mini.loss(parameters, *batch, DATASET_SIZE)
    pyro.set_rng_seed(1)
    with pyro.poutine.substitute(data=parameters):
        estimate = Trace_ELBO().differentiable_loss(mini.model, mini.guide, *batch, DATASET_SIZE)
    torch.testing.assert_close(estimate, expected, rtol=1e-10, atol=0)


def test_it_is_short_and_plain():
    tree = ast.parse(SOURCE.read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"argparse", "pyro", "torch"}
    assert len(SOURCE.read_text().splitlines()) <= 120


@pytest.mark.slow
def test_it_finds_the_relevant_inputs(capsys):
    mini.main(steps=800)
    out = capsys.readouterr().out
    paths = [float(size) for size in re.findall(r"\d+:(\d+\.\d+)", out)]
    assert len(paths) == mini.INPUTS
    assert min(paths[i] for i in (3, 7, 11)) > 5 * max(p for i, p in enumerate(paths) if i not in (3, 7, 11))
    kept, total = map(int, re.search(r"hidden layer: (\d+) of (\d+)", out).groups())
    assert kept < total / 2
    whole, pruned = (float(error) for error in re.findall(r"held-out error.*: (\S+)", out))
    assert pruned < 0.4  # the noise of the data is 0.3
    assert abs(pruned - whole) < 0.01
