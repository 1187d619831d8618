"""Files with a tensor for each part, as earlier versions wrote them, are read and checked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyro_vd as vd

safetensors = pytest.importorskip("safetensors.torch")

LARGEST = {"nibbles": 15, "gaps8": 255, "gaps16": 65535}
GAPS = "a.sparse_gaps.50x50"
ZEROS = [0, 14, 15, 16, 30, 0, 0, 254, 255, 256, 510, 3, 65534, 65535, 65536, 131070, 1]


def told(zeros: list[int], coding: str) -> Tensor:
    """The numbers by hand: the largest of a type is as many zeros and no element; two of four bits are in a byte."""
    most, numbers = LARGEST[coding], []
    for zero in zeros:
        while zero >= most:
            numbers.append(most)
            zero -= most
        numbers.append(zero)
    if coding != "nibbles":
        return torch.tensor(numbers, dtype=torch.uint8 if coding == "gaps8" else torch.uint16)
    numbers += [15] * (len(numbers) % 2)
    return torch.tensor([low + 16 * high for low, high in zip(numbers[::2], numbers[1::2], strict=True)]).byte()


@pytest.mark.parametrize("zeros", [ZEROS, []], ids=["several", "none"])
@pytest.mark.parametrize("coding", [*LARGEST, "indices"])
@pytest.mark.parametrize("sizes_in_the_name", [True, False])
def test_parts_are_joined(coding, sizes_in_the_name, zeros, tmp_path):
    places = [sum(zeros[: i + 1]) + i for i in range(len(zeros))]
    dense = torch.zeros(2, 200_000)
    dense.view(-1)[places] = torch.arange(1.0, len(places) + 1)
    part = torch.tensor(places, dtype=torch.int32) if coding == "indices" else told(zeros, coding)
    key = "w.sparse_" + coding.rstrip("0123456789")
    held = {"w.sparse_values": torch.arange(1.0, len(places) + 1), "bias": torch.ones(3)}
    held |= (
        {f"{key}.2x200000": part} if sizes_in_the_name else {key: part, "w.sparse_shape": torch.tensor([2, 200_000])}
    )
    safetensors.save_file(held, tmp_path / "net")
    found = vd.load_sparse(tmp_path / "net")
    assert set(found) == {"w", "bias"} and torch.equal(found["w"], dense) and torch.equal(found["bias"], torch.ones(3))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({GAPS: torch.full((49,), 50, dtype=torch.uint8)}, "as many indices below 2500 as values, got 49"),
        ({GAPS: torch.full((50,), 51, dtype=torch.uint8)}, "'a': expected as many indices below 2500 as values"),
        ({"a.sparse_values": None}, r"expected 'a' in parts, got none of \['a.sparse_values'\]"),
        ({GAPS: None}, "expected 'a' in parts, got values without"),
        ({GAPS: None, "a.sparse_gaps.50xx50": torch.ones(50)}, "expected 'a' in parts, got values"),
        ({GAPS: None, "a.sparse_gaps": torch.ones(50)}, "expected 'a' .* none of .*a.sparse_shape"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(change, text, tmp_path):
    gaps = torch.full((50,), 50, dtype=torch.uint8)
    gaps[0] = 0
    held = {GAPS: gaps, "a.sparse_values": torch.ones(50)}
    safetensors.save_file(held, tmp_path / "net")
    assert torch.equal(vd.load_sparse(tmp_path / "net")["a"], torch.eye(50))
    safetensors.save_file({n: t for n, t in (held | change).items() if t is not None}, tmp_path / "net")
    with pytest.raises(ValueError, match=f"{text}.*; write it again"):
        vd.load_sparse(tmp_path / "net")
