"""VariationalModule: a model and a guide, trained by Lightning's Trainer. Needs the extra ``lightning``.

loss = data term + kl_weight(step) * KL, with what the Trainer brings: devices, precision, checkpoints, loggers
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_vd.common.options import as_number, check_callable, check_choice, check_count, shown
from pyro_vd.common.predictions import MODES
from pyro_vd.common.schedules import Cyclic, LinearWarmUp
from pyro_vd.elbo import TraceVD_ELBO
from pyro_vd.handlers import posterior_mean
from pyro_vd.loss_module import TrainedModule
from pyro_vd.predict import Predictive, predictive_distribution
from pyro_vd.predict.outcomes import mask_of
from pyro_vd.rollback import undone
from pyro_vd.sparsity.masks import DEFAULT_THRESHOLD
from pyro_vd.sparsity.report import sparsity_report
from pyro_vd.training.random_states import mixed_seed, random_states, resume_random_states

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lightning":
        raise
    raise ImportError(
        "pyro_vd.training.lightning: expected lightning, found none; write pip install pyro_vd[lightning]"
    ) from None

_STATES = "pyro_vd random states"  # in a checkpoint: those of every process


class VariationalModule(TrainedModule, LightningModule):
    """A model and a guide as a ``LightningModule``, for ``lightning.Trainer().fit(module, loader)``.

    ``loss = data term + kl_weight * KL``

    A batch that is a tuple or a list is the positional arguments of model and guide, a dict the keyword arguments;
    anything else is the one argument. Override :meth:`arguments` for other batches.

    A training step logs ``loss``; ``nll``, its data term; ``kl`` and ``kl/SITE`` of each site, without their weight;
    ``kl_weight``; ``negative_elbo``, the loss at ``kl_weight=1``; all in nats, scaled by the plates of the model. The
    end of an epoch logs ``sparsity``, the share of weights with ``log_alpha > 3``. Validation and test log ``val_nll``
    and ``test_nll``: ``-log p(y | x)`` of the predictive distribution, in nats, the mean over the examples that no mask
    hides, the sum over sites. Prediction gives what :func:`pyro_vd.predictive_distribution` gives.

    Lightning's checkpoints hold the random states of every process, too: a run that goes on from the end of an
    epoch, ``fit(..., ckpt_path=...)``, ends as one that was not interrupted, bit for bit; with fewer devices or another
    number of processes it warns, and ends otherwise. Processes of one run are given different noise. Where a guide has
    to see its model before it knows all its sites, call ``guide(*args)`` once before.

    Args:
        model, guide: Pyro model and guide, modules or functions.
        elbo: the loss. Its ``kl_weight`` is set before every step where there is a schedule.
        optimizer: a function from the list of parameters to what ``configure_optimizers`` may return: an optimizer of
            ``torch.optim``, or a dict of one and its scheduler.
        kl_schedule: a function from the number of steps that the optimizer has done to the weight of the KL, such as
            :func:`pyro_vd.training.linear_warm_up`; made with ``num_steps=1``, it gets the share of the run. None
            leaves the weight of ``elbo`` as it is.
        num_samples, mode: of the predictive distribution; see :func:`pyro_vd.predictive_distribution`.

    Raises:
        ImportError: from the import, where Lightning is not installed.
        TypeError: an argument of another kind.
        ValueError: from a run, a term of the loss that is NaN or infinite; a share of a run whose length is unknown; a
            strategy that splits parameters.

    Example:
        >>> import functools, logging, pyro, pyro_vd as vd
        >>> from pyro_vd.guides import AutoSparseVD
        >>> _ = logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        >>> bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())
        >>> def model(x, y=None):
        ...     logits = bnn(x)
        ...     with vd.data_plate(20, len(x)):
        ...         return pyro.sample("y", pyro.distributions.Categorical(logits=logits), obs=y)
        >>> adam = functools.partial(torch.optim.Adam, lr=0.01)
        >>> module = VariationalModule(model, AutoSparseVD(model), vd.TraceVD_ELBO(), adam)
        >>> data = torch.utils.data.TensorDataset(torch.randn(20, 3), torch.randint(2, (20,)))
        >>> off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        >>> trainer = Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(off, False))
        >>> trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=10))
        >>> trainer.global_step
        2
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        elbo: TraceVD_ELBO,
        optimizer: Callable[[list[nn.Parameter]], Any],
        kl_schedule: Callable[[Any], Any] | None = None,
        *,
        num_samples: int = 10,
        mode: str = "weights",
    ):
        super().__init__()
        if not isinstance(elbo, TraceVD_ELBO):
            raise TypeError(f"elbo: expected a TraceVD_ELBO, got {shown(elbo)}; write TraceVD_ELBO()")
        if isinstance(optimizer, (torch.optim.Optimizer, PyroOptim)) or not callable(optimizer):
            raise TypeError(
                f"optimizer: expected a function of the parameters, got {shown(optimizer)}; write "
                "functools.partial(torch.optim.Adam, lr=1e-3)"
            )
        if kl_schedule is not None:
            check_callable("kl_schedule", kl_schedule, "a function of the step", "write linear_warm_up(100, 300)")
        self.loss = elbo(model, guide)
        self.optimizer, self.kl_schedule = optimizer, kl_schedule
        self.num_samples = check_count("num_samples", num_samples, 1)
        self.mode = check_choice("mode", mode, (*MODES, "moments"))
        self._states: list[dict[str, Any]] | None = None  # of the checkpoint that was loaded last
        self._seed: tuple[int, int] | None = None  # of the last run, after the rank that it was for

    @property
    def elbo(self) -> TraceVD_ELBO:
        """The loss, with the ``kl_weight`` of the last step."""
        return self.loss.elbo

    @property
    def guide(self) -> Callable:
        """The guide, for :func:`pyro_vd.sparsity_report` and the like."""
        return self.loss.guide

    def arguments(self, batch: Any) -> tuple[tuple, dict[str, Any]]:
        """The positional and the keyword arguments of model and guide in a batch."""
        if isinstance(batch, Mapping):
            return (), dict(batch)
        return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})

    def setup(self, stage: str) -> None:
        if isinstance(self.trainer.strategy, (DeepSpeedStrategy, FSDPStrategy)):
            raise ValueError(
                "VariationalModule: expected a strategy under which every process has all parameters, such as 'ddp', "
                f"got {type(self.trainer.strategy).__name__}; for shards, write a loop around fully_shard(loss)"
            )

    def configure_optimizers(self) -> Any:
        return self.optimizer(list(self.loss.parameters()))

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        args, kwargs = self.arguments(batch)
        if self.kl_schedule is not None:
            self.elbo.kl_weight = self.kl_schedule(self._position())
        terms = self.loss.terms(*args, **kwargs)
        values = {"nll": terms.data, "kl": terms.kl_total, "negative_elbo": terms.negative_elbo}
        values |= {f"kl/{site}": value for site, value in terms.kl.items()}
        self.log_dict({name: value.detach() for name, value in values.items()})
        weight = terms.kl_weight
        self.log("kl_weight", weight.detach().float() if isinstance(weight, Tensor) else float(weight))
        self.log("loss", terms.loss.detach(), prog_bar=True)
        return terms.loss

    def _position(self) -> float:
        """What the schedule is called with: steps that are done, or their share of the run."""
        step = self.trainer.global_step
        if getattr(self.kl_schedule, "num_steps", None) != 1:
            return step
        steps = self.trainer.estimated_stepping_batches
        if not 1 <= steps < float("inf"):  # Lightning says -1 of a loader without a length
            raise ValueError(
                f"kl_schedule: expected a run of a known number of steps for {self.kl_schedule}, which is one of its "
                "share, got one without an end; write num_steps=..., or Trainer(max_steps=...)"
            )
        return step / steps

    def on_train_epoch_end(self) -> None:
        if has_posteriors(self.guide):
            self.log("sparsity", sparsity_report(self.guide).sparsity, sync_dist=True)

    def on_train_end(self) -> None:
        weight, schedule = self.elbo.kl_weight, self.kl_schedule
        rises = isinstance(schedule, (LinearWarmUp, Cyclic)) and not getattr(self.trainer, "fast_dev_run", False)
        if rises and (as_number(weight) or 0.0) < 1:
            warnings.warn(
                f"kl_schedule: expected a weight of 1 at the end of the run, got {as_number(weight):g} after "
                f"{self.trainer.global_step} steps of {schedule}: the loss is not yet the negative ELBO; train longer, "
                "or let the weight rise earlier",
                stacklevel=2,
            )

    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        return self._log_nll("val_nll", batch)

    def test_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        return self._log_nll("test_nll", batch)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Predictive]:
        args, kwargs = self.arguments(batch)
        return self(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Predictive]:
        """The predictive distribution of every observation site."""
        with torch.inference_mode(False):  # what a guide makes in its first call is to be trained
            return predictive_distribution(
                *self.loss.callables, *args, num_samples=self.num_samples, mode=self.mode, **kwargs
            )

    def _log_nll(self, name: str, batch: Any) -> Tensor:
        args, kwargs = self.arguments(batch)
        predictive = self(*args, **kwargs)
        observed = {site: value for site, value in self._observed(args, kwargs).items() if site in predictive}
        if not observed:
            raise ValueError(
                f"{name}: expected a batch with the value of one of the sites {list(predictive)}, got one without; "
                "give the labels too, or override validation_step"
            )
        each = [(-predictive[site].log_prob(value), _seen(predictive[site])) for site, value in observed.items()]
        nll = torch.stack([value.sum() / number.clamp(min=1) for value, number in each]).sum()
        examples = max(int(number) for _, number in each)
        self.log(name, nll, prog_bar=True, batch_size=examples, sync_dist=True)
        return nll

    def _observed(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """The values that a batch gives to the observation sites."""
        model, guide = self.loss.callables
        trace: Any
        with torch.inference_mode(False), torch.no_grad(), undone():
            trace = poutine.trace(posterior_mean(guide)).get_trace(*args, **kwargs)
            trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
        return {site: trace.nodes[site]["value"] for site in trace.observation_nodes}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [random_states()]
        if self.trainer.world_size > 1:
            states *= self.trainer.world_size
            torch.distributed.all_gather_object(states, states[0])
        checkpoint[_STATES] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._states = checkpoint.get(_STATES)

    def on_fit_start(self) -> None:
        states, rank = self._states, self.global_rank
        self._states = None
        resumes = self.trainer.ckpt_path is not None  # or they are of a checkpoint that a test or a user loaded
        if not (states and resumes and resume_random_states(states, rank, self.trainer.world_size)):
            if rank and (rank, torch.initial_seed()) != self._seed:  # or all have the same noise
                torch.manual_seed(mixed_seed(torch.initial_seed(), rank))
        self._seed = rank, torch.initial_seed()  # which a further run goes on with, unless the user sets one


class SparsityTable(Callback):
    """Prints the table of :func:`pyro_vd.sparsity_report` at the end of a run of a :class:`VariationalModule`.

    Args:
        every_n_epochs: print it after so many epochs, too.
        log_alpha_threshold: natural log of the noise ratio over which a weight is counted as pruned.

    Example:
        >>> callbacks = [SparsityTable(every_n_epochs=10)]
    """

    def __init__(self, every_n_epochs: int | None = None, log_alpha_threshold: float = DEFAULT_THRESHOLD):
        self.every_n_epochs = None if every_n_epochs is None else check_count("every_n_epochs", every_n_epochs, 1)
        self.log_alpha_threshold = log_alpha_threshold

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, VariationalModule) or not has_posteriors(pl_module.guide):
            raise TypeError(
                "SparsityTable: expected a VariationalModule with a guide of pyro_vd.guides, got "
                f"{shown(getattr(pl_module, 'guide', pl_module))}; leave the callback out"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._print(pl_module, f"after epoch {trainer.current_epoch + 1}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.every_n_epochs or trainer.current_epoch % self.every_n_epochs:
            self._print(pl_module, f"after epoch {trainer.current_epoch}")

    def _print(self, module: Any, when: str) -> None:
        report = sparsity_report(module.guide, self.log_alpha_threshold)
        module.print(f"sparsity {when}, log_alpha > {self.log_alpha_threshold:g} pruned\n{report}")


def _seen(predictive: Predictive) -> Tensor:
    """The number of examples that no mask hides: their log likelihood is not 0, and a mean is over them."""
    return mask_of(predictive.draws).any(0).sum()


def has_posteriors(guide: Any) -> bool:
    """Whether a guide knows the distributions of its weights without a run."""
    parts = list(guide) if isinstance(guide, AutoGuideList) else [guide]
    return all(hasattr(part, "posteriors") for part in parts)
