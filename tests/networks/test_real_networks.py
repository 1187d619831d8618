"""Networks of transformers, torch_geometric and peft, unchanged: chosen, trained, predicted with, pruned, copied.

Slow, and each only where its package is installed (the extra ``networks``). Exact but for one: the output of one draw
is that of the plain net where there is no noise. ``python tests/networks/test_real_networks.py`` prints the table.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pyro_vd as vd  # noqa: E402
from helpers.real_networks import CATALOGUE, INSTALLED, RealNet  # noqa: E402
from pyro_vd.guides import AutoSparseVD  # noqa: E402

NO_NOISE = -60.0  # log variance

pytestmark = [
    pytest.mark.slow,
    # What the packages warn of, and the draws of weights that go through another operation.
    pytest.mark.filterwarnings("ignore"),
]


def program(case: RealNet, bnn: vd.BayesianModule) -> Callable:
    def model(*args: Any, **kwargs: Any) -> Tensor:
        target = kwargs.pop("target", None)
        output = case.pick(bnn(*args, **kwargs)).flatten(1)
        with vd.data_plate(100, len(output)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=target)

    return model


def sites_used_twice(run: Callable[[list[str]], Any]) -> list[str]:
    """The sites that the refusals of a run name, as a user would paste them."""
    shared: list[str] = []
    while True:
        try:
            run(shared)
            return shared
        except ValueError as error:
            pasted = re.search(r"Write shared_sites=\[(.*?)\]", str(error))
            if "expected one use" not in str(error) or pasted is None:
                raise
            shared += [site.strip("'") for site in pasted[1].split(", ")]


def tried(name: str) -> dict[str, Any]:
    """What becomes of one network; every promise is asserted on the way."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    case = CATALOGUE[name]
    net = case.make().eval()
    plain = case.pick(net(*case.args, **case.kwargs)).detach()
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())
    report, model = bnn.report(), program(case, bnn)
    given = {**case.kwargs, "target": torch.zeros_like(plain.flatten(1))}
    guide = AutoSparseVD(model)
    guide(*case.args, **given)

    def loss(shared: list[str]) -> Tensor:
        return vd.TraceVD_ELBO(shared_sites=shared).differentiable_loss(model, guide, *case.args, **given)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shared = sites_used_twice(loss)
    value = loss(shared)
    value.backward()
    gradients = {key: one.grad for key, one in guide.named_parameters() if key.split(".")[0] in ("locs", "log_sigma2s")}
    assert value.isfinite() and len(gradients) == 2 * len(bnn.weight_names)
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients.values())
    for mode in ("weights", "mean", "local"):
        options: dict[str, Any] = {"num_samples": 2, "mode": mode, "shared_sites": shared if mode == "local" else ()}
        draws = vd.posterior_predictive(model, guide, *case.args, **options, **case.kwargs)["y"]
        assert draws.shape == (2, *plain.flatten(1).shape) and draws.isfinite().all()
    small = vd.prune(bnn, guide)
    assert case.pick(small(*case.args, **case.kwargs)).shape == plain.shape
    check_copies(bnn, guide, small)
    with torch.no_grad():
        for key, parameter in guide.named_parameters():
            if key.startswith("log_sigma2s"):
                parameter.fill_(NO_NOISE)
    trace = poutine.trace(vd.lrt(guide, shared_sites=shared)).get_trace(*case.args, **given)
    output = case.pick(poutine.replay(bnn, trace=trace)(*case.args, **case.kwargs))
    torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-5)
    drawn = [str(one.message) for one in caught if "expected an operation with a rule" in str(one.message)]
    return {"share": report.share, "shared": shared, "drawn": drawn, "report": report}


def check_copies(bnn: vd.BayesianModule, guide: nn.Module, small: nn.Module) -> None:
    twin, _ = copy.deepcopy((bnn, guide))
    assert twin.weight_names == bnn.weight_names
    bnn.load_state_dict(twin.state_dict())
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    guide.load_state_dict(torch.load(file))
    if not any(is_parametrized(module) for module in bnn.modules()):  # torch pickles none of those
        assert pickle.loads(pickle.dumps(bnn)).weight_names == bnn.weight_names
    assert pickle.loads(pickle.dumps(small.state_dict())).keys() == small.state_dict().keys()


@pytest.mark.parametrize("name", CATALOGUE)
def test_network_is_mostly_random_and_all_that_is_promised_of_it_holds(name):
    if CATALOGUE[name].package not in INSTALLED:
        pytest.skip(f"{CATALOGUE[name].package} is not installed")
    assert tried(name)["share"] >= CATALOGUE[name].share


@pytest.mark.skipif("transformers" not in INSTALLED, reason="transformers is not installed")
def test_positions_tokens_and_decay_rates_are_deterministic():
    for name, kept in {
        "bert": ("position_embeddings.weight",), "gpt2": ("wpe.weight",), "t5": ("relative_attention_bias.weight",),
        "vit": ("cls_token", "position_embeddings"), "mamba": ("A_log",), "swin": ("relative_position_bias_table",),
    }.items():  # fmt: skip
        rows = vd.BayesianModule(CATALOGUE[name].make(), dist.Normal(0.0, 1.0)).report().of_kind("deterministic")
        matrices = [row.name for row in rows if len(row.shape) > 1]
        assert matrices and all(one.endswith(kept) for one in matrices), name


def main() -> None:
    passed = 0
    print(f"{'network':<28} {'random':>7}  sampled by one draw, and sites used twice (shared_sites=)")
    for name, case in CATALOGUE.items():
        if case.package not in INSTALLED:
            print(f"{name:<28} {case.package} is not installed")
            continue
        try:
            found = tried(name)
        except Exception as error:  # a row of the table
            print(f"{name:<28} refused: {type(error).__name__}: {str(error)[:200]}")
            continue
        passed += 1
        print(f"{name:<28} {found['share']:>7.1%}  {len(found['drawn'])} draws  {found['shared'] or ''}")
    print(f"{passed} of {len(CATALOGUE)} networks pass")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
