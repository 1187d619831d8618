"""Every noise family against its definition in weight space, local outputs, weight draws, and errors.

A family is described here by loops over pairs of weight elements: the mean, the covariance of the part shared by
several elements, and the variance of the part that is independent over elements. Outputs are linear in the weight
(``cases.py`` walks their coefficients), which gives the exact moments that drawn outputs are held against, within the
standard errors of ``oracles.py``: each statistical assertion fails by chance with probability 1e-6 (were the seed not
fixed).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from oracles import assert_mean_close, assert_variance_close
from scipy import integrate
from torch import Tensor

import pyro_vd as vd

DRAWS = 4000
ESTIMATORS: dict[str, Callable] = {"local": vd.lrt, "per_example": vd.per_example, "flipout": vd.flipout}
CALLS = ("F.linear (3,)", "F.linear (2, 3)", "F.linear (2, 1, 3)", "x @ w", "w @ x", "addmm", "addmm (1, 2)",
         "conv1d plain", "conv2d stride and padding", "conv2d groups and dilation", "conv3d plain")  # fmt: skip


@dataclass(frozen=True)
class Moments:
    """Of a weight, flattened: mean, covariance of its shared noise, variance of its independent noise."""

    mean: np.ndarray
    shared: np.ndarray
    independent: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        return self.shared + np.diag(self.independent)


def parameters(shape: tuple[int, ...], units: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loc, log_sigma2 of a weight; one value in (0, 1) and one real value for each unit."""
    make = torch.Generator().manual_seed(seed + sum(shape))
    loc, log_sigma2 = (torch.randn(shape, generator=make, dtype=torch.float64) for _ in range(2))
    rate = 0.2 + 0.5 * torch.rand(units, generator=make, dtype=torch.float64)
    return loc, log_sigma2 - 1, rate, torch.randn(units, generator=make, dtype=torch.float64)


def relaxed_moments(rate: float, temperature: float) -> tuple[float, float]:
    """Mean and variance of the concrete s, by quadrature over its uniform."""

    def s(u: float, power: int) -> float:
        x = (math.log(u / (1 - u)) - math.log(rate / (1 - rate))) / temperature
        return (1 / (1 + math.exp(-x)) / (1 - rate)) ** power

    first, second = (integrate.quad(s, 1e-12, 1 - 1e-12, args=(k,), points=[rate], limit=400)[0] for k in (1, 2))
    return first, second - first**2


def unit_moments(theta: np.ndarray, dim: int, s_mean: Any, s_variance: Any, v_variance: np.ndarray | None) -> Moments:
    """Of ``w[a] = s[unit of a] * (theta[a] + sqrt(v_variance[a]) * e[a])``, by loops over pairs of elements."""
    elements = list(np.ndindex(theta.shape))
    mean = np.array([s_mean[a[dim]] * theta[a] for a in elements])
    shared = np.zeros((len(elements), len(elements)))
    for (i, a), (j, b) in product(enumerate(elements), repeat=2):
        if a[dim] == b[dim]:
            shared[i, j] = s_variance[a[dim]] * theta[a] * theta[b]
    if v_variance is None:
        return Moments(mean, shared, np.zeros(len(elements)))
    own = [(s_mean[a[dim]] ** 2 + s_variance[a[dim]]) * v_variance[a] for a in elements]
    return Moments(mean, shared, np.array(own))


def enumerated_moments(theta: np.ndarray, dim: int, rate: np.ndarray) -> Moments:
    """Of binary dropout, from all 2**units masks and their probabilities."""
    mean, second = np.zeros(theta.size), np.zeros((theta.size, theta.size))
    shape = tuple(-1 if axis == dim else 1 for axis in range(theta.ndim))
    for mask in product((0.0, 1.0), repeat=len(rate)):
        probability = math.prod(1 - p if kept else p for kept, p in zip(mask, rate, strict=True))
        weight = (theta * (np.array(mask) / (1 - rate)).reshape(shape)).ravel()
        mean += probability * weight
        second += probability * np.outer(weight, weight)
    return Moments(mean, second - np.outer(mean, mean), np.zeros(theta.size))


def correlated(shape, dim):
    loc, _, rate, _ = parameters(shape, shape[dim])
    alpha = rate / (1 - rate)
    q = vd.CorrelatedDropoutNormal(loc, alpha.log(), unit_dim=dim)
    return q, unit_moments(loc.numpy(), dim, np.ones(shape[dim]), alpha.numpy(), None)


def bernoulli(shape, dim):
    loc, _, rate, _ = parameters(shape, shape[dim])
    return vd.BernoulliDropout(loc, rate, unit_dim=dim), enumerated_moments(loc.numpy(), dim, rate.numpy())


def concrete(shape, dim):
    loc, _, rate, _ = parameters(shape, shape[dim])
    q = vd.ConcreteDropout(loc, torch.logit(rate), temperature=0.3, unit_dim=dim)
    s_moments = [relaxed_moments(float(p), 0.3) for p in rate]
    return q, unit_moments(loc.numpy(), dim, *zip(*s_moments, strict=True), None)


def group(shape, dim):
    loc, log_sigma2, rate, unit_loc = parameters(shape, shape[dim])
    q = vd.GroupNormal(loc, log_sigma2, unit_loc, rate.log(), unit_dim=dim)
    return q, unit_moments(loc.numpy(), dim, unit_loc.numpy(), rate.numpy(), log_sigma2.exp().numpy())


def ard(shape, dim):
    loc, log_sigma2, _, _ = parameters(shape, 1)
    q = vd.DropoutNormal(loc, log_sigma2=log_sigma2, kl="ard").to_event(len(shape))
    return q, unit_moments(loc.numpy(), dim, np.ones(shape[dim]), np.zeros(shape[dim]), log_sigma2.exp().numpy())


FAMILIES: dict[str, Callable] = {
    "correlated": correlated, "bernoulli": bernoulli, "concrete": concrete, "group": group, "ard": ard}  # fmt: skip
UNITS = tuple(FAMILIES)[:-1]


def random_weight(posterior: Any, estimator: str, site: str = "w") -> Tensor:
    """What the model gets at a site with this distribution."""
    return ESTIMATORS[estimator](lambda: pyro.sample(site, posterior))()


def coefficients(case: Case, x: Tensor, bias: Tensor | None) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """The matrix from flat weight to flat output, and the index of every output element."""
    shape = case.call(x, torch.zeros(case.weight).double(), bias).shape
    matrix = np.zeros((math.prod(shape), math.prod(case.weight)))
    for out, coefficient, weight in case.terms(x.numpy()):
        matrix[np.ravel_multi_index(out, shape), np.ravel_multi_index(weight, case.weight)] += coefficient
    return matrix, list(np.ndindex(shape))


def sharing(case: Case, outs: list[tuple[int, ...]], estimator: str) -> np.ndarray:
    """True for pairs of outputs that share unit noise: of one row, or (conv, per_example) of one example."""
    if estimator == "local" and "conv" not in case.name:
        units = 0 if case.name == "w @ x" else len(outs[0]) - 1
        keys = [tuple(i for axis, i in enumerate(out) if axis != units) for out in outs]
    else:
        keys = [(out[case.example],) for out in outs]
    return np.array([[a == b for b in keys] for a in keys])


def drawn_outputs(case: Case, posterior: Any, estimator: str, x: Tensor, bias: Any, number: int) -> Tensor:
    """``number`` draws of all outputs, flat: the examples repeated, as each has noise of its own."""
    y = case.call(torch.cat([x] * number, case.example), random_weight(posterior, estimator), bias)
    axis = y.dim() + case.example - x.dim()
    return y.unflatten(axis, (number, x.shape[case.example])).movedim(axis, 0).flatten(1)


def assert_output_moments(case: Case, posterior: Any, moments: Moments, estimator: str, kind: str) -> None:
    """Mean and whole covariance of the outputs, of all pairs of output elements, are those of weight space."""
    x, _, _, bias_loc, bias_variance = case.inputs()
    bias: Any = bias_loc
    if kind == "random" and bias_loc is not None:
        bias = random_weight(vd.DropoutNormal(bias_loc, log_sigma2=bias_variance.log()), estimator, "b")
    matrix, outs = coefficients(case, x, bias_loc)
    drawn = drawn_outputs(case, posterior, estimator, x, bias, DRAWS)
    together = sharing(case, outs, estimator)
    own = matrix @ np.diag(moments.independent) @ matrix.T
    # "local" gives every output element independent noise of its own: the diagonal is exact.
    own = np.diag(np.diag(own)) if estimator == "local" else own * together
    covariance = (matrix @ moments.shared @ matrix.T) * together + own
    mean = torch.from_numpy(matrix @ moments.mean)
    if bias_loc is not None:
        origin = case.call(torch.zeros_like(x), torch.zeros(case.weight).double(), bias_loc).flatten()
        mean = mean + origin
        if kind == "random":
            spread = case.call(torch.zeros_like(x), torch.zeros(case.weight).double(), bias_variance).flatten().numpy()
            # Positions of an example share the bias drawn for it; under "local" its noise is per output element.
            axis = case.bias_axis if case.bias_axis is not None else -1
            same_bias = np.array([[a[axis] == b[axis] for b in outs] for a in outs]) & together
            covariance += np.diag(spread) if estimator == "local" else same_bias * spread
    assert_mean_close(drawn, mean)
    deviation = drawn - mean
    assert_mean_close(deviation[:, :, None] * deviation[:, None, :], torch.from_numpy(covariance))


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
