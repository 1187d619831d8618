"""The programs of benchmark_predict.py in NumPyro: its own Predictive, and the mirror of pyro_vd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import linen
from numpyro.infer import SVI, Predictive

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoSparseVD


class MirrorProblem:
    """LeNet-300-100 with a posterior for every weight, and the programs that predict with it."""

    def __init__(self, draws: int):
        self.draws, self.key = draws, jax.random.key(0)
        net = linen.Sequential([linen.Dense(300), linen.relu, linen.Dense(100), linen.relu, linen.Dense(10)])
        bound = net.bind(net.init(self.key, jnp.ones((1, 784))))
        self.bnn = vd.BayesianModule(bound, vd.ImproperLogUniform())
        self.guide = AutoSparseVD(self.model, init_log_sigma2=-5.0)
        svi = SVI(self.model, self.guide, numpyro.optim.SGD(1.0), vd.TraceVD_ELBO())
        images, labels = jnp.ones((1, 784)), jnp.zeros(1, int)
        self.params = svi.get_params(svi.init(self.key, images, labels))

    def model(self, x: Any, y: Any = None) -> Any:
        logits = self.bnn(x)
        with vd.data_plate(60_000, len(x)):
            return numpyro.sample("y", dist.Categorical(logits=logits), obs=y)  # type: ignore[arg-type]

    def by_numpyro(self, x: Any) -> Any:
        predictive = Predictive(self.model, guide=self.guide, params=self.params, num_samples=self.draws)
        return jax.block_until_ready(predictive(self.key, x)["y"])

    def draws_of_values(self, x: Any) -> Any:
        found = vd.posterior_predictive(self.key, self.params, self.model, self.guide, x, num_samples=self.draws)
        return jax.block_until_ready(found["y"])

    def distribution(self, x: Any) -> Any:
        found = vd.predictive_distribution(self.key, self.params, self.model, self.guide, x, num_samples=self.draws)
        return jax.block_until_ready(found["y"].probs)


def array(x: Any) -> Any:
    """A tensor of PyTorch as an array."""
    return jnp.asarray(x.numpy())


def mirror_programs(draws: int) -> dict[str, Callable]:
    problem = MirrorProblem(draws)
    return {
        "numpyro.infer.Predictive": problem.by_numpyro,
        "posterior_predictive": problem.draws_of_values,
        "predictive_distribution": problem.distribution,
    }
