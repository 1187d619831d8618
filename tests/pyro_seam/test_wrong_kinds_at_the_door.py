"""An argument of a wrong kind is refused when a thing is made, in words that name it. Exact."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI
from torch import nn

import pyro_vd as vd
from pyro_vd import guides
from pyro_vd.guides import AutoMeanField, AutoSparseVD, mixed_guide
from pyro_vd.sparsity import CSRLinear, IndexedLinear, keep_mask
from pyro_vd.training import load_checkpoint, save_checkpoint

NET = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
BNN = vd.BayesianModule(NET, vd.ImproperLogUniform())
X = torch.ones(5, 3)
NOTHING = [[1, 2], "abc", "", None, nn.Linear, np.ones((2, 2)), torch.tensor([1, 2]), 3, float("nan"), {}, object()]
OTHER_MODULES = [NET, nn.Conv1d(1, 1, 1)]


def model(x, y=None):
    h = BNN(x)
    with vd.data_plate(10, len(x)):
        return pyro.sample("y", dist.Normal(h, 1.0).to_event(1), obs=torch.zeros(len(x), 2) if y is None else y)


GUIDE = AutoSparseVD(model)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
FAMILIES = [getattr(guides, name) for name in dir(guides) if name.startswith("Auto")]
WITH_UNITS = [family for family in FAMILIES if "unit_dim" in inspect.signature(family).parameters]


@pytest.mark.parametrize("layer", [CSRLinear, IndexedLinear])
@pytest.mark.parametrize("wrong", [*NOTHING, *OTHER_MODULES, GUIDE], ids=lambda value: type(value).__name__)
def test_layers_of_something_else(layer, wrong):
    with pytest.raises(TypeError, match=f"{layer.__name__}: expected linear to be a torch.nn.Linear, got .*; write"):
        layer(wrong)


@pytest.mark.parametrize("layer", [CSRLinear, IndexedLinear])
def test_a_layer_without_a_shape(layer):
    with pytest.raises(ValueError, match=f"{layer.__name__}: expected a layer with a shape, got a LazyLinear; call"):
        layer(nn.LazyLinear(3))


@pytest.mark.parametrize("wrong", [*NOTHING, NET, GUIDE, dist.Normal(0.0, 1.0)], ids=lambda v: type(v).__name__)
def test_a_mask_of_something_else(wrong):
    with pytest.raises(TypeError, match="keep_mask: expected a posterior such as a DropoutNormal, got .*; write"):
        keep_mask(wrong)


@pytest.mark.parametrize("wrong", [None, "abc", [1], float("nan"), True, torch.ones(2)])
def test_a_threshold_of_something_else(wrong):
    with pytest.raises((TypeError, ValueError), match="log_alpha_threshold: expected a number, got"):
        keep_mask(GUIDE.posterior("net.0.weight"), wrong)


@pytest.mark.parametrize("wrong", [[1, 2], "", None, nn.Linear, np.ones(2), torch.tensor([1, 2]), 3, {}, b"net", NET])
def test_a_path_of_something_else(wrong):
    for call in (
        lambda: vd.save_sparse(NET, wrong),
        lambda: vd.load_sparse(wrong),
        lambda: save_checkpoint(wrong, modules={"net": NET}),
        lambda: load_checkpoint(wrong, modules={"net": NET}),
    ):
        with pytest.raises(TypeError, match="expected path to be that of a file, got .*; write"):
            call()


@pytest.mark.parametrize("wrong", [3, nn.Linear, AutoSparseVD, vd.TraceVD_ELBO, object(), [1], np.ones(2), GUIDE, True])
def test_a_rule_for_a_weight_that_is_no_name(wrong):
    with pytest.raises(TypeError, match="register_rule: expected weight to be the name of a parameter"):
        vd.register_rule(F.linear, weight=wrong)
    with pytest.raises(ValueError, match="register_rule: expected kind to be 'exact' or 'approximate', got"):
        vd.register_rule(F.linear, kind=wrong)


@pytest.mark.parametrize("option", ["where", "init_loc_fn", "create_plates"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_in_the_place_of_a_function(family, option):
    for module in (NET, GUIDE):
        with pytest.raises(TypeError, match=f"{option}: expected a function .*, got the module .*; write"):
            family(model, **{option: module})


@pytest.mark.parametrize("family", WITH_UNITS)
def test_units_along_nothing(family):
    with pytest.raises(ValueError, match="unit_dim: expected a whole number, got None"):
        family(model, unit_dim=None)


def test_a_choice_of_parameters_by_a_module():
    with pytest.raises(TypeError, match="where: expected module types, .*, got a value of type Linear; write where="):
        vd.BayesianModule(NET, dist.Normal(0.0, 1.0), where=NET[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_guide_of_a_guide(family):
    mixed = mixed_guide(model, AutoSparseVD(model, where="net.0.*"), AutoSparseVD(model, where="net.1.*"))
    for own in (GUIDE, vd.lrt(GUIDE), pyro.poutine.block(GUIDE), mixed, pyro.infer.autoguide.AutoNormal(model)):
        with pytest.raises(TypeError, match="model: expected a Pyro model, got the guide .*; write the model"):
            family(own)


def test_mixed_guides():
    for wrong in ([1, 2], None, nn.Linear, 3):
        with pytest.raises(TypeError, match="model: expected a Pyro model, a function or module, got"):
            mixed_guide(wrong, AutoSparseVD(model))
    part = AutoSparseVD(model)
    mixed = mixed_guide(model, part)
    with pytest.raises(ValueError, match="expected a guide of its own, got AutoSparseVD, which is a part of another"):
        mixed_guide(model, part)
    assert list(mixed.posteriors()) == ["net.0.weight", "net.1.weight"]


SWAPPED = {
    "compiled": lambda: vd.CompiledSVI(GUIDE, model, ADAM, vd.TraceVD_ELBO()),
    "of SVI": lambda: SVI(GUIDE, model, pyro.optim.Adam({}), vd.TraceVD_ELBO()).step(X),
    "loss module": lambda: vd.TraceVD_ELBO()(GUIDE, model),
    "terms": lambda: vd.TraceVD_ELBO().terms(GUIDE, model, X),
    "posterior_predictive": lambda: vd.posterior_predictive(GUIDE, model, X, num_samples=1),
    "predictive_distribution": lambda: vd.predictive_distribution(GUIDE, model, X, num_samples=1),
    "gradient_variance": lambda: vd.gradient_variance(GUIDE, model, vd.TraceVD_ELBO(), X, num_draws=2),
    "lrt_report": lambda: vd.lrt_report(GUIDE, model, X),
}


@pytest.mark.parametrize("call", SWAPPED)
def test_model_and_guide_in_each_others_place(call):
    with pytest.raises(TypeError, match="model: expected a Pyro model, got the guide AutoSparseVD; write the model"):
        SWAPPED[call]()


@pytest.mark.parametrize("args", [(), (X,), (X, None), (X, None, 1), (X, None, 1, 2)], ids=len)
def test_the_class_of_a_loss(args):
    svi = SVI(model, GUIDE, pyro.optim.Adam({}), vd.TraceVD_ELBO)
    for call in (svi.step, svi.evaluate_loss):
        with pytest.raises(TypeError, match=r"loss: expected an ELBO .*, got the class TraceVD_ELBO, .*; write SVI\("):
            call(*args)
    with pytest.raises(TypeError, match=r"loss: .*TraceVD_ELBO\(\)\(model, guide\)"):
        vd.TraceVD_ELBO(model, GUIDE)
    with pytest.raises(TypeError, match="loss: expected an ELBO .*got the class TraceVD_ELBO"):
        vd.CompiledSVI(model, GUIDE, ADAM, vd.TraceVD_ELBO)


def test_a_loss_is_copied_and_pickled_as_before():
    loss = vd.TraceVD_ELBO("shared", 2, kl_weight=0.5)
    for twin in (copy.copy(loss), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)


@pytest.mark.parametrize("wrong", [nn.Linear, AutoSparseVD, vd.TraceVD_ELBO, pyro.optim.PyroOptim, NET, GUIDE, None, 3])
def test_an_optimizer_of_another_kind(wrong):
    with pytest.raises(TypeError, match="optim: expected a pyro.optim optimizer or a callable .*, got"):
        vd.CompiledSVI(model, GUIDE, wrong, vd.TraceVD_ELBO())
    for right in (torch.optim.Adam, ADAM, pyro.optim.Adam({"lr": 0.1}), lambda p: torch.optim.SGD(p, 0.1)):
        vd.CompiledSVI(model, AutoMeanField(model), right, vd.TraceVD_ELBO())
