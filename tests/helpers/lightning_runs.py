"""A small classifier for Lightning, the same for the same seed; as a process of two, one of a distributed run."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.training import linear_warm_up

# Of Lightning's own, as in pyproject.toml; every other warning is an error.
KNOWN = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"The '\w+' does not have many workers which may be a bottleneck",
    r"You defined a `validation_step` but have no `val_dataloader`. Skipping val loop.",
)
SCHEDULE = linear_warm_up(2, 7)
SHORT_SCHEDULE = linear_warm_up(0, 2)  # of three steps
ADAM = functools.partial(torch.optim.Adam, lr=0.02)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "log_every_n_steps": 1,
}


def data() -> TensorDataset:
    make = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(48, 4, generator=make), torch.randint(3, (48,), generator=make))


def loader(**options: Any) -> DataLoader:
    return DataLoader(data(), 12, **options)


def module(seed: int = 0, optimizer: Any = ADAM, kl_schedule: Any = SCHEDULE, **options: Any) -> Any:
    from pyro_vd.training.lightning import VariationalModule

    pyro.clear_param_store()
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = bnn(x)
        with vd.data_plate(48, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    made = VariationalModule(model, AutoSparseVD(model), vd.TraceVD_ELBO(), optimizer, kl_schedule, **options)
    torch.manual_seed(seed + 1)
    return made


def values(made: nn.Module) -> Tensor:
    """Everything that training changes in a module, as one vector."""
    return torch.cat([value.detach().flatten().double() for value in made.state_dict().values()])


def main(rank: int, folder: Path) -> None:
    """One of two processes: three steps under ``strategy="ddp"``; writes the parameters and the losses."""
    from lightning.pytorch import Callback, Trainer

    losses: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    made = module(kl_schedule=SHORT_SCHEDULE)
    trainer = Trainer(strategy="ddp", devices=2, max_steps=3, callbacks=[Losses()], **QUIET)
    trainer.fit(made, loader())
    trainer.save_checkpoint(folder / "run.ckpt")
    parameters = torch.cat([value.detach().flatten() for value in made.parameters()])
    torch.save((parameters, losses), folder / f"rank{rank}")


if __name__ == "__main__":
    warnings.simplefilter("error")
    for message in KNOWN:
        warnings.filterwarnings("ignore", message)
    torch.set_num_threads(1)
    main(int(os.environ["LOCAL_RANK"]), Path(sys.argv[1]))
