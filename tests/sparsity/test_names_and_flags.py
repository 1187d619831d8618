"""Names of parameters and flags that are not what they should be are errors that say so."""

from __future__ import annotations

import pytest
import torch

import pyro_vd as vd
from pyro_vd.guides import AutoSparseVD


def test_an_unknown_parameter_and_a_flag_that_is_none():
    bnn = vd.BayesianModule(torch.nn.Linear(3, 2), vd.ImproperLogUniform())
    with pytest.raises(ValueError, match=r"parameter_name: expected names among the .* \['weight'\], got \['wieght'\]"):
        bnn.fixed("wieght")
    assert bnn.fixed("weight") is None
    with pytest.raises((TypeError, ValueError), match="masked"):
        vd.prune(bnn, AutoSparseVD(bnn), masked="yes")
