"""Bad arguments of ELBO, handlers and BayesianModule, and bad data: each a clear error that changes nothing."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vd as vd
from helpers.bad_arguments import (
    INF,
    LOC,
    NAN,
    NO_PROGRAMS,
    PRIOR,
    WRONG_COUNTS,
    WRONG_NUMBERS,
    Cases,
    Setting,
    X,
    Y,
    check,
)
from pyro_vd import guides

NET = nn.Linear(3, 2)
WRONG_DATA = {
    "numpy": (X.numpy(), "write torch.as_tensor"),
    "list": (X.tolist(), "write torch.tensor"),
    "None": (None, "got None"),
    "text": ("data", "got text, 'data'"),
    "loader": (DataLoader(TensorDataset(X, Y)), "got a DataLoader; write for x, y in loader"),
    "data set": (TensorDataset(X, Y), "got a data set, TensorDataset"),
    "double": (X.double(), "got a tensor of torch.float64, parameters are of torch.float32; write x.to"),
    "int": (X.long(), "got a tensor of torch.int64"),
    "bool": (X > 0, "got a tensor of torch.bool"),
    "complex": (X * 1j, "got a tensor of torch.complex64"),
    "dict": ({"x": X.numpy()}, "write torch.as_tensor"),
    "object": (object(), "got a value of type object"),
}

CASES = Cases()


@pytest.fixture
def setting():
    return Setting()


def simple_guide(x=None, y=None):
    pyro.sample("w", vd.DropoutNormal(LOC, log_sigma2=-2.0).to_event(2))


# TraceVD_ELBO
for estimator in ("Local", "lrt", None, 3):
    CASES.add(f"estimator {estimator}", lambda s, e=estimator: vd.TraceVD_ELBO(e), "estimator: expected one of 'local'")
for kind, value in WRONG_COUNTS.items():
    CASES.add(
        f"num_particles {kind}", lambda s, v=value: vd.TraceVD_ELBO(num_particles=v), "num_particles: expected a whole"
    )
for kind, value in {**WRONG_NUMBERS, "-1": -1.0}.items():
    CASES.add(
        f"kl_weight {kind}", lambda s, v=value: vd.TraceVD_ELBO(kl_weight=v), "kl_weight: expected a finite number >= 0"
    )
CASES.add(
    "kl_weight of shape", lambda s: vd.TraceVD_ELBO(kl_weight=torch.ones(1)), "kl_weight: expected a number or a 0-dim"
)
CASES.add("kl_weight of 1j as a tensor", lambda s: vd.TraceVD_ELBO(kl_weight=torch.tensor(1j)), "kl_weight: expected a")
for value in (-1.0, NAN, INF):
    elbo = vd.TraceVD_ELBO(kl_weight=torch.tensor(value))
    CASES.add(
        f"kl_weight tensor {value}",
        lambda s, e=elbo: e.loss(s.model, s.guide, X, Y),
        "kl_weight: expected a finite num",
    )
for name in ("analytic_only", "strict", "vectorize_particles"):
    CASES.add(f"{name} 'yes'", lambda s, n=name: vd.TraceVD_ELBO(**{n: "yes"}), f"{name}: expected True or False, got")
for kind, value in NO_PROGRAMS.items():
    CASES.add(
        f"model {kind}", lambda s, v=value: vd.TraceVD_ELBO()(v, s.guide), "model: expected a Pyro model, a function or"
    )
    CASES.add(
        f"guide {kind}", lambda s, v=value: vd.TraceVD_ELBO()(s.model, v), "guide: expected a Pyro guide, a function or"
    )
    CASES.add(f"loss of {kind}", lambda s, v=value: s.elbo.loss(v, s.guide, X, Y), "model: expected a Pyro model")

# handlers
for handler in (vd.lrt, vd.per_example, vd.flipout):
    name = handler.__name__
    CASES.add(f"{name} of text", lambda s, h=handler: h("guide"), "guide: expected a Pyro guide, a function or module")
    CASES.add(f"{name} sites text", lambda s, h=handler: h(shared_sites="w"), "shared_sites: expected a list of site n")
    CASES.add(
        f"{name} sites 3", lambda s, h=handler: h(shared_sites=3), "shared_sites: expected a list of site names, got 3"
    )
    CASES.add(f"{name} reuse", lambda s, h=handler: h(reuse="yes"), "reuse: expected ")
    CASES.add(f"{name} strict", lambda s, h=handler: h(strict=None), "strict: expected True or False, got None")
    CASES.add(f"{name} unknown site", lambda s, h=handler: h(simple_guide, shared_sites=["v"])(), "guide ['w'], got ['")
CASES.add("posterior_mean of a class", lambda s: vd.posterior_mean(nn.Linear), "guide: expected a Pyro guide")
CASES.add(
    "ELBO, unknown site",
    lambda s: vd.TraceVD_ELBO(shared_sites=["net.0.wieght"]).loss(s.model, s.guide, X, Y),
    "shared_sites: expected names among the sites of the guide ['net.0.weight', 'net.2.weight'], got ",
)

# BayesianModule and data_plate
for kind, value in {"None": None, "function": lambda x: x, "class": nn.Linear, "text": "net", "list": [NET]}.items():
    CASES.add(f"net {kind}", lambda s, v=value: vd.BayesianModule(v, PRIOR), "expected net to be a torch.nn.Module, go")
for kind, value in {"None": None, "text": "log_uniform", "class": vd.ImproperLogUniform, "Normal": dist.Normal,
                    "1": 1.0,
                    "list": [PRIOR], "torch": torch.distributions.Normal(0.0, 1.0), "tensor": LOC}.items():  # fmt: skip
    CASES.add(f"prior {kind}", lambda s, v=value: vd.BayesianModule(NET, v), "prior: expected a Pyro distribution")
CASES.add("prior key", lambda s: vd.BayesianModule(NET, {"*": PRIOR, "wieght": PRIOR}), "got ['wieght'], which match n")
CASES.add(
    "prior key of a bias",
    lambda s: vd.BayesianModule(NET, {"*": PRIOR, "bias": PRIOR}),
    "got ['bias'], which match none",
)
CASES.add("prior keys that are no text", lambda s: vd.BayesianModule(NET, {0: PRIOR}), "prior: expected names or patte")
CASES.add(
    "prior value",
    lambda s: vd.BayesianModule(NET, {"weight": 1.0}),
    "prior: expected a Pyro distribution for parameter",
)
CASES.add("prior missing", lambda s: vd.BayesianModule(NET, {"bias": PRIOR}), "expected a prior for parameter 'weight'")
CASES.add("prior of events", lambda s: vd.BayesianModule(NET, PRIOR.expand([2, 3]).to_event(2)), "leave out to_event")
CASES.add("prior shape", lambda s: vd.BayesianModule(NET, dist.Normal(torch.zeros(4), 1.0)), "expands to the shape (2,")
CASES.add("prior function", lambda s: vd.BayesianModule(NET, lambda n, p: None), "prior: expected a Pyro distribution")
for value in (None, 3, ""):
    CASES.add(f"name {value!r}", lambda s, v=value: vd.BayesianModule(NET, PRIOR, name=v), "expected name to be text")
for kind, value in {"3": 3, "empty": [], "mixture": [nn.Linear, "weight"]}.items():
    CASES.add(
        f"where {kind}", lambda s, v=value: vd.BayesianModule(NET, PRIOR, where=v), "where: expected module types, par"
    )
CASES.add(
    "where unknown", lambda s: vd.BayesianModule(NET, PRIOR, where="wieght"), "names or patterns of ['weight', 'bias']"
)
for kind, value in WRONG_COUNTS.items():
    words = "data_plate: expected "
    CASES.add(f"dataset_size {kind}", lambda s, v=value: vd.data_plate(v, 2), words)
    CASES.add(f"batch_size {kind}", lambda s, v=value: vd.data_plate(10, v), words)
CASES.add(
    "dataset_size inf",
    lambda s: vd.data_plate(INF, 2),
    "data_plate: expected dataset_size to be a whole number, got inf",
)
CASES.add("plate name", lambda s: vd.data_plate(10, 2, name=3), "data_plate: expected name to be text, got 3")
CASES.add("plate dim", lambda s: vd.data_plate(10, 2, dim=0), "data_plate: expected dim to be negative")
CASES.add(
    "state with NaN",
    lambda s: s.bnn.load_state_dict({n: v * NAN for n, v in s.bnn.state_dict().items()}),
    "load_state_dict: 'net.0.weight': expected finite values, got 12 NaN or infinite of 12",
)

# data
for kind, (value, words) in WRONG_DATA.items():
    CASES.add(
        f"net called with {kind}",
        lambda s, v=value: vd.BayesianModule(NET, dist.Normal(0.0, 1.0), name="other")(v),
        f"BayesianModule 'other': expected data argument 0.*{words}",
    )
    CASES.add(
        f"guide called with {kind}", lambda s, v=value: guides.AutoSparseVD(s.bnn)(v), f"data argument 0.*{words}"
    )
    CASES.add(f"step with x {kind}", lambda s, v=value: s.svi.step(v, Y), f"expected data argument 0.*{words}")
    CASES.add(
        f"prediction of {kind}",
        lambda s, v=value: vd.posterior_predictive(s.bnn, s.guide, v, num_samples=2),
        f"expected data argument 0.*{words}",
    )
for kind, (value, words) in WRONG_DATA.items():
    if kind in ("numpy", "list", "text", "data set", "object"):
        CASES.add(f"step with y {kind}", lambda s, v=value: s.svi.step(X, v), f"expected data argument 1.*{words}")
for kind, value in {"column": Y[:, None], "one": Y[:1], "scalar": Y[0]}.items():
    words = rf"site 'y': expected an observed value of shape (6,), .*got {tuple(value.shape)}, which would be broadcast"
    CASES.add(f"step with labels of shape {kind}", lambda s, v=value: s.svi.step(X, v), words)
for value in (NAN, INF):
    bad = X.clone().index_fill_(0, torch.tensor([2]), value)
    CASES.add(f"step with x of {value}", lambda s, v=bad: s.svi.step(v, Y), "data argument 0 holds 3 NaN or infinite o")


def test_there_are_many():
    assert len(CASES) >= 160


@pytest.mark.parametrize("label", CASES)
def test_bad_arguments_are_clear_errors_that_change_nothing(setting, label):
    check(setting, *CASES[label])
