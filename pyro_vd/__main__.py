"""``python -m pyro_vd``: what is installed, and whether it works here.

    python -m pyro_vd              versions, devices, compiler, and a self-test of a few seconds
    python -m pyro_vd --compile    the same with a compiled step; half a minute where the compiler's cache is empty

Exits with 0 where every check has passed, and with 1 otherwise.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam, ClippedAdam  # type: ignore[attr-defined]

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

PACKAGES = ("torch", "pyro-ppl", "jax", "numpyro", "flax", "equinox", "lightning", "matplotlib")
KL_AT_ONE = 0.4266856043  # of N(1, 1) to the log-uniform prior, nats: 2 * integral of Dawson's D from 0 to sqrt(1/2)


def report() -> list[str]:
    """Lines of versions, devices and the C++ compiler that compiled steps need."""
    lines = [f"{'pyro_vd':<12} {vd.__version__}", f"{'python':<12} {platform.python_version()}, {platform.platform()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package:<12} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package:<12} not installed")
    devices = [f"cpu, {torch.get_num_threads()} threads"]
    devices += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"{'devices':<12} {'; '.join(devices)}")
    return [*lines, f"{'compiler':<12} {compiler() or 'none found: steps of CompiledSVI stay eager, with a warning'}"]


def compiler() -> str | None:
    """Path of the C++ compiler: that of the variable CXX, else g++ or clang++."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None)


def check_kl() -> str:
    """The KL of N(1, 1) to the log-uniform prior against its value from 40 digits."""
    kl = vd.kl.kl_log_uniform(torch.zeros((), dtype=torch.float64), method="exact").item()
    return _near("KL at alpha = 1, nats", kl, KL_AT_ONE, within=1e-6)


def check_training() -> str:
    """A regression with one random weight, whose posterior is known."""
    model, x, y = _regression()
    guide = AutoMeanField(model)
    elbo = vd.TraceVD_ELBO()
    svi = SVI(model, guide, ClippedAdam({"lr": 0.3, "lrd": 0.97}), elbo)
    for _ in range(150):
        svi.step(x, y)
    posterior = guide.posteriors()["net.weight"]
    precision = 1.0 + x.square().sum().item()
    scale = _near("posterior standard deviation", posterior.stddev.item(), precision**-0.5, within=0.03)
    return f"{_near('posterior mean', posterior.mean.item(), (x[:, 0] @ y).item() / precision, within=0.05)}; {scale}"


def check_compiled() -> str:
    """The same steps on the same random numbers, eager and compiled."""
    losses = []
    kind: Any
    for kind in (SVI, functools.partial(vd.CompiledSVI, strict=True)):
        pyro.set_rng_seed(0)
        model, x, y = _regression()
        svi = kind(model, AutoMeanField(model), Adam({"lr": 1e-2}), vd.TraceVD_ELBO())
        losses.append([float(svi.step(x, y)) for _ in range(4)][-1])
    return _near("loss of the fourth step, nats", losses[1], losses[0], within=1e-4 * abs(losses[0]))


def main(argv: list[str] | None = None) -> int:
    """Print what is installed, run the checks, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pyro_vd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compile", action="store_true", help="compile a step, too")
    args = parser.parse_args(argv)
    print("\n".join(report()), flush=True)
    checks: dict[str, Callable[[], str]] = {"KL": check_kl, "training": check_training}
    if args.compile:
        checks["compiled"] = check_compiled
    passed = True
    for name, check in checks.items():
        start = time.perf_counter()
        pyro.set_rng_seed(0)
        with pyro.get_param_store().scope():  # the parameters of a caller stay in the store
            try:
                verdict, found = "passed", check()
            except Exception as error:  # of any kind: the command reports it
                verdict, found, passed = "FAILED", f"{type(error).__name__}: {error}", False
        print(f"{name:<12} {verdict} in {time.perf_counter() - start:.1f} s: {found}", flush=True)
    return 0 if passed else 1


def _regression() -> tuple[Callable, torch.Tensor, torch.Tensor]:
    """Model, inputs and targets: ``y ~ N(w * x, 1)``, ``w ~ N(0, 1)``."""
    x = torch.linspace(-1.0, 1.0, 41)[:, None]
    y = 0.7 * x[:, 0] + 0.1 * torch.cos(7.0 * x[:, 0])
    net = vd.BayesianModule(torch.nn.Linear(1, 1, bias=False), dist.Normal(0.0, 1.0))

    def model(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        mean = net(x)[:, 0]
        with vd.data_plate(41, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return model, x, y


def _near(what: str, found: float, expected: float, within: float) -> str:
    if not abs(found - expected) <= within:
        raise ValueError(f"{what}: expected {expected:.6f}, within {within:.2g}, got {found:.6f}")
    return f"{what} {found:.5f} ({expected:.5f})"


if __name__ == "__main__":
    sys.exit(main())
