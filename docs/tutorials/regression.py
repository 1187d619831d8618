# %% [markdown]
# # Regression with intervals
#
# A net for regression gives one number. What you often need is a range: "between 1.2 and 1.8, with 90 %
# probability", and a wider one where there were no data. This tutorial gets it from an ordinary net in five
# steps.
#
# ## The data
#
# Points of a curve with noise, in two groups. Between the groups and outside of them there is nothing to learn
# from. The last block of points is held out: it is there to check the intervals.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

pyro.set_rng_seed(0)


def observe(number):
    x = torch.cat([torch.rand(number // 2) * 1.2 - 1.5, torch.rand(number // 2) + 0.5])[:, None]
    return x, (torch.sin(3 * x) + 0.2 * torch.randn_like(x))[:, 0]


x, y = observe(400)
x_test, y_test = observe(400)

# %% [markdown]
# ## The model
#
# `BayesianModule` makes the weights of the net random; with `where="*"` its biases, too. The priors say what
# curves we expect: weights of the first layer with a standard deviation of 3 let it bend quickly, those of the
# last layer keep it of size 1 or so. We do not know how noisy the points are, so the standard deviation of the
# noise is a sample site as well. `data_plate` holds the number of points, which the loss needs when it gets
# batches.

# %%
net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
priors = {"0.*": dist.Normal(0.0, 3.0), "2.*": dist.Normal(0.0, 0.5)}
bnn = vd.BayesianModule(net, priors, where="*")


def model(x, y=None):
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    mean = bnn(x)[:, 0]
    with vd.data_plate(400, len(x)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


# %% [markdown]
# ## The training
#
# The guide `AutoMeanField` has a mean and a variance for each weight. `TraceVD_ELBO` is the loss: the negative
# evidence lower bound, in nats. It samples the outputs of the layers rather than the weights, which makes its
# gradient less noisy.

# %%
guide = AutoMeanField(model)
optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.999})  # the rate falls to a seventh
svi = pyro.infer.SVI(model, guide, optimizer, vd.TraceVD_ELBO())
losses = [svi.step(x, y) for step in range(2000)]
print(f"loss {losses[0]:.0f} at first, {sum(losses[-100:]) / len(losses[-100:]):.0f} nats at last")

# %% [markdown]
# ## The prediction
#
# `predictive_distribution` draws 200 sets of weights and gives the mixture of their predictions. It is a
# distribution: it has a mean, intervals and a log density. Its variance has two parts. The *aleatoric* part is
# the noise of the points, which no further data take away. The *epistemic* part is what the weights leave open;
# it grows where there are no data.

# %%
grid = torch.linspace(-2.5, 2.5, 100)[:, None]
forecast = vd.predictive_distribution(model, guide, grid, num_samples=200)["y"]
low, high = forecast.interval(0.9)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
left.fill_between(grid[:, 0], low, high, alpha=0.25, label="90 % interval")
left.plot(grid[:, 0], forecast.mean, label="mean")
left.plot(x[:, 0], y, ".", color="black", markersize=4, label="data")
left.set(title="A regression with its interval", xlabel="x", ylabel="y", ylim=(-3, 3))
left.legend(loc="lower right")
right.plot(grid[:, 0], forecast.aleatoric_variance.sqrt(), label="aleatoric: noise of the points")
right.plot(grid[:, 0], forecast.epistemic_variance.sqrt(), label="epistemic: what the weights leave open")
right.set(title="Where the uncertainty comes from", xlabel="x", ylabel="standard deviation of y", ylim=(0, None))
right.legend()

# %% [markdown]
# ## The check
#
# An interval is honest if it holds as many new points as it says. The log density of new points says how good
# the whole distribution is: higher is better, and it does not matter how the model got there. It is the number
# to compare models by.

# %%
forecast = vd.predictive_distribution(model, guide, x_test, num_samples=200)["y"]
for probability in (0.5, 0.9, 0.99):
    low, high = forecast.interval(probability)
    inside = ((low <= y_test) & (y_test <= high)).float().mean()
    print(f"{probability:.0%} interval: {inside:.1%} of the new points")
print(f"log density {forecast.log_prob(y_test).mean():.3f} nats a point")
noise = vd.posterior_predictive(model, guide, x_test, num_samples=200, return_sites=("noise",))["noise"]
print(f"noise {noise.mean():.3f} +- {noise.std():.3f}, true 0.2")

# %% [markdown]
# ## Where not to trust it
#
# In the gap the epistemic part is larger, as it should be. Far to the left and right it is small again, and
# wrong: out there every tanh is at its end, so the net can only say a constant, and all draws of its weights
# agree on that. An interval is as good as the model is. `AutoMeanField` also leaves out the correlation of
# weights; `AutoLowRank` has some of it.

# %% [markdown]
# ## What to remember
#
# - A likelihood says what noise there is. If you do not know its size, make it a sample site.
# - `interval` and `log_prob` belong to the distribution of a prediction; check both on data that were held out.
# - Look at the epistemic part where you have no data: it shows what the model believes there.
# - Guide, prior and estimator are [chosen apart](../families.md).
