"""Bad input: each error by its text, and nothing changed before it is raised."""

from __future__ import annotations

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_vd as vd
from helpers.programs import Program, data, two_layer_net
from pyro_vd import BayesianModule, ImproperLogUniform, TraceVD_ELBO
from pyro_vd.guides import AutoSparseVD

X, Y = data()


@pytest.fixture(autouse=True)
def _warn_always():
    # torch gives some warnings once a process; an error path must be free of them in every order of tests.
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def batchnorm_net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    net.eval()  # its buffers in train mode: test_module.py
    return net


def state(program: Program) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in program.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def spoilt(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[1, 0] = value
    return tensor


BAD_DATA = [
    ("x", math.nan, r"data argument 0 holds 1 NaN or infinite of 18 values"),
    ("x", math.inf, r"data argument 0 holds 1 NaN or infinite of 18 values"),
    ("y", math.nan, r"site 'y'"),
    ("y", -math.inf, r"site 'y': expected a finite negative log likelihood, got inf: data argument 1 holds 1 NaN"),
]


def trainers(program: Program):
    """One step of SVI, and one of torch.optim; each with its own optimizer."""
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), TraceVD_ELBO())
    loss = TraceVD_ELBO()(program.model, program.guide)
    optim = torch.optim.Adam(loss.parameters(), lr=0.1)

    def step(*args):
        optim.zero_grad()
        loss(*args).backward()
        optim.step()

    return {"svi": svi.step, "torch": step}


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("trainer", ["svi", "torch"])
@pytest.mark.parametrize(("which", "value", "message"), BAD_DATA)
def test_bad_data_changes_nothing(which, value, message, trainer, validation):
    pyro.enable_validation(validation)
    program = Program(batchnorm_net())
    x, y = (spoilt(X, value), Y) if which == "x" else (X, spoilt(Y, value))
    step = trainers(program)[trainer]
    step(X, Y)  # optimizer state, gradients
    before = state(program)
    with pytest.raises(ValueError, match=message):
        step(x, y)
    assert same(before, state(program))
    pyro.set_rng_seed(8)
    step(X, Y)
    assert not same(before, state(program))
    assert all(torch.isfinite(value).all() for value in state(program).values())


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("trainer", ["svi", "torch"])
def test_a_good_step_after_a_bad_one_is_unaffected(trainer, value, validation):
    pyro.enable_validation(validation)
    results = []
    for spoil in (False, True):
        pyro.clear_param_store()
        program = Program(two_layer_net())
        step = trainers(program)[trainer]
        pyro.set_rng_seed(1)
        step(X, Y)
        if spoil:
            with pytest.raises(ValueError, match="data argument 0 holds 1 NaN or infinite of 18"):
                step(spoilt(X, value), Y)
        pyro.set_rng_seed(2)
        step(X, Y)
        results.append(state(program))
    assert same(*results)


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize(
    ("name", "value"), [("loc", math.nan), ("loc", math.inf), ("log_sigma2", math.nan), ("log_sigma2", math.inf)]
)
def test_a_bad_guide_parameter_is_named_by_site(name, value, validation):
    pyro.enable_validation(validation)
    program = Program(two_layer_net())
    with torch.no_grad():
        getattr(program, name)["net.2.weight"][0, 1] = value
    before = state(program)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), TraceVD_ELBO())
    with pytest.raises(ValueError, match=rf"{name} of site 'net.2.weight' holds 1 NaN or infinite of 8 values"):
        svi.step(X, Y)
    after = state(program)
    finite = [key for key, value in before.items() if value.isfinite().all()]
    assert all(torch.equal(before[key], after[key]) for key in finite) and len(finite) == len(before) - 1


def test_variance_zero_is_an_infinite_kl_that_is_named():
    program = Program(two_layer_net())
    with torch.no_grad():
        program.log_sigma2["net.0.weight"][0, 0] = -math.inf
    with pytest.raises(
        ValueError, match="site 'net.0.weight': expected a finite KL, got .*: log_sigma2 of site 'net.0.wei"
    ):
        TraceVD_ELBO().loss(program.model, program.guide, X, Y)


@pytest.mark.parametrize("validation", [True, False])
def test_a_bad_deterministic_parameter_is_named(validation):
    pyro.enable_validation(validation)
    program = Program(two_layer_net())
    with torch.no_grad():
        program.bnn.net[0].bias[2] = math.nan
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), TraceVD_ELBO())
    before = program.loc["net.0.weight"].detach().clone()
    with pytest.raises(ValueError, match="net.0.bias' holds 1 NaN or infinite of 4 values"):
        svi.step(X, Y)
    assert torch.equal(before, program.loc["net.0.weight"])


def test_a_loss_that_overflows_without_bad_input_says_so():
    program = Program(two_layer_net())
    with torch.no_grad():
        program.loc["net.2.weight"].fill_(1e200)
    with pytest.raises(
        ValueError, match="site 'y': expected a finite negative log likelihood, got inf: no input .*rate"
    ):
        TraceVD_ELBO().loss(program.model, program.guide, X, Y)


def test_keyword_data_is_named():
    pyro.enable_validation(False)  # with it, Pyro's own error for site 'y' comes first
    program = Program(two_layer_net())
    with pytest.raises(ValueError, match="data argument 'y' holds 1 NaN or infinite of 12 values"):
        TraceVD_ELBO().loss(program.model, program.guide, X, y=spoilt(Y, math.nan))


def test_a_guide_that_misses_a_site():
    program = Program(two_layer_net())

    def guide(x, y):
        pyro.sample("net.0.weight", vd.DropoutNormal(program.loc["net.0.weight"], log_sigma2=-3.0).to_event(2))

    message = (
        r"site 'net.2.weight': expected a guide that samples every latent site of the model, got one that samples "
        r"\['net.0.weight'\]; add pyro.sample\('net.2.weight', ...\) to the guide, or obs= to the model"
    )
    with pytest.raises(ValueError, match=message):
        TraceVD_ELBO().loss(program.model, guide, X, Y)


def test_a_guide_that_adds_a_site():
    program = Program(two_layer_net())

    def guide(x, y):
        program.guide(x, y)
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    message = (
        r"site 'extra': expected a guide with the sites of the model, \['net.0.weight', 'net.2.weight'\], got one "
        r"more; remove it, or mark it infer=\{\"is_auxiliary\": True\}"
    )
    with pytest.raises(ValueError, match=message):
        TraceVD_ELBO().loss(program.model, guide, X, Y)


def test_a_guide_of_another_shape_is_named():
    program = Program(two_layer_net())
    program.loc["net.0.weight"] = nn.Parameter(torch.zeros(3, 4).double())
    program.log_sigma2["net.0.weight"] = nn.Parameter(torch.zeros(3, 4).double())
    with pytest.raises(ValueError, match=r"'net.0.weight': expected a weight of shape \(4, 3\), got \(3, 4\)"):
        TraceVD_ELBO().loss(program.model, program.guide, X, Y)


@pytest.mark.parametrize(
    ("net", "where", "advice"),
    [
        (nn.Sequential(nn.Tanh()), None, "none of them is a matrix"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), None, "none of them is a matrix"),
        (nn.Linear(2, 2), nn.Conv2d, r"the matrices are those of Linear \(''\); choose with where='weight', where=t"),
        (nn.Linear(2, 2), lambda name, module: False, "the matrices are those of Linear"),
    ],
)
def test_a_net_without_a_chosen_parameter(net, where, advice):
    names = re.escape(str([name for name, _ in net.named_parameters()]))
    message = rf"where: expected at least one parameter to be random, got none of {names}; {advice}"
    with pytest.raises(ValueError, match=message):
        BayesianModule(net, ImproperLogUniform(), where=where)


def test_a_pattern_that_matches_nothing():
    message = r"where: expected parameter names or patterns of \['0.weight', .*\], got \['1.weight'\]"
    with pytest.raises(ValueError, match=message):
        BayesianModule(two_layer_net(), ImproperLogUniform(), where=["0.weight", "1.weight"])


def test_where_of_another_type():
    with pytest.raises(TypeError, match="where: expected module types, parameter names or one callable, got 3"):
        BayesianModule(two_layer_net(), ImproperLogUniform(), where=3)


def test_a_parameter_without_a_prior():
    with pytest.raises(
        ValueError, match=r"prior: expected a prior for parameter '2.weight', got priors for \['0.\*'\] only"
    ):
        BayesianModule(two_layer_net(), {"0.*": ImproperLogUniform()})
    with pytest.raises(TypeError, match="prior: expected a Pyro distribution for parameter '0.weight', got float"):
        BayesianModule(two_layer_net(), lambda name, parameter: 1.0)
    with pytest.raises(TypeError, match="prior: expected a Pyro distribution for parameter '0.weight', got"):
        BayesianModule(two_layer_net(), {"*": 1.0})


def test_a_net_that_is_none():
    with pytest.raises(TypeError, match="BayesianModule: expected net to be a torch.nn.Module, got function"):
        BayesianModule(lambda x: x, ImproperLogUniform())


def test_data_set_smaller_than_the_batch():
    program = Program(two_layer_net(), dataset_size=5)
    with pytest.raises(ValueError, match="data_plate: .* got batch_size=6 and dataset_size=5; .*posterior_predictive"):
        TraceVD_ELBO().loss(program.model, program.guide, X, Y)


@pytest.mark.parametrize("swapped", [False, True])
def test_data_on_another_device_than_the_net(swapped):
    devices = ("cpu", "meta") if swapped else ("meta", "cpu")
    bnn = BayesianModule(nn.Linear(3, 2, device=devices[0]), ImproperLogUniform())
    message = (
        rf"BayesianModule 'net': expected data on the device of the net, {devices[0]}, got {devices[1]}; write x.to\("
    )
    with pytest.raises(ValueError, match=message):
        bnn(torch.ones(2, 3, device=devices[1]))
    guide = AutoSparseVD(bnn)
    with pytest.raises(ValueError, match=message):
        TraceVD_ELBO().loss(bnn, guide, torch.ones(2, 3, device=devices[1]))


def test_an_integer_loc():
    with pytest.raises(
        TypeError, match=r"DropoutNormal: expected loc to be a floating point tensor, got torch.int64; write"
    ):
        vd.DropoutNormal(torch.arange(3), log_sigma2=-3.0)


def test_messages_have_four_parts():
    """What was expected, what was got, where, and what to write instead."""
    attempts = [
        lambda: vd.DropoutNormal(torch.ones(2)),
        lambda: vd.DropoutNormal(torch.ones(2), torch.ones(3)),
        lambda: vd.data_plate(3, 4),
        lambda: BayesianModule(nn.Linear(2, 2), ImproperLogUniform(), where=nn.Conv1d),
        lambda: ImproperLogUniform().sample(),
    ]
    for attempt in attempts:
        with pytest.raises((ValueError, TypeError), match=r"(?s)^[A-Za-z_]+: expected .+ got .+[;.] .*\w+"):
            attempt()
