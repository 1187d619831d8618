"""examples/benchmark.py compares like with like, and measures what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pyro
import pytest
import torch

import pyro_vd as vd
from helpers.paths import EXAMPLES

FOLDER = str(EXAMPLES)
MEGABYTE = 10**6


@pytest.fixture
def benchmark(monkeypatch):
    """The modules of the benchmark, imported as the program imports them."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import _handwritten
    import _machine
    import _measurement
    import _programs
    import _report

    yield SimpleNamespace(
        handwritten=_handwritten, machine=_machine, measurement=_measurement, programs=_programs, report=_report
    )
    for name in set(sys.modules) - before:
        if name.startswith("_") and str(getattr(sys.modules[name], "__file__", "")).startswith(FOLDER):
            del sys.modules[name]


def problem(benchmark, net: str):
    return benchmark.programs.Problem(net, width=7, depth=2, batch=3)


@pytest.mark.parametrize("net", ["mlp", "lenet-5"])
def test_the_handwritten_loss_is_that_of_the_library(benchmark, net):
    """Loss and every gradient, with the same noise."""
    one = problem(benchmark, net)
    batch = one.batches()[0]
    by_hand = one.build(**benchmark.programs.LRT)
    model, guide = benchmark.programs.bayesian(one)
    guide(*batch)
    torch.manual_seed(1)
    expected = benchmark.handwritten.negative_elbo(by_hand, *batch, benchmark.programs.DATASET_SIZE)
    torch.manual_seed(1)
    loss = vd.TraceVD_ELBO()(model, guide)(*batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    expected.backward()
    loss.backward()
    theirs = dict(by_hand.named_parameters())
    for name, parameter in guide.named_parameters():
        quantity, _, site = name.partition(".net.")
        suffix = {"locs": "weight", "log_sigma2s": "log_sigma2"}[quantity]
        gradient = theirs[site.replace("weight", suffix)].grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("net", ["mlp", "lenet-5"])
def test_the_handwritten_step_in_jax_is_that_in_torch(benchmark, net, monkeypatch):
    """Losses of three steps of Adam where every noise is one."""
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jax.numpy.ones(shape))
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    monkeypatch.setattr(benchmark.programs, "LR", 1e-2)
    one = problem(benchmark, net)
    batches = one.batches()
    steps = [benchmark.programs.PROGRAMS[name][1](one, batches) for name in ("lrt", "lrt-jax")]
    losses = torch.tensor([[float(step(i)) for i in range(3)] for step in steps])
    assert losses[0, 2] != losses[0, 0]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("net", ["mlp", "lenet-5"])
def test_the_handwritten_step_as_a_pyro_program_has_the_same_losses(benchmark, net, monkeypatch):
    monkeypatch.setattr(benchmark.programs, "LR", 1e-2)
    one = problem(benchmark, net)
    batches, losses = one.batches(), []
    for name in ("lrt", "lrt-pyro"):
        step = benchmark.programs.PROGRAMS[name][1](one, batches)
        torch.manual_seed(1)
        losses.append(torch.tensor([float(step(i)) for i in range(3)]))
    assert losses[0][2] != losses[0][0]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


@pytest.mark.slow
def test_every_program_has_parameters_of_its_own(benchmark):
    """Steps of one leave those of another, of the same guide class and site names, alone."""
    one = problem(benchmark, "mlp")
    pyro.enable_validation(False)
    batches = one.batches()
    first, second = (benchmark.measurement.Running(name, one, batches) for name in ("svi-vd", "svi-lrt"))
    values = [value.clone() for value in first._store["params"].values()]
    assert len(values) == 9 and first._store["params"].keys() == second._store["params"].keys()
    second.take(2)
    assert all(map(torch.equal, values, first._store["params"].values()))
    first.take(2)
    assert not any(map(torch.equal, values, first._store["params"].values()))


def test_the_floor_counts_the_work(benchmark):
    net = benchmark.programs.Problem("lenet-300-100", 0, 0, 100)
    floor = benchmark.machine.floor(net.build(), net.batches()[0], lrt=True)
    assert floor["GFLOP"] == 2 * 2 * 100 * (2 * 784 * 300 + 3 * 300 * 100 + 3 * 100 * 10) / 1e9
    assert floor["MB_moved"] == 32 * (2 * 266_200 + 410) / 1e6
    net = benchmark.programs.Problem("lenet-5", 0, 0, 10)
    floor = benchmark.machine.floor(net.build(), net.batches()[0], lrt=False)
    convolutions = 2 * 500 * 24 * 24 + 3 * 20 * 50 * 25 * 8 * 8
    assert floor["GFLOP"] == 2 * 10 * (convolutions + 3 * 800 * 500 + 3 * 500 * 10) / 1e9
    assert floor["floor_ms"] > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell peak memory")
def test_peak_memory_is_that_of_the_step(benchmark):
    """A step that needs 200 MB at once and then 100 MB more, twice; and what is alive after it."""
    kept = []

    def step():
        for _ in range(2):
            first = torch.ones(50 * MEGABYTE)
            second = torch.ones(25 * MEGABYTE)
            del first, second
        kept.append(torch.ones(MEGABYTE))

    before = benchmark.measurement.held("cpu")
    peak = benchmark.measurement.peak_above_rest(step, "cpu")
    assert peak == pytest.approx(300 * MEGABYTE, rel=0.05)
    weight = torch.ones(MEGABYTE, requires_grad=True)
    weight.sum().backward()
    view = weight.detach()[1:]  # of the same storage
    assert benchmark.measurement.held("cpu") - before == 12 * MEGABYTE
    del view


def test_exponents_are_slopes_of_all_and_of_the_upper_half(benchmark):
    sizes = [1, 10, 100, 1000]
    text = benchmark.report.exponents(
        "depth", {"a": (sizes, [5.0, 5.0, 5.0, 50.0]), "b": (sizes, [s**1.5 for s in sizes])}
    )
    assert text.splitlines()[0].endswith("over 1 to 1,000, and from 100 on")
    # least squares by hand: sum of (x - 1.5) * y over sum of (x - 1.5)**2 is 1.5 / 5
    assert [line.split() for line in text.splitlines()[1:]] == [["a", "0.30", "1.00"], ["b", "1.50", "1.50"]]


def test_curves_hold_the_other_sizes_fixed(benchmark):
    def row(width, depth, batch, ms):
        sizes = {"width": width, "depth": depth, "batch": batch, "weights": width**2}
        return sizes | {"net": "mlp", "program": "lrt", "ms": ms, "floor_ms": ms / 2}

    rows = [row(8, 2, 4, 3.0), row(16, 2, 4, 5.0), row(8, 4, 4, 7.0), row(32, 2, 64, 9.0)]
    curves = {
        axis: benchmark.report.curves(rows, axis, {"width": 8, "depth": 2, "batch": 4}) for axis in ("weights", "batch")
    }
    assert curves == {"weights": {"lrt": ([64, 256], [3.0, 5.0]), "floor, LRT": ([64, 256], [1.5, 2.5])}, "batch": {}}
