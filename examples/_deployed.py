"""The forms of a pruned net that ``deploy.py`` compares, their files and their times."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _data import Data
from torch import Tensor, nn
from torch.utils import benchmark

import pyro_vd as vd
from pyro_vd.sparsity import remove_masks

ROUNDS = 3  # of timing, the forms in turn


@dataclass
class Form:
    """A net as it is called, the module whose weights are counted, and the bytes of its file."""

    call: Callable[[Tensor], Tensor]
    net: nn.Module
    bytes: int


def forms(dense: nn.Module, zeros: nn.Module, data: Data, all_of_them: bool) -> dict[str, Form]:
    """The unpruned net, and the pruned one in its forms; ONNX, INT8 and INT4 where their packages are installed."""
    x = data.x_train[:2]
    zeros, shrunk = remove_masks(zeros).eval(), vd.shrink(zeros, x).eval()
    found = {"dense": dense, "zeros": zeros, "shrunk": shrunk, "CSR": vd.to_csr(shrunk, 0.5)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "index_inputs: expected")  # where all inputs are used
        found["indexed"] = vd.index_inputs(shrunk, 0.0)
    made = {name: Form(net, net, sparse_file(net)) for name, net in found.items()}
    if all_of_them:
        made["compiled"] = Form(torch.compile(shrunk), shrunk, made["shrunk"].bytes)
        if find_spec("onnxruntime") and find_spec("onnxscript"):
            made["ONNX"] = onnx_form(shrunk, x)
            made |= {"INT8 ONNX": onnx_form(shrunk, x, int8=True), "dense INT8": onnx_form(dense, x, int8=True)}
        if find_spec("torchao"):
            made |= {"INT8": int8_form(shrunk), "INT4": int4_form(shrunk)}
    return made


def sparse_file(net: nn.Module) -> int:
    with TemporaryDirectory() as folder:
        return vd.save_sparse(net, Path(folder) / "net.safetensors")


def onnx_form(net: nn.Module, x: Tensor, int8: bool = False) -> Form:
    """Run by onnxruntime; or with Linear layers in 8 bits: a scale for each row, and one for the inputs of a call."""
    onnxruntime: Any = import_module("onnxruntime")

    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's own exporter
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says that torchvision is not installed
        path = Path(folder) / "net.onnx"
        torch.onnx.export(
            net, (x,), path, dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False
        )
        if int8:
            path = quantized(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        size = path.stat().st_size
    (name,) = (one.name for one in session.get_inputs())
    return Form(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), net, size)


def quantized(path: Path) -> Path:
    """Another file beside an ONNX file."""
    quantization: Any = import_module("onnxruntime.quantization")
    prepared, smaller = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantization.quantize_dynamic(
        prepared,
        smaller,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    return smaller


def int8_form(net: nn.Module) -> Form:
    """Weights of Linear layers in 8 bits, a scale for each row."""
    quantization: Any = import_module("torchao.quantization")
    smaller = copy.deepcopy(net)
    quantization.quantize_(smaller, quantization.Int8WeightOnlyConfig())
    return Form(smaller, net, state_file(smaller))


def int4_form(net: nn.Module) -> Form:
    """Weights of Linear layers of a Sequential in 4 bits, two to a byte, a scale and a zero for 32 of a row."""
    quantization: Any = import_module("torchao.quantization")
    int4: Any = import_module("torchao.prototype.quantization.int4")
    layers = copy.deepcopy(net).children()
    smaller = nn.Sequential(*(padded(layer) if type(layer) is nn.Linear else layer for layer in layers))
    quantization.quantize_(smaller, int4.PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))
    return Form(smaller, net, state_file(smaller))


def padded(linear: nn.Linear) -> nn.Sequential:
    """The same function by a layer with a multiple of 32 inputs and of 16 outputs, as the kernel of INT4 wants."""
    more, rows = -linear.in_features % 32, -linear.out_features % 16
    wide = nn.Linear(linear.in_features + more, linear.out_features + rows)
    wide.weight = nn.Parameter(nn.functional.pad(linear.weight.detach(), (0, more, 0, rows)))
    wide.bias = nn.Parameter(nn.functional.pad(linear.bias.detach(), (0, rows)))
    return nn.Sequential(nn.ConstantPad1d((0, more), 0.0), wide, nn.ConstantPad1d((0, -rows), 0.0))


def state_file(net: nn.Module) -> int:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.pt"
        torch.save(net.state_dict(), path)
        return path.stat().st_size


def entropy_bytes(net: nn.Module) -> float:
    """Bytes of the nonzero elements and of the entropy of their places, as if these lay at random; without a header."""
    total = 0.0
    for tensor in net.state_dict().values():
        share = tensor.count_nonzero().item() / max(tensor.numel(), 1)
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p)
        total += min(tensor.nbytes, tensor.numel() * entropy / 8 + share * tensor.nbytes)
    return total


@torch.no_grad()
def row(form: Form, data: Data) -> dict[str, float]:
    """Error in percent, NLL in nats per example, nonzero weights, bytes of the file, and what they could be."""
    logits = form.call(data.x_test)
    matrices = [t for name, t in form.net.state_dict().items() if t.dim() > 1 or name.endswith("values")]
    return {
        "error": 100 * (logits.argmax(-1) != data.y_test).float().mean().item(),
        "NLL": nn.functional.cross_entropy(logits, data.y_test).item(),
        "weights": sum(int(t.count_nonzero()) for t in matrices),
        "bytes": form.bytes,
        "entropy": entropy_bytes(form.net),
    }


@torch.no_grad()
def times(made: dict[str, Form], data: Data, batch: int, seconds: float) -> dict[str, float]:
    """The fastest ms of a call of each form, which is called for so many ``seconds`` in each round."""
    x = data.x_train.repeat(1 + batch // len(data.x_train), 1)[:batch]
    best = dict.fromkeys(made, math.inf)
    for _ in range(ROUNDS):
        for name, form in made.items():
            timer = benchmark.Timer("call(x)", globals={"call": form.call, "x": x}, num_threads=torch.get_num_threads())
            best[name] = min(best[name], 1e3 * min(timer.blocked_autorange(min_run_time=seconds).times))
    return best
