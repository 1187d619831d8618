"""Variational dropout as Pyro models: random weights, their KL, and local reparameterization."""

from pyro_vd import kl as kl
from pyro_vd import metrics as metrics
from pyro_vd import plots as plots
from pyro_vd import training as training
from pyro_vd.common.bits import BitsReport as BitsReport
from pyro_vd.common.names import public_names as _public_names
from pyro_vd.common.threshold import ThresholdCurve as ThresholdCurve
from pyro_vd.compiled.loss import compile_loss as compile_loss
from pyro_vd.compiled.svi import CompiledSVI as CompiledSVI
from pyro_vd.convert import from_numpyro as from_numpyro
from pyro_vd.convert import to_numpyro as to_numpyro
from pyro_vd.elbo import LossTerms as LossTerms
from pyro_vd.elbo import TraceVD_ELBO as TraceVD_ELBO
from pyro_vd.estimators import LinearOp as LinearOp
from pyro_vd.gradient_variance import GradientVariance as GradientVariance
from pyro_vd.gradient_variance import gradient_variance as gradient_variance
from pyro_vd.handlers import flipout as flipout
from pyro_vd.handlers import lrt as lrt
from pyro_vd.handlers import per_example as per_example
from pyro_vd.handlers import posterior_mean as posterior_mean
from pyro_vd.lrt_report import LRTReport as LRTReport
from pyro_vd.lrt_report import lrt_report as lrt_report
from pyro_vd.module import BayesianModule as BayesianModule
from pyro_vd.module import data_plate as data_plate
from pyro_vd.operations import operations_table as operations_table
from pyro_vd.operations import register_rule as register_rule
from pyro_vd.posteriors import BernoulliDropout as BernoulliDropout
from pyro_vd.posteriors import ConcreteDropout as ConcreteDropout
from pyro_vd.posteriors import CorrelatedDropoutNormal as CorrelatedDropoutNormal
from pyro_vd.posteriors import DropoutNormal as DropoutNormal
from pyro_vd.posteriors import GroupNormal as GroupNormal
from pyro_vd.posteriors import LowRankNormal as LowRankNormal
from pyro_vd.predict import Predictive as Predictive
from pyro_vd.predict import posterior_predictive as posterior_predictive
from pyro_vd.predict import predictive_distribution as predictive_distribution
from pyro_vd.predict import to_arviz as to_arviz
from pyro_vd.priors import ImproperLogUniform as ImproperLogUniform
from pyro_vd.priors import TruncatedLogUniform as TruncatedLogUniform
from pyro_vd.sparsity import Deployment as Deployment
from pyro_vd.sparsity import deploy as deploy
from pyro_vd.sparsity import index_inputs as index_inputs
from pyro_vd.sparsity import keep_masks as keep_masks
from pyro_vd.sparsity import load_sparse as load_sparse
from pyro_vd.sparsity import prune as prune
from pyro_vd.sparsity import save_sparse as save_sparse
from pyro_vd.sparsity import shrink as shrink
from pyro_vd.sparsity import sparsity_report as sparsity_report
from pyro_vd.sparsity import threshold_curve as threshold_curve
from pyro_vd.sparsity import to_csr as to_csr
from pyro_vd.sparsity import weight_bits as weight_bits
from pyro_vd.sparsity import weight_posteriors as weight_posteriors
from pyro_vd.weights import RandomWeight as RandomWeight

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return _public_names(globals())
