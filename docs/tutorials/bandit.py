# %% [markdown]
# # A bandit: choose under uncertainty, and learn from what comes
#
# A shop chooses one of eight offers each day and shows it to twenty customers. It sees how these customers answer
# to this offer, and never learns how they would have answered to the others. It has to *explore*, to learn which
# offers are good, and to *exploit* what it knows. This is a contextual bandit: the offers are its arms, the
# customers its contexts.
#
# *Thompson sampling* settles the conflict with one idea: draw a net from the posterior, and do what would be best
# if that net were right. An arm about which the posterior is unsure looks good in some draws, so it is tried. When
# the posterior has become narrow, the draws agree, and the best arm is chosen.
#
# ## The bandit
#
# The mean reward of an arm is a level of its own plus a part that depends on the context. A reward has noise with a
# standard deviation of 0.5.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField

ARMS, FEATURES, GROUP, NOISE = 8, 5, 20, 0.5


class Bandit:
    def __init__(self, seed):
        self.random = torch.Generator().manual_seed(seed)
        self.levels = 0.3 * torch.randn(ARMS, generator=self.random)
        self.directions = torch.randn(FEATURES, ARMS, generator=self.random) / FEATURES**0.5

    def contexts(self):
        return torch.randn(GROUP, FEATURES, generator=self.random)

    def means(self, x):  # shape (contexts, arms)
        return self.levels + 0.5 * torch.tanh(x @ self.directions)

    def rewards(self, x, arm):
        return self.means(x)[:, arm] + NOISE * torch.randn(len(x), generator=self.random)


# %% [markdown]
# ## The model
#
# The net has one output for each arm. All of its parameters are random, biases too: an arm that was never tried is
# unknown at every context alike, and that is the part of a bias. Only the arm that was chosen is observed, so the
# likelihood looks at one output of each example. The model returns the rewards of all arms.
#
# The guide gives each parameter a mean and a variance. It starts with standard deviations of 0.2, so that the first
# draws differ. `TraceVD_ELBO()(model, guide)` is the loss as a torch module, which any torch optimizer trains.


# %%
def make_agent():
    net = nn.Sequential(nn.Linear(FEATURES, 24), nn.Tanh(), nn.Linear(24, ARMS))
    priors = {"0.*": dist.Normal(0.0, FEATURES**-0.5), "2.weight": dist.Normal(0.0, 24**-0.5)}
    bnn = vd.BayesianModule(net, priors | {"2.bias": dist.Normal(0.0, 0.5)}, where="*")

    def model(x, arm=None, reward=None):
        rewards = bnn(x)
        if arm is not None:
            chosen = rewards.gather(1, arm[:, None])[:, 0]
            with vd.data_plate(len(x), len(x)):
                pyro.sample("reward", dist.Normal(chosen, NOISE), obs=reward)
        return rewards

    return model, AutoMeanField(model, init_log_sigma2=-3.0)


# %% [markdown]
# ## Three policies
#
# A *draw* is a net with weights from the posterior: `posterior_predictive` with `num_samples=1`. There are two kinds.
#
# - `mode="weights"`: one draw of the weights for all twenty customers. It is one function, and where it is wrong
#   about an arm, it is wrong for the whole group. This is Thompson sampling.
# - `mode="local"`: noise of its own for each customer, as in training. The mean over the group takes most of it
#   away, so such draws explore less.
#
# Beside them stands the usual simple policy, *epsilon-greedy*: the best arm of the mean net, and in one round of
# ten any arm.


# %%
def choose(policy, model, guide, x):
    if policy == "epsilon-greedy" and torch.rand(()) < 0.1:
        return int(torch.randint(ARMS, ()))
    mode = {"coherent draws": "weights", "local draws": "local", "epsilon-greedy": "mean"}[policy]
    drawn = vd.posterior_predictive(model, guide, x, num_samples=1, mode=mode, return_sites="_RETURN")
    return int(drawn["_RETURN"][0].mean(0).argmax())  # the arm with the highest mean over the group


# %% [markdown]
# ## The game
#
# In each round the agent chooses, sees twenty rewards, and trains for ten steps on all it has seen. The *regret* of a
# round is what it lost: the mean reward of the best arm for this group less that of the chosen one. It is known here
# because we wrote the bandit.


# %%
def play(policy, seed):
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    bandit, (model, guide) = Bandit(seed), make_agent()
    loss = vd.TraceVD_ELBO(estimator="local")(model, guide)
    optimizer, seen, arms, regrets = None, [], [], []
    for _ in range(100):
        x = bandit.contexts()
        arm = choose(policy, model, guide, x) if seen else int(torch.randint(ARMS, ()))
        means = bandit.means(x).mean(0)
        arms.append(arm)
        regrets.append((means.max() - means[arm]).item())
        seen.append((x, torch.full((GROUP,), arm), bandit.rewards(x, arm)))
        data = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        loss(*data)  # the first call makes the parameters
        optimizer = optimizer or torch.optim.Adam(loss.parameters(), lr=0.02)
        for _ in range(10):
            optimizer.zero_grad()
            loss(*data).backward()
            optimizer.step()
    return arms, regrets


policies = ("coherent draws", "local draws", "epsilon-greedy")
games = {policy: [play(policy, seed) for seed in (0, 1, 2)] for policy in policies}
print("regret in units of reward; three bandits")
for policy, played in games.items():
    sums = torch.tensor([regrets for _, regrets in played])
    each = ", ".join(f"{one:5.2f}" for one in sums.sum(1))
    tried = ", ".join(str(len(set(arms))) for arms, _ in played)
    print(f"{policy:<15} all rounds {each}; last 25 {sums[:, -25:].sum(1).mean():.2f}; arms tried {tried}")

# %% [markdown]
# ## What happened
#
# A curve that becomes flat has found the best arm. One that keeps its slope pays in every round: it is stuck with an
# arm that is not the best, or it takes any arm from time to time, for ever. Coherent draws try every arm for the
# group as a whole, which costs most at first. Local draws explore less, and here that is enough.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
for (policy, played), style in zip(games.items(), ("-", "--", ":"), strict=True):
    sums = torch.tensor([regrets for _, regrets in played]).cumsum(1)
    for one in sums:
        left.plot(range(1, len(one) + 1), one, style, color=f"C{policies.index(policy)}", linewidth=0.7, alpha=0.6)
    left.plot(range(1, sums.shape[1] + 1), sums.mean(0), style, color=f"C{policies.index(policy)}", label=policy)
left.set(title="Regret: mean of three bandits, and each", xlabel="round", ylabel="cumulative regret (units of reward)")
left.legend()
right.axhline(Bandit(0).levels.argmax(), color="gray", alpha=0.3, linewidth=14, label="best arm on average")
for shift, (policy, played) in zip((0.2, 0.0, -0.2), games.items(), strict=True):
    arms = torch.tensor(played[0][0]) + shift  # moved a little, so that they do not hide each other
    right.plot(range(1, len(arms) + 1), arms, ".", color=f"C{policies.index(policy)}", markersize=4, label=policy)
right.set(title="The arm chosen in each round, first bandit", xlabel="round", ylabel="arm")
right.set(yticks=range(ARMS), ylim=(-0.6, ARMS + 1.6))
right.legend(loc="upper center", ncols=2)

# %% [markdown]
# ## What to remember
#
# - `mode="weights"` draws a function: its outputs for several inputs belong together. Thompson sampling is defined
#   with such draws.
# - `mode="local"` has the right mean and variance for each single output, and leaves out how outputs of one draw
#   belong together. So it explores less where a choice is for many inputs at once.
# - A likelihood may use a part of the outputs, and a model may return more than it observes.
# - Three games are too few to say which policy is better. [Results](../results.md#a-bandit) has ten of another
#   bandit, with standard errors; local draws have the smallest regret there, too, and vary most.
