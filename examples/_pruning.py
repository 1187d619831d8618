"""What ``deploy.py`` compares: nets pruned by sparse variational dropout and by magnitude."""

from __future__ import annotations

import copy
import math

import torch
from _data import Data
from _handwritten import lenet_5
from _training import classifier, fit, mlp, train
from torch import nn
from torch.nn.utils import prune as torch_prune

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.training import linear_warm_up

LENET, MNIST = "lenet-300-100", (40, 5, 2e-3, 5.0, (0.0, 0.3), True, 0.01)
RECIPES = {  # epochs of training and of fine-tuning, lr, lr_ratio, warm-up of the KL, standardize, std of the start
    (LENET, "digits"): (120, 40, 3e-3, 3.0, (0.2, 0.6), False, None),
    (LENET, "mnist"): MNIST,
    (LENET, "fashion-mnist"): MNIST,
    ("lenet-5", "mnist"): (*MNIST[:-1], None),
    ("lenet-5", "fashion-mnist"): (*MNIST[:-1], None),
}
NETS = tuple(dict.fromkeys(net for net, _ in RECIPES))

PRUNED_FROM, PRUNED_TO = 0.2, 0.7  # shares of its training in which magnitude pruning prunes


def make(net: str, dataset: str, inputs: int) -> nn.Sequential:
    """A net as its training starts."""
    if net == "lenet-5":
        return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *lenet_5())
    return mlp([inputs, 300, 100, 10], std=RECIPES[net, dataset][-1])


class Pruners:
    """Nets pruned to a share of their weights, masked: one posterior serves all shares, magnitude trains for each."""

    def __init__(self, net: str, dataset: str, data: Data, epochs: int | None, compiled: bool):
        own, _, lr, lr_ratio, ramp, *_ = RECIPES[net, dataset]
        epochs = epochs or own
        self._data, self._epochs, self._lr = data, epochs, lr
        inputs = data.x_train.shape[1]
        self._start = make(net, dataset, inputs)
        self.bnn = vd.BayesianModule(make(net, dataset, inputs), prior=vd.ImproperLogUniform())
        model = classifier(self.bnn, len(data.x_train))
        self.guide = AutoSparseVD(model)
        train(model, self.guide, data, epochs=epochs, lr=lr, lr_ratio=lr_ratio, compiled=compiled,
              kl_weight=linear_warm_up(*ramp, num_steps=1))  # fmt: skip
        self.dense = {"sparse VD": vd.prune(self.bnn, self.guide, math.inf), "magnitude": self.magnitude(0.0)}

    def variational(self, share: float) -> nn.Module:
        return vd.prune(self.bnn, self.guide, sparsity=share, masked=True)

    def magnitude(self, share: float) -> nn.Module:
        """Trained while the smallest weights of all layers together go, by the cubic schedule of Zhu and Gupta 2017."""
        net = copy.deepcopy(self._start)
        weights = [(layer, "weight") for layer in net if isinstance(layer, (nn.Linear, nn.Conv2d))]
        total = sum(layer.weight.numel() for layer, _ in weights)

        def prune(done: float) -> None:
            ramp = min(1.0, max(0.0, (done - PRUNED_FROM) / (PRUNED_TO - PRUNED_FROM)))
            gone = sum(
                int((torch.as_tensor(layer.weight_mask) == 0).sum())
                for layer, _ in weights
                if torch_prune.is_pruned(layer)
            )
            amount = round(share * (1 - (1 - ramp) ** 3) * total) - gone
            if amount > 0:
                torch_prune.global_unstructured(weights, torch_prune.L1Unstructured, amount=amount)

        fit(net, self._data, epochs=self._epochs, lr=self._lr, progress=prune)
        return net
