"""Nets that keep weights in odd places, in a program that takes steps; and all that their modules hold."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

X, Y = torch.ones(5, 4), torch.zeros(5, 2)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second, self.head = self.first, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


class Tied(nn.Module):
    """One parameter in two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(torch.tanh(self.a(x))))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, change=lambda rnn: rnn, **options):
        super().__init__()
        self.rnn, self.head = change(kind(2, 3, batch_first=True, **options)), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.rnn(x.reshape(len(x), 2, 2))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        x = x.unsqueeze(1)
        return self.head(self.attention(x, x, x)[0][:, 0])


class Caching(nn.Module):
    """A layer that keeps its weight, and a list and a dict with it, in attributes."""

    def __init__(self):
        super().__init__()
        self.weight, self.cache, self.all, self.named = nn.Parameter(torch.randn(2, 4)), None, [None], {"w": None}

    def forward(self, x):
        self.cache, self.all[0], self.named["w"] = self.weight, self.weight, self.weight
        return nn.functional.linear(x, self.cache)


class Hooked(nn.Module):
    """A weight that a hook of the user's makes of a parameter of another name."""

    def __init__(self):
        super().__init__()
        self.raw, self.weight = nn.Parameter(torch.randn(2, 4)), torch.zeros(2, 4)
        self.register_forward_pre_hook(lambda module, args: setattr(module, "weight", 2 * module.raw))

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(2, 4))])

    def forward(self, x):
        for weight in self.weights:
            x = nn.functional.linear(x, weight)
        return x


class Nested(nn.Module):
    """A BayesianModule inside the net of another."""

    def __init__(self):
        super().__init__()
        self.inner = vd.BayesianModule(nn.Linear(4, 4), dist.Normal(0.0, 1.0), name="inner")
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inner(x))


def masked(layer, name="weight"):
    return prune.l1_unstructured(layer, name, 0.5)


def mlp(change=lambda layer: layer):
    return nn.Sequential(change(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2))


class ToTokens(nn.Module):
    def forward(self, x):
        return x[:, 0].long()


NETS = {
    "mlp": mlp,
    "one layer under two names": Twice,
    "tied": Tied,
    "mask": lambda: mlp(masked),
    "mask of a bias": lambda: mlp(lambda layer: masked(layer, "bias")),
    "masks of weight and bias": lambda: mlp(lambda layer: masked(masked(layer), "bias")),
    "old weight norm": lambda: mlp(weight_norm),
    "old spectral norm": lambda: mlp(spectral_norm),
    "weight norm": lambda: mlp(parametrizations.weight_norm),
    "spectral norm": lambda: mlp(parametrizations.spectral_norm),
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "two rnn layers": lambda: Recurrent(nn.RNN, num_layers=2),
    "masked lstm": lambda: Recurrent(change=lambda rnn: masked(rnn, "weight_hh_l0")),
    "attention": Attention,
    "transformer": lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, 0.0), nn.Linear(4, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "caching": Caching,
    "hooked": Hooked,
    "parameter list": Listed,
    "nested": Nested,
    "embedding": lambda: nn.Sequential(ToTokens(), nn.Embedding(3, 2, padding_idx=0)),
}
WHERE = {"caching": "weight", "hooked": "raw", "parameter list": "weights.*"}
REUSES = {"one layer under two names", "tied"}


class Failing(nn.Module):
    """A last layer that fails when told to."""

    def __init__(self):
        super().__init__()
        self.error: BaseException | None = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return x


class Run:
    def __init__(self, name: str, estimator: str = "local"):
        pyro.set_rng_seed(0)
        self.failing = Failing()
        self.net = nn.Sequential(NETS[name](), self.failing)
        where = WHERE.get(name)
        self.bnn = vd.BayesianModule(self.net, dist.Normal(0.0, 1.0), where=where and f"0.{where}")
        self.guide = AutoMeanField(self.model)
        self.elbo = vd.TraceVD_ELBO(estimator, reuse="independent" if name in REUSES else "error")
        self.svi = SVI(self.model, self.guide, pyro.optim.Adam({"lr": 0.01}), self.elbo)

    def model(self, x, y=None):
        mean = self.bnn(x)
        with vd.data_plate(5, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


def attributes(net: nn.Module) -> dict:
    """All that the modules hold, lists and dicts by their elements."""
    held = {}
    for path, module in net.named_modules(remove_duplicate=False):
        for key, value in vars(module).items():
            held[path, key] = value
            if isinstance(value, dict):
                held |= {(path, key, name): one for name, one in value.items()}
            if isinstance(value, list):
                held |= {(path, key, i): one for i, one in enumerate(value)}
    return held


def assert_unchanged(before: dict, net: nn.Module, after_what: str = "") -> None:
    after = attributes(net)
    assert before.keys() == after.keys(), after_what
    assert [key for key, value in before.items() if after[key] is not value] == [], after_what
