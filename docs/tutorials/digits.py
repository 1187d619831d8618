# %% [markdown]
# # Image classification: from training to a deployed small net
#
# We train a convolutional net on images of digits, find out which weights it needs, and end with a small file
# that holds a small net. Everything is also compared with plain magnitude pruning, which is simpler.
#
# ## The data
#
# The digits that come with scikit-learn: 1,797 images of 8 by 8 pixels. They are split in three: for training,
# for the choice of a threshold, and for the test at the end.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD

pyro.set_rng_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
order = torch.randperm(1797)
(x, x_valid, x_test), (y, y_valid, y_test) = (part[order].split([1197, 300, 300]) for part in (images, labels))

# %% [markdown]
# ## The net, the model, the guide
#
# The net is any torch module. The model is an ordinary Pyro model around it. The prior `ImproperLogUniform`
# makes nets sparse, and the guide `AutoSparseVD` has a mean and a variance for each weight.


# %%
def make_net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * 9, 300), nn.ReLU(), nn.Linear(300, 10),
    )  # fmt: skip


bnn = vd.BayesianModule(make_net(), prior=vd.ImproperLogUniform())


def model(x, y=None):
    logits = bnn(x)
    with vd.data_plate(1197, len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


guide = AutoSparseVD(model)
print(bnn.report())

# %% [markdown]
# ## The training
#
# In the first half the weight of the KL rises from 0 to 1: at full weight from the start, the KL removes
# everything before anything is learned. A weight that the fit does not need gets a variance far above its
# squared mean: it is noise.

# %%
elbo = vd.TraceVD_ELBO(kl_weight=0.0)
svi = pyro.infer.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3, "lrd": 0.9985}), elbo)
warm_up = vd.training.linear_warm_up(200, 600)
for step in range(1200):
    elbo.kl_weight = warm_up(step)
    batch = torch.randint(1197, (200,))
    loss = svi.step(x[batch], y[batch])
    if step % 300 == 299:
        kept = 1 - vd.sparsity_report(guide).sparsity
        print(
            f"step {step + 1:4}: loss {loss / 1197:.3f} nats an example, KL times {elbo.kl_weight:.2f}, {kept:.1%} kept"
        )

# %% [markdown]
# ## How many weights does it need?
#
# `threshold_curve` prunes at many thresholds on `log_alpha`, the log of variance over squared mean, and
# evaluates each net on the data kept for this choice. `choose` takes the sparsest net that is within a
# tolerance of the unpruned one.


# %%
@torch.no_grad()
def error(net, x=x_valid, y=y_valid):
    return 100 * (net(x).argmax(-1) != y).float().mean().item()


curve = vd.threshold_curve(bnn, guide, error)
chosen = curve.choose(tolerance=0.5)
print(f"keeps {chosen.kept:,} of {chosen.weights:,} weights, validation error {chosen.error:.2f} %")

figure, axes = plt.subplots(figsize=(6, 3.8))
kept = [100 * (1 - row.sparsity) for row in curve.rows]
axes.plot(kept, [row.error for row in curve.rows], ".-", label="pruned nets")
axes.plot(100 * (1 - chosen.sparsity), chosen.error, "o", markersize=9, label="chosen: sparsest within 0.5 points")
axes.set(title="Validation error of a pruned net", xlabel="weights kept (%)", ylabel="error (%)", xscale="log")
axes.xaxis.set_major_formatter("{x:g}")
axes.legend()

# %% [markdown]
# ## A small net
#
# `prune` sets weights to 0 and gives a plain module. `shrink` takes out the units and filters that do nothing
# any more, so that the net is smaller with no special kernel. Whether it is faster depends on the net and on
# the machine, so `deploy` measures; the times here are those of a machine that was busy. `save_sparse` writes a
# file without the zeros.

# %%
pruned = vd.prune(bnn, guide, chosen.log_alpha_threshold)
small = vd.shrink(pruned, x_test[:1])
print(small)
print(vd.deploy(pruned, x_test, forms=("dense", "shrunk")))

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "digits.safetensors"
    vd.save_sparse(small, file)
    torch.save(make_net().state_dict(), Path(folder) / "dense.pt")
    print(f"{(Path(folder) / 'dense.pt').stat().st_size} bytes before, {file.stat().st_size} bytes now")
    small.load_state_dict(vd.load_sparse(file))
print(f"test error {error(small, x_test, y_test):.2f} %")

# %% [markdown]
# ## Beside magnitude pruning
#
# The same net, trained as long without any noise, while its smallest weights are set to 0: more and more of
# them, until as many are left. If this is as good on your task, and you do not need uncertainty, take it: it is
# simpler.

# %%
plain = make_net()
weights = [parameter for parameter in plain.parameters() if parameter.dim() > 1]
optimizer = torch.optim.Adam(plain.parameters(), lr=2e-3)
for step in range(1200):
    batch = torch.randint(1197, (200,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(plain(x[batch]), y[batch]).backward()
    optimizer.step()
    share = chosen.sparsity * (1 - (1 - min(1.0, step / 800)) ** 3)  # fast at first, then slowly
    with torch.no_grad():
        limit = torch.cat([weight.abs().flatten() for weight in weights]).quantile(share)
        for weight in weights:
            weight.mul_(weight.abs() > limit)

for name, net in (("magnitude pruning", plain), ("sparse VD", pruned)):
    kept = sum(int(parameter.count_nonzero()) for parameter in net.parameters() if parameter.dim() > 1)
    print(f"{name:<18} {error(net, x_test, y_test):.2f} % test error with {kept} weights")

# %% [markdown]
# ## What to remember
#
# - Choose the threshold on data that neither the training nor the test has seen.
# - `prune` sets weights to zero, which changes the outputs. `shrink` removes units, and the outputs stay the
#   same.
# - Compare with magnitude pruning at the same number of weights, on more data than here, where a point of error
#   is three digits. [Results](../results.md) does.
