# %% [markdown]
# # Reading the posterior: uncertainty, calibration, inputs of another kind
#
# A classifier always answers. Whether the answer can be relied on is another question, and it has three parts:
#
# - *calibration*: of the answers given with a probability of 80 %, are 80 % right?
# - *selection*: can it tell on which inputs it is likely to be wrong?
# - *inputs of another kind*: does it notice an input that is like nothing it has seen?
#
# We ask all three of an ordinary net and of the same net with random weights.
#
# ## The data
#
# Digits from 0 to 7, few of them, and with noise on the images, so that there is something to be unsure about.
# Eights and nines are kept away from the training: they are the inputs of another kind.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

pyro.set_rng_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16 + 0.3 * torch.randn(1797, 64)
known, unknown = images[labels < 8], images[labels >= 8]
targets = labels[labels < 8]
order = torch.randperm(len(known))
train, test = order[:300], order[300:]
x, y, x_test, y_test = known[train], targets[train], known[test], targets[test]
print(f"{len(x)} digits to learn from, {len(x_test)} to test with, {len(unknown)} of another kind")


def make_net():
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 8))


# %% [markdown]
# ## Two nets
#
# The ordinary one is trained by cross-entropy. The other has a normal prior on its weights, and `AutoMeanField`
# as its guide. The scale of the prior matters: with 0.2 instead of 1 this net is right as often, and far
# too unsure. Choose it by the log probability of held-out data, which comes next.

# %%
plain = make_net()
optimizer = torch.optim.Adam(plain.parameters(), lr=5e-3)
for _ in range(400):
    optimizer.zero_grad()
    nn.functional.cross_entropy(plain(x), y).backward()
    optimizer.step()

bnn = vd.BayesianModule(make_net(), prior=dist.Normal(0.0, 1.0))


def model(x, y=None):
    logits = bnn(x)
    with vd.data_plate(300, len(x)):
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


guide = AutoMeanField(model)
svi = pyro.infer.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.998}), vd.TraceVD_ELBO())
for _ in range(1000):
    svi.step(x, y)

# %% [markdown]
# ## Probabilities
#
# The prediction of the random net is the mean over draws of its weights. Its log probability of what came true,
# in nats per example, judges the probabilities themselves: higher is better, and -2.08 is a guess among eight.

# %%
forecast = vd.predictive_distribution(model, guide, x_test, num_samples=100)["y"]
with torch.no_grad():
    probs = {"ordinary": plain(x_test).softmax(-1), "random weights": forecast.probs}
for name, p in probs.items():
    right, confidence = (p.argmax(-1) == y_test).float().mean(), p.amax(-1).mean()
    log_probs = p.gather(-1, y_test[:, None]).log()
    print(f"{name:<15} {right:.1%} right, mean confidence {confidence:.1%}, {log_probs.mean():.3f} nats")

# %% [markdown]
# ## Calibration
#
# Answers are sorted into ten bins by their confidence, the probability of the class that is answered. In each
# bin the share of right answers should be the mean confidence: on the grey line. Below the line a net is too
# sure of itself. The *expected calibration error* is the mean distance to the line.


# %%
def calibration(p):
    confidence, answer = p.max(-1)
    right = (answer == y_test).float()
    which = (10 * confidence).long().clamp_max(9)
    bins = [which == number for number in which.unique()]
    points = [(confidence[b].mean().item(), right[b].mean().item()) for b in bins]
    error = sum(abs(c - r) * b.float().mean() for (c, r), b in zip(points, bins, strict=True))
    return points, error


figure, axes = plt.subplots(figsize=(5, 4.2))
axes.plot([0.2, 1], [0.2, 1], color="gray", linestyle="--", label="calibrated")
for (name, p), marker in zip(probs.items(), "os", strict=True):
    points, error = calibration(p)
    axes.plot(*zip(*points, strict=True), marker=marker, label=f"{name}, error {100 * error:.1f} points")
axes.set(title="Reliability: confidence and truth", xlabel="mean confidence of a bin", ylabel="share of right answers")
axes.legend()

# %% [markdown]
# ## Selection
#
# If the net may leave the most doubtful inputs to somebody else, how often is it right on the rest? We rank by
# the entropy of the prediction.

# %%
figure, axes = plt.subplots(figsize=(6, 3.8))
for name, p in probs.items():
    entropy = -torch.xlogy(p, p).sum(-1)
    right = (p.argmax(-1) == y_test)[entropy.argsort()].float()
    share = torch.arange(1, len(right) + 1) / len(right)
    errors = 100 * (1 - right.cumsum(0) / (share * len(right)))
    axes.plot(100 * share[50:], errors[50:], label=name)
    print(f"{name:<15} error {errors[-1]:.1f} % on all, {errors[len(right) * 8 // 10]:.1f} % on the surest 80 %")
axes.set(title="Error where the net may decline", xlabel="inputs answered (%)", ylabel="error on these (%)")
axes.legend()

# %% [markdown]
# ## Inputs of another kind
#
# Entropy has two parts. A smudged digit is hard for every draw of the weights: *aleatoric*,
# `expected_entropy()`. On an input of another kind the draws disagree: *epistemic*, `mutual_information()`. The
# area under the ROC curve says how often an eight or nine has a higher score than a known digit; 0.5 is chance.
# Noise on the images makes known digits doubtful, too, so no score tells all of them apart.


# %%
def area(score_known, score_unknown):
    return (score_unknown[:, None] > score_known).float().mean().item()


elsewhere = vd.predictive_distribution(model, guide, unknown, num_samples=100)["y"]
with torch.no_grad():
    p = plain(unknown).softmax(-1)
inside = -torch.xlogy(probs["ordinary"], probs["ordinary"]).sum(-1)
print(f"ordinary, entropy                  {area(inside, -torch.xlogy(p, p).sum(-1)):.3f}")
print(f"random weights, entropy            {area(forecast.entropy(), elsewhere.entropy()):.3f}")
print(f"random weights, expected entropy   {area(forecast.expected_entropy(), elsewhere.expected_entropy()):.3f}")
print(f"random weights, mutual information {area(forecast.mutual_information(), elsewhere.mutual_information()):.3f}")

figure, axes = plt.subplots(figsize=(6, 3.8))
scores = [forecast.mutual_information(), elsewhere.mutual_information()]
names = ["digits 0 to 7, held out", "eights and nines, never seen"]
axes.hist([s.numpy() for s in scores], 30, density=True, histtype="stepfilled", alpha=0.6, label=names)
axes.set(title="The draws disagree on what is new", xlabel="mutual information (nats)", ylabel="density")
axes.legend()

# %% [markdown]
# ## What to remember
#
# - Judge probabilities on held-out data by their log probability first; calibration is a part of it.
# - `entropy()` is `expected_entropy()` plus `mutual_information()`; the second is the part that more data would
#   reduce.
# - No score is certain to see inputs of another kind. Test it on such inputs of your own.
