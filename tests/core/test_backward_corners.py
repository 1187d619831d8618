"""One canary for each private corner of PyTorch that backward passes use: it names what broke."""

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from pyro_vd import _torch as corner


def test_a_backward_pass_and_its_end_are_noticed():
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = (2 * x).sum()

    def hook(gradient):
        seen.append((corner.in_backward_pass(), corner.current_node() is y.grad_fn))
        corner.when_backward_pass_ends(lambda: seen.append("end"))

    y.register_hook(hook)
    x.register_hook(lambda gradient: seen.append("last"))
    assert not corner.in_backward_pass()
    y.backward()
    assert seen == [(True, True), "last", "end"], "queue_callback, _current_graph_task_id or _current_autograd_node"


def test_the_end_of_a_backward_pass_that_fails_is_dropped_at_once():
    class End:
        def __del__(self):
            seen.append("dropped")

        def __call__(self):
            seen.append("called")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ArithmeticError

    seen = []
    y = Fails.apply(torch.ones(2, requires_grad=True)).sum()
    y.register_hook(lambda gradient: corner.when_backward_pass_ends(End()))
    try:
        y.backward()
    except ArithmeticError:
        seen.append("failed")
    assert seen == ["dropped", "failed"], "torch/csrc/autograd/engine.cpp keeps the callbacks of a failed pass"


def test_regions_and_repetitions_of_checkpointing_are_recognised():
    seen = []

    def layer(x):
        seen.append((corner.in_checkpointed_region(), corner.is_repeated_with_other_noise(), corner.in_backward_pass()))
        return x.sin()

    for preserve in (True, False):
        seen.clear()
        x = torch.ones(2, requires_grad=True)
        checkpoint(layer, x, use_reentrant=False, preserve_rng_state=preserve).sum().backward()
        assert [one[2] for one in seen] == [False, True], "torch._C._current_graph_task_id"
        assert seen[0][0] is True, "torch._C._autograd._top_saved_tensors_default_hooks changed"
        assert seen[1][1] is not preserve, "recompute_fn in torch/utils/checkpoint.py changed"
    assert not corner.in_checkpointed_region()


def test_reentrant_checkpointing_is_recognised_with_its_inputs():
    seen = []

    def layer(x):
        seen.append(corner.inputs_of_reentrant_checkpoint())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=True)
    assert len(seen) == 1 and seen[0][0] is x, "CheckpointFunction.forward in torch/utils/checkpoint.py changed"
    assert corner.inputs_of_reentrant_checkpoint() is None
    valid = []
    y.register_hook(lambda gradient: valid.append(corner.gradients_are_accumulated()))
    torch.autograd.grad((y * y).sum(), y, retain_graph=True)
    y.sum().backward()
    assert valid[-1] is True
    z = x.sin()
    z.register_hook(lambda gradient: valid.append(corner.gradients_are_accumulated()))
    torch.autograd.grad(z.sum(), x)
    assert valid[-1] is False, "torch.autograd._is_checkpoint_valid changed"


def test_a_recording_is_recognised():
    seen = []
    make_fx(lambda x: seen.append(corner.is_recording()) or x * 2, tracing_mode="fake")(torch.ones(2))
    assert seen == [True] and not corner.is_recording(), "torch._C._get_dispatch_mode changed"


def test_noise_is_rewound_where_a_run_fails():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    before = corner.current_noise(torch.ones(1))
    try:
        with corner.noise_rewound_on_failure():
            torch.rand(5)
            raise ArithmeticError
    except ArithmeticError:
        pass
    assert torch.equal(corner.current_noise(torch.ones(1)), before) and torch.equal(torch.rand(3), expected)


def test_cached_parametrizations_and_compiled_modules_are_seen():
    assert not corner.parametrizations_are_cached()
    with parametrize.cached():
        assert corner.parametrizations_are_cached(), "torch.nn.utils.parametrize._cache_enabled changed"
    compiled = torch.compile(nn.Linear(2, 2), backend="eager")
    assert "_orig_mod" in compiled._modules, "the name of a compiled module in its wrapper changed"
    layer = nn.Linear(2, 2)
    assert layer._compiled_call_impl is None
    layer.compile(backend="eager")
    assert layer._compiled_call_impl is not None, "nn.Module.compile keeps its call elsewhere"
