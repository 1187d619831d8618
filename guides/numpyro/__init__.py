"""Automatic guides of random weights; each is an ordinary NumPyro guide."""

from pyro_vd.guides.numpyro.additive import AutoARD as AutoARD
from pyro_vd.guides.numpyro.additive import AutoMeanField as AutoMeanField
from pyro_vd.guides.numpyro.additive import AutoSparseVD as AutoSparseVD
from pyro_vd.guides.numpyro.dropout import AutoBernoulliDropout as AutoBernoulliDropout
from pyro_vd.guides.numpyro.dropout import AutoConcreteDropout as AutoConcreteDropout
from pyro_vd.guides.numpyro.dropout import AutoGaussianDropout as AutoGaussianDropout
from pyro_vd.guides.numpyro.group_sparse import AutoGroupSparse as AutoGroupSparse
from pyro_vd.guides.numpyro.low_rank import AutoLowRank as AutoLowRank
from pyro_vd.guides.numpyro.mixed import mixed_guide as mixed_guide
from pyro_vd.guides.numpyro.variational_dropout import AutoVariationalDropout as AutoVariationalDropout
