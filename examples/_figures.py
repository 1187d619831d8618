"""The pictures that the examples draw, in the style of figures.mplstyle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

import pyro_vd as vd

plt.style.use(Path(__file__).with_name("figures.mplstyle"))
COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]


def training_curves(
    history: list[dict[str, float]], warm_up: tuple[float, float], threshold: float, path: Path
) -> None:
    """Loss terms per example, error and sparsity against the epoch; ``warm_up`` is where the KL's weight rises."""
    epochs = [row["epoch"] for row in history]
    pruned = f"pruned where log_alpha > {threshold:g}"
    panels = [
        ("Loss with the full KL, and the KL in it", "nats per example", ("negative ELBO", "KL"), "log"),
        (f"Error of the net {pruned}", "held-out error (%)", ("error",), "log"),
        (f"Weights {pruned}", "share of the weights (%)", ("sparsity",), "linear"),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for axis, (title, label, keys, scale) in zip(axes, panels, strict=True):
        axis.axvspan(*warm_up, color="gray", alpha=0.15, label="warm-up: weight of the KL 0 to 1")
        for key in keys:
            axis.plot(epochs, [row[key] for row in history], label=key if len(keys) > 1 else None)
        axis.set(title=title, xlabel="epoch", ylabel=label, yscale=scale)
        _plain_numbers(axis)
    axes[0].legend(loc="upper right")
    _save(figure, path)


def error_against_threshold(rows: list[tuple[float, float, float]], chosen: float, path: Path) -> None:
    """Held-out error, and below it the share of weights kept, against the pruning threshold on log_alpha."""
    thresholds, errors, kept = zip(*rows, strict=True)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6, 5.5), sharex=True)
    top.plot(thresholds, errors, marker=".")
    top.set(title="What a threshold costs", ylabel="held-out error (%)", yscale="log")
    bottom.plot(thresholds, kept, marker=".", color="C1")
    bottom.set(title="What it leaves", ylabel="weights kept (%)", yscale="log")
    bottom.set_xlabel("threshold: weights with log_alpha above it are set to 0")
    for axis in (top, bottom):
        _plain_numbers(axis)
        axis.axvline(chosen, color="gray", linestyle="--", label=f"the threshold used, {chosen:.3g}")
    top.legend()
    _save(figure, path)


def log_alpha_histogram(log_alpha: dict[str, np.ndarray], threshold: float, path: Path) -> None:
    """One histogram a layer; weights to the right of the threshold are pruned."""
    low, high = (f(np.concatenate([a.ravel() for a in log_alpha.values()])) for f in (np.min, np.max))
    bins = np.linspace(max(low, -12), min(high, 25), 80)
    figure, axes = plt.subplots(1, len(log_alpha), figsize=(4.2 * len(log_alpha), 3.8), sharey=True)
    for axis, (site, values) in zip(np.atleast_1d(axes), log_alpha.items(), strict=True):
        parts = [np.clip(values[keep], bins[0], bins[-1]) for keep in (values <= threshold, values > threshold)]
        axis.hist(parts, bins=bins, stacked=True, color=["C0", "C1"], label=["signal: kept", "noise: pruned"])
        axis.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
        axis.set(title=f"{site}: {parts[0].size:,} of {values.size:,} kept", yscale="log")
        axis.set_xlabel(f"log_alpha = log(variance / mean**2)\n(last bar: {bins[-1]:.0f} and above)")
    np.atleast_1d(axes)[0].set_ylabel("weights")
    np.atleast_1d(axes)[0].legend()
    _save(figure, path)


def kept_inputs(kept: np.ndarray, units: int, path: Path) -> None:
    """How many of its ``units`` weights into the first layer each pixel keeps; ``kept``: shape (height, width)."""
    figure, axis = plt.subplots(figsize=(5, 4.2))
    image = axis.imshow(kept)
    axis.grid(False)
    axis.set(title="Which pixels the pruned net looks at", xlabel="column of the image", ylabel="row of the image")
    axis.set(xticks=[0, kept.shape[1] - 1], yticks=[0, kept.shape[0] - 1])
    figure.colorbar(image, label=f"weights kept, of {units} of each pixel")
    _save(figure, path)


def variance_against_batch_size(sizes: list[int], curves: dict[str, list[float]], path: Path) -> None:
    """Variance of the minibatch gradient against the batch size, with the line of slope -1."""
    figure, axis = plt.subplots(figsize=(6, 4.5))
    for (name, values), marker in zip(curves.items(), "osv^", strict=True):
        axis.plot(sizes, values, marker=marker, label=name, alpha=0.8)
    highest = max(values[0] for values in curves.values())
    axis.plot(sizes, [1.5 * highest / m for m in sizes], color="gray", linestyle=":", label="1 / M")
    axis.set(title="Noise of the gradient by estimator", xscale="log", yscale="log")
    axis.set(xlabel="examples in the minibatch, M", ylabel="mean variance of the gradient")
    axis.legend()
    _save(figure, path)


def error_against_width(
    widths: list[int], means: dict[str, list[float]], bars: dict[str, list[float]] | None, path: Path
) -> None:
    """Test error of every family against the units of a hidden layer; ``bars``: standard errors, None for one seed."""
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for i, name in enumerate(means):
        shifted = [width * 1.015 ** (i - len(means) / 2) for width in widths]  # so that bars do not hide each other
        line: dict[str, Any] = {"color": "0.4", "linestyle": "--"} if i == len(COLOURS) else {"color": COLOURS[i]}
        bar = bars[name] if bars else None
        axis.errorbar(shifted, means[name], yerr=bar, marker="osv^D<>"[i], capsize=3, label=name, **line)
    what = "mean +- standard error" if bars else "one seed"
    axis.set(title=f"Test error of dropout families over the width: {what}", xscale="log", ylim=(0, None))
    axis.set(xlabel="units in each of 3 hidden layers", ylabel="test error (%)")
    axis.set_xticks(widths, labels=[str(width) for width in widths])
    axis.minorticks_off()
    axis.legend(ncols=2)
    _save(figure, path)


def time_against_size(curves: dict[str, dict[str, tuple[list[float], list[float]]]], path: Path) -> None:
    """A panel for each of ``{what varies: {program: (sizes, ms)}}``; floors dotted."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves) + 2.5, 4.5), sharey=True)
    names = list(dict.fromkeys(name for programs in curves.values() for name in programs))
    colors = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    for axis, (varied, programs) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        for name, (sizes, ms) in programs.items():
            style = (
                {"linestyle": ":", "color": "black" if name.endswith("LRT") else "gray"}
                if name.startswith("floor")
                else {"marker": "o", "color": colors[name]}
            )
            axis.plot(sizes, ms, markersize=4, label=name, **style)
        axis.set(title=f"Time over {varied}", xlabel=varied, xscale="log", yscale="log")
        _plain_numbers(axis)
        axis.yaxis.set_major_formatter("{x:g}")  # also below 1
        axis.yaxis.set_minor_formatter(NullFormatter())
    np.atleast_1d(axes)[0].set_ylabel("time of a training step (ms)")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    _save(figure, path)


def loss_of_backends(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Negative ELBO per example against the epoch, one thin line a seed, one colour a backend."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for (name, losses), (color, style) in zip(curves.items(), (("C0", "-"), ("C1", "--")), strict=True):
        for i, loss in enumerate(losses):
            axis.plot(range(1, len(loss) + 1), loss, style, color=color, linewidth=0.8, label=None if i else name)
    axis.set(title="The same training on both backends, a line a seed", yscale="log")
    axis.set(xlabel="epoch", ylabel="negative ELBO (nats per example)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain_numbers(axis)
    axis.legend()
    _save(figure, path)


def loss_over_steps(nats: list[float], title: str, path: Path) -> None:
    """Negative log-likelihood per example in every step."""
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(range(1, len(nats) + 1), nats)
    axis.set(title=title, xlabel="step", ylabel="negative log-likelihood (nats per example)", yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain_numbers(axis)
    _save(figure, path)


def error_against_bytes(runs: list[dict[str, list[tuple[int, float]]]], unpruned: dict[str, float], path: Path) -> None:
    """Test error against the size of the file: a thin line for each seed, their mean in bold, one colour a method.

    Dashed: the mean error of the unpruned net.
    """
    figure, axis = plt.subplots(figsize=(6, 4.5))
    for name, color, marker in (("sparse VD", "C0", "o"), ("magnitude", "C1", "s")):
        points = np.array([run[name] for run in runs], dtype=float)  # seeds, budgets, (bytes, error)
        points[..., 0] /= 1e3
        for one in points:
            axis.plot(one[:, 0], one[:, 1], color=color, linewidth=0.7, alpha=0.5)
        mean = points.mean(0)
        what = f"mean of {len(points)} seeds" if len(points) > 1 else "one seed"
        axis.plot(mean[:, 0], mean[:, 1], color=color, marker=marker, label=f"{name}, {what}")
        axis.axhline(unpruned[name], color=color, linestyle="--", linewidth=1, label=f"{name}, unpruned")
    sizes = np.array([point for run in runs for points in run.values() for point in points])[:, 0] / 1e3
    axis.set(title="Error of a pruned net against its size", xscale="log", yscale="log")
    axis.set(xlabel="size of the file (kB)", ylabel="test error (%)", xlim=(0.8 * sizes.min(), 1.25 * sizes.max()))
    _plain_numbers(axis)
    axis.legend()
    _save(figure, path)


def judged_classes(name: str, inside: Any, labels: Any, outside: dict[str, Any], path: Path) -> None:
    """Calibration of a prediction, its entropy here and elsewhere, and the risk of those that are kept."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.5))
    figure.suptitle(name)
    vd.plots.reliability_diagram(inside, labels, ax=axes[0])
    vd.plots.entropy_histogram({"test images": inside, **outside}, ax=axes[1])
    wrong = inside.probs.argmax(-1) != labels
    curves = {"entropy": inside.entropy(), "mutual information": inside.mutual_information()}
    kept = {of: vd.metrics.risk_coverage(wrong, doubt) for of, doubt in curves.items()}
    vd.plots.risk_coverage_curve(kept, ax=axes[2], loss="share wrong")
    _save(figure, path)


def regression_bands(predictions: dict[str, Any], x: Any, data: tuple, path: Path) -> None:
    """A panel for each method, three in a row."""
    rows = -(-len(predictions) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(11, 3.6 * rows), sharex=True, sharey=True, squeeze=False)
    for i, (axis, (name, prediction)) in enumerate(zip(axes.flat, predictions.items(), strict=False)):
        vd.plots.regression_band(x, prediction, data, ax=axis)
        axis.set(title=name, ylabel="" if i % 3 else "y", xlabel="x" if i // 3 == rows - 1 else "", ylim=(-4, 4))
        axis.get_legend().remove()
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(figure, path)


def cumulative_regret(regrets: dict[str, list[list[float]]], path: Path) -> None:
    """Cumulative regret against the round: the mean over seeds, and a band of one standard error."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for (policy, runs), style in zip(regrets.items(), ("-", "--", ":"), strict=True):
        sums = np.cumsum(np.array(runs), 1)
        mean = sums.mean(0)
        rounds = np.arange(1, len(mean) + 1)
        (line,) = axis.plot(rounds, mean, style, label=policy)
        if len(sums) > 1:  # one seed has no error
            error = sums.std(0, ddof=1) / np.sqrt(len(sums))
            axis.fill_between(rounds, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    seeds = len(next(iter(regrets.values())))
    what = f"mean and standard error of {seeds} seeds" if seeds > 1 else "one seed"
    axis.set(title=f"Regret: {what}", ylim=(0, None))
    axis.set(xlabel="round", ylabel="cumulative regret (units of reward)")
    axis.legend()
    _save(figure, path)


def posteriors_of_a_curve(
    draws: dict[str, np.ndarray], grid: np.ndarray, x: np.ndarray, y: np.ndarray, noise: float, path: Path
) -> None:
    """A panel for each of ``{name: draws of a function}``: its mean, a band of two deviations, one with the noise."""
    figure, axes = plt.subplots(1, len(draws), figsize=(3.4 * len(draws), 3.6), sharex=True, sharey=True)
    for axis, (name, f) in zip(np.atleast_1d(axes), draws.items(), strict=True):
        mean, deviation = f.mean(0), f.std(0)
        both = np.sqrt(deviation**2 + noise**2)
        axis.fill_between(grid, mean - 2 * both, mean + 2 * both, alpha=0.2, label="2 deviations of y", linewidth=0)
        axis.fill_between(grid, mean - 2 * deviation, mean + 2 * deviation, color="C0", alpha=0.5, linewidth=0,
                          label="2 deviations of the function")  # fmt: skip
        axis.plot(grid, mean, label="mean of the function")
        axis.plot(x, y, ".", color="black", markersize=4, label="data")
        axis.set(title=name, xlabel="x (input)")
    np.atleast_1d(axes)[0].set_ylabel("y (output)")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle("The posterior of a net 1-20-1, by NUTS and by variational families")
    _save(figure, path)


def _plain_numbers(axis: plt.Axes) -> None:
    """Write 60 at logarithmic axes, and not 6 times a power of ten."""
    for one in (axis.xaxis, axis.yaxis):
        if one.get_scale() == "log":
            one.set_major_formatter(LogFormatter())
            one.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
