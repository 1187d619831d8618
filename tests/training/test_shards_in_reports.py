"""Shards of FSDP2 in reports, pruning and predictions are refused: a sum over a part looks like one over the whole."""

from __future__ import annotations

from datetime import timedelta

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import distributed, nn

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD, AutoVariationalDropout, mixed_guide

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def process(tmp_path):
    distributed.init_process_group(
        "gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1, timeout=timedelta(seconds=20)
    )
    yield
    distributed.destroy_process_group()


def made(mixed):
    bnn = vd.BayesianModule(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), vd.ImproperLogUniform())

    def model(x, y=None):
        mean = bnn(x)
        with vd.data_plate(60, len(x)):
            return pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    parts = (AutoSparseVD(model, where="net.0.*"), AutoVariationalDropout(model, where="net.2.*")) if mixed else ()
    guide = mixed_guide(model, *parts) if mixed else AutoSparseVD(model)
    return model, bnn, guide, vd.TraceVD_ELBO()(model, guide)


@pytest.mark.parametrize("mixed", [False, True])
def test_shards_are_refused_until_they_are_put_together(process, mixed):
    from torch.distributed.fsdp import fully_shard

    model, bnn, guide, loss = made(mixed)
    whole = {site: vd.DropoutNormal(torch.ones(q.mean.shape), log_sigma2=0.0) for site, q in guide.posteriors().items()}
    expected = str(vd.sparsity_report(guide))
    fully_shard(loss)
    calls = {
        "report": lambda: vd.sparsity_report(guide),
        "masks": lambda: vd.keep_masks(guide),
        "bits": lambda: vd.weight_bits(guide),
        "posteriors": lambda: vd.sparsity_report(guide.posteriors()),
        "prune": lambda: vd.prune(bnn, guide),
        "the net alone": lambda: vd.prune(bnn, whole),
        "sparse file": lambda: vd.save_sparse(bnn.net, "never"),
        "sparse layers": lambda: vd.to_csr(bnn.net),
        "draws": lambda: vd.posterior_predictive(model, guide, X, num_samples=2),
        "distribution": lambda: vd.predictive_distribution(model, guide, X, num_samples=2),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"expected parameters as a whole, got shards of .*call loss.unshard\(\)"):
            print(name, call())
    loss.unshard()
    assert str(vd.sparsity_report(guide)) == expected
    for name, call in calls.items():
        if "sparse" not in name:
            call()
