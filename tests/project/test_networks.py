"""Whole networks, none of them changed: attention, recurrent nets, and the five of the examples, trained a few steps.

Exact, but for the losses that fall: those of fixed seeds.
"""

from __future__ import annotations

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.utils.parametrize as parametrize
import torch.nn.utils.prune as mask
from torch import Tensor, nn

import pyro_vd as vd
import pyro_vd.estimators
import pyro_vd.weights
from helpers.paths import EXAMPLES
from helpers.programs import NOTHING, run_locally
from pyro_vd.estimators import local, moments
from pyro_vd.guides import AutoSparseVD

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests were taken out of the repository")
if EXAMPLES.exists():
    sys.path.insert(0, str(EXAMPLES))
    from _networks import NETWORKS  # noqa: E402
    from any_network import data, program  # noqa: E402

Q, K, V = torch.randn(3, 4, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
K3, K4, V6 = K[:3], K[..., :4], V[..., :6]
PADDING = torch.tensor([[False] * 4, [False] * 3 + [True]] * 2 + [[False] * 4])
ADDED = torch.zeros(5, 4).double().masked_fill(PADDING, -torch.inf)
CAUSAL = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
ATTENTION = {
    "self": ({}, (Q, Q, Q), {}),
    "self without weights": ({}, (Q, Q, Q), {"need_weights": False}),
    "self, batch first": ({"batch_first": True}, (Q, Q, Q), {}),
    "without bias": ({"bias": False}, (Q, Q, Q), {}),
    "encoder-decoder": ({}, (Q, K3, K3), {}),
    "three inputs": ({}, (Q, K, V), {"average_attn_weights": False}),
    "separate projections": ({"kdim": 4, "vdim": 6}, (Q, K4, V6), {}),
    "unbatched": ({}, (Q[:, 0], Q[:, 0], Q[:, 0]), {}),
    "masks": (
        {},
        (Q, Q, Q),
        {
            "key_padding_mask": torch.zeros(5, 4).double().masked_fill(PADDING, -torch.inf),
            "attn_mask": CAUSAL,
            "need_weights": False,
        },
    ),
    "causal": ({}, (Q, Q, Q), {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    "zero attention": ({"add_zero_attn": True}, (Q, Q, Q), {}),
}
PROJECTIONS = {
    "self": ["linear"], "encoder-decoder": ["linear"] * 2, "three inputs": ["linear"] * 3
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("options", "args", "kwargs"), ATTENTION.values(), ids=ATTENTION)
def test_attention_without_noise_is_attention(options, args, kwargs, training):
    net = nn.MultiheadAttention(8, 2, dtype=torch.float64, **options).train(training)
    output, states = run_locally(net, *args, where="*weight", log_sigma2=NOTHING, **kwargs)
    for got, expected in zip(output, net(*args, **kwargs), strict=True):
        assert (got is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert all(state.draw is None and state.used for state in states.values())


@pytest.mark.parametrize("estimator", [vd.lrt, vd.per_example, vd.flipout])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_packed_projection_is_used_in_disjoint_parts_under_every_estimator(name, estimator):
    options, args, _ = ATTENTION[name]
    net = nn.MultiheadAttention(8, 2, dtype=torch.float64, **options)
    output, states = run_locally(net, *args, handler=estimator)
    assert [operation for operation, _ in states["in_proj_weight"].used] == PROJECTIONS[name]
    assert len(states["in_proj_bias"].used) == len(PROJECTIONS[name]) and output[0].shape == args[0].shape
    gradients = torch.autograd.grad(output[0].sum(), [net.in_proj_weight, net.out_proj.weight])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", ["self", "encoder-decoder", "three inputs", "separate projections"])
def test_projections_have_the_moments_of_weight_space(name, monkeypatch):
    """Query, key and value: mean x W', variance x**2 S', each with its part of the packed weight."""
    seen = []
    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", lambda op: seen.append(moments(op)) or local(op))
    options, args, kwargs = ATTENTION[name]
    net = nn.MultiheadAttention(8, 2, bias=False, dtype=torch.float64, **options)
    run_locally(net, *args, where="*weight", log_sigma2=-1.0, **kwargs)
    weights = net.in_proj_weight.chunk(3) if net.in_proj_weight is not None else (
        net.q_proj_weight, net.k_proj_weight, net.v_proj_weight)  # fmt: skip
    mean, variance = (torch.cat([part.transpose(0, 1).flatten() for part in parts]) for parts in (
        [x @ w.T for x, w in zip(args, weights, strict=True)],
        [x.square() @ torch.full_like(w, -1.0).exp().T for x, w in zip(args, weights, strict=True)],
    ))  # fmt: skip
    for expected, index in ((mean, 0), (variance, 1)):
        got = torch.cat([pair[index].flatten() for pair in seen[:-1]])
        torch.testing.assert_close(got.sort()[0], expected.sort()[0], rtol=0, atol=1e-10)


def test_examples_of_attention_share_a_draw_under_per_example():
    """Two equal examples come out different, and tokens with equal values within one alike."""
    value = torch.randn(4, 1, 8).double().expand(4, 3, 8)
    net = nn.MultiheadAttention(8, 2, bias=False, dtype=torch.float64)
    output, _ = run_locally(net, value, value, value, where="in_proj_weight", handler=vd.per_example, log_sigma2=0.0)
    assert (output[0][:, 0] != output[0][:, 1]).all()
    same = value[:1].expand(4, 3, 8)
    output, _ = run_locally(net, same, same, same, where="in_proj_weight", handler=vd.per_example, log_sigma2=0.0)
    torch.testing.assert_close(output[0], output[0][:1].expand_as(output[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_transformer_encoder_is_local_with_its_fast_paths_and_without(training, gradients):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    net = nn.TransformerEncoder(layer, 2).train(training)
    x = Q.transpose(0, 1)
    with torch.set_grad_enabled(gradients):
        output, states = run_locally(net, x, where=None, log_sigma2=NOTHING, src_key_padding_mask=PADDING)
        net.use_nested_tensor = False  # it warns of itself
        expected = net(x, src_key_padding_mask=PADDING)
    kept = ~PADDING[:, : expected.shape[1]]
    torch.testing.assert_close(output[kept], expected[kept], rtol=0, atol=1e-9)
    assert len(states) == 8 and all(state.draw is None and state.used for state in states.values())


RECURRENT = {
    "LSTM": (nn.LSTM, {"num_layers": 2, "bidirectional": True}), "LSTM projected": (nn.LSTM, {"proj_size": 2}),
    "GRU": (nn.GRU, {"batch_first": True}), "RNN": (nn.RNN, {"nonlinearity": "relu"}),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "options"), RECURRENT.values(), ids=RECURRENT)
@pytest.mark.parametrize("handler", [vd.lrt, vd.per_example, vd.flipout])
def test_recurrent_net_uses_one_draw_for_all_steps_without_a_warning(layer, options, handler):
    net = layer(8, 4, dtype=torch.float64, **options)
    output, states = run_locally(net, Q, handler=handler)
    drawn = {name: state.draw for name, state in states.items()}
    assert all(draw is not None for draw in drawn.values())
    torch.testing.assert_close(output[0], torch.func.functional_call(net, drawn, (Q,))[0], rtol=0, atol=0)
    assert (output[0] != net(Q)[0]).any()


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cell_in_a_loop_uses_one_draw_for_all_steps(cell):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell(8, 4, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for step in x:
                state = self.cell(step, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(outputs)

    net = Loop()
    output, states = run_locally(net, Q, log_sigma2=0.0)
    drawn = {name: state.draw for name, state in states.items()}
    torch.testing.assert_close(output, torch.func.functional_call(net, drawn, (Q,)), rtol=0, atol=0)


class Gain(nn.Module):
    """One deterministic gain for every output unit, as in weight norm."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([[2.0], [3.0]]).double())

    def forward(self, weight: Tensor) -> Tensor:
        return self.gain * weight


@pytest.mark.parametrize("kind", ["gain", "mask"])
def test_scaled_and_masked_weight_has_the_moments_of_the_product(kind, monkeypatch):
    seen = []
    monkeypatch.setitem(pyro_vd.estimators.SAMPLERS, "local", lambda op: seen.append(moments(op)) or local(op))
    net, x = nn.Linear(3, 2, bias=False, dtype=torch.float64), torch.randn(4, 3).double()
    if kind == "gain":
        parametrize.register_parametrization(net, "weight", Gain())
        name, factor = "parametrizations.weight.original", torch.tensor([[2.0], [3.0]]).double()
    else:
        mask.custom_from_mask(net, "weight", torch.tensor([[1, 0, 1], [0, 0, 1]]))
        name, factor = "weight_orig", net.weight_mask
    _, states = run_locally(net, x, where=None, log_sigma2=-1.0)
    assert list(states) == [name]
    ((mean, variance),) = seen
    loc = dict(net.named_parameters())[name]
    torch.testing.assert_close(mean, x @ (factor * loc).T, rtol=0, atol=1e-12)
    expected = x.square() @ (factor.square() * torch.full((2, 3), -1.0).double().exp()).T
    torch.testing.assert_close(variance, expected, rtol=0, atol=1e-12)


def test_default_chooses_all_weights_and_nothing_else():
    net = nn.ModuleDict({
        "bilinear": nn.Bilinear(2, 3, 4), "up": nn.ConvTranspose1d(2, 3, 2), "words": nn.Embedding(5, 2),
        "bags": nn.EmbeddingBag(5, 2), "clipped": nn.Embedding(5, 2, max_norm=1.0), "norm": nn.LayerNorm(3),
        "attention": nn.MultiheadAttention(8, 2, kdim=4), "lstm": nn.LSTM(2, 3, proj_size=2), "cell": nn.GRUCell(2, 3),
        "slope": nn.PReLU(), "channels": nn.BatchNorm1d(3),
    })  # fmt: skip
    assert vd.BayesianModule(net, vd.ImproperLogUniform()).weight_names == (
        "bilinear.weight", "up.weight", "words.weight", "bags.weight", "attention.q_proj_weight",
        "attention.k_proj_weight", "attention.v_proj_weight", "attention.out_proj.weight", "lstm.weight_ih_l0",
        "lstm.weight_hh_l0", "lstm.weight_hr_l0", "cell.weight_ih", "cell.weight_hh")  # fmt: skip
    assert vd.BayesianModule(net, vd.ImproperLogUniform(), where=(nn.LSTM, nn.LayerNorm)).weight_names == (
        "norm.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0")  # fmt: skip


def test_chosen_parameter_of_whole_numbers_is_an_error():
    net = nn.Linear(2, 2)
    net.counts = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(
        TypeError, match="where: expected random parameters of floating point, got 'counts' of torch.int64"
    ):
        vd.BayesianModule(net, vd.ImproperLogUniform(), where=("*", "counts"))


SHARE = {"resnet": 1.0, "vit": 1.0, "lstm": 1344 / 6464, "unet": 1.0, "embedding_bag": 1.0}


@pytest.mark.parametrize("name", SHARE)
def test_real_network_trains_without_a_warning(name):
    """Warnings are errors in this suite."""
    x, y = data(name, torch.Generator().manual_seed(0))
    x, y = x[:256], y[:256]
    bnn = vd.BayesianModule(NETWORKS[name](), vd.ImproperLogUniform())
    model = program(bnn, len(x), name == "unet")
    guide = AutoSparseVD(model)
    report = vd.lrt_report(model, guide, x[:8], y[:8])
    assert report.share == pytest.approx(SHARE[name])
    elbo = vd.TraceVD_ELBO(kl_weight=0.01, strict=True)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    losses = [svi.step(x[i::8], y[i::8]) for _ in range(4) for i in range(8)]
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])
    draws = vd.posterior_predictive(model, guide, x[:8], num_samples=2)["y"]
    assert draws.shape == (2, *y[:8].shape)


def test_report_names_operations_and_shared_sites_and_refuses_a_guide_without_weights():
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), vd.ImproperLogUniform())
    guide, x = AutoSparseVD(bnn), torch.ones(5, 3)
    report = vd.lrt_report(bnn, guide, x, shared_sites=["net.1.weight"])
    assert [(row.how, row.operations) for row in report.rows] == [("local", ("linear",)), ("one draw", ())]
    assert report.share == 0.6 and "net.0.weight" in str(report) and "60.0% of the weights" in str(report)

    def model(x):
        return x @ pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2)).exp()

    def hand_written(x):
        pyro.sample("w", vd.DropoutNormal(torch.zeros(3, 2), log_sigma2=0.0).to_event(2))

    with pytest.warns(UserWarning, match="exp"):
        report = vd.lrt_report(model, hand_written, x)
    assert [(row.how, row.operations) for row in report.rows] == [("one draw", ("exp",))]
    with pytest.raises(ValueError, match=r"expected a guide that samples random weights, got the sites \['z'\]"):
        vd.lrt_report(lambda x: None, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), x)
