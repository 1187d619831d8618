"""The step of CompiledSVI on networks of transformers, torch_geometric and peft: recorded, and as eager steps are.

The recorded graph is run as it is, since Inductor takes half a minute for a net. Exact: the steps are compared by
CompiledSVI itself. ``python tests/networks/test_compiled_networks.py`` tries every network.
"""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pyro_vd as vd  # noqa: E402
from helpers.real_networks import CATALOGUE, INSTALLED  # noqa: E402
from helpers.svi_runs import without_compiler  # noqa: E402
from pyro_vd.guides import AutoSparseVD  # noqa: E402

RECORDED = ("bert", "gpt2", "sage", "lora")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def steps(name: str, number: int = 3) -> vd.CompiledSVI:
    """As many steps on a network; an error where its step is not compiled."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    case = CATALOGUE[name]
    net = case.make().eval()
    target = torch.zeros_like(case.pick(net(*case.args, **case.kwargs)).flatten(1)).detach()
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(*args: Any, target: Tensor | None = None, **kwargs: Any) -> Tensor:
        output = case.pick(bnn(*args, **kwargs)).flatten(1)
        with vd.data_plate(100, len(output)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=target)

    guide = AutoSparseVD(model)
    given = {**case.kwargs, "target": target}
    elbo = vd.TraceVD_ELBO(shared_sites="auto")
    svi = vd.CompiledSVI(model, guide, functools.partial(torch.optim.Adam, lr=1e-3), elbo, strict=True)
    for _ in range(number):
        assert svi.step(*case.args, **given).isfinite()
    return svi


@pytest.mark.parametrize("name", RECORDED)
def test_the_step_of_a_network_is_recorded_and_agrees(name, monkeypatch):
    if CATALOGUE[name].package not in INSTALLED:
        pytest.skip(f"{CATALOGUE[name].package} is not installed")
    graphs = without_compiler(monkeypatch)
    svi = steps(name)
    assert len(graphs) == len(svi._programs) == 1


def main() -> None:
    """One line for each network: recorded, or why not."""
    passed = 0
    with pytest.MonkeyPatch.context() as patch:
        without_compiler(patch)
        for name, case in CATALOGUE.items():
            if case.package not in INSTALLED:
                print(f"{name:<28} {case.package} is not installed")
                continue
            try:
                steps(name)
            except Exception as error:  # a row of the table
                print(f"{name:<28} no: {' '.join(str(error).split())[:400]}", flush=True)
                continue
            passed += 1
            print(f"{name:<28} yes", flush=True)
    print(f"the steps of {passed} of {len(CATALOGUE)} networks are recorded, and agree with eager ones")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
