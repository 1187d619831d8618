# %% [markdown]
# # The same on NumPyro
#
# Everything here has a twin on JAX: `pyro_vd.numpyro` has the names, arguments and defaults of `pyro_vd`. The
# net is one of flax or equinox, the model a NumPyro model. This tutorial trains a sparse net on digits and
# shows the few places where JAX asks for something else: a key for random numbers, and parameters that are
# passed along.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pyro_vd.numpyro as vd
from pyro_vd.guides.numpyro import AutoSparseVD

parts = train_test_split(*load_digits(return_X_y=True), test_size=360, random_state=0)
x, x_test, y, y_test = (jnp.asarray(part) for part in parts)
x, x_test = (x / 16).astype(jnp.float32), (x_test / 16).astype(jnp.float32)

# %% [markdown]
# ## Net, model, guide
#
# `BayesianModule` takes the net as it is. Its kernels become sample sites, its biases stay numbers.

# %%
net = linen.Sequential([linen.Dense(100), linen.relu, linen.Dense(10)])
bnn = vd.BayesianModule(net, prior=vd.ImproperLogUniform())


def model(x, y=None):
    logits = bnn(x)
    with vd.data_plate(1437, len(x)):
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)


guide = AutoSparseVD(model)

# %% [markdown]
# ## Training
#
# `SVI` is NumPyro's own. `jax.jit` compiles the update once; the weight of the KL is an argument of it, so that
# a warm-up does not compile it again.

# %%
svi = numpyro.infer.SVI(model, guide, optax.adam(5e-3), vd.TraceVD_ELBO())
state = svi.init(jax.random.key(0), x, y)
update = jax.jit(svi.update)
warm_up = vd.training.linear_warm_up(0, 300)
for step in range(600):
    state, loss = update(state, x, y, kl_weight=warm_up(step))
    if step % 200 == 199:
        print(f"step {step + 1}: loss {loss / 1437:.3f} nats an example")
params = svi.get_params(state)

# %% [markdown]
# The loop can be compiled as a whole, too: `linear_warm_up` takes a traced step, and one epoch of steps becomes
# one `lax.scan`. This is the NumPyro way to remove the time that Python takes between steps.


# %%
@jax.jit
def more(state, steps):
    def one(state, step):
        return svi.update(state, x, y, kl_weight=warm_up(step))

    return jax.lax.scan(one, state, steps)


state, losses = more(state, 600 + jnp.arange(200))
print(f"after 200 more steps in one program: loss {losses[-1] / 1437:.3f} nats an example")
params = svi.get_params(state)

# %% [markdown]
# ## What is left of the net

# %%
print(vd.sparsity_report(guide, params=params))
small = vd.prune(bnn, guide, params=params)  # a plain flax net, bound to its pruned weights
print(f"error after pruning {100 * jnp.mean(small(x_test).argmax(-1) != y_test):.2f} %")

# %% [markdown]
# ## A distribution over predictions
#
# The key and the parameters come first, as in NumPyro's own functions. The mutual information, in nats, is the
# part of the uncertainty that the weights leave open. Where it is high, the net is more often wrong.

# %%
forecast = vd.predictive_distribution(jax.random.key(1), params, model, guide, x_test, num_samples=100)["y"]
wrong = forecast.probs.argmax(-1) != y_test
information = forecast.mutual_information()
print(f"error {100 * wrong.mean():.2f} %, log probability {forecast.log_prob(y_test).mean():.3f} nats an example")
for name, which in (("right", ~wrong), ("wrong", wrong)):
    print(f"mutual information where {name}: {information[which].mean():.3f} nats")

quarters = jnp.array_split(information.argsort(), 4)
figure, axes = plt.subplots(figsize=(6, 3.6))
axes.bar(["surest", "second", "third", "most doubtful"], [100 * wrong[quarter].mean() for quarter in quarters])
axes.set(title="Where the draws disagree, the net is wrong more often", ylabel="error (%)")
axes.set(xlabel="quarter of the test digits, by mutual information")

# %% [markdown]
# ## What to remember
#
# - One import changes. Keys and parameters are passed along.
# - `kl_weight` is an argument of `svi.update`, so that one compiled program serves the whole warm-up.
# - [NumPyro](../numpyro.md) lists every difference, and how parameters travel between the two.
