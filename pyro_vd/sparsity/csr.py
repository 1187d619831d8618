"""Linear layers that store and multiply their nonzero weights only."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from pyro_vd._torch import without_autocast
from pyro_vd.sparsity.masks import check_share
from pyro_vd.sparsity.prune import remove_masks
from pyro_vd.sparsity.replaced import check_linear, is_plain_linear, replace_layers

DTYPES = (torch.float32, torch.float64)  # for which PyTorch multiplies compressed rows on every device


class CSRLinear(nn.Module):
    """A Linear layer of compressed sparse rows, for inference: ``y = (W x^T)^T + b``.

    Args:
        linear: the layer whose weight and bias are taken over.

    Raises:
        TypeError: another thing than a Linear layer.

    Attributes:
        weight: the weight as a dense tensor, made at each access.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> CSRLinear(layer)
        CSRLinear(in_features=3, out_features=2, nonzero=2)
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        check_linear(linear, "CSRLinear")
        self.out_features, self.in_features = linear.weight.shape
        with warnings.catch_warnings():  # PyTorch's warning of a "beta state", given once
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            weight = linear.weight.detach().to_sparse_csr()
        # int32 indices are half as large, and multiplied faster.
        self.register_buffer("crow_indices", weight.crow_indices().int())
        self.register_buffer("col_indices", weight.col_indices().int())
        self.register_buffer("values", weight.values().clone())
        bias = torch.zeros(self.out_features).to(weight) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)
        with warnings.catch_warnings():  # said once by torch 2.11, although the checks are disabled explicitly
            warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
            self._sparse()

    @property
    def weight(self) -> Tensor:
        return self._sparse().to_dense()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"CSRLinear: expected inputs of {self.in_features} features, got shape {tuple(x.shape)}")
        kind, cast = self.values.dtype, torch.is_autocast_enabled(x.device.type)
        if (x.dtype != kind and not cast) or (x.is_cpu and kind not in DTYPES):
            raise TypeError(
                f"CSRLinear: expected inputs and weights of one dtype, float32 or float64, got {x.dtype} and {kind}; "
                "write .float() on both"
            )
        rows = x.reshape(-1, self.in_features).to(kind)
        with without_autocast(x.device.type):  # sparse products have no half precision on a CPU
            y = torch.addmm(self.bias[:, None], self._sparse(), rows.T).T.reshape(*x.shape[:-1], self.out_features)
        return y.to(torch.get_autocast_dtype(x.device.type)) if cast and kind == torch.float32 else y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, nonzero={len(self.values)}"

    def _sparse(self) -> Tensor:
        size = (self.out_features, self.in_features)
        return torch.sparse_csr_tensor(self.crow_indices, self.col_indices, self.values, size, check_invariants=False)


def to_csr(net: nn.Module, min_sparsity: float = 0.9) -> nn.Module:
    """A copy of ``net`` whose sparse Linear layers are :class:`CSRLinear`.

    It is smaller; whether it is faster depends on sparsity, batch and machine: :func:`deploy` measures it.

    Args:
        net: any torch module; masks of ``torch.nn.utils.prune`` are made permanent in the copy. Layers of type
            ``nn.Linear`` with weights of float32 or float64, and without hooks, are considered.
        min_sparsity: the share of zeros, 0..1, from which on a layer is replaced.

    Returns:
        The copy, for inference: the weights of replaced layers are buffers.

    Raises:
        ValueError: a share outside of 0..1.
        TypeError: a share that is not a number; ``net`` is no torch module, or is a BayesianModule.

    Warns:
        UserWarning: no layer is as sparse.

    Example:
        >>> layer = nn.Linear(8, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.eye(2, 8))
        >>> to_csr(nn.Sequential(layer, nn.Linear(2, 2)), min_sparsity=0.8)
        Sequential(
          (0): CSRLinear(in_features=8, out_features=2, nonzero=2)
          (1): Linear(in_features=2, out_features=2, bias=True)
        )

    See also:
        :func:`pyro_vd.deploy`, :func:`pyro_vd.shrink`.
    """
    share = check_share("min_sparsity", min_sparsity)
    net = remove_masks(net, "to_csr")
    shares = {}
    for path, layer in net.named_modules():
        if is_plain_linear(layer) and layer.weight.dtype in DTYPES:
            shares[path] = 1 - layer.weight.count_nonzero().item() / layer.weight.numel()
    replaced = {path: CSRLinear(net.get_submodule(path)) for path, found in shares.items() if found >= share}  # type: ignore
    if not replaced:
        warnings.warn(
            f"to_csr: expected a Linear layer with a share of zeros of {share:g} or more, got "
            f"{ {path: round(found, 3) for path, found in shares.items()} }; nothing is replaced",
            stacklevel=2,
        )
    return replace_layers(net, replaced)
