"""Draws the pictures of README and of docs/concepts.md: python docs/draw.py, in about a minute."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import pyro_vd as vd
from pyro_vd.guides import AutoMeanField, AutoSparseVD

THRESHOLD = 3.0
IMAGES = Path(__file__).parent / "images"
plt.style.use(Path(__file__).parents[1] / "examples" / "figures.mplstyle")


def digits_curve(steps: int) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Rows (share of the weights kept, held-out error in %) of a pruned 64-300-100-10 net; the row of the threshold."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    parts = train_test_split(*load_digits(return_X_y=True), test_size=360, random_state=0)
    x, x_test, y, y_test = (torch.tensor(part) for part in parts)
    x, x_test = x.float() / 16, x_test.float() / 16
    net = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    bnn = vd.BayesianModule(net, prior=vd.ImproperLogUniform())

    def model(x, y=None):
        logits = bnn(x)
        with vd.data_plate(1437, len(x)):
            return pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    guide = AutoSparseVD(model)
    elbo = vd.TraceVD_ELBO(kl_weight=0.0)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 5e-3}), elbo)
    for step in range(steps):
        elbo.kl_weight = min(1.0, 2 * step / steps)
        svi.step(x, y)

    def row(net: nn.Module) -> tuple[float, float]:
        kept = sum(int(layer.weight.count_nonzero()) for layer in net if isinstance(layer, nn.Linear))
        return kept / weights, 100 * (net(x_test).argmax(-1) != y_test).float().mean().item()

    weights = sum(layer.weight.numel() for layer in net if isinstance(layer, nn.Linear))
    shares = torch.logspace(-3.7, 0, 40).tolist()
    with torch.no_grad():
        rows = [row(vd.prune(bnn, guide, sparsity=1 - share)) for share in shares]
        return rows, row(vd.prune(bnn, guide, THRESHOLD))


def regression_band(steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Data ``x, y``, a grid, and draws of the net on the grid, shape (draws, grid): docs/tutorials/regression.py."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()

    def observe(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([torch.rand(number // 2) * 1.2 - 1.5, torch.rand(number // 2) + 0.5])[:, None]
        return x, (torch.sin(3 * x) + 0.2 * torch.randn_like(x))[:, 0]

    (x, y), _ = observe(400), observe(400)  # the second are the held-out points of the tutorial
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    bnn = vd.BayesianModule(net, {"0.*": dist.Normal(0.0, 3.0), "2.*": dist.Normal(0.0, 0.5)}, where="*")

    def model(x, y=None):
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        mean = bnn(x)[:, 0]
        with vd.data_plate(400, len(x)):
            pyro.sample("y", dist.Normal(mean, noise), obs=y)

    guide = AutoMeanField(model)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.999})
    svi = pyro.infer.SVI(model, guide, optimizer, vd.TraceVD_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    grid = torch.linspace(-2.5, 2.5, 80)[:, None]
    return x[:, 0], y, grid[:, 0], vd.posterior_predictive(model, guide, grid, num_samples=1000)["y"]


def outputs_of_a_layer(estimator: str, steps: int) -> torch.Tensor:
    """Outputs of one random unit for two inputs that are alike, shape (steps, 2)."""
    torch.manual_seed(0)
    inputs = torch.tensor([[1.0, 0.5, -0.5, 1.0], [0.9, 0.6, -0.4, 1.1]])
    loc, log_sigma2 = torch.tensor([[1.0, -1.0, 0.5, 0.5]]), torch.full((1, 4), -1.5)

    def one() -> torch.Tensor:
        if estimator == "shared":
            weight = vd.DropoutNormal(loc, log_sigma2=log_sigma2).rsample()
        else:
            with vd.lrt():
                weight = pyro.sample("w", vd.DropoutNormal(loc, log_sigma2=log_sigma2).to_event(2))
        return nn.functional.linear(inputs, weight)[:, 0]

    return torch.stack([one() for _ in range(steps)])


def draw_local(path: Path, steps: int) -> None:
    """Two examples of a batch under one weight draw, and under local reparameterization."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.8), sharex=True, sharey=True)
    titles = {"shared": "One weight draw a step", "local": "Local reparameterization"}
    for axes, (estimator, title) in zip(panels, titles.items(), strict=True):
        outputs = outputs_of_a_layer(estimator, steps)
        axes.plot(*outputs.T, ".", markersize=4, alpha=0.7)
        correlation = outputs.T.corrcoef()[0, 1]
        axes.set(title=f"{title}: correlation {correlation:.2f}", xlabel="output for the first example", aspect="equal")
    panels[0].set_ylabel("output for the second")
    _save(figure, path)


def main(folder: Path = IMAGES, steps: tuple[int, int, int] = (800, 2000, 300)) -> None:
    draw_local(folder / "local.png", steps[2])
    rows, (kept, error) = digits_curve(steps[0])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    left.plot([100 * share for share, _ in rows], [e for _, e in rows], marker=".", label="pruned net")
    left.plot([100 * kept], [error], "o", label=f"threshold log_alpha = 3 keeps {100 * kept:.2f} %")
    left.set(
        title="Digits: few weights carry the net", xlabel="weights kept (%)", ylabel="held-out error (%)",
    )  # fmt: skip
    left.set(xscale="log", xlim=(0.02, 110))
    left.xaxis.set_major_formatter("{x:g}")
    left.legend()
    x, y, grid, draws = regression_band(steps[1])
    low, middle, high = draws.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    right.fill_between(grid, low, high, alpha=0.25, label="90 % of the predictions")
    right.plot(grid, middle, label="their median")
    right.plot(x, y, ".", color="black", markersize=4, label="data")
    right.set(title="Regression with its interval", xlabel="x", ylabel="y", ylim=(-2.3, 3.2))
    right.legend(loc="upper right")
    _save(figure, folder / "overview.png")


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
