"""Linear layers that read the inputs that they use."""

from __future__ import annotations

import warnings

import torch  # noqa: F401  for the examples
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_vd.sparsity.masks import check_share
from pyro_vd.sparsity.prune import remove_masks
from pyro_vd.sparsity.replaced import check_linear, is_plain_linear, replace_layers


class IndexedLinear(nn.Module):
    """A Linear layer of some of its inputs: ``y = x[..., index] W^T + b``.

    Args:
        linear: the layer whose weight and bias are taken over; the inputs whose columns are zero are left out.

    Attributes:
        index: the numbers of the inputs that are used.
        columns: their columns of the weight, of shape (out_features, len(index)).
        weight: the weight of all inputs, made at each access.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight[:, 1:3].fill_(0.0)
        >>> IndexedLinear(layer)
        IndexedLinear(in_features=4, out_features=2, used=2)
    """

    index: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        check_linear(linear, "IndexedLinear")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("index", (linear.weight != 0).any(0).nonzero()[:, 0])
        columns = linear.weight.detach().index_select(1, self.index)
        self.columns = nn.Parameter(columns, linear.weight.requires_grad)
        bias = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)

    @property
    def weight(self) -> Tensor:
        whole = self.columns.new_zeros(self.out_features, self.in_features)
        return whole.index_copy(1, self.index, self.columns)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"IndexedLinear: expected inputs of {self.in_features} features, got the shape {tuple(x.shape)}; pass "
                "all inputs, those that are not used too"
            )
        return F.linear(x.index_select(-1, self.index), self.columns, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, used={len(self.index)}"


def index_inputs(net: nn.Module, min_unused: float = 0.25) -> nn.Module:
    """A copy of ``net`` whose Linear layers with unused inputs are :class:`IndexedLinear`.

    What :func:`shrink` cannot take out are inputs of the net, and units before a function without a rule. Whether the
    smaller product outweighs the index depends on the sizes and the machine: :func:`deploy` measures it.

    Args:
        net: any torch module; masks of ``torch.nn.utils.prune`` are made permanent in the copy. Layers of type
            ``nn.Linear`` without hooks are considered.
        min_unused: the share of inputs without a weight, 0..1, from which on a layer is replaced.

    Returns:
        The copy, of the same outputs, in the modes of ``net``.

    Raises:
        ValueError: a share outside of 0..1.
        TypeError: a share that is not a number; ``net`` is no torch module, or is a BayesianModule.

    Warns:
        UserWarning: no layer has as many unused inputs.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight[:, 1:3].fill_(0.0)
        >>> index_inputs(nn.Sequential(layer, nn.Linear(2, 2)))
        Sequential(
          (0): IndexedLinear(in_features=4, out_features=2, used=2)
          (1): Linear(in_features=2, out_features=2, bias=True)
        )

    See also:
        :func:`pyro_vd.shrink`, :func:`pyro_vd.deploy`.
    """
    share = check_share("min_unused", min_unused)
    net = remove_masks(net, "index_inputs")
    unused = {
        path: 1 - (layer.weight != 0).any(0).double().mean().item()
        for path, layer in net.named_modules()
        if is_plain_linear(layer)
    }
    made = {
        path: IndexedLinear(net.get_submodule(path))  # type: ignore[arg-type]
        for path, found in unused.items()
        if found > 0 and found >= share
    }
    if not made:
        warnings.warn(
            f"index_inputs: expected a Linear layer with a share of unused inputs of {share:g} or more, got "
            f"{ {path: round(found, 3) for path, found in unused.items()} }; nothing is replaced",
            stacklevel=2,
        )
    return replace_layers(net, made)
