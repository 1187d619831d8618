"""Variational dropout as NumPyro models: random weights, their KL, and local reparameterization."""

from pyro_vd.common.bits import BitsReport as BitsReport
from pyro_vd.common.names import public_names as _public_names
from pyro_vd.common.reports import LRTReport as LRTReport
from pyro_vd.common.threshold import ThresholdCurve as ThresholdCurve
from pyro_vd.convert import from_numpyro as from_numpyro
from pyro_vd.convert import to_numpyro as to_numpyro
from pyro_vd.numpyro import kl as kl
from pyro_vd.numpyro import operations as operations
from pyro_vd.numpyro import training as training
from pyro_vd.numpyro.elbo import LossTerms as LossTerms
from pyro_vd.numpyro.elbo import TraceVD_ELBO as TraceVD_ELBO
from pyro_vd.numpyro.estimators import LinearOp as LinearOp
from pyro_vd.numpyro.gradient_variance import GradientVariance as GradientVariance
from pyro_vd.numpyro.gradient_variance import gradient_variance as gradient_variance
from pyro_vd.numpyro.handlers import flipout as flipout
from pyro_vd.numpyro.handlers import lrt as lrt
from pyro_vd.numpyro.handlers import per_example as per_example
from pyro_vd.numpyro.handlers import posterior_mean as posterior_mean
from pyro_vd.numpyro.lrt_report import lrt_report as lrt_report
from pyro_vd.numpyro.module import BayesianModule as BayesianModule
from pyro_vd.numpyro.operations import operations_table as operations_table
from pyro_vd.numpyro.operations import register_rule as register_rule
from pyro_vd.numpyro.plates import data_plate as data_plate
from pyro_vd.numpyro.posteriors import BernoulliDropout as BernoulliDropout
from pyro_vd.numpyro.posteriors import ConcreteDropout as ConcreteDropout
from pyro_vd.numpyro.posteriors import CorrelatedDropoutNormal as CorrelatedDropoutNormal
from pyro_vd.numpyro.posteriors import DropoutNormal as DropoutNormal
from pyro_vd.numpyro.posteriors import GroupNormal as GroupNormal
from pyro_vd.numpyro.posteriors import LowRankNormal as LowRankNormal
from pyro_vd.numpyro.predict import Predictive as Predictive
from pyro_vd.numpyro.predict import posterior_predictive as posterior_predictive
from pyro_vd.numpyro.predict import predictive_distribution as predictive_distribution
from pyro_vd.numpyro.predict import to_arviz as to_arviz
from pyro_vd.numpyro.priors import ImproperLogUniform as ImproperLogUniform
from pyro_vd.numpyro.priors import TruncatedLogUniform as TruncatedLogUniform
from pyro_vd.numpyro.sparsity import Deployment as Deployment
from pyro_vd.numpyro.sparsity import deploy as deploy
from pyro_vd.numpyro.sparsity import keep_masks as keep_masks
from pyro_vd.numpyro.sparsity import keep_zeros as keep_zeros
from pyro_vd.numpyro.sparsity import prune as prune
from pyro_vd.numpyro.sparsity import sparsity_report as sparsity_report
from pyro_vd.numpyro.sparsity import threshold_curve as threshold_curve
from pyro_vd.numpyro.sparsity import weight_bits as weight_bits
from pyro_vd.numpyro.sparsity import weight_posteriors as weight_posteriors
from pyro_vd.numpyro.weights import RandomWeight as RandomWeight


def __dir__() -> list[str]:
    return _public_names(globals())
