"""VariationalModule under Lightning's Trainer: the steps of a loop by hand, to the last digit, and what is logged."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from torch import nn

import pyro_vd as vd
from helpers import lightning_runs
from helpers.lightning_runs import ADAM, QUIET, SCHEDULE, SHORT_SCHEDULE, data, loader, module, values
from pyro_vd.training import cyclic, linear_warm_up

pytest.importorskip("lightning")
from lightning.pytorch import Callback, Trainer  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402
from lightning.pytorch.strategies import FSDPStrategy  # noqa: E402

from pyro_vd.training.lightning import SparsityTable, VariationalModule  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Logged(Callback):
    """What a run logs, step by step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *_):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def by_hand(epochs=2, every=1, clip=None, context=None, made=None):
    """The loop that the Trainer is to run; returns the module and the terms of every batch."""
    made = module() if made is None else made
    optimizer = ADAM(made.loss.parameters())
    terms, step = [], 0
    for _ in range(epochs):
        for i, batch in enumerate(loader()):
            made.elbo.kl_weight = SCHEDULE(step)
            with context() if context else warnings.catch_warnings():
                batch = [part.to(next(made.parameters()).dtype) if part.is_floating_point() else part for part in batch]
                found = made.loss.terms(*batch)
            (found.loss / every).backward()
            terms.append(found)
            if (i + 1) % every == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(made.loss.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
    return made, terms


def fit(made, epochs=2, val=None, **options):
    trainer = Trainer(max_epochs=epochs, **{**QUIET, **options})
    trainer.fit(made, loader(), val)
    return trainer


def test_the_steps_and_what_is_logged_are_those_of_a_loop():
    logged = Logged()
    trained = module()
    fit(trained, callbacks=[logged])
    expected, terms = by_hand()
    assert torch.equal(values(trained), values(expected))
    assert not torch.equal(values(trained), values(module()))
    assert [step["kl_weight"] for step in logged.steps] == pytest.approx([SCHEDULE(i) for i in range(8)])
    for step, term in zip(logged.steps, terms, strict=True):
        found = {"loss": term.loss, "nll": term.data, "kl": term.kl_total, "negative_elbo": term.negative_elbo}
        found |= {f"kl/{site}": value for site, value in term.kl.items()}
        assert {name: step[name] for name in found} == {name: float(value.detach()) for name, value in found.items()}
        assert len(term.kl) == 2 and step["loss"] == pytest.approx(step["nll"] + step["kl_weight"] * step["kl"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "loop"),
    [
        ({"accumulate_grad_batches": 2}, {"every": 2}),
        ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ({"precision": "bf16-mixed"}, {"context": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False)}),
        ({"precision": "64-true"}, {"made": "double"}),
    ],
    ids=["accumulation", "clipping", "bf16", "float64"],
)
def test_what_the_trainer_brings_is_that_of_a_loop(options, loop):
    trained = module()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "kl_schedule: expected a weight of 1")  # too few steps, of 2 batches
        fit(trained, **options)
    if "made" in loop:
        loop = {"made": module().double()}
    expected, _ = by_hand(**loop)
    assert torch.equal(values(trained), values(expected))
    assert not torch.equal(values(trained), values(by_hand()[0])), "the option does nothing"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("validated", [False, True])
def test_a_run_goes_on_bit_for_bit_from_the_end_of_an_epoch(validated, shuffle, tmp_path):
    def run(folder, checkpoint=None):
        made = module(seed=4 if checkpoint else 0)
        options = {**QUIET, "enable_checkpointing": True}
        kept = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        trainer = Trainer(max_epochs=4, callbacks=[kept], **options)
        trainer.fit(made, loader(shuffle=shuffle), loader() if validated else None, ckpt_path=checkpoint)
        assert trainer.global_step == 16 and made.elbo.kl_weight == 1
        return made

    whole = run(tmp_path / "whole")
    assert torch.equal(values(run(tmp_path / "rest", tmp_path / "whole" / "epoch=1.ckpt")), values(whole))
    # The step of the schedule is that of the checkpoint, 8: there it has ended.
    loaded = VariationalModule.load_from_checkpoint(
        tmp_path / "whole" / "epoch=3.ckpt",
        model=(fresh := module(seed=9)).loss.model,
        guide=fresh.guide,
        elbo=vd.TraceVD_ELBO(),
        optimizer=ADAM,
    )
    assert torch.equal(values(loaded), values(whole))


@pytest.mark.slow
def test_early_stopping_and_validation():
    stop = EarlyStopping("val_nll", patience=1, min_delta=10.0)  # nothing gets better by 10 nats
    made = module(num_samples=3)
    trainer = fit(made, epochs=30, val=loader(), callbacks=[stop])
    assert trainer.current_epoch == 2 and stop.stopped_epoch == 1

    made.eval()
    x, y = data().tensors
    torch.manual_seed(1)
    (found,) = trainer.validate(made, torch.utils.data.DataLoader(data(), 48), verbose=False)
    torch.manual_seed(1)
    torch.utils.data.DataLoader(data(), 48).__iter__()  # takes a number
    expected = -vd.predictive_distribution(made.loss.model, made.guide, x, num_samples=3)["y"].log_prob(y).mean()
    assert found == {"val_nll": float(expected)}
    made.mode = "mean"  # without noise, so that batches of unequal size have one result
    means = [trainer.test(made, torch.utils.data.DataLoader(data(), n), verbose=False)[0] for n in (48, 20)]
    assert means[0]["test_nll"] == pytest.approx(means[1]["test_nll"], rel=1e-6)
    first, *rest = trainer.predict(made, loader())
    assert len(rest) == 3 and torch.equal(
        first["y"].probs, vd.predictive_distribution(made.loss.model, made.guide, x[:12], mode="mean")["y"].probs
    )


def test_batches_are_arguments_by_place_or_by_name():
    made = module()
    x, y = data().tensors
    assert made.arguments((x, y)) == ((x, y), {}) == made.arguments([x, y])
    assert made.arguments({"x": x, "y": y}) == ((), {"x": x, "y": y})
    assert made.arguments(x) == ((x,), {})


@pytest.mark.slow
def test_a_batch_that_is_a_dict_and_an_optimizer_with_its_scheduler():
    def optimizer(parameters):
        adam = ADAM(parameters)
        scheduler = torch.optim.lr_scheduler.StepLR(adam, 1, 0.5)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    made = module(optimizer=optimizer, kl_schedule=None)
    x, y = data().tensors
    batches = [{"x": x[i : i + 12], "y": y[i : i + 12]} for i in range(0, 48, 12)]
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(made, torch.utils.data.DataLoader(batches, batch_size=None))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.02 / 16)
    with pytest.raises(ValueError, match=r"val_nll: expected a batch with the value of one of the sites \['y'\]"):
        trainer.validate(made, torch.utils.data.DataLoader([{"x": x}], batch_size=None), verbose=False)


@pytest.mark.slow
def test_schedules_by_share_and_one_that_did_not_end():
    logged = Logged()
    fit(module(kl_schedule=linear_warm_up(0.0, 0.5, num_steps=1)), callbacks=[logged])
    assert [step["kl_weight"] for step in logged.steps] == pytest.approx([min(1.0, i / 4) for i in range(8)])
    with pytest.warns(UserWarning, match="kl_schedule: expected a weight of 1 at the end .*, got 0.875 after 8"):
        fit(module(kl_schedule=cyclic(16, 1, 0.5)))
    endless = Trainer(max_epochs=-1, **QUIET)
    with pytest.raises(ValueError, match="kl_schedule: expected a run of a known number of steps"):
        endless.fit(module(kl_schedule=cyclic(1)), loader())


@pytest.mark.slow
def test_the_table_of_sparsity_is_printed(capsys):
    made = module()
    trainer = fit(made, epochs=3, callbacks=[SparsityTable(every_n_epochs=2)])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "sparsity after" in line] == [
        f"sparsity after epoch {n}, log_alpha > 3 pruned" for n in (2, 3)
    ]
    assert printed.endswith(f"{vd.sparsity_report(made.guide)}\n")
    assert float(trainer.callback_metrics["sparsity"]) == pytest.approx(vd.sparsity_report(made.guide).sparsity)


def test_arguments():
    made = module()
    model, guide, elbo = made.loss.model, made.guide, made.elbo
    net = nn.Linear(2, 2)
    for optimizer in (torch.optim.SGD(net.parameters()), pyro.optim.Adam({"lr": 0.1}), 0.1):
        with pytest.raises(TypeError, match=r"optimizer: expected a function .* write functools.partial\("):
            VariationalModule(model, guide, elbo, optimizer)
    with pytest.raises(TypeError, match="elbo: expected a TraceVD_ELBO, got "):
        VariationalModule(model, guide, pyro.infer.Trace_ELBO(), ADAM)
    with pytest.raises(TypeError, match="kl_schedule: expected a function of the step, got 0.5"):
        VariationalModule(model, guide, elbo, ADAM, 0.5)
    with pytest.raises(ValueError, match="mode: expected one of .*'weights'.*, got 'wieghts'"):
        VariationalModule(model, guide, elbo, ADAM, mode="wieghts")
    with pytest.raises(TypeError, match="SparsityTable: expected .* guide of pyro_vd.guides, got .*leave the call"):
        fit(VariationalModule(model, lambda x, y=None: guide(x, y), elbo, ADAM), callbacks=[SparsityTable()])


def test_strategies_that_split_parameters_are_refused():
    made = module()
    made.trainer = SimpleNamespace(strategy=FSDPStrategy())  # a Trainer wants a GPU for it
    with pytest.raises(ValueError, match="expected a strategy .* such as 'ddp', got FSDPStrategy; .*fully_shard"):
        made.setup("fit")


@pytest.mark.slow
def test_without_lightning_the_error_names_the_extra():
    code = "import sys, pyro_vd.training; sys.modules['lightning'] = None; import pyro_vd.training.lightning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("expected lightning, found none; write pip install pyro_vd[lightning]\n")


def averaged_by_hand():
    """Three steps of two processes in one: the mean of their gradients, each with its own examples and noise."""
    made = module()
    optimizer = ADAM(made.loss.parameters())
    seeds = 1, int(np.random.SeedSequence((1, 1)).generate_state(1, np.uint64)[0])
    states, losses = [torch.Generator().manual_seed(seed).get_state() for seed in seeds], [[], []]
    for step in range(3):
        optimizer.zero_grad()
        made.elbo.kl_weight = SHORT_SCHEDULE(step)
        for rank in range(2):
            torch.set_rng_state(states[rank])
            if step % 2 == 0:  # an epoch of two batches begins, and its loader takes a number
                torch.empty((), dtype=torch.int64).random_()
            sampler = torch.utils.data.DistributedSampler(data(), 2, rank, seed=0)  # which Lightning puts in
            sampler.set_epoch(step // 2)
            x, y = data()[list(sampler)[12 * (step % 2) :][:12]]
            loss = made.loss(x, y)
            (loss / 2).backward()
            losses[rank].append(float(loss.detach()))
            states[rank] = torch.get_rng_state()
        optimizer.step()
    return torch.cat([value.detach().flatten() for value in made.parameters()]), losses


@pytest.mark.slow  # two processes that import Lightning
def test_two_processes_average_gradients_with_noise_of_their_own(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    helpers = os.path.dirname(os.path.dirname(lightning_runs.__file__))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": helpers}
    command = [sys.executable, lightning_runs.__file__, str(tmp_path)]
    running = [
        subprocess.Popen(
            command, env=os.environ | shared | {"LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    (state, losses), (other, other_losses) = (torch.load(tmp_path / f"rank{rank}") for rank in range(2))
    expected, expected_losses = averaged_by_hand()
    assert torch.equal(state, other) and losses != other_losses
    torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close([losses, other_losses], expected_losses, rtol=1e-6, atol=1e-5)
    states = torch.load(tmp_path / "run.ckpt", weights_only=True)["pyro_vd random states"]
    assert len(states) == 2 and not torch.equal(states[0]["torch"], states[1]["torch"])
