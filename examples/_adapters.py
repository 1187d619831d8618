"""A small vision transformer of transformers, its LoRA adapters of peft, and adapters of as many ranks as are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import _options
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_options.require(peft='-e ".[networks]"', transformers='-e ".[networks]"')
peft: Any = import_module("peft")  # of the extra "networks", as transformers is
transformers: Any = import_module("transformers")

NAME = "default"  # of the adapter


class Task(NamedTuple):
    """Images (examples, 1, 8, 8) and labels 0 to 4."""

    x: Tensor
    y: Tensor


def tasks(seed: int, shots: int) -> tuple[Task, Task, Task]:
    """The digits 0 to 4, to pretrain on; ``shots`` of each of 5 to 9, to fine-tune on; the rest of these, as a test."""
    from sklearn.datasets import load_digits

    images, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float().reshape(-1, 1, 8, 8)
    first, later = Task(images[digits < 5], digits[digits < 5]), Task(images[digits > 4], digits[digits > 4] - 5)
    order = torch.randperm(len(later.y), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[later.y[order] == one][:shots] for one in range(5)])
    rest = torch.ones(len(order), dtype=torch.bool).index_fill_(0, chosen, False)
    return first, Task(later.x[chosen], later.y[chosen]), Task(later.x[rest], later.y[rest])


def backbone() -> nn.Module:
    """Images to an output whose ``logits`` are of five classes."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    images = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 5}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **images, **rates))


def fit(loss: Callable[[Tensor, float], Tensor], net: nn.Module, size: int, steps: int, lr: float) -> None:
    """Adam over random batches; ``lr`` is constant for half of the steps, and falls to 0 in the rest.

    Args:
        loss: of the indices of a batch and the share of the steps that is done.
        size: number of examples.
    """
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    for step in range(steps):
        optimizer.zero_grad()
        loss(torch.randint(size, (min(50, size),)), step / steps).backward()
        optimizer.step()
        decay.step()


def fit_plain(net: nn.Module, task: Task, steps: int, lr: float) -> None:
    fit(lambda index, done: F.cross_entropy(net(task.x[index]).logits, task.y[index]), net, len(task.y), steps, lr)


def adapted(base: nn.Module, rank: int, dora: bool, dropout: float = 0.0, ranks: dict[str, int] | None = None) -> Any:
    """A copy of a frozen backbone with an adapter at every linear layer, and a new head.

    Args:
        ranks: of the layers whose rank is another than ``rank``. The scale of an adapter, alpha / rank, is 2.
    """
    ranks = ranks or {}
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, rank_pattern=ranks, alpha_pattern={name: 2 * r for name, r in ranks.items()},
        target_modules="all-linear", modules_to_save=["classifier"], lora_dropout=dropout, use_dora=dora,
    )  # fmt: skip
    return peft.get_peft_model(copy.deepcopy(base), config).train()


def ranks_of(net: nn.Module) -> dict[str, Tensor]:
    """For every layer with an adapter the ranks that do something: its columns of B that are not zero."""
    kind = peft.tuners.lora.LoraLayer
    layers: dict[str, Any] = {name: layer for name, layer in net.named_modules() if isinstance(layer, kind)}
    return {
        name.removeprefix("base_model.model."): layer.lora_B[NAME].weight.detach().ne(0).any(0)
        for name, layer in layers.items()
    }


@torch.no_grad()
def without_ranks(base: nn.Module, net: nn.Module, rank: int, dora: bool) -> Any:
    """The same function by adapters of the ranks that do something; one rank, of zeros, stays where none does."""
    kept = {name: mask.nonzero().flatten().tolist() or [0] for name, mask in ranks_of(net).items()}
    small = adapted(base, rank, dora, ranks={name: len(places) for name, places in kept.items()}).eval()
    values = net.state_dict()
    for name, places in kept.items():
        prefix = f"base_model.model.{name}"
        values[f"{prefix}.lora_A.{NAME}.weight"] = values[f"{prefix}.lora_A.{NAME}.weight"][places]
        values[f"{prefix}.lora_B.{NAME}.weight"] = values[f"{prefix}.lora_B.{NAME}.weight"][:, places]
    small.load_state_dict(values)
    return small


@torch.no_grad()
def check_file(base: nn.Module, net: Any, folder: Path, x: Tensor) -> int:
    """Save the adapter, let peft load it onto the backbone, and compare the outputs; bytes of the file.

    Raises:
        SystemExit: they differ.
    """
    net.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    if not torch.allclose(loaded(x).logits, net.eval()(x).logits, atol=1e-5):
        raise SystemExit("the adapter that peft has loaded has other outputs than the one that was saved")
    return (folder / "adapter_model.safetensors").stat().st_size


def check_in_passing(base: nn.Module, net: Any, x: Tensor) -> int:
    """:func:`check_file` in a temporary folder."""
    with TemporaryDirectory() as folder:
        return check_file(base, net, Path(folder), x)
