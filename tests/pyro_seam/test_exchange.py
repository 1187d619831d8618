"""A net is as it was after every call: all attributes of all modules, over nets and over what happens in the call."""

import copy
import io
import pickle

import pytest
import torch

import pyro_vd as vd
from helpers.exchange_nets import NETS, Run, X, Y, assert_unchanged, attributes

# The power iteration of a spectral norm uses a weight without gradients, which the local estimators refuse.
PROGRAMS = [(name, e) for name in NETS for e in ("local", "shared") if e == "shared" or "spectral" not in name]
QUIETLY = pytest.mark.filterwarnings(
    "ignore:.*expected an operation with a rule", "ignore:.*weight_norm", "ignore:enable_nested"
)


@QUIETLY
@pytest.mark.parametrize(("name", "estimator"), PROGRAMS)
def test_every_attribute_of_every_module_is_what_it_was(name, estimator):
    run = Run(name, estimator)
    if name == "nested":
        run.model(X)
    before, error = attributes(run.net), ValueError("no")
    plain = {key: value.detach().clone() for key, value in run.net.named_parameters() if value.dim() > 1}

    def fails():
        run.failing.error = error
        with pytest.raises(type(error)):
            run.svi.step(X, Y)
        run.failing.error = None

    def interrupted():
        run.failing.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            run.bnn(X)
        run.failing.error = None

    calls = {
        "a call": lambda: run.bnn(X),
        "a step": lambda: run.svi.step(X, Y),
        "a loss": lambda: run.elbo.loss(run.model, run.guide, X, Y),
        "an exception": fails,
        "an interrupt": interrupted,
        "a prediction": lambda: vd.posterior_predictive(run.model, run.guide, X, num_samples=2),
        "a report": lambda: vd.lrt_report(run.model, run.guide, X, Y, reuse="independent"),
    }
    for what, call in calls.items():
        call()
        assert_unchanged(before, run.net, what)
    deterministic = {"inner"} if name == "nested" else set()
    for key, value in run.net.named_parameters():
        if key.split(".")[0] not in deterministic and key in run.bnn.weight_names:
            assert torch.equal(value, plain[key]), key


@QUIETLY
@pytest.mark.parametrize(("name", "estimator"), PROGRAMS)
def test_a_trained_net_is_pruned_and_copied(name, estimator):
    run = Run(name, estimator)
    for _ in range(2):
        run.svi.step(X, Y)
    mean = vd.prune(run.bnn, run.guide, float("inf"))
    own = dict(run.net.named_parameters())
    for parameter_name, parameter in mean.named_parameters():
        if parameter_name in run.bnn.weight_names:
            fixed = run.bnn.fixed(parameter_name)
            loc = run.guide.posterior(run.bnn.site(parameter_name)).mean
            torch.testing.assert_close(parameter, loc if fixed is None else fixed.imposed_on(loc))
        else:
            assert torch.equal(parameter, own[parameter_name])
    mean(X)
    derived = ("mask", "old", "hooked")  # an attribute with a graph, which PyTorch does not copy
    if not any(word in name for word in derived):
        copied = copy.deepcopy(run.bnn)
        assert copied(X).shape == Y.shape
    if name not in ("hooked", "nested") and not any(word in name for word in (*derived, "norm")):
        for module in (run.net, run.bnn):
            torch.save(module, io.BytesIO())
            back = pickle.loads(pickle.dumps(module))
            for (_, one), (_, other) in zip(back.named_parameters(), module.named_parameters(), strict=True):
                assert torch.equal(one, other)
            assert back(X).shape == Y.shape


def test_a_masked_layer_is_pruned_with_its_mask():
    run = Run("mask", "shared")
    run.svi.step(X, Y)
    layer = vd.prune(run.bnn, run.guide)[0][0]
    assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask)  # before any call of the pruned net
    assert not layer.weight[layer.weight_mask == 0].any()
