"""The same program on both sides: a net in torch and in a library of JAX, the same parameters, the same noise."""

from __future__ import annotations

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as dist
import torch
from flax import linen
from torch import nn

import helpers.mirror_compiling  # noqa: F401
import pyro_vd as vd
import pyro_vd.numpyro as nvd
from pyro_vd import guides
from pyro_vd.convert import to_numpyro
from pyro_vd.guides import numpyro as numpyro_guides

NORMAL_PRIOR = {"AutoMeanField", "AutoConcreteDropout"}
ROWS, INPUTS, HIDDEN, OUTPUTS = 6, 3, 4, 2
WEIGHTS = {(INPUTS, HIDDEN), (HIDDEN, OUTPUTS)}  # shapes of the kernels of flax
DATASET = 30


class Noise:
    """One stream of numbers for each kind of noise, the same whoever draws; kernels of flax get them transposed."""

    def __init__(self, monkeypatch):
        self.drawn = {"normal": 0, "uniform": 0, "sign": 0}
        for name, function in {
            "randn": lambda *shape, **o: self.torch("normal", shape, o),
            "randn_like": lambda like, **o: self.torch("normal", like.shape, {"dtype": like.dtype}),
            "rand": lambda *shape, **o: self.torch("uniform", shape, o),
            "randint": lambda low, high, shape, **o: (self.torch("sign", tuple(shape), o) + 1) / 2,
        }.items():
            monkeypatch.setattr(torch, name, function)
        for name, kind in {"normal": "normal", "uniform": "uniform", "rademacher": "sign"}.items():
            monkeypatch.setattr(
                jax.random, name, lambda key, shape=(), dtype=float, *, k=kind, **o: self.jax(k, shape, dtype)
            )

    def again(self):
        self.drawn = dict.fromkeys(self.drawn, 0)
        return self

    def _next(self, kind, shape):
        rng = np.random.default_rng([self.drawn[kind], len(kind)])
        self.drawn[kind] += 1
        if kind == "normal":
            return rng.standard_normal(shape)
        return rng.uniform(0.02, 0.98, shape) if kind == "uniform" else rng.choice([-1.0, 1.0], shape)

    def torch(self, kind, shape, options):
        shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)
        return torch.tensor(self._next(kind, shape)).to(options.get("dtype") or torch.get_default_dtype())

    def jax(self, kind, shape, dtype):
        shape = tuple(shape)
        if shape[-2:] in WEIGHTS:
            return jnp.asarray(self._next(kind, (*shape[:-2], *shape[:-3:-1])).swapaxes(-1, -2), dtype)
        return jnp.asarray(self._next(kind, shape), dtype)


class Pair:
    """A guide of one family on both sides, its parameters drawn at random.

    Attributes:
        model, guide: the Pyro program; ``parameters`` of guide and net, by name in NumPyro.
        other_model, other_guide, params: the NumPyro program.
        x, y: data for both, as NumPy arrays.
    """

    def __init__(self, family, options, dtype="float64", prior=None, seed=0):
        rng = np.random.default_rng(seed)
        self.x, self.y = (rng.standard_normal((ROWS, size)).astype(dtype) for size in (INPUTS, OUTPUTS))
        normal = family in NORMAL_PRIOR
        torch_dtype = getattr(torch, dtype)
        net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS)).to(torch_dtype)
        bnn = vd.BayesianModule(
            net, dist.Normal(torch.tensor(0.1, dtype=torch_dtype), 0.8) if normal else vd.ImproperLogUniform()
        )
        self.net, self.bnn = net, bnn

        def model(x, y=None):
            mean = bnn(x)
            with vd.data_plate(DATASET, len(x)):
                return pyro.sample("y", dist.Normal(mean, torch.ones((), dtype=mean.dtype)).to_event(1), obs=y)

        self.model, self.guide = model, getattr(guides, family)(model, **options)
        self.guide(*self.tensors)
        with torch.no_grad():
            for name, parameter in self.guide.named_parameters():
                noise = torch.tensor(0.4 * rng.standard_normal(parameter.shape), dtype=torch_dtype)
                parameter.copy_((parameter + noise).clamp(-2.5, 1.5) if "locs" in name else noise - 1.5)
            for parameter in net.parameters():
                parameter.add_(torch.tensor(0.2 * rng.standard_normal(parameter.shape), dtype=torch_dtype))
        other = linen.Sequential(
            [linen.Dense(HIDDEN, param_dtype=dtype), jnp.tanh, linen.Dense(OUTPUTS, param_dtype=dtype)]
        )
        other = other.bind(jax.jit(other.init)(jax.random.key(0), jnp.asarray(self.x)))
        one = jnp.ones((), dtype)
        other_prior = ndist.Normal(0.1 * one, 0.8 * one) if normal else nvd.ImproperLogUniform()
        self.other_bnn = other_bnn = nvd.BayesianModule(other, other_prior)

        def other_model(x, y=None):
            mean = other_bnn(x)
            with nvd.data_plate(DATASET, len(x)):
                return numpyro.sample("y", ndist.Normal(mean, jnp.ones_like(mean)).to_event(1), obs=y)

        self.other_model, self.other_guide = other_model, getattr(numpyro_guides, family)(other_model, **options)
        numpyro.handlers.seed(self.other_guide, 0)(*self.arrays)
        self.params = {name: jnp.asarray(value) for name, value in to_numpyro(self.guide).items()}

    @property
    def tensors(self):
        return torch.tensor(self.x), torch.tensor(self.y)

    @property
    def arrays(self):
        return jnp.asarray(self.x), jnp.asarray(self.y)

    def torch_terms(self, elbo):
        """Loss terms as numbers, and the gradients under the names and in the layout of NumPyro."""
        terms = elbo.terms(self.model, self.guide, *self.tensors)
        parameters = [*self.guide.parameters(), *(p for p in self.net.parameters() if p.dim() == 1)]
        gradients = torch.autograd.grad(terms.loss, parameters, allow_unused=True)
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
            named = to_numpyro(self.guide)
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        return terms, named

    def jax_terms(self, *elbos, before=lambda: None):
        """The same of the NumPyro program, for several ELBOs compiled as one; ``before`` is called before each."""

        def loss(params, elbo):
            terms = elbo.terms(jax.random.key(0), params, self.other_model, self.other_guide, *self.arrays)
            return terms.loss, terms

        def each(params):
            for elbo in elbos:
                before()
                (_, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params, elbo)
                yield terms, gradients

        return jax.jit(lambda params: list(each(params)))(self.params)


def assert_same_terms(ours, theirs, rtol):
    """Data term, KL of every site and loss agree; names but for the layout's."""
    for first, second in ((ours.nll, theirs.nll), (ours.kl, theirs.kl)):
        assert len(first) == len(second)
        for one, other in zip(first.values(), second.values(), strict=True):
            np.testing.assert_allclose(float(other), one.item(), rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(float(theirs.loss), ours.loss.item(), rtol=rtol)


def assert_same_gradients(ours, theirs, rtol):
    """Every element within ``rtol`` of the largest of its parameter, and of itself in double precision."""
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        atol = rtol * float(np.abs(value).max()) if rtol > 1e-6 else 1e-10 * (1 + float(np.abs(value).max()))
        np.testing.assert_allclose(theirs[name], value, rtol=rtol, atol=atol, err_msg=name)
        assert math.isfinite(float(np.abs(value).max()))


@contextlib.contextmanager
def precision(dtype):
    """JAX in this precision, without silent promotion of one type to another."""
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion("strict" if dtype == "float64" else "standard"):
        yield
