"""Digits by Lightning's Trainer, in 25 lines: a net, a model, a guide, a schedule, and the table of sparsity.

pip install -e ".[examples,lightning]"
python examples/lightning_digits.py --epochs 60
"""

import functools

import _options
import pyro
import pyro.distributions as dist
import torch
from _data import load
from torch.utils.data import DataLoader, TensorDataset

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD
from pyro_vd.training import linear_warm_up

_options.require(lightning='-e ".[lightning]"')
from lightning.pytorch import Trainer, seed_everything  # noqa: E402

from pyro_vd.training.lightning import SparsityTable, VariationalModule  # noqa: E402

parser = _options.parser(__doc__, None, data=False, bar=False)
parser.add_argument("--epochs", type=int, default=60)
options = _options.parse(parser, None, epochs=3)

seed_everything(options.seed, verbose=False)
data = load("digits", "data")
train, test = TensorDataset(data.x_train, data.y_train), TensorDataset(data.x_test, data.y_test)
net = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
bnn = vd.BayesianModule(net, vd.ImproperLogUniform())


def model(x, y=None):
    logits = bnn(x)
    with vd.data_plate(len(train), len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


module = VariationalModule(
    model=model,
    guide=AutoSparseVD(model),
    elbo=vd.TraceVD_ELBO(),
    optimizer=functools.partial(torch.optim.Adam, lr=2e-3),
    kl_schedule=linear_warm_up(0.1, 0.7, num_steps=1),  # shares of the run
)
trainer = Trainer(max_epochs=options.epochs, callbacks=[SparsityTable()], logger=False, enable_checkpointing=False)
trainer.fit(module, DataLoader(train, 100, shuffle=True), DataLoader(test, 360))
guesses = module.eval()(data.x_test)["y"].probs.argmax(-1)  # of the predictive distribution
print(f"held-out error: {100 * (guesses != data.y_test).float().mean():.2f} %")
