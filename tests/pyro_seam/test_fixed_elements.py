"""What a layer keeps fixed is a constant in every draw and has no KL: over layers, families, estimators and modes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.utils import prune

import pyro_vd as vd
from pyro_vd.guides import (
    AutoARD,
    AutoBernoulliDropout,
    AutoConcreteDropout,
    AutoGaussianDropout,
    AutoGroupSparse,
    AutoLowRank,
    AutoMeanField,
    AutoSparseVD,
    AutoVariationalDropout,
)

NORMAL, LOG_UNIFORM = dist.Normal(0.0, 1.0), vd.ImproperLogUniform()
ROW = torch.tensor([0.5, 0.0, -0.5])
TOKENS, Y = torch.tensor([[1, 0, 0], [2, 3, 0]]), torch.ones(2, 3)

FAMILIES = {
    "mean field": (NORMAL, lambda m: AutoMeanField(m, init_log_sigma2=-1.0)),
    "sparse": (LOG_UNIFORM, lambda m: AutoSparseVD(m, init_log_sigma2=-1.0)),
    "ard": (LOG_UNIFORM, lambda m: AutoARD(m, init_log_sigma2=-1.0)),
    "variational": (LOG_UNIFORM, AutoVariationalDropout),
    "correlated": (LOG_UNIFORM, lambda m: AutoVariationalDropout(m, correlated=True)),
    "correlated rows": (LOG_UNIFORM, lambda m: AutoVariationalDropout(m, correlated=True, unit_dim=0)),
    "gaussian": (LOG_UNIFORM, AutoGaussianDropout),
    "bernoulli": (NORMAL, AutoBernoulliDropout),
    "bernoulli rows": (NORMAL, lambda m: AutoBernoulliDropout(m, unit_dim=0)),
    "concrete": (NORMAL, AutoConcreteDropout),
    "group": (LOG_UNIFORM, lambda m: AutoGroupSparse(m, init_log_sigma2=-1.0)),
    "group rows": (LOG_UNIFORM, lambda m: AutoGroupSparse(m, init_log_sigma2=-1.0, unit_dim=0)),
    "low rank": (NORMAL, lambda m: AutoLowRank(m, 2, init_log_sigma2=-1.0)),
    "of Pyro": (NORMAL, lambda m: AutoNormal(m, init_scale=0.5)),
}
OURS = [family for family in FAMILIES if family != "of Pyro"]  # which samples its KL
UNITS = ("correlated", "bernoulli", "concrete", "group")
NO_FLIPOUT = (*UNITS, "low rank", "of Pyro")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*expected an operation with a rule",  # units that are rows
    "ignore:.*expected a distribution that estimator",  # of Pyro
)


def net_with_row(kind=nn.Embedding):
    net = kind(4, 3, padding_idx=0)
    with torch.no_grad():
        net.weight[0] = ROW
    return net


class Program:
    def __init__(self, family, net=None):
        pyro.set_rng_seed(1)
        prior, make = FAMILIES[family]
        self.net = net_with_row() if net is None else net
        self.bnn = vd.BayesianModule(self.net, prior)
        self.guide = make(self.model)

    def model(self, x, y=None):
        out = pyro.deterministic("out", self.bnn(x))
        with vd.data_plate(2, len(x)):
            return pyro.sample("y", dist.Normal(out.reshape(2, -1, 3).sum(1), 1.0).to_event(1), obs=y)

    def train(self, estimator, steps=5):
        svi = SVI(self.model, self.guide, pyro.optim.Adam({"lr": 0.05}), vd.TraceVD_ELBO(estimator))
        for _ in range(steps):
            svi.step(TOKENS, Y)


PAIRS = [
    (family, estimator)
    for family in FAMILIES
    for estimator in ("local", "shared", "per_example", "flipout")
    if estimator != "flipout" or not family.startswith(NO_FLIPOUT)
]


@pytest.mark.parametrize(("family", "estimator"), PAIRS)
def test_a_padding_row_stays_in_every_draw(family, estimator):
    program = Program(family)
    program.train(estimator)
    for mode in ("weights", "local", "mean"):
        draws = vd.posterior_predictive(
            program.model, program.guide, TOKENS, num_samples=3, mode=mode, return_sites=["out"]
        )["out"]
        assert (draws[:, TOKENS == 0] == ROW).all(), mode
        others = draws[:, TOKENS != 0]
        assert mode == "mean" or (others[0] != others[1]).any()
    handler = {"local": vd.lrt, "shared": None, "per_example": vd.per_example, "flipout": vd.flipout}[estimator]
    guide = program.guide if handler is None else handler(program.guide)
    trace = pyro.poutine.trace(guide).get_trace(TOKENS)
    out = pyro.poutine.trace(pyro.poutine.replay(program.model, trace=trace)).get_trace(TOKENS).nodes["out"]["value"]
    assert (out[TOKENS == 0] == ROW).all()


@pytest.mark.parametrize("family", OURS)
def test_the_kl_is_that_of_a_weight_without_the_fixed_row(family):
    """Of the same family over rows 1 to 3 alone, with the same parameters."""
    program = Program(family)
    program.train("shared", 3)
    got = vd.TraceVD_ELBO("shared").terms(program.model, program.guide, TOKENS, Y).kl["net.weight"]
    tensors = {name: tensor.clone() for name, tensor in program.guide.state_dict().items()}
    pyro.clear_param_store()
    without = Program(family, nn.Embedding(3, 3))
    tokens = torch.tensor([[0, 1], [2, 1]])
    without.guide(tokens, Y)
    for name, tensor in without.guide.state_dict().items():
        if not name.endswith("net.weight"):
            continue
        given = tensors[name]
        axis = next((axis for axis in range(given.dim()) if given.shape[axis] == 4), None)
        with torch.no_grad():
            tensor.copy_(given if axis is None else given.narrow(axis, 1, 3))
    expected = vd.TraceVD_ELBO("shared").terms(without.model, without.guide, tokens, Y).kl["net.weight"]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("family", "estimator"), [pair for pair in PAIRS if pair[0] in OURS])
def test_nothing_of_the_fixed_row_is_trained(family, estimator):
    program = Program(family)
    program.guide(TOKENS, Y)
    vd.TraceVD_ELBO(estimator).differentiable_loss(program.model, program.guide, TOKENS, Y).backward()
    trained = 0
    for name, parameter in program.guide.named_parameters():
        rows = [axis for axis in range(parameter.dim()) if parameter.shape[axis] == 4]
        if rows and parameter.grad is not None:
            assert not parameter.grad.select(rows[0], 0).any(), name
            trained += bool(parameter.grad.any())
    assert trained


@pytest.mark.parametrize("family", OURS)
def test_report_and_prune_have_the_row_as_it_is(family):
    program = Program(family)
    program.train("local")
    log_alpha = program.guide.log_alpha("net.weight")
    if not family.startswith(("gaussian", "variational", "correlated")):  # whose log_alpha is the quantity they store
        assert (log_alpha[0, [0, 2]] == -math.inf).all()
    for threshold in (-100.0, math.inf):
        pruned = vd.prune(program.bnn, program.guide, threshold)
        assert torch.equal(pruned.weight[0], ROW)
        assert bool(pruned.weight[1:].any()) is (threshold > 0)
    posterior = program.guide.posteriors()["net.weight"]
    assert (posterior.variance[0] == 0).all() and (posterior.variance[1:] > 0).any()
    assert vd.sparsity_report(program.guide, -100.0).rows[0].kept == 2


def test_bags_are_fixed_too_and_a_row_that_a_head_uses_is_not():
    program = Program("mean field", net_with_row(nn.EmbeddingBag))
    kl = vd.TraceVD_ELBO().terms(program.model, program.guide, TOKENS, Y).kl["net.weight"]
    q = program.guide.posterior("net.weight")
    torch.testing.assert_close(kl, kl_divergence(q, NORMAL.expand([4, 3]))[1:].sum())

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 4, bias=False)
            self.head.weight = self.embedding.weight

    assert vd.BayesianModule(Tied(), NORMAL).fixed("embedding.weight") is None


def test_a_guide_by_hand_meets_the_fixed_row_too():
    net = net_with_row()
    bnn = vd.BayesianModule(net, NORMAL)

    def model(x):
        out = pyro.deterministic("out", bnn(x))
        pyro.sample("y", dist.Normal(out, 1.0).to_event(3), obs=torch.zeros(2, 3, 3))

    def guide(x):
        pyro.sample("net.weight", vd.DropoutNormal(torch.zeros(4, 3), log_sigma2=-1.0).to_event(2))

    for estimator in ("local", "shared", "per_example", "flipout"):
        terms = vd.TraceVD_ELBO(estimator).terms(model, guide, TOKENS)
        q = vd.DropoutNormal(torch.zeros(3, 3), log_sigma2=-1.0)
        torch.testing.assert_close(terms.kl["net.weight"], kl_divergence(q, NORMAL.expand([3, 3])).sum())
    trace = pyro.poutine.trace(vd.lrt(guide)).get_trace(TOKENS)
    out = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(TOKENS).nodes["out"]["value"]
    assert (out[TOKENS == 0] == ROW).all() and (out[TOKENS != 0] != 0).all()
    assert (bnn(TOKENS)[TOKENS == 0] == ROW).all()  # a draw of the prior


@pytest.mark.parametrize("family", [family for family in OURS if "rows" not in family])
def test_masked_elements_are_zeros_without_a_kl(family):
    pyro.set_rng_seed(0)
    layer = prune.l1_unstructured(nn.Linear(3, 3), "weight", 4)
    program = Program(family, layer)
    x = torch.randn(2, 3)
    masked = layer.weight_mask == 0
    elbo = vd.TraceVD_ELBO("shared")
    elbo.loss(program.model, program.guide, x, Y)
    parameters = list(program.guide.named_parameters())
    terms = elbo.terms(program.model, program.guide, x, Y)
    gradients = torch.autograd.grad(terms.loss, [p for _, p in parameters], allow_unused=True)
    for (name, parameter), gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.shape[-2:] == (3, 3):
            assert not gradient[..., masked].any() and gradient[..., ~masked].any(), name
    posterior = program.guide.posteriors()["net.weight_orig"]
    assert not posterior.mean[masked].any() and not posterior.variance[masked].any()
    report = vd.sparsity_report(program.guide, 1e9)
    assert report.rows[0].kept == int((~masked).sum())
    pruned = vd.prune(program.bnn, program.guide, math.inf)
    assert not pruned.weight[masked].any() and pruned.weight[~masked].all()


def frozen_net():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    net[0].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (None, ["2.weight"]),
        (nn.Linear, ["2.weight"]),
        ("*", ["2.weight", "2.bias"]),
        ("*.weight", ["2.weight"]),
        (["0.weight", "2.*"], ["0.weight", "2.weight", "2.bias"]),
        ("0.weight", ["0.weight"]),
        (lambda name, module: name.endswith("weight"), ["0.weight", "2.weight"]),
    ],
)
def test_a_frozen_weight_is_random_only_by_its_name(where, chosen):
    assert list(vd.BayesianModule(frozen_net(), NORMAL, where=where).weight_names) == chosen


@pytest.mark.parametrize("family", ["mean field", "group", "low rank"])
@pytest.mark.parametrize("named", [False, True])
def test_training_leaves_frozen_parameters_as_they_are(family, named):
    pyro.set_rng_seed(0)
    net = frozen_net()
    before = [parameter.clone() for parameter in net[0].parameters()]
    prior, make = FAMILIES[family]
    bnn = vd.BayesianModule(net, prior, where=["0.weight", "2.weight"] if named else None)

    def model(x, y=None):
        out = bnn(x)
        with vd.data_plate(2, len(x)):
            pyro.sample("y", dist.Normal(out, 1.0).to_event(1), obs=y)

    svi = SVI(model, make(model), pyro.optim.Adam({"lr": 0.1}), vd.TraceVD_ELBO())
    for _ in range(3):
        svi.step(torch.ones(2, 3), Y)
    assert all(torch.equal(now, then) for now, then in zip(net[0].parameters(), before, strict=True))


def test_a_net_that_is_frozen_as_a_whole_is_an_error():
    with pytest.raises(ValueError, match=r"got none of .*, of which .*'0.weight'.* are frozen"):
        vd.BayesianModule(nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), NORMAL)
