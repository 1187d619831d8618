"""The variance of "local" noise inside real networks is that of weight draws: every weight of one net of each kind.

One weight of the whole net is random at a time, and the output of the layer that owns it is looked at, which is affine
in that weight: its variance is exact, from the Jacobian of the layer. The noise of the library is drawn in one call of
the net on DRAWS copies of its input. Odds of a failure by chance: 1e-6 for each weight.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import pyro_vd as vd
from helpers.oracles import assert_mean_close, assert_variance_close
from helpers.programs import run_locally
from helpers.real_networks import CATALOGUE, INSTALLED

DRAWS, LOG_SIGMA2 = 1000, -2.0
# By the kind of layer that holds the weights, and the share of the weights that are seen in this way: the others go
# through more than one layer (a convolution of a graph that loops over its weights) or an activation, or are drawn.
KINDS = {
    "bert": 1.0, "gpt2": 1.0, "llama": 1.0, "t5": 0.9, "vit": 1.0, "convnext": 1.0, "resnet": 1.0,
    "mixtral": 0.75, "lora": 1.0, "gcn": 1.0, "gat": 1.0, "sage": 1.0, "chebyshev": 0.6, "rgcn": 1.0,
}  # fmt: skip
SINGLE = ("mixtral",)  # the kernel of its experts has no float64

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def repeated(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments with DRAWS copies of every example; of a graph, DRAWS graphs beside each other."""
    if len(args) == 2:
        nodes, edges = args
        shift = len(nodes) * torch.arange(DRAWS)
        joined = (edges[:, None] + shift[:, None]).flatten(1)
        return (nodes.repeat(DRAWS, 1), joined), {key: one.repeat(DRAWS) for key, one in kwargs.items()}
    return tuple(map(copies, args)), {
        key: copies(one) if isinstance(one, Tensor) else one for key, one in kwargs.items()
    }


def copies(tensor: Tensor) -> Tensor:
    return tensor.repeat(DRAWS, *(1,) * (tensor.dim() - 1))


def as_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


class Watched:
    """The arguments and the output of the only call of a layer; more calls, or another output, count as none."""

    def __init__(self, layer: nn.Module):
        self.layer, self.calls = layer, []

    def __enter__(self) -> Watched:
        self.hook = self.layer.register_forward_hook(
            lambda layer, args, kwargs, output: self.calls.append((args, kwargs, output)), with_kwargs=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    @property
    def call(self) -> tuple[tuple, dict, Any] | None:
        return self.calls[0] if len(self.calls) == 1 and isinstance(self.calls[0][2], Tensor) else None


def exact_variance(layer: nn.Module, key: str, args: tuple, kwargs: dict) -> Tensor | None:
    """Of every element of the layer's output, for a weight of variance exp(LOG_SIGMA2); None where not affine."""
    weight = layer.get_parameter(key).detach()

    def output(weight: Tensor) -> Tensor:
        return functional_call(layer, {key: weight}, args, kwargs)

    one, other = torch.randn_like(weight), torch.randn_like(weight)
    precise = weight.dtype == torch.float64
    if not torch.allclose(output(one) + output(other), 2 * output((one + other) / 2), atol=1e-8 if precise else 1e-5):
        return None
    slopes = jacrev(output)(weight)
    return slopes.flatten(-weight.dim()).square().sum(-1) * torch.tensor(LOG_SIGMA2).exp()


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_gives_the_layer_that_owns_it_the_variance_of_its_draws(name):
    case = CATALOGUE[name]
    if case.package not in INSTALLED:
        pytest.skip(f"{case.package} is not installed")
    net, args, kwargs = case.make().eval(), case.args, case.kwargs
    if name not in SINGLE:
        net, args, kwargs = net.double(), tuple(map(as_double, args)), {k: as_double(one) for k, one in kwargs.items()}
    many, options = repeated(args, kwargs)
    names = vd.BayesianModule(net, dist.Normal(0.0, 1.0)).weight_names
    seen = 0
    for parameter in names:
        path, _, key = parameter.rpartition(".")
        layer = net.get_submodule(path)
        with torch.no_grad(), Watched(layer) as plain:
            net(*args, **kwargs)
        if plain.call is None:
            continue
        arguments, keywords, mean = plain.call
        expected = exact_variance(layer, key, arguments, keywords)
        with torch.no_grad(), Watched(layer) as noisy:
            _, states = run_locally(
                net, *many, where=parameter, log_sigma2=LOG_SIGMA2, handler=vd.lrt(reuse="independent"), **options
            )
        if expected is None or states[parameter].draw is not None:
            continue
        draws = noisy.call[2].unflatten(0, (DRAWS, -1))
        assert_mean_close(draws, mean)
        assert_variance_close(draws, expected)
        seen += 1
    assert seen >= KINDS[name] * len(names), f"{seen} of {len(names)}"
