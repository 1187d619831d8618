"""Names that match nothing and checkpoints that are not finite are refused before anything changes."""

from __future__ import annotations

import copy
import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoLowRank, AutoMeanField, AutoSparseVD, mixed_guide

X, Y = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 1, 1, 0])


class Masked(nn.Sequential):
    """A net with a mask of 0 and -inf among its buffers, as a causal transformer has it."""

    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))


def program(prior=None):
    bnn = vd.BayesianModule(Masked(), dist.Normal(0.0, 1.0) if prior is None else prior)

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(4, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return bnn, model


@pytest.mark.parametrize("where", [["net.0.weight", "net.O.weight"], ("net.*", "y"), ["*.weight", "bias"], ["x", "y"]])
def test_a_pattern_that_matches_nothing_among_several(where):
    bnn, model = program()
    lost = [one for one in where if one not in ("net.0.weight", "net.*", "*.weight")]
    with pytest.raises(ValueError, match="match none") as caught:
        AutoMeanField(model, where=where)(X, Y)
    assert all(one in str(caught.value) for one in ("net.0.weight", "net.2.weight", *lost))
    parts = AutoLowRank(model, where="net.2.*"), AutoMeanField(model, where=["net.0.*", "net.9.*"])
    with pytest.raises(ValueError, match=r"net\.9\.\*"):
        mixed_guide(model, *parts)(X, Y)


def test_patterns_that_match_are_taken_before_and_after_a_checkpoint_is_loaded():
    _, model = program()
    where = ["net.0.*", "net.2.weight"]
    guide = AutoMeanField(model, where=where)
    assert sorted(guide(X)) == sorted(guide(X, Y)) == ["net.0.weight", "net.2.weight"]
    fresh = AutoMeanField(program()[1], where=where)
    fresh.load_state_dict(guide.state_dict())
    assert sorted(fresh(X, Y)) == ["net.0.weight", "net.2.weight"]


def test_other_names_of_sites():
    guide = AutoSparseVD(program(vd.ImproperLogUniform())[1])
    with pytest.raises(ValueError, match="got \\['net.9.weight'\\]"):
        guide.set_learnable("locs", False, where=["net.0.weight", "net.9.weight"])
    assert all(parameter.requires_grad for parameter in guide.parameters())
    for name in ("net.9.weight", "nonsense"):
        with pytest.raises(ValueError, match="expected one of the weight sites"):
            guide.posterior(name)


def holders():
    bnn, model = program()
    guide = AutoMeanField(model)
    parts = AutoLowRank(model, where="net.2.*"), AutoMeanField(model, where="net.0.*")
    mixed, loss = mixed_guide(model, *parts), vd.TraceVD_ELBO("shared")(model, guide)
    return {"guide": guide, "mixed guide": mixed, "BayesianModule": bnn, "loss module": loss}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["guide", "mixed guide", "BayesianModule", "loss module"])
def test_a_checkpoint_that_is_not_finite(kind, bad):
    module = holders()[kind]
    before = copy.deepcopy(module.state_dict())
    for name in before:
        if name.endswith(("mask", "num_batches_tracked")):
            continue
        state = {key: value + 1 for key, value in before.items()}
        state[name] = state[name].clone()
        state[name].view(-1)[0] = bad
        with pytest.raises(ValueError, match=f"load_state_dict: '{name}'.*1 NaN or infinite"):
            module.load_state_dict(state)
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("kind", ["BayesianModule", "loss module"])
def test_a_mask_of_infinities_is_loaded(kind):
    module = holders()[kind]
    state = {name: value if name.endswith("mask") else value + 1 for name, value in module.state_dict().items()}
    assert any(name.endswith("mask") for name in state)
    module.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    mask = next(name for name in state if name.endswith("mask"))
    with pytest.raises(ValueError, match="1 NaN or infinite of 2"):
        module.load_state_dict({**state, mask: torch.tensor([math.nan, -math.inf])})


@pytest.mark.slow
def test_a_state_of_compiled_svi_that_is_not_finite():
    _, model = program()
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    svi = vd.CompiledSVI(model, AutoMeanField(model), adam, vd.TraceVD_ELBO())
    svi.step(X, Y)
    state, before = svi.state_dict(), svi.state_dict()
    found = list(_tensors(state["optimizer"]))
    assert found
    for tensor in found:
        kept = tensor.clone()
        tensor.view(-1)[0] = math.nan
        with pytest.raises(ValueError, match="state: optimizer.*1 NaN or infinite"):
            svi.load_state_dict(state)
        tensor.copy_(kept)
    now = [*_tensors(svi.state_dict()["optimizer"])]
    assert all(torch.equal(a, b) for a, b in zip(now, _tensors(before["optimizer"]), strict=True))
    svi.load_state_dict(state)


def _tensors(part):
    if isinstance(part, torch.Tensor) and part.is_floating_point():
        yield part
    elif isinstance(part, (dict, list, tuple)):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _tensors(value)


@pytest.mark.parametrize("quantity", ["locs", "log_sigma2s"])
def test_a_frozen_parameter_of_a_guide_stays(quantity):
    _, model = program()
    guide = AutoMeanField(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), vd.TraceVD_ELBO())
    svi.step(X, Y)
    parameters = dict(guide.named_parameters())
    frozen = parameters.pop(f"{quantity}.net.0.weight").requires_grad_(False)
    values, others = frozen.clone(), {name: p.detach().clone() for name, p in parameters.items()}
    svi.step(X, Y)
    svi.step(X, Y)
    assert torch.equal(frozen, values)
    assert not any(torch.equal(p, others[name]) for name, p in parameters.items())
    frozen.requires_grad_(True)
    svi.step(X, Y)
    assert not torch.equal(frozen, values)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's, of these norms
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_masks_of_prune_come_before_an_old_style_norm(kind):
    layer = getattr(nn.utils, kind)(nn.Linear(3, 4))
    net = nn.Sequential(layer, nn.Linear(4, 2))
    bnn = vd.BayesianModule(
        net, dist.Normal(0.0, 1.0), where=lambda name, module: name in ("0.weight_v", "0.weight_orig")
    )
    site = bnn.site(bnn.weight_names[0])
    posterior = vd.DropoutNormal(torch.linspace(-2, 2, 12).reshape(4, 3), log_sigma2=0.5)
    small = vd.prune(bnn, {site: posterior}, 1.0, masked=True)
    name = bnn.weight_names[0].removeprefix("0.")
    dead = getattr(small[0], f"{name}_mask") == 0
    assert dead.any() and not dead.all()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        small(X).square().sum().backward()
        optimizer.step()
    small(X)
    assert not small[0].weight[dead].any() and small[0].weight[~dead].all()
