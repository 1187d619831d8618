"""Checkpoints: a training goes on bit for bit; files that are not whole, or of another program, change nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pyro
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import checkpoint_runs
from helpers.checkpoint_runs import KINDS, Run
from helpers.svi_runs import without_compiler
from pyro_vd.training import load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch):
    without_compiler(monkeypatch)


def equal(one, other):
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def steps(run, first, last):
    for step in range(first, last):
        run.step(step)
    return run.values()


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        pytest.param(kind, after, marks=[pytest.mark.slow] if kind.startswith("compiled") and after != 1 else [])
        for kind in KINDS
        for after in (0, 1, 3)
    ],
)
def test_a_new_program_goes_on_bit_for_bit(kind, after, tmp_path):
    run = Run(kind)
    run.prepare()
    steps(run, 0, after)
    run.save(tmp_path / "run", after)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    expected = steps(run, after, after + 3)

    run = Run(kind, seed=2)
    run.prepare()
    assert run.load(tmp_path / "run") == after
    assert equal(steps(run, after, after + 3), expected) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_program_goes_back(kind, tmp_path):
    run = Run(kind)
    steps(run, 0, 2)
    run.save(tmp_path / "run", 2)
    expected = steps(run, 2, 5)
    assert run.load(tmp_path / "run") == 2
    assert equal(steps(run, 2, 5), expected) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999])
def test_a_truncated_file_changes_nothing(share, tmp_path):
    run = Run("svi")
    steps(run, 0, 2)
    run.save(tmp_path / "run", 2)
    content = (tmp_path / "run").read_bytes()
    (tmp_path / "run").write_bytes(content[: int(share * len(content))])
    before = run.values()
    with pytest.raises(ValueError, match="load_checkpoint: expected .*run.*truncated"):
        run.load(tmp_path / "run")
    assert equal(run.values(), before) == []


def test_any_changed_byte_is_found(tmp_path):
    run = Run("loop")
    run.save(tmp_path / "run", 2)
    content = bytearray((tmp_path / "run").read_bytes())
    before = run.values()
    for place in [0, 9, len(content) - 1, *random.Random(1).choices(range(len(content)), k=40)]:
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "run").write_bytes(changed)
        with pytest.raises(ValueError, match="load_checkpoint: expected .*run"):
            run.load(tmp_path / "run")
    assert equal(run.values(), before) == []


def test_foreign_files(tmp_path):
    net = {"net": nn.Linear(2, 2)}
    save_file(net["net"].state_dict(), tmp_path / "foreign")
    torch.save(net["net"].state_dict(), tmp_path / "pickle")
    for name in ("foreign", "pickle"):
        with pytest.raises(ValueError, match=f"expected a file of save_checkpoint, got .*{name}"):
            load_checkpoint(tmp_path / name, modules=net)
    with pytest.raises(FileNotFoundError, match="none"):
        load_checkpoint(tmp_path / "none", modules=net)


def adam(module, lr=0.1):
    return torch.optim.Adam(module.parameters(), lr)


OTHERS = {
    "shape": (
        lambda: {"modules": {"net": nn.Linear(2, 4)}},
        r"modules.net: expected 'weight' of shape \(4, 2\).*\(3, 2\)",
    ),
    "dtype": (lambda: {"modules": {"net": nn.Linear(2, 3).double()}}, "'weight' .*float64, got .*float32"),
    "extra": (lambda: {"modules": {"net": nn.Linear(2, 3, bias=False)}}, r"without \[\] and with \['bias'\]"),
    "missing": (lambda: {"modules": {"net": nn.Sequential(nn.Linear(2, 3))}}, r"without \['0.weight', '0.bias'\]"),
    "name": (lambda: {"modules": {"nets": nn.Linear(2, 3)}}, "expected .*modules.nets.*got .*modules.net'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_modules(name, tmp_path):
    first = nn.BatchNorm1d(2)  # loaded before the other: it must not be changed
    save_checkpoint(tmp_path / "run", modules={"first": nn.BatchNorm1d(2), "net": nn.Linear(2, 3)})
    parts, message = OTHERS[name]
    with torch.no_grad():
        first.weight.fill_(7)
    with pytest.raises(ValueError, match=message):
        parts = parts()
        load_checkpoint(tmp_path / "run", modules={"first": first, **parts["modules"]})
    assert first.weight[0] == 7


def test_other_optimizers(tmp_path):
    net = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "run", modules={"net": net}, optimizers={"one": adam(net)})
    for other, message in [
        (torch.optim.SGD(net.parameters()), "optimizers.one: expected the state of SGD, got that of Adam"),
        (torch.optim.Adam([net.bias, net.weight]), "optimizers.one: expected parameters of the shapes .* the order"),
        (None, "expected .*modules.net.*got .*optimizers.one"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "run", modules={"net": net}, optimizers=other and {"one": other})


def test_a_parameter_that_no_run_has_made_is_named(tmp_path):
    run = Run("hand-written guide")
    steps(run, 0, 1)
    run.save(tmp_path / "run", 1)
    with pytest.raises(ValueError, match="parameter store: .*net.0.weight.loc.* run guide"):
        Run("hand-written guide").load(tmp_path / "run")


@pytest.mark.parametrize("kind", ["svi", "hand-written guide", "compiled", "loop"])
def test_nan_is_not_saved(kind, tmp_path):
    run = Run(kind)
    steps(run, 0, 2)
    run.save(tmp_path / "run", 2)
    content = (tmp_path / "run").read_bytes()
    spoiled = next(value for value in pyro.get_param_store()._params.values() if value.numel() > 3)
    with torch.no_grad():
        spoiled.view(-1)[1] = float("nan")
    with pytest.raises(
        ValueError, match="save_checkpoint: expected finite values, got NaN in '.*'; nothing is written"
    ):
        run.save(tmp_path / "run", 3)
    assert (tmp_path / "run").read_bytes() == content and len([*tmp_path.iterdir()]) == 1


def test_an_exception_while_loading_puts_everything_back(tmp_path):
    class Broken(torch.optim.lr_scheduler.StepLR):
        def load_state_dict(self, state):
            if state["last_epoch"] == 3:
                raise KeyboardInterrupt
            super().load_state_dict(state)

    run = Run("loop")
    run.parts["schedulers"] = {"rate": Broken(run.optimizer, 1)}
    run.parts["schedulers"]["rate"].last_epoch = 3
    steps(run, 0, 3)
    run.save(tmp_path / "run", 3)
    run.parts["schedulers"]["rate"].last_epoch = 1
    before = steps(run, 3, 5)
    moments = run.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with pytest.raises(KeyboardInterrupt):
        run.load(tmp_path / "run")
    assert equal(run.values(), before) == []
    assert torch.equal(run.optimizer.state_dict()["state"][0]["exp_avg"], moments)


def test_a_disk_that_is_full_leaves_the_earlier_file(tmp_path, monkeypatch):
    run = Run("loop")
    run.save(tmp_path / "run", 1)

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run.save(tmp_path / "run", 2)
    monkeypatch.undo()
    assert run.load(tmp_path / "run") == 1 and len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected svi, modules or optimizers, got none"),
        ({"svi": nn.Linear(1, 1)}, "svi: expected a pyro.infer.SVI or a CompiledSVI"),
        ({"modules": nn.Linear(1, 1)}, "modules: expected torch modules by name"),
        ({"modules": {"net": nn.Linear(1, 1)}, "optimizers": {"adam": 3}}, "optimizers: expected optimizers by name"),
        ({"modules": {"net": nn.Linear(1, 1)}, "extra": {"a": [torch.ones(1)]}}, "extra.a.0: expected .*got Tensor"),
        ({"modules": {"net": nn.Linear(1, 1)}, "extra": {1, 2}}, "extra: expected .*got set"),
    ],
)
def test_arguments(given, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "run", **given)
    assert not [*tmp_path.iterdir()]


def test_the_file_is_one_of_safetensors(tmp_path):
    net = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "run", modules={"net": net})
    assert torch.equal(load_file(tmp_path / "run")["modules.net.weight"], net.weight)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["svi", "loop with a scheduler"])
def test_killed_twenty_times_it_ends_as_if_undisturbed(kind, tmp_path):
    last, times = 10**6, random.Random(0)
    program = [sys.executable, checkpoint_runs.__file__, str(tmp_path / "run"), str(last), kind]
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(checkpoint_runs.__file__))}
    done = 0
    for _ in range(20):
        process = subprocess.Popen(program, env=env, stdout=subprocess.PIPE, text=True)
        assert int(process.stdout.readline()) > done  # the file that the last kill left has been loaded
        time.sleep(times.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        done = int([done, *process.stdout.read().split("\n")[:-1]][-1])
        process.stdout.close()
    run = Run(kind, seed=5)
    assert run.load(tmp_path / "run") >= max(done, 20)
    done = run.load(tmp_path / "run")
    found = steps(run, done, done + 2)
    assert equal(found, steps(Run(kind, seed=1), 0, done + 2)) == []
