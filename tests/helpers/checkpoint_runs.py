"""Small trainings that are saved and resumed; as a program, one that saves after every step until it is killed."""

from __future__ import annotations

import functools
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import Tensor, nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.training import linear_warm_up, load_checkpoint, save_checkpoint

KINDS = (
    "svi",
    "svi with a scheduler",
    "hand-written guide",
    "compiled",
    "compiled pyro",
    "loop",
    "loop with a scheduler",
)


class Run:
    """A training of one kind; equal for equal kinds and seeds."""

    def __init__(self, kind: str, seed: int = 1):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.kind, self.elbo, self.kl_weight = kind, vd.TraceVD_ELBO(), linear_warm_up(2, 9)
        net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        self.bnn = vd.BayesianModule(
            net, pyro.distributions.Normal(0.0, 1.0) if "hand" in kind else vd.ImproperLogUniform()
        )
        self.guide: Any = self.hand_written if "hand" in kind else AutoSparseVD(self.model)
        self.parts: dict[str, Any] = {}
        adam = functools.partial(torch.optim.Adam, lr=0.02)
        if kind == "svi with a scheduler":
            optim = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.9})
        else:
            optim = pyro.optim.Adam({"lr": 0.02, "betas": (0.9, 0.99)})
        if kind in ("svi", "svi with a scheduler", "hand-written guide"):
            self.parts["svi"] = self.svi = SVI(self.model, self.guide, optim, self.elbo)
        elif kind.startswith("compiled"):
            chosen = optim if "pyro" in kind else adam
            self.parts["svi"] = self.svi = vd.CompiledSVI(self.model, self.guide, chosen, self.elbo)
        else:
            self.loss = self.elbo(self.model, self.guide)
            self.optimizer = adam(self.loss.parameters())
            self.parts = {"modules": {"guide": self.guide, "bnn": self.bnn}, "optimizers": {"adam": self.optimizer}}
            self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4], 0.5)
            if "scheduler" in kind:
                self.parts["schedulers"] = {"rate": self.scheduler}

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = self.bnn(x)
        with vd.data_plate(40, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def hand_written(self, x: Tensor, y: Tensor | None = None) -> None:
        for site, shape in (("net.0.weight", (5, 4)), ("net.3.weight", (3, 5))):
            loc = pyro.param(f"{site}.loc", lambda shape=shape: 0.1 * torch.randn(shape))
            scale = pyro.param(f"{site}.scale", torch.full(shape, 0.1), constraint=dist.constraints.positive)
            pyro.sample(site, dist.Normal(loc, scale).to_event(2))

    def step(self, step: int) -> None:
        self.elbo.kl_weight = self.kl_weight(step)
        x = torch.randn(6, 4) + random.random() + float(np.random.rand())
        y = torch.randint(3, (6,))
        if "svi" in self.parts:
            self.svi.step(x, y)
            if self.kind == "svi with a scheduler":
                self.svi.optim.step()
            return
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.optimizer.step()
        if "schedulers" in self.parts:
            self.scheduler.step()

    def prepare(self) -> None:
        """What a program does before it resumes: parameters that only a run makes."""
        if "hand" in self.kind:
            self.guide(torch.zeros(6, 4))

    def save(self, path: Any, step: int) -> None:
        save_checkpoint(path, step=step, extra={"note": ["a", None, 0.1]}, **self.parts)

    def load(self, path: Any, **options: Any) -> int:
        found = load_checkpoint(path, **self.parts, **options)
        assert found.extra == {"note": ["a", None, 0.1]}
        return found.step

    def values(self) -> dict[str, Tensor]:
        """Everything that training changes, and the next random numbers."""
        found = {f"store {name}": value for name, value in pyro.get_param_store().items()}
        found |= {f"bnn {name}": value for name, value in self.bnn.state_dict().items()}
        if isinstance(self.guide, nn.Module):
            found |= {f"guide {name}": value for name, value in self.guide.state_dict().items()}
        states = (
            torch.get_rng_state(),
            torch.tensor(random.getstate()[1]),
            torch.tensor(np.random.get_state()[1].tolist()),
        )
        found |= {f"random {i}": state for i, state in enumerate(states)}
        return {name: value.detach().clone() for name, value in found.items()}


def main(path: Path, last: int, kind: str) -> None:
    """Resume from ``path`` where it is, save after every step, and write the result beside it at the end."""
    run = Run(kind, seed=1)
    run.prepare()
    step = run.load(path) if path.exists() else 0
    while step < last:
        run.step(step)
        step += 1
        run.save(path, step)
        print(step, flush=True)
    torch.save(run.values(), path.with_suffix(".result"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
