"""The programs of gpu_report.py, on the meta device: what they would run on a GPU meets no tensor of the CPU.

The meta device has shapes and no values: the net of 100 million weights takes no memory. It knows no autocast: the rows
of bf16 have parameters of that type. No operation may take or make a tensor of the CPU with elements along a dimension,
but for the indices of a plate, which nothing uses.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_vd as vd
from helpers.paths import EXAMPLES

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests were taken out of the repository")
if EXAMPLES.exists():
    sys.path.insert(0, str(EXAMPLES))
    import _handwritten  # noqa: E402
    import _programs  # noqa: E402
    import benchmark  # noqa: E402
    import gpu_report  # noqa: E402

INDICES = torch.ops.aten.arange.default
PROBLEMS = gpu_report.PROBLEMS if EXAMPLES.exists() else {}


class OnMetaAlone(TorchDispatchMode):
    """Raises for a tensor of one dimension or more that is not on the meta device."""

    def __init__(self):
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves((args, kwargs, result)):
            if isinstance(one, torch.Tensor) and one.dim() and one.numel() and func is not INDICES:
                assert one.device.type == "meta", f"{func}: a tensor of shape {tuple(one.shape)} on {one.device}"
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.convolution.default):
            self.dtypes.add(result.dtype)
        return result


@pytest.fixture(autouse=True)
def no_validation():
    with pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize("program", ["by hand", "weight draws", "vd-loss"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_program_of_every_net_is_of_one_device(name, program, monkeypatch):
    options = PROBLEMS[name]
    args = benchmark.arguments(["--device=cuda", *options, "--widths", "--depths", "--batches"])
    (problem,) = benchmark.problems(args)
    problem, shape = replace(problem, device="meta"), (1, 28, 28) if problem.net == "lenet-5" else (784,)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    build = _programs.Problem.build
    monkeypatch.setattr(_programs.Problem, "build", lambda *args, **layers: build(*args, **layers).to(dtype))
    x = torch.empty(problem.batch, *shape, device="meta", dtype=dtype)
    y = torch.empty(problem.batch, device="meta", dtype=torch.long)
    with torch.device("meta"):
        net = problem.build(**_programs.LRT) if program == "by hand" else None
        model, guide = (None, None) if net is not None else _programs.bayesian(problem)
    if guide is not None:
        guide(x, y)
    size = _programs.DATASET_SIZE
    with OnMetaAlone() as mode:
        if net is not None:
            loss, learned = _handwritten.negative_elbo(net, x, y, size), dict(net.named_parameters())
        else:
            for waits in ("trace_elbo.warn_if_nan", "trace_elbo.torch_item", "trace_mean_field_elbo.torch_item"):
                monkeypatch.setattr(f"pyro.infer.{waits}", lambda *args: 0.0)
            elbo = vd.TraceVD_ELBO() if program == "vd-loss" else TraceMeanField_ELBO()
            loss = elbo.differentiable_loss(model, guide, x, y)
            learned = dict(pyro.get_param_store().named_parameters())
        gradients = torch.autograd.grad(loss, list(learned.values()))
    weights = sum(value.numel() for value in learned.values())
    assert loss.is_meta and all(gradient.is_meta for gradient in gradients)
    assert mode.dtypes == {dtype} | ({torch.float32} if program == "vd-loss" else set())  # variances are in float32
    if "100 million" in name or "bf16" in name:
        assert weights > 2 * 99e6
