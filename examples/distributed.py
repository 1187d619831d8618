r"""Digits on several processes by DistributedDataParallel: gloo on CPUs, NCCL on GPUs.

    torchrun --nproc-per-node 2 examples/distributed.py                     # one machine: two processes, or two GPUs
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \
        examples/distributed.py                                             # on each of two machines of 8 GPUs
    python examples/distributed.py                                          # one process, the same program

Every process has the same parameters, its own share of the examples, and noise of its own. The gradients of all are
averaged: that of the data is one over all their examples, and the KL counts once. The batch is that of a process.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import _options
import torch
from _data import load
from _training import classifier, error, mlp
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.training import linear_warm_up


def shares(rank: int, processes: int, size: int, batch: int, epoch: int) -> Iterator[Tensor]:
    """Indices of the batches of one process: the same order everywhere, dealt out in turn; as many for each."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(epoch))
    own = order[: size // processes * processes][rank::processes]
    return iter(own.split(batch))


def main(args: argparse.Namespace) -> None:
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        device = "cuda"
    if processes > 1:
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    data = load("digits", "data").to(device)
    size = len(data.x_train)

    torch.manual_seed(args.seed)  # the same parameters everywhere
    bnn = vd.BayesianModule(mlp((64, 300, 10), device), vd.ImproperLogUniform())
    model = classifier(bnn, size)  # its plate is of all examples, whichever of them a process has
    guide = AutoSparseVD(model)
    elbo = vd.TraceVD_ELBO()
    loss = elbo(model, guide)
    parallel = DistributedDataParallel(loss) if processes > 1 else loss
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3)
    kl_weight = linear_warm_up(0.1, 0.7, num_steps=args.epochs)
    torch.manual_seed(args.seed + 1 + rank)  # noise of its own
    for epoch in range(args.epochs):
        elbo.kl_weight = kl_weight(epoch)
        for index in shares(rank, processes, size, args.batch, epoch):
            optimizer.zero_grad()
            parallel(data.x_train[index], data.y_train[index]).backward()
            optimizer.step()
    if rank == 0:
        pruned = vd.prune(bnn, guide)
        print(f"{processes} processes, {sum(p.numel() for p in loss.parameters()):,} trained numbers in each")
        print(vd.sparsity_report(guide))
        print(f"held-out error after pruning: {error(pruned, data.x_test, data.y_test):.2f} %")
    if processes > 1:
        sums = torch.stack([p.detach().double().sum() for p in loss.parameters()])
        first = sums.clone()
        distributed.broadcast(first, 0)
        assert torch.equal(first, sums), "the processes have different parameters"
        distributed.destroy_process_group()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = _options.parser(__doc__, None, data=False, bar=False)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=50, help="examples of a step of one process")
    return _options.parse(parser, argv, epochs=3)


if __name__ == "__main__":
    main(arguments())
