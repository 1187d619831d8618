"""The pruned net: posterior means for weights, zero where the noise is too large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.weight_norm import WeightNorm

from pyro_vd.arguments import check_whole
from pyro_vd.common.options import check_flag, kind_of
from pyro_vd.held import copied, refresh_derived_weights
from pyro_vd.module import BayesianModule
from pyro_vd.sparsity.masks import DEFAULT_THRESHOLD, Posteriors, Sparsity, keep_masks, posteriors_of


def prune(
    bnn: BayesianModule,
    guide: Posteriors,
    log_alpha_threshold: float = DEFAULT_THRESHOLD,
    *,
    sparsity: Sparsity = None,
    masked: bool = False,
) -> nn.Module:
    """A plain copy of the net with posterior means for weights, zero where ``log_alpha > log_alpha_threshold``.

    Args:
        bnn: the module of the model that the guide was trained with. Names and shapes of weights are compared: a module
            that was made again fits them too, and has its own biases.
        guide: a guide of :mod:`pyro_vd.guides`, or the dict that :func:`weight_posteriors` returns.
        log_alpha_threshold: see :func:`keep_masks`; ``math.inf`` gives the mean network.
        sparsity: the share of the weights to prune in the place of a threshold; see :func:`keep_masks`.
        masked: hold the zeros by masks of ``torch.nn.utils.prune``, so that fine-tuning keeps them:
            ``torch.nn.utils.prune.remove(layer, "weight")`` makes a weight plain again, ``is_pruned``, ``state_dict``
            and optimizers know them, and a mask that the net had is kept as well. Tied weights stay tied. Use the net
            as a whole: projections of attention are masked where the net is called.

    Returns:
        A deep copy of ``bnn.net``: no Pyro, deterministic parameters and buffers as trained.

    Raises:
        ValueError: the guide has no posterior for a weight of ``bnn``, one of another shape, or a mean that is not
            finite; a weight norm of zeros alone; threshold or share as in :func:`keep_masks`.
        TypeError: ``bnn`` is no BayesianModule.

    Example:
        >>> from pyro_vd.posteriors import DropoutNormal
        >>> from pyro_vd.priors import ImproperLogUniform
        >>> bnn = BayesianModule(nn.Linear(3, 1), ImproperLogUniform())
        >>> q = DropoutNormal(torch.tensor([[2.0, 0.1, 1.0]]), log_sigma2=0.0)
        >>> net = prune(bnn, {"net.weight": q}, masked=True)
        >>> net.weight, torch_prune.is_pruned(net)
        (tensor([[2., 0., 1.]]), True)

    See also:
        :func:`pyro_vd.keep_masks`, :func:`pyro_vd.threshold_curve`, :func:`pyro_vd.shrink`,
        :func:`pyro_vd.sparsity_report`.
    """
    if not isinstance(bnn, BayesianModule):
        raise TypeError(
            f"prune: expected bnn to be the BayesianModule of the model, got {kind_of(bnn)}; write prune(bnn, guide)"
        )
    check_flag("masked", masked)
    posteriors = posteriors_of(guide)
    masks = keep_masks(posteriors, log_alpha_threshold, sparsity)
    check_whole("prune", bnn.net.named_parameters())
    net = copied(bnn.net)
    parameters = dict(net.named_parameters())
    for name in bnn.weight_names:
        site = bnn.site(name)
        if site not in posteriors:
            raise ValueError(
                f"prune: expected a guide with a weight at site {site!r}, got one with {list(posteriors)}; "
                "pass the guide that was trained with this module"
            )
        mean = posteriors[site].mean.detach()
        if mean.shape != parameters[name].shape:
            raise ValueError(
                f"prune: site {site!r}: expected a posterior of shape {tuple(parameters[name].shape)}, got "
                f"{tuple(mean.shape)}; pass the guide that was trained with this module"
            )
        if not mean.isfinite().all():
            raise ValueError(
                f"prune: site {site!r}: expected finite means, got {int((~mean.isfinite()).sum())} of {mean.numel()} "
                "that are not; the training of this guide has failed: look at its loss, and lower the learning rate"
            )
        weight, fixed = torch.where(masks[site], mean, 0.0), bnn.fixed(name)
        with torch.no_grad():
            parameters[name].copy_(weight if fixed is None else fixed.imposed_on(weight))
        if masked:
            hold_zeros(net, parameters[name], masks[site])
    if masked:
        _mask_before_each_call(net)
    refresh_derived_weights(net)
    _check_derived_weights(net)
    return net


@torch.no_grad()
def _check_derived_weights(net: nn.Module) -> None:
    """Raise where a weight that is computed from others is NaN: weight norm divides by the length of a row."""
    modes = [(layer, layer.training) for layer in net.modules()]
    net.eval()  # a spectral norm in training mode changes its buffers
    for path, layer in net.named_modules():
        names = [hook.name for hook in layer._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
        names += list(layer.parametrizations) if parametrize.is_parametrized(layer) else []  # type: ignore[arg-type]
        for name in names:
            if count := int(getattr(layer, name).isnan().sum()):
                raise ValueError(
                    f"prune: layer {path!r}: expected a {name} without NaN, got {count}, since all that it is computed "
                    "from is pruned (weight norm divides by the length of a row); prune less, or take the norm off "
                    "before training"
                )
    for layer, mode in modes:
        layer.training = mode


@torch.no_grad()
def hold_zeros(net: nn.Module, parameter: nn.Parameter, mask: Tensor) -> None:
    """Mask a parameter of ``net`` by ``torch.nn.utils.prune`` wherever a layer holds it."""
    for layer in list(net.modules()):
        for key, value in list(layer.named_parameters(recurse=False, remove_duplicate=False)):
            if value is parameter:
                is_masked = key.endswith("_orig") and f"{key.removesuffix('_orig')}_mask" in layer._buffers
                torch_prune.custom_from_mask(layer, key.removesuffix("_orig") if is_masked else key, mask)
                # Before the hooks of weight_norm and spectral_norm, which compute with the masked weight.
                hooks: Any = layer._forward_pre_hooks
                hooks.move_to_end(next(reversed(hooks)), last=False)


def masked_weights(net: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Layer, name of the weight, and pruning method, of every mask of ``torch.nn.utils.prune``."""
    for layer in net.modules():
        for hook in list(layer._forward_pre_hooks.values()):
            if isinstance(hook, torch_prune.BasePruningMethod):
                yield layer, hook._tensor_name, hook


def check_net(owner: str, net: Any) -> None:
    """Raise unless a net is a torch module without a BayesianModule, whose weights are those of its start."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"{owner}: expected a torch module, got {kind_of(net)}; pass the net that prune returns")
    check_whole(owner, net.named_parameters())
    if any(isinstance(layer, BayesianModule) for layer in net.modules()):
        raise TypeError(
            f"{owner}: expected a net with trained weights, got a BayesianModule, whose weights the guide has; pass "
            "prune(bnn, guide)"
        )


def remove_masks(net: nn.Module, owner: str = "remove_masks") -> nn.Module:
    """A copy of ``net`` with plain weights in the place of masked ones; ``owner`` is who asks, for an error."""
    check_net(owner, net)
    net = copied(net)
    for layer, name, _ in list(masked_weights(net)):
        torch_prune.remove(layer, name)
    for layer in net.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if hook is _apply_masks:
                del layer._forward_pre_hooks[key]
    return net


def _mask_before_each_call(net: nn.Module) -> None:
    """Masks are applied where a layer is called; attention reads the weight of its projection without a call of it."""
    for layer in net.modules():
        if layer is net or isinstance(layer, nn.MultiheadAttention):
            held = any(owner is not layer for owner, _, _ in masked_weights(layer))
            if held and all(hook is not _apply_masks for hook in layer._forward_pre_hooks.values()):
                layer.register_forward_pre_hook(_apply_masks)


def _apply_masks(net: nn.Module, inputs: Any = None) -> None:
    for layer, name, method in masked_weights(net):
        setattr(layer, name, method.apply_mask(layer))
