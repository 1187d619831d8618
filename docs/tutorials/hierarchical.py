# %% [markdown]
# # A hierarchical model with a net inside
#
# Measurements often come in groups: patients of several clinics, sensors of several machines. What they share
# may be a curve that nobody can write down, so it is a net. What differs is an offset for each group, and there
# are few points in some groups. A hierarchical model learns all of it at once, and each group borrows strength
# from the others.
#
# In Pyro this is a model like any other: the net is one random part of it among several.
#
# ## The data
#
# Eight groups with 3 to 40 points each. The curve is the same for all; offsets are spread with a standard
# deviation of 0.7.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

pyro.set_rng_seed(0)
sizes = torch.tensor([3, 3, 5, 8, 12, 20, 30, 40])
true_offsets = 0.7 * torch.randn(8)
group = torch.arange(8).repeat_interleave(sizes)
x = 4 * torch.rand(len(group), 1) - 2
y = torch.sin(2 * x[:, 0]) + true_offsets[group] + 0.2 * torch.randn(len(group))

# %% [markdown]
# ## The model
#
# Read it from the top: how far offsets spread, the offset of each group, the noise of a point, the curve, the
# points. Only the last line is inside `data_plate`, since only points are scaled when a batch stands for all of
# them. The net is called outside of it, because all points share its weights. There are nine offsets for eight
# groups: the ninth is that of a group that we have not seen yet.

# %%
net = torch.nn.Sequential(torch.nn.Linear(1, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1))
bnn = vd.BayesianModule(net, prior=dist.Normal(0.0, 1.0))


def model(x, group, y=None):
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("groups", 9, dim=-2):
        offsets = pyro.sample("offsets", dist.Normal(0.0, spread))  # shape (9, 1)
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    curve = bnn(x)[:, 0]
    with vd.data_plate(121, len(x)):
        pyro.sample("y", dist.Normal(curve + offsets[group, 0], noise), obs=y)


# %% [markdown]
# ## The guide and the training
#
# `AutoMeanField` gives the weights of the net a mean and a variance each. The other sites, `spread`, `offsets`
# and `noise`, get a normal distribution too, on the scale on which they are free: the log for those that are
# positive.

# %%
guide = AutoMeanField(model)
optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.999})
svi = pyro.infer.SVI(model, guide, optimizer, vd.TraceVD_ELBO(num_particles=2))
for step in range(2000):
    loss = svi.step(x, group, y)
    if step % 500 == 499:
        print(f"step {step + 1:4}: loss {loss:.1f} nats")

# %% [markdown]
# ## The offsets
#
# `posterior_predictive` returns draws of any site. A group with three points has a wide interval, and its
# offset is drawn towards the others; one with forty is known well.
#
# The curve and the mean of the offsets can trade against each other: only their sum is seen in the data. So we
# look at the differences to the mean of all groups.

# %%
sites = ("offsets", "spread", "noise")
draws = vd.posterior_predictive(model, guide, x, group, num_samples=500, return_sites=sites)
offsets = draws["offsets"].reshape(500, 9)[:, :8]
offsets = offsets - offsets.mean(1, keepdim=True)
centred = true_offsets - true_offsets.mean()
middle, deviation = offsets.mean(0), offsets.std(0)
means = torch.stack([y[group == g].mean() for g in range(8)])  # what one would take without a model

print("group  points    true   estimate        mean of its points")
for g in range(8):
    line = f"{g:5}  {sizes[g]:6}  {centred[g]:6.2f}  {middle[g]:6.2f} +- {deviation[g]:.2f}"
    print(f"{line}  {means[g] - means.mean():12.2f}")
print(f"spread {draws['spread'].mean():.2f} +- {draws['spread'].std():.2f}, true 0.7")
print(f"noise  {draws['noise'].mean():.2f} +- {draws['noise'].std():.2f}, true 0.2")

# %% [markdown]
# The noise comes out 0.05 or 0.06 above the true 0.2, which is three of the deviations beside it. Both numbers
# are typical of mean field. Its weights vary independently, so the curve moves by 0.15 from draw to draw, and
# the noise has to explain that and the residuals of 0.20: `sqrt(0.20**2 + 0.15**2)` is 0.25. Its
# deviation of 0.02 is that with all other sites fixed: mean field is too sure where sites depend on each
# other.

# %% [markdown]
# ## Prediction for a group, and for a group that is new
#
# For a known group the offset is known as well as the data allow. A new group, number 8, may lie anywhere
# within the spread of the others: its interval is as wide as groups are different.

# %%
grid = torch.linspace(-2.5, 2.5, 60)[:, None]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
left.errorbar(range(8), middle, yerr=1.645 * deviation, fmt="o", capsize=3, label="estimate, 90 % interval")
left.plot(range(8), centred, "x", color="black", markersize=7, label="true")
left.set(title="Offsets of the groups", xlabel="group (points)", ylabel="offset to the mean of all")
left.set_xticks(range(8), labels=[f"{g}\n({n})" for g, n in enumerate(sizes.tolist())])
left.legend()
for number, name in ((7, "group 7, 40 points"), (8, "a new group")):
    forecast = vd.predictive_distribution(model, guide, grid, torch.full((60,), number), num_samples=200)["y"]
    low, high = forecast.interval(0.9)
    (line,) = right.plot(grid[:, 0], forecast.mean, label=name)
    right.fill_between(grid[:, 0], low, high, color=line.get_color(), alpha=0.2)
right.plot(x[group == 7, 0], y[group == 7], ".", color="black", label="data of group 7")
right.set(title="90 % intervals of a new point", xlabel="x", ylabel="y")
right.legend()

# %% [markdown]
# ## What to remember
#
# - The net is one part of a Pyro model. Other parts can be anything Pyro has.
# - Sites that are not weights get a normal posterior, and their own part of the loss, without a further line.
# - For a group without data the model uses what it knows of all groups, and its interval is wide.
