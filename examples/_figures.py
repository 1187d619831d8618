"""The pictures that the examples draw."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def training_curves(history: list[dict[str, float]], path: Path) -> None:
    """Loss terms per example, sparsity and held-out error against the epoch."""
    epochs = [row["epoch"] for row in history]
    panels = [
        ("nats per example", ("negative ELBO", "KL"), "log"),
        ("held-out error (%)", ("error",), "log"),
        ("sparsity (%)", ("sparsity",), "linear"),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for axis, (label, keys, scale) in zip(axes, panels, strict=True):
        for key in keys:
            axis.plot(epochs, [row[key] for row in history], label=key)
        axis.set(xlabel="epoch", ylabel=label, yscale=scale)
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend()
    _save(figure, path)


def error_against_threshold(rows: list[tuple[float, float, float]], chosen: float, path: Path) -> None:
    """Held-out error and share of weights kept against the pruning threshold on log_alpha."""
    thresholds, errors, kept = zip(*rows, strict=True)
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    lines = axis.plot(thresholds, errors, marker=".", label="held-out error")
    axis.set(xlabel="log_alpha threshold", ylabel="held-out error (%)", yscale="log")
    axis.grid(alpha=0.3)
    right = axis.twinx()
    lines += right.plot(thresholds, kept, marker=".", color="tab:orange", label="weights kept")
    right.set(ylabel="weights kept (%)", yscale="log")
    lines.append(axis.axvline(chosen, color="gray", linestyle="--", label=f"threshold {chosen:g}"))
    right.legend(handles=lines, loc="center right")
    _save(figure, path)


def log_alpha_histogram(log_alpha: dict[str, np.ndarray], threshold: float, path: Path) -> None:
    """One histogram a layer; weights to the right of the line are pruned."""
    low, high = (f(np.concatenate([a.ravel() for a in log_alpha.values()])) for f in (np.min, np.max))
    bins = np.linspace(max(low, -12), min(high, 25), 80)
    figure, axes = plt.subplots(1, len(log_alpha), figsize=(4 * len(log_alpha), 3.5), layout="constrained")
    for axis, (site, values) in zip(np.atleast_1d(axes), log_alpha.items(), strict=True):
        axis.hist(np.clip(values.ravel(), bins[0], bins[-1]), bins=bins)
        axis.axvline(threshold, color="gray", linestyle="--")
        axis.set(title=site, xlabel=f"log_alpha (last bar: {bins[-1]:.0f} and above)", ylabel="weights", yscale="log")
    _save(figure, path)


def kept_inputs(kept: np.ndarray, path: Path) -> None:
    """How many weights of the first layer each pixel keeps; ``kept`` has shape (height, width)."""
    figure, axis = plt.subplots(figsize=(4.5, 4), layout="constrained")
    image = axis.imshow(kept, cmap="viridis")
    axis.set(title="weights kept per input pixel", xticks=[], yticks=[])
    figure.colorbar(image)
    _save(figure, path)


def variance_against_batch_size(sizes: list[int], curves: dict[str, list[float]], path: Path) -> None:
    """Variance of the minibatch gradient against the batch size, with the line of slope -1."""
    figure, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for (name, values), marker in zip(curves.items(), "osv^", strict=True):
        axis.plot(sizes, values, marker=marker, label=name, alpha=0.8)
    highest = max(values[0] for values in curves.values())
    axis.plot(sizes, [1.5 * highest / m for m in sizes], color="gray", linestyle=":", label="1 / M")
    axis.set(xlabel="examples in the minibatch, M", ylabel="mean variance of the gradient", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


def error_against_width(
    widths: list[int], means: dict[str, list[float]], bars: dict[str, list[float]], path: Path
) -> None:
    """Test error of every family against the units of a hidden layer, one standard error up and down."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, name in enumerate(means):
        shifted = [width * 1.015 ** (i - len(means) / 2) for width in widths]  # so that bars do not hide each other
        axis.errorbar(shifted, means[name], yerr=bars[name], marker="o", markersize=4, capsize=3, label=name)
    axis.set(xlabel="units in each of 3 hidden layers", ylabel="test error (%)", xscale="log", ylim=(0, None))
    axis.set_xticks(widths, labels=[str(width) for width in widths])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(ncols=2)
    _save(figure, path)


def time_against_size(curves: dict[str, dict[str, tuple[list[float], list[float]]]], path: Path) -> None:
    """A panel for each of ``{what varies: {program: (sizes, ms)}}``; floors dotted."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves) + 2.5, 4.5), layout="constrained", sharey=True)
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
        axis.set(xlabel=varied, xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    np.atleast_1d(axes)[0].set_ylabel("time of a training step (ms)")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    _save(figure, path)


def loss_of_backends(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Negative ELBO per example against the epoch, one thin line a seed, one colour a backend."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, losses), (color, style) in zip(curves.items(), (("tab:blue", "-"), ("tab:orange", "--")), strict=True):
        for i, loss in enumerate(losses):
            axis.plot(range(1, len(loss) + 1), loss, style, color=color, linewidth=0.8, label=None if i else name)
    axis.set(xlabel="epoch", ylabel="negative ELBO (nats per example)", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


def error_against_bytes(runs: list[dict[str, list[tuple[int, float]]]], path: Path) -> None:
    """Test error against the size of the file: a thin line for each seed, their mean in bold, one colour a method."""
    figure, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for name, color, marker in (("sparse VD", "tab:blue", "o"), ("magnitude", "tab:orange", "s")):
        points = np.array([run[name] for run in runs], dtype=float)  # seeds, budgets, (bytes, error)
        for one in points:
            axis.plot(one[:, 0], one[:, 1], color=color, linewidth=0.7, alpha=0.5)
        mean = points.mean(0)
        axis.plot(mean[:, 0], mean[:, 1], color=color, marker=marker, label=f"{name}, mean of {len(points)} seeds")
    axis.set(xlabel="bytes of the file", ylabel="test error (%)", xscale="log", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
