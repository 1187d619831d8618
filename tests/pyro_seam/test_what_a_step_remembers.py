"""What a step remembers of a net is looked up anew where the net has changed; and the calls of a steady step."""

import copy
import pickle
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
import pyro_vd.guides
from pyro_vd.layout import Layout

X, Y = torch.linspace(-1.0, 1.0, 12).reshape(3, 4), torch.tensor([0, 1, 2])
PRIOR = dist.Normal(0.0, 1.0)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def values(bnn):
    """What a call samples and registers, and its output."""
    torch.manual_seed(1)
    trace = pyro.poutine.trace(bnn).get_trace(X)
    for name in bnn.weight_names:
        assert trace.nodes[f"net.{name}"]["net_parameter"] is bnn.net.get_parameter(name)
    return {name: site["value"] for name, site in trace.nodes.items() if name != "_INPUT"}


def other_layer(net):
    net[2] = nn.Linear(4, 3)


def other_weight(net):
    net[0].weight = nn.Parameter(torch.ones(4, 4))


def other_bias_of_that_name(net):
    del net[0]._parameters["bias"]
    net[0].register_parameter("bias", nn.Parameter(torch.full((4,), 3.0)))


def another_table(net):
    net[0]._parameters = {"weight": nn.Parameter(torch.ones(4, 4)), "bias": net[0].bias}


def other_modules(net):
    net._modules = {"0": net[0], "1": nn.ReLU(), "2": nn.Linear(4, 3)}


def without_bias(net):
    net[2].bias = None


def one_more(net):
    net[2].register_parameter("gain", nn.Parameter(torch.ones(3)))
    net[2].register_forward_hook(lambda module, args, output: output * module.gain)


def frozen(net):
    net[0].bias.requires_grad_(False)


def hooked(net):
    net[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    net[2].register_forward_hook(lambda module, args, output: output - 1)


def other_type(net):
    net[1].__class__ = nn.Sigmoid


def moved(net):
    net.double().float()
    net[0].bias.data = torch.full((4,), 2.0)


CHANGES = [other_layer, other_weight, other_bias_of_that_name, another_table, other_modules, without_bias, one_more]
CHANGES += [frozen, hooked, other_type, moved]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_net_that_changes_between_calls_is_as_one_that_is_new(change):
    bnn = vd.BayesianModule(mlp(), PRIOR)
    for _ in range(2):
        values(bnn)
    torch.manual_seed(2)
    change(bnn.net)
    found = values(bnn)

    pyro.clear_param_store()
    fresh = vd.BayesianModule(mlp(), PRIOR)
    torch.manual_seed(2)
    change(fresh.net)
    expected = values(fresh)

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_weight_under_another_name_is_an_error_as_before():
    bnn = vd.BayesianModule(mlp(), PRIOR)
    bnn(X)
    layer = bnn.net[0]
    layer._parameters["kernel"] = layer._parameters.pop("weight")
    with pytest.raises(ValueError, match="got one without .'0.weight'., which has changed since"):
        bnn(X)


def test_a_layer_that_is_compiled_between_calls():
    bnn = vd.BayesianModule(mlp(), PRIOR)
    bnn(X)
    assert not bnn._layout.of(bnn.net).is_compiled
    bnn.net[0].compile(backend="eager")
    assert bnn._layout.of(bnn.net).is_compiled and values(bnn)["_RETURN"].shape == (3, 3)


def test_another_net_in_the_same_module():
    bnn = vd.BayesianModule(mlp(), PRIOR)
    bnn(X)
    other = mlp()
    other[0].bias.data.fill_(5.0)
    bnn.net = other
    assert torch.equal(values(bnn)["net.0.bias"], other[0].bias)


def test_a_copy_has_modules_of_its_own():
    bnn = vd.BayesianModule(mlp(), PRIOR)
    bnn(X)
    for twin in (copy.deepcopy(bnn), pickle.loads(pickle.dumps(bnn))):
        with torch.no_grad():
            twin.net[2].bias.fill_(7.0)
        pyro.clear_param_store()
        assert torch.equal(values(twin)["net.2.bias"], torch.full((3,), 7.0))
        assert not torch.equal(bnn.net[2].bias, twin.net[2].bias)
    state = vars(bnn).copy()
    del state["_layout"]
    old = vd.BayesianModule.__new__(vd.BayesianModule)
    old.__setstate__(state)
    assert old(X).shape == (3, 3), "pickled by a version that remembered nothing"


def test_a_steady_net_is_looked_up_once(monkeypatch):
    bnn = vd.BayesianModule(mlp(), PRIOR)
    looks = []
    look = Layout._look
    monkeypatch.setattr(Layout, "_look", lambda self, net: (looks.append(net), look(self, net)))
    for _ in range(3):
        bnn(X)
    assert looks == [bnn.net]
    other_weight(bnn.net)
    bnn(X)
    assert len(looks) == 2


def test_a_net_with_names_of_its_own_for_parameters_is_asked_every_time():
    class Renamed(nn.Sequential):
        shown = "0.bias", "2.bias", "0.weight", "2.weight"

        def named_parameters(self, *args, **kwargs):
            return iter([pair for pair in super().named_parameters(*args, **kwargs) if pair[0] in self.shown])

    bnn = vd.BayesianModule(mlp(), PRIOR)
    assert {"net.0.bias", "net.2.bias"} <= values(bnn).keys()
    bnn.net.__class__ = Renamed
    assert {"net.0.bias", "net.2.bias"} <= values(bnn).keys()
    Renamed.shown = "0.bias", "0.weight", "2.weight"
    assert "net.2.bias" not in values(bnn)


@pytest.fixture
def counted():
    """Counts the Python calls of functions of this package that a call makes."""
    folders = tuple(str(Path(module.__file__).resolve().parent) for module in (vd, vd.guides))

    def count(call):
        calls = 0

        def hook(frame, event, arg):
            nonlocal calls
            calls += event == "call" and frame.f_code.co_filename.startswith(folders)

        sys.setprofile(hook)
        try:
            call()
        finally:
            sys.setprofile(None)
        return calls

    return count


def task():
    torch.manual_seed(0)
    bnn = vd.BayesianModule(mlp(), vd.ImproperLogUniform())

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(100, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    return model, vd.guides.AutoSparseVD(model)


def step_of_svi():
    svi = pyro.infer.SVI(*task(), pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO())
    return lambda: svi.step(X, Y)


def step_of_module():
    loss = vd.TraceVD_ELBO()(*task())
    return lambda: loss(X, Y).backward()


def step_of_lrt():
    model, guide = task()
    svi = pyro.infer.SVI(model, vd.lrt(guide), pyro.optim.Adam({"lr": 0.01}), pyro.infer.TraceMeanField_ELBO())
    with pyro.validation_enabled(False):
        svi.step(X, Y)
    return lambda: svi.step(X, Y)


@pytest.mark.parametrize("make, most", [(step_of_svi, 345), (step_of_module, 338), (step_of_lrt, 360)])
def test_calls_of_a_steady_eager_step(counted, make, most):
    """Of two Linear layers: they are time that every eager step takes."""
    step = make()
    with pyro.validation_enabled(False):
        step(), step()
        assert counted(step) <= most
