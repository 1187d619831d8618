"""Files of nets with tensors of several dtypes, files with a bit changed, and files that cannot be written."""

from __future__ import annotations

import inspect
import json
import math
import random
import textwrap

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pyro_vd as vd
from pyro_vd.sparsity.places import decode, encode

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64,
    torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
)  # fmt: skip
SHAPES = ((), (0,), (1,), (3, 0), (5,), (7, 9), (2, 3, 4), (40, 25))


class Buffers(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"b{i}", tensor)


def some_tensor(generator):
    """Random bytes, of which a random share is not zero."""
    dtype, shape = generator.choice(DTYPES), generator.choice(SHAPES)
    count, share = math.prod(shape), generator.choice((0.0, 0.02, 0.2, 0.9, 1.0))
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (count, dtype.itemsize), dtype=torch.uint8)
    content[torch.rand(count) >= share] = 0
    tensor = content.flatten().view(dtype).reshape(shape)
    return tensor.t() if tensor.dim() == 2 and generator.random() < 0.3 else tensor


def same(one, other):
    """Equal as bytes: the random ones may be NaN."""
    contents = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*contents)


def read_by_script(path):
    """What the plain script that the documentation of ``save_sparse`` prints makes of a file."""
    script = inspect.getdoc(vd.save_sparse).split("library::")[1].split("net.load_state_dict")[0]
    names = {"safetensors": safetensors, "torch": torch, "path": path}
    exec(textwrap.dedent(script), names)
    return names["held"]


@pytest.mark.parametrize("seed", range(12))
def test_tensors_of_any_dtype_in_any_order(seed, tmp_path):
    torch.manual_seed(seed)
    generator, path = random.Random(seed), tmp_path / "net.safetensors"
    net = Buffers([some_tensor(generator) for _ in range(12)])
    vd.save_sparse(net, path)
    loaded = vd.load_sparse(path)
    assert list(loaded) != [] and set(loaded) == set(net.state_dict())
    assert all(same(loaded[name], tensor) for name, tensor in net.state_dict().items())


def interleaved():
    tensors = [torch.zeros(20, 30, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32)]
    for i, tensor in enumerate(tensors):
        tensor.view(-1)[7 * i] = i + 1
    return Buffers(tensors)


def test_tensors_of_one_size_and_two_dtypes_in_turn(tmp_path):
    """Of which no file could say that the places of one are those of another."""
    net, path = interleaved(), tmp_path / "net.safetensors"
    vd.save_sparse(net, path)
    for loaded in (vd.load_sparse(path), read_by_script(path)):
        assert all(torch.equal(loaded[name], tensor) for name, tensor in net.state_dict().items())


def test_gaps_that_no_int32_holds():
    for places in ([], [0], [2**31 + 5, 2**33], [0, 1, 2**45]):
        k, bits = encode(torch.tensor(places, dtype=torch.long))
        found, used = decode(bits, 2**46, len(places), k)
        assert found.tolist() == places and used == len(bits) < 200


def test_no_changed_bit_gives_other_tensors(tmp_path):
    net, path = interleaved(), tmp_path / "net.safetensors"
    vd.save_sparse(net, path)
    content, refused = path.read_bytes(), 0
    key = content.index(b"pyro_vd")  # without it, a file is one of an earlier version
    places = [(at, bit) for at in range(len(content)) for bit in range(8) if not key <= at < key + 7]
    for at, bit in places[::7]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        try:
            loaded = vd.load_sparse(path)
        except ValueError:
            refused += 1
        else:
            assert all(same(loaded[name], tensor) for name, tensor in net.state_dict().items()), (at, bit)
    assert refused > 0.9 * len(places[::7])


def test_a_file_of_before_there_was_a_checksum_and_what_its_metadata_may_not_say(tmp_path):
    net, path = interleaved(), tmp_path / "net.safetensors"
    vd.save_sparse(net, path)
    held = load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata()["pyro_vd"]
    held["places"] = held["places"][:-4]

    def load(told, tensors):
        save_file(tensors, path, {"pyro_vd": told})
        return vd.load_sparse(path)

    assert all(torch.equal(load(told, held)[name], tensor) for name, tensor in net.state_dict().items())
    twice = json.loads(told)
    twice["float32"][1][0] = "b0"
    for text, tensors, problem in (
        (json.dumps(twice), held, "'b0': expected one tensor"),
        (told, held | {"float64": torch.ones(2)}, "got .*'float64'"),
        (told, held | {"bfloat16": held["bfloat16"].half()}, "got torch.float16"),
        (told, held | {"places": held["places"] | 128}, "places"),
        (told.replace("[20,30],1,", "[-20,-30],1,"), held, "expected one tensor with sizes"),
        (told.replace("[20,30],1,", "[20,30],1,4000000000"), held, "expected one tensor with sizes"),
        ("[" * 50_000, held, "recursion|metadata"),
    ):
        with pytest.raises(ValueError, match=f"(?s)load_sparse: expected .*{problem}.*; write it again"):
            load(text, tensors)


def test_dtypes_that_no_file_has_and_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    vd.save_sparse(interleaved(), path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"dtypes that safetensors can store, .*complex128.*write torch.save"):
        vd.save_sparse(Buffers([torch.ones(3, dtype=torch.complex128)]), path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="save_sparse: expected a path that can be written, .*No space left"):
        vd.save_sparse(Buffers([torch.ones(3)]), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
