"""Parameters that a guide makes in the first call of a loss: a step that leaves them alone is warned of."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 2)
LISTED = {
    "the guide": lambda loss, guide: guide.parameters(),
    "guide and net": lambda loss, guide: [*guide.parameters(), *loss.referenced.parameters()],
    "a module around it": lambda loss, guide: nn.ModuleList([loss]).parameters(),
}


def program():
    bnn = vd.BayesianModule(nn.Linear(3, 2), dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean, noise = bnn(x), pyro.sample("noise", dist.Gamma(2.0, 2.0))
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)

    guide = AutoMeanField(model)
    return vd.TraceVD_ELBO()(model, guide), guide


def step(loss, optimizer):
    optimizer.zero_grad()
    loss(X, Y).backward()
    optimizer.step()


@pytest.mark.parametrize("listed", LISTED)
def test_a_step_without_them_is_warned_of_once(listed):
    loss, guide = program()
    optimizer = torch.optim.Adam(LISTED[listed](loss, guide), lr=0.1)
    step(loss, optimizer)
    with pytest.warns(UserWarning, match=r"a step that moved others and not \['AutoMeanField.other_0.locs.noise'"):
        loss(X, Y)
    loss(X, Y)  # a second warning would be an error here


def test_a_compiled_loss_warns_too():
    loss, guide = program()
    compiled = vd.compile_loss(loss)
    step(compiled, torch.optim.Adam(compiled.parameters(), lr=0.1))
    with torch.no_grad(), pytest.warns(UserWarning, match="a step that moved others and not"):  # eager
        compiled(X, Y)


def test_no_warning_where_they_are_trained_or_nothing_is():
    loss, guide = program()
    for _ in range(2):
        loss(X, Y).backward()
    optimizer = torch.optim.SGD(guide.parameters(), lr=1e-3)
    step(loss, optimizer)
    step(loss, optimizer)
    loss(X, Y)


class ByData(torch.optim.Optimizer):
    """An optimizer of the old kind, whose writes change no version of a parameter."""

    def __init__(self, parameters, replace):
        super().__init__(parameters, {})
        self.replace = replace

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None and self.replace:
                parameter.data = parameter.data - 1e-3 * parameter.grad
            elif parameter.grad is not None:
                parameter.data.sub_(1e-3 * parameter.grad)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("all_of_them", [False, True])
def test_an_optimizer_that_writes_to_data(all_of_them, replace):
    loss, guide = program()
    if all_of_them:
        loss(X, Y)
    optimizer = ByData(list(guide.parameters()), replace)
    step(loss, optimizer)
    if not all_of_them:
        with pytest.warns(UserWarning, match=r"a step that moved others and not \['AutoMeanField.other_0.locs.noise'"):
            loss(X, Y)
    step(loss, optimizer)  # no second warning, and none where all are trained


def test_no_warning_of_parameters_that_the_user_has_frozen():
    loss, guide = program()
    loss(X, Y)
    for name, parameter in guide.named_parameters():
        parameter.requires_grad_("noise" not in name)
    optimizer = torch.optim.SGD([p for p in guide.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        step(loss, optimizer)
