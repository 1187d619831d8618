# %% [markdown]
# # A pretrained net and LoRA
#
# A pretrained net is adapted to a new task with few examples. LoRA freezes its weights and adds to each layer a
# product of two small matrices, `B @ A`, of low rank: only these are trained. Two questions remain. How high must
# the rank be, at which layer? And how sure may the net be, after so few examples?
#
# Here the adapters get distributions, and the pretrained weights stay numbers. A rank that only carries noise is
# pruned, and the predictions say how much the adapters leave open. The adapters are those of `peft`, and the net is
# a vision transformer of `transformers`: `pip install -e ".[examples,metrics,networks]"`.
#
# ## The pretrained net
#
# A real one would be downloaded. So that this page runs anywhere, we make a small one: it learns the digits 0 to 4.
# The new task is to tell 5 to 9 apart, from 20 examples of each.

# %%
import copy
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import peft
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

import pyro_vd as vd
from pyro_vd.guides import AutoGroupSparse, AutoVariationalDropout, mixed_guide

warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of what peft asks it for
pyro.set_rng_seed(0)
images, digits = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float().reshape(-1, 1, 8, 8) / 16
new = (digits > 4).nonzero()[:, 0][torch.randperm(int((digits > 4).sum()))]
few = torch.cat([new[digits[new] == digit][:20] for digit in range(5, 10)])
rest = new[~torch.isin(new, few)]
x, y, x_test, y_test = images[few], digits[few] - 5, images[rest], digits[rest] - 5


def fit(loss, parameters, x, y, rate):
    """Adam over batches of 50; ``loss`` takes a batch and the share of the training that is done."""
    optimizer = torch.optim.Adam(parameters, rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - step / 200))
    for step in range(400):
        batch = torch.randint(len(y), (50,))
        optimizer.zero_grad()
        loss(x[batch], y[batch], step / 400).backward()
        optimizer.step()
        decay.step()  # constant for half of the steps, then down to 0


backbone = ViTForImageClassification(
    ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=2,
        num_channels=1, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
)  # fmt: skip
old = digits < 5
fit(lambda x, y, done: cross_entropy(backbone(x).logits, y), backbone.parameters(), images[old], digits[old], 3e-3)

# %% [markdown]
# ## Plain LoRA
#
# `get_peft_model` freezes the net and puts an adapter of rank 8 at each of its 12 linear layers. The head is new,
# and trained as well.


# %%
def adapted(rank=8, ranks=None):
    ranks = ranks or {}  # of single layers; the scale of an adapter, alpha / rank, is 2 everywhere
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, rank_pattern=ranks, alpha_pattern={name: 2 * r for name, r in ranks.items()},
        target_modules="all-linear", modules_to_save=["classifier"],
    )  # fmt: skip
    return peft.get_peft_model(copy.deepcopy(backbone), config)


def trained(net):
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


plain = adapted()
fit(lambda x, y, done: cross_entropy(plain(x).logits, y), trained(plain), x, y, 5e-3)

# %% [markdown]
# ## Random adapters
#
# `where` says which weights become random: those of the adapters. The first factor, A, gets multiplicative noise
# that all ranks share in their inputs (`correlated=True`). The second, B, gets `AutoGroupSparse` over its columns,
# `unit_dim=1`: a column of B is one rank, and each has a noise of its own. A rank whose noise is larger than its
# signal can go. `mixed_guide` puts the two guides together.

# %%
bnn = vd.BayesianModule(adapted(), vd.ImproperLogUniform(), where="*lora_[AB]*")


def model(x, y=None):
    logits = bnn(x).logits
    with vd.data_plate(100, len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


guide = mixed_guide(
    model,
    AutoVariationalDropout(model, correlated=True, init_log_alpha=-1.0, where="*lora_A*"),
    AutoGroupSparse(model, unit_dim=1, where="*lora_B*"),
)
elbo = vd.TraceVD_ELBO()
loss = elbo(model, guide)
loss(x, y)  # the first call makes the parameters of the guide


def warmed(x, y, done):
    elbo.kl_weight = min(1.0, 2 * done)  # the warm-up: the KL is at full weight after half of the steps
    return loss(x, y) / 100


fit(warmed, trained(loss), x, y, 5e-3)

# %% [markdown]
# ## Which ranks are kept
#
# `prune` gives the same net with plain adapters; the columns of B that are noise are 0.

# %%
pruned = vd.prune(bnn, guide)
layers = {name: layer for name, layer in pruned.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
kept = {name: layer.lora_B["default"].weight.detach().ne(0).any(0) for name, layer in layers.items()}
print(f"{sum(int(mask.sum()) for mask in kept.values())} of {sum(map(len, kept.values()))} ranks are kept")

figure, axes = plt.subplots(figsize=(7, 3.8))
names = [".".join(name.split(".")[-3:]) for name in kept]
axes.barh([f"{i + 1:>2} {name}" for i, name in enumerate(names)], [int(mask.sum()) for mask in kept.values()])
axes.invert_yaxis()
axes.set(
    title="Ranks that the adapters keep", xlabel="ranks kept, of 8", ylabel="linear layer, from the input", xlim=(0, 8)
)

# %% [markdown]
# ## How sure
#
# Error, log loss and calibration on the digits that nothing has seen. The log loss (NLL) judges the probabilities
# as a whole and is in nats per example; a guess among five has 1.61.
#
# In the pictures a bar is the share of right answers among those of about one probability, and the number over it
# counts them. Bars below the line belong to a net that is too sure.

# %%
forecast = vd.predictive_distribution(model, guide, x_test, num_samples=30)["y"]
with torch.no_grad():
    forecasts = {"plain LoRA": plain.eval()(x_test).logits.softmax(-1), "random adapters": forecast.probs}
figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for (name, probs), axes in zip(forecasts.items(), panels, strict=True):
    error, nll = 100 * (1 - vd.metrics.accuracy(probs, y_test)), vd.metrics.nll(probs, y_test)
    ece = 100 * vd.metrics.calibration_error(probs, y_test, bins=10)
    print(f"{name:<16} error {error:.1f} %, NLL {nll:.3f} nats, calibration error {ece:.1f} points")
    vd.plots.reliability_diagram(probs, y_test, bins=10, ax=axes).set_title(f"Calibration of {name}")

# %% [markdown]
# ## A smaller adapter
#
# `peft` knows adapters whose rank differs from layer to layer. We copy the ranks that are kept into such a one, and
# save it. It computes what the pruned net computes. A layer without any rank keeps one, of zeros, since `peft` has
# no rank 0.

# %%
places = {name.removeprefix("base_model.model."): mask.nonzero()[:, 0].tolist() or [0] for name, mask in kept.items()}
small = adapted(ranks={name: len(which) for name, which in places.items()}).eval()
values = pruned.state_dict()
for name, which in places.items():
    a, b = (f"base_model.model.{name}.lora_{factor}.default.weight" for factor in "AB")
    values[a], values[b] = values[a][which], values[b][:, which]
small.load_state_dict(values)
with torch.no_grad():
    difference = (small(x_test).logits - pruned.eval()(x_test).logits).abs().max()
print(f"largest difference of a logit {difference:.0e}")

sizes = {}
for name, net in (("rank 8", plain), ("the ranks kept", small)):
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        sizes[name] = (Path(folder) / "adapter_model.safetensors").stat().st_size
print(", ".join(f"{name}: {size:,} bytes" for name, size in sizes.items()))

# %% [markdown]
# ## What to remember
#
# - `where` makes a part of a net random. The rest stays numbers, trained or frozen.
# - `mixed_guide` gives each part of a net the guide that fits it.
# - The choice of the ranks is what random adapters bring. For predictions alone try LoRA with dropout first:
#   [Results](../results.md#low-rank-adapters) has both over several seeds, and dropout at a good rate does as well.
