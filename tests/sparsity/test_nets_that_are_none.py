"""What is no net, no posterior and no output is refused by name, by everything that follows training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.sparsity import remove_masks

BNN = vd.BayesianModule(nn.Linear(3, 2), vd.ImproperLogUniform())
POSTERIOR = {"net.weight": vd.DropoutNormal(torch.ones(2, 3), log_sigma2=-4.0)}
X = torch.ones(2, 3)
TAKES_A_NET = {
    "shrink": lambda net: vd.shrink(net, X),
    "deploy": lambda net: vd.deploy(net, X, forms=("dense",)),
    "to_csr": vd.to_csr,
    "index_inputs": vd.index_inputs,
    "remove_masks": remove_masks,
    "save_sparse": lambda net: vd.save_sparse(net, "none.safetensors"),
}


@pytest.mark.parametrize("owner", TAKES_A_NET)
@pytest.mark.parametrize(
    "net", [None, lambda x: x, nn.Linear(3, 2).state_dict(), nn.Linear], ids=["None", "function", "state", "class"]
)
def test_no_module(owner, net):
    with pytest.raises(TypeError, match=f"{owner}: expected a torch module, got .*; pass the net that prune returns"):
        TAKES_A_NET[owner](net)


@pytest.mark.parametrize("owner", TAKES_A_NET)
@pytest.mark.parametrize("net", [BNN, nn.Sequential(BNN)], ids=["itself", "inside"])
def test_a_bayesian_module_has_not_the_trained_weights(owner, net):
    with pytest.raises(TypeError, match=rf"{owner}: expected .* got a BayesianModule.*; pass prune\(bnn, guide\)"):
        TAKES_A_NET[owner](net)


@pytest.mark.parametrize(
    "function",
    [vd.keep_masks, vd.weight_bits, vd.sparsity_report, lambda guide: vd.prune(BNN, guide),
     lambda guide: vd.threshold_curve(BNN, guide, lambda net: 0.0)],
    ids=["keep_masks", "weight_bits", "sparsity_report", "prune", "threshold_curve"],
)  # fmt: skip
def test_no_posterior(function):
    for bad in (torch.ones(2, 3), vd.keep_masks(POSTERIOR)["net.weight"], torch.distributions.Normal(0.0, 1.0)):
        with pytest.raises(TypeError, match="site 'net.weight': expected a posterior .* got .*; pass the guide"):
            function({"net.weight": bad})
    with pytest.raises(TypeError, match=r"expected a guide, got the class AutoSparseVD; write AutoSparseVD\(model\)"):
        function(AutoSparseVD)


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.layer, self.output = nn.Linear(3, 2), output

    def forward(self, x):
        return self.output(self.layer(x))


@pytest.mark.parametrize("run", [TAKES_A_NET["shrink"], TAKES_A_NET["deploy"]], ids=["shrink", "deploy"])
@pytest.mark.parametrize("output", [lambda y: y.sum().item(), lambda y: None, lambda y: y[:0], lambda y: y * math.nan])
def test_outputs_that_cannot_be_compared(run, output):
    with pytest.raises(ValueError, match="expected outputs to compare, tensors with an element that is not NaN, got"):
        run(Returns(output))
    assert run(Returns(lambda y: {"a": y, "b": y[:0], "c": "a text"})) is not None


def test_arguments_of_deploy_and_others():
    net = nn.Linear(3, 2)
    for forms in (None, 3, (), "dense", ("dense", "dens")):
        with pytest.raises(ValueError, match="forms: expected several of"):
            vd.deploy(net, X, forms=forms)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_sparsity: expected a share in 0..1, got 3"):
        vd.deploy(net, X, forms=("dense",), min_sparsity=3.0)
    with pytest.raises(TypeError, match="deploy: expected timer to be a function, got 3"):
        vd.deploy(net, X, forms=("dense",), timer=3)  # type: ignore[arg-type]
    for returned, kind in ((None, TypeError), ("fast", TypeError), (math.nan, ValueError)):
        with pytest.raises(kind, match="timer: expected a number, got"):
            vd.deploy(net, X, forms=("dense", "shrunk"), timer=lambda call: returned)  # noqa: B023
    assert len(vd.deploy(net, X, forms=("dense", "dense"), timer=lambda call: 1.0).rows) == 1
    with pytest.raises(TypeError, match="threshold_curve: expected evaluate to be a function of a net, got None"):
        vd.threshold_curve(BNN, POSTERIOR, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weight_posteriors: expected guide to be a Pyro guide, got None"):
        vd.weight_posteriors(None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("masked", [False, True])
def test_a_weight_norm_of_zeros_is_no_number(norm, masked):
    bnn = vd.BayesianModule(nn.Sequential(norm(nn.Linear(3, 2))), vd.ImproperLogUniform())
    (site,) = (bnn.site(name) for name in bnn.weight_names)
    log_sigma2 = torch.tensor([[9.0, 9.0, 9.0], [9.0, 9.0, -9.0]])
    for row in (0, 1):
        log_sigma2[0, 0] = 9.0 if row == 0 else -9.0
        guide = {site: vd.DropoutNormal(torch.ones(2, 3), log_sigma2=log_sigma2.clone())}
        if row == 0:
            with pytest.raises(ValueError, match="prune: layer '0': expected a weight without NaN, got 3.*prune less"):
                vd.prune(bnn, guide, masked=masked)
        else:
            assert vd.prune(bnn, guide, masked=masked)(X).isfinite().all()
