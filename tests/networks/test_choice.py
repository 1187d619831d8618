"""Which parameters of a net are random by default: by what its layers do. Exact; warnings are errors in this suite."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import pyro_vd as vd
from helpers.plain_nets import PLAIN_NETS, WORDS, ByRange, Experts, StandardConv, TransposedLinear
from helpers.programs import NOTHING, run_locally
from pyro_vd.guides import AutoSparseVD

PRIOR = dist.Normal(0.0, 1.0)


def chosen(net: nn.Module, where=None) -> tuple[str, ...]:
    return vd.BayesianModule(net, PRIOR, where=where).weight_names


@pytest.mark.parametrize("name", PLAIN_NETS)
def test_weights_are_chosen_by_what_the_layers_do(name):
    case = PLAIN_NETS[name]
    net = case.make()
    before = copy.deepcopy(net.state_dict())
    assert sorted(chosen(net)) == sorted(case.weights)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*expected an operation with a rule")
@pytest.mark.parametrize("name", PLAIN_NETS)
def test_without_noise_the_local_output_is_that_of_the_plain_net(name):
    case = PLAIN_NETS[name]
    net, data = case.make().eval(), case.data()
    handler = vd.lrt(shared_sites=case.shared)
    output, states = run_locally(net, data, where=None, log_sigma2=NOTHING, handler=lambda guide: handler(guide))
    torch.testing.assert_close(output, net(data), rtol=1e-4, atol=1e-4)
    assert all(state.used for state in states.values())
    assert any(state.draw is not None for state in states.values()) == (case.warns is not None)


@pytest.mark.filterwarnings("ignore:.*expected an operation with a rule")
@pytest.mark.parametrize("name", PLAIN_NETS)
def test_every_weight_of_a_net_is_trained_and_pruned(name):
    case = PLAIN_NETS[name]
    net, data = case.make(), case.data()
    bnn = vd.BayesianModule(net, vd.ImproperLogUniform())

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        output = bnn(x).flatten(1)
        with vd.data_plate(100, len(output)):
            return pyro.sample("y", dist.Normal(output, 1.0).to_event(1), obs=y)

    guide = AutoSparseVD(model)
    target = torch.zeros_like(net(data).flatten(1)).detach()
    guide(data, target)
    loss = vd.TraceVD_ELBO(shared_sites=case.shared).differentiable_loss(model, guide, data, target)
    loss.backward()
    gradients = {key: one.grad for key, one in guide.named_parameters()}
    assert len(gradients) == 2 * len(case.weights)
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients.values())
    for mode in ("weights", "mean"):
        draws = vd.posterior_predictive(model, guide, data, num_samples=2, mode=mode)["y"]
        assert draws.shape == (2, *target.shape) and draws.isfinite().all()
    assert vd.prune(bnn, guide)(data).shape == net(data).shape
    copied, _ = copy.deepcopy((bnn, guide))
    assert copied.weight_names == bnn.weight_names
    bnn.load_state_dict(copied.state_dict())


class ByBuffer(ByRange):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x) + self.places(self.position_ids[: x.shape[1]]))


class ByArgument(ByRange):
    def forward(self, x: Tensor, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is None:
            position_ids = x.cumsum(-1)
        return self.out(self.words(x) + self.places(position_ids))


class ByWord(ByRange):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x) + self.places(x % 8))


@pytest.mark.parametrize(
    ("kind", "is_random"), [(ByRange, False), (ByBuffer, False), (ByArgument, False), (ByWord, True)]
)
def test_an_embedding_of_positions_is_random_only_when_asked_for(kind, is_random):
    net = kind()
    assert ("places.weight" in chosen(net)) == is_random
    assert "places.weight" in chosen(net, where=nn.Embedding) and "places.weight" in chosen(net, where="places.*")


def test_an_embedding_in_a_sequence_of_layers_is_of_words():
    assert chosen(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))) == ("0.weight", "1.weight")


def masked(net: nn.Module, name: str) -> nn.Module:
    return prune.l1_unstructured(net, name, 0.5)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def halved(net: nn.Module, name: str) -> nn.Module:
    parametrize.register_parametrization(net, name, Halved())
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*spectral_norm", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("change", "suffix"),
    [
        (masked, "{}_orig"),
        (halved, "parametrizations.{}.original"),
        (parametrizations.weight_norm, "parametrizations.{}.original1"),
        (parametrizations.spectral_norm, "parametrizations.{}.original"),
        (weight_norm, "{}_v"),
        (spectral_norm, "{}_orig"),
    ],
)
@pytest.mark.parametrize(("layer", "name"), [(nn.Linear(4, 3), "weight"), (StandardConv(2, 2), "kernel")])
def test_of_a_weight_made_of_another_tensor_that_tensor_is_random(change, suffix, layer, name):
    assert chosen(change(copy.deepcopy(layer), name)) == (suffix.format(name),)


def test_nothing_of_the_net_is_run():
    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))

        @property
        def weight(self) -> Tensor:
            Counting.calls += 1
            return self.w

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return x @ self.weight

    assert chosen(Counting()) == ("w",) and Counting.calls == 0


class Unrelated(nn.Module):
    """Every way to use a matrix that makes no weight of it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.added, self.gain, self.joined, self.compared = (nn.Parameter(torch.ones(1, 4)) for _ in range(4))
        self.query, self.penalised = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x) * self.gain + self.added
        x = torch.cat([x, self.joined, self.linear(self.query)])
        return x @ self.linear(self.query).T - torch.cdist(x, self.compared)

    def penalty(self) -> Tensor:
        return (self.penalised @ self.penalised.T - torch.eye(4)).square().sum()


def test_what_is_added_joined_compared_or_a_gain_is_no_weight():
    net = Unrelated()
    with pytest.warns(UserWarning, match="got 28.6% of their elements"):
        bnn = vd.BayesianModule(net, PRIOR)
    assert bnn.weight_names == ("linear.weight",)


WITHOUT_SOURCE = """
class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 3))

    def forward(self, x):
        return x @ self.matrix
"""


def without_source() -> type[nn.Module]:
    made: dict = {"nn": nn, "torch": torch, "__name__": "elsewhere"}
    exec(WITHOUT_SOURCE, made)
    return made["Hidden"]


@pytest.mark.parametrize("size", [3, 30], ids=["most", "few"])
def test_a_layer_without_source_is_named_with_a_where_to_paste(size):
    hidden = without_source()
    net = nn.Sequential(nn.Linear(size, 3), hidden())
    with pytest.warns(
        UserWarning, match=r"deterministic are those of Hidden \('1'\) \(the code of Hidden has no"
    ) as said:
        assert chosen(net) == ("0.weight",)
    assert len(said) == 1
    both, first = (
        eval(part.split(" to make")[0].split(" for this")[0]) for part in str(said[0].message).split("where=")[1:]
    )
    assert chosen(net, where=both) == ("0.weight", "1.matrix") and chosen(net, where=first) == ("0.weight",)
    alone = nn.Sequential(hidden())
    with pytest.raises(
        ValueError, match=r"are those of Hidden \('0'\); choose with where='\*.matrix', where=Hidden or"
    ):
        chosen(alone)
    assert chosen(alone, where=hidden) == chosen(alone, where="*.matrix") == ("0.matrix",)


def test_under_half_of_the_elements_is_said_once_and_names_the_layers():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table

    net = nn.Sequential(nn.Linear(4, 4), Scale(), nn.BatchNorm1d(4), Scale())
    with pytest.warns(
        UserWarning, match=r"got 20.0% of their elements; .* Scale \('1', '3'\) \(not multiplied"
    ) as said:
        chosen(net)
    assert len(said) == 1 and "where=('0.weight', '*.table')" in str(said[0].message)
    net[1].table.requires_grad_(False)
    net[3].table.requires_grad_(False)
    assert chosen(net) == ("0.weight",)  # what is frozen is not left out


def test_types_and_patterns_choose_and_what_matches_nothing_is_an_error():
    net = nn.Sequential(TransposedLinear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), Experts())
    assert chosen(net, where=TransposedLinear) == ("0.weight",)
    assert chosen(net, where=[nn.LayerNorm, Experts]) == ("2.weight", "3.gate", "3.up", "3.down")
    assert chosen(net, where=nn.Module) == ("0.weight", "1.weight", "2.weight", "3.gate", "3.up", "3.down")
    assert chosen(net, where=("1.*", "3.up")) == ("1.weight", "1.bias", "3.up")
    with pytest.raises(ValueError, match=r"where: expected parameter names .* of \['0.weight', .*got \['0.wieght'\]"):
        chosen(net, where=("1.*", "0.wieght"))
    with pytest.raises(ValueError, match=r"matrices are those of TransposedLinear \('0'\), Linear \('1'\), Experts"):
        chosen(net, where=nn.Conv1d)
    for mixture in ((nn.Linear, "0.weight"), (nn.Linear, lambda name, module: True), []):
        with pytest.raises(TypeError, match="where: expected module types, parameter names or one callable, got"):
            chosen(net, where=mixture)


def test_a_frozen_parameter_is_random_by_its_name_or_a_function_only():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight.requires_grad_(False)
    for where in (None, nn.Linear, "*weight"):
        assert chosen(net, where=where) == ("1.weight",)
    assert (
        chosen(net, where="0.weight") == chosen(net, where=lambda name, module: module is net[0])[:1] == ("0.weight",)
    )


def test_a_weight_in_another_module_than_its_user_is_found():
    class User(nn.Module):
        def __init__(self):
            super().__init__()
            self.store, self.out = nn.Module(), nn.Linear(3, 2)
            self.store.matrix = nn.Parameter(torch.ones(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.linear(x, self.store.matrix))

    assert chosen(User()) == ("store.matrix", "out.weight")


def test_words_stay_words_in_a_net_with_positions():
    assert "words.weight" in chosen(ByRange()) and ByRange()(WORDS).shape == (2, 5, 2)
