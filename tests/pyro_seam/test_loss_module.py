"""The loss as a module: names as those of Pyro's, what it trains, state dicts, and two processes."""

from __future__ import annotations

import copy
import warnings
from datetime import timedelta

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed as distributed
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoBernoulliDropout, AutoSparseVD, AutoVariationalDropout, mixed_guide

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 2)


class Scaled(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        mean = pyro.sample("mean", dist.Normal(self.offset, self.scale))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=x[:, 0])


class Deep(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](3, 2)
        self.layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def forward(self, x):
        mean = self.layer(x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=Y)


@pytest.mark.parametrize("guide_class", [AutoNormal, AutoDelta, AutoDiagonalNormal])
@pytest.mark.parametrize("model_class", [Scaled, Deep])
def test_names_and_attributes_are_those_of_pyro(model_class, guide_class):
    names = []
    for elbo in (TraceMeanField_ELBO(), vd.TraceVD_ELBO(analytic_only=False)):
        pyro.clear_param_store()
        model = model_class()
        guide = guide_class(model)
        guide(X)
        loss = elbo(model, guide)
        loss(X)
        assert loss.model is model and loss.guide is guide and loss.elbo is elbo
        names.append([[name for name, _ in loss.named_parameters()], list(loss.state_dict())])
    assert names[0] == names[1]


def program(noise=False, net=None):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)) if net is None else net
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x, y=None):
        output = bnn(x)
        scale = pyro.sample("noise", dist.Gamma(2.0, 2.0)) if noise else 1.0
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(output, scale).to_event(1), obs=y)

    return bnn, model


class Wrapped(PyroModule):
    def __init__(self, bnn):
        super().__init__()
        self.bnn = bnn

    def forward(self, x, y=None):
        output = self.bnn(x)
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_nets_own_values_of_its_random_weights_are_no_parameters(wrapped):
    bnn, model = program()
    model = Wrapped(bnn) if wrapped else model
    guide = AutoSparseVD(model)
    loss = vd.TraceVD_ELBO()(model, guide)
    names = {name for name, _ in loss.named_parameters()}
    assert len(names) == 8 and not any(n.endswith(".net.net.0.weight") or "bnn.net.0.weight" in n for n in names)
    own = {bnn.net[0].weight, bnn.net[3].weight}
    assert own.isdisjoint(loss.parameters()) and own <= set(bnn.parameters())
    loss(X, Y).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters()) and bnn.net[0].weight.grad is None
    compiled = vd.compile_loss(loss)
    assert set(compiled.parameters()) == set(loss.parameters())


@pytest.mark.parametrize("mixed", [False, True])
def test_a_state_dict_goes_round(mixed):
    losses = []
    for _ in range(2):
        pyro.clear_param_store()
        bnn, model = program()
        parts = (AutoSparseVD(model, where="net.0.*"), AutoVariationalDropout(model, where="net.3.*"))
        guide = mixed_guide(model, *parts) if mixed else AutoSparseVD(model)
        losses.append((vd.TraceVD_ELBO()(model, guide), guide, bnn))
    (first, guide, bnn), (second, other_guide, other_bnn) = losses
    optimizer = torch.optim.SGD(first.parameters(), lr=1e-3)
    first(X, Y).backward()
    optimizer.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    assert all(torch.equal(q.mean, other_guide.posteriors()[site].mean) for site, q in guide.posteriors().items())
    results = []
    for one in (first, second):
        pyro.set_rng_seed(3)
        results.append(one(X, Y).detach())
    assert torch.equal(*results)


# Parameters that an optimizer does not have


def late_program(kind):
    """A pair whose parameters are not all there before its first call."""
    if kind == "noise":
        _, model = program(noise=True)
        return model, AutoSparseVD(model)
    if kind == "Pyro's guide":
        model = Wrapped(vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, 1.0)))
        return model, AutoNormal(model)

    def by_hand(x, y=None):
        weight = pyro.sample("w", vd.ImproperLogUniform().expand([3, 2]).to_event(2))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(x @ weight, 1.0).to_event(1), obs=y)

    guide = AutoSparseVD(by_hand)
    return by_hand, guide if kind == "by hand" else mixed_guide(by_hand, guide)


@pytest.mark.parametrize("listed", ["parameters", "named_parameters", "DDP"])
@pytest.mark.parametrize("kind", ["noise", "by hand", "mixed", "Pyro's guide"])
def test_an_optimizer_made_too_early_is_warned_of_once(kind, listed):
    model, guide = late_program(kind)
    loss = vd.TraceVD_ELBO("shared", analytic_only=False)(model, guide)
    if listed == "DDP":  # which lists module by module
        _ = [list(module.named_parameters(recurse=False)) for module in loss.modules()]
    else:
        list(getattr(loss, listed)())
    with pytest.warns(UserWarning, match=r"before its parameters were listed.*got new ones .*Auto.*once before making"):
        loss(X, Y)
    loss(X, Y)  # a second warning would be an error here
    pyro.clear_param_store()
    model, guide = late_program(kind)
    loss = vd.TraceVD_ELBO("shared", analytic_only=False)(model, guide)
    loss(X, Y)  # no warning where the optimizer is made afterwards
    assert len(list(loss.parameters())) >= 2


def test_no_warning_where_everything_was_known():
    for make in (AutoSparseVD, AutoBernoulliDropout, AutoVariationalDropout):
        pyro.clear_param_store()
        _, model = program()
        loss = vd.TraceVD_ELBO()(model, make(model))
        list(loss.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(X, Y)


# Two processes


KINDS = ("function", "wrapped", "mixed", "noise")


def worker(rank, rendezvous, results):
    limit = timedelta(seconds=60)
    distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2, timeout=limit)
    torch.set_num_threads(1)
    torch.save({kind: three_steps(kind, rank) for kind in KINDS}, f"{results}{rank}")
    distributed.destroy_process_group()


def three_steps(kind, rank):
    """Parameters after three steps under DistributedDataParallel with its default settings, and the losses."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    bnn, model = program(noise=kind == "noise", net=net)
    model = Wrapped(bnn) if kind == "wrapped" else model
    guide = AutoSparseVD(model)
    if kind == "mixed":
        parts = (AutoBernoulliDropout(model, where="net.0.*"), AutoVariationalDropout(model, where="net.2.*"))
        guide = mixed_guide(model, *parts)
    data = [(torch.randn(6, 3), torch.randn(6, 2)) for _ in range(2)]
    loss = vd.TraceVD_ELBO(analytic_only=False)(model, guide)
    if kind == "noise":
        loss(*data[0])

    def gradient(module, of_rank):
        torch.manual_seed(100 + of_rank)
        module.zero_grad()
        module(*data[of_rank]).backward()
        return torch.cat([p.grad.flatten() for p in loss.parameters() if p.requires_grad])

    average = (gradient(loss, 0) + gradient(loss, 1)) / 2
    parallel = nn.parallel.DistributedDataParallel(loss)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    torch.testing.assert_close(gradient(parallel, rank), average)  # data terms averaged, and the KL counted once
    losses = []
    for step in range(3):
        optimizer.step()
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        losses.append(parallel(*data[rank]))
        losses[-1].backward()
    return torch.cat([value.detach().flatten() for value in loss.parameters()]), torch.stack(losses).detach()


@pytest.mark.slow  # two processes that import PyTorch
def test_two_processes_average_gradients_and_stay_equal(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path / "rendezvous"), str(tmp_path / "rank")), nprocs=2)
    first, other = (torch.load(f"{tmp_path}/rank{rank}") for rank in range(2))
    for kind in KINDS:
        (state, losses), (other_state, other_losses) = first[kind], other[kind]
        assert torch.equal(state, other_state) and len(state) > 20, kind
        assert not torch.equal(losses, other_losses) and torch.isfinite(losses).all(), kind
