"""One canary for each private corner of PyTorch that random weights use: it names what broke."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vd import _torch as corner


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad

    @staticmethod
    def vmap(info, in_dims, x):
        return corner.applied(_Square, x), in_dims[0]


def test_a_function_applied_past_its_signature_has_value_and_gradient():
    x = torch.tensor([3.0], requires_grad=True)
    y = corner.applied(_Square, x)
    assert y.item() == 9 and torch.autograd.grad(y, x)[0].item() == 6, "torch.autograd.Function.apply changed"


def test_a_function_is_applied_as_usual_under_a_transform():
    assert torch.equal(torch.func.vmap(lambda x: corner.applied(_Square, x))(torch.tensor([1.0, 2.0])),
                       torch.tensor([1.0, 4.0])), "torch._C._are_functorch_transforms_active changed"  # fmt: skip


def test_a_wrapper_has_metadata_and_no_storage():
    kind = type("Wrapped", (Tensor,), {"__torch_dispatch__": classmethod(lambda cls, *args: None)})
    wrapper = corner.new_wrapper(kind, (2, 3), torch.float64, torch.device("cpu"))
    assert (tuple(wrapper.shape), wrapper.dtype) == ((2, 3), torch.float64), "Tensor._make_wrapper_subclass changed"


def test_subclass_dispatch_can_be_switched_off():
    class Loud(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("torch._C.DisableTorchFunctionSubclass no longer switches dispatch off")

    loud = torch.ones(2).as_subclass(Loud)
    with corner.DisableTorchFunctionSubclass():
        assert tuple(loud.shape) == (2,)


def test_the_tensor_under_the_wrappers_of_a_transform_is_found():
    weight = torch.arange(6.0).reshape(2, 3)
    seen = []
    torch.func.vmap(lambda row: (seen.append(corner.plain(row)), row)[1])(weight)
    assert corner.share_storage(seen[0], weight), "torch._C._functorch: get_unwrapped or maybe_get_bdim changed"
    assert seen[0].shape == (3,)


def test_storage_tells_a_view_from_a_copy():
    x = torch.ones(4)
    assert corner.share_storage(x, x[1:]) and not corner.share_storage(x, x.clone()), "UntypedStorage._cdata changed"


@pytest.mark.parametrize("name", ["_in_projection_packed", "_in_projection", "multi_head_attention_forward"])
def test_functions_of_attention_are_python_code_that_can_be_copied(name):
    function = getattr(F, name, None)
    assert inspect.isfunction(function), f"torch.nn.functional.{name} is no Python function any more"


def test_attention_asks_has_torch_function_by_its_global_name():
    assert "has_torch_function" in F.multi_head_attention_forward.__code__.co_names, (
        "torch.nn.functional.multi_head_attention_forward asks another name for subclasses now"
    )
    assert corner.visible(F.multi_head_attention_forward).__globals__["has_torch_function"]((1,)) is False


def test_signatures_of_dispatched_functions_are_known():
    assert list(corner.parameters_of(F.linear) or ()) == ["input", "weight", "bias"], "get_testing_overrides changed"
    assert corner.full_name(F.linear) == "torch.nn.functional.linear", "torch.overrides.resolve_name changed"


def test_grouped_products_of_a_subclass_are_dispatched_by_their_private_name():
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return None

    F.grouped_mm(torch.ones(2, 4), torch.ones(1, 4, 4).as_subclass(Watched), offs=torch.tensor([2], dtype=torch.int32))
    assert seen == [corner.grouped_mm], "F.grouped_mm calls another function now; the rule in operations/products.py"


def test_pytrees_are_flattened_and_mapped():
    tree = {"a": [1, 2], "b": (3,)}
    assert corner.tree_leaves(tree) == [1, 2, 3] and corner.tree_map(str, tree) == {"a": ["1", "2"], "b": ("3",)}
    assert corner.tree_map_only(int, lambda n: n + 1, tree)["b"] == (4,), "torch.utils._pytree changed"
    assert corner.tree_flatten(tree)[0] == [1, 2, 3]
