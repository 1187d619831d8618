"""Exchange of weights where something goes wrong, or the net is no plain module."""

import gc
import threading
import time
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pyro_vd as vd
from helpers.exchange_nets import Nested, Run, X, Y, assert_unchanged, attributes, masked, mlp
from pyro_vd.guides import AutoMeanField


def test_what_a_net_leaves_for_its_reader_stays_after_a_step_and_not_after_a_prediction():
    class Noting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.penalty, self.calls = nn.Linear(4, 2), None, 0

        def forward(self, x):
            out = self.layer(x)
            self.penalty, self.calls = out.square().sum(), self.calls + 1
            return out

    net = Noting()
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

    def model(x, y=None):
        mean = bnn(x)
        pyro.factor("penalty", -net.penalty)
        with vd.data_plate(5, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    guide = AutoMeanField(model)
    loss = vd.TraceVD_ELBO().differentiable_loss(model, guide, X, Y)
    assert net.penalty.requires_grad
    noted = net.penalty
    vd.posterior_predictive(model, guide, X, num_samples=2)
    assert net.penalty is noted
    loss.backward()


def test_values_do_not_outlive_the_graph():
    pyro.set_rng_seed(0)
    run = Run("mlp", "shared")
    run.svi.step(X, Y)
    drawn = []

    def one(create_graph=False):
        loss = run.elbo.differentiable_loss(run.model, run.guide, X, Y)
        parameters = list(run.guide.parameters())
        gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        if create_graph:
            sum(gradient.square().sum() for gradient in gradients).backward()

    layer = run.net[0][0]
    layer.register_forward_hook(lambda module, args, output: drawn.append(weakref.ref(module.weight)))
    gc.collect()
    gc.disable()  # what only a collection would free waits for one
    try:
        for create_graph in (False, True):
            drawn.clear()
            one(create_graph)
            one(create_graph)
            assert len(drawn) == 2 and [ref() for ref in drawn] == [None, None]
    finally:
        gc.enable()


def test_a_failed_backward_pass_leaves_the_net_s_own_weights():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ArithmeticError("in the backward pass")

    run = Run("mlp", "shared")
    run.svi.step(X, Y)
    before = attributes(run.net)
    hook = run.net[0][0].register_forward_hook(lambda module, args, output: Fails.apply(output))
    with pytest.raises(ArithmeticError):
        run.svi.step(X, Y)
    hook.remove()
    assert_unchanged(before, run.net)
    run.svi.step(X, Y)


def test_threads_with_one_net_wait_for_each_other():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 4))

        def forward(self, x):
            weight = self.weight
            time.sleep(0.002)
            seen.append(weight is self.weight)
            return nn.functional.linear(x, weight)

    seen: list[bool] = []
    net = Slow()
    own, bnn = net.weight, vd.BayesianModule(net, dist.Normal(0.0, 1.0), where="weight")
    threads = [threading.Thread(target=lambda: [bnn(X) for _ in range(10)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 30 and all(seen) and net.weight is own


def test_a_call_while_another_has_its_weights_in_the_net_is_an_error():
    run = Run("mlp", "shared")
    with pytest.raises(RuntimeError, match="expected a net that holds its own parameters.*copy.deepcopy"):
        run.net[0][0].register_forward_hook(lambda module, args, output: work(run))

        def work(run):
            run.bnn(X)

        run.bnn(X)


def test_lazy_modules_are_an_error_until_they_have_seen_data():
    net = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"got '0.weight' of a lazy module that has seen no data; call net\(x\) once"):
        vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    net(X)
    assert vd.BayesianModule(net, dist.Normal(0.0, 1.0))(X).shape == (5, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::DeprecationWarning")
def test_script_modules_are_an_error_unless_frozen():
    scripted = torch.jit.script(nn.Linear(4, 4))
    for net in (scripted, nn.Sequential(scripted, nn.Linear(4, 2))):
        with pytest.raises(TypeError, match="RecursiveScriptModule.*pass the module from before torch.jit.script"):
            vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    for parameter in scripted.parameters():
        parameter.requires_grad_(False)
    bnn = vd.BayesianModule(nn.Sequential(scripted, nn.Linear(4, 2)), dist.Normal(0.0, 1.0))
    assert bnn.weight_names == ("1.weight",) and bnn(X).shape == (5, 2)


def test_data_parallel_is_an_error():
    for net in (nn.DataParallel(nn.Linear(4, 2)), nn.Sequential(nn.DataParallel(nn.Linear(4, 2)))):
        with pytest.raises(TypeError, match="a DataParallel at .*pass .module instead"):
            vd.BayesianModule(net, dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("estimator", ["local", "shared"])
def test_compiled_modules_run_as_they_would_without(whole, estimator):
    def outputs(compile):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        net = mlp()
        if compile and whole:
            net = torch.compile(net, backend="eager")
        elif compile:
            net[0].compile(backend="eager")
        bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))

        def model(x, y=None):
            mean = bnn(x)
            with vd.data_plate(5, len(x)):
                return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

        guide = AutoMeanField(model)
        losses = [vd.TraceVD_ELBO(estimator).loss(model, guide, X, Y) for _ in range(2)]
        assert len(bnn.weight_names) == 2
        return losses

    assert outputs(True) == outputs(False)


def test_a_net_that_has_changed_is_an_error():
    net = mlp()
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    masked(net[0])
    with pytest.raises(ValueError, match=r"got one without \['0.weight'\], which has changed since"):
        bnn(X)


def test_a_bayesian_module_is_no_plain_net_and_one_inside_keeps_its_own_weights():
    with pytest.raises(TypeError, match="expected a plain net, got a BayesianModule"):
        vd.BayesianModule(vd.BayesianModule(nn.Linear(4, 2), dist.Normal(0.0, 1.0)), dist.Normal(0.0, 1.0))
    bnn = vd.BayesianModule(Nested(), dist.Normal(0.0, 1.0))
    assert bnn.weight_names == ("head.weight",)
    trace = pyro.poutine.trace(bnn).get_trace(X)
    assert list(trace.stochastic_nodes) == ["net.head.weight", "inner.weight"]
    assert sorted(trace.param_nodes) == ["inner.bias", "net.head.bias"]


def test_cached_parametrizations_are_not_kept_over_draws():
    net = mlp(lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()) or layer)
    bnn = vd.BayesianModule(net, dist.Normal(0.0, 1.0))
    with parametrize.cached(), pytest.raises(ValueError, match="outside of torch.nn.utils.parametrize.cached"):
        bnn(X)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight
