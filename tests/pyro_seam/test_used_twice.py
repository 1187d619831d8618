"""A weight used twice: one error for all of them, or drawn once; over nets, calls and estimators."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

LOCAL = ("local", "per_example", "flipout")
X, Y = torch.ones(3, 4), torch.zeros(3, 4)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.once, self.times = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), 2

    def forward(self, x):
        for _ in range(self.times):
            x = self.b(torch.tanh(self.a(x)))
        return self.once(x)


class Tied(nn.Module):
    """A head tied to an embedding, a layer under two names, and one that is used once."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head, self.first = nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight, self.second, self.once = self.embedding.weight, self.first, nn.Linear(4, 4)

    def forward(self, x):
        return self.once(self.head(self.second(torch.tanh(self.first(self.embedding(x[:, 0].long()))))))


TWICE = {Loop: ["net.a.weight", "net.b.weight"], Tied: ["net.embedding.weight", "net.first.weight"]}


class Program:
    def __init__(self, net):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.bnn = vd.BayesianModule(net(), dist.Normal(0.0, 1.0))
        self.guide = AutoMeanField(self.model, init_log_sigma2=-1.0)
        self.guide(X, Y)

    def model(self, x, y=None):
        mean = self.bnn(x)
        with vd.data_plate(3, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


class TwoCalls(Program):
    """One net, called twice by the model."""

    def model(self, x, y=None):
        mean = self.bnn(torch.tanh(self.bnn(x)))
        with vd.data_plate(3, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)


PROGRAMS = {
    "loop": (lambda: Program(Loop), TWICE[Loop]),
    "tied": (lambda: Program(Tied), TWICE[Tied]),
    "two calls": (lambda: TwoCalls(lambda: nn.Linear(4, 4)), ["net.weight"]),
}


def predictive(program, estimator, **options):
    return vd.posterior_predictive(program.model, program.guide, X, num_samples=2, mode="local", **options)["y"]


def elbo(program, estimator, **options):
    loss = vd.TraceVD_ELBO(estimator, **options)
    return torch.tensor([loss.loss(program.model, program.guide, X, Y) for _ in range(2)])


def report(program, estimator, **options):
    rows = vd.lrt_report(program.model, program.guide, X, Y, **options).rows
    return {row.site: row.how for row in rows}


def variance(program, estimator, **options):
    return vd.gradient_variance(
        program.model, program.guide, vd.TraceVD_ELBO(estimator, **options), X, Y, num_draws=3
    ).per_parameter()


def elbo_of_pyro(program, estimator, **options):
    handler = {"local": vd.lrt, "per_example": vd.per_example, "flipout": vd.flipout}[estimator]
    guide = handler(program.guide, **options)
    return TraceMeanField_ELBO().loss(program.model, guide, X, Y)


CALLS = [elbo, predictive, report, variance, elbo_of_pyro]
PAIRS = [(c, e) for c in CALLS for e in LOCAL if e == "local" or c not in (predictive, report)]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("call", "estimator"), PAIRS)
def test_one_error_names_all_sites_and_the_line_to_write(call, estimator, name):
    make, sites = PROGRAMS[name]
    with pytest.raises(ValueError) as caught:
        call(make(), estimator)
    message = str(caught.value)
    assert f"Write shared_sites={sites} to draw" in message
    assert repr(estimator) in message and 'shared_sites="auto"' in message


@pytest.mark.parametrize("option", [{"shared_sites": "auto"}, {"reuse": "shared"}])
@pytest.mark.parametrize(("call", "estimator"), PAIRS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_found_sites_are_drawn_once_as_if_they_were_listed(name, call, estimator, option):
    make, sites = PROGRAMS[name]
    program = make()
    pyro.set_rng_seed(3)
    expected = call(program, estimator, shared_sites=sites)
    program = make()
    pyro.set_rng_seed(3)
    with pytest.warns(UserWarning) as said:
        got = call(program, estimator, **option)
    assert [f"sites {sites}: used twice" in str(one.message) for one in said] == [True]
    if call in (elbo, elbo_of_pyro):
        assert got == expected if isinstance(got, float) else torch.equal(got, expected)
    elif call is report:
        assert got == expected and all(how == "local" for site, how in got.items() if site not in sites)
    elif call is variance:
        assert got == expected
    else:
        assert got.shape == expected.shape


def test_it_is_said_once_and_only_those_are_drawn_once():
    program = Program(Loop)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO(shared_sites="auto"))
    with pytest.warns(UserWarning, match="used twice in one run of the model"):
        svi.step(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            svi.step(X, Y)
        handler = svi.loss.__self__._messenger if hasattr(svi.loss, "__self__") else None
    assert handler is None or handler.shared_sites == {"net.a.weight", "net.b.weight"}


def test_a_site_that_is_used_twice_only_later_is_found_then():
    program = Program(Loop)
    net = program.bnn.net
    net.times = 1
    loss = vd.TraceVD_ELBO(shared_sites="auto")
    loss.loss(program.model, program.guide, X, Y)
    net.times = 3
    with pytest.warns(UserWarning, match="net.a.weight"):
        loss.loss(program.model, program.guide, X, Y)
    loss.loss(program.model, program.guide, X, Y)


def test_looking_ahead_leaves_noise_and_buffers_alone():
    class Net(Loop):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(super().forward(x))

    def losses(**options):
        program = Program(Net)
        svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), vd.TraceVD_ELBO(**options))
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            taken = [svi.step(X + torch.arange(3.0)[:, None], Y) for _ in range(3)]
        return taken, program.bnn.net.norm.running_mean, int(program.bnn.net.norm.num_batches_tracked)

    (got, mean, number), (expected, expected_mean, _) = losses(shared_sites="auto"), losses(shared_sites=TWICE[Loop])
    assert got == expected and torch.equal(mean, expected_mean) and number == 3


def test_a_guide_that_is_wrapped_already_keeps_its_own_choice():
    program, sites = Program(Loop), TWICE[Loop]
    guide = vd.lrt(program.guide, shared_sites=sites)
    draws = vd.posterior_predictive(program.model, guide, X, num_samples=2, mode="local")
    assert draws["y"].shape == (2, 3, 4)
    trace = poutine.trace(vd.lrt(guide)).get_trace(X)
    kinds = {name: isinstance(site["value"], vd.RandomWeight) for name, site in trace.iter_stochastic_nodes()}
    assert kinds == {"net.a.weight": False, "net.b.weight": False, "net.once.weight": True}


def test_two_calls_of_one_net_have_the_same_weights():
    bnn = vd.BayesianModule(nn.Linear(4, 4), dist.Normal(0.0, 1.0))

    def model(x):
        return bnn(x), bnn(x)

    trace = poutine.trace(model).get_trace(X)
    first, second = trace.nodes["_RETURN"]["value"]
    assert torch.equal(first, second) and list(trace.stochastic_nodes) == ["net.weight"]
    assert not torch.equal(first, poutine.trace(model).get_trace(X).nodes["_RETURN"]["value"][0])
    other = vd.BayesianModule(nn.Linear(4, 4), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="site 'net.weight': .* two BayesianModules named 'net'"):
        poutine.trace(lambda x: (bnn(x), other(x))).get_trace(X)


def test_independent_reuse_is_still_allowed_and_contradictions_are_not():
    program = Program(Loop)
    assert vd.TraceVD_ELBO(reuse="independent").loss(program.model, program.guide, X, Y) > 0
    assert predictive(program, "local", reuse="independent").shape == (2, 3, 4)
    with pytest.raises(ValueError, match="shared_sites: expected a list of site names with reuse='independent', got"):
        vd.TraceVD_ELBO(shared_sites="auto", reuse="independent")
    with pytest.raises(TypeError, match="shared_sites: expected a list of site names, got 'net.a.weight'"):
        vd.TraceVD_ELBO(shared_sites="net.a.weight")


def test_a_hand_written_model_has_all_its_sites_named():
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(torch.zeros(4, 4), 1.0).to_event(2))
        b = pyro.sample("b", dist.Normal(torch.zeros(4, 4), 1.0).to_event(2))
        pyro.sample("y", dist.Normal(x @ a @ a @ b @ b, 1.0).to_event(2), obs=y)

    def guide(x, y=None):
        for name in ("a", "b"):
            pyro.sample(name, vd.DropoutNormal(pyro.param(name + "_loc", torch.ones(4, 4)), 0.0).to_event(2))

    with pytest.raises(ValueError, match=r"sites 'a', 'b': .* Write shared_sites=\['a', 'b'\] to draw these weights"):
        vd.TraceVD_ELBO().loss(model, guide, X, Y)
    with pytest.warns(UserWarning, match=r"sites \['a', 'b'\]: used twice"):
        vd.TraceVD_ELBO(shared_sites="auto").loss(model, guide, X, Y)
