"""What a model reads besides its arguments: every change of it is seen, and nothing is seen that has not changed."""

from __future__ import annotations

import dataclasses
import enum
import functools
import gc
import types
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers.svi_runs import without_compiler
from pyro_vd.compiled.walk import surroundings_of

NOISE, TABLE, SETTINGS = 0.5, {"noise": 0.5}, types.SimpleNamespace(noise=0.5, inner={"list": [1, 2]})


class Mode(enum.Enum):
    ONE, TWO = 1, 2


class Config:
    noise = 0.5


@dataclasses.dataclass
class Data:
    noise: float = 0.5
    more: list = dataclasses.field(default_factory=lambda: [1.0, [2.0]])


class Slotted:
    __slots__ = ("noise",)

    def __init__(self):
        self.noise = 0.5


def helper():
    return NOISE


def reads_global():
    return helper() + TABLE["noise"] + Config.noise + SETTINGS.noise


class Net(nn.Module):
    scale = 2.0

    def __init__(self):
        super().__init__()
        self.layer, self.options, self.mode = nn.Linear(2, 2), {"p": 0.1}, Mode.ONE

    def forward(self, x):
        return self.layer(x) * self.factor() * self.scale

    def factor(self):
        return TABLE["noise"]


class Holder:
    def __init__(self):
        self.noise, self.values = 0.5, [0.5]

    def model(self):
        return self.noise


def closure(value):
    def model(default=3):
        return value

    return model


def set_global(value):
    globals()["NOISE"] = value


def cases():
    """A root, and a function that changes something behind it."""
    one, data, slotted, net, holder = {"a": [1, {"b": 2.0}]}, Data(), Slotted(), Net(), Holder()
    array, prior, tensor = np.zeros(3), dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.zeros(2)
    function, defaults, partial = closure([0.5]), closure(1), functools.partial(closure(1), noise=[0.5])
    decorated, nested = functools.wraps(function)(lambda: function()), closure(closure({"x": 1}))
    scaled = pyro.poutine.scale(closure(1), scale=0.5)
    graph = nn.Sequential(Net(), nn.Dropout(0.5))
    return {
        "global": (reads_global, lambda: set_global(0.7)),
        "dict that is a global": (reads_global, lambda: TABLE.update(noise=0.7)),
        "attribute of a class": (reads_global, lambda: setattr(Config, "noise", 0.7)),
        "namespace": (reads_global, lambda: setattr(SETTINGS, "noise", 0.7)),
        "deep in a namespace": (reads_global, lambda: SETTINGS.inner["list"].append(3)),
        "int that becomes a float": (reads_global, lambda: SETTINGS.inner.update(list=[1.0, 2])),
        "nested dict": (closure(one), lambda: one["a"][1].update(b=3.0)),
        "key of a dict": (closure(one), lambda: one.update(c=one.pop("a"))),
        "list in a closure": (function, lambda: function.__closure__[0].cell_contents.append(1)),
        "variable of a closure": (nested, lambda: setattr(nested.__closure__[0], "cell_contents", 5)),
        "closure within a closure": (
            nested,
            lambda: nested.__closure__[0].cell_contents.__closure__[0].cell_contents.update(x=2),
        ),
        "what is decorated": (decorated, lambda: function.__closure__[0].cell_contents.append(1)),
        "default": (defaults, lambda: setattr(defaults, "__defaults__", (4,))),
        "partial": (partial, lambda: partial.keywords["noise"].append(1)),
        "handler": (scaled, lambda: setattr(next(a for a in scaled.args if hasattr(a, "scale")), "scale", 0.7)),
        "dataclass": (closure(data), lambda: setattr(data, "noise", 0.7)),
        "list in a dataclass": (closure(data), lambda: data.more[1].append(1)),
        "slots": (closure(slotted), lambda: setattr(slotted, "noise", 0.7)),
        "object of a method": (holder.model, lambda: setattr(holder, "noise", 0.7)),
        "array": (closure(array), lambda: array.__setitem__(0, 1.0)),
        "attribute of a module": (net, lambda: setattr(net, "mode", Mode.TWO)),
        "dict of a module": (net, lambda: net.options.update(p=0.2)),
        "class of a module": (net, lambda: setattr(Net, "scale", 3.0)),
        "global of a method": (net, lambda: TABLE.update(noise=0.9)),
        "training mode": (graph, lambda: graph.eval()),
        "option of a submodule": (graph, lambda: setattr(graph[1], "p", 0.1)),
        "requires_grad": (net, lambda: net.layer.bias.requires_grad_(False)),
        "hook": (net, lambda: net.register_forward_hook(lambda *a: None)),
        "prior": (closure(prior), lambda: setattr(prior, "reinterpreted_batch_ndims", 0)),
        "requires_grad in a closure": (closure(tensor), lambda: tensor.requires_grad_()),
        "replaced function": (closure([helper]), lambda: setattr(helper, "__code__", (lambda: 7).__code__)),
    }


@pytest.fixture(autouse=True)
def put_back():
    code, layer_scale = helper.__code__, Net.scale
    yield
    helper.__code__, Net.scale, Config.noise, SETTINGS.noise = code, layer_scale, 0.5, 0.5
    set_global(0.5)
    TABLE.clear()
    TABLE.update(noise=0.5)
    SETTINGS.inner = {"list": [1, 2]}


@pytest.mark.parametrize("name", cases())
def test_a_change_is_seen_and_changes_the_key(name):
    root, change = cases()[name]
    before = surroundings_of([("the model", root)])
    assert before.unchanged() and surroundings_of([("the model", root)]).key == before.key
    hash(before.key)
    change()
    assert not before.unchanged()
    assert surroundings_of([("the model", root)]).key != before.key


@pytest.mark.parametrize("replace", ["object", "storage"])
def test_a_tensor_in_another_place_is_seen_and_is_in_no_key(replace):
    holder = {"mask": torch.ones(2)}
    before = surroundings_of([("the model", closure(holder))])
    if replace == "object":
        holder["mask"] = torch.zeros(2)
    else:
        holder["mask"].data = torch.zeros(2)
    after = surroundings_of([("the model", closure(holder))])
    assert not before.unchanged() and after.key == before.key
    assert after.tensors == [holder["mask"]]


def test_an_equal_value_that_is_another_object_is_no_change_of_the_key():
    holder = {"noise": float("0.75"), "words": "".join(["a", "b"])}
    before = surroundings_of([("the model", closure(holder))])
    holder["noise"], holder["words"] = float("0.75"), "".join(["a", "b"])
    assert surroundings_of([("the model", closure(holder))]).key == before.key


def test_restore_puts_contents_back():
    net, one, variable = Net(), {"a": 1}, [1]
    before = surroundings_of([("the net", net), ("one", closure(one)), ("variable", closure(variable))])
    net.options["q"], net.extra, net.layer.weight, one["b"] = 1, 2, nn.Parameter(torch.ones(2, 2)), 3
    variable[:] = [2, 3]
    assert not before.unchanged()
    before.restore()
    assert before.unchanged() and one == {"a": 1} and variable == [1] and not hasattr(net, "extra")


def test_names_say_where_a_value_is():
    names = surroundings_of([("the model", reads_global)]).names
    assert "the global 'TABLE'['noise']" in names and "Config.noise" in names
    assert "'value' in the closure of closure.<locals>.model" in surroundings_of([("the model", closure(1))]).names


def test_nothing_is_held_after_its_owner_is_gone():
    net = Net()
    found = surroundings_of([("the net", net), ("the model", closure(net))])
    gone = weakref.ref(net)
    del net, found
    gc.collect()
    assert gone() is None


# The same through a training: losses of the step in which something changes are those of the eager loss.
def noisy(read):
    torch.manual_seed(0)
    x = torch.randn(12, 3)
    bnn = vd.BayesianModule(nn.Linear(3, 1), dist.Normal(0.0, 1.0))

    def model(x, y):
        mean = bnn(x).squeeze(-1)
        with vd.data_plate(40, len(x)):
            pyro.sample("y", dist.Normal(mean, read()), obs=y)

    return model, bnn, x, x.sum(1)


FOLLOWED = {
    "global": (lambda: NOISE, lambda value: set_global(value)),
    "dict": (lambda: TABLE["noise"], lambda value: TABLE.update(noise=value)),
    "namespace": (lambda: SETTINGS.noise, lambda value: setattr(SETTINGS, "noise", value)),
    "called function": (helper, lambda value: set_global(value)),
    "tensor": (lambda: TABLE["noise"], lambda value: TABLE.update(noise=torch.tensor(value))),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_change_is_followed_in_the_step_in_which_it_is_made(name, monkeypatch):
    graphs = without_compiler(monkeypatch)
    read, write = FOLLOWED[name]
    write(0.5)
    model, bnn, x, y = noisy(read)
    elbo, guide = vd.TraceVD_ELBO(), vd.guides.AutoMeanField(model)
    svi = vd.CompiledSVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-3), elbo, strict=True)
    for step in range(12):
        if step in (5, 9):
            write({5: 1.5, 9: 0.5}[step])
        torch.manual_seed(step)
        expected = elbo.differentiable_loss(model, guide, x, y).item() if step else None
        torch.manual_seed(step)
        loss = svi.step(x, y).item()
        assert step == 0 or loss == pytest.approx(expected, rel=1e-5), step
    assert len(graphs) == (3 if name == "tensor" else 2)  # a number that comes back finds its program
