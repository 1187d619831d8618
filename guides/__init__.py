"""Automatic guides of random weights; each is an ordinary Pyro guide."""

from pyro_vd.guides.additive import AutoARD as AutoARD
from pyro_vd.guides.additive import AutoMeanField as AutoMeanField
from pyro_vd.guides.additive import AutoSparseVD as AutoSparseVD
from pyro_vd.guides.dropout import AutoBernoulliDropout as AutoBernoulliDropout
from pyro_vd.guides.dropout import AutoConcreteDropout as AutoConcreteDropout
from pyro_vd.guides.dropout import AutoGaussianDropout as AutoGaussianDropout
from pyro_vd.guides.group_sparse import AutoGroupSparse as AutoGroupSparse
from pyro_vd.guides.low_rank import AutoLowRank as AutoLowRank
from pyro_vd.guides.mixed import mixed_guide as mixed_guide
from pyro_vd.guides.variational_dropout import AutoVariationalDropout as AutoVariationalDropout
