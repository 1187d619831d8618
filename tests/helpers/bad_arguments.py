"""Invalid arguments, and a program that shows that an error about one has changed nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

NAN, INF = math.nan, math.inf
LOC, X, Y = torch.ones(2, 3), torch.linspace(-1, 1, 18).reshape(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
PRIOR = vd.ImproperLogUniform()

WRONG_NUMBERS = {"nan": NAN, "inf": INF, "text": "1", "None": None, "True": True, "list": [1.0], "complex": 1j}
WRONG_COUNTS = {"0": 0, "-1": -1, "2.5": 2.5, "True": True, "text": "3", "None": None, "nan": NAN}
NO_PROGRAMS = {"None": None, "text": "model", "number": 3, "class": nn.Linear, "tensor": LOC, "list": []}
NO_TENSORS = {"None": None, "number": 0.5, "text": "loc", "list": [1.0], "numpy": np.ones((2, 3)), "int": LOC.long(),
              "bool": LOC > 0, "complex": LOC * 1j}  # fmt: skip


class Setting:
    """A program with BatchNorm, trained for two steps."""

    def __init__(self):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.net.eval()
        self.bnn = vd.BayesianModule(self.net, PRIOR)
        self.guide = AutoSparseVD(self.model)
        self.elbo = vd.TraceVD_ELBO()
        self.svi = pyro.infer.SVI(self.model, self.guide, pyro.optim.Adam({"lr": 0.1}), self.elbo)
        for _ in range(2):
            self.svi.step(X, Y)

    def model(self, x, y=None):
        logits = self.bnn(x)
        with vd.data_plate(100, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    def state(self):
        tensors = {**self.net.state_dict(), **{f"guide.{n}": v for n, v in self.guide.state_dict().items()}}
        tensors |= {f"store.{n}": v.unconstrained() for n, v in pyro.get_param_store().items()}
        tensors |= {f"grad.{n}": p.grad for n, p in self.guide.named_parameters() if p.grad is not None}
        for name, one in self.svi.optim.get_state().items():
            tensors |= {f"{name}.{i}.{k}": v for i, s in one["state"].items() for k, v in s.items()}
        return {name: torch.as_tensor(value).detach().clone() for name, value in tensors.items()}

    def next_loss(self):
        """Of a step that is not taken."""
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        pyro.set_rng_seed(5)
        loss = self.elbo.loss(self.model, self.guide, X, Y)
        for name, buffer in self.net.named_buffers():
            buffer.copy_(buffers[name])
        return loss


class Cases(dict):
    """What is called, by a label: a function of the setting, and the words of its error."""

    def add(self, label: str, call: Callable[[Setting], Any], words: str) -> None:
        assert label not in self, label
        self[label] = call, words


def check(setting: Setting, call: Callable[[Setting], Any], words: str) -> None:
    """The call is a clear error with these words; parameters, buffers, optimizer and the next loss are as before."""
    before, expected = setting.state(), setting.next_loss()
    with pytest.raises((ValueError, TypeError)) as caught:
        call(setting)
    text = str(caught.value)
    assert re.search(_pattern(words), text, re.DOTALL), text
    assert re.search(r"(?i)expected .*(got|but found)|holds \d+ NaN or infinite of", text, re.DOTALL), text
    after = setting.state()
    assert {name for name in before if not (name in after and torch.equal(before[name], after[name]))} == set()
    assert setting.next_loss() == expected


def _pattern(words: str) -> str:
    """Words as they stand, but for ``.*``."""
    return ".*".join(map(re.escape, words.split(".*")))
