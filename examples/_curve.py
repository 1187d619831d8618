"""A small Bayesian net on a curve with a gap in its data: draws of its parameters by NUTS, and from trained guides."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vd as vd
from pyro_vd.guides import AutoLowRank, AutoMeanField, AutoVariationalDropout

HIDDEN, NOISE = 20, 0.1
GRID = torch.linspace(-1.5, 1.5, 101)[:, None]
GAP = (GRID.abs() < 0.4).squeeze(1)
SCALES = {"0.weight": 2.0, "0.bias": 1.0, "2.weight": 1 / math.sqrt(HIDDEN), "2.bias": 0.5}
FAMILIES = {  # guide, estimator of its training; the local one has no form for a bias with shared noise
    "mean field": (lambda model: AutoMeanField(model, init_log_sigma2=-6.0), "local"),
    "low rank": (lambda model: AutoLowRank(model, rank=1, init_log_sigma2=-6.0), "shared"),
    "variational dropout": (AutoVariationalDropout, "local"),
}


def points(number: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(number, 1, generator=random) * 1.1 + 0.4  # 0.4 to 1.5, on either side
    x = x * (2 * torch.randint(2, (number, 1), generator=random) - 1)
    return x, torch.sin(3 * x).squeeze(1) * 0.7 + NOISE * torch.randn(number, generator=random)


def sampled(x: Tensor, y: Tensor, seed: int, args: argparse.Namespace) -> Any:
    """Draws of the parameters of the net by NUTS, ``{name: (draws, *shape)}`` in PyTorch's layout."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    from numpyro import distributions

    inputs, outputs = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    shapes = {"0.weight": (HIDDEN, 1), "0.bias": (HIDDEN,), "2.weight": (1, HIDDEN), "2.bias": (1,)}

    def model() -> None:
        net: Any = {n: numpyro.sample(n, distributions.Normal(jnp.zeros(s), SCALES[n]).to_event(len(s)))
               for n, s in shapes.items()}  # fmt: skip
        hidden = jnp.tanh(inputs @ net["0.weight"].T + net["0.bias"])
        f = (hidden @ net["2.weight"].T + net["2.bias"]).squeeze(1)
        with numpyro.plate("data", len(inputs)):
            numpyro.sample("y", distributions.Normal(f, NOISE), obs=outputs)

    kernel = numpyro.infer.NUTS(model, max_tree_depth=9)
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=args.warm_up, num_samples=args.samples, progress_bar=False)
    mcmc.run(jax.random.key(seed))
    return {name: torch.tensor(np.array(value)) for name, value in mcmc.get_samples().items()}


def functions(net: nn.Module, draws: dict[str, Tensor], x: Tensor) -> Tensor:
    """The net at every draw of its parameters, shape (draws, points)."""
    return torch.func.vmap(lambda values: torch.func.functional_call(net, values, (x,)))(draws).squeeze(-1)


def new_net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))


def fitted(name: str, x: Tensor, y: Tensor, args: argparse.Namespace) -> tuple[nn.Module, dict[str, Tensor]]:
    """The net, and draws of its parameters from the trained guide of a family."""
    pyro.clear_param_store()
    net = new_net()
    priors = {name: dist.Normal(0.0, scale) for name, scale in SCALES.items()}
    bnn = vd.BayesianModule(net, priors, where=lambda name, layer: True)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        f = bnn(x).squeeze(-1)
        with vd.data_plate(len(x), len(x)):
            pyro.sample("y", dist.Normal(f, NOISE), obs=y)

    family, estimator = FAMILIES[name]
    guide = family(model)
    loss = vd.TraceVD_ELBO(estimator=estimator)(model, guide)
    loss(x, y)  # makes the parameters
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.01)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / args.steps)))
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
        decay.step()
    sites = [bnn.site(name) for name in SCALES]
    drawn = vd.posterior_predictive(model, guide, x, num_samples=args.samples, return_sites=sites)
    return net, {name: drawn[bnn.site(name)] for name in SCALES}
