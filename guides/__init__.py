"""Automatic guides of random weights; each is an ordinary Pyro guide."""

from pyro_vd.guides.additive import AutoMeanField as AutoMeanField
from pyro_vd.guides.additive import AutoSparseVD as AutoSparseVD
from pyro_vd.guides.variational_dropout import AutoVariationalDropout as AutoVariationalDropout
