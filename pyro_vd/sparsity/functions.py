"""Names of the functions whose channels are followed."""

from __future__ import annotations

from typing import Any

# Functions whose channel c depends on channel c of their tensors only, at all positions.
CHANNELWISE = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "hardtanh"),
    *("hardswish", "hardsigmoid", "sigmoid", "tanh", "logsigmoid", "softsign", "exp", "log", "sqrt", "square", "abs"),
    *("sin", "cos", "neg", "clamp", "pow", "prelu", "dropout", "dropout1d", "dropout2d", "dropout3d", "clone"),
    *("alpha_dropout", "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "truediv", "radd", "rmul"),
    *("iadd", "imul", "rtruediv", "contiguous", "float", "double", "to", "detach", "maximum", "minimum"),
}
POOLING = {f"{kind}_pool{d}d" for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)} | {
    "interpolate",
    "upsample",
}
NORMS = {"batch_norm", "instance_norm"}
METADATA = {
    *("size", "shape", "dim", "ndim", "ndimension", "numel", "len", "stride", "dtype", "device", "layout"),
    *("is_floating_point", "is_complex", "is_contiguous", "is_nested", "is_sparse", "is_cuda", "requires_grad"),
}


def name_of(func: Any) -> str:
    """The name of a function, method or property, without the marks of an operator and of work in place."""
    name = getattr(func, "__name__", "")
    return func.__self__.__name__ if name == "__get__" else name.strip("_") if name.startswith("__") else name
