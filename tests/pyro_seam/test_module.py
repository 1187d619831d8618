"""BayesianModule: which parameters become sites, and what happens to the others."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

import pyro_vd as vd
from helpers.programs import Program, data, two_layer_net
from pyro_vd import BayesianModule, ImproperLogUniform, TraceVD_ELBO
from pyro_vd.guides import AutoSparseVD

X, Y = data()
PRIOR = dist.Normal(torch.zeros(()).double(), 1.0)


def trace_of(bnn: nn.Module, *args):
    return poutine.trace(bnn).get_trace(*args)


def mixed_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3),
        nn.BatchNorm1d(3),
        nn.Conv2d(1, 2, 3),
        nn.Conv3d(1, 1, 1),
        nn.Embedding(4, 3),
        nn.Linear(3, 2),
    )


def tied_net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    net[2].weight = net[0].weight
    return net


def test_sites_are_named_and_in_parameter_order():
    bnn = BayesianModule(two_layer_net(), PRIOR, name="bnn")
    assert bnn.weight_names == ("0.weight", "2.weight") and bnn.site("0.weight") == "bnn.0.weight"
    trace = trace_of(bnn, X)
    assert list(trace.stochastic_nodes) == ["bnn.0.weight", "bnn.2.weight"]
    assert trace.param_nodes == ["bnn.0.bias", "bnn.2.bias"]
    everything = BayesianModule(two_layer_net(), PRIOR, where="*")
    assert everything.weight_names == tuple(name for name, _ in two_layer_net().named_parameters())


def test_the_net_computes_with_the_sampled_values():
    net = two_layer_net()
    bnn = BayesianModule(net, PRIOR)
    trace = trace_of(bnn, X)
    first, second = (trace.nodes[f"net.{layer}.weight"]["value"] for layer in (0, 2))
    hidden = torch.tanh(X @ first.T + net[0].bias)
    expected = hidden @ second.T + net[2].bias
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], expected)


def test_priors_have_the_parameter_s_shape_as_event():
    trace = trace_of(BayesianModule(two_layer_net(), PRIOR), X)
    for layer, shape in ((0, (4, 3)), (2, (2, 4))):
        fn = trace.nodes[f"net.{layer}.weight"]["fn"]
        assert fn.batch_shape == () and fn.event_shape == shape


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (None, ["0.weight", "2.weight", "3.weight", "4.weight", "5.weight"]),
        (nn.Linear, ["5.weight"]),
        ((nn.Conv1d, nn.Embedding), ["0.weight", "4.weight"]),
        ("0.bias", ["0.bias"]),
        ("*.bias", ["0.bias", "1.bias", "2.bias", "3.bias", "5.bias"]),
        (["5.*", "0.weight"], ["0.weight", "5.weight", "5.bias"]),
        (lambda name, module: isinstance(module, nn.BatchNorm1d), ["1.weight", "1.bias"]),
        (lambda name, module: module.weight.dim() == 5 and name.endswith("weight"), ["3.weight"]),
    ],
)
def test_where_chooses_parameters(where, chosen):
    assert list(BayesianModule(mixed_net(), PRIOR, where=where).weight_names) == chosen


def test_subclasses_of_a_layer_are_chosen():
    # out_proj of the attention is a NonDynamicallyQuantizableLinear: found by type, never by name.
    bnn = BayesianModule(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), dist.Normal(0.0, 1.0))
    names = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert bnn.weight_names == names
    out = bnn(torch.randn(3, 5, 8))
    assert out.shape == (3, 5, 8) and torch.isfinite(out).all()


def test_a_transformer_layer_trains():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    bnn = BayesianModule(layer, ImproperLogUniform())
    x = torch.randn(3, 5, 8)

    def model(x):
        out = bnn(x)
        with vd.data_plate(30, len(x)):
            pyro.sample("y", dist.Normal(out, 1.0).to_event(2), obs=x)

    guide = AutoSparseVD(model)
    loss = TraceVD_ELBO(strict=True)
    guide(x)
    loss.differentiable_loss(model, guide, x).backward()
    assert all(torch.isfinite(parameter.grad).all() and parameter.grad.any() for parameter in guide.parameters())


def test_priors_differ_by_layer():
    wide = dist.Normal(torch.zeros(()).double(), 10.0)
    for prior in (
        {"0.*": PRIOR, "*": wide},
        {"0.weight": PRIOR, "2.weight": wide},
        lambda name, parameter: PRIOR if name == "0.weight" else wide,
        lambda name, parameter: dist.Normal(torch.zeros_like(parameter), 1.0 if parameter.shape == (4, 3) else 10.0),
    ):
        trace = trace_of(BayesianModule(two_layer_net(), prior), X)
        scales = [float(trace.nodes[f"net.{layer}.weight"]["fn"].base_dist.scale.mean()) for layer in (0, 2)]
        assert scales == [1.0, 10.0]


def test_tied_parameters_are_one_site_with_one_value_and_one_kl():
    net = tied_net()
    bnn = BayesianModule(net, PRIOR)
    assert bnn.weight_names == ("0.weight",)
    trace = trace_of(bnn, X)
    weight = trace.nodes["net.0.weight"]["value"]
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], torch.tanh(X @ weight.T) @ weight.T)
    program = Program(tied_net())
    terms = TraceVD_ELBO("shared").terms(program.model, program.guide, X, X)
    assert list(terms.kl) == ["net.0.weight"]
    torch.testing.assert_close(terms.kl_total, program.kl_total())
    with pytest.raises(ValueError, match="site 'net.0.weight': expected one use of the weight in a trace under"):
        TraceVD_ELBO().loss(program.model, program.guide, X, X)


def test_the_net_is_not_changed():
    net = two_layer_net()
    before, names, forward = copy.deepcopy(net.state_dict()), [n for n, _ in net.named_parameters()], net.forward
    bnn = BayesianModule(net, PRIOR)
    bnn(X)
    assert bnn.net is net and net.forward == forward
    assert [name for name, _ in net.named_parameters()] == names
    assert all(type(parameter) is nn.Parameter for parameter in net.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_deterministic_parameters_are_registered_once_under_their_own_tensor():
    net = two_layer_net()
    bnn = BayesianModule(net, PRIOR)
    for _ in range(2):
        bnn(X)
    store = pyro.get_param_store()
    assert sorted(store.keys()) == ["net.0.bias", "net.2.bias"]
    assert store._params["net.0.bias"] is net[0].bias and store._params["net.2.bias"] is net[2].bias


def test_frozen_parameters_stay_out_of_the_store():
    net = two_layer_net()
    net[0].bias.requires_grad_(False)
    BayesianModule(net, PRIOR)(X)
    assert list(pyro.get_param_store().keys()) == ["net.2.bias"]


def test_a_loaded_value_is_taken_over_by_the_net(tmp_path):
    trained = two_layer_net()
    BayesianModule(trained, PRIOR)(X)
    with torch.no_grad():
        trained[0].bias.fill_(3.25)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store.pt")
    net = two_layer_net()
    own = net[0].bias
    bnn = BayesianModule(net, PRIOR)
    bnn(X)
    assert net[0].bias is own and (own == 3.25).all()  # the tensor an optimizer may hold already
    assert pyro.get_param_store()._params["net.0.bias"] is own
    with torch.no_grad():
        own.fill_(1.5)
    assert (pyro.param("net.0.bias") == 1.5).all()


def test_a_stored_value_of_another_shape_is_an_error():
    pyro.param("net.0.bias", torch.zeros(7))
    with pytest.raises(ValueError, match=r"parameter 'net.0.bias': expected shape \(4,\), got \(7,\) .*another name="):
        BayesianModule(two_layer_net(), PRIOR)(X)


def batchnorm_program(dtype=torch.float64) -> tuple[nn.Sequential, Program]:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    return net, Program(net)


def buffers(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def test_batchnorm_buffers_follow_the_batches_in_train_mode():
    net, program = batchnorm_program()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), TraceVD_ELBO())
    for step in range(1, 4):
        before = buffers(net)
        svi.step(X, Y)
        assert int(net[1].num_batches_tracked) == step
        for name in ("1.running_mean", "1.running_var"):
            assert not torch.equal(buffers(net)[name], before[name])
    net.eval()
    before = buffers(net)
    svi.step(X, Y)
    assert all(torch.equal(value, before[name]) for name, value in buffers(net).items())


def test_batchnorm_buffers_are_those_of_the_plain_net():
    net, program = batchnorm_program()
    plain = copy.deepcopy(net)
    trace = trace_of(program.bnn.net, X)  # the net itself, no site
    assert not trace.stochastic_nodes
    mean = X @ plain[0].weight.T + plain[0].bias
    torch.testing.assert_close(net[1].running_mean, 0.1 * mean.mean(0).detach())
    net, program = batchnorm_program()
    net.load_state_dict(plain.state_dict())
    noiseless = {"net.0.weight": plain[0].weight.detach(), "net.2.weight": plain[2].weight.detach()}
    poutine.condition(program.bnn, data=noiseless)(X)
    torch.testing.assert_close(net[1].running_mean, 0.1 * mean.mean(0).detach())
    torch.testing.assert_close(net[1].running_var, 0.9 + 0.1 * mean.var(0).detach())


def test_a_batch_that_is_not_finite_leaves_all_buffers_of_a_net_called_by_itself_as_they_were():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    bnn = BayesianModule(net, dist.Normal(0.0, 1.0))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for bad in (torch.nan, torch.inf):
        bnn(torch.full((4, 3), bad))
        assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    bnn(torch.randn(4, 3))
    assert not any(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


@pytest.mark.parametrize("validation", [True, False])
def test_a_nan_batch_leaves_the_buffers_as_they_were(validation):
    pyro.enable_validation(validation)
    net, program = batchnorm_program()
    TraceVD_ELBO().loss(program.model, program.guide, X, Y)
    before = buffers(net)
    bad = X.clone()
    bad[2, 1] = float("nan")
    with pytest.raises(ValueError, match="data argument 0 holds 1 NaN or infinite of 18 values"):
        TraceVD_ELBO().loss(program.model, program.guide, bad, Y)
    for name, value in buffers(net).items():
        assert torch.equal(value, before[name]), name


def test_eval_mode_keeps_the_predictive_uncertainty():
    net, program = batchnorm_program()
    TraceVD_ELBO().loss(program.model, program.guide, X, Y)
    program.eval()
    sites = ["net.0.weight", "net.2.weight"]
    draws = vd.posterior_predictive(program.model, program.guide, X, num_samples=20, return_sites=sites)
    for site in sites:
        assert (draws[site].std(0) > 0).all()
    replayed = [
        poutine.replay(program.bnn, trace=poutine.trace(program.guide).get_trace(X))(X).detach() for _ in range(20)
    ]
    assert (torch.stack(replayed).std(0) > 1e-3).all()
