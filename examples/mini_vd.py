"""Sparse variational dropout in plain Pyro, without pyro_vd: the design of the library in one file.

    python examples/mini_vd.py       # about ten seconds

A net of two layers learns y = sin(2 * x[3]) + tanh(2 * x[7] - 2 * x[11]) from 20 inputs. Every weight is Gaussian,
w = loc + exp(0.5 * log_sigma2) * e, under the log-uniform prior p(w) ~ 1 / |w|. Three ideas:

1. The KL of a weight depends on log_alpha = log_sigma2 - 2 * log |loc| alone; it enters the loss once, unscaled.
2. No weight is drawn. The output of a linear layer is Gaussian, so its noise is drawn instead, one number for each
   output element: the local reparameterization trick.
3. A weight whose log_alpha has grown past 3 is noise. It is set to zero, and the error hardly changes.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import ClippedAdam

K1, K2, K3 = 0.63576, 1.87320, 1.48695  # arXiv:1701.05369, equation 14
LAYERS = ("hidden", "output")
INPUTS, HIDDEN = 20, 20
NOISE_SCALE, THRESHOLD = 0.3, 3.0


def make_data(size):
    x = torch.randn(size, INPUTS)
    clean = torch.sin(2 * x[:, 3]) + torch.tanh(2 * x[:, 7] - 2 * x[:, 11])
    return x, clean + NOISE_SCALE * torch.randn(size)


def initial_parameters():
    parameters = {}
    for layer, fan_in, fan_out in ((LAYERS[0], INPUTS, HIDDEN), (LAYERS[1], HIDDEN, 1)):
        parameters[f"{layer}.loc"] = 0.2 * torch.randn(fan_out, fan_in) / fan_in**0.5
        parameters[f"{layer}.log_sigma2"] = torch.full((fan_out, fan_in), -3.0)
        parameters[f"{layer}.bias"] = torch.zeros(fan_out)
    return parameters


def log_alpha(layer):
    return pyro.param(f"{layer}.log_sigma2") - 2 * pyro.param(f"{layer}.loc").abs().log()


def kl_log_uniform(log_alpha):
    """KL(q(w) || log-uniform) of each weight in nats, up to 0.0094."""
    return K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha) + 0.5 * torch.log1p(torch.exp(-log_alpha))


def linear(layer, x):
    """The output of a layer with Gaussian weights, its mean and variance in closed form."""
    mean = x @ pyro.param(f"{layer}.loc").T + pyro.param(f"{layer}.bias")
    variance = x.square() @ pyro.param(f"{layer}.log_sigma2").exp().T
    noise = pyro.sample(f"{layer}.noise", dist.Normal(torch.zeros_like(mean), 1).to_event(2))
    return mean + variance.sqrt() * noise


def model(x, y, dataset_size, kl_weight=1.0):
    kl = sum((kl_log_uniform(log_alpha(layer)).sum() for layer in LAYERS), torch.tensor(0.0))
    pyro.factor("kl", -kl_weight * kl)  # outside the plate: a minibatch does not scale it
    prediction = linear(LAYERS[1], torch.tanh(linear(LAYERS[0], x))).squeeze(-1)
    with pyro.plate("data", dataset_size, subsample=torch.arange(len(x))):
        pyro.sample("y", dist.Normal(prediction, NOISE_SCALE), obs=y)


def guide(x, y, dataset_size, kl_weight=1.0):
    """No weight is left to sample, only the noise, whose distribution is the same in model and guide."""
    for layer in LAYERS:
        shape = len(x), len(pyro.param(f"{layer}.loc"))
        pyro.sample(f"{layer}.noise", dist.Normal(torch.zeros(shape, dtype=x.dtype), 1).to_event(2))


def loss(parameters, *args):
    """Negative ELBO in nats at the given parameters, a tensor to differentiate."""
    with poutine.substitute(data=parameters):
        return TraceMeanField_ELBO().differentiable_loss(model, guide, *args)


def root_mean_square_error(x, y, threshold):
    """Of the net of means, weights with log_alpha over the threshold set to zero."""
    with torch.no_grad():
        for layer in LAYERS:
            weight = pyro.param(f"{layer}.loc") * (log_alpha(layer) <= threshold)
            x = x @ weight.T + pyro.param(f"{layer}.bias")
            x = torch.tanh(x) if layer == LAYERS[0] else x.squeeze(-1)
        return (x - y).square().mean().sqrt().item()


def main(steps, seed=0):
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    (x, y), (x_test, y_test) = make_data(1000), make_data(1000)
    for name, value in initial_parameters().items():
        pyro.param(name, value)

    def settings(name):  # the learning rate falls to a hundredth
        return {"lr": 0.3 if "sigma2" in name else 0.03, "lrd": 0.01 ** (1 / steps), "clip_norm": torch.inf}

    svi = SVI(model, guide, ClippedAdam(settings), TraceMeanField_ELBO())  # type: ignore
    for step in range(steps):
        batch = torch.randint(len(x), (100,))
        value = svi.step(x[batch], y[batch], len(x), min(1.0, 10 * step / steps))
        if step % max(1, steps // 10) == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {value / len(x):8.3f} nats per example")  # type: ignore
    hidden, output = kept = [pyro.param(f"{layer}.loc").detach() * (log_alpha(layer) <= THRESHOLD) for layer in LAYERS]
    for layer, weights in zip(LAYERS, kept, strict=True):
        print(f"{layer} layer: {int(weights.count_nonzero())} of {weights.numel()} weights kept")
    print("sum of |path| from each input to the output:")
    print("  " + " ".join(f"{i}:{path:.2f}" for i, path in enumerate((output.abs() @ hidden.abs()).flatten().tolist())))
    for label, threshold in (("all weights", torch.inf), ("pruned", THRESHOLD)):
        print(f"held-out error, {label}: {root_mean_square_error(x_test, y_test, threshold):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    main(parser.parse_args().steps)
