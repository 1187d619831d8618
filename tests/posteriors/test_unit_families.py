"""Every noise family against its definition in weight space, local outputs, weight draws, and errors.

``helpers/noise_families.py`` has the definitions, ``helpers/output_moments.py`` the exact moments that they give the
outputs of a layer. Drawn outputs are held against them within the standard errors of ``helpers/oracles.py``: each
statistical assertion fails by chance with probability 1e-6 (were the seed not fixed).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import pyro_vd as vd
from helpers.layer_cases import CASES
from helpers.noise_families import DRAWS, FAMILIES, UNITS, bernoulli, parameters, random_weight, relaxed_moments
from helpers.oracles import assert_mean_close, assert_variance_close
from helpers.output_moments import assert_output_moments

CALLS = ("F.linear (3,)", "F.linear (2, 3)", "F.linear (2, 1, 3)", "x @ w", "w @ x", "addmm", "addmm (1, 2)",
         "conv1d plain", "conv2d stride and padding", "conv2d groups and dilation", "conv3d plain")  # fmt: skip


def unit_dim_of(call: str) -> int:
    """The dimension of the weight of a call where its input units lie."""
    return 0 if call.startswith(("x @", "addmm")) else 1


def families_and_calls() -> list:
    """Every family at every call, with noise on input and on output units, and each kind of bias the call has."""
    rows = []
    for family, call, input_units in product(FAMILIES, CALLS, (True, False)):
        for kind in ("deterministic", "random") if CASES[call].bias else ("none",):
            if family != "ard" or input_units:
                dim = unit_dim_of(call) if input_units else 1 - unit_dim_of(call)
                rows.append(pytest.param(family, call, dim, kind, id=f"{family}, {call}, unit_dim {dim}, bias {kind}"))
    return rows


@pytest.mark.parametrize(("family", "call", "dim", "kind"), families_and_calls())
def test_local_outputs_have_the_moments_of_weight_space(family, call, dim, kind):
    assert_output_moments(CASES[call], *FAMILIES[family](CASES[call].weight, dim), "local", kind)


@pytest.mark.parametrize("call", ["F.linear (3,)", "F.linear (2, 3)", "x @ w", "conv2d groups and dilation"])
@pytest.mark.parametrize("family", FAMILIES)
def test_per_example_outputs_have_the_moments_of_weight_space(family, call):
    case = CASES[call]
    kind = "random" if case.bias else "none"
    assert_output_moments(case, *FAMILIES[family](case.weight, 1), "per_example", kind)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_weight_draws_and_properties_have_the_moments_of_the_definition(family, dim):
    """The weight of "shared", and of a guide run by itself."""
    q, moments = FAMILIES[family]((2, 3, 2), dim)
    base = getattr(q, "base_dist", q)
    covariance = torch.from_numpy(moments.covariance)
    drawn = q.rsample(torch.Size([8 * DRAWS])).flatten(1)
    assert_mean_close(drawn, torch.from_numpy(moments.mean))
    deviation = drawn - torch.from_numpy(moments.mean)
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], covariance)
    if family == "concrete":  # its properties are those of the binary limit
        _, moments = bernoulli((2, 3, 2), dim)
        covariance = torch.from_numpy(moments.covariance)
    variance = covariance.diagonal().reshape(2, 3, 2)
    torch.testing.assert_close(base.mean, torch.from_numpy(moments.mean).reshape(2, 3, 2), rtol=1e-12, atol=0)
    torch.testing.assert_close(base.variance, variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(base.scale, variance.sqrt(), rtol=1e-12, atol=0)
    if family in ("correlated", "bernoulli", "concrete", "ard"):
        alpha = (variance / base.mean.square()).expand(2, 3, 2)
        torch.testing.assert_close(base.log_alpha.expand(2, 3, 2), alpha.log(), rtol=0, atol=1e-12)
        torch.testing.assert_close(base.dropout_rate.expand(2, 3, 2), alpha / (1 + alpha), rtol=0, atol=1e-12)


def layers() -> dict[str, tuple[Callable, tuple, tuple, int, bool]]:
    """Call, shape of x and of a weight whose units can be told apart, axes of x that are rows."""
    return {
        "linear": (F.linear, (60, 3), (7, 3), 1),
        "linear of tokens": (F.linear, (6, 10, 3), (7, 3), 2),
        "transposed": (lambda x, w: x @ w.T, (60, 3), (7, 3), 1),
        "conv1d": (F.conv1d, (60, 3, 5), (4, 3, 2), 1),
        "conv2d in groups": (lambda x, w: F.conv2d(x, w, padding=1, groups=2), (60, 6, 3, 3), (4, 3, 2, 2), 1),
        "conv3d": (F.conv3d, (60, 3, 3, 3, 3), (4, 3, 2, 2, 2), 1),
    }  # fmt: skip


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("layer", layers())
@pytest.mark.parametrize("family", UNITS)
def test_all_outputs_of_a_row_share_one_noise_per_unit(family, layer, dim):
    """Outputs are those of ``s * theta`` for one s, which least squares gives back exactly; each row its own."""
    call, x_shape, shape, rows = layers()[layer]
    q, _ = FAMILIES[family](shape, dim)
    theta = q.loc
    if family == "group":
        theta, _, rate, unit_loc = parameters(shape, shape[dim])
        q = vd.GroupNormal(theta, torch.full_like(theta, -90.0), unit_loc, rate.log(), unit_dim=dim)
    x = torch.randn(x_shape).double()
    y = call(x, random_weight(q, "local")).flatten(rows).flatten(0, rows - 1)
    single = torch.eye(shape[dim]).double().unflatten(1, [-1 if axis == dim else 1 for axis in range(len(shape))])
    columns = torch.stack([call(x, theta * one).flatten(rows).flatten(0, rows - 1) for one in single], -1)
    s = torch.linalg.lstsq(columns, y[..., None]).solution[..., 0]
    torch.testing.assert_close((columns @ s[..., None])[..., 0], y, rtol=0, atol=1e-9)
    assert s.shape == (60, shape[dim]) and torch.linalg.matrix_rank(columns).eq(shape[dim]).all()
    if family == "bernoulli":
        dropped, kept = s.abs() < 1e-9, (s - 1 / (1 - q.dropout_rate.flatten())).abs() < 1e-9
        assert (dropped | kept).all() and dropped.any(0).all() and kept.any(0).all()
        assert len(dropped.unique(dim=0)) > 4
    else:
        assert all(len(column.unique()) > 50 for column in s.mul(1e6).round().T)


@pytest.mark.parametrize("family", UNITS)
def test_unit_noise_has_the_law_of_the_family(family):
    """Theta is an identity matrix: the output is s."""
    units = 3
    _, _, rate, unit_loc = parameters((units, units), units)
    eye, ones = torch.eye(units).double(), torch.ones(8 * DRAWS, units).double()
    q: Any = {
        "correlated": lambda: vd.CorrelatedDropoutNormal(eye, rate.log()),
        "bernoulli": lambda: vd.BernoulliDropout(eye, rate),
        "concrete": lambda: vd.ConcreteDropout(eye, torch.logit(rate), temperature=0.1),
        "group": lambda: vd.GroupNormal(eye, torch.full_like(eye, -90.0), unit_loc, rate.log()),
    }[family]()
    s = F.linear(ones, random_weight(q, "local"))
    if family == "concrete":
        mean, variance = torch.tensor([relaxed_moments(float(p), 0.1) for p in rate]).double().T
        assert (s > 0).all() and (s * (1 - rate) <= 1 + 1e-12).all()
        # P(s <= half of its bound) = p: the relaxation keeps the probability of dropping.
        assert_mean_close((s * (1 - rate) <= 0.5).double(), rate)
        torch.testing.assert_close(mean, torch.ones(3).double(), rtol=0, atol=0.05)  # near the binary limit
    else:
        mean = unit_loc if family == "group" else torch.ones(units).double()
        variance = rate / (1 - rate) if family == "bernoulli" else rate
    assert_mean_close(s, mean)
    assert_variance_close(s, variance)
    z = (s - mean) / variance.sqrt()
    if family in ("correlated", "group"):
        assert_mean_close(z**3, torch.zeros(units).double())
        assert_mean_close(z**4, torch.full((units,), 3.0).double())
    assert_mean_close(z[:, 0] * z[:, 1], torch.zeros(()).double())
    assert_mean_close(z[1:] * z[:-1], torch.zeros(units).double())


@pytest.mark.parametrize("family", UNITS)
def test_per_example_tokens_share_the_noise_that_local_draws_anew(family):
    q, _ = FAMILIES[family]((4, 3), 1)
    x = torch.randn(30, 1, 3).double().expand(30, 2, 3)
    shared, own = (F.linear(x, random_weight(q, estimator)) for estimator in ("per_example", "local"))
    torch.testing.assert_close(shared[:, 0], shared[:, 1], rtol=0, atol=1e-12)
    assert not torch.isclose(own[:, 0], own[:, 1]).all(-1).all()


@pytest.mark.parametrize("family", UNITS)
def test_flipout_names_itself_and_the_family(family):
    q, _ = FAMILIES[family]((2, 3), 1)
    message = rf"site 'w': .*{type(q).__name__} has a form for \(local, shared, per_example\), got 'flipout'"
    with pytest.raises(ValueError, match=message):
        random_weight(q, "flipout")


def test_families_say_what_they_expect():
    loc = torch.ones(4, 3)
    wrong: dict[str, Callable] = {
        r"dropout_rate in \[0, 1\), the probability of dropping, got 1\.0": lambda: vd.BernoulliDropout(loc, 1.0),
        r"dropout_rate in \[0, 1\).*got -0\.1": lambda: vd.BernoulliDropout(loc, -0.1),
        r"temperature > 0, got 0": lambda: vd.ConcreteDropout(loc, 0.0, temperature=0),
        r"one of shape|one number or of shape \(3,\)": lambda: vd.CorrelatedDropoutNormal(loc, torch.zeros(4)),
        r"dimension 1 for its units, got loc of shape \(3,\)": lambda: vd.BernoulliDropout(torch.ones(3), 0.5),
        r"kl to be one of .*got 'ard'": lambda: vd.CorrelatedDropoutNormal(loc, 0.0, kl="ard"),
        r"has no density; choose": lambda: vd.BernoulliDropout(loc, 0.5).log_prob(loc),
        r"batch of shape \(2,\); sample it outside": lambda: vd.BernoulliDropout(loc, 0.5).expand(torch.Size([2])),
    }
    for text, attempt in wrong.items():
        with pytest.raises(ValueError, match=text):
            attempt()
