"""The random numbers of a run under Lightning: of a run that is resumed, of one that is not, and of every process."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace

import pytest
import torch

import pyro_vd as vd
from helpers.lightning_runs import ADAM, QUIET, loader, module, values
from pyro_vd.training.random_states import random_states

pytest.importorskip("lightning")
from lightning.pytorch import Trainer  # noqa: E402

from pyro_vd.training.lightning import VariationalModule  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
STATES = "pyro_vd random states"


def started(made, rank=0, processes=1, ckpt_path=None):
    """The first random number of a run, of which the Trainer is only what the start of a run asks for."""
    made.trainer = SimpleNamespace(world_size=processes, global_rank=rank, ckpt_path=ckpt_path)
    made.on_fit_start()
    return torch.rand(()).item()


def states_of(seed):
    torch.manual_seed(seed)
    return random_states()


def first_number(seed):
    return torch.rand((), generator=torch.Generator().manual_seed(seed)).item()


def test_states_of_a_checkpoint_are_used_by_the_run_that_resumes_and_by_no_other():
    made = module()
    for resumes in (False, True):
        made.on_load_checkpoint({STATES: [states_of(5)]})
        torch.manual_seed(1)
        assert started(made, ckpt_path="a.ckpt" if resumes else None) == first_number(5 if resumes else 1)
        torch.manual_seed(2)
        assert started(made, ckpt_path="without.ckpt") == first_number(2)  # they were dropped


@pytest.mark.slow
@pytest.mark.parametrize("way", ["load_from_checkpoint", "test", "validate", "predict"])
def test_a_run_after_a_checkpoint_was_read_has_the_seed_of_its_user(way, tmp_path):
    first = Trainer(max_epochs=1, **QUIET)
    first.fit(module(kl_schedule=None), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")

    def tuned(seed):
        made = module(kl_schedule=None)
        if way == "load_from_checkpoint":
            known = {"model": made.loss.model, "guide": made.guide, "elbo": vd.TraceVD_ELBO(), "optimizer": ADAM}
            made = VariationalModule.load_from_checkpoint(tmp_path / "a.ckpt", **known)
        else:
            getattr(Trainer(**QUIET), way)(made, loader(), ckpt_path=tmp_path / "a.ckpt")
        torch.manual_seed(seed)
        Trainer(max_epochs=1, **QUIET).fit(made, loader())
        return values(made)

    assert torch.equal(tuned(1), tuned(1)) and not torch.equal(tuned(1), tuned(2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without the device of the checkpoint")
def test_a_checkpoint_of_a_machine_with_a_device_goes_on_without():
    made = module()
    made.on_load_checkpoint({STATES: [states_of(5) | {"cuda": [torch.zeros(16, dtype=torch.uint8)]}]})
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="expected 1 CUDA devices as it was saved with, got 0; the run goes on"):
        assert started(made, ckpt_path="a.ckpt") == first_number(5)


def test_a_checkpoint_of_another_number_of_processes_goes_on_with_the_seed_of_the_user():
    made = module()
    made.on_load_checkpoint({STATES: [states_of(5), states_of(6)]})
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="expected 2 processes as it was saved with, got 1; the run goes on"):
        assert started(made, ckpt_path="a.ckpt") == first_number(1)


def test_processes_and_seeds_have_noise_of_their_own():
    numbers = []
    for seed in range(4):
        for rank in range(4):
            made = module()
            torch.manual_seed(seed)
            numbers.append(started(made, rank, 4))
    assert len(set(numbers)) == 16
    assert numbers[::4] == [first_number(seed) for seed in range(4)]  # the first process has the seed as it is


@pytest.mark.parametrize("rank", [0, 1])
def test_a_second_run_goes_on_unless_the_user_seeds_again(rank):
    made = module()
    torch.manual_seed(3)
    first = started(made, rank, 2)
    after_it = torch.get_rng_state()
    second = started(made, rank, 2)
    torch.set_rng_state(after_it)
    assert second == torch.rand(()).item() != first
    torch.manual_seed(3)
    assert started(made, rank, 2) == first
    torch.manual_seed(4)
    assert started(made, rank, 2) not in {first, second, first_number(4 if rank else 3)}


def test_a_run_on_several_processes_after_one_on_a_single_process_has_noise_of_its_own():
    made = module()
    torch.manual_seed(3)
    started(made)
    torch.manual_seed(3)
    assert started(made, 1, 2) != first_number(3)


def test_a_run_that_resumes_says_nothing():
    made = module()
    made.on_load_checkpoint({STATES: [states_of(5)]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started(made, ckpt_path="a.ckpt")
