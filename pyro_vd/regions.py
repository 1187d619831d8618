"""Which elements of a weight a view of it holds: two views may be used under local sampling where they share none."""

from __future__ import annotations

from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, maybe_get_bdim

Region = tuple[tuple[int, ...], tuple[int, ...], int]  # size, stride, storage offset


def region_of(view: Tensor, whole: Tensor, origin: Region | None) -> Region | None:
    """The elements of ``whole`` in ``view``; a copy holds as much as its ``origin``. None is all of them."""
    view, whole = _plain(view), _plain(whole)
    if view.untyped_storage()._cdata == whole.untyped_storage()._cdata:
        return tuple(view.shape), tuple(view.stride()), int(view.storage_offset())
    return origin


def _plain(tensor: Tensor) -> Tensor:
    """The tensor under the wrappers of torch.func, which hide the storage; the first of a batch."""
    while is_functorch_wrapped_tensor(tensor):
        axis = maybe_get_bdim(tensor)
        tensor = get_unwrapped(tensor)
        tensor = tensor if axis < 0 else tensor.select(axis, 0)
    return tensor


def overlap(first: Region | None, second: Region | None) -> bool:
    """Whether two views hold a common element of the weight; None is all of it."""
    if first is None or second is None:
        return True
    (start, end), (other_start, other_end) = _bounds(first), _bounds(second)
    if end < other_start or other_end < start:
        return False
    return not _elements(first).isdisjoint(_elements(second))


def _bounds(region: Region) -> tuple[int, int]:
    size, stride, offset = region
    return offset, offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))


def _elements(region: Region) -> set[int]:
    size, stride, offset = region
    elements = {offset}
    for length, step in zip(size, stride, strict=True):
        elements = {element + index * step for element in elements for index in range(length)}
    return elements
